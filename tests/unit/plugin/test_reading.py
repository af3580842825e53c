"""Anomalib with its reading wrapped: misread files look right, everything else stays byte for byte what it was."""

import importlib
from operator import attrgetter
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import ImageBatch, ImageItem, PredictDataset
from anomalib.visualization import ImageVisualizer
from PIL import Image
from torchvision.tv_tensors import Image as TensorImage

from anomalib_cxr.data import RadiographDataset
from anomalib_cxr.imaging import RadiographError, read_radiograph
from anomalib_cxr.plugin.reading import READING, is_misread

NAMES = [
    ("anomalib.data.predict", "get_image_filenames"),
    ("anomalib.data.predict", "read_image"),
    ("anomalib.deploy.inferencers.torch_inferencer", "read_image"),
    ("anomalib.deploy.inferencers.openvino_inferencer", "read_image"),
    ("anomalib.visualization.image.item_visualizer", "Image"),
    ("anomalib.visualization.image.visualizer", "generate_output_filename"),
    ("anomalib.visualization.image.visualizer", "ImageVisualizer.on_test_batch_end"),
]


def current() -> list[object]:
    return [attrgetter(name)(importlib.import_module(module)) for module, name in NAMES]


@pytest.fixture(autouse=True)
def _unwrapped():
    """Each test starts with stock Anomalib, whatever the plugin did at import, and leaves it as it was."""
    before = current()
    READING.take_back()
    was_wrapped = current() != before
    yield
    READING.take_back()
    if was_wrapped:
        READING.put()


@pytest.fixture
def scene() -> np.ndarray:
    """A smooth 12-bit picture that uses its whole range, (48, 64)."""
    noise = np.random.default_rng(0).random((48, 64))
    smooth = cv2.GaussianBlur(noise, (0, 0), 6)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return np.rint(smooth * 4095).astype(np.uint16)


def write_dicom(path: Path, pixels: np.ndarray) -> Path:
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.DigitalXRayImageStorageForPresentation, "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME1"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = (4095 - pixels).tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_deep(folder: Path, scene: np.ndarray) -> list[Path]:
    """The scene as files that stock Anomalib misreads."""
    Image.fromarray(scene).save(folder / "deep.png")
    Image.fromarray(scene).save(folder / "deep.tif")
    Image.fromarray((scene / 4095).astype(np.float32)).save(folder / "float.tif")
    Image.fromarray(scene.astype(np.int32)).save(folder / "whole.tiff")
    cv2.imwrite(str(folder / "colour.png"), np.stack([scene] * 3, -1))
    old = write_dicom(folder / "old.dcm", scene)
    old.write_bytes(old.read_bytes()[132:])  # as archives older than the preamble hold them
    names = ["a.dcm", "b.DICOM", "misnamed.png", "IM0001", "1.2.840.5"]
    return [*sorted(folder.iterdir()), *(write_dicom(folder / name, scene) for name in names)]


def write_flat(folder: Path, scene: np.ndarray) -> list[Path]:
    """Files of 8 bits and less, in every mode that Pillow writes, and one that is broken."""
    grey = Image.fromarray((scene >> 4).astype(np.uint8))
    colour = Image.fromarray(np.stack([(scene >> s).astype(np.uint8) for s in (2, 3, 4)], -1))
    for name, image in {
        "grey.png": grey,
        "colour.png": colour,
        "palette.png": colour.convert("P"),
        "bit.png": grey.convert("1"),
        "rgba.png": colour.convert("RGBA"),
        "la.png": grey.convert("LA"),
        "grey.jpg": grey,
        "colour.jpeg": colour,
        "cmyk.jpg": colour.convert("CMYK"),
        "grey.bmp": grey,
        "colour.tif": colour,
        "colour.webp": colour,
    }.items():
        image.save(folder / name)
    Image.fromarray((scene / 4095 * 255).astype(np.float32)).save(folder / "float255.tif")
    exif = Image.Exif()
    exif[0x0112] = 6
    colour.save(folder / "turned.jpg", exif=exif)
    return sorted(folder.iterdir())


def test_wrap_and_unwrap_are_idempotent_and_restore_the_very_objects():
    stock = current()
    READING.put()
    wrapped = current()
    assert all(a is not b for a, b in zip(stock, wrapped, strict=True))
    READING.put()
    assert all(a is b for a, b in zip(wrapped, current(), strict=True))
    READING.take_back()
    READING.take_back()
    assert all(a is b for a, b in zip(stock, current(), strict=True))


def test_wrapping_imports_nothing_and_completes_what_was_loaded_later(monkeypatch):
    """The plugin calls it in the midst of an import of Anomalib, when some of its modules are missing or half there."""
    import sys
    from types import ModuleType

    stock = current()
    half = ModuleType("anomalib.visualization.image.visualizer")
    half.__spec__ = importlib.machinery.ModuleSpec(half.__name__, None)
    half.__spec__._initializing = True
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "anomalib.deploy.inferencers.torch_inferencer")
        patch.setitem(sys.modules, half.__name__, half)
        READING.put()
        assert "anomalib.deploy.inferencers.torch_inferencer" not in sys.modules
        assert not hasattr(half, "generate_output_filename")
    assert sum(a is not b for a, b in zip(stock, current(), strict=True)) == 4
    READING.put()
    assert all(a is not b for a, b in zip(stock, current(), strict=True))


def test_a_changed_anomalib_is_noticed(monkeypatch):
    monkeypatch.delattr("anomalib.data.predict.read_image")
    with pytest.raises(AttributeError, match="read_image"):
        READING.put()


def test_8bit_files_stay_byte_identical(tmp_path, scene):
    paths = write_flat(tmp_path, scene)

    def everything() -> list[bytes]:
        result = [str(PredictDataset(tmp_path).image_filenames).encode()]
        predict, *_ = (importlib.import_module(module) for module, _ in NAMES)
        visualize = importlib.import_module("anomalib.visualization.image.item_visualizer").visualize_image_item
        for index, path in enumerate(paths):
            item = PredictDataset(tmp_path)[index]
            assert item.image_path == str(path)
            array = predict.read_image(path)
            picture = visualize(ImageItem(image=item.image, image_path=str(path)), fields=["image"])
            result += [item.image.numpy().tobytes(), array.tobytes(), str(array.dtype).encode(), picture.tobytes()]
        return result

    stock = everything()
    READING.put()
    assert everything() == stock
    assert len(stock) == 1 + 4 * len(paths)


def test_misread_files_come_out_as_the_scene(tmp_path, scene):
    expected = scene / 4095
    paths = write_deep(tmp_path, scene)
    READING.put()
    dataset = PredictDataset(tmp_path)
    assert dataset.image_filenames == sorted(paths)
    for index, path in enumerate(dataset.image_filenames):
        image = dataset[index].image
        assert image.shape == (3, 48, 64)
        assert image.dtype == torch.float32
        assert image.is_contiguous()
        for channel in image:
            np.testing.assert_allclose(channel.numpy(), expected, atol=1e-6, err_msg=path.name)


def write_partly_transparent(folder: Path, scene: np.ndarray) -> dict[str, np.ndarray]:
    """Pictures of 8 bits that are not opaque all over, each with what it shows over black."""
    grey = (scene >> 4).astype(np.uint8)
    alpha = np.full_like(grey, 255)
    alpha[:20, :30] = 0
    alpha[30:, :30] = 128
    laid = grey / 255 * (alpha / 255)
    rgba = Image.fromarray(np.dstack([grey, grey, grey, alpha]))
    rgba.save(folder / "rgba.png")
    Image.fromarray(np.dstack([grey, alpha]), mode="LA").save(folder / "la.png")
    rgba.save(folder / "rgba.tif")
    rgba.save(folder / "rgba.webp", lossless=True, exact=True)
    Image.fromarray(grey).save(folder / "key.png", transparency=int(grey[0, 0]))
    return {
        **dict.fromkeys(["rgba.png", "la.png", "rgba.tif", "rgba.webp"], laid),
        "key.png": np.where(grey == grey[0, 0], 0, grey / 255),
    }


def test_transparency_is_laid_over_black_in_predict_infer_and_tests_alike(tmp_path, scene):
    expected = write_partly_transparent(tmp_path, scene)
    samples = pd.DataFrame({"image_path": [str(tmp_path / name) for name in expected], "mask_path": ""})
    tested = RadiographDataset(samples.assign(label_index=0, split="test"))
    stock = np.abs(PredictDataset(tmp_path / "rgba.png")[0].image[0].numpy() - expected["rgba.png"])
    assert stock.mean() > 0.1  # what all this is for
    READING.put()
    torch_reader = importlib.import_module("anomalib.deploy.inferencers.torch_inferencer").read_image
    for index, path in enumerate(tested.samples["image_path"]):
        laid = expected[Path(path).name]
        assert is_misread(path)
        for image in (PredictDataset(path)[0].image, tested[index].image, torch_reader(path, as_tensor=True)):
            np.testing.assert_allclose(image.numpy(), np.stack([laid] * 3), atol=1e-6, err_msg=path)
        np.testing.assert_allclose(read_radiograph(path), laid, atol=1e-6, err_msg=path)


def test_a_turned_tiff_is_predicted_as_it_is_stored(tmp_path, scene):
    grey = (scene >> 4).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "turned.tif", tiffinfo={274: 6})
    READING.put()
    np.testing.assert_allclose(PredictDataset(tmp_path / "turned.tif")[0].image[0].numpy(), grey / 255, atol=1e-6)


def test_types_are_those_of_the_stock_reader(tmp_path, scene):
    predict = importlib.import_module("anomalib.data.predict")
    Image.fromarray((scene >> 4).astype(np.uint8)).save(tmp_path / "flat.png")
    Image.fromarray(scene).save(tmp_path / "deep.png")
    stock_tensor, stock_array = (predict.read_image(tmp_path / "flat.png", as_tensor=t) for t in (True, False))
    READING.put()
    tensor, array = (predict.read_image(tmp_path / "deep.png", as_tensor=t) for t in (True, False))
    assert type(tensor) is type(stock_tensor) is TensorImage
    assert (tensor.dtype, tensor.shape) == (stock_tensor.dtype, stock_tensor.shape)
    assert (array.dtype, array.shape) == (stock_array.dtype, stock_array.shape)
    np.testing.assert_array_equal(array, tensor.permute(1, 2, 0).numpy())


def test_stock_anomalib_does_misread(tmp_path, scene):
    """What all this is for: without it, over nine pixels in ten are white."""
    Image.fromarray(scene).save(tmp_path / "deep.png")
    assert (PredictDataset(tmp_path)[0].image == 1).float().mean() > 0.9
    with pytest.raises(ValueError, match="not an image file"):
        PredictDataset(write_dicom(tmp_path / "a.dcm", scene))


def test_single_dicom_and_errors_of_the_stock_listing(tmp_path, scene):
    predict = importlib.import_module("anomalib.data.predict")
    READING.put()
    path = write_dicom(tmp_path / "a.dcm", scene)
    assert PredictDataset(str(path)).image_filenames == [path]
    assert predict.get_image_filenames(path, base_dir=tmp_path) == [path]
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="outside the allowed"):
        predict.get_image_filenames(path, base_dir=tmp_path / "other")
    with pytest.raises(ValueError, match="Found 0 images"):
        PredictDataset(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        PredictDataset(tmp_path / "missing.dcm")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="not an image file"):
        PredictDataset(tmp_path / "notes.txt")


def test_a_folder_is_listed_as_data_sets_list_it(tmp_path, scene, caplog):
    """A Mac's copies and other hidden files are no films; linked folders are followed, each once."""
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (root / "deeper").mkdir(parents=True)
    elsewhere.mkdir()
    grey = Image.fromarray((scene >> 4).astype(np.uint8))
    films = [root / "a.jpg", root / "deeper" / "b.webp", elsewhere / "c.png"]
    hidden = [root / "._a.jpg", root / ".thumbnails" / "a.jpg", root / "__MACOSX" / "deeper" / "b.webp"]
    for path in (*films, *hidden):
        path.parent.mkdir(parents=True, exist_ok=True)
        grey.save(path)
    (root / "link").symlink_to(elsewhere)
    (root / "deeper" / "loop").symlink_to(root)
    READING.put()
    with caplog.at_level("INFO", "anomalib_cxr"):
        listed = PredictDataset(root).image_filenames
    assert listed == [root / "a.jpg", root / "deeper" / "b.webp", root / "link" / "c.png"]
    assert f"3 hidden images below {root} are left out" in caplog.text
    for path in films:
        path.unlink()
    with pytest.raises(ValueError, match=r"Found 0 images in .* that are not hidden"):
        PredictDataset(root)


def test_dicomdir_and_other_files_of_an_archive_are_not_listed(tmp_path, scene):
    (tmp_path / "deeper").mkdir()
    write_dicom(tmp_path / "DICOMDIR", scene)
    (tmp_path / "README").write_text("x")
    (tmp_path / "folder.dcm").mkdir()
    path = write_dicom(tmp_path / "deeper" / "IM0001", scene)
    READING.put()
    assert PredictDataset(tmp_path).image_filenames == [path]


def test_broken_files(tmp_path, scene):
    """A misread file that is broken gives our error, any other broken file Anomalib's own."""
    READING.put()
    Image.fromarray(scene).save(tmp_path / "deep.png")
    (tmp_path / "deep.png").write_bytes((tmp_path / "deep.png").read_bytes()[:400])
    with pytest.raises(RadiographError, match=r"deep\.png"):
        PredictDataset(tmp_path / "deep.png")[0]
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(RadiographError, match=r"a\.dcm"):
        PredictDataset(tmp_path / "a.dcm")[0]
    for content in (b"", b"text", b"\x89PNG\r\n\x1a\n"):
        (tmp_path / "flat.png").write_bytes(content)
        with pytest.raises(OSError, match="cannot identify"):
            PredictDataset(tmp_path / "flat.png")[0]


def test_is_misread(tmp_path, scene):
    (tmp_path / "deep").mkdir()
    (tmp_path / "flat").mkdir()
    assert all(is_misread(path) for path in write_deep(tmp_path / "deep", scene))
    assert not any(is_misread(str(path)) for path in write_flat(tmp_path / "flat", scene))
    assert not is_misread(tmp_path)
    assert not is_misread(tmp_path / "missing.png")


def test_picture_of_a_16bit_png_is_that_of_the_8bit_one(tmp_path, scene):
    """Through ImageVisualizer with a heat map over it; the rounding of the base image is all that may differ."""
    Image.fromarray(scene).save(tmp_path / "deep.png")
    Image.fromarray(np.rint(scene / 4095 * 255).astype(np.uint8)).save(tmp_path / "flat.png")
    write_dicom(tmp_path / "a.dcm", scene)
    anomaly_map = torch.rand(48, 64, generator=torch.Generator().manual_seed(0))

    def picture(name: str) -> np.ndarray:
        item = ImageItem(image=torch.zeros(3, 48, 64), image_path=str(tmp_path / name), anomaly_map=anomaly_map)
        return np.asarray(ImageVisualizer(fields=["image", "anomaly_map"]).visualize(item)).astype(int)

    flat, stock_deep = picture("flat.png"), picture("deep.png")
    assert np.abs(stock_deep - flat).mean() > 20
    READING.put()
    np.testing.assert_array_equal(picture("flat.png"), flat)
    np.testing.assert_array_equal(picture("deep.png"), flat)
    np.testing.assert_array_equal(picture("a.dcm"), flat)


def test_pictures_are_saved_under_names_that_open(tmp_path, scene):
    """As the Engine does after each batch: a.dcm must not fail, nor overwrite the picture of a.png."""
    names = ["a.png", "a.dcm", "IM0001", "1.2.840.5"]
    Image.fromarray(scene).save(tmp_path / "a.png")
    for name in names[1:]:
        write_dicom(tmp_path / name, scene)
    READING.put()
    batch = ImageBatch(
        image=torch.zeros(4, 3, 48, 64),
        image_path=[str(tmp_path / name) for name in names],
        anomaly_map=torch.zeros(4, 48, 64),
    )
    visualizer = ImageVisualizer(fields=["image"], output_dir=tmp_path / "out")
    visualizer.on_predict_batch_end(trainer=None, pl_module=None, outputs=batch, batch=batch, batch_idx=0)
    saved = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert sorted(path.name for path in saved) == ["1.2.840.5.png", "IM0001.png", "a.dcm.png", "a.png"]
    pictures = [np.asarray(Image.open(path)) for path in saved]
    assert all(np.array_equal(pictures[0], other) for other in pictures)
    assert pictures[0].std() > 20


@pytest.mark.parametrize("name", ["torch_inferencer", "openvino_inferencer"])
def test_inferencers_read_the_same(tmp_path, scene, name):
    write_dicom(tmp_path / "a.dcm", scene)
    READING.put()
    module = importlib.import_module(f"anomalib.deploy.inferencers.{name}")
    np.testing.assert_allclose(module.read_image(tmp_path / "a.dcm")[..., 0], scene / 4095, atol=1e-6)


def test_stand_in_for_pillow_is_pillow_but_for_open():
    READING.put()
    stand_in = importlib.import_module("anomalib.visualization.image.item_visualizer").Image
    assert stand_in.Image is Image.Image
    assert stand_in.fromarray is Image.fromarray
    with pytest.raises(AttributeError):
        stand_in.no_such_name  # noqa: B018

"""read_radiograph on DICOM: files written here, pydicom's own and two real radiographs."""

import builtins
import math
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anomalib_cxr.imaging import RadiographError, read_radiograph
from anomalib_cxr.imaging.codestream import read_codestream

pydicom = pytest.importorskip("pydicom")
from pydicom import uid  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate, get_frame  # noqa: E402
from pydicom.pixels import apply_modality_lut, apply_voi_lut  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
# pydicom warns of what these files have wrong on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def make(pixels: np.ndarray, bits: int, photometric: str = "MONOCHROME2", **elements) -> Dataset:
    """A DICOM image around an array of integers; ``elements`` by keyword, None leaves one out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Modality = "DX"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = photometric
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.add_new(0x7FE00010, "OW", pixels.tobytes() + bytes(pixels.nbytes % 2))
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def read(dataset: Dataset, tmp_path: Path, **arguments) -> np.ndarray:
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    image = read_radiograph(tmp_path / "a.dcm", **arguments)
    assert image.dtype == np.float32
    assert image.flags.writeable
    return image


def lut_item(descriptor: list[int], data: list[int] | bytes, vr: str = "US") -> Sequence:
    item = Dataset()
    item.add_new(0x00283002, "US" if descriptor[1] >= 0 else "SS", descriptor)
    item.add_new(0x00283006, vr, data)
    return Sequence([item])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def pixels(rng) -> np.ndarray:
    pixels = rng.integers(0, 4096, (13, 17), dtype=np.uint16)
    pixels[2, 2:5] = 1023, 1024, 1025  # the edge of a window below
    return pixels


# --- full range


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_whole_range_of_bits_stored(tmp_path, rng, bits):
    pixels = rng.integers(0, 2**bits // 3, (8, 10), dtype=np.uint16)  # nothing near white: no min-max stretch
    np.testing.assert_allclose(read(make(pixels, bits), tmp_path), pixels / (2**bits - 1), atol=1e-7)


def test_8bit_equals_the_8bit_png(tmp_path, rng):
    from PIL import Image

    pixels = rng.integers(0, 256, (9, 7), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(make(pixels, 8), tmp_path), read_radiograph(tmp_path / "a.png"))


def test_monochrome1_is_inverted(tmp_path, pixels):
    straight = read(make(pixels, 12), tmp_path)
    np.testing.assert_allclose(read(make(pixels, 12, "MONOCHROME1"), tmp_path), 1 - straight, atol=1e-6)


def test_presentation_lut_shape(tmp_path, pixels):
    straight = pixels / 4095
    for photometric, shape, inverted in [
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "INVERSE", True),  # as PS3.3 C.8.11.3 wants it for a radiograph: stated twice, inverted once
    ]:
        image = read(make(pixels, 12, photometric, PresentationLUTShape=shape), tmp_path)
        np.testing.assert_allclose(image, 1 - straight if inverted else straight, atol=1e-6)


def test_signed_and_rescaled_range(tmp_path, rng):
    signed = rng.integers(-2048, 2048, (8, 10), dtype=np.int16)
    expected = (signed + 2048) / 4095
    np.testing.assert_allclose(read(make(signed, 12), tmp_path), expected, atol=1e-6)
    image = read(make(signed, 12, RescaleSlope=2.5, RescaleIntercept=-1024), tmp_path)
    np.testing.assert_allclose(image, expected, atol=1e-6)
    falling = read(make(signed, 12, RescaleSlope=-1, RescaleIntercept=4095), tmp_path)
    np.testing.assert_allclose(falling, 1 - expected, atol=1e-6)


def test_rescale_without_a_value_is_none(tmp_path, pixels):
    image = read(make(pixels, 12, RescaleSlope="", RescaleIntercept=""), tmp_path)
    np.testing.assert_allclose(image, pixels / 4095, atol=1e-6)


def test_overlay_bits_above_the_stored_ones_are_no_brightness(tmp_path, pixels):
    np.testing.assert_allclose(read(make(pixels | 0x8000, 12), tmp_path), pixels / 4095, atol=1e-6)


# --- windows: PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2, pixel by pixel


def window_by_the_standard(x: float, center: float, width: float, function: str) -> float:
    if function == "LINEAR":
        if x <= center - 0.5 - (width - 1) / 2:
            return 0.0
        if x > center - 0.5 + (width - 1) / 2:
            return 1.0
        return (x - (center - 0.5)) / (width - 1) + 0.5
    if function == "LINEAR_EXACT":
        if x <= center - width / 2:
            return 0.0
        if x > center + width / 2:
            return 1.0
        return (x - center) / width + 0.5
    return 1 / (1 + math.exp(min(-4 * (x - center) / width, 700)))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize(
    ("center", "width"), [(2000, 3000), (40.5, 400), (1024, 2), (1024, 1), (1024.5, 1), (-300, 1500)]
)
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.5, -1000)])
def test_window(tmp_path, pixels, function, center, width, slope, intercept):
    dataset = make(pixels, 12, WindowCenter=center, WindowWidth=width, RescaleSlope=slope, RescaleIntercept=intercept)
    if function:
        dataset.VOILUTFunction = function
    values = pixels.astype(float) * slope + intercept
    expected = [[window_by_the_standard(x, center, width, function or "LINEAR") for x in row] for row in values]
    image = read(dataset, tmp_path)
    np.testing.assert_allclose(image, expected, atol=1e-6)

    theirs = apply_voi_lut(apply_modality_lut(pixels, dataset), dataset)  # to the rescaled range of 12 bits
    np.testing.assert_allclose(image, (theirs - intercept) / (4095 * slope), atol=1e-6)


def test_first_of_several_windows(tmp_path, pixels):
    several = read(make(pixels, 12, WindowCenter=[2000, 500], WindowWidth=[1000, 300]), tmp_path)
    one = read(make(pixels, 12, WindowCenter=2000, WindowWidth=1000), tmp_path)
    np.testing.assert_array_equal(several, one)
    other = read(make(pixels, 12, WindowCenter=500, WindowWidth=300), tmp_path)
    assert np.abs(several - other).max() > 0.1


@pytest.mark.parametrize(
    ("width", "function"), [(0, "LINEAR"), (0.5, "LINEAR"), (-5, "LINEAR"), (0, "LINEAR_EXACT"), (0, "SIGMOID")]
)
def test_impossible_window_is_refused(tmp_path, pixels, width, function):
    dataset = make(pixels, 12, WindowCenter=100, WindowWidth=width, VOILUTFunction=function)
    with pytest.raises(RadiographError, match=r"a\.dcm .* its window"):
        read(dataset, tmp_path)


def test_unknown_voi_function_is_refused(tmp_path, pixels):
    with pytest.raises(RadiographError, match="CUBIC"):
        read(make(pixels, 12, WindowCenter=100, WindowWidth=50, VOILUTFunction="CUBIC"), tmp_path)


def test_empty_window_is_none(tmp_path, pixels):
    image = read(make(pixels, 12, WindowCenter="", WindowWidth=""), tmp_path)
    np.testing.assert_allclose(image, pixels / 4095, atol=1e-6)


# --- lookup tables: PS3.3 C.11.2.1.1


@pytest.mark.parametrize(("first", "length", "depth"), [(0, 4096, 12), (1000, 500, 16), (0, 4096, 8), (-100, 3000, 10)])
@pytest.mark.parametrize("vr", ["US", "OW"])
def test_voi_lut(tmp_path, rng, first, length, depth, vr):
    pixels = rng.integers(0, 4096, (13, 17), dtype=np.uint16)
    if first < 0:
        pixels = pixels.astype(np.int16) - 2048
    table = np.sort(rng.integers(0, 2**depth, length))
    data = table.tolist() if vr == "US" else struct.pack(f"<{length}H", *table)
    dataset = make(pixels, 12, VOILUTSequence=lut_item([length, first, depth], data, vr))
    dataset.WindowCenter, dataset.WindowWidth = 100, 10  # an alternative, which the table goes before
    expected = np.array([[table[min(max(int(x) - first, 0), length - 1)] for x in row] for row in pixels])
    np.testing.assert_allclose(read(dataset, tmp_path), expected / (2**depth - 1), atol=1e-6)


def test_voi_lut_of_bytes(tmp_path, rng):
    pixels = rng.integers(0, 256, (6, 8), dtype=np.uint8)
    table = rng.integers(0, 256, 256, dtype=np.uint8)
    image = read(make(pixels, 8, VOILUTSequence=lut_item([256, 0, 8], table.tobytes(), "OW")), tmp_path)
    np.testing.assert_allclose(image, table[pixels] / 255, atol=1e-6)


def test_modality_lut(tmp_path, pixels, rng):
    table = rng.integers(0, 65536, 4096)
    dataset = make(pixels, 12, ModalityLUTSequence=lut_item([4096, 0, 16], table.tolist()))
    np.testing.assert_allclose(read(dataset, tmp_path), table[pixels] / 65535, atol=1e-6)
    dataset.WindowCenter, dataset.WindowWidth = 30000, 20000
    expected = [[window_by_the_standard(x, 30000, 20000, "LINEAR") for x in row] for row in table[pixels]]
    np.testing.assert_allclose(read(dataset, tmp_path), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("descriptor", "data", "reason"),
    [([4096, 0, 12], [1, 2, 3], "3 entries where 4096"), ([3, 0, 8], [1, 2, 300], "300, more than its 8 bits")],
)
def test_broken_lut_is_refused(tmp_path, pixels, descriptor, data, reason):
    with pytest.raises(RadiographError, match=reason):
        read(make(pixels, 12, VOILUTSequence=lut_item(descriptor, data)), tmp_path)


# --- padding


def test_padding_is_black_in_both_photometrics(tmp_path, pixels):
    pixels[:, :3] = 0
    pixels[0, 5], pixels[1, 5] = 7, 8
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        whole = read(make(pixels, 12, photometric), tmp_path)
        image = read(make(pixels, 12, photometric, PixelPaddingValue=0), tmp_path)
        np.testing.assert_array_equal(image, np.where(pixels == 0, 0, whole))
        image = read(make(pixels, 12, photometric, PixelPaddingValue=0, PixelPaddingRangeLimit=7), tmp_path)
        np.testing.assert_array_equal(image, np.where(pixels <= 7, 0, whole))


# --- other pixels


def test_float_pixels(tmp_path, rng):
    floats = rng.random((6, 8), dtype=np.float32)
    dataset = make(np.zeros((6, 8), np.uint16), 16, PixelData=None, BitsStored=None, HighBit=None)
    dataset.BitsAllocated = 32
    dataset.FloatPixelData = floats.tobytes()
    np.testing.assert_array_equal(read(dataset, tmp_path), floats)
    dataset.FloatPixelData = (floats * 500).tobytes()
    with pytest.raises(RadiographError, match="no white level is known"):
        read(dataset, tmp_path)
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 250, 500, "LINEAR_EXACT"
    np.testing.assert_allclose(read(dataset, tmp_path), floats, atol=1e-6)


def test_colour_turns_grey(tmp_path, rng):
    grey = rng.integers(0, 256, (6, 8), dtype=np.uint8)
    image = read(make(np.stack([grey] * 3, -1), 8, "RGB"), tmp_path)
    np.testing.assert_array_equal(image, grey.astype(np.float32) / np.float32(255))
    colour = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    luma = (colour @ np.array([0.299, 0.587, 0.114])) / 255
    np.testing.assert_allclose(read(make(colour, 8, "RGB"), tmp_path), luma, atol=0.51 / 255)
    neutral = np.stack([grey, np.full_like(grey, 128), np.full_like(grey, 128)], -1)
    np.testing.assert_allclose(read(make(neutral, 8, "YBR_FULL"), tmp_path), grey / 255, atol=1.01 / 255)


def test_without_preamble_or_meta_information(tmp_path, pixels):
    """As ACR-NEMA and early DICOM archives hold them; only the name tells."""
    dataset = make(pixels, 12)
    del dataset.file_meta
    for implicit, little in ((True, True), (False, True), (False, False)):
        dataset.PixelData = pixels.astype("<u2" if little else ">u2").tobytes()
        dataset["PixelData"].VR = "OW"
        pydicom.dcmwrite(tmp_path / "old.dcm", dataset, implicit_vr=implicit, little_endian=little)
        assert (tmp_path / "old.dcm").read_bytes()[128:132] != b"DICM"
        np.testing.assert_allclose(read_radiograph(tmp_path / "old.dcm"), pixels / 4095, atol=1e-6)
    with pytest.raises(RadiographError, match="no image of a known format"):
        read_radiograph((tmp_path / "old.dcm").rename(tmp_path / "old.png"))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a", "1.2.840.10008.5"])
def test_dicom_by_any_other_name(tmp_path, pixels, name):
    make(pixels, 12).save_as(tmp_path / name, enforce_file_format=True)
    np.testing.assert_allclose(read_radiograph(tmp_path / name), pixels / 4095, atol=1e-6)


# --- compressed transfer syntaxes


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_padded.dcm",
    ],
)
def test_lossless_syntaxes_agree(name):
    """pydicom's one image in every lossless syntax: the same pixels whatever it is packed in."""
    plain = read_radiograph(TEST_FILES / "MR_small.dcm")
    assert plain.std() > 0.1
    np.testing.assert_array_equal(read_radiograph(TEST_FILES / name), plain)


def test_jpeg_baseline_equals_pillow(tmp_path, rng):
    """The syntax of RSNA's files."""
    import cv2
    from PIL import Image

    smooth = cv2.GaussianBlur(rng.integers(0, 256, (64, 80), dtype=np.uint8), (0, 0), 4)
    Image.fromarray(smooth).save(tmp_path / "a.jpg")
    dataset = make(smooth, 8)
    dataset.PixelData = encapsulate([(tmp_path / "a.jpg").read_bytes()])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    np.testing.assert_allclose(read(dataset, tmp_path), read_radiograph(tmp_path / "a.jpg"), atol=1.01 / 255)


@pytest.mark.parametrize(
    "name", ["JPGExtended.dcm", "JPEG2000.dcm", "JPEGLSNearLossless_16.dcm", "SC_rgb_jpeg_dcmtk.dcm", "693_J2KI.dcm"]
)
def test_lossy_syntaxes_are_decoded(name):
    image = read_radiograph(TEST_FILES / name)
    assert len(np.unique(image)) > 5
    assert 0 <= image.min() < image.max() <= 1


def test_real_radiographs(shared):
    """Two real files: one is the other with its photometric interpretation rewritten, so they are negatives."""
    plain, negative = sorted((shared / "data/dicom").glob("*.dcm"))
    stored = pydicom.dcmread(plain).pixel_array
    np.testing.assert_array_equal(read_radiograph(plain), stored.astype(np.float32) / np.float32(255))
    np.testing.assert_allclose(read_radiograph(negative), 1 - stored / 255, atol=1e-6)


def test_no_file_of_pydicom_raises_anything_else():
    """All of pydicom's odd, old and broken files: an image in [0, 1], or one error that names the file."""
    images = 0
    for path in sorted(TEST_FILES.glob("*.dcm")):
        try:
            image = read_radiograph(path)
        except RadiographError as error:
            assert path.name in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
        else:
            images += 1
            assert image.ndim == 2
            assert 0 <= image.min() <= image.max() <= 1
    assert images >= 40


# --- what is refused


def test_no_pixels():
    with pytest.raises(RadiographError, match=r"test-SR\.dcm .* holds no pixels \(modality SR\)"):
        read_radiograph(TEST_FILES / "test-SR.dcm")


def test_several_frames(tmp_path, pixels):
    with pytest.raises(RadiographError, match=r"SC_rgb_rle_2frame\.dcm .* 2 frames"):
        read_radiograph(TEST_FILES / "SC_rgb_rle_2frame.dcm")
    np.testing.assert_allclose(read(make(pixels, 12, NumberOfFrames=1), tmp_path), pixels / 4095, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 8), (6, 3), (6, 8, 3)])
def test_more_frames_than_stated(tmp_path, rng, shape):
    """Found by fuzzing: pydicom gives all frames that the pixel data has room for."""
    one = rng.integers(0, 256, shape, dtype=np.uint8)
    dataset = make(one, 8, "RGB" if len(shape) == 3 else "MONOCHROME2", NumberOfFrames=1)
    dataset.PixelData = one.tobytes() * 2
    with pytest.raises(RadiographError, match="array of \\(2, 6"):
        read(dataset, tmp_path)


def test_one_pixel(tmp_path):
    with pytest.raises(RadiographError, match="1 x 1 pixels, too few"):
        read(make(np.zeros((1, 1), np.uint16), 12), tmp_path)


def test_huge_claims_are_refused_by_the_header(tmp_path, pixels, monkeypatch):
    def decode(*_args, **_kwargs):
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr("pydicom.pixels.pixel_array", decode)
    with pytest.raises(RadiographError, match="65535 x 65535 pixels, more than"):
        read(make(pixels, 12, Rows=65535, Columns=65535), tmp_path)


def test_bits_must_agree(tmp_path, pixels):
    np.testing.assert_allclose(read(make(pixels, 12), tmp_path, bits=12), pixels / 4095, atol=1e-6)
    with pytest.raises(RadiographError, match="bits=10 contradicts its BitsStored 12"):
        read(make(pixels, 12), tmp_path, bits=10)


@pytest.mark.parametrize("keyword", ["Rows", "Columns", "PhotometricInterpretation", "BitsStored", "BitsAllocated"])
def test_missing_element_is_named(tmp_path, pixels, keyword):
    with pytest.raises(RadiographError, match=r"a\.dcm "):
        read(make(pixels, 12, **{keyword: None}), tmp_path)


def test_zero_slope(tmp_path, pixels):
    with pytest.raises(RadiographError, match="slope is 0"):
        read(make(pixels, 12, RescaleSlope=0, RescaleIntercept=5), tmp_path)


@pytest.mark.parametrize(
    "name", ["MR_small.dcm", "MR_small_jp2klossless.dcm", "MR_small_RLE.dcm", "SC_rgb_jpeg_dcmtk.dcm"]
)
def test_truncated_pixels(tmp_path, name):
    data = (TEST_FILES / name).read_bytes()
    for fraction in (0.5, 0.8, 0.95):
        (tmp_path / "cut.dcm").write_bytes(data[: int(fraction * len(data))])
        with pytest.raises(RadiographError, match=r"cut\.dcm "):
            read_radiograph(tmp_path / "cut.dcm")


# --- the extra


def test_missing_extra_says_what_to_install(tmp_path, pixels, monkeypatch):
    make(pixels, 12).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == "pydicom":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(RadiographError, match=r'a\.dcm .*pip install "anomalib-cxr\[dicom\]"'):
        read_radiograph(tmp_path / "a.dcm")


def test_imaging_imports_without_pydicom():
    code = "import sys; import anomalib_cxr.imaging; assert not {'pydicom', 'anomalib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- size stated by the compressed pixels


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("JPEGLSNearLossless_08.dcm", (45, 10, 1)),
        ("MR_small_jp2klossless.dcm", (64, 64, 1)),
        ("SC_rgb_jpeg_dcmtk.dcm", (100, 100, 3)),
        ("JPGExtended.dcm", (1024, 256, 1)),
        ("GDCMJ2K_TextGBR.dcm", (400, 400, 3)),
    ],
)
def test_codestream_size(name, size):
    dataset = pydicom.dcmread(TEST_FILES / name)
    assert read_codestream(get_frame(dataset.PixelData, 0, number_of_frames=1)).size == size


@pytest.mark.parametrize(
    "codestream", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xda\0\4ab", b"\xff\xd8ab", b"x" * 99]
)
def test_codestream_without_a_size(codestream):
    with pytest.raises(ValueError, match="state no size"):
        read_codestream(codestream)


@pytest.mark.parametrize("name", ["JPEGLSNearLossless_08.dcm", "SC_rgb_jpeg_dcmtk.dcm", "MR_small_jp2klossless.dcm"])
def test_compressed_pixels_of_another_size_are_not_decoded(tmp_path, monkeypatch, name):
    """Found by fuzzing: one byte that makes a JPEG-LS image 0 rows high had the decoder eat all memory there was."""

    def decode(*_args, **_kwargs):
        raise AssertionError("the pixels were decoded")

    dataset = pydicom.dcmread(TEST_FILES / name)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    rows, columns, _ = read_codestream(frame).size
    if name == "MR_small_jp2klossless.dcm":
        stated, claimed = struct.pack(">2I", columns, rows), struct.pack(">2I", 100_000, 100_000)
    else:
        stated, claimed = struct.pack(">2H", rows, columns), struct.pack(">2H", 0, columns)
    assert frame.count(stated) >= 1
    dataset.PixelData = encapsulate([frame.replace(stated, claimed, 1)])
    monkeypatch.setattr("pydicom.pixels.pixel_array", decode)
    with pytest.raises(RadiographError, match="compressed pixels are"):
        read(dataset, tmp_path)

"""NIfTI, NRRD and MetaImage through MONAI, against the arrays that were written; a table of them to the region."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from anomalib_cxr.anatomy import RegionMasks
from anomalib_cxr.data import RadiographTable
from anomalib_cxr.data.monai_reader import MonaiReader
from anomalib_cxr.imaging import RadiographError
from anomalib_cxr.models import AnatPaste

EXTRA = 'needs pip install "anomalib-cxr[monai]"'
pytest.importorskip("monai.transforms", reason=EXTRA)
nibabel = pytest.importorskip("nibabel", reason=EXTRA)
itk = pytest.importorskip("itk", reason=EXTRA)

FORMATS = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
WIDE = (-1000.0, 1000.0)


def write(path: Path, array: np.ndarray) -> Path:
    """Write an array (X, Y) or (X, Y, Z)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if ".nii" in path.name:
        nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), np.eye(4)), path)
    else:
        itk.imwrite(itk.image_from_array(np.ascontiguousarray(array.T.astype(np.float32))), str(path))
    return path


def intensities(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-900, 900, shape).astype(np.float32)


@pytest.mark.parametrize("suffix", FORMATS)
def test_rows_are_y_and_the_window_becomes_zero_to_one(tmp_path: Path, suffix: str) -> None:
    array = intensities(30, 40)
    pixels = MonaiReader(window=(-500, 500)).read(write(tmp_path / f"a{suffix}", array))
    assert (pixels.shape, pixels.dtype) == ((40, 30), np.float32)
    for x, y in ((0, 0), (29, 0), (3, 39), (17, 21)):
        assert pixels[y, x] == pytest.approx(min(max((array[x, y] + 500) / 1000, 0), 1), abs=1e-6)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
@pytest.mark.parametrize(("axis", "place", "index"), [(2, 0.5, 3), (2, 0.0, 0), (1, 1.0, 39), (0, 0.25, 7)])
def test_a_slice_of_a_volume_is_the_one_asked_for(
    tmp_path: Path, suffix: str, axis: int, place: float, index: int
) -> None:
    volume = intensities(30, 40, 7)
    pixels = MonaiReader(WIDE, slice_at=place, axis=axis).read(write(tmp_path / f"a{suffix}", volume))
    wanted = volume[tuple(index if one == axis else slice(None) for one in range(3))].T
    np.testing.assert_allclose(pixels, (wanted + 1000) / 2000, atol=1e-6)


def test_without_a_window_percentiles_of_the_whole_file_count(tmp_path: Path) -> None:
    volume = intensities(20, 20, 5)
    pixels = MonaiReader(percentiles=(10, 80), slice_at=0).read(write(tmp_path / "a.nii", volume))
    ordered = np.sort(volume.ravel())
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.8))
    np.testing.assert_allclose(pixels, ((volume[:, :, 0].T - low) / (high - low)).clip(0, 1), atol=2e-3)


def test_masks_are_drawn_where_they_are_not_zero(tmp_path: Path) -> None:
    labels = np.zeros((30, 40))
    labels[3:9, 5:20], labels[20:25, 30:33] = 1, 2
    read = MonaiReader().read_mask(write(tmp_path / "a.nii.gz", labels))
    np.testing.assert_array_equal(read.mask, (labels > 0).T)
    assert read.levels == 3
    with pytest.raises(RadiographError, match=r"b\.nii: the mask cannot be read: it holds negative pixels"):
        MonaiReader().read_mask(write(tmp_path / "b.nii", labels - 1))


@pytest.fixture
def listed(tmp_path: Path) -> pd.DataFrame:
    """Eight films in four formats, with lesions drawn in half of them and a region in each."""
    rows = []
    for number, split in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 2):
        suffix, label = FORMATS[number % 4], "normal" if number < 4 or number % 2 else "abnormal"
        array = intensities(48, 64, seed=number)
        region = np.zeros(array.shape)
        region[4 + number : 30, 8:50] = 1
        write(tmp_path / f"film{number}{suffix}", array)
        write(tmp_path / f"region{number}{suffix}", region)
        row = {"image_path": f"film{number}{suffix}", "label": label, "split": split, "mask_path": ""}
        if label == "abnormal":
            write(tmp_path / f"lesion{number}.nii", (array > 800).astype(float))
            row["mask_path"] = f"lesion{number}.nii"
        rows.append(row | {"region_path": f"region{number}{suffix}"})
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / "films.csv", index=False)
    return table


def test_a_table_of_volumes_gives_images_masks_and_regions(tmp_path: Path, listed: pd.DataFrame) -> None:
    data = RadiographTable(tmp_path, "films.csv", reader=MonaiReader(WIDE), num_workers=0)
    data.setup()
    for part in (data.train_data, data.test_data):
        for item in part:
            number = int(Path(item.image_path).name[4])
            array = intensities(48, 64, seed=number).T
            np.testing.assert_allclose(item.image[1], (array + 1000) / 2000, atol=1e-6)
            np.testing.assert_array_equal(item.gt_mask, (array > 800) & bool(item.gt_label))

    model = AnatPaste(image_size=64, backbone="resnet10t", num_workers=0)
    model._trainer = SimpleNamespace(datamodule=data)
    model._find_region()
    paths = list(data.train_data.samples["image_path"])
    for number, found in enumerate(model.region_masks.lookup(paths)[:, 0].numpy()):
        # Columns are stretched from 48 to 64: compare away from the edges.
        assert found[10:48, round((4 + number) * 4 / 3) + 2 : 38].all()
        assert not found[:, : round((4 + number) * 4 / 3) - 1].any()
        assert not found[52:].any()


def test_radiographs_in_the_same_table_are_read_as_radiographs(tmp_path: Path) -> None:
    film = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    Image.fromarray(film).save(tmp_path / "a.png")
    np.testing.assert_allclose(MonaiReader(WIDE).read(tmp_path / "a.png"), film / 255, atol=1e-6)
    masks = RegionMasks.compute([tmp_path / "a.png"], (32, 32), num_workers=0, progress=False, reader=MonaiReader())
    plain = RegionMasks.compute([tmp_path / "a.png"], (32, 32), num_workers=0, progress=False)
    assert torch.equal(masks.lookup([tmp_path / "a.png"]), plain.lookup([tmp_path / "a.png"]))


def test_what_cannot_be_read_is_named_with_the_way_out(tmp_path: Path) -> None:
    volume = write(tmp_path / "volume.nii", intensities(20, 20, 5))
    with pytest.raises(RadiographError, match=r"volume\.nii: it is a volume of 5 slices: give slice_at"):
        MonaiReader().read(volume)
    flat = write(tmp_path / "flat.mha", np.full((20, 20), 7.0))
    with pytest.raises(RadiographError, match=r"flat\.mha: intensities are 7 at both percentiles .*: give a window"):
        MonaiReader().read(flat)
    holes = intensities(20, 20)
    holes[3, 4] = np.nan
    with pytest.raises(RadiographError, match=r"holes\.nii: it holds pixels that are no number"):
        MonaiReader().read(write(tmp_path / "holes.nii", holes))
    (tmp_path / "broken.nii.gz").write_bytes(volume.read_bytes()[:100])
    with pytest.raises(RadiographError, match=r"broken\.nii\.gz: MONAI cannot read it: ") as error:
        MonaiReader().read(tmp_path / "broken.nii.gz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"window": (3, 3)}, "window must be"),
        ({"percentiles": (50, 101)}, "percentiles must be"),
        ({"slice_at": 1.5}, "slice_at must lie"),
        ({"axis": 3}, "axis must be"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        MonaiReader(**arguments)


def test_a_reader_needs_a_table_and_no_cache(tmp_path: Path) -> None:
    for arguments in ({}, {"table": "films.csv", "cache_dir": tmp_path / "cache", "cache_size": 64}):
        with pytest.raises(ValueError, match="give table and no cache_dir"):
            RadiographTable(tmp_path, reader=MonaiReader(), **arguments)


def test_without_monai_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai.transforms", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs MONAI: pip install "anomalib-cxr\[monai\]"'):
        MonaiReader()

"""The sheet of heat maps: which images are on it, where, and what is marked."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from PIL import Image

from anomalib_cxr.callbacks.heat_map_sheet import HeatMapSheet
from anomalib_cxr.imaging import blend_heat_map


def _batch(labels: list[int], mask: bool) -> ImageBatch:
    n = len(labels)
    heat = torch.linspace(0, 1, 192 * 192).reshape(1, 192, 192).expand(n, -1, -1).clone()
    masks = torch.zeros(n, 192, 192, dtype=torch.bool)
    masks[:, 50:100, 50:100] = True
    return ImageBatch(
        image=torch.full((n, 3, 192, 192), 0.5),
        gt_label=torch.tensor(labels),
        pred_score=torch.linspace(0.1, 0.9, n),
        anomaly_map=heat,
        gt_mask=masks if mask else None,
    )


@pytest.mark.parametrize("mask", [False, True])
def test_images_of_each_label_are_on_the_sheet(tmp_path: Path, mask: bool) -> None:
    trainer = SimpleNamespace(is_global_zero=True, default_root_dir=str(tmp_path))
    sheet = HeatMapSheet(per_label=2)
    sheet.on_test_start(trainer, None)
    for labels in ([0, 0, 0], [1, 0, 1, 1]):
        sheet.on_test_batch_end(trainer, None, _batch(labels, mask), None, 0)
    sheet.on_test_end(trainer, None)
    picture = np.asarray(Image.open(tmp_path / "sheets" / "heat_maps.png"))
    assert picture.shape[1:] == (4 * 194, 3), "two normal and two abnormal images"
    titles = len(picture) - 194
    assert titles > 0
    expected = blend_heat_map(np.full((192, 192), 0.5), np.linspace(0, 1, 192 * 192).reshape(192, 192))
    shown = picture[titles : titles + 192, :192].astype(int)
    differs = np.abs(shown - expected).max(axis=2) > 1
    assert differs.any() == mask
    if mask:
        y, x = np.nonzero(differs)
        assert np.abs(np.subtract((y.min(), y.max(), x.min(), x.max()), (50, 99, 50, 99))).max() <= 2
        inner = (y > 55) & (y < 95) & (x > 55) & (x < 95)
        assert not inner.any(), "only the outline is drawn over the map"


@pytest.mark.parametrize("names", ["path", "hash"])
def test_titles_hold_label_score_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(
        "anomalib_cxr.callbacks.heat_map_sheet.contact_sheet",
        lambda pictures, titles, **_: drawn.extend(titles) or np.zeros((8, 8), np.uint8),
    )
    root = tmp_path / "data"
    trainer = SimpleNamespace(
        is_global_zero=True, default_root_dir=str(tmp_path), datamodule=SimpleNamespace(root=root)
    )
    sheet = HeatMapSheet(per_label=2, names=names)
    sheet.on_test_start(trainer, None)
    batch = _batch([0, 1], mask=False)
    batch.image_path = [str(root / "pat1" / "IM1.dcm"), str(root / "pat2" / "IM1.dcm")]
    sheet.on_test_batch_end(trainer, None, batch, None, 0)
    sheet.on_test_end(trainer, None)
    paths = ["pat1/IM1.dcm", "pat2/IM1.dcm"]
    if names == "hash":
        paths = [hashlib.sha256(path.encode()).hexdigest()[:10] for path in paths]
    assert drawn == [f"normal 0.10\n{paths[0]}", f"abnormal 0.90\n{paths[1]}"]


def test_tiles_on_the_sheet_are_smoothed(tmp_path: Path) -> None:
    trainer = SimpleNamespace(is_global_zero=True, default_root_dir=str(tmp_path))
    sheet = HeatMapSheet()
    sheet.on_test_start(trainer, None)
    batch = _batch([1], mask=False)
    tiles = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    batch.anomaly_map = tiles.repeat_interleave(48, 0).repeat_interleave(48, 1)[None]
    sheet.on_test_batch_end(trainer, None, batch, None, 0)
    assert (batch.anomaly_map[0, ::48, ::48] == tiles).all(), "the batch keeps its map"
    sheet.on_test_end(trainer, None)
    picture = np.asarray(Image.open(tmp_path / "sheets" / "heat_maps.png")).astype(int)[-194:-2, :192]
    hard = blend_heat_map(np.full((192, 192), 0.5), batch.anomaly_map[0].numpy()).astype(int)
    assert np.abs(np.diff(picture, axis=0)).max() < 0.5 * np.abs(np.diff(hard, axis=0)).max()
    assert np.abs(picture[24::48, 24::48] - hard[24::48, 24::48]).max() < 12, "at the centres it has the map's values"


def test_a_test_without_maps_writes_nothing(tmp_path: Path) -> None:
    trainer = SimpleNamespace(is_global_zero=True, default_root_dir=str(tmp_path))
    sheet = HeatMapSheet()
    sheet.on_test_start(trainer, None)
    batch = _batch([0, 1], mask=False)
    batch.anomaly_map = None
    sheet.on_test_batch_end(trainer, None, batch, None, 0)
    sheet.on_test_end(trainer, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [1, 3, 4, 7, 8, 9, 100, 1001])
def test_the_chosen_images_are_spread_over_the_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(
        "anomalib_cxr.callbacks.heat_map_sheet.contact_sheet",
        lambda pictures, titles, **_: drawn.extend(titles) or np.zeros((8, 8), np.uint8),
    )
    trainer = SimpleNamespace(is_global_zero=True, default_root_dir=str(tmp_path))
    sheet = HeatMapSheet(per_label=4)
    sheet.on_test_start(trainer, None)
    for place in range(number):
        batch = _batch([1], mask=False)
        batch.pred_score = torch.tensor([float(place)])
        sheet.on_test_batch_end(trainer, None, batch, None, 0)
    sheet.on_test_end(trainer, None)
    places = [float(title.split()[1]) for title in drawn]
    assert len(set(places)) == len(places) == min(4, number)
    even = np.linspace(0, number - 1, len(places))
    assert np.abs(np.subtract(places, even)).max() <= 1 + number / 6

"""`show` hands a small JPEG to the notebook, of the picture that it was given."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalib_cxr.imaging import show


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    pytest.importorskip("IPython")
    pictures: list[Any] = []
    monkeypatch.setattr("IPython.display.display", pictures.append)
    return pictures


def opened(picture: Any) -> Image.Image:
    return Image.open(io.BytesIO(picture.data))


def test_files_and_arrays_become_jpegs_of_their_shape(shown: list[Any], tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 64 * 96, dtype=np.float32).reshape(64, 96)
    Image.fromarray(np.round(ramp * 255).astype(np.uint8)).save(tmp_path / "ramp.png")
    show(tmp_path / "ramp.png")
    show(str(tmp_path / "ramp.png"))
    show(ramp)
    show(np.stack([np.round(ramp * 255).astype(np.uint8)] * 3, axis=-1))
    for picture in map(opened, shown):
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (96, 64))
        assert np.abs(np.asarray(picture)[..., 0] / 255 - ramp).max() < 0.03
    assert len(shown) == 4


def test_large_pictures_are_shrunk_and_small_ones_are_not(shown: list[Any]) -> None:
    show(np.zeros((300, 3000), np.float32))
    show(np.zeros((3000, 300), np.float32))
    show(np.zeros((20, 30), np.float32), width=40)
    assert [opened(picture).size for picture in shown] == [(800, 80), (160, 1600), (30, 20)]


def test_outside_of_notebooks_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(ImportError, match=r"anomalib-cxr\[notebooks\]"):
        show(np.zeros((4, 4), np.float32))

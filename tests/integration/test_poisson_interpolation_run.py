"""Whole PoissonInterpolation runs on a tiny drawn set: they repeat, and a loss that is not finite is named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from anomalib.models import get_model
from tiny_radiographs import TinyRadiographs

SMALL: dict[str, Any] = {"image_size": 64, "backbone": "test_resnet", "num_workers": 0, "seed": 3}


def _engine(root: Path) -> Engine:
    return Engine(default_root_dir=root, accelerator="cpu", devices=1, enable_progress_bar=False)


def test_runs_repeat_bit_by_bit_and_show_what_is_trained_on(tmp_path: Path, tiny_root: Path) -> None:
    tested, states = [], []
    for name in ("first", "second"):
        torch.manual_seed(len(name))  # whatever went before
        model: Any = get_model("poisson_interpolation", **SMALL, max_steps=4, steps_per_epoch=4)
        tested.append(_engine(tmp_path / name).train(model, datamodule=TinyRadiographs(tiny_root))[0])
        states.append(model.state_dict())
    assert tested[0] == tested[1]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    (folder,) = (tmp_path / "first").glob("PoissonInterpolation/*/latest")
    assert {"region.png", "pasted.png"} <= {path.name for path in (folder / "sheets").iterdir()}


def test_a_loss_that_is_not_finite_is_named_with_its_step(tmp_path: Path, tiny_root: Path) -> None:
    model: Any = get_model("poisson_interpolation", **SMALL, lungs=False, max_steps=4, learning_rate=1e30)
    with pytest.raises(RuntimeError, match=r"The loss is nan at step [123]: lower learning_rate"):
        _engine(tmp_path).fit(model, datamodule=TinyRadiographs(tiny_root))


def test_sixty_steps_find_bright_spots(tmp_path: Path, tiny_root: Path) -> None:
    """What was blended in from the same place alone would have no brightness of its own: spots ranked below (0.27)."""
    data = TinyRadiographs(tiny_root)
    data.train_batch_size = 12
    model: Any = get_model("poisson_interpolation", **SMALL, max_steps=60, steps_per_epoch=60)
    assert _engine(tmp_path).train(model, datamodule=data)[0]["image_AUROC"] >= 0.9

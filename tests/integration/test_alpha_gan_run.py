"""Whole AlphaGAN runs on a tiny drawn set: they repeat, their scores differ, and a loss that is lost is named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from anomalib.models import get_model
from tiny_radiographs import TinyRadiographs

from anomalib_cxr.models import AlphaGAN

SMALL: dict[str, Any] = {"image_size": 32, "width": 4, "max_steps": 4, "steps_per_epoch": 4, "seed": 3}


def _engine(root: Path) -> Engine:
    return Engine(default_root_dir=root, accelerator="cpu", devices=1, enable_progress_bar=False)


def test_runs_repeat_and_the_checkpoint_scores_as_the_model_did(tmp_path: Path, tiny_root: Path) -> None:
    models = []
    for name in ("first", "second"):
        torch.manual_seed(len(name))  # whatever went before
        models.append(get_model("alpha_gan", **SMALL))
        data = TinyRadiographs(tiny_root)
        _engine(tmp_path / name).fit(models[-1], datamodule=data)
    states = [model.state_dict() for model in models]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    (checkpoint,) = (tmp_path / "first").glob("AlphaGAN/*/latest/weights/lightning/model.ckpt")
    fresh = AlphaGAN.load_from_checkpoint(checkpoint).eval()
    images = torch.stack([data.test_data[number].image for number in range(8)])
    with torch.no_grad():
        kept, found = fresh.model(images), models[0].model.eval()(images)
    assert torch.equal(kept.pred_score, found.pred_score)
    assert torch.equal(kept.anomaly_map, found.anomaly_map)
    assert len(found.pred_score.unique()) == 8


def test_a_lost_loss_is_named(tmp_path: Path, tiny_root: Path) -> None:
    model = AlphaGAN(**SMALL | {"learning_rate": 1e30, "optimizer": "momentum"})
    with pytest.raises(RuntimeError, match=r"The loss term \w+ is (nan|inf) at step [12]"):
        _engine(tmp_path).fit(model, datamodule=TinyRadiographs(tiny_root))

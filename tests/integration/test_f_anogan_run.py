"""Whole FAnoGAN runs on a tiny drawn set: they repeat, change stage where they should, and name a loss that is lost."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from anomalib.models import get_model
from lightning.pytorch import Callback
from tiny_radiographs import TinyRadiographs

from anomalib_cxr.models import FAnoGAN

SMALL: dict[str, Any] = {"image_size": 32, "width": 4, "max_steps": 6, "gan_steps": 3, "seed": 3}


class Watched(Callback):
    """Which players each step changed, running statistics included, and who was taught."""

    def __init__(self) -> None:
        self.moved: list[set[str]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.before = copy.deepcopy(pl_module.model.state_dict())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        now = pl_module.model.state_dict()
        self.moved.append({name.split(".")[0] for name in now if not torch.equal(now[name], self.before[name])})


def _engine(root: Path, *callbacks: Callback) -> Engine:
    return Engine(
        default_root_dir=root, accelerator="cpu", devices=1, enable_progress_bar=False, callbacks=list(callbacks)
    )


def test_runs_repeat_and_each_stage_moves_its_own_players(tmp_path: Path, tiny_root: Path) -> None:
    models, watched = [], Watched()
    for name in ("first", "second"):
        torch.manual_seed(len(name))  # whatever went before
        models.append(get_model("fano_gan", **SMALL))
        data = TinyRadiographs(tiny_root)
        _engine(tmp_path / name, watched).fit(models[-1], datamodule=data)
    # The generator's running statistics follow each of its passes, the generator itself its turns.
    assert watched.moved == 2 * ([{"generator", "critic"}] * 3 + [{"encoder"}] * 3)
    states = [model.state_dict() for model in models]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    (checkpoint,) = (tmp_path / "first").glob("FAnoGAN/*/latest/weights/lightning/model.ckpt")
    fresh = FAnoGAN.load_from_checkpoint(checkpoint).eval()
    assert fresh.stages == models[0].stages
    images = torch.stack([data.test_data[number].image for number in range(8)])
    with torch.no_grad():
        kept, found = fresh.model(images), models[0].model.eval()(images)
    assert torch.equal(kept.pred_score, found.pred_score)
    assert torch.equal(kept.anomaly_map, found.anomaly_map)
    assert len(found.pred_score.unique()) == 8


def test_a_lost_loss_is_named(tmp_path: Path, tiny_root: Path) -> None:
    model = FAnoGAN(**SMALL | {"learning_rate": 1e30, "optimizer": "momentum"})
    with pytest.raises(RuntimeError, match=r"The loss term \w+ is (nan|inf) at step [12]"):
        _engine(tmp_path).fit(model, datamodule=TinyRadiographs(tiny_root))

"""Whole SQUID runs on a tiny drawn set: they repeat bit by bit, the queue is kept, a lost loss is named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from anomalib.models import get_model
from tiny_radiographs import TinyRadiographs

from anomalib_cxr.models import SQUID

SMALL: dict[str, Any] = {"image_size": 64, "width": 2, "slots": 10, "max_steps": 4, "steps_per_epoch": 4, "seed": 3}


def _engine(root: Path) -> Engine:
    return Engine(default_root_dir=root, accelerator="cpu", devices=1, enable_progress_bar=False)


def test_runs_repeat_and_the_checkpoint_has_the_queue(tmp_path: Path, tiny_root: Path) -> None:
    states = []
    for name in ("first", "second"):
        torch.manual_seed(len(name))  # whatever went before
        model = get_model("squid", **SMALL)
        _engine(tmp_path / name).fit(model, datamodule=TinyRadiographs(tiny_root, count=4))
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    (checkpoint,) = (tmp_path / "first").glob("SQUID/*/latest/weights/lightning/model.ckpt")
    queue = SQUID.load_from_checkpoint(checkpoint).model.inpainting.queue
    # Two of four steps gave four films each to a queue of ten.
    assert int(queue.position) == 8
    started = (queue.slots == SQUID(**SMALL).model.inpainting.queue.slots).all(dim=2)
    assert started.sum(dim=1).tolist() == [2, 2, 2, 2]


def test_a_lost_loss_is_named(tmp_path: Path, tiny_root: Path) -> None:
    model = SQUID(**SMALL | {"learning_rate": 1e30, "optimizer": "sgd"})
    with pytest.raises(RuntimeError, match=r"The loss term \w+ is (nan|inf) at step \d+"):
        _engine(tmp_path).fit(model, datamodule=TinyRadiographs(tiny_root, count=4))

"""Whole SQUID runs on a tiny drawn set: they repeat bit by bit, the checkpoint has the queue, a lost loss is named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from anomalib.models import get_model
from tiny_radiographs import TinyRadiographs

from anomalib_cxr.models import SQUID

SMALL: dict[str, Any] = {"image_size": 64, "width": 2, "slots": 8, "max_steps": 4, "steps_per_epoch": 4, "seed": 3}


def _engine(root: Path) -> Engine:
    return Engine(default_root_dir=root, accelerator="cpu", devices=1, enable_progress_bar=False)


def test_runs_repeat_and_the_checkpoint_is_what_was_tested(tmp_path: Path, tiny_root: Path) -> None:
    tested, states = [], []
    for name in ("first", "second"):
        torch.manual_seed(len(name))  # whatever went before
        model = get_model("squid", **SMALL)
        tested.append(_engine(tmp_path / name).train(model, datamodule=TinyRadiographs(tiny_root))[0])
        states.append(model.state_dict())
    assert tested[0] == tested[1]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    # Two of four steps gave four films each to a queue of eight.
    assert int(states[0]["model.inpainting.queue.position"]) == 0
    assert (states[0]["model.inpainting.queue.slots"] != SQUID(**SMALL).model.inpainting.queue.slots).all()
    (checkpoint,) = (tmp_path / "first").glob("SQUID/*/latest/weights/lightning/model.ckpt")
    fresh = SQUID.load_from_checkpoint(checkpoint)
    assert _engine(tmp_path / "again").test(fresh, datamodule=TinyRadiographs(tiny_root))[0] == tested[0]


def test_a_lost_loss_is_named(tmp_path: Path, tiny_root: Path) -> None:
    model = SQUID(**SMALL | {"learning_rate": 1e30, "optimizer": "sgd"})
    with pytest.raises(RuntimeError, match=r"The loss term \w+ is (nan|inf) at step \d+"):
        _engine(tmp_path).fit(model, datamodule=TinyRadiographs(tiny_root))

"""Whole FeatureDistillation runs on a tiny drawn set: they repeat, find the spot, and say when the loss is lost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from anomalib.models import get_model
from tiny_radiographs import TinyRadiographs

from anomalib_cxr.models import FeatureDistillation

SMALL: dict[str, Any] = {
    "image_size": 64,
    "teacher": "test_efficientnet",
    "pre_trained": False,
    "max_steps": 4,
    "steps_per_epoch": 4,
    "seed": 3,
}


def _engine(root: Path) -> Engine:
    return Engine(default_root_dir=root, accelerator="cpu", devices=1, enable_progress_bar=False)


def test_runs_repeat_and_the_checkpoint_is_what_was_tested(tmp_path: Path, tiny_root: Path) -> None:
    tested, states = [], []
    for name in ("first", "second"):
        torch.manual_seed(len(name))  # whatever went before
        model = get_model("feature_distillation", **SMALL)
        tested.append(_engine(tmp_path / name).train(model, datamodule=TinyRadiographs(tiny_root))[0])
        states.append(model.state_dict())
    assert tested[0] == tested[1]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    (checkpoint,) = (tmp_path / "first").glob("FeatureDistillation/*/latest/weights/lightning/model.ckpt")
    fresh = FeatureDistillation.load_from_checkpoint(checkpoint)
    assert _engine(tmp_path / "again").test(fresh, datamodule=TinyRadiographs(tiny_root))[0] == tested[0]


@pytest.mark.slow
@pytest.mark.parametrize("relative", [False, True], ids=["whole maps", "relative"])
def test_the_student_misses_the_spot(tmp_path: Path, tiny_root: Path, relative: bool) -> None:
    """Within 60 steps; in 40 its error on normal films is still larger than what a spot adds to it."""
    longer = {"teacher": "resnet10t", "max_steps": 60, "steps_per_epoch": 60, "learning_rate": 3e-3}
    model = FeatureDistillation(**SMALL | longer, relative=relative)
    data = TinyRadiographs(tiny_root)
    assert _engine(tmp_path).train(model, datamodule=data)[0]["image_AUROC"] >= 0.9
    # The spot lies in the left lung.
    abnormal = torch.stack([item.image for item in data.test_data if item.gt_label])
    with torch.no_grad():
        maps = model.eval().model(abnormal).anomaly_map
    rows, cols = zip(*(divmod(int(one.argmax()), 64) for one in maps), strict=True)
    hits = [16 <= row < 48 and col < 32 for row, col in zip(rows, cols, strict=True)]
    assert sum(hits) >= 0.75 * len(hits)


def test_a_lost_loss_is_named(tmp_path: Path, tiny_root: Path) -> None:
    model = FeatureDistillation(**SMALL | {"learning_rate": 1e30, "optimizer": "sgd"})
    with pytest.raises(RuntimeError, match=r"The loss term (cosine|squared) is (nan|inf) at step \d+"):
        _engine(tmp_path).fit(model, datamodule=TinyRadiographs(tiny_root))

"""Whole PatchSVDD runs on a tiny drawn set: they repeat, find the spot, and say when the loss is lost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from anomalib.models import get_model
from sklearn.metrics import roc_auc_score
from tiny_radiographs import TinyRadiographs

from anomalib_cxr.models import PatchSVDD

SMALL: dict[str, Any] = {
    "image_size": 64,
    "patch_sizes": (32,),
    "width": 4,
    "max_steps": 2,
    "steps_per_epoch": 2,
    "seed": 3,
}
QUIET: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}


def fit(root: Path, films: Path, **arguments: Any) -> Any:
    model = get_model("patch_svdd", **SMALL | arguments)
    Engine(default_root_dir=root, **QUIET).fit(model, datamodule=TinyRadiographs(films))
    return model


@pytest.mark.parametrize(
    "arguments",
    [{}, pytest.param({"image_size": 128, "patch_sizes": (32, 64), "fusion": "sum"}, marks=pytest.mark.slow)],
    ids=["one size", "two sizes"],
)
def test_runs_repeat_and_the_checkpoint_holds_the_bank(
    tmp_path: Path, tiny_root: Path, arguments: dict[str, Any]
) -> None:
    models = []
    for name in ("first", "second"):
        torch.manual_seed(len(name))  # whatever went before
        models.append(fit(tmp_path / name, tiny_root, **arguments))
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(value, second[key]) or not value.numel() for key, value in first.items())
    (checkpoint,) = (tmp_path / "first").rglob("model.ckpt")
    data = TinyRadiographs(tiny_root)
    data.setup()
    side = (arguments or SMALL)["image_size"]
    films = torch.stack([data.test_data[number].image for number in range(8)])
    films = torch.nn.functional.interpolate(films, size=(side, side))
    with torch.no_grad():
        kept = PatchSVDD.load_from_checkpoint(checkpoint).eval().model(films)
        found = models[0].eval().model(films)
    assert torch.equal(kept.pred_score, found.pred_score)
    assert torch.equal(kept.anomaly_map, found.anomaly_map)
    assert len(found.pred_score.unique()) == 8


@pytest.mark.slow
def test_the_spot_is_found_and_seen(tmp_path: Path, tiny_root: Path) -> None:
    model = fit(tmp_path, tiny_root, width=16, max_steps=60, steps_per_epoch=60, strides=(8,))
    data = TinyRadiographs(tiny_root)
    data.setup()
    films = torch.stack([item.image for item in data.test_data])
    labels = torch.tensor([bool(item.gt_label) for item in data.test_data])
    with torch.no_grad():
        found = model.eval().model(films)
    assert roc_auc_score(labels, found.pred_score) >= 0.9
    # The spot lies in the left lung.
    rows, columns = zip(*(divmod(int(one.argmax()), 64) for one in found.anomaly_map[labels, 0]), strict=True)
    hits = [12 <= row < 52 and column < 36 for row, column in zip(rows, columns, strict=True)]
    assert sum(hits) >= 0.75 * len(hits)


def test_a_lost_loss_is_named(tmp_path: Path, tiny_root: Path) -> None:
    with pytest.raises(RuntimeError, match=r"The loss term (position|svdd)_32 is (nan|inf) at step \d+"):
        fit(tmp_path, tiny_root, learning_rate=1e30, optimizer="sgd")

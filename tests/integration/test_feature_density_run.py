"""Whole FeatureDensity runs on a tiny drawn set: they repeat, checkpoints keep them, every density finds the spot."""

from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from anomalib.models import get_model
from sklearn.metrics import roc_auc_score
from tiny_radiographs import TinyRadiographs
from torch import Tensor

from anomalib_cxr.models import FeatureDensity
from anomalib_cxr.models.feature_density.densities import DENSITIES
from anomalib_cxr.models.feature_density.torch_model import FeatureDensityModel

SMALL: dict[str, Any] = {
    "image_size": 64,
    "cell_size": 16,
    "backbone": "resnet10t",
    "pre_trained": False,
    "layers": (-3,),
    "seed": 3,
}


def _engine(root: Path) -> Engine:
    return Engine(default_root_dir=root, accelerator="cpu", devices=1, enable_progress_bar=False)


def test_runs_repeat_and_the_checkpoint_is_what_was_tested(tmp_path: Path, tiny_root: Path) -> None:
    tested, states = [], []
    for name in ("first", "second"):
        torch.manual_seed(len(name))  # whatever went before
        model = get_model("feature_density", **SMALL, density="svm")
        before = {key: value.clone() for key, value in model.model.encoder.state_dict().items()}
        tested.append(_engine(tmp_path / name).train(model, datamodule=TinyRadiographs(tiny_root))[0])
        states.append(model.state_dict())
        assert all(torch.equal(before[key], value) for key, value in model.model.encoder.state_dict().items())
    assert tested[0] == tested[1]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    (checkpoint,) = (tmp_path / "first").glob("FeatureDensity/*/latest/weights/lightning/model.ckpt")
    fresh = FeatureDensity.load_from_checkpoint(checkpoint)
    assert _engine(tmp_path / "again").test(fresh, datamodule=TinyRadiographs(tiny_root))[0] == tested[0]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Tensor, list[int]]:
    """Normal films to fit, films to score, and their labels."""
    data = TinyRadiographs(tmp_path_factory.mktemp("tiny"))
    data.setup()
    parts = [[data_set[i] for i in range(len(data_set))] for data_set in (data.train_data, data.test_data)]
    normal, asked = (torch.stack([item.image for item in part]) for part in parts)
    return normal, asked, [int(item.gt_label) for item in parts[1]]


@pytest.mark.parametrize("local", [False, True], ids=["pooled", "cells"])
@pytest.mark.parametrize("density", DENSITIES)
@torch.no_grad()
def test_every_density_finds_the_spot(films: tuple[Tensor, Tensor, list[int]], density: str, local: bool) -> None:
    normal, asked, labels = films
    torch.manual_seed(0)
    model = FeatureDensityModel(
        density, backbone="resnet10t", layers=(-3,), cell_size=16, local=local, top_q=0.25, image_size=(64, 64)
    ).eval()
    model.fit(model.features(normal))
    found = model(asked)
    assert roc_auc_score(labels, found.pred_score) >= 0.9
    if not local:
        return  # with random weights, a single cell is unlike any mean of cells
    # The spot lies in the left lung, whose cells are of the two middle rows and the left half.
    abnormal = found.anomaly_map[torch.tensor(labels, dtype=torch.bool), 0]
    rows, cols = zip(*(divmod(int(one.argmax()), 64) for one in abnormal), strict=True)
    hits = [16 <= row < 48 and col < 32 for row, col in zip(rows, cols, strict=True)]
    assert sum(hits) >= 0.75 * len(hits)

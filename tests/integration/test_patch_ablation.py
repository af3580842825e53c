"""The ablation of MultiResPatchSSL's banks against models that were built with each setting from the start."""

from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny_radiographs import TinyRadiographs

from anomalib_cxr.models import MultiResPatchSSL
from anomalib_cxr.pipelines.patch_ablation import ablate

SMALL = {"image_size": 32, "patch_sizes": (8, 16), "encoder_size": 16, "backbone": "resnet10t", "feature_dim": 0}


def _images(data: TinyRadiographs, split: str) -> tuple[torch.Tensor, list[int]]:
    dataset = getattr(data, f"{split}_data")
    images = torch.stack([dataset[i].image for i in range(len(dataset))])
    small = torch.nn.functional.interpolate(images, size=(32, 32), mode="bilinear", antialias=True)
    return small, list(dataset.samples.label_index)


def test_each_row_is_the_auroc_of_a_model_built_so(tmp_path: Path) -> None:
    model = MultiResPatchSSL(**SMALL).eval()
    settings = {"distance": ["cosine"], "patch_distance": [0, -1], "score": ["max", "top_q"]}
    other = {"distance": ["euclidean"]}  # the rest as in the model: d = 1, highest pixel
    table = ablate(model, TinyRadiographs(tmp_path / "tiny"), [settings, other], weights=[[0.2, 1.0]])
    assert len(table) == 4 * 3 + 3
    table = table.fillna({"patch_distance": 1, "score": "max"}).astype({"patch_distance": int})

    data = TinyRadiographs(tmp_path / "tiny")
    data.setup()
    train, (test, labels) = _images(data, "train")[0], _images(data, "test")
    for row in table.itertuples():
        weights = {"8 px": (1, 0), "16 px": (0, 1), "fused 0.2 1": (0.2, 1.0)}[row.fusion]
        other = MultiResPatchSSL(
            **SMALL, distance=row.distance, patch_distance=row.patch_distance, score=row.score, weights=weights
        ).eval()
        other.model.encoders.load_state_dict(model.model.encoders.state_dict())
        with torch.no_grad():
            other.model.fit(other.model.features(train))
            expected = roc_auc_score(labels, other.model(test).pred_score)
        assert row.test_AUROC == pytest.approx(expected, abs=0.02), row  # images are resized by another road here


def test_one_size_has_one_row_a_setting(tmp_path: Path) -> None:
    one = SMALL | {"patch_sizes": (8,)}
    table = ablate(MultiResPatchSSL(**one), TinyRadiographs(tmp_path / "tiny"), [{"patch_distance": [0, 1]}])
    assert table[["patch_distance", "fusion"]].to_numpy().tolist() == [[0, "8 px"], [1, "8 px"]]


def test_half_precision_halves_the_features_of_the_bank(tmp_path: Path) -> None:
    model = MultiResPatchSSL(**SMALL).eval()
    table = ablate(model, TinyRadiographs(tmp_path / "tiny"), [{"bank_dtype": ["float32", "float16"]}])
    full, half = table.groupby("bank_dtype").bank_MiB.first()[["float32", "float16"]]
    features = 12 * (16 + 4) * 512 * 4 / 2**20
    assert full - half == pytest.approx(features / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "weights", "message"),
    [([{"colour": [1]}], None, "knows no setting colour"), ([{}], [[1.0]], "need 2 entries")],
)
def test_impossible_settings_are_refused(tmp_path: Path, settings: list, weights: list | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ablate(MultiResPatchSSL(**SMALL), TinyRadiographs(tmp_path / "tiny"), settings, weights)

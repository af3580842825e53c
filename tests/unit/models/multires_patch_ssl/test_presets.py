"""Presets of MultiResPatchSSL: what they set, and that an argument wins over them."""

import pytest
import timm
from safetensors.torch import save_file

from anomalib_cxr.models import MultiResPatchSSL
from anomalib_cxr.models.multires_patch_ssl.torch_model import PAPER_WEIGHTS


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: None)


def settings(**arguments):
    model = MultiResPatchSSL(**arguments)
    network, bank = model.model, model.model.reference_banks()[0]
    return {
        "steps": model.max_steps,
        "sizes": network.patch_sizes,
        "weights": network.weights,
        "features": network.feature_kind,
        "layers": network.encoder(0).layers,
        "distance": bank.search.distance,
        "reach": bank.search.patch_distance,
        "dim": bank.feature_dim,
        "score": (network.score, network.top_q),
    }


def test_best_is_frozen_features_of_the_whole_image_by_whitened_cosine() -> None:
    assert settings(preset="best") == {
        "steps": 0,
        "sizes": (32,),
        "weights": (1.0,),
        "features": "map",
        "layers": [3],  # of EfficientNet's 0 … 4
        "distance": "whitened_cosine",
        "reach": 1,
        "dim": None,
        "score": ("top_q", 1.0),
    }


def test_paper_is_the_papers() -> None:
    found = settings(preset="paper", backbone="resnet10t")
    assert found["sizes"] == (128, 256, 512, 1024)
    assert found["weights"] == PAPER_WEIGHTS
    assert (found["features"], found["distance"], found["score"][0]) == ("crops", "mahalanobis", "max")


@pytest.mark.parametrize("preset", ["laptop", "best"])
def test_an_argument_wins(preset: str) -> None:
    given = {
        "distance": "cosine",
        "patch_distance": 0,
        "score": "max",
        "features": "crops",
        "patch_sizes": [64, 128],
        "backbone": "resnet10t",
        "pre_trained": False,
        "max_steps": 7,
        "feature_dim": 5,
    }
    found = settings(preset=preset, **given)
    assert (found["distance"], found["reach"], found["score"][0]) == ("cosine", 0, "max")
    assert (found["features"], found["sizes"], found["steps"], found["dim"]) == ("crops", (64, 128), 7, 5)


def test_untrained_features_of_whole_images_are_refused() -> None:
    with pytest.raises(ValueError, match="untrained encoders has nothing to go by"):
        MultiResPatchSSL(preset="best", pre_trained=False, max_steps=5)


def test_random_encoders_that_stay_random_are_warned_of(tmp_path, caplog) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("resnet10t").state_dict(), weights)
    for kept in ({"max_steps": 2}, {"max_steps": 0, "pre_trained": True}, {"max_steps": 0, "weights_path": weights}):
        MultiResPatchSSL(backbone="resnet10t", **kept)
        assert caplog.text == ""
    MultiResPatchSSL(backbone="resnet10t", max_steps=0)
    assert "leaves the encoders of MultiResPatchSSL random" in caplog.text


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="preset must be one of"):
        MultiResPatchSSL(preset="fast")

"""Presets of MultiResPatchSSL: what they set, and that an argument wins over them."""

import pytest
import timm
from safetensors.torch import save_file

from anomalib_cxr.models import MultiResPatchSSL
from anomalib_cxr.models.components.post_processor import RankPreservingPostProcessor
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


def test_paper_trains_a_hundred_epochs_of_the_patches_of_each_size_and_takes_the_last_weights() -> None:
    model = MultiResPatchSSL(preset="paper", backbone="resnet10t")
    patches = [(2048 // side) ** 2 for side in model.model.patch_sizes]
    assert model.patches_per_step == 256
    # Kim et al.'s 70 % of 2,574 normal images; 100 epochs of 256 patches a step.
    assert model.steps_of_sizes(1802) == tuple(round(100 * 1802 * n / 256) for n in patches)
    assert model.steps_of_sizes(1802) == (180_200, 45_050, 11_262, 2_816)
    assert model.steps_of_sizes(1802, processes=4) == (45_050, 11_262, 2_816, 704)
    assert model.checkpoint == "last"
    assert model.post_processor.threshold_rule == "mid_range"


def test_paper_with_another_length_choice_or_rule() -> None:
    post_processor = RankPreservingPostProcessor(threshold_rule="best_f1")
    given = {"max_steps": 30, "checkpoint": "best", "post_processor": post_processor}
    model = MultiResPatchSSL(preset="paper", backbone="resnet10t", **given)
    assert (model.max_steps, model.checkpoint, model.post_processor.threshold_rule) == (30, "best", "best_f1")
    assert model.steps_of_sizes(1802) == (30, 30, 30, 30)
    for preset in ("laptop", "best"):
        model = MultiResPatchSSL(preset=preset, backbone="resnet10t")
        assert (model.epochs, model.checkpoint, model.post_processor.threshold_rule) == (0, "best", "best_f1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 2, "max_steps": 30}, "epochs=2 and max_steps=30 both give a length"),
        ({"epochs": -1}, "epochs must be 0 or more, not -1"),
        ({"epochs": 2, "shared_encoder": True}, "which shared_encoder has not"),
        ({"preset": "paper", "epochs": 0}, "with epochs=0 give max_steps"),
    ],
)
def test_lengths_that_contradict_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiResPatchSSL(backbone="resnet10t", **arguments)


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

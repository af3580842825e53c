"""The schedule against torch's own warm-up and cosine, the validation interval against a plain search."""

import math

import pytest
import torch

from anomalib_cxr.models import AnatPaste, MultiResPatchSSL
from anomalib_cxr.models.anat_paste import lightning_model as anat_paste
from anomalib_cxr.models.components.schedule import validation_interval, warmup_cosine
from anomalib_cxr.models.multires_patch_ssl import lightning_model as multires


@pytest.mark.parametrize("warmup", [1, 5])
def test_equals_torchs_linear_and_cosine(warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30 - warmup)
    after = []
    for _ in range(30 - warmup + 1):
        after.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    expected = [(step + 1) / warmup for step in range(warmup)] + after
    assert [warmup_cosine(step, warmup, 30) for step in range(31)] == pytest.approx(expected)


def test_without_an_end_the_rate_stays() -> None:
    assert [warmup_cosine(step, 2, math.inf) for step in (0, 1, 2, 10_000)] == [0.5, 1, 1, 1]


def test_an_interval_by_default_is_the_largest_divisor_that_is_not_too_small() -> None:
    for max_steps in range(1, 200):
        divisors = [steps for steps in range(1, max_steps + 1) if max_steps / steps == max_steps // steps]
        for default in (1, 7, 50, 1000):
            wanted = min(default, max_steps)  # no interval is longer than the training
            large = [steps for steps in divisors if wanted / 4 <= steps <= wanted]
            expected = max(large) if large else max_steps
            assert validation_interval(max_steps, None, default) == expected, (max_steps, default)


def test_a_given_interval_is_taken_or_refused_with_one_that_fits() -> None:
    for max_steps in range(1, 40):
        for given in range(1, 60):
            if given > max_steps:
                assert validation_interval(max_steps, given, 50) == max_steps
            elif max_steps in range(0, max_steps + 1, given):
                assert validation_interval(max_steps, given, 50) == given
            else:
                with pytest.raises(ValueError, match=f"max_steps={max_steps} .* steps_per_epoch={given}") as refused:
                    validation_interval(max_steps, given, 50)
                fitting = int(str(refused.value).rpartition("=")[2].rstrip("."))
                assert validation_interval(max_steps, fitting, 50) == fitting
    with pytest.raises(ValueError, match="steps_per_epoch must be at least 1, not 0"):
        validation_interval(10, 0, 50)


def test_nothing_to_train_has_one_idle_epoch() -> None:
    assert validation_interval(0, None, 60) == validation_interval(0, 5, 60) == 1


@pytest.mark.parametrize(
    ("model", "options"), [(AnatPaste, {}), (MultiResPatchSSL, {"patch_sizes": (32,)})], ids=["anat_paste", "multires"]
)
def test_models_end_with_a_validation(model: type, options: dict) -> None:
    small = {"backbone": "resnet10t", "image_size": 64, **options}
    assert model(**small, max_steps=66).steps_per_epoch == 33  # neither preset's 50 nor 60 divides 66
    assert model(**small, max_steps=66, steps_per_epoch=6).steps_per_epoch == 6
    assert model(**small, max_steps=6, steps_per_epoch=66).steps_per_epoch == 6
    with pytest.raises(ValueError, match=r"max_steps=66 is no multiple of steps_per_epoch=9, .*: take .*=6\."):
        model(**small, max_steps=66, steps_per_epoch=9)


def test_presets_end_with_a_validation() -> None:
    for schedule in (*anat_paste.PRESETS.values(), *multires.PRESETS.values()):
        if "epochs" in schedule:  # of a length that the training set decides, see `set_length`
            continue
        assert schedule["max_steps"] % schedule["steps_per_epoch"] == 0

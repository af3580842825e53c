"""Errors against closed forms, torchmetrics and a plain loop."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from anomalib_cxr.models.components.normal_map import NormalMap
from anomalib_cxr.models.components.reconstruction.errors import (
    ERRORS,
    PerceptualError,
    StructuralError,
    UncertaintyError,
)
from anomalib_cxr.models.components.reconstruction.scoring import ErrorScore


def grey(seed: int, count: int = 2, side: int = 32) -> Tensor:
    return 2 * torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.mark.parametrize(("name", "expected"), [("squared", 0.25), ("absolute", 0.5)])
def test_plain_errors_are_of_differences_either_way(name: str, expected: float) -> None:
    images, signs = grey(0), grey(1).sign()
    error = ERRORS[name]()
    torch.testing.assert_close(error.map(images, images + signs / 2), torch.full_like(images, expected))
    assert float(error.loss(images, images + signs / 2)) == pytest.approx(expected)


@pytest.mark.parametrize("squared", [0.01, 0.3, 2.0])
def test_the_expected_variance_is_best_where_it_is_the_error(squared: float) -> None:
    """At an error e the loss is least at s = log e, with the value 1 + log e, and the map is then 1."""
    error, images = UncertaintyError(), torch.zeros(1, 1, 2, 2)
    said = torch.linspace(-7, 3, 1001)
    losses = []
    for value in said:
        made = torch.cat([images + squared**0.5, value.expand_as(images)], dim=1)
        losses.append(float(error.loss(images, made)))
        if abs(float(value) - math.log(squared)) < 5e-3:
            assert float(error.map(images, made).mean()) == pytest.approx(1, abs=0.01)
    best = int(np.argmin(losses))
    assert float(said[best]) == pytest.approx(math.log(squared), abs=0.02)
    assert losses[best] == pytest.approx(1 + math.log(squared), abs=5e-3)


def test_the_variance_is_never_below_a_grey_value() -> None:
    made = torch.tensor([0.0, -1000.0]).view(1, 2, 1, 1)
    found = UncertaintyError().map(torch.full((1, 1, 1, 1), 2 / 255), made)
    assert float(found) == pytest.approx(1, rel=1e-5)


def test_structural_similarity_is_torchmetrics() -> None:
    images = grey(0)
    made = images + 0.4 * grey(1)
    unit = [((one + 1) / 2).clamp(0, 1) for one in (made, images)]
    _, full = structural_similarity_index_measure(
        *unit, sigma=1.5, kernel_size=11, data_range=1.0, return_full_image=True
    )
    error = StructuralError()
    inside = 1 - full[..., 5:-5, 5:-5]
    torch.testing.assert_close(error.of_windows(images, made), inside, atol=1e-5, rtol=0)
    assert float(error.loss(images, made)) == pytest.approx(float(inside.mean()), abs=1e-5)
    assert error.map(images, made).shape == images.shape


def test_structural_error_of_constant_and_of_equal_images_is_nothing() -> None:
    error, constant = StructuralError(), torch.full((1, 1, 20, 20), 0.3)
    assert float(error.map(constant, constant).abs().max()) < 1e-6
    assert float(error.map(grey(0), grey(0)).abs().max()) < 1e-5
    assert float(error.map(constant, -constant).min()) > 0.1


def perceptual(factors: Tensor | None = None) -> PerceptualError:
    """A perceptual error, its channels scaled by factors if there are some, and its statistics of some films."""
    torch.manual_seed(0)
    error = PerceptualError("test_resnet", layer=2)
    if factors is not None:
        raw = error._raw
        error._raw = lambda images: raw(images) * factors.view(-1, 1, 1)
    error.fit(torch.cat([error.moments(grey(5, 3)), error.moments(grey(6, 4))]))
    return error


@torch.no_grad()
def test_perceptual_error_is_that_of_standardised_features_by_a_loop() -> None:
    error, images, made = perceptual(), grey(0), grey(1)
    normal, wanted, found = (
        error.encoder.model.forward_intermediates(one, indices=[2], intermediates_only=True)[0].double().numpy()
        for one in (torch.cat([grey(5, 3), grey(6, 4)]), images, made)  # mean and deviation of 0.5 give it [−1, 1]
    )
    expected = np.zeros((2, *wanted.shape[2:]))
    size = np.zeros(2)
    channels = wanted.shape[1]
    for channel in range(channels):
        mean, std = normal[:, channel].mean(), normal[:, channel].std() or 1.0
        first, second = (wanted[:, channel] - mean) / std, (found[:, channel] - mean) / std
        expected += np.abs(first - second) / channels
        size += np.abs(first).mean(axis=(1, 2)) / channels
    expected /= size[:, None, None]
    enlarged = torch.nn.functional.interpolate(torch.from_numpy(expected)[:, None], 32, mode="bilinear")
    np.testing.assert_allclose(error.map(images, made).numpy(), enlarged.numpy(), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_perceptual_error_of_equal_images_is_nothing_and_channels_scales_do_not_matter() -> None:
    error, images, made = perceptual(), grey(0), grey(1)
    assert not error.map(images, images).any()
    channels = error.mean.numel()
    scaled = perceptual(torch.logspace(-2, 2, channels))
    torch.testing.assert_close(scaled.map(images, made), error.map(images, made), rtol=5e-3, atol=1e-4)


def test_the_encoder_that_judges_is_frozen() -> None:
    error = perceptual().train()
    before = {name: value.clone() for name, value in error.state_dict().items()}
    made = grey(1).requires_grad_()
    error.loss(grey(0), made).backward()
    assert made.grad is not None
    assert made.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in error.parameters())
    assert all(torch.equal(before[name], value) for name, value in error.state_dict().items())
    with pytest.raises(RuntimeError, match="knows no statistics"):
        PerceptualError("test_resnet").map(grey(0), grey(1))


@pytest.mark.parametrize("relative", ["difference", "standardised", "ratio"])
def test_a_relative_map_is_in_units_of_normal_ones(relative: Any) -> None:
    rng = np.random.default_rng(0)
    normal, asked = rng.gamma(2, 1, (30, 1, 4, 4)), rng.gamma(2, 1, (5, 1, 4, 4))
    normal[..., 0] = asked[..., 0] = 0.0  # a rim that is always black
    unit = {"difference": None, "standardised": normal.std(axis=0, ddof=1), "ratio": normal.mean(axis=0)}[relative]
    expected = asked - normal.mean(axis=0)
    if unit is not None:
        expected = expected / (unit + 0.1 * unit.mean())
    score = ErrorScore(relative, top_q=0.25)
    score.fit(torch.from_numpy(normal))
    found, anomaly_map = score(torch.from_numpy(asked))
    np.testing.assert_allclose(found.numpy(), np.sort(expected.reshape(5, -1))[:, -4:].mean(axis=1))
    np.testing.assert_allclose(anomaly_map.numpy(), expected)
    with pytest.raises(ValueError, match="two normal training images or more, got 1"):
        NormalMap("deviation").fit(torch.rand(1, 1, 4, 4))


def test_scores_as_published_are_means_of_plain_errors() -> None:
    errors = torch.rand(3, 1, 8, 8)
    score = ErrorScore()
    score.fit(torch.rand(9, 1, 8, 8))
    found, anomaly_map = score(errors)
    assert torch.equal(anomaly_map, errors)
    torch.testing.assert_close(found, errors.mean(dim=(1, 2, 3)))
    assert not score.state_dict()

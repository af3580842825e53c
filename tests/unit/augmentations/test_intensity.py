"""Intensity jitter against torchvision's definitions."""

import pytest
import torch
from scipy import stats
from torchvision.transforms import functional

from anomalib_cxr.augmentations import jitter_intensity
from anomalib_cxr.augmentations.draws import uniform_draws


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_image_is_jittered_as_torchvision_would():
    images = torch.rand(24, 1, 20, 30, generator=seeded(1), dtype=torch.float64)
    jittered = jitter_intensity(images, 0.4, seeded(2))
    orders = set()
    for image, result, draw in zip(images, jittered, uniform_draws(24, 3, seeded(2)), strict=True):
        brightness, contrast = (0.6 + 0.8 * draw[:2]).tolist()
        bright_first = functional.adjust_contrast(functional.adjust_brightness(image, brightness), contrast)
        contrast_first = functional.adjust_brightness(functional.adjust_contrast(image, contrast), brightness)
        is_contrast_first = torch.allclose(result, contrast_first, atol=1e-9)
        assert is_contrast_first or torch.allclose(result, bright_first, atol=1e-9)
        orders.add(is_contrast_first)
    assert orders == {True, False}


def test_factors_are_uniform():
    """A flat image shows the brightness, the spread around the mean the product of both factors."""
    flat = torch.full((3000, 1, 2, 2), 0.5, dtype=torch.float64)
    brightness = jitter_intensity(flat, 0.1, seeded())[:, 0, 0, 0] / 0.5
    assert stats.kstest(brightness.numpy(), "uniform", (0.9, 0.2)).pvalue > 1e-3
    flat[..., 0] += 0.1
    jittered = jitter_intensity(flat, 0.1, seeded())
    brightness = jittered.mean(dim=(1, 2, 3)) / 0.55
    contrast = (jittered[:, 0, 0, 0] - jittered[:, 0, 0, 1]) / 0.1 / brightness
    assert stats.kstest(contrast.numpy(), "uniform", (0.9, 0.2)).pvalue > 1e-3
    assert abs(stats.pearsonr(brightness.numpy(), contrast.numpy()).statistic) < 0.07


def test_no_jitter_changes_nothing():
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(jitter_intensity(images, 0.0), images, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_type_and_range_are_kept(dtype):
    images = torch.rand(8, 1, 16, 16, generator=seeded()).to(dtype)
    before = images.clone()
    jittered = jitter_intensity(images, 1.0, seeded())
    assert jittered.dtype == dtype
    assert jittered.amin() >= 0
    assert jittered.amax() <= 1
    assert torch.equal(images, before)


@pytest.mark.parametrize("amount", [-0.1, 1.5, float("nan")])
def test_bad_amounts_are_refused(amount):
    with pytest.raises(ValueError, match="amount"):
        jitter_intensity(torch.rand(2, 1, 8, 8), amount)


def test_bad_images_are_refused():
    with pytest.raises(ValueError, match="grey"):
        jitter_intensity(torch.rand(2, 3, 8, 8))


@pytest.mark.gpu
def test_gpu_gives_what_the_cpu_gives():
    images = torch.rand(8, 1, 64, 64)
    torch.testing.assert_close(
        jitter_intensity(images.cuda(), 0.2, seeded()).cpu(), jitter_intensity(images, 0.2, seeded())
    )

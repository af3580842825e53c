"""Brightness and contrast of grey images, each image by its own factors."""

from typing import NamedTuple

import torch
from torch import Tensor

from anomalib_cxr.augmentations.checks import check_images, check_number
from anomalib_cxr.augmentations.draws import between, uniform_draws
from anomalib_cxr.devices import on_device


class Intensity(NamedTuple):
    """A change of brightness and contrast for each image. Each field has shape (B,).

    Attributes:
        brightness: Factor of the distance to 0, float64.
        contrast: Factor of the distance to the mean, float64.
        contrast_first: Whether contrast comes before brightness, bool.
    """

    brightness: Tensor
    contrast: Tensor
    contrast_first: Tensor


INTENSITY_DRAWS = 3
"""Uniform numbers that :func:`draw_intensity` consumes an image."""


def draw_intensity(uniform: Tensor, amount: float) -> Intensity:
    """Draw both factors uniformly in [1 - amount, 1 + amount], and their order by a fair coin.

    Args:
        uniform: Uniform draws in [0, 1), shape (B, 3).
        amount: Largest change.
    """
    brightness, contrast, order = uniform.unbind(1)
    factors = (1 - amount, 1 + amount)
    return Intensity(between(brightness, factors), between(contrast, factors), order < 0.5)


def brighten(images: Tensor, factor: Tensor) -> Tensor:
    """Scale images by a factor, clamped to [0, 1]."""
    return (images * factor).clamp_(0, 1)


def stretch(images: Tensor, factor: Tensor, mean: Tensor) -> Tensor:
    """Scale the images' distance to a mean by a factor, clamped to [0, 1]."""
    return (images * factor).add_(mean * (1 - factor)).clamp_(0, 1)


def brightness_around_contrast(intensity: Intensity, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Write brightness and contrast in either order as three steps: brightness, contrast, brightness.

    Returns:
        Factors of the three steps, the first or the third being 1, shape (B, 1, 1).
    """
    one = torch.ones_like(intensity.brightness)
    before = torch.where(intensity.contrast_first, one, intensity.brightness)
    after = torch.where(intensity.contrast_first, intensity.brightness, one)
    before, contrast, after = (x.to(dtype)[:, None, None] for x in (before, intensity.contrast, after))
    return before, contrast, after


@torch.no_grad()
def jitter_intensity(images: Tensor, amount: float = 0.1, generator: torch.Generator | None = None) -> Tensor:
    """Change brightness and contrast of each whole image at random, in random order.

    Brightness moves a pixel away from 0, contrast away from the image's mean; each step clamps to [0, 1], as in
    torchvision's ``ColorJitter``.

    Args:
        images: Grey images in [0, 1], float, shape (B, 1, H, W).
        amount: Both factors are uniform in [1 - amount, 1 + amount]; 0.1 is AnatPaste's colour jitter.
        generator: Source of randomness, of any device; ``None`` takes PyTorch's global CPU generator.

    Returns:
        The jittered images in [0, 1], of the shape and type of ``images``.

    Raises:
        ValueError: If ``images`` are not grey float images in [0, 1] or ``amount`` is outside [0, 1].
    """
    check_images(images)
    check_number("amount", amount, high=1)
    return jitter_checked(images, amount, generator)


@torch.no_grad()
def jitter_checked(images: Tensor, amount: float = 0.1, generator: torch.Generator | None = None) -> Tensor:
    """Jitter images that were checked: as :func:`jitter_intensity`, without making a device wait for a look at them."""
    intensity = draw_intensity(on_device(uniform_draws(len(images), INTENSITY_DRAWS, generator), images.device), amount)
    pixels = images[:, 0].to(torch.promote_types(images.dtype, torch.float32))
    before, contrast, after = brightness_around_contrast(intensity, pixels.dtype)
    pixels = brighten(pixels, before)
    pixels = stretch(pixels, contrast, pixels.mean(dim=(1, 2), keepdim=True))
    return brighten(pixels, after).unsqueeze(1).to(images.dtype)

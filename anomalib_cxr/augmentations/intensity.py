"""Brightness and contrast of grey images, each image by its own factors."""

import torch
from torch import Tensor

from anomalib_cxr.augmentations.checks import check_fraction, check_images
from anomalib_cxr.augmentations.draws import between, uniform_draws


def adjust_intensity(
    images: Tensor, brightness: Tensor, contrast: Tensor, contrast_first: Tensor, valid: Tensor | None = None
) -> Tensor:
    """Scale brightness and contrast of each image, clamping to [0, 1] after each of the two steps.

    Brightness moves a pixel away from 0, contrast away from the image's mean, as in torchvision's ``ColorJitter``.

    Args:
        images: Grey images in [0, 1], shape (B, H, W).
        brightness: Brightness factor of each image, shape (B,).
        contrast: Contrast factor of each image, shape (B,).
        contrast_first: True where contrast comes before brightness, bool, shape (B,).
        valid: Pixels that count for the mean, bool, shape (B, H, W); ``None`` means all.

    Returns:
        The adjusted images in [0, 1], shape (B, H, W).
    """
    for is_contrast in (contrast_first, ~contrast_first):
        mean = images.mean(dim=(1, 2)) if valid is None else (images * valid).sum(dim=(1, 2)) / valid.sum(dim=(1, 2))
        factor = torch.where(is_contrast, contrast, brightness).to(images.dtype)
        pivot = mean * is_contrast
        images = torch.lerp(pivot[:, None, None], images, factor[:, None, None]).clamp_(0, 1)
    return images


@torch.no_grad()
def jitter_intensity(images: Tensor, amount: float = 0.1, generator: torch.Generator | None = None) -> Tensor:
    """Change brightness and contrast of each whole image at random, in random order.

    Args:
        images: Grey images in [0, 1], float, shape (B, 1, H, W).
        amount: Both factors are uniform in [1 - amount, 1 + amount]; 0.1 is AnatPaste's colour jitter.
        generator: Source of randomness; ``None`` takes PyTorch's global CPU generator.

    Returns:
        The jittered images in [0, 1], of the shape and type of ``images``.

    Raises:
        ValueError: If ``images`` are not grey float images in [0, 1] or ``amount`` is outside [0, 1].
    """
    check_images(images)
    check_fraction("amount", amount)
    brightness, contrast, order = uniform_draws(len(images), 3, generator).to(images.device).unbind(1)
    factors = (1 - amount, 1 + amount)
    pixels = images[:, 0].to(torch.promote_types(images.dtype, torch.float32))
    jittered = adjust_intensity(pixels, between(brightness, factors), between(contrast, factors), order < 0.5)
    return jittered.unsqueeze(1).to(images.dtype)

"""Position and size of what is on a film: each image is moved and scaled by its own numbers."""

import torch
from torch import Tensor
from torch.nn import functional as F

from anomalib_cxr.augmentations.checks import check_number
from anomalib_cxr.augmentations.draws import between, uniform_draws
from anomalib_cxr.devices import on_device


def shift_and_scale(images: Tensor, shift: float, scale: float, generator: torch.Generator | None = None) -> Tensor:
    """Move and scale images at random.

    Args:
        images: (B, C, H, W).
        shift: Largest movement along each axis, as a share of its length, in [0, 0.5].
        scale: Largest change of size, in [0, 0.5]: factors are uniform in [1 − scale, 1 + scale].
        generator: Source of randomness; None takes torch's global one.

    Returns:
        Images of the same shape, interpolated bilinearly. What comes in from outside continues the image's border.

    Raises:
        ValueError: If an argument is out of range.
    """
    for name, value in (("shift", shift), ("scale", scale)):
        check_number(name, value, high=0.5)
    right, down, size = uniform_draws(len(images), 3, generator).unbind(1)
    limits = (-shift, shift)
    return move(images, between(size, (1 - scale, 1 + scale)), between(right, limits), between(down, limits))


def move(images: Tensor, scale: Tensor, right: Tensor, down: Tensor, degrees: Tensor | None = None) -> Tensor:
    """Scale and turn images about their centre, then move them.

    Args:
        images: (B, C, H, W).
        scale: Factor of the size of what is on each image, (B,).
        right: Movement to the right as a share of the width, (B,).
        down: Movement down as a share of the height, (B,).
        degrees: Turn counter-clockwise, (B,); None turns nothing.

    Returns:
        Images of the same shape, interpolated bilinearly. What comes in from outside continues the image's border.
    """
    height, width = images.shape[-2:]
    factor = 1 / scale
    angle = torch.zeros_like(factor) if degrees is None else torch.deg2rad(degrees)
    along, across = factor * angle.cos(), factor * angle.sin()
    rows = [(along, across * -(height / width)), (across * (width / height), along)]
    # Coordinates run from −1 to 1: a share of the length is twice as many of them.
    lines = [torch.stack([x, y, -2 * (x * right + y * down)], dim=1) for x, y in rows]
    maps = on_device(torch.stack(lines, dim=1), images.device).to(images.dtype)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

"""Pose and exposure of whole films: each is turned, scaled, moved and exposed by its own numbers (ours)."""

import torch
from torch import Tensor

from anomalib_cxr.augmentations.draws import between, log_between
from anomalib_cxr.augmentations.position import move
from anomalib_cxr.devices import on_device

POSE_DRAWS = 5
"""Uniform numbers that :func:`pose_and_expose` consumes an image."""

# How differently films of one hospital lie and are exposed, by eye.
_DEGREES, _ZOOM, _SHIFT, _GAMMA = 8.0, 0.12, 0.05, 0.25


@torch.no_grad()
def pose_and_expose(images: Tensor, uniform: Tensor, strength: float = 1.0) -> Tensor:
    """Show normal films as they might as well have been taken: another pose, another exposure.

    Args:
        images: In [0, 1], shape (B, C, H, W).
        uniform: Uniform draws in [0, 1), shape (B, 5), of any device.
        strength: Factor of all limits, 0 or more. At 1: 8 degrees to either side, factors 1.12 of the size either way,
            5 % of the width and of the height, and exponents of the grey values between 1 / 1.25 and 1.25.

    Returns:
        Images in [0, 1] of the same shape. What comes in from outside continues the image's border.
    """
    turn, size, right, down, exposure = uniform.unbind(1)
    zoom, gamma = 1 + _ZOOM * strength, 1 + _GAMMA * strength
    limits = (-_SHIFT * strength, _SHIFT * strength)
    moved = move(
        images.clamp(0, 1),
        log_between(size, (1 / zoom, zoom)),
        between(right, limits),
        between(down, limits),
        between(turn, (-_DEGREES * strength, _DEGREES * strength)),
    )
    exponents = on_device(log_between(exposure, (1 / gamma, gamma)), images.device).to(images.dtype)
    return moved ** exponents[:, None, None, None]

"""Rectangular patches of grey images: where they are cut, how they are jittered, how they are looked up."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from anomalib_cxr.augmentations.draws import below, between, log_between
from anomalib_cxr.augmentations.intensity import adjust_intensity

PAPER_SIZE = 256
"""Side of the papers' square images in pixels; lengths given in pixels are meant at this size."""


def pixel_scale(height: int, width: int) -> float:
    """Ratio of an image's size to that of the papers' 256 x 256 images, sqrt(H * W) / 256."""
    return math.sqrt(height * width) / PAPER_SIZE


class Patches(NamedTuple):
    """One patch an image: its box and its colour jitter. Each field has shape (B,).

    Attributes:
        top: First row, int64.
        left: First column, int64.
        height: Rows, int64, at least 1.
        width: Columns, int64, at least 1.
        brightness: Factor of the brightness, float64.
        contrast: Factor of the contrast, float64.
        contrast_first: Whether contrast comes before brightness, bool.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    brightness: Tensor
    contrast: Tensor
    contrast_first: Tensor


PATCH_DRAWS = 5
"""Uniform numbers that :func:`place_patches` consumes an image."""


def place_patches(uniform: Tensor, height: Tensor, width: Tensor, jitter: float, frame: tuple[int, int]) -> Patches:
    """Place patches of given sizes uniformly inside their images and draw their jitter.

    Args:
        uniform: Uniform draws in [0, 1), shape (B, 5).
        height: Rows of each patch, int64, shape (B,), at most the frame's.
        width: Columns of each patch, int64, shape (B,), at most the frame's.
        jitter: Brightness and contrast factors are uniform in [1 - jitter, 1 + jitter].
        frame: Height and width of the images.
    """
    top, left, brightness, contrast, order = uniform.unbind(1)
    factors = (1 - jitter, 1 + jitter)
    return Patches(
        top=below(top, frame[0] + 1 - height),
        left=below(left, frame[1] + 1 - width),
        height=height,
        width=width,
        brightness=between(brightness, factors),
        contrast=between(contrast, factors),
        contrast_first=order < 0.5,
    )


def draw_sizes(
    uniform: Tensor, area: tuple[float, float], aspect: tuple[float, float], frame: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Draw patch sizes: uniform share of the image's area, log-uniform aspect.

    Width is round(sqrt(area * aspect)) and height round(sqrt(area / aspect)), as in CutPaste and AnatPaste. In images
    more than twice as long as wide the longest patches would leave the image; their long side is the image's.

    Args:
        uniform: Uniform draws in [0, 1), shape (B, 2).
        area: Lowest and highest share of the image's area.
        aspect: Lowest and highest width-to-height ratio.
        frame: Height and width of the images.

    Returns:
        Height and width of each patch in pixels, int64, shape (B,).

    Raises:
        ValueError: If the images are so small that a patch may have no pixel.
    """
    rows, columns = frame
    thinnest = math.sqrt(area[0] * rows * columns * min(aspect[0], 1 / aspect[1]))
    if round(thinnest) < 1:
        msg = (
            f"images of {rows} x {columns} pixels are smaller than the smallest patch can resolve, "
            f"its side would be {thinnest:.2f} pixels: use larger images or a larger `area`."
        )
        raise ValueError(msg)
    pixels = between(uniform[:, 0], area) * (rows * columns)
    ratio = log_between(uniform[:, 1], aspect)
    height = (pixels / ratio).sqrt().round().long().clamp(1, rows)
    width = (pixels * ratio).sqrt().round().long().clamp(1, columns)
    return height, width


def crop(images: Tensor, patches: Patches, size: tuple[int, int]) -> Tensor:
    """Cut out the patches and jitter them.

    Args:
        images: Grey images in [0, 1], shape (B, H, W).
        patches: One patch an image.
        size: Height and width of the largest patch: smaller ones fill the top left of their slot, what lies beyond
            has no meaning.

    Returns:
        The patches in [0, 1], shape (B, *size).
    """
    y = torch.arange(size[0], device=images.device)[None, :, None]
    x = torch.arange(size[1], device=images.device)[None, None, :]
    pixels = look_up(images, patches.top[:, None, None] + y, patches.left[:, None, None] + x)
    valid = (y < patches.height[:, None, None]) & (x < patches.width[:, None, None])
    return adjust_intensity(pixels, patches.brightness, patches.contrast, patches.contrast_first, valid)


def look_up(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Read pixels by their coordinates; a coordinate outside an image reads its nearest pixel.

    Args:
        images: Shape (B, H, W).
        y: Rows, int64, broadcastable with ``x`` to (B, Y, X).
        x: Columns, int64.

    Returns:
        The pixels, shape (B, Y, X).
    """
    height, width = images.shape[1:]
    index = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return images.flatten(1).gather(1, index.flatten(1)).view(index.shape)

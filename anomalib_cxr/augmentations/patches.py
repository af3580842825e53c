"""Rectangular patches of grey images: where they are cut out, and how their pixels are read with jittered colours."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from anomalib_cxr.augmentations.draws import below, between, log_between
from anomalib_cxr.augmentations.intensity import (
    INTENSITY_DRAWS,
    Intensity,
    brighten,
    brightness_around_contrast,
    draw_intensity,
    stretch,
)

PAPER_SIZE = 256
"""Side of the papers' square images in pixels; lengths given in pixels are meant at this size."""


def pixel_scale(frame: tuple[int, int]) -> float:
    """Ratio of an image's size to that of the papers' 256 x 256 images, sqrt(H * W) / 256."""
    return math.sqrt(frame[0] * frame[1]) / PAPER_SIZE


class Patches(NamedTuple):
    """One patch an image: its box and its colour jitter. Each tensor has shape (B,).

    Attributes:
        top: First row, int64.
        left: First column, int64.
        height: Rows, int64, at least 1.
        width: Columns, int64, at least 1.
        intensity: Brightness and contrast of the patch.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    intensity: Intensity


PATCH_DRAWS = 2 + INTENSITY_DRAWS
"""Uniform numbers that :func:`place_patches` consumes an image."""


def place_patches(uniform: Tensor, height: Tensor, width: Tensor, jitter: float, frame: tuple[int, int]) -> Patches:
    """Place patches of given sizes uniformly inside their images and draw their colour jitter.

    Args:
        uniform: Uniform draws in [0, 1), shape (B, 5).
        height: Rows of each patch, int64, shape (B,), at most the frame's.
        width: Columns of each patch, int64, shape (B,), at most the frame's.
        jitter: Brightness and contrast factors are uniform in [1 - jitter, 1 + jitter].
        frame: Height and width of the images.
    """
    return Patches(
        top=below(uniform[:, 0], frame[0] + 1 - height),
        left=below(uniform[:, 1], frame[1] + 1 - width),
        height=height,
        width=width,
        intensity=draw_intensity(uniform[:, 2:], jitter),
    )


def draw_sizes(
    uniform: Tensor, area: tuple[float, float], aspect: tuple[float, float], frame: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Draw patch sizes: uniform share of the image's area, log-uniform aspect.

    Width is round(sqrt(area * aspect)) and height round(sqrt(area / aspect)), as in CutPaste and AnatPaste. In images
    more than twice as long as wide the longest patches would leave the image; they end at its edges.

    Args:
        uniform: Uniform draws in [0, 1), shape (B, 2).
        area: Lowest and highest share of the image's area.
        aspect: Lowest and highest width-to-height ratio.
        frame: Height and width of the images.

    Returns:
        Height and width of each patch in pixels, int64, shape (B,).

    Raises:
        ValueError: If the images are so small that a patch might have no pixel.
    """
    rows, columns = frame
    thinnest = math.sqrt(area[0] * rows * columns * min(aspect[0], 1 / aspect[1]))
    if round(thinnest) < 1:
        msg = (
            f"images of {rows} x {columns} pixels are too small for the smallest patch, "
            f"whose side would be {thinnest:.2f} pixels: use larger images or a larger `area`."
        )
        raise ValueError(msg)
    pixels = between(uniform[:, 0], area) * (rows * columns)
    ratio = log_between(uniform[:, 1], aspect)
    height = (pixels / ratio).sqrt().round().long().clamp(1, rows)
    width = (pixels * ratio).sqrt().round().long().clamp(1, columns)
    return height, width


class PatchReader:
    """Reads pixels of images whose brightness and contrast are changed as if their patch had been cut out first.

    Args:
        images: Grey images in [0, 1], float, shape (B, 1, H, W).
        patches: One patch an image; contrast goes by its mean.
    """

    def __init__(self, images: Tensor, patches: Patches) -> None:
        self.images = images
        self.precise = torch.promote_types(images.dtype, torch.float32)
        self.before, self.contrast, self.after = brightness_around_contrast(patches.intensity, self.precise)
        # The mean over a box is a product of its indicators, rows @ pixels @ columns, divided by the area.
        self.rows = _inside(images.shape[2], patches.top, patches.height)[:, None, :].to(self.precise)
        self.columns = _inside(images.shape[3], patches.left, patches.width)[:, :, None].to(self.precise)
        self.columns /= (patches.height * patches.width)[:, None, None]

    def read(self, batch: slice, y: Tensor, x: Tensor) -> Tensor:
        """Read pixels.

        Args:
            batch: The n images to read from.
            y: Rows of the images, int64, shape (n, Y, X) or (n, Y, 1).
            x: Columns of the images, int64, shape (n, Y, X) or (n, 1, X).

        Returns:
            The pixels, float32, or float64 where the images are, shape (n, Y, X).
        """
        frames = brighten(self.images[batch, 0].to(self.precise), self.before[batch])
        mean = self.rows[batch] @ frames @ self.columns[batch]
        index = y * frames.shape[2] + x
        values = frames.flatten(1).gather(1, index.flatten(1)).view(index.shape)
        return brighten(stretch(values, self.contrast[batch], mean), self.after[batch])


def _inside(length: int, first: Tensor, extent: Tensor) -> Tensor:
    """Tell which rows (or columns) of the images lie in boxes, bool, shape (B, length)."""
    steps = torch.arange(length, device=first.device) - first[:, None]
    return (steps >= 0) & (steps < extent[:, None])

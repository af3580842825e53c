"""Input checks shared by the augmentations: each error is one sentence."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Resizing may overshoot the range by rounding; images that were never scaled, or were standardised, go far beyond.
_RANGE_TOLERANCE = 1e-3


def check_images(images: Tensor) -> None:
    """Check for a batch of grey float images in [0, 1].

    Args:
        images: What should be grey images, shape (B, 1, H, W).

    Raises:
        ValueError: If the shape, the type or the range is another.
    """
    if images.ndim != 4 or images.shape[1] != 1:
        msg = (
            f"images must be grey, of shape (B, 1, H, W), but have shape {tuple(images.shape)}: "
            "add or average the channel dimension first."
        )
        raise ValueError(msg)
    if not images.is_floating_point():
        msg = f"images must be floats in [0, 1], but are {images.dtype}: divide by the highest possible value first."
        raise ValueError(msg)
    if images.numel() == 0:
        msg = f"images hold no pixel, their shape is {tuple(images.shape)}: leave empty batches out."
        raise ValueError(msg)
    low, high = (value.item() for value in images.aminmax())
    if not (low >= -_RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE):
        msg = f"images must lie in [0, 1], but go from {low:.4g} to {high:.4g}: paste before standardising."
        raise ValueError(msg)


def check_region(region: Tensor | None, images: Tensor) -> Tensor:
    """Check for one region mask an image.

    Args:
        region: What should be region masks, bool, shape (B, 1, H, W).
        images: The images they belong to, shape (B, 1, H, W).

    Returns:
        The region masks.

    Raises:
        ValueError: If the region is missing, of another shape, type or device, or a mask is empty.
    """
    if region is None:
        msg = "region masks are missing: pass `region`, or choose segmentation=False to paste anywhere."
        raise ValueError(msg)
    if region.shape != images.shape:
        msg = (
            f"region must have the shape of the images, {tuple(images.shape)}, but has {tuple(region.shape)}: "
            "resize it with the images."
        )
        raise ValueError(msg)
    if region.dtype != torch.bool:
        msg = f"region must be a bool mask, but is {region.dtype}: threshold it first, for example `region > 0.5`."
        raise ValueError(msg)
    if region.device != images.device:
        msg = f"region is on {region.device}, but the images on {images.device}: move it to the same device."
        raise ValueError(msg)
    if region.device.type != "cpu":  # there it is seen where centres are drawn
        check_not_empty(region.flatten(1).sum(dim=1))
    return region


def check_not_empty(pixels: Tensor) -> None:
    """Check that every region mask has a pixel.

    Args:
        pixels: Pixels of each mask, shape (B,).

    Raises:
        ValueError: If a mask has none.
    """
    empty = (pixels == 0).nonzero().flatten().tolist()
    if empty:
        msg = f"the region masks at batch index {empty} are empty: leave these images out or pass other masks."
        raise ValueError(msg)


def check_range(
    name: str,
    limits: tuple[float, float],
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
) -> tuple[float, float]:
    """Check a pair of limits.

    Args:
        name: The argument's name, for the error.
        limits: Lower and upper limit.
        low: Least value allowed.
        high: Greatest value allowed.
        open_low: Whether ``low`` itself is refused.

    Returns:
        The limits as a tuple of two floats.

    Raises:
        ValueError: If there are not two limits, they are reversed, or they leave [low, high].
    """
    if not isinstance(limits, Sequence) or len(limits) != 2:
        msg = f"{name} must be a pair (lowest, highest), but is {limits!r}."
        raise ValueError(msg)
    first, last = float(limits[0]), float(limits[1])
    if not first <= last:
        msg = f"{name} must be (lowest, highest), but {first:g} is above {last:g}: swap them."
        raise ValueError(msg)
    if first < low or last > high or (open_low and first == low) or math.isinf(first) or math.isinf(last):
        msg = f"{name} must lie within {'(' if open_low else '['}{low:g}, {high:g}] and be finite, but is {limits!r}."
        raise ValueError(msg)
    return first, last


def check_number(name: str, value: float, low: float = 0.0, high: float = math.inf) -> float:
    """Check for a finite number in [low, high].

    Args:
        name: The argument's name, for the error.
        value: The number.
        low: Least value allowed.
        high: Greatest value allowed.

    Raises:
        ValueError: If the number lies outside.
    """
    if not low <= value <= high or math.isinf(value):
        msg = f"{name} must lie within [{low:g}, {high:g}] and be finite, but is {value:g}."
        raise ValueError(msg)
    return value

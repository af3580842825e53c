"""Random numbers: one row of uniform draws an image, and what is made of them."""

import math

import torch
from torch import Tensor

from anomalib_cxr.devices import has_float64


def uniform_draws(batch: int, count: int, generator: torch.Generator | None) -> Tensor:
    """Draw ``count`` uniform numbers for each image.

    Everything random about an image comes from its own row, so an image's augmentation depends on the generator and
    on its place in the batch, never on the other images. With a CPU generator it does not depend on the batch's size
    either: the first rows of a larger batch are the same.

    Args:
        batch: Number of images.
        count: Numbers an image.
        generator: Source of randomness; ``None`` takes PyTorch's global CPU generator.

    Returns:
        Uniform numbers in [0, 1), shape (batch, count), on the generator's device; float64 where that has it.
    """
    device = torch.device("cpu") if generator is None else generator.device
    dtype = torch.float64 if has_float64(device) else torch.float32
    return torch.rand(batch, count, generator=generator, device=device, dtype=dtype)


def between(uniform: Tensor, limits: tuple[float, float]) -> Tensor:
    """Map uniform numbers in [0, 1) to uniform numbers in [low, high)."""
    low, high = limits
    return low + (high - low) * uniform


def log_between(uniform: Tensor, limits: tuple[float, float]) -> Tensor:
    """Map uniform numbers in [0, 1) to numbers in [low, high) whose logarithm is uniform."""
    return between(uniform, (math.log(limits[0]), math.log(limits[1]))).exp()


def below(uniform: Tensor, count: Tensor) -> Tensor:
    """Map uniform numbers in [0, 1) to uniform integers 0, ..., count - 1."""
    return torch.minimum((uniform * count).floor().long(), count - 1)

"""What patches are trained on: pairs whose relative position is to be told, and pairs that are to be coded alike."""

from typing import NamedTuple

import torch
from torch import Tensor

from anomalib_cxr.devices import on_device

#: Directions, down and right, by the number of their class.
DIRECTIONS = torch.tensor([(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if (down, right) != (0, 0)])


class Pairs(NamedTuple):
    """Corners of pairs of patches, (n, 2) as (top, left), and what the second one is to the first.

    Attributes:
        first: Corners of the first patches.
        second: Corners of the second ones.
        labels: (n,) classes of :data:`DIRECTIONS`; empty where there is nothing to tell.
    """

    first: Tensor
    second: Tensor
    labels: Tensor


def draw_neighbours(count: int, size: int, image_size: tuple[int, int], generator: torch.Generator) -> Pairs:
    """Draw pairs of patches that lie in one of eight directions from each other (Yi and Yoon 2020, section 3.2).

    The second lies three quarters of a patch to nearly a whole one away, on each axis of the direction. In the
    published code a second patch that would leave the image is moved back inside, whereby it may lie in another
    direction than its label says; here the first one is drawn where both fit (ours).

    Args:
        count: Pairs.
        size: Side of a patch.
        image_size: Height and width of the image, at least twice the patch's side less one.
        generator: Of the step.

    Returns:
        Pairs; all directions are equally likely, and all places given one.
    """
    labels = torch.randint(len(DIRECTIONS), (count,), generator=generator)
    reach = size * 3 // 4 + torch.randint(size // 4, (count, 2), generator=generator)
    offset = DIRECTIONS[labels] * reach
    first = _corners(size, image_size, offset, generator)
    return Pairs(first, first + offset, labels)


def draw_shifted(count: int, size: int, image_size: tuple[int, int], generator: torch.Generator) -> Pairs:
    """Draw pairs of patches that are nearly the same: the second is shifted by up to a 32nd of its side on each axis.

    Args:
        count: Pairs.
        size: Side of a patch.
        image_size: Height and width of the image.
        generator: Of the step.

    Returns:
        Pairs without labels.
    """
    most = size // 32
    offset = torch.randint(-most, most + 1, (count, 2), generator=generator)
    first = _corners(size, image_size, offset, generator)
    return Pairs(first, first + offset, torch.empty(0, dtype=torch.long))


def _corners(size: int, image_size: tuple[int, int], offset: Tensor, generator: torch.Generator) -> Tensor:
    """Corners (n, 2), each equally likely, from which a patch and one at an offset lie in the image."""
    room = torch.tensor(image_size) - size - offset.abs()
    drawn = (torch.rand(len(offset), 2, generator=generator, dtype=torch.float64) * (room + 1)).long()
    return drawn + (-offset).clamp(min=0)


def cut(images: Tensor, corners: Tensor, size: int) -> Tensor:
    """Cut a patch from each image.

    Args:
        images: (n, 1, H, W).
        corners: (n, 2) as (top, left).
        size: Side of a patch.

    Returns:
        (n, 1, size, size).
    """
    places = zip(images, corners.tolist(), strict=True)
    return torch.stack([image[:, top : top + size, left : left + size] for image, (top, left) in places])


def jitter(patches: Tensor, generator: torch.Generator, spread: float = 0.02) -> Tensor:
    """Add a random brightness to each patch and noise to each pixel, both of this standard deviation.

    So that neither tells where a patch lies (Yi and Yoon's code).

    Args:
        patches: (n, 1, size, size).
        generator: Of the step.
        spread: Standard deviation, of grey values in [0, 1].

    Returns:
        Patches of the same shape.
    """
    brightness = torch.randn(len(patches), 1, 1, 1, generator=generator)
    noise = torch.randn(patches.shape, generator=generator)
    return patches + on_device(spread * (brightness + noise), patches.device).to(patches.dtype)

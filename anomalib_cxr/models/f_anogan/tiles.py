"""Tiles of images at random places."""

import torch
from torch import Tensor


def random_tiles(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Cut one tile out of each image, anywhere.

    Args:
        images: (B, C, H, W).
        side: Of the tiles, H and W at most.
        generator: On the CPU, for the places.

    Returns:
        (B, C, side, side).
    """
    tiles = []
    for image in images:
        top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for size in image.shape[-2:])
        tiles.append(image[:, top : top + side, left : left + side])
    return torch.stack(tiles)

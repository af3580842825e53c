"""Tiles of images: at random places for training, side by side for scoring."""

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


def cut(images: Tensor, side: int) -> Tensor:
    """Lay a grid of tiles over images.

    Args:
        images: (B, C, H, W), H and W multiples of ``side``.
        side: Of the tiles.

    Returns:
        (B · n, C, side, side), image by image and row by row.
    """
    channels, rows, columns = images.shape[1], images.shape[2] // side, images.shape[3] // side
    parted = images.reshape(-1, channels, rows, side, columns, side)
    return parted.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, side, side)


def join(tiles: Tensor, rows: int, columns: int) -> Tensor:
    """Put tiles together again.

    Args:
        tiles: As of :func:`cut`.
        rows: Tiles of a column.
        columns: Tiles of a row.

    Returns:
        (B, C, H, W).
    """
    channels, side = tiles.shape[1], tiles.shape[-1]
    parted = tiles.reshape(-1, rows, columns, channels, side, side).permute(0, 3, 1, 4, 2, 5)
    return parted.reshape(-1, channels, rows * side, columns * side)

"""Cutting maps into windows that lie side by side, and joining them again."""

from torch import Tensor


def cut_windows(maps: Tensor, parts: int) -> Tensor:
    """Cut maps into equal windows.

    Args:
        maps: (B, C, H, W), whose sides are multiples of ``parts``.
        parts: Windows along each side.

    Returns:
        (B · parts², C, H / parts, W / parts), film by film, and within a film row by row.
    """
    channels, height, width = maps.shape[1:]
    high, wide = height // parts, width // parts
    windows = maps.reshape(-1, channels, parts, high, parts, wide).permute(0, 2, 4, 1, 3, 5)
    return windows.reshape(-1, channels, high, wide)


def join_windows(windows: Tensor, parts: int) -> Tensor:
    """Undo :func:`cut_windows`.

    Args:
        windows: (B · parts², C, h, w).
        parts: Windows along each side.

    Returns:
        (B, C, parts · h, parts · w).
    """
    channels, high, wide = windows.shape[1:]
    maps = windows.reshape(-1, parts, parts, channels, high, wide).permute(0, 3, 1, 4, 2, 5)
    return maps.reshape(-1, channels, parts * high, parts * wide)

"""Ellipses and rectangles on the pixel grid, blurred by a Gaussian."""

from collections.abc import Sequence

import torch
from torch import Tensor

TRUNCATE = 4.0
"""Standard deviations after which the Gaussian is cut off, as in SciPy's ``gaussian_filter``."""


def blur_reach(sigma: Tensor) -> Tensor:
    """Pixels that a Gaussian blur reaches to each side, floor(4 * sigma + 0.5), int64, shape of ``sigma``."""
    return (TRUNCATE * sigma + 0.5).long()


def soft_shapes(
    y: Tensor,
    x: Tensor,
    half_height: Tensor,
    half_width: Tensor,
    ellipse: Tensor,
    sigma: Tensor,
    limits: Sequence[int],
) -> Tensor:
    """Evaluate blurred shapes of height 1 around the origin of an unbounded pixel grid.

    A rectangle covers 2 * half_height + 1 rows and 2 * half_width + 1 columns; an ellipse is inscribed in it (pixels
    whose centre lies inside). The shapes do not end at an image's edge, so neither does their blur.

    A separable blur is two matrix products, K_y @ shape @ K_x^T, where K[i, j] is the Gaussian's weight from the
    shape's row (column) j to the row (column) i asked for.

    Args:
        y: Rows from the centre, int64, shape (B, Y, 1).
        x: Columns from the centre, int64, shape (B, 1, X).
        half_height: Rows on each side of the central one, int64, shape (B,).
        half_width: Columns on each side of the central one, int64, shape (B,).
        ellipse: True for an ellipse, False for a rectangle, bool, shape (B,).
        sigma: Standard deviation of the blur in pixels, shape (B,); 0 means no blur.
        limits: Highest half height, half width and blur reach of the batch.

    Returns:
        The shapes in [0, 1], float32, shape (B, Y, X).
    """
    highest, widest, reach = limits
    v = torch.arange(-highest, highest + 1, device=y.device)
    u = torch.arange(-widest, widest + 1, device=y.device)
    shapes = _shapes(v, u, half_height, half_width, ellipse)
    sigma, cut = sigma.float()[:, None, None], blur_reach(sigma)[:, None, None]
    steps = torch.arange(-reach, reach + 1, device=y.device)
    total = _gaussian(steps[None, None, :], sigma, cut).sum(dim=2, keepdim=True)
    from_rows = _gaussian(y - v, sigma, cut) / total
    from_columns = _gaussian(x.mT - u, sigma, cut) / total
    return (from_rows @ shapes @ from_columns.mT).clamp_(max=1)


def _shapes(v: Tensor, u: Tensor, half_height: Tensor, half_width: Tensor, ellipse: Tensor) -> Tensor:
    """Sharp shapes, float32, shape (B, len(v), len(u)); in whole numbers, so that no pixel is left to rounding."""
    rows, columns = (2 * half_height + 1)[:, None, None], (2 * half_width + 1)[:, None, None]
    y, x = 2 * v[None, :, None].abs(), 2 * u[None, None, :].abs()
    in_rectangle = (y < rows) & (x < columns)
    in_ellipse = (y * columns) ** 2 + (x * rows) ** 2 <= (rows * columns) ** 2
    return torch.where(ellipse[:, None, None], in_ellipse, in_rectangle).float()


def _gaussian(distance: Tensor, sigma: Tensor, cut: Tensor) -> Tensor:
    """Gaussian of whole distances, 1 at 0, cut off beyond ``cut``; without blur 1 at 0 and 0 elsewhere."""
    heights = torch.exp(-0.5 * (distance / sigma.clamp(min=1e-3)) ** 2)
    return heights * (distance.abs() <= cut)

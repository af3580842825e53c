"""Ellipses and rectangles on the pixel grid, blurred by a Gaussian."""

import torch
from torch import Tensor

from anomalib_cxr.augmentations.pasting import Window

TRUNCATE = 4.0
"""Standard deviations after which the Gaussian is cut off, as in SciPy's ``gaussian_filter``."""


def blur_reach(sigma: Tensor) -> Tensor:
    """Pixels that a Gaussian blur reaches to each side, floor(4 * sigma + 0.5), int64, shape of ``sigma``."""
    return (TRUNCATE * sigma + 0.5).long()


class SoftShapes:
    """Blurred shapes of height 1, one an image, on an unbounded pixel grid.

    A rectangle covers 2 * half_height + 1 rows and 2 * half_width + 1 columns; an ellipse is inscribed in it (pixels
    whose centre lies inside). The shapes do not end at an image's edge, so neither does their blur.

    A separable blur is two matrix products, K_y @ shape @ K_x^T, where K[i, j] is the Gaussian's weight between row
    (column) i of the image and row (column) j of the shape.

    Args:
        centre_y: Row of the image on which each shape is centred, int64, shape (B,).
        centre_x: Column of the image on which each shape is centred, int64, shape (B,).
        half_height: Rows on each side of the central one, int64, shape (B,).
        half_width: Columns on each side of the central one, int64, shape (B,).
        ellipse: True for an ellipse, False for a rectangle, bool, shape (B,).
        sigma: Standard deviation of the blur in pixels, shape (B,); 0 means no blur.
        frame: Height and width of the images.
        extents: All half heights and half widths as whole numbers of Python, so that no device is waited for.
    """

    def __init__(
        self,
        centre_y: Tensor,
        centre_x: Tensor,
        half_height: Tensor,
        half_width: Tensor,
        ellipse: Tensor,
        sigma: Tensor,
        frame: tuple[int, int],
        extents: tuple[list[int], list[int]],
    ) -> None:
        device = centre_y.device
        self.half_heights, self.half_widths = extents
        self.highest, self.widest = max(self.half_heights), max(self.half_widths)
        half_height, half_width, ellipse, sigma = (x[:, None, None] for x in (half_height, half_width, ellipse, sigma))
        self.v = torch.arange(-self.highest, self.highest + 1, device=device)
        self.u = torch.arange(-self.widest, self.widest + 1, device=device)[:, None]

        # The sharp shape: pixels whose row term and column term add up to at most the limit. For an ellipse this is
        # (v / rows)^2 + (u / columns)^2 <= (1 / 2)^2 in whole numbers, so that no pixel is left to rounding.
        v, u = self.v[:, None], self.u.T
        rows, columns = 2 * half_height + 1, 2 * half_width + 1
        self.limit = (rows * columns).square()
        v_of_rectangle = torch.where(v.abs() <= half_height, 0, self.limit + 1)
        u_of_rectangle = torch.where(u.abs() <= half_width, 0, self.limit + 1)
        self.v_term = torch.where(ellipse, (2 * v * columns).square(), v_of_rectangle)
        self.u_term = torch.where(ellipse, (2 * u * rows).square(), u_of_rectangle)

        # The Gaussian of all whole distances between the image's rows (columns) and the shape's.
        farthest = max(frame[0] + self.highest, frame[1] + self.widest)
        distance = torch.arange(-farthest, farthest + 1, device=device)
        sigma = sigma[:, 0]
        heights = torch.exp(-0.5 * (distance / sigma.clamp(min=1e-3)) ** 2) * (distance.abs() <= blur_reach(sigma))
        self.gaussian = (heights / heights.sum(dim=1, keepdim=True)).float()
        self.y = torch.arange(frame[0], device=device)[:, None] - centre_y[:, None, None] + farthest
        self.x = torch.arange(frame[1], device=device)[None, :] - centre_x[:, None, None] + farthest

    def read(self, window: Window) -> Tensor:
        """Evaluate the shapes in a window of the images.

        Returns:
            Heights in [0, 1], float32, shape (n, rows, columns).
        """
        batch, rows, columns = window
        highest, widest = max(self.half_heights[batch]), max(self.half_widths[batch])
        v = slice(self.highest - highest, self.highest + highest + 1)
        u = slice(self.widest - widest, self.widest + widest + 1)
        shapes = self.v_term[batch, v] + self.u_term[batch, :, u] <= self.limit[batch]
        gaussian = self.gaussian[batch]
        from_rows = _look_up(gaussian, self.y[batch, rows] - self.v[v])
        to_columns = _look_up(gaussian, self.x[batch, :, columns] - self.u[u])
        return (from_rows @ shapes.float() @ to_columns).clamp_(max=1)


def _look_up(tables: Tensor, index: Tensor) -> Tensor:
    """Take entries of one table an image, tables of shape (n, L), index of shape (n, ...)."""
    return tables.gather(1, index.flatten(1)).view(index.shape)

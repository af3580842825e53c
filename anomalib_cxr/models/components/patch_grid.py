"""The grid of square patches that one patch size lays over an image.

Kim, Moon and Lee (Sci. Rep. 2023, "Multiresolution" section) cut an image into patches of several sizes and keep each
patch's grid coordinates. Borders are ours: where the stride does not reach the last pixel, one more row or column is
laid so that it ends at the border, so every pixel belongs to at least one patch.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from anomalib_cxr.devices import on_device


@dataclass(frozen=True)
class PatchGrid:
    """Square patches over an image of one size.

    Args:
        image_size: Height and width of the image in pixels.
        patch_size: Side of a patch in pixels.
        stride: Distance between neighbouring patches in pixels. Defaults to the patch size (no overlap except at the
            last row and column). At most the patch size, so that no pixel falls between two patches.

    Raises:
        ValueError: If the patch is larger than the image, or if size or stride is not positive, or if the stride
            leaves gaps.

    Examples:
        >>> grid = PatchGrid((5, 8), patch_size=2)
        >>> grid.tops, grid.lefts
        ((0, 2, 3), (0, 2, 4, 6))
        >>> grid.cut(torch.zeros(7, 1, 5, 8)).shape
        torch.Size([7, 3, 4, 1, 2, 2])
    """

    image_size: tuple[int, int]
    patch_size: int
    stride: int | None = None
    tops: tuple[int, ...] = field(init=False)
    lefts: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Check the sizes and place rows and columns."""
        height, width = self.image_size
        stride = self.patch_size if self.stride is None else self.stride
        if self.patch_size < 1 or stride < 1:
            msg = f"Patch size and stride must be at least 1 pixel, got {self.patch_size} and {stride}."
            raise ValueError(msg)
        if self.patch_size > min(height, width):
            msg = (
                f"A patch of {self.patch_size} pixels does not fit into an image of {height}x{width}: "
                "lower `patch_sizes` or enlarge the model's input size."
            )
            raise ValueError(msg)
        if stride > self.patch_size:
            msg = (
                f"Stride {stride} is larger than patch size {self.patch_size} and would leave pixels without a patch: "
                "lower `strides`."
            )
            raise ValueError(msg)
        object.__setattr__(self, "stride", stride)
        object.__setattr__(self, "tops", _origins(height, self.patch_size, stride))
        object.__setattr__(self, "lefts", _origins(width, self.patch_size, stride))

    @property
    def rows(self) -> int:
        """Number of patch rows."""
        return len(self.tops)

    @property
    def cols(self) -> int:
        """Number of patch columns."""
        return len(self.lefts)

    @property
    def overlaps(self) -> bool:
        """Whether any two patches share pixels."""
        height, width = self.image_size
        return self.rows * self.patch_size > height or self.cols * self.patch_size > width

    def cut(self, image: Tensor) -> Tensor:
        """Cut every patch.

        Args:
            image: Images of shape ``(B, C, H, W)``.

        Returns:
            Patches of shape ``(B, rows, cols, C, patch_size, patch_size)``.

        Raises:
            ValueError: If the image does not have the grid's size.
        """
        if tuple(image.shape[-2:]) != tuple(self.image_size):
            msg = f"This grid is for images of {self.image_size}, got {tuple(image.shape[-2:])}."
            raise ValueError(msg)
        offsets = torch.arange(self.patch_size, device=image.device)
        ys = (on_device(torch.tensor(self.tops), image.device)[:, None] + offsets).flatten()
        xs = (on_device(torch.tensor(self.lefts), image.device)[:, None] + offsets).flatten()
        strips = image.index_select(2, ys).index_select(3, xs)
        patches = strips.reshape(-1, image.shape[1], self.rows, self.patch_size, self.cols, self.patch_size)
        return patches.permute(0, 2, 4, 1, 3, 5)

    def spread(self, scores: Tensor) -> Tensor:
        """Give each patch's score to all its pixels; where patches overlap, pixels take the mean of their patches.

        Rows and columns are independent, so the map is ``Rᵀ S C`` with one membership matrix for each axis.

        Args:
            scores: Patch scores of shape ``(B, rows, cols)``, finite.

        Returns:
            Map of shape ``(B, 1, H, W)``.
        """
        height, width = self.image_size
        rows = _overlap(self.tops, self.patch_size, height, height).to(scores)
        cols = _overlap(self.lefts, self.patch_size, width, width).to(scores)
        rows, cols = rows / rows.sum(0), cols / cols.sum(0)
        return (rows.T @ scores @ cols).unsqueeze(1)

    def pool(self, feature_map: Tensor) -> Tensor:
        """Average a feature map over each patch's area (ours; used by ``features: map``).

        The map is taken to cover the image evenly, whatever its resolution; a map pixel that lies partly inside a
        patch counts by the covered fraction. Where patches tile the map this is adaptive average pooling.

        Args:
            feature_map: Features of the whole image, shape ``(B, D, h, w)``.

        Returns:
            Cell features of shape ``(B, rows, cols, D)``.
        """
        (height, width), (map_height, map_width) = self.image_size, feature_map.shape[-2:]
        rows = _overlap(self.tops, self.patch_size, height, map_height).to(feature_map)
        cols = _overlap(self.lefts, self.patch_size, width, map_width).to(feature_map)
        rows, cols = rows / rows.sum(1, keepdim=True), cols / cols.sum(1, keepdim=True)
        return (rows @ feature_map @ cols.T).permute(0, 2, 3, 1)


def _origins(length: int, size: int, stride: int) -> tuple[int, ...]:
    """First pixel of each patch along one axis; the last patch ends at the border."""
    origins = list(range(0, length - size + 1, stride))
    if origins[-1] + size < length:
        origins.append(length - size)
    return tuple(origins)


def _overlap(origins: tuple[int, ...], size: int, length: int, bins: int) -> Tensor:
    """Fraction of each of ``bins`` equal parts of an axis that each patch covers, shape ``(patches, bins)``, float64.

    Built from plain integers: the pixel boundaries ``k * length`` and ``origin * bins`` are exact.
    """
    starts = torch.tensor(origins, dtype=torch.float64)[:, None] * bins
    left = torch.arange(bins, dtype=torch.float64)[None] * length
    covered = torch.minimum(starts + size * bins, left + length) - torch.maximum(starts, left)
    return covered.clamp(min=0) / length


def resize_matrix(length: int, size: int) -> Tensor:
    """Area averaging of one axis as a matrix, unlike an antialiased resize the same in every exported format.

    Args:
        length: Pixels of the axis.
        size: Pixels it is shrunk to.

    Returns:
        Weights of shape ``(length, size)``, float64; each column sums to 1.
    """
    return _overlap(tuple(range(length)), 1, length, size)

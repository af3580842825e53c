"""PatchSVDD's encoders, losses, banks and maps: what is exported."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cxr.checks import check_choice
from anomalib_cxr.devices import on_device
from anomalib_cxr.models.components.full_precision import full_precision
from anomalib_cxr.models.components.patch_grid import PatchGrid
from anomalib_cxr.models.components.patch_search.reference_bank import ReferenceBank
from anomalib_cxr.models.patch_svdd.encoders import CODE, LARGE, SMALL, STEP, PatchEncoders
from anomalib_cxr.models.patch_svdd.tasks import DIRECTIONS, Pairs, cut, draw_neighbours, draw_shifted, jitter

Fusion = Literal["product", "sum"]


class PatchSVDDModel(nn.Module):
    """Codes of patches of one or two sizes, and how far each is from the nearest code of normal images.

    Args:
        patch_sizes: Of 32 and 64 pixels, each at most once.
        strides: Pixels between the patches that are compared, even, one for each size.
        image_size: Height and width of the images.
        patch_distance: Cells that a reference may lie away; None searches the whole image.
        svdd_weight: Weight λ of the loss of nearly the same patches.
        fusion: ``"product"`` of the sizes' maps, or their ``"sum"``.
        width: Channels of the encoder's first layer, which all others but the last follow.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    mean_image: Tensor

    def __init__(
        self,
        patch_sizes: Sequence[int] = (SMALL, LARGE),
        strides: Sequence[int] = (16, 16),
        image_size: tuple[int, int] = (256, 256),
        patch_distance: int | None = None,
        svdd_weight: float = 1.0,
        fusion: Fusion = "product",
        width: int = 32,
    ) -> None:
        super().__init__()
        self.fusion = check_choice("fusion", fusion, Fusion)
        sizes = tuple(patch_sizes)
        if not sizes or len(set(sizes)) < len(sizes) or not set(sizes) <= {SMALL, LARGE}:
            msg = f"patch_sizes must be of {SMALL} and {LARGE}, each at most once, not {sizes}."
            raise ValueError(msg)
        if len(strides) != len(sizes) or any(
            by < STEP or by % STEP or by > size for by, size in zip(strides, sizes, strict=False)
        ):
            msg = (
                f"strides must be even, one for each of patch_sizes={sizes} and no larger than it, not "
                f"{tuple(strides)}."
            )
            raise ValueError(msg)
        # Two patches in a direction are up to a side less one pixel apart.
        least = 2 * max(sizes)
        if min(image_size) < least or any(side % STEP for side in image_size):
            msg = (
                f"image_size must be even, and at least {least} for two patches beside one another, not "
                f"{image_size[0]}."
            )
            raise ValueError(msg)
        for wrong, message in (
            (not svdd_weight >= 0, f"svdd_weight must be 0 or more, not {svdd_weight}."),
            (width < 1, f"width must be 1 or more, not {width}."),
        ):
            if wrong:
                raise ValueError(message)
        self.patch_sizes = sizes
        self.grids = [PatchGrid(image_size, size, by) for size, by in zip(sizes, strides, strict=True)]
        self.svdd_weight = svdd_weight
        self.encoders = PatchEncoders(LARGE in sizes, width)
        self.classifiers = nn.ModuleList(_position_classifier() for _ in sizes)
        self.banks: Any = nn.ModuleList(ReferenceBank(patch_distance, "euclidean") for _ in sizes)
        self.register_buffer("mean_image", torch.zeros(1, *image_size))

    # ------------------------------------------------------------------ training

    def losses(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Yi and Yoon's loss of one pair of each kind and size from each image.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].
            generator: Of the step.

        Returns:
            ``position_<size>``: cross-entropy of the direction in which the second patch lies. ``svdd_<size>``: mean
            distance of the codes of nearly the same patches, weighted.
        """
        centred = self.centred(images)
        size_of_image = (int(images.shape[-2]), int(images.shape[-1]))
        found = {}
        for size, classifier in zip(self.patch_sizes, self.classifiers, strict=True):
            neighbours = draw_neighbours(len(images), size, size_of_image, generator)
            first, second = self._codes_of(centred, neighbours, size, generator)
            labels = on_device(neighbours.labels, images.device)
            found[f"position_{size}"] = F.cross_entropy(classifier(first - second), labels)
            first, second = self._codes_of(centred, draw_shifted(len(images), size, size_of_image, generator), size)
            found[f"svdd_{size}"] = self.svdd_weight * (first - second).norm(dim=1).mean()
        return found

    def _codes_of(
        self, images: Tensor, pairs: Pairs, size: int, noise: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        patches = torch.cat([cut(images, corners, size) for corners in (pairs.first, pairs.second)])
        if noise is not None:
            patches = jitter(patches, noise)
        first, second = self.encoders(patches, size).flatten(1).chunk(2)
        return first, second

    # ------------------------------------------------------------------ scores

    def centred(self, images: Tensor) -> Tensor:
        """Grey images (B, 1, H, W) less the mean of normal ones."""
        return images.mean(dim=1, keepdim=True) - self.mean_image

    def codes(self, images: Tensor) -> list[Tensor]:
        """Codes of the patches of each size's grid.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            For each size (B, rows, cols, 64).
        """
        small = self.encoders.small(self.centred(images))
        found = []
        for size, grid in zip(self.patch_sizes, self.grids, strict=True):
            every = small if size == SMALL or self.encoders.large is None else self.encoders.large(small)
            rows, cols = (on_device(torch.tensor(places), images.device) // STEP for places in (grid.tops, grid.lefts))
            found.append(every.index_select(2, rows).index_select(3, cols).permute(0, 2, 3, 1))
        return found

    def fit(self, codes: Sequence[Tensor]) -> None:
        """Take the codes of normal images as references.

        Args:
            codes: :meth:`codes` of all normal training images.
        """
        for bank, these in zip(self.banks, codes, strict=True):
            bank.fit(these)

    def extend(self, codes: Sequence[Tensor]) -> None:
        """Add codes of other normal images to the references.

        Args:
            codes: :meth:`codes` of them.
        """
        for bank, these in zip(self.banks, codes, strict=True):
            bank.extend(these)

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            ``anomaly_map`` (B, 1, H, W): at each pixel the mean distance of the patches that cover it from their
            nearest references, both sizes fused; ``pred_score`` (B,), its maximum. Higher is more abnormal.
        """
        with full_precision(images.device):
            found = [bank(codes)[0] for bank, codes in zip(self.banks, self.codes(images), strict=True)]
            maps = torch.cat([grid.spread(part) for grid, part in zip(self.grids, found, strict=True)], dim=1)
        fused = maps.prod(dim=1, keepdim=True) if self.fusion == "product" else maps.sum(dim=1, keepdim=True)
        return InferenceBatch(pred_score=fused.amax(dim=(1, 2, 3)), anomaly_map=fused)


def _position_classifier() -> nn.Sequential:
    """From the difference of two codes to the direction; its last layer learns, unlike that of the published code."""
    return nn.Sequential(
        nn.Linear(CODE, 128), nn.LeakyReLU(0.1), nn.Linear(128, 128), nn.LeakyReLU(0.1), nn.Linear(128, len(DIRECTIONS))
    )

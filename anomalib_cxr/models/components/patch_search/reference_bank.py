"""The bank of reference features of one patch size, and what makes it smaller."""

import logging
from typing import Literal

import torch
from anomalib.models.components.base import DynamicBufferMixin
from torch import Tensor, nn

from anomalib_cxr.checks import check_choice
from anomalib_cxr.devices import has_float64
from anomalib_cxr.models.components.full_precision import full_precision
from anomalib_cxr.models.components.patch_search.local_search import Distance, LocalSearch
from anomalib_cxr.models.components.patch_search.whitening import mean_and_covariance

logger = logging.getLogger(__name__)

BankDtype = Literal["float32", "float16", "float64"]
Selection = Literal["random", "k_center"]


class ReferenceBank(DynamicBufferMixin, nn.Module):
    """References of one patch size: (row, column, feature, image) of every normal training image.

    The three ways to shrink it are ours; the paper keeps every reference at full length.

    Args:
        patch_distance: See :class:`LocalSearch`.
        distance: See :class:`LocalSearch`.
        bank_dtype: Type in which features are stored; ``"float16"`` halves the memory. Defaults to ``"float32"``.
        feature_dim: Length to which features are shortened by PCA, fitted on the bank. Defaults to ``None``: no PCA.
        max_references: References kept for each cell. Defaults to ``None``: all.
        selection: How they are chosen: ``"random"``, or ``"k_center"``, the farthest-first traversal, which
            covers rare but normal appearances. Defaults to ``"random"``.
        seed: Seed of the choice (for ``"k_center"`` of its first reference). Defaults to ``0``.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> bank = ReferenceBank(distance="cosine", feature_dim=4, max_references=5)
        >>> bank.fit(torch.rand(10, 3, 3, 16))
        >>> bank.search.references.shape
        torch.Size([3, 3, 5, 4])
        >>> distance, index = bank(torch.rand(2, 3, 3, 16))
    """

    components: Tensor

    def __init__(
        self,
        patch_distance: int | Literal["all"] | None = 1,
        distance: Distance = "mahalanobis",
        bank_dtype: BankDtype = "float32",
        feature_dim: int | None = None,
        max_references: int | None = None,
        selection: Selection = "random",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice("bank_dtype", bank_dtype, BankDtype)
        check_choice("selection", selection, Selection)
        if (feature_dim is not None and feature_dim < 1) or (max_references is not None and max_references < 1):
            msg = f"`feature_dim` and `max_references` must be at least 1; got {feature_dim} and {max_references}."
            raise ValueError(msg)
        self.feature_dim = feature_dim
        self.max_references = max_references
        self.selection = selection
        self.seed = seed
        self.search = LocalSearch(patch_distance, distance, getattr(torch, bank_dtype))
        # Principal axes (D, feature_dim); empty without PCA.
        self.register_buffer("components", torch.empty(0, 0, dtype=self.search.compute_dtype))

    def fit(self, features: Tensor, image_index: Tensor | None = None) -> None:
        """Build the bank.

        Args:
            features: Features of the normal training images, shape ``(N, rows, cols, D)``.
            image_index: Number of each image, shape ``(N,)``. Defaults to ``0 … N-1``.

        Raises:
            ValueError: If there are no features, if they are not finite, or shorter than ``feature_dim``.
        """
        if features.ndim != 4 or features.numel() == 0:
            msg = (
                "The reference bank is empty: no features of normal training images arrived, "
                f"got shape {tuple(features.shape)} instead of (N, rows, cols, D)."
            )
            raise ValueError(msg)
        if self.feature_dim is not None:
            precise = features if has_float64(features.device) else features.cpu()
            self.components = self._principal_axes(precise).to(self.components.dtype).to(features.device)
            features = torch.cat([self.shorten(part) for part in features.split(256)])
        n, rows, cols, _ = features.shape
        images = torch.arange(n) if image_index is None else image_index
        images = images.to(features.device).expand(rows, cols, n)
        self.search.fit_metric(features)
        features = features.permute(1, 2, 0, 3)
        if self.max_references is not None and self.max_references < n:
            kept = self._select(features)
            images = images.gather(2, kept)
            features = features.gather(2, kept.unsqueeze(-1).expand(-1, -1, -1, features.shape[-1]))
            logger.info("Kept %d of %d references for each cell (%s).", self.max_references, n, self.selection)
        self.search.set_references(features, images)

    def extend(self, features: Tensor) -> None:
        """Add whole images, all of them whatever ``max_references``; principal axes and whitening stay.

        Args:
            features: Features of other normal images, shape ``(n, rows, cols, D)``, before PCA.

        Raises:
            ValueError: If the bank is empty, or the features do not fit it.
        """
        self.search.extend(self.shorten(features))

    def forward(self, features: Tensor, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Search; see :meth:`LocalSearch.forward`.

        Args:
            features: Query features of shape ``(B, rows, cols, D)``, before PCA.
            exclude: Training image that each query image must not match, shape ``(B,)``.

        Returns:
            Distances ``(B, rows, cols)`` and (image, row, column) of the nearest references ``(B, rows, cols, 3)``.
        """
        return self.search(self.shorten(features), exclude)

    def shorten(self, features: Tensor) -> Tensor:
        """Project features on the principal axes, if there are any.

        Args:
            features: Features of shape ``(..., D)``.

        Returns:
            Features of shape ``(..., feature_dim)``.
        """
        if self.feature_dim is None or self.components.numel() == 0:
            return features
        with full_precision(features.device):
            return features.to(self.components.dtype) @ self.components

    def _principal_axes(self, features: Tensor) -> Tensor:
        """Leading eigenvectors, shape (D, feature_dim), by falling eigenvalue."""
        dim = self.feature_dim or 0
        if dim > features.shape[-1]:
            msg = f"`feature_dim` is {dim}, but the encoder's features have only {features.shape[-1]} entries."
            raise ValueError(msg)
        mean, spread = mean_and_covariance(features)
        if self.search.distance == "cosine":
            # Angles are seen from the origin: keep the axes that explain the vectors, not their differences.
            spread = spread + mean[:, None] * mean
        return torch.linalg.eigh(spread).eigenvectors[:, -dim:].flip(1)

    def _select(self, features: Tensor) -> Tensor:
        """Positions of the references to keep, (rows, cols, max_references), sorted; features (rows, cols, N, D)."""
        rows, cols, n, _ = features.shape
        keep = self.max_references or n
        generator = torch.Generator().manual_seed(self.seed)
        if self.selection == "random":
            order = torch.rand(rows, cols, n, generator=generator).argsort(dim=-1)
            return order[..., :keep].sort(dim=-1).values.to(features.device)
        first = torch.randint(n, (rows, cols), generator=generator).to(features.device)
        kept = [
            farthest_first(self.search.to_product_space(self.search.to_bank_space(row)), keep, start)
            for row, start in zip(features, first, strict=True)
        ]
        return torch.stack(kept).sort(dim=-1).values


def farthest_first(points: Tensor, k: int, first: Tensor) -> Tensor:
    """Greedy k-centre: each next point is the farthest from those chosen (Gonzalez, 1985).

    Args:
        points: Sets of points of shape ``(S, N, D)``.
        k: Points to choose from each set, at most N.
        first: First point of each set, shape ``(S,)``.

    Returns:
        Positions in the order of choice, shape ``(S, k)``; a point is chosen twice only if all left are copies.
    """
    chosen = [first]
    nearest = torch.full(points.shape[:2], float("inf"), dtype=points.dtype, device=points.device)
    rows = torch.arange(len(points), device=points.device)
    for _ in range(k - 1):
        last = points[rows, chosen[-1]].unsqueeze(1)
        nearest = torch.minimum(nearest, (points - last).square().sum(-1))
        chosen.append(nearest.argmax(1))
    return torch.stack(chosen, dim=1)


def expected_bytes(n_images: int, grid: tuple[int, int], dim: int, dtype: BankDtype = "float32") -> int:
    """Memory of a bank before it is built.

    Args:
        n_images: References for each cell: training images, or ``max_references`` if smaller.
        grid: Rows and columns.
        dim: Feature length (``feature_dim`` if PCA is used).
        dtype: Stored type.

    Returns:
        Bytes of the features, their image numbers and half norms. Building it takes the float32 features of all
        images besides.

    Raises:
        ValueError: If ``dtype`` is unknown.

    Examples:
        >>> expected_bytes(500, (16, 16), 512) / 2**20
        251.46484375
    """
    check_choice("dtype", dtype, BankDtype)
    stored = torch.finfo(getattr(torch, dtype)).bits // 8
    norm = 8 if dtype == "float64" else 4
    return n_images * grid[0] * grid[1] * (dim * stored + 8 + norm)

"""FeatureDensity's encoder, density and map: what is exported."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from anomalib.data import InferenceBatch
from anomalib.models.components.base import DynamicBufferMixin
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cxr.models.components.patch_encoder import PatchEncoder
from anomalib_cxr.models.components.patch_grid import PatchGrid
from anomalib_cxr.models.components.patch_search.local_search import top_q_mean
from anomalib_cxr.models.feature_density.densities import build_density

#: Images scored at once while the statistics of the cells are taken.
_CHUNK = 64


class FeatureDensityModel(DynamicBufferMixin, nn.Module):
    """A frozen encoder, and a density of its features: of the pooled ones, or of each cell of the image.

    ``local=False``, the classical way: one density of the mean feature of an image gives the score. The map (ours) is
    that of each cell's own feature under the same density.

    ``local=True`` (ours): one density for each place, so that a heart is compared with hearts, and the score is the
    mean of the highest cells of the map.

    The map is standardised, place by place, by the mean and the deviation of normal images: 0 is a typical normal cell.
    Where each place has a density of its own, these are scores of images that it was not fitted on: each half of the
    training images is scored by a density of the other half, before one is fitted on all.

    Args:
        density: One of :data:`~anomalib_cxr.models.feature_density.densities.DENSITIES`.
        density_options: Arguments of that density.
        backbone: timm model.
        pre_trained: Whether the encoder starts from timm's weights.
        weights_path: Local weights file, see :class:`~anomalib_cxr.models.components.patch_encoder.PatchEncoder`.
        mean: Mean of what the weights were trained on, see
            :class:`~anomalib_cxr.models.components.patch_encoder.PatchEncoder`.
        std: Its standard deviation.
        input_range: What black and white are for the weights.
        layers: Levels of the encoder, joined, each at unit length if there are several.
        cell_size: Side of a cell in pixels of the input.
        local: Whether each cell has a density of its own.
        unit_length: Whether features are set to unit length, so that exposure, which shows in it, does not count.
        top_q: Share of the highest cells whose mean is the score of ``local``, in (0, 1].
        image_size: Height and width of the images.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    normal_mean: Tensor
    normal_std: Tensor

    def __init__(
        self,
        density: str = "gaussian",
        density_options: Mapping[str, Any] | None = None,
        backbone: str = "resnet18",
        pre_trained: bool = False,
        weights_path: str | Path | None = None,
        mean: float | None = None,
        std: float | None = None,
        input_range: Sequence[float] | None = None,
        layers: Sequence[int] = (-1,),
        cell_size: int = 32,
        local: bool = False,
        unit_length: bool = False,
        top_q: float = 1.0,
        image_size: tuple[int, int] = (256, 256),
    ) -> None:
        super().__init__()
        if not 0 < top_q <= 1:
            msg = f"top_q must lie in (0, 1], not be {top_q}."
            raise ValueError(msg)
        if not 1 <= cell_size <= min(image_size):
            msg = f"cell_size must lie in 1 to the input's {min(image_size)} pixels, not be {cell_size}."
            raise ValueError(msg)
        self.encoder = PatchEncoder(
            backbone,
            pre_trained=pre_trained,
            weights_path=weights_path,
            layers=layers,
            mean=mean,
            std=std,
            input_range=input_range,
            image_size=image_size,
        )
        self.density = build_density(density, density_options or {})
        self.cell_size = cell_size
        self.local = local
        self.unit_length = unit_length
        self.top_q = top_q
        self.register_buffer("normal_mean", torch.empty(0, 0))
        self.register_buffer("normal_std", torch.empty(0, 0))

    def features(self, images: Tensor) -> Tensor:
        """Features of the cells of images.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            (B, rows, cols, D).
        """
        height, width = images.shape[-2:]
        return self.encoder.cells(images.mean(dim=1, keepdim=True), PatchGrid((height, width), self.cell_size))

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Learn what is normal.

        Args:
            features: (n, rows, cols, D), :meth:`features` of all normal training images.

        Raises:
            ValueError: If there are fewer than four images.
        """
        if len(features) < 4:
            msg = f"FeatureDensity needs at least four normal training images, got {len(features)}."
            raise ValueError(msg)
        if self.local:
            scores = features.new_empty(features.shape[:3])
            for half in (0, 1):
                self.density.fit(self._places(features[1 - half :: 2]))
                scores[half::2] = self._scored_in_parts(features[half::2])
            self.density.fit(self._places(features))
        else:
            self.density.fit(self._pooled(features))
            scores = self._scored_in_parts(features)
        self.normal_mean = scores.mean(dim=0)
        std = scores.std(dim=0)
        # Where all normal cells score alike, as at a rim that is always black, there is nothing to divide by.
        self.normal_std = torch.where(std > 1e-6 * self.normal_mean.abs(), std, 1.0)

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1], of the size the density was fitted at.

        Returns:
            ``pred_score`` (B,), the density's of the pooled features, or with ``local`` the mean of the highest cells;
            ``anomaly_map`` (B, 1, H, W), in standard deviations of normal cells. Higher is more abnormal.
        """
        features = self.features(images)
        cells = (self.cell_scores(features) - self.normal_mean) / self.normal_std
        score = top_q_mean(cells, self.top_q) if self.local else self.density(self._pooled(features))[0]
        anomaly_map = F.interpolate(cells[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)
        return InferenceBatch(pred_score=score, anomaly_map=anomaly_map)

    def cell_scores(self, features: Tensor) -> Tensor:
        """Score of each cell, before it is standardised.

        Args:
            features: (B, rows, cols, D).

        Returns:
            (B, rows, cols).
        """
        rows, cols = features.shape[1:3]
        if self.local:
            return self.density(self._places(features)).T.unflatten(1, (rows, cols))
        return self.density(self._sized(features).flatten(0, 2)[None])[0].unflatten(0, (-1, rows, cols))

    def _scored_in_parts(self, features: Tensor) -> Tensor:
        return torch.cat([self.cell_scores(part) for part in features.split(_CHUNK)])

    def _places(self, features: Tensor) -> Tensor:
        """(B, rows, cols, D) as (places, B, D)."""
        return self._sized(features).flatten(1, 2).transpose(0, 1)

    def _pooled(self, features: Tensor) -> Tensor:
        """(B, rows, cols, D) as the one place (1, B, D)."""
        return self._sized(features.mean(dim=(1, 2)))[None]

    def _sized(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1) if self.unit_length else features

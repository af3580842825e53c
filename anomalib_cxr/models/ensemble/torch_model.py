"""The mean of several detectors' scores and maps, made comparable: what is exported."""

from collections.abc import Sequence
from typing import Any

import torch
from anomalib.data import InferenceBatch
from torch import nn
from torch.nn import functional as F

from anomalib_cxr.models.ensemble.surprise import Surprise


class EnsembleMember(nn.Module):
    """One detector, from the image to its normalised score and map.

    Args:
        pre_processor: Called with images, or None.
        model: Gives an ``InferenceBatch``.
        post_processor: Normalises it.
        surprise: Says how unusual a raw score is; its value is then the member's score. None takes the normalised one.
    """

    def __init__(
        self,
        pre_processor: nn.Module | None,
        model: nn.Module,
        post_processor: nn.Module,
        surprise: Surprise | None = None,
    ) -> None:
        super().__init__()
        self.pre_processor = pre_processor
        self.model = model
        self.post_processor = post_processor
        self.surprise = surprise

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Returns:
            ``pred_score`` (B,), normalised with the threshold at 0.5, or the surprise; ``anomaly_map`` (B, 1, h, w),
            normalised with the threshold at 0.5.
        """
        if self.pre_processor is not None:
            images = self.pre_processor(images)
        raw = self.model(images)
        surprise = None if self.surprise is None else self.surprise(raw.pred_score.flatten())
        normalised = self.post_processor(raw)
        return normalised if surprise is None else normalised._replace(pred_score=surprise)


class EnsembleModel(nn.Module):
    """Mean of the members' scores, and of their normalised maps.

    Args:
        members: Two or more.
    """

    def __init__(self, members: Sequence[EnsembleMember]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            ``pred_score`` (B,), in [0, 1] or, of surprises, at least 0; ``anomaly_map`` (B, 1, H, W), the mean over the
            members that draw one, or None where none does.
        """
        images = images.expand(-1, 3, -1, -1)
        predictions: list[Any] = [member(images) for member in self.members]
        scores = torch.stack([prediction.pred_score.flatten() for prediction in predictions])
        maps = [_as_large_as(images, one.anomaly_map) for one in predictions if one.anomaly_map is not None]
        return InferenceBatch(
            pred_score=scores.mean(dim=0),
            anomaly_map=torch.stack(maps).mean(dim=0) if maps else None,
        )


def _as_large_as(images: torch.Tensor, anomaly_map: torch.Tensor) -> torch.Tensor:
    if anomaly_map.ndim == 3:
        anomaly_map = anomaly_map[:, None]
    if anomaly_map.shape[-2:] == images.shape[-2:]:
        return anomaly_map
    return F.interpolate(anomaly_map, size=images.shape[-2:], mode="bilinear", align_corners=False)

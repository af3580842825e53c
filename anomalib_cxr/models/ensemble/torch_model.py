"""The mean of several detectors' normalised scores and maps: what is exported."""

from collections.abc import Sequence
from typing import Any

import torch
from anomalib.data import InferenceBatch
from torch import nn
from torch.nn import functional as F


class EnsembleMember(nn.Module):
    """One detector, from the image to its normalised score and map.

    Args:
        pre_processor: Called with images, or None.
        model: Gives an ``InferenceBatch``.
        post_processor: Normalises it.
    """

    def __init__(self, pre_processor: nn.Module | None, model: nn.Module, post_processor: nn.Module) -> None:
        super().__init__()
        self.pre_processor = pre_processor
        self.model = model
        self.post_processor = post_processor

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Returns:
            ``pred_score`` (B,) and ``anomaly_map`` (B, 1, h, w), normalised, the threshold at 0.5.
        """
        if self.pre_processor is not None:
            images = self.pre_processor(images)
        return self.post_processor(self.model(images))


class EnsembleModel(nn.Module):
    """Mean of the members' normalised scores, and of their maps.

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
            ``pred_score`` (B,) in [0, 1] and ``anomaly_map`` (B, 1, H, W), the mean over the members that draw one;
            None where none does.
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

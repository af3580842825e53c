"""Post-processing that keeps ranks, with a pixel threshold learned from normal images."""

from typing import Any

import numpy as np
import torch
from anomalib.data import Batch
from anomalib.metrics import F1AdaptiveThreshold, MinMax
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule, Trainer

from anomalib_cxr.checks import check_choice
from anomalib_cxr.distributed import gather_ragged
from anomalib_cxr.metrics.thresholds import TARGETED, ThresholdRule, choose_threshold

#: Steepness of the squashing at the threshold; at 4 the normal half of the validation scores fills about 0.1 … 0.5.
_STEEPNESS = 4.0
#: Pixels kept of each map for the quantile; a regular grid of at most this side.
_GRID = 64


class RankPreservingPostProcessor(PostProcessor):
    """Normalises scores to (0, 1) without ever tying two of them.

    Anomalib clamps at 0 and 1, and computes AUROC afterwards: scores far from the threshold tie and the AUROC changes.
    Here ``z = 4 (x − threshold) / (max − min)`` becomes ``(1 + z / (1 + |z|)) / 2``, strictly increasing, 0.5 at
    the threshold, so every rank statistic equals that of the raw scores. (Ours.)

    Image threshold: by default the best F1 on the validation split. Pixel threshold: the quantile ``pixel_quantile``
    over the maps of its *normal* images, because score and map of these models have different scales, and most
    radiograph sets have no masks. Minima and maxima are those of the validation split.

    Args:
        pixel_quantile: Share of the pixels of normal images that stay below the pixel threshold, in (0, 1).
        image_sensitivity: As Anomalib's: predictions above ``1 − sensitivity`` are abnormal.
        pixel_sensitivity: The same for pixels.
        threshold_rule: ``"best_f1"``, which uses the labels, or ``"mid_range"``, half-way between the lowest and the
            highest validation score: MultiResPatchSSL's "0.5 of the normalised score"; ``"sensitivity"``, the highest
            one that finds the share ``threshold_target`` of the abnormal validation images; or
            ``"false_positive_rate"``, from normal validation images alone, see
            :func:`~anomalib_cxr.metrics.thresholds.normal_threshold`.
        threshold_target: Sensitivity or false-positive rate, in (0, 1), where the rule asks for one.

    Raises:
        ValueError: If ``pixel_quantile`` is not in (0, 1), ``threshold_rule`` is unknown, ``threshold_target`` is
            missing or of no use; during validation, if its images do not allow the target.
    """

    def __init__(
        self,
        pixel_quantile: float = 0.98,
        image_sensitivity: float = 0.5,
        pixel_sensitivity: float = 0.5,
        threshold_rule: ThresholdRule = "best_f1",
        threshold_target: float | None = None,
    ) -> None:
        if not 0.0 < pixel_quantile < 1.0:
            msg = f"pixel_quantile must lie between 0 and 1, not be {pixel_quantile}."
            raise ValueError(msg)
        check_choice("threshold_rule", threshold_rule, ThresholdRule)
        if threshold_rule not in TARGETED and threshold_target is not None:
            msg = f"threshold_target has no meaning for threshold_rule={threshold_rule}: leave it out."
            raise ValueError(msg)
        if threshold_rule in TARGETED and not 0.0 < (threshold_target or 0.0) < 1.0:
            msg = f"threshold_rule={threshold_rule} needs a threshold_target between 0 and 1, not {threshold_target}."
            raise ValueError(msg)
        super().__init__(
            enable_threshold_matching=False,
            image_sensitivity=image_sensitivity,
            pixel_sensitivity=pixel_sensitivity,
        )
        self.pixel_quantile = pixel_quantile
        self.threshold_rule = threshold_rule
        self.threshold_target = threshold_target
        self._scores: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self._normal_pixels: list[torch.Tensor] = []
        self._image_threshold_metric: F1AdaptiveThreshold
        self._image_min_max_metric: MinMax
        self._pixel_min_max_metric: MinMax

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, "pixel_quantile", "threshold_rule", "threshold_target")

    def on_validation_batch_end(  # type: ignore[override]  # as in Anomalib
        self, trainer: Trainer, pl_module: LightningModule, outputs: Batch, *args: Any, **kwargs: Any
    ) -> None:
        """Collect scores and the pixels of normal maps."""
        del trainer, pl_module, args, kwargs
        if outputs.gt_label is not None:
            self._image_threshold_metric.update(outputs)
            if self.threshold_rule in TARGETED and outputs.pred_score is not None:
                self._scores.append(outputs.pred_score.detach().float().flatten().cpu())
                self._labels.append(outputs.gt_label.flatten().cpu())
        self._image_min_max_metric.update(outputs)
        self._pixel_min_max_metric.update(outputs)
        if outputs.anomaly_map is not None:
            maps = outputs.anomaly_map
            normal = maps if outputs.gt_label is None else maps[~outputs.gt_label.bool()]
            step = max(1, -(-max(maps.shape[-2:]) // _GRID))
            self._normal_pixels.append(normal[..., ::step, ::step].detach().float().flatten().cpu())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fix thresholds and ranges."""
        if self._image_threshold_metric.update_called:
            self._image_threshold.copy_(self._image_threshold_metric.compute())
            self._image_threshold_metric.reset()
        for metric, low, high in (
            (self._image_min_max_metric, self.image_min, self.image_max),
            (self._pixel_min_max_metric, self.pixel_min, self.pixel_max),
        ):
            if metric.update_called:
                minimum, maximum = metric.compute()
                low.copy_(minimum)
                high.copy_(maximum)
                metric.reset()
        if self.threshold_rule == "mid_range":
            self._image_threshold.copy_((self.image_min + self.image_max) / 2)
        if self._scores:
            scores, labels = torch.cat(self._scores), torch.cat(self._labels).bool()
            self._scores, self._labels = [], []
            scores, labels = gather_ragged(scores), gather_ragged(labels)
            self._image_threshold.fill_(self._targeted_threshold(scores.numpy(), labels.numpy()))
        pixels = torch.cat(self._normal_pixels) if self._normal_pixels else torch.empty(0)
        self._normal_pixels = []
        pixels = gather_ragged(pixels)
        if len(pixels):
            rank = min(len(pixels), int(self.pixel_quantile * len(pixels)) + 1)
            self._pixel_threshold.copy_(torch.kthvalue(pixels, rank).values)
        del trainer, pl_module

    def _targeted_threshold(self, scores: np.ndarray, labels: np.ndarray) -> float:
        """Threshold that a score must exceed: Anomalib decides by ``>``, our metrics by ``>=``."""
        reached = choose_threshold(scores, labels, {self.threshold_rule: float(self.threshold_target or 0.0)})
        below = scores[scores < reached]
        return float(below.max()) if len(below) else float(scores.min() - max(1e-3 * np.ptp(scores), 1e-6))

    @staticmethod
    def _normalize(
        preds: torch.Tensor | None, norm_min: torch.Tensor, norm_max: torch.Tensor, threshold: torch.Tensor
    ) -> torch.Tensor | None:
        """Squash to (0, 1), strictly increasing; 0.5 at the threshold, or mid-range where there is none."""
        if preds is None:
            return None
        centre = torch.where(torch.isnan(threshold), (norm_max + norm_min) / 2, threshold)
        spread = norm_max - norm_min
        spread = torch.where(spread > 0, spread, torch.ones_like(spread))
        z = _STEEPNESS * (preds - centre) / spread
        squashed = 0.5 * (1.0 + z / (1.0 + z.abs()))
        return torch.where(torch.isnan(norm_min), preds, squashed)

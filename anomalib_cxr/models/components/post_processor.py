"""Post-processing that keeps ranks, with a pixel threshold learned from normal images."""

import logging
import math
from typing import Any

import numpy as np
import torch
from anomalib.data import Batch, InferenceBatch
from anomalib.metrics import F1AdaptiveThreshold, MinMax
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule, Trainer

from anomalib_cxr.checks import check_choice
from anomalib_cxr.deploy.metadata import STEEPNESS
from anomalib_cxr.distributed import gather_ragged
from anomalib_cxr.metrics.evaluator_metrics import RAW_SCORE
from anomalib_cxr.metrics.thresholds import TARGETED, ThresholdRule, choose_threshold

logger = logging.getLogger(__name__)

#: Pixels kept of each map for the quantile; a regular grid of at most this side.
_GRID = 64


class RankPreservingPostProcessor(PostProcessor):
    """Normalises scores to (0, 1) and keeps their order, and decides by the raw ones.

    Anomalib clamps at 0 and 1, and computes AUROC afterwards: scores far from the threshold tie and the AUROC changes.
    Here ``z = 4 (x − threshold) / (max − min)`` becomes ``(1 + z / (1 + |z|)) / 2``, strictly increasing, 0.5 at
    the threshold. (Ours.) In float32 two raw scores x < y keep their order wherever, with the larger |z| of the two,
    ``y − x >= 2⁻²² (max − min) (1 + |z|)²``, and beside what float32 has already rounded in x and y themselves:
    6e-6 of the validation range at its ends, 0.002 of it 20 ranges away, but 380 ranges at 10,000. Nearer ones may
    tie, as all do where one outlier stretched the range by a million. So rank images by raw scores where they are at
    hand, as ``predictions.csv`` has them and as our AUROC in the Evaluator, reports and cross-validation do.

    An image is abnormal if its raw score is at least the image threshold, as our metrics have it, and Anomalib's own
    choice of the best F1; a pixel if it is above the pixel threshold. What is NaN is no normal image or pixel. The
    exported graph decides the same way.

    Image threshold: by default the best F1 on the validation split. Pixel threshold: the quantile ``pixel_quantile``
    over the maps of its *normal* images, because score and map of these models have different scales, and most
    radiograph sets have no masks. Minima and maxima are those of the validation split.

    Args:
        pixel_quantile: Share of the pixels of normal images that the pixel threshold leaves unmarked, in (0, 1).
        image_sensitivity: As Anomalib's: normalised scores of at least ``1 − sensitivity`` are abnormal.
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

    #: :meth:`forward` does without maps, so that tables of validation scores have their normalised ones.
    takes_scores_alone = True

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
        #: Whether an image at the threshold is abnormal; it was not where version 0.1 met a target.
        self.includes_threshold = True
        self._image_threshold_metric: F1AdaptiveThreshold
        self._image_min_max_metric: MinMax
        self._pixel_min_max_metric: MinMax

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        own = ("pixel_quantile", "threshold_rule", "threshold_target", "includes_threshold")
        return (*super()._checkpoint_config_keys, *own)

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Take up the configuration of a checkpoint; one of version 0.1 decides as it did."""
        super().load_checkpoint_config(config)
        if "threshold_rule" in config and "includes_threshold" not in config:
            self.includes_threshold = self.threshold_rule not in TARGETED
            if self.threshold_rule == "false_positive_rate":
                logger.warning(
                    "This checkpoint's threshold is of version 0.1, which chose it too low for false_positive_rate=%s: "
                    "validate the model again for one that keeps it.",
                    self.threshold_target,
                )

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
            self._normal_pixels.append(_thinned(normal))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fix thresholds and ranges."""
        self.includes_threshold = True
        if self._image_threshold_metric.update_called:
            best = self._image_threshold_metric.compute()
            if not self._image_threshold_metric._has_anomalous_samples():
                # Anomalib's choice is then the highest normal score, which is not to be called abnormal.
                best = torch.nextafter(best, torch.full_like(best, float("inf")))
            self._image_threshold.copy_(best)
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
        self._leave_unmarked(gather_ragged(pixels))
        del trainer, pl_module

    def move_thresholds(self, scores: torch.Tensor, maps: torch.Tensor | None, rate: float) -> None:
        """Take thresholds from normal images of another place; the ranges, and so the normalised scale, stay.

        Args:
            scores: (n,) raw scores of the images.
            maps: (n, 1, h, w) raw maps; None where the model has none.
            rate: False-positive rate in (0, 1), see :func:`~anomalib_cxr.metrics.thresholds.normal_threshold`.

        Raises:
            ValueError: If so few images allow no such rate.
        """
        rule = {"false_positive_rate": rate}
        self._image_threshold.fill_(choose_threshold(scores.numpy(), np.zeros(len(scores), bool), rule))
        self.threshold_rule, self.threshold_target, self.includes_threshold = "false_positive_rate", rate, True
        if maps is not None:
            self._leave_unmarked(_thinned(maps))

    def _leave_unmarked(self, pixels: torch.Tensor) -> None:
        """Put the pixel threshold at the quantile of normal pixels (n,); without any it stays."""
        if len(pixels):
            rank = min(len(pixels), int(self.pixel_quantile * len(pixels)) + 1)
            self._pixel_threshold.copy_(torch.kthvalue(pixels, rank).values)

    def _targeted_threshold(self, scores: np.ndarray, labels: np.ndarray) -> float:
        """Score from which on an image is abnormal, a number of the scores' own type."""
        return choose_threshold(scores, labels, {self.threshold_rule: float(self.threshold_target or 0.0)})

    # ------------------------------------------------------------------ decisions, and then the normalised scale

    def forward(self, predictions: InferenceBatch) -> InferenceBatch:
        """Decide and normalise; this is what is exported.

        Args:
            predictions: Raw scores (B,), raw maps (B, 1, H, W), or both.

        Returns:
            Normalised scores and maps, decisions (B,) and masks (B, 1, H, W), bool.

        Raises:
            ValueError: If there are neither scores nor maps.
        """
        processed = super().forward(predictions)
        if not self.enable_thresholding:
            return processed
        score, maps = predictions.pred_score, predictions.anomaly_map
        if score is None and maps is not None:
            score = torch.amax(maps, dim=(-2, -1))
        return processed._replace(pred_label=self._are_abnormal(score), pred_mask=self._marked(maps))

    def post_process_batch(self, batch: Batch) -> None:
        """Decide by raw scores, and then normalise; the batch keeps raw ones as ``raw_score``, for our AUROC.

        Args:
            batch: Batch with raw scores and maps.
        """
        setattr(batch, RAW_SCORE, batch.pred_score)
        if self.enable_thresholding:
            self.threshold_batch(batch)
        if self.enable_normalization:
            self.normalize_batch(batch)

    def threshold_batch(self, batch: Batch) -> None:
        """Decide by raw scores and maps, where the model has not.

        Args:
            batch: Batch with raw scores and maps.
        """
        if batch.pred_label is None:
            batch.pred_label = self._are_abnormal(batch.pred_score)
        if batch.pred_mask is None:
            batch.pred_mask = self._marked(batch.anomaly_map)

    def _are_abnormal(self, scores: torch.Tensor | None) -> torch.Tensor | None:
        if scores is None:
            return None
        cut = _cut(self.image_sensitivity, self.image_min, self.image_max, self.image_threshold)
        above = scores >= cut if self.includes_threshold else scores > cut
        return above | scores.isnan()

    def _marked(self, maps: torch.Tensor | None) -> torch.Tensor | None:
        if maps is None:
            return None
        cut = _cut(self.pixel_sensitivity, self.pixel_min, self.pixel_max, self.pixel_threshold)
        return (maps > cut) | maps.isnan()

    @staticmethod
    def _normalize(
        preds: torch.Tensor | None, norm_min: torch.Tensor, norm_max: torch.Tensor, threshold: torch.Tensor
    ) -> torch.Tensor | None:
        """Squash to (0, 1), increasing; 0.5 at the threshold, or mid-range where there is none."""
        if preds is None:
            return None
        centre, spread = _scale(norm_min, norm_max, threshold)
        z = STEEPNESS * (preds - centre) / spread
        squashed = 0.5 * (1.0 + z / (1.0 + z.abs()))
        return torch.where(torch.isnan(norm_min), preds, squashed)


def _thinned(maps: torch.Tensor) -> torch.Tensor:
    """Pixels of maps (…, h, w) on a regular grid, (n,)."""
    step = max(1, -(-max(maps.shape[-2:]) // _GRID))
    return maps[..., ::step, ::step].detach().float().flatten().cpu()


def _scale(
    norm_min: torch.Tensor, norm_max: torch.Tensor, threshold: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw value that becomes 0.5, and the range that counts as one."""
    centre = torch.where(torch.isnan(threshold), (norm_max + norm_min) / 2, threshold)
    spread = norm_max - norm_min
    return centre, torch.where(spread > 0, spread, torch.ones_like(spread))


def _cut(sensitivity: float, norm_min: torch.Tensor, norm_max: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Raw value whose normalised one is ``1 − sensitivity``; float32 may merge its neighbours once squashed."""
    centre, spread = _scale(norm_min, norm_max, threshold)
    upper = 1.0 - 2.0 * float(sensitivity)
    z = upper / (1.0 - abs(upper)) if abs(upper) < 1 else math.copysign(math.inf, upper)
    # Without ranges nothing is normalised, and values are compared as they are.
    return torch.where(torch.isnan(norm_min), 1.0 - float(sensitivity), centre + z * spread / STEEPNESS)

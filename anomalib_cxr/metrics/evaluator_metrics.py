"""Image-level metrics for Anomalib's Evaluator, by class path in a configuration.

They are torchmetrics' own, with what Anomalib's lack: NaN and a reason instead of 0 where a class has no image, an
error that names the images where a score is NaN, and no sigmoid over raw scores.

Anomalib 2.7 takes ``AUROC`` and ``AUPR`` from torchmetrics, which passes scores outside [0, 1] through a float32
sigmoid: scores above 17 all become 1, and a perfect ranking of distances 30, 40, 50, 60 gets an AUROC of 0.5. Scores
are raw in validation, so a checkpoint chosen by that AUROC may be chosen by nothing. Here scores are only ranked, and
raw ones wherever a batch still has them: normalised ones tie in float32 far from the validation scores.
"""

import logging
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from anomalib.data import Batch
from anomalib.metrics import AnomalibMetric
from torchmetrics import classification
from torchmetrics.utilities.data import dim_zero_cat

from anomalib_cxr.metrics.checks import check_scores

logger = logging.getLogger(__name__)

_SCORES = ("pred_score", "gt_label")
_DECISIONS = ("pred_label", "gt_label")
#: Attribute in which a post-processor leaves the scores (B,) that it normalised.
RAW_SCORE = "raw_score"


class _Checked:
    """Refuses scores that are not finite, and gives NaN with a reason where a class is missing."""

    needs: ClassVar[tuple[str, ...]] = ("normal", "abnormal")
    fields: Any
    name: str

    def update(self, batch: Batch, *args: Any, **kwargs: Any) -> None:
        """Take in a batch.

        Args:
            batch: Batch with the metric's fields.
            *args: As Anomalib's.
            **kwargs: As Anomalib's.

        Raises:
            ValueError: If a value is NaN or infinite; the message names the images.
        """
        values = getattr(batch, self.fields[0], None)
        if isinstance(values, torch.Tensor) and values.is_floating_point() and not values.isfinite().all():
            flat = values.reshape(len(values), -1).sum(dim=1).detach().cpu().double().numpy()
            check_scores(flat, getattr(batch, "image_path", None), f"values of {self.fields[0]}")
        super().update(batch, *args, **kwargs)  # type: ignore[misc]

    def compute(self) -> torch.Tensor | None:
        """Compute the metric.

        Returns:
            Scalar; NaN where a class that the metric needs has no image; None, as Anomalib's, for a metric with
            ``strict=False`` that saw nothing.
        """
        if self._update_count:  # type: ignore[attr-defined]
            counts = self._count_classes()
            missing = [name for name in self.needs if not counts[name]]
            if missing:
                logger.warning("%s is not defined (NaN): no image is %s.", self.name, " or ".join(missing))
                return torch.tensor(float("nan"))
        value = super().compute()  # type: ignore[misc]
        return value[0] if isinstance(value, tuple) else value

    def _count_classes(self) -> dict[str, int]:
        raise NotImplementedError


class _OfDecisions(_Checked):
    """Metrics of decisions: torchmetrics keeps the four counts."""

    default_fields = _DECISIONS

    def _count_classes(self) -> dict[str, int]:
        counts: Any = self
        return {"abnormal": int(counts.tp + counts.fn), "normal": int(counts.tn + counts.fp)}


class _OfScores(_Checked):
    """Metrics of the ranking: torchmetrics keeps the scores."""

    default_fields = _SCORES

    def update(self, batch: Batch, *args: Any, **kwargs: Any) -> None:
        """Take in a batch, by the scores that were normalised where it has them.

        Args:
            batch: Batch with the metric's fields.
            *args: As Anomalib's.
            **kwargs: As Anomalib's.

        Raises:
            ValueError: If a value is NaN or infinite; the message names the images.
        """
        raw = getattr(batch, RAW_SCORE, None)
        if raw is None or self.fields[0] != _SCORES[0]:
            super().update(batch, *args, **kwargs)
            return
        known = {name: getattr(batch, name, None) for name in (*self.fields, "image_path")}
        view: Any = SimpleNamespace(**known | {_SCORES[0]: raw})
        super().update(view, *args, **kwargs)

    def _count_classes(self) -> dict[str, int]:
        target = dim_zero_cat(self.target)  # type: ignore[attr-defined]
        return {"abnormal": int((target == 1).sum()), "normal": int((target == 0).sum())}


class _RawScores:
    """Keeps scores as they are, in place of torchmetrics' sigmoid."""

    preds: list[torch.Tensor]
    target: list[torch.Tensor]

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        self.preds.append(preds.flatten())
        self.target.append(target.flatten().long())


class Accuracy(_OfDecisions, AnomalibMetric, classification.BinaryAccuracy):  # type: ignore[misc]
    """Share of right decisions.

    Examples:
        >>> import torch
        >>> from anomalib.data import ImageBatch
        >>> from anomalib_cxr.metrics import Accuracy
        >>> metric = Accuracy(prefix="image_")
        >>> labels = {"pred_label": torch.tensor([0, 1, 1, 1]), "gt_label": torch.tensor([0, 0, 1, 1])}
        >>> metric.update(ImageBatch(image=torch.zeros(4, 3, 8, 8), **labels))
        >>> metric.compute()
        tensor(0.7500)
    """

    needs = ()


class Precision(_OfDecisions, AnomalibMetric, classification.BinaryPrecision):  # type: ignore[misc]
    """Share of the images called abnormal that are; 0 where none is called abnormal."""

    needs = ("abnormal",)


class Sensitivity(_OfDecisions, AnomalibMetric, classification.BinaryRecall):  # type: ignore[misc]
    """Share of the abnormal images that are called so (recall)."""

    needs = ("abnormal",)


class Specificity(_OfDecisions, AnomalibMetric, classification.BinarySpecificity):  # type: ignore[misc]
    """Share of the normal images that are called so."""

    needs = ("normal",)


class F1Score(_OfDecisions, AnomalibMetric, classification.BinaryF1Score):  # type: ignore[misc]
    """Harmonic mean of precision and sensitivity."""

    needs = ("abnormal",)


class AUROC(_OfScores, AnomalibMetric, _RawScores, classification.BinaryAUROC):  # type: ignore[misc]
    """Area under the ROC curve, of scores of any scale."""


class AUPR(_OfScores, AnomalibMetric, _RawScores, classification.BinaryAveragePrecision):  # type: ignore[misc]
    """Area under the precision-recall curve (step-wise average precision), of scores of any scale."""


class SensitivityAtSpecificity(  # type: ignore[misc]
    _OfScores, AnomalibMetric, _RawScores, classification.BinarySensitivityAtSpecificity
):
    """Highest sensitivity among the thresholds of at least ``min_specificity``.

    Args:
        min_specificity: In [0, 1].
        fields: As in Anomalib.
        prefix: As in Anomalib.
        strict: As in Anomalib.
    """

    def __init__(
        self,
        min_specificity: float,
        fields: list[str] | None = None,
        prefix: str = "",
        strict: bool = True,
    ) -> None:
        super().__init__(fields=fields, prefix=prefix, strict=strict, min_specificity=min_specificity)


class SpecificityAtSensitivity(  # type: ignore[misc]
    _OfScores, AnomalibMetric, _RawScores, classification.BinarySpecificityAtSensitivity
):
    """Highest specificity among the thresholds of at least ``min_sensitivity``.

    Args:
        min_sensitivity: In [0, 1].
        fields: As in Anomalib.
        prefix: As in Anomalib.
        strict: As in Anomalib.
    """

    def __init__(
        self,
        min_sensitivity: float,
        fields: list[str] | None = None,
        prefix: str = "",
        strict: bool = True,
    ) -> None:
        super().__init__(fields=fields, prefix=prefix, strict=strict, min_sensitivity=min_sensitivity)

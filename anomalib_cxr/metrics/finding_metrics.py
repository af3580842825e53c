"""Metrics of one finding for Anomalib's Evaluator: its images against all normal ones, as in AnatPaste's Table II.

They read the field ``findings`` of the batches that this package's datamodules make, and are defined as the rows of
:func:`~anomalib_cxr.metrics.findings.finding_table`. Anomalib logs one value a metric, so each is of one finding;
:class:`FindingEvaluator` makes them for a list of findings.
"""

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from anomalib.data import Batch
from anomalib.metrics import AnomalibMetric, Evaluator
from torchmetrics import Metric

from anomalib_cxr.metrics.checks import check_scores
from anomalib_cxr.metrics.evaluator_metrics import AUROC, RAW_SCORE, Accuracy, F1Score, _OfDecisions
from anomalib_cxr.metrics.findings import SEPARATOR, count_findings, describe_absence, finding_key, split_findings

logger = logging.getLogger(__name__)

FEW_CASES = 10
"""Abnormal images below which a value is said to rest on few."""


class _OfFinding:
    """Passes on the abnormal images with the finding, and all normal ones.

    Args:
        finding: Its name in the samples table; case and spaces do not matter.
        fields: As in Anomalib.
        prefix: As in Anomalib. The metric is logged as ``<prefix><metric>_<finding>``.
        strict: As in Anomalib.

    Raises:
        ValueError: If the name is empty or of several findings.
    """

    needs: ClassVar[tuple[str, ...]] = ("normal", "abnormal")
    cases: torch.Tensor
    normals: torch.Tensor

    def __init__(self, finding: str, fields: list[str] | None = None, prefix: str = "", strict: bool = True) -> None:
        if not finding.strip() or SEPARATOR in finding:
            msg = f"A metric by finding takes the name of one finding, got {finding!r}."
            raise ValueError(msg)
        super().__init__(fields=fields, prefix=prefix, strict=strict)  # type: ignore[call-arg]
        self.finding = finding.strip()
        measure = type(self).__name__.removeprefix("Finding")
        word = re.sub(r"\W+", "_", finding_key(finding)).strip("_")  # a "/" is a folder to some loggers
        self.name = f"{prefix}{measure}_{word}"
        state: Any = self
        state.add_state("cases", torch.tensor(0), dist_reduce_fx="sum")
        state.add_state("normals", torch.tensor(0), dist_reduce_fx="sum")
        self._seen: Counter[str] = Counter()  # for the log, of this process alone
        self._has_warned = False

    def check_findings(self, cells: Mapping[str, int]) -> None:
        """Check that there are images with the finding. This package's datamodules call it before a run.

        Args:
            cells: Number of abnormal images with each text of findings, joined by "|".

        Raises:
            ValueError: If no image has the finding; the message says which findings there are.
        """
        counts = count_findings(cells)
        if finding_key(self.finding) not in map(finding_key, counts):
            msg = f"{self.name}: {describe_absence(self.finding, counts)}."
            raise ValueError(msg)

    def update(self, batch: Batch, *args: Any, **kwargs: Any) -> None:
        """Take in a batch.

        Args:
            batch: Batch with the metric's fields, ``gt_label`` and ``findings``.
            *args: As Anomalib's.
            **kwargs: As Anomalib's.

        Raises:
            ValueError: If the batch has no findings or labels, or a score is NaN or infinite; the images are named.
        """
        metric: Any = self
        cells: list[str] | None = getattr(batch, "findings", None)
        if cells is None or batch.gt_label is None:
            if not metric.strict:
                metric._update_count -= 1  # as AnomalibMetric does where a field is missing
                return
            msg = (
                f"{self.name}: the batch has no {'findings' if cells is None else 'labels'} ({type(batch).__name__}); "
                "use a datamodule of anomalib_cxr.data, RadiographTable for your own images."
            )
            raise ValueError(msg)
        if any(getattr(batch, field, None) is None for field in metric.fields):
            super().update(batch, *args, **kwargs)  # type: ignore[misc]  # which says what is missing
            return
        if batch.pred_score is not None:  # a decision on a NaN is "normal" without a word
            scores = batch.pred_score.detach().cpu().double().reshape(-1).numpy()
            check_scores(scores, getattr(batch, "image_path", None), "values of pred_score")
        abnormal = batch.gt_label.bool().reshape(-1)
        key, has = finding_key(self.finding), torch.zeros_like(abnormal)
        for place in abnormal.nonzero().flatten().tolist():
            self._seen[cells[place]] += 1
            has[place] = key in split_findings(cells[place])
        self.cases = self.cases + has.sum()
        self.normals = self.normals + (~abnormal).sum()
        used = has | ~abnormal
        if isinstance(self, _OfDecisions) and not used.any():  # torchmetrics cannot reshape no decisions
            return
        names = [*metric.fields, *([RAW_SCORE] if getattr(batch, RAW_SCORE, None) is not None else [])]
        chosen = {name: getattr(batch, name)[used] for name in names}
        super().update(SimpleNamespace(**chosen), *args, **kwargs)  # type: ignore[misc]

    def compute(self) -> torch.Tensor | None:
        """Compute the metric.

        Returns:
            Scalar; NaN with a reason where no image has the finding or none is normal; None, as Anomalib's, for a
            metric with ``strict=False`` that saw nothing.
        """
        metric: Any = self
        if metric._update_count and not self.cases:
            absence = describe_absence(self.finding, count_findings(self._seen))
            logger.warning("%s is not defined (NaN): %s.", self.name, absence)
            return torch.tensor(float("nan"))
        if metric._update_count and self.cases < FEW_CASES and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s rests on %d images with the finding (fewer than %d) and %d normal ones.",
                self.name,
                self.cases,
                FEW_CASES,
                self.normals,
            )
        return super().compute()  # type: ignore[misc, no-any-return]

    def reset(self) -> None:
        """Forget all images."""
        super().reset()  # type: ignore[misc]
        self._seen = Counter()


class FindingAUROC(_OfFinding, AUROC):  # type: ignore[misc]
    """Area under the ROC curve of a finding's images against all normal ones.

    Examples:
        >>> import torch
        >>> from anomalib_cxr.data import RadiographBatch
        >>> from anomalib_cxr.metrics import FindingAUROC
        >>> metric = FindingAUROC("nodule", prefix="image_")
        >>> metric.name
        'image_AUROC_nodule'
        >>> labels = {"gt_label": torch.tensor([0, 0, 1, 1]), "findings": ["", "", "Nodule|edema", "edema"]}
        >>> scores = torch.tensor([0.1, 0.6, 0.5, 0.9])
        >>> metric.update(RadiographBatch(image=torch.zeros(4, 3, 8, 8), pred_score=scores, **labels))
        >>> metric.compute()
        tensor(0.5000)
    """


class FindingAccuracy(_OfFinding, Accuracy):  # type: ignore[misc]
    """Share of right decisions among a finding's images and all normal ones, at the threshold of the model."""


class FindingF1Score(_OfFinding, F1Score):  # type: ignore[misc]
    """F1 of the decisions on a finding's images and all normal ones, at the threshold of the model."""


class _Nothing(Metric):
    """Takes in anything."""

    def update(self, *values: Any) -> None:
        """Do nothing."""

    def compute(self) -> None:
        """Compute nothing."""


class FindingCases(_OfFinding, AnomalibMetric, _Nothing):  # type: ignore[misc]
    """Number of abnormal images with a finding, which its other metrics rest on."""

    default_fields = ("gt_label",)

    def compute(self) -> torch.Tensor | None:  # type: ignore[override]
        """Count.

        Returns:
            Scalar, 0 where no image has the finding; None for a metric with ``strict=False`` that saw nothing.
        """
        return self.cases.float() if self._update_count or self.strict else None


class FindingEvaluator(Evaluator):
    """Anomalib's Evaluator, with four more metrics a finding in the test: AUROC, accuracy, F1 and number of images.

    Args:
        findings: Their names in the samples table; case and spaces do not matter.
        val_metrics: As in Anomalib; the default is ``image_AUROC``, by which this package's models choose checkpoints.
        test_metrics: As in Anomalib; the default is AUROC, accuracy and F1 over all images.
        compute_on_cpu: As in Anomalib.

    Raises:
        ValueError: If there are no findings, or one is given twice.
    """

    def __init__(
        self,
        findings: list[str],
        val_metrics: AnomalibMetric | Sequence[AnomalibMetric] | None = None,
        test_metrics: AnomalibMetric | Sequence[AnomalibMetric] | None = None,
        compute_on_cpu: bool = True,
    ) -> None:
        keys = [finding_key(finding) for finding in findings]
        if not keys or len(set(keys)) < len(keys):
            msg = f"FindingEvaluator takes at least one finding, each once, got {findings}."
            raise ValueError(msg)
        prefix = "image_"
        if val_metrics is None:
            val_metrics = [AUROC(prefix=prefix)]
        if test_metrics is None:
            test_metrics = [metric(prefix=prefix) for metric in (AUROC, Accuracy, F1Score)]
        by_finding = [
            metric(finding, prefix=prefix)
            for finding in findings
            for metric in (FindingAUROC, FindingAccuracy, FindingF1Score, FindingCases)
        ]
        super().__init__(val_metrics, [*self.validate_metrics(test_metrics), *by_finding], compute_on_cpu)

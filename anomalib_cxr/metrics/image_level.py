"""Image-level metrics as functions of scores and labels, for many weightings of the images at once.

One row of weights is one draw of a bootstrap (how often each image was drawn); a single row of ones gives the metrics
themselves. All are those of scikit-learn with ``sample_weight``.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from anomalib_cxr.metrics.checks import absent_class, check_labelled

logger = logging.getLogger(__name__)

Values = npt.NDArray[np.float64]


class Ranks(NamedTuple):
    """Weights of normal and abnormal images at each different score, rising; each (B, scores)."""

    normal: Values
    abnormal: Values


class Decisions(NamedTuple):
    """Weights of right and wrong decisions at a threshold; each (B,)."""

    true_positive: Values
    false_positive: Values
    false_negative: Values
    true_negative: Values


class ImageMetric(NamedTuple):
    """A metric that is computed, reported and tabulated wherever image-level metrics are.

    Attributes:
        compute: Its B values from the :class:`Ranks` or :class:`Decisions` of B weightings.
        needs: Labels without whose images it is not defined (NaN).
        in_overview: Whether the report's first table has it, which leaves room for few.
        by_finding: Whether it is given for each finding, too.
    """

    compute: Callable[[Any], Values]
    needs: tuple[str, ...] = ()
    in_overview: bool = True
    by_finding: bool = False


def _auroc(ranks: Ranks) -> Values:
    """A tie counts half."""
    below = np.cumsum(ranks.normal, axis=1) - ranks.normal
    won = (ranks.abnormal * (below + 0.5 * ranks.normal)).sum(axis=1)
    return _ratio(won, ranks.abnormal.sum(axis=1) * ranks.normal.sum(axis=1))


def _average_precision(ranks: Ranks) -> Values:
    """Tied images enter together."""
    found = ranks.abnormal[:, ::-1].cumsum(axis=1)
    precision = _ratio(found, found + ranks.normal[:, ::-1].cumsum(axis=1))
    return _ratio((ranks.abnormal[:, ::-1] * precision).sum(axis=1), ranks.abnormal.sum(axis=1))


def _f1(at: Decisions) -> Values:
    return _ratio(2 * at.true_positive, 2 * at.true_positive + at.false_positive + at.false_negative)


def _accuracy(at: Decisions) -> Values:
    right = at.true_positive + at.true_negative
    return _ratio(right, right + at.false_positive + at.false_negative)


def _precision(at: Decisions) -> Values:
    return _ratio(at.true_positive, at.true_positive + at.false_positive)


def _sensitivity(at: Decisions) -> Values:
    return _ratio(at.true_positive, at.true_positive + at.false_negative)


def _specificity(at: Decisions) -> Values:
    return _ratio(at.true_negative, at.true_negative + at.false_positive)


RANK_METRICS: dict[str, ImageMetric] = {
    "AUROC": ImageMetric(_auroc, ("normal", "abnormal"), by_finding=True),
    "AUPR": ImageMetric(_average_precision, ("normal", "abnormal")),
}
"""Metrics of the order of the scores. A new entry here is in every table, report and interval."""

THRESHOLD_METRICS: dict[str, ImageMetric] = {
    "F1": ImageMetric(_f1, ("abnormal",), by_finding=True),
    "accuracy": ImageMetric(_accuracy, in_overview=False, by_finding=True),
    "precision": ImageMetric(_precision, ("abnormal",), in_overview=False),
    "sensitivity": ImageMetric(_sensitivity, ("abnormal",)),
    "specificity": ImageMetric(_specificity, ("normal",)),
}
"""Metrics of the decisions at a threshold. A new entry here is in every table, report and interval."""

IMAGE_METRICS: dict[str, ImageMetric] = {**RANK_METRICS, **THRESHOLD_METRICS}
"""All of them, in the order in which they are shown."""


def image_metrics(scores: npt.ArrayLike, labels: npt.ArrayLike, threshold: float | None = None) -> dict[str, float]:
    """Compute all image-level metrics.

    A metric that needs a class which has no image is NaN, and the log says why. Precision is 0 where nothing is called
    abnormal. AUPR is the step-wise average precision, not a trapezoidal area.

    Args:
        scores: (n,) anomaly scores of any scale, higher is more abnormal.
        labels: (n,) 0 for normal, 1 for abnormal.
        threshold: Images with a score of at least this are called abnormal. Choose it on other images than these
            (:mod:`anomalib_cxr.metrics.thresholds`). ``None`` leaves the metrics of decisions out.

    Returns:
        AUROC, AUPR, and with a threshold F1, accuracy, precision, sensitivity and specificity, in [0, 1] or NaN.

    Raises:
        ValueError: If scores or labels are unusable, see :func:`~anomalib_cxr.metrics.checks.check_labelled`.
    """
    values, truth = check_labelled(scores, labels)
    computed = weighted_metrics(values, truth, np.ones((1, len(values))), threshold)
    missing = absent_class(truth)
    if missing:
        undefined = [name for name, value in computed.items() if np.isnan(value[0])]
        logger.warning("%s are not defined (NaN): no image is %s.", ", ".join(undefined), missing)
    elif values.min() == values.max():
        logger.warning("All %d scores are equal (%g): the model tells no image from another.", len(values), values[0])
    return {name: float(value[0]) for name, value in computed.items()}


def weighted_metrics(
    scores: npt.NDArray[np.float64],
    labels: npt.NDArray[np.bool_],
    weights: npt.NDArray[Any],
    threshold: float | None = None,
) -> dict[str, npt.NDArray[np.float64]]:
    """Compute all image-level metrics under several weightings of the images.

    Args:
        scores: (n,) finite anomaly scores.
        labels: (n,) True for abnormal.
        weights: (B, n) weights of the images, at least 0.
        threshold: As in :func:`image_metrics`.

    Returns:
        Metric and its B values; NaN where a class that it needs has no weight.
    """
    weights = np.asarray(weights, dtype=np.float64)
    absent = {"normal": weights[:, ~labels].sum(axis=1) == 0, "abnormal": weights[:, labels].sum(axis=1) == 0}
    of_ranks = _rank(scores, labels, weights)
    computed = {name: (metric, metric.compute(of_ranks)) for name, metric in RANK_METRICS.items()}
    if threshold is not None:
        decided = _decide(scores >= threshold, labels, weights)
        computed |= {name: (metric, metric.compute(decided)) for name, metric in THRESHOLD_METRICS.items()}
    return {
        name: np.where(np.any([absent[label] for label in metric.needs], axis=0), np.nan, values)
        for name, (metric, values) in computed.items()
    }


def _rank(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_], weights: npt.NDArray[Any]) -> Ranks:
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    ties = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    weights, abnormal = weights[:, order], labels[order]
    return Ranks(np.add.reduceat(weights * ~abnormal, ties, axis=1), np.add.reduceat(weights * abnormal, ties, axis=1))


def _decide(called: npt.NDArray[np.bool_], labels: npt.NDArray[np.bool_], weights: npt.NDArray[Any]) -> Decisions:
    masks = (called & labels, called & ~labels, ~called & labels, ~called & ~labels)
    return Decisions(*(weights @ mask.astype(np.float64) for mask in masks))


def _ratio(part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Divide, 0 where there is nothing to divide by."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)

"""Image-level metrics as functions of scores and labels, for many weightings of the images at once.

One row of weights is one draw of a bootstrap (how often each image was drawn); a single row of ones gives the metrics
themselves. All are those of scikit-learn with ``sample_weight``.
"""

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from anomalib_cxr.metrics.checks import absent_class, check_labelled

logger = logging.getLogger(__name__)

RANK_METRICS = ("AUROC", "AUPR")
"""Metrics of the order of the scores."""

THRESHOLD_METRICS = ("F1", "accuracy", "precision", "sensitivity", "specificity")
"""Metrics of the decisions at a threshold."""

_NEEDS_NORMAL = {"AUROC", "AUPR", "specificity"}
_NEEDS_ABNORMAL = {"AUROC", "AUPR", "F1", "precision", "sensitivity"}


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
    computed = _rank_metrics(scores, labels, weights)
    if threshold is not None:
        computed |= _threshold_metrics(scores >= threshold, labels, weights)
    normal, abnormal = weights[:, ~labels].sum(axis=1), weights[:, labels].sum(axis=1)
    for name, value in computed.items():
        undefined = np.zeros(len(weights), dtype=bool)
        if name in _NEEDS_NORMAL:
            undefined |= normal == 0
        if name in _NEEDS_ABNORMAL:
            undefined |= abnormal == 0
        computed[name] = np.where(undefined, np.nan, value)
    return computed


def _rank_metrics(
    scores: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_], weights: npt.NDArray[np.float64]
) -> dict[str, npt.NDArray[np.float64]]:
    """AUROC, where a tie counts half, and average precision, where tied images enter together."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    ties = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    abnormal = np.add.reduceat(weights[:, order] * labels[order], ties, axis=1)
    normal = np.add.reduceat(weights[:, order] * ~labels[order], ties, axis=1)
    below = np.cumsum(normal, axis=1) - normal
    won = (abnormal * (below + 0.5 * normal)).sum(axis=1)
    found = abnormal[:, ::-1].cumsum(axis=1)
    called = found + normal[:, ::-1].cumsum(axis=1)
    precision = _ratio(found, called)
    total = abnormal.sum(axis=1)
    return {
        "AUROC": _ratio(won, total * normal.sum(axis=1)),
        "AUPR": _ratio((abnormal[:, ::-1] * precision).sum(axis=1), total),
    }


def _threshold_metrics(
    called: npt.NDArray[np.bool_], labels: npt.NDArray[np.bool_], weights: npt.NDArray[np.float64]
) -> dict[str, npt.NDArray[np.float64]]:
    true_positive, false_positive, false_negative, true_negative = (
        weights @ mask.astype(np.float64)
        for mask in (called & labels, called & ~labels, ~called & labels, ~called & ~labels)
    )
    return {
        "F1": _ratio(2 * true_positive, 2 * true_positive + false_positive + false_negative),
        "accuracy": _ratio(true_positive + true_negative, weights.sum(axis=1)),
        "precision": _ratio(true_positive, true_positive + false_positive),
        "sensitivity": _ratio(true_positive, true_positive + false_negative),
        "specificity": _ratio(true_negative, true_negative + false_positive),
    }


def _ratio(part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Divide, 0 where there is nothing to divide by."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)

"""ROC and precision-recall curves with bands by a bootstrap over patients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from anomalib_cxr.metrics.bootstrap import Run, patient_weights
from anomalib_cxr.metrics.checks import absent_class, check_labelled

Numbers = npt.NDArray[np.float64]
Curve = Callable[[Numbers, Numbers, Numbers], Numbers]
"""Values of a curve at a grid of x, from the counts above each threshold, highest threshold first."""


class CurveBand(NamedTuple):
    """A curve and its pointwise band, all (points,), in [0, 1]."""

    x: Numbers
    y: Numbers
    low: Numbers
    high: Numbers


def roc_band(run: Run, draws: int = 2000, level: float = 0.95, seed: int = 0, points: int = 201) -> CurveBand:
    """Compute the ROC curve, and the percentiles of the sensitivity at each false-positive rate.

    Args:
        run: Scores of one model on one set of test images.
        draws: Draws of patients; those with only one class are left out.
        level: Share of the draws inside the band, in (0, 1).
        seed: Seed of the draws.
        points: False-positive rates, evenly spaced from 0 to 1.

    Returns:
        ``x`` the false-positive rate, ``y`` the sensitivity; straight lines between thresholds.

    Raises:
        ValueError: If a class is missing, an argument is out of range, or scores or labels are unusable.
    """
    return _band(run, draws, level, seed, points, _sensitivities)


def precision_recall_band(
    run: Run, draws: int = 2000, level: float = 0.95, seed: int = 0, points: int = 201
) -> CurveBand:
    """Compute the precision-recall curve, and the percentiles of the precision at each recall.

    Args:
        run: Scores of one model on one set of test images.
        draws: Draws of patients; those with only one class are left out.
        level: Share of the draws inside the band, in (0, 1).
        seed: Seed of the draws.
        points: Recalls, evenly spaced from 0 to 1.

    Returns:
        ``x`` the recall, ``y`` the precision at the highest threshold that reaches it; the area under these steps is
        the AUPR of :func:`~anomalib_cxr.metrics.image_level.image_metrics`.

    Raises:
        ValueError: As :func:`roc_band`.
    """
    return _band(run, draws, level, seed, points, _precisions)


def _band(run: Run, draws: int, level: float, seed: int, points: int, curve: Curve) -> CurveBand:
    scores, labels = check_labelled(run.scores, run.labels)
    missing = absent_class(labels)
    if missing:
        msg = f"There is no curve: none of the {len(labels)} images is {missing}."
        raise ValueError(msg)
    if draws < 1 or points < 2 or not 0 < level < 1:
        msg = f"A band needs draws >= 1, points >= 2 and level in (0, 1), got {draws}, {points} and {level}."
        raise ValueError(msg)
    if len(run.patients) != len(scores):
        msg = f"There are {len(scores)} scores and {len(run.patients)} patients: give one patient an image."
        raise ValueError(msg)
    order = np.argsort(-scores, kind="stable")
    labels = labels[order]
    ties = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])
    grid = np.linspace(0, 1, points)

    def curves(weights: npt.NDArray[Any]) -> Numbers:
        """Rows of weights, in the order of the images, to the rows of their curves; rows of one class are left out."""
        weights = weights[:, order].astype(np.float64)
        found = np.add.reduceat(weights * labels, ties, axis=1).cumsum(axis=1)
        alarms = np.add.reduceat(weights * ~labels, ties, axis=1).cumsum(axis=1)
        both = (found[:, -1] > 0) & (alarms[:, -1] > 0)
        rows = [curve(f, a, grid) for f, a in zip(found[both], alarms[both], strict=True)]
        return np.array(rows).reshape(-1, points)

    names = {patient: index for index, patient in enumerate(dict.fromkeys(run.patients))}
    index = np.array([names[patient] for patient in run.patients])
    drawn = np.concatenate([curves(weights) for weights in patient_weights(index, len(names), draws, seed)])
    low, high = np.full((2, points), np.nan)
    if len(drawn):
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return CurveBand(grid, curves(np.ones((1, len(scores))))[0], low, high)


def _sensitivities(found: Numbers, alarms: Numbers, grid: Numbers) -> Numbers:
    # Of several thresholds with the same false-positive rate, np.interp takes the last, which finds most.
    return np.interp(grid, np.r_[0, alarms / alarms[-1]], np.r_[0, found / found[-1]])


def _precisions(found: Numbers, alarms: Numbers, grid: Numbers) -> Numbers:
    recall = found / found[-1]
    # Recall 0 would be reached by calling nothing abnormal, which has no precision: the first step is drawn back to it.
    reached = np.maximum(np.searchsorted(recall, grid - 1e-12, side="left"), np.argmax(recall > 0))
    return found[reached] / (found[reached] + alarms[reached])

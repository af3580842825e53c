"""Thresholds and operating points. Give these functions validation scores; a threshold chosen on test is none.

An image is called abnormal if its score is at least the threshold.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from anomalib_cxr.metrics.checks import absent_class, check_labelled, check_scores

ThresholdRule = Literal["best_f1", "mid_range", "sensitivity", "false_positive_rate"]
"""All rules: two that need nothing more, and those of :data:`TARGETED`."""

TARGETED = ("sensitivity", "false_positive_rate")
"""Rules that need a target, in (0, 1)."""


class OperatingPoint(NamedTuple):
    """A threshold and what it gives on the images that it was chosen on."""

    threshold: float
    sensitivity: float
    specificity: float


def choose_threshold(scores: npt.ArrayLike, labels: npt.ArrayLike, rule: str | Mapping[str, float]) -> float:
    """Choose a threshold on validation scores by a rule.

    Args:
        scores: (n,) validation scores.
        labels: (n,) 0 for normal, 1 for abnormal.
        rule: ``"best_f1"``; ``"mid_range"``, half-way between the lowest and the highest score; or a rule with its
            target: ``{"sensitivity": s}``, or ``{"false_positive_rate": f}`` from normal images alone.

    Returns:
        Score from which on an image is called abnormal.

    Raises:
        ValueError: If the rule is unknown, or the validation images do not allow it.
    """
    check_rule(rule)
    if rule == "best_f1":
        return best_f1_threshold(scores, labels)
    if isinstance(rule, str):
        values = check_scores(scores)
        return float((values.min() + values.max()) / 2)
    ((name, target),) = rule.items()
    if name == "sensitivity":
        return sensitivity_threshold(scores, labels, target)
    _, abnormal = check_labelled(scores, labels)
    return normal_threshold(np.asarray(scores)[~abnormal], target)  # in their own type


def check_rule(rule: str | Mapping[str, float]) -> None:
    """Refuse an unknown rule: before a training rather than after it.

    Args:
        rule: As in :func:`choose_threshold`.

    Raises:
        ValueError: If it is none of those.
    """
    plain = [name for name in get_args(ThresholdRule) if name not in TARGETED]
    if isinstance(rule, str) and rule in plain:
        return
    if isinstance(rule, Mapping) and len(rule) == 1:
        ((name, target),) = rule.items()
        if name in TARGETED and 0 < target < 1:
            return
    targeted = ", ".join(f"{{{name}: share}}" for name in TARGETED)
    msg = f"threshold must be {', '.join(plain)}, or one of {targeted} with 0 < share < 1, got {rule!r}."
    raise ValueError(msg)


def best_f1_threshold(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Choose the threshold of the highest F1; among equals the highest threshold.

    Args:
        scores: (n,) validation scores.
        labels: (n,) 0 for normal, 1 for abnormal.

    Returns:
        One of the scores.

    Raises:
        ValueError: If a class is missing, or scores or labels are unusable.
    """
    thresholds, found, alarms, abnormal, _ = _counts(scores, labels)
    f1 = 2 * found / (found + alarms + abnormal)
    return float(thresholds[np.argmax(f1)])


def sensitivity_threshold(scores: npt.ArrayLike, labels: npt.ArrayLike, sensitivity: float) -> float:
    """Choose the highest threshold that finds a share of the abnormal images.

    Args:
        scores: (n,) validation scores.
        labels: (n,) 0 for normal, 1 for abnormal.
        sensitivity: Share to find, in (0, 1].

    Returns:
        One of the scores.

    Raises:
        ValueError: If a class is missing, ``sensitivity`` is out of range, or scores or labels are unusable.
    """
    return specificity_at_sensitivity(scores, labels, sensitivity).threshold


def normal_threshold(normal_scores: npt.ArrayLike, false_positive_rate: float) -> float:
    """Choose a threshold without any abnormal image, from normal ones alone.

    It calls exactly those images abnormal whose conformal p-value
    (:func:`~anomalib_cxr.metrics.conformal.conformal_p_values`) is at most the false-positive rate, so that new normal
    images, exchangeable with these, are called abnormal with at most that probability.

    Args:
        normal_scores: (n,) scores of normal validation images, in the type that new scores will have.
        false_positive_rate: Highest probability of a false alarm, in (0, 1).

    Returns:
        Threshold just above the highest score that must not alarm: the next number of the scores' own type. (That of a
        longer type would be rounded back by a comparison in theirs, and let whole groups of images alarm.)

    Raises:
        ValueError: If the rate is out of range, or too low to be told from so few images.
    """
    scores = check_scores(normal_scores, what="scores of normal images")
    _check_share("false_positive_rate", false_positive_rate, below_one=True)
    rank = lowest_alarm(len(scores), false_positive_rate)
    if rank < 1:
        needed = int(np.ceil(1 / false_positive_rate - 1e-9)) - 1
        msg = (
            f"A false-positive rate of {false_positive_rate:g} needs scores of at least {needed} normal images, "
            f"there are {len(scores)}."
        )
        raise ValueError(msg)
    return _just_above(np.sort(scores)[::-1][rank - 1], normal_scores)


def lowest_alarm(number: int, false_positive_rate: float) -> int:
    """Rank that a score must beat among those of normal images to be an alarm.

    Args:
        number: Normal images, n.
        false_positive_rate: Highest probability of a false alarm, in (0, 1).

    Returns:
        k = ⌊rate · (n + 1)⌋: what is above the k-th highest score has a conformal p-value of at most the rate, and
        k / (n + 1) is the probability that a new normal image is. 0 where n is too small for any alarm.
    """
    # Rounding must not take a whole image off: 0.1 · (9 + 1) is one alarm.
    return int(np.floor(false_positive_rate * (number + 1) + 1e-9))


def sensitivity_at_specificity(scores: npt.ArrayLike, labels: npt.ArrayLike, specificity: float) -> OperatingPoint:
    """Find the highest sensitivity among the thresholds of at least a specificity.

    Args:
        scores: (n,) scores.
        labels: (n,) 0 for normal, 1 for abnormal.
        specificity: Lowest specificity, in (0, 1].

    Returns:
        The operating point. Its threshold lies above all scores where only calling nothing abnormal is so specific.

    Raises:
        ValueError: If a class is missing, ``specificity`` is out of range, or scores or labels are unusable.
    """
    _check_share("specificity", specificity)
    thresholds, found, alarms, abnormal, normal = _counts(scores, labels)
    allowed = np.flatnonzero(1 - alarms / normal >= specificity - 1e-12)
    if not len(allowed):
        return OperatingPoint(_just_above(thresholds[0], scores), 0.0, 1.0)
    best = allowed[np.argmax(found[allowed])]
    return OperatingPoint(float(thresholds[best]), float(found[best] / abnormal), float(1 - alarms[best] / normal))


def specificity_at_sensitivity(scores: npt.ArrayLike, labels: npt.ArrayLike, sensitivity: float) -> OperatingPoint:
    """Find the highest specificity among the thresholds of at least a sensitivity.

    Args:
        scores: (n,) scores.
        labels: (n,) 0 for normal, 1 for abnormal.
        sensitivity: Lowest sensitivity, in (0, 1].

    Returns:
        The operating point.

    Raises:
        ValueError: If a class is missing, ``sensitivity`` is out of range, or scores or labels are unusable.
    """
    _check_share("sensitivity", sensitivity)
    thresholds, found, alarms, abnormal, normal = _counts(scores, labels)
    best = np.flatnonzero(found / abnormal >= sensitivity - 1e-12)[0]
    return OperatingPoint(float(thresholds[best]), float(found[best] / abnormal), float(1 - alarms[best] / normal))


def _counts(
    scores: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[Any], npt.NDArray[Any], int, int]:
    """Distinct scores, highest first; abnormal and normal images of at least each; how many there are of both."""
    values, truth = check_labelled(scores, labels)
    missing = absent_class(truth)
    if missing:
        msg = f"A threshold cannot be chosen: none of the {len(values)} images is {missing}."
        raise ValueError(msg)
    order = np.argsort(-values, kind="stable")
    values, truth = values[order], truth[order]
    last = np.flatnonzero(np.r_[values[1:] != values[:-1], True])
    found, alarms = np.cumsum(truth)[last], np.cumsum(~truth)[last]
    return values[last], found, alarms, int(truth.sum()), int((~truth).sum())


def _just_above(score: np.float64, scores: npt.ArrayLike) -> float:
    """The next number after a score in the type of the scores, float64 where that is none of NumPy's."""
    kind = np.asarray(scores).dtype
    kind = kind if kind in (np.float16, np.float32) else np.dtype(np.float64)
    return float(np.nextafter(kind.type(score), kind.type(np.inf)))


def _check_share(name: str, value: float, below_one: bool = False) -> None:
    if not (0 < value < 1 or (value == 1 and not below_one)):
        msg = f"{name} must lie in (0, {'1)' if below_one else '1]'}, got {value}."
        raise ValueError(msg)

"""Checks of scores and labels that every metric here begins with."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_NAMED = 5


def check_scores(
    scores: npt.ArrayLike, images: Sequence[Any] | None = None, what: str = "scores"
) -> npt.NDArray[np.float64]:
    """Check that scores are finite numbers.

    Args:
        scores: (n,) anomaly scores, higher is more abnormal, of any scale.
        images: (n,) names for the message.
        what: What they are, for the message.

    Returns:
        (n,) float64.

    Raises:
        ValueError: If there are none, they are not one-dimensional, or any is NaN or infinite; the images are named.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        msg = f"{what} must be a list of at least one number, got the shape {values.shape}."
        raise ValueError(msg)
    broken = np.flatnonzero(~np.isfinite(values))
    if len(broken):
        names = [str(index if images is None else images[index]) for index in broken[:_NAMED]]
        more = ", ..." if len(broken) > _NAMED else ""
        kind = "images" if images is not None else "positions"
        msg = (
            f"{len(broken)} of {len(values)} {what} are NaN or infinite, at the {kind} {', '.join(names)}{more}: "
            "the model diverged, or was trained in too low a precision."
        )
        raise ValueError(msg)
    return values


def check_labelled(
    scores: npt.ArrayLike, labels: npt.ArrayLike, images: Sequence[Any] | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Check scores together with their labels.

    Args:
        scores: (n,) anomaly scores.
        labels: (n,) 0 or False for normal, 1 or True for abnormal.
        images: (n,) names for messages.

    Returns:
        (n,) float64 scores and (n,) bool labels.

    Raises:
        ValueError: If scores are not finite, labels are neither 0 nor 1, or their numbers differ.
    """
    values = check_scores(scores, images)
    truth = np.asarray(labels)
    if truth.shape != values.shape:
        msg = f"There are {len(values)} scores and labels of the shape {truth.shape}: give one label a score."
        raise ValueError(msg)
    if not np.isin(truth, (0, 1)).all():
        odd = sorted({str(value) for value in truth[~np.isin(truth, (0, 1))]})
        msg = f"Labels must be 0 (normal) or 1 (abnormal), got {odd[:_NAMED]}."
        raise ValueError(msg)
    return values, truth.astype(bool)


def absent_class(labels: npt.NDArray[np.bool_]) -> str | None:
    """Name the class that has no image.

    Args:
        labels: (n,) True for abnormal.

    Returns:
        "abnormal", "normal", or None where both are there.
    """
    if not labels.any():
        return "abnormal"
    return "normal" if labels.all() else None

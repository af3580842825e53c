"""Confidence intervals by a bootstrap over patients.

Several images of one patient are alike, so that a bootstrap over images gives intervals that are too narrow. Here
patients are drawn with replacement, with all their images.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from anomalib_cxr.metrics.checks import check_labelled
from anomalib_cxr.metrics.image_level import weighted_metrics

logger = logging.getLogger(__name__)

_NUMBERS_AT_ONCE = 2_000_000


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float
    undefined: int = 0
    """Draws that held only one class, so that the metric could not be computed; they are left out."""


class Run(NamedTuple):
    """Scores of one model on one set of test images."""

    scores: npt.ArrayLike
    labels: npt.ArrayLike
    patients: Sequence[Any]
    threshold: float | None = None


def bootstrap_intervals(
    runs: Run | Sequence[Run], draws: int = 2000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Percentile intervals of all image-level metrics.

    With several runs (folds, seeds), the intervals are those of the mean over the runs: one draw of patients serves
    all of them, so that folds, which share no patient, and seeds, which share all, are both treated rightly. The
    interval says what other patients would change; what another training would change, the spread of the runs says.

    Args:
        runs: One run, or several to take the mean of.
        draws: Draws of patients.
        level: Share of the draws inside the interval, in (0, 1).
        seed: Seed of the draws.

    Returns:
        Metric, as :func:`~anomalib_cxr.metrics.image_level.image_metrics` names it, and its interval; NaN where no
        draw holds what the metric needs.

    Raises:
        ValueError: If an argument is out of range, or scores, labels and patients do not fit together.
    """
    draws_of = _bootstrap([runs] if isinstance(runs, Run) else runs, draws, seed)
    return {name: percentile_interval(values, level) for name, values in draws_of.items()}


def bootstrap_difference(a: Run, b: Run, draws: int = 2000, level: float = 0.95, seed: int = 0) -> dict[str, Interval]:
    """Percentile intervals of the difference ``a - b`` of two models, paired by drawing the same patients for both.

    Args:
        a: Run of one model.
        b: Run of the other.
        draws: Draws of patients.
        level: Share of the draws inside the interval, in (0, 1).
        seed: Seed of the draws.

    Returns:
        Metric and the interval of its difference; only metrics that both runs have.

    Raises:
        ValueError: As :func:`bootstrap_intervals`.
    """
    universe = _patients([a, b])
    of_a, of_b = (_bootstrap([run], draws, seed, universe) for run in (a, b))
    return {name: percentile_interval(of_a[name] - of_b[name], level) for name in of_a if name in of_b}


def percentile_interval(values: npt.NDArray[np.float64], level: float = 0.95) -> Interval:
    """Percentile interval of bootstrap draws.

    Args:
        values: (B,) draws; NaN ones are left out and counted.
        level: Share of the draws inside the interval, in (0, 1).

    Returns:
        The interval; NaN if no draw is left.

    Raises:
        ValueError: If ``level`` is out of range.
    """
    if not 0 < level < 1:
        msg = f"level must lie in (0, 1), got {level}."
        raise ValueError(msg)
    defined = values[~np.isnan(values)]
    undefined = len(values) - len(defined)
    if not len(defined):
        return Interval(np.nan, np.nan, undefined)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), undefined)


def patient_weights(
    patients: npt.NDArray[np.intp], number: int, draws: int, seed: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Draw patients with replacement.

    Args:
        patients: (n,) index of each image's patient.
        number: Patients in all.
        draws: Draws in all.
        seed: Seed of the draws.

    Yields:
        (b, n) how often each image is drawn, in blocks that fit into memory; ``draws`` rows together.
    """
    generator = np.random.default_rng(seed)
    block = max(1, _NUMBERS_AT_ONCE // number)
    for start in range(0, draws, block):
        counts = generator.multinomial(number, np.full(number, 1 / number), size=min(block, draws - start))
        yield counts[:, patients]


def _bootstrap(
    runs: Sequence[Run], draws: int, seed: int, universe: Mapping[Any, int] | None = None
) -> dict[str, npt.NDArray[np.float64]]:
    """Draws of each metric's mean over the runs."""
    if not runs:
        msg = "There is no run to compute an interval of."
        raise ValueError(msg)
    if draws < 1:
        msg = f"draws must be at least 1, got {draws}."
        raise ValueError(msg)
    if len({run.threshold is None for run in runs}) > 1:
        msg = "Some runs have a threshold and some have none: give one to all runs or to none."
        raise ValueError(msg)
    universe = _patients(runs) if universe is None else universe
    total: dict[str, npt.NDArray[np.float64]] = {}
    for run in runs:
        scores, labels = check_labelled(run.scores, run.labels)
        if len(run.patients) != len(scores):
            msg = f"There are {len(scores)} scores and {len(run.patients)} patients: give one patient an image."
            raise ValueError(msg)
        index = np.array([universe[patient] for patient in run.patients])
        blocks = [
            weighted_metrics(scores, labels, weights, run.threshold)
            for weights in patient_weights(index, len(universe), draws, seed)
        ]
        for name in blocks[0]:
            values = np.concatenate([block[name] for block in blocks])
            total[name] = total.get(name, np.zeros(draws)) + values / len(runs)
    return total


def _patients(runs: Sequence[Run]) -> dict[Any, int]:
    """Number the patients of all runs, in the order of their first image."""
    return {patient: index for index, patient in enumerate(dict.fromkeys(p for run in runs for p in run.patients))}

"""The figures of a report: of each run, and of runs against each other."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from anomalib_cxr.metrics.bootstrap import Interval, Run, bootstrap_difference, bootstrap_intervals
from anomalib_cxr.metrics.curves import CurveBand, precision_recall_band, roc_band
from anomalib_cxr.metrics.delong import DeLongTest, delong_test
from anomalib_cxr.metrics.findings import finding_table, patients_or_images
from anomalib_cxr.metrics.image_level import image_metrics
from anomalib_cxr.metrics.predictions import PredictionsError, check_same_images
from anomalib_cxr.metrics.thresholds import choose_threshold
from anomalib_cxr.pipelines.report.runs import FinishedRun

logger = logging.getLogger(__name__)

ALL_PAIRS = 5
"""Up to so many runs each is compared with each; of more, each with a reference."""

_FEW_PATIENTS = 10


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn: over patients."""

    draws: int = 2000
    level: float = 0.95


class OperatingPoint(NamedTuple):
    """A threshold chosen on validation, and what it gives there and on test."""

    rule: str
    threshold: float | None
    problem: str
    validation: dict[str, float]
    test: dict[str, float]
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class Evaluation:
    """The figures of one run; what cannot be computed is left out, and ``notes`` says why."""

    finished: FinishedRun
    labelled: pd.DataFrame
    """Rows of the test that have a label."""
    points: list[OperatingPoint]
    values: dict[str, float]
    """AUROC and AUPR."""
    intervals: dict[str, Interval]
    roc: CurveBand | None
    precision_recall: CurveBand | None
    findings: pd.DataFrame | None
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.finished.name

    @property
    def chosen(self) -> OperatingPoint | None:
        """First operating point that could be chosen: false positives and negatives are those of it."""
        return next((point for point in self.points if point.threshold is not None), None)

    @property
    def has_both(self) -> bool:
        """Whether there are normal and abnormal test images."""
        return self.labelled["label"].nunique() == 2


class Comparison(NamedTuple):
    """Two runs on the same images."""

    a: str
    b: str
    test: DeLongTest
    interval: Interval
    """Of the difference of the AUROCs, over patients."""
    adjusted: float
    """P-value after Holm's correction for the number of comparisons on the same images; NaN where there is none."""


def evaluate_run(run: FinishedRun, sensitivity: float, false_positive_rate: float, bootstrap: Bootstrap) -> Evaluation:
    """Compute the figures of a run.

    Args:
        run: The run.
        sensitivity: Target of the second operating point, in (0, 1).
        false_positive_rate: Of the third, from normal images alone, in (0, 1).
        bootstrap: How intervals are drawn.

    Returns:
        Its figures.
    """
    notes = []
    test = run.test
    labelled = test[test["label"] != ""].reset_index(drop=True)
    if len(labelled) < len(test):
        notes.append(f"{len(test) - len(labelled)} of {len(test)} images have no label and count in no metric.")
    nameless = int((labelled["patient_id"] == "").sum())
    if nameless:
        notes.append(
            f"{nameless} images have no patient: each is taken for a patient of its own, and intervals are too narrow "
            "if some share one."
        )
    notes += _few_patients(labelled)
    if run.validation is None:
        notes.append(f"No threshold could be chosen on validation images: {run.problem}.")
    if len(test) > 1 and test["raw_score"].nunique() == 1:
        notes.append(f"All scores are equal ({test['raw_score'].iloc[0]:g}): the model tells no image from another.")
    if len(run.split_hashes) > 1:
        notes.append("The predictions are of several splits: their split hashes differ.")
    points = [
        _operating_point(run, labelled, rule, name, bootstrap)
        for name, rule in (
            ("best F1", "best_f1"),
            (f"sensitivity {sensitivity:g}", {"sensitivity": sensitivity}),
            (
                f"false-positive rate {false_positive_rate:g}, normal images alone",
                {"false_positive_rate": false_positive_rate},
            ),
        )
        if run.validation is not None
    ]
    values: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    roc = precision_recall = findings = None
    if labelled["label"].nunique() == 2:
        whole = _run(labelled, None)
        values = image_metrics(whole.scores, whole.labels)
        intervals = bootstrap_intervals(whole, bootstrap.draws, bootstrap.level)
        roc = roc_band(whole, bootstrap.draws, bootstrap.level)
        precision_recall = precision_recall_band(whole, bootstrap.draws, bootstrap.level)
    elif len(labelled):
        notes.append(f"All labelled images are {labelled['label'].iloc[0]}: there are no curves, AUROC or AUPR.")
    evaluation = Evaluation(run, labelled, points, values, intervals, roc, precision_recall, None, notes)
    if evaluation.has_both and evaluation.chosen is not None:
        threshold = evaluation.chosen.threshold
        findings = finding_table(labelled, float(threshold or 0.0), draws=bootstrap.draws, level=bootstrap.level)
    return Evaluation(run, labelled, points, values, intervals, roc, precision_recall, findings, notes)


def _few_patients(labelled: pd.DataFrame) -> list[str]:
    """Say it where a label has so few patients that drawing them again tells little."""
    patients = pd.Series(patients_or_images(labelled), index=labelled.index)
    numbers = {label: patients[labelled["label"] == label].nunique() for label in sorted(set(labelled["label"]))}
    few = [f"{number} with {label} images" for label, number in numbers.items() if number < _FEW_PATIENTS]
    return [f"Few patients, {' and '.join(few)}: the intervals are too narrow."] if few else []


def _operating_point(
    run: FinishedRun, labelled: pd.DataFrame, rule: str | dict[str, float], name: str, bootstrap: Bootstrap
) -> OperatingPoint:
    validation = run.validation
    if validation is None:
        raise ValueError
    validation = validation[validation["label"] != ""]
    try:
        threshold = choose_threshold(validation["raw_score"], validation["label"] == "abnormal", rule)
    except ValueError as error:
        return OperatingPoint(name, None, str(error), {}, {}, {})
    on_validation, on_test = _run(validation, threshold), _run(labelled, threshold)
    return OperatingPoint(
        name,
        threshold,
        "",
        image_metrics(on_validation.scores, on_validation.labels, threshold),
        image_metrics(on_test.scores, on_test.labels, threshold) if len(labelled) else {},
        bootstrap_intervals(on_test, bootstrap.draws, bootstrap.level) if len(labelled) else {},
    )


def _run(table: pd.DataFrame, threshold: float | None) -> Run:
    abnormal = (table["label"] == "abnormal").to_numpy()
    return Run(table["raw_score"].to_numpy(), abnormal, patients_or_images(table), threshold)


def group_by_images(evaluations: Sequence[Evaluation]) -> tuple[list[list[Evaluation]], list[str]]:
    """Group runs that were tested on the same images with the same labels: only those may be compared.

    Args:
        evaluations: Runs in order.

    Returns:
        The groups, and for each group but the first what sets it apart from the first.
    """
    groups: list[list[Evaluation]] = []
    refused: list[str] = []
    for one in evaluations:
        reason = ""
        for group in groups:
            try:
                check_same_images(group[0].finished.test, one.finished.test, group[0].name, one.name)
            except PredictionsError as error:
                reason = reason or str(error)
            else:
                group.append(one)
                break
        else:
            groups.append([one])
            if reason:
                refused.append(reason)
    return groups, refused


def same_scores(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """Find runs that repeat another: the best and the last weights of a training may be the same.

    Args:
        evaluations: Runs in order.

    Returns:
        Name of each run whose test images, labels and raw scores are all those of an earlier one, and the name of the
        first such.
    """
    first: dict[tuple[tuple[str, str, float], ...], str] = {}
    repeated = {}
    for one in evaluations:
        rows = one.finished.test.sort_values("image")[["image", "label", "raw_score"]]
        name = first.setdefault(tuple(rows.itertuples(index=False, name=None)), one.name)
        if name != one.name:
            repeated[one.name] = name
    return repeated


def choose_reference(group: Sequence[Evaluation], name: str | None) -> Evaluation | None:
    """Choose the run that the others are compared with.

    Args:
        group: Runs of the same images.
        name: The one asked for, if any.

    Returns:
        That run if it is among them, else the first where there are more than :data:`ALL_PAIRS`; None: each is compared
        with each.
    """
    asked = next((one for one in group if one.name == name), None)
    return asked or (group[0] if len(group) > ALL_PAIRS else None)


def compare(
    group: Sequence[Evaluation], bootstrap: Bootstrap, reference: Evaluation | None = None
) -> tuple[list[Comparison], str]:
    """Compare the AUROCs of runs on the same images.

    Args:
        group: Runs of the same images.
        bootstrap: How intervals are drawn.
        reference: One of them; None compares each run with each.

    Returns:
        The comparisons, each run with each or the reference with each of the others; and why there are none.
    """
    pairs = list(combinations(group, 2))
    if reference is not None:
        pairs = [(reference, other) for other in group if other is not reference]
    found: list[Comparison] = []
    try:
        for a, b in pairs:
            first = _run(a.labelled, None)
            same = check_same_images(a.labelled, b.labelled, a.name, b.name)
            second = Run(same["raw_score"].to_numpy(), first.labels, first.patients)
            test = delong_test(first.labels, first.scores, second.scores)
            interval = bootstrap_difference(first, second, bootstrap.draws, bootstrap.level)["AUROC"]
            found.append(Comparison(a.name, b.name, test, interval, np.nan))
    except ValueError as error:
        return [], str(error)
    adjusted = holm([one.test.p_value for one in found])
    return [one._replace(adjusted=value) for one, value in zip(found, adjusted, strict=True)], ""


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm, Scand. J. Stat. 1979); NaN ones stay and do not count.

    Args:
        p_values: In any order.

    Returns:
        Adjusted ones, in the same order: ``max`` over smaller or equal ones of ``(m − rank) p``, at most 1.
    """
    values = np.asarray(p_values, dtype=float)
    adjusted = np.full(len(values), np.nan)
    order = [index for index in np.argsort(values, kind="stable") if not np.isnan(values[index])]
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted.tolist()


def gallery(evaluation: Evaluation, count: int) -> dict[str, tuple[pd.DataFrame, int]]:
    """Choose the images to show.

    Args:
        evaluation: A run.
        count: Images of each kind.

    Returns:
        Title, and the images, first the most telling, and how many there are of the kind in all.
    """
    test, labelled, point = evaluation.finished.test, evaluation.labelled, evaluation.chosen
    falling = labelled.sort_values("raw_score", ascending=False, kind="stable")
    normal, abnormal = falling[falling["label"] == "normal"], falling[falling["label"] == "abnormal"][::-1]
    kinds = {"Highest scores": test.sort_values("raw_score", ascending=False, kind="stable")}
    if point is not None:
        kinds[f"Worst false positives (threshold: {point.rule})"] = normal[normal["raw_score"] >= point.threshold]
        kinds[f"Worst false negatives (threshold: {point.rule})"] = abnormal[abnormal["raw_score"] < point.threshold]
    elif (labelled["decision"] != "").any():
        kinds["Worst false positives (the run's own decisions)"] = normal[normal["decision"] == "abnormal"]
        kinds["Worst false negatives (the run's own decisions)"] = abnormal[abnormal["decision"] == "normal"]
    elif len(labelled):
        kinds["Normal images with the highest scores"] = normal
        kinds["Abnormal images with the lowest scores"] = abnormal
    return {title: (rows.head(count), len(rows)) for title, rows in kinds.items()}

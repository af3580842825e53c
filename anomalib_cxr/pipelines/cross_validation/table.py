"""The table of a cross-validation, from the predictions of its jobs."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from anomalib_cxr.files import read_json
from anomalib_cxr.metrics.bootstrap import Run, bootstrap_intervals
from anomalib_cxr.metrics.findings import patients_or_images
from anomalib_cxr.metrics.image_level import IMAGE_METRICS, image_metrics
from anomalib_cxr.metrics.predictions import (
    PredictionsError,
    check_apart,
    check_same_images,
    read_predictions,
)
from anomalib_cxr.metrics.thresholds import choose_threshold
from anomalib_cxr.pipelines.cross_validation.cost import COSTS
from anomalib_cxr.pipelines.cross_validation.plan import CrossValidationJob
from anomalib_cxr.pipelines.cross_validation.runner import read_done
from anomalib_cxr.run_folder import LAST_FOLDER, METRICS, PREDICTIONS, VALIDATION_PREDICTIONS

logger = logging.getLogger(__name__)

BEST, LAST = "best by validation labels", "last"


class Evaluated(NamedTuple):
    """One job's test."""

    job: CrossValidationJob
    checkpoint: str
    run: Run
    values: dict[str, float]
    costs: dict[str, float]
    pixel_values: dict[str, float]


def evaluate_jobs(
    jobs: Sequence[CrossValidationJob], results: Path, rule: str | Mapping[str, float] = "best_f1"
) -> tuple[list[Evaluated], dict[str, str]]:
    """Evaluate finished jobs.

    Args:
        jobs: Jobs that are done.
        results: Folder of the results.
        rule: How thresholds are chosen, see :func:`~anomalib_cxr.metrics.thresholds.choose_threshold`.

    Returns:
        What could be evaluated, twice for a model that chose its checkpoint by labels (with the chosen and with the
        last weights), and the reason for each job that could not.
    """
    evaluated, failed = [], {}
    first: dict[tuple[str, int | None], tuple[str, pd.DataFrame]] = {}
    for job in jobs:
        folder = results / job.name
        places = [(folder, LAST)]
        if (folder / LAST_FOLDER / PREDICTIONS).is_file():
            places = [(folder, BEST), (folder / LAST_FOLDER, LAST)]
        for place, checkpoint in places:
            try:
                test = read_predictions(place / PREDICTIONS)
                name, other = first.setdefault((job.data, job.fold), (job.name, test))
                check_same_images(other, test, name, job.name)
                validation = read_predictions(place / VALIDATION_PREDICTIONS)
                check_apart(validation, test)
                _check_labelled(validation, "validation")
                _check_labelled(test, "test")
                threshold = choose_threshold(validation["raw_score"], validation["label"] == "abnormal", rule)
                run = Run(test["raw_score"], test["label"] == "abnormal", patients_or_images(test), threshold)
                values = image_metrics(run.scores, run.labels, threshold)
                pixel_values = _pixel_values(place / METRICS)
            except (ValueError, OSError) as error:
                failed[job.name] = str(error)
                continue
            done = read_done(job, results)
            # Of a job that was cut off nobody knows the whole time; older versions noted less.
            costs = {name: np.nan if done.get(name) is None else done[name] for name in ("fit_seconds", *COSTS)}
            evaluated.append(Evaluated(job, checkpoint, run, values, costs, pixel_values))
    return evaluated, failed


def _check_labelled(predictions: pd.DataFrame, what: str) -> None:
    """Refuse images without label: they would count as normal."""
    nameless = predictions["image"][predictions["label"] == ""]
    if len(nameless):
        msg = f"{len(nameless)} of {len(predictions)} {what} images have no label, the first is {nameless.iloc[0]}."
        raise PredictionsError(msg)


def _pixel_values(path: Path) -> dict[str, float]:
    """Pixel-level metrics that the model's evaluator measured; none on data without masks."""
    measured = read_json(path) or {}
    return {name: float(value) for name, value in measured.items() if name.startswith("pixel_")}


def make_tables(
    evaluated: Sequence[Evaluated], planned: Mapping[tuple[str, str], int], draws: int = 2000, level: float = 0.95
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make the table of jobs and the table of models.

    Args:
        evaluated: As :func:`evaluate_jobs` gives it.
        planned: Planned number of jobs of each data set and model.
        draws: Draws of the bootstrap over patients.
        level: Level of the intervals.

    Returns:
        One row a job and checkpoint (``data``, ``model``, ``checkpoint``, ``fold``, ``seed``, ``threshold``, metrics),
        and one row a data set, model and checkpoint: ``jobs``, ``planned``, and for each metric its mean, ``_sd`` over
        the jobs (NaN for one), ``_low``, ``_high`` of the mean by bootstrap over patients, and ``_undefined``, the
        draws left out of that since they held no image of a label that the metric needs; ``fit_seconds`` and
        :data:`~anomalib_cxr.pipelines.cross_validation.cost.COSTS` in the mean, NaN where a job does not know; at last
        the mean and ``_sd`` of the pixel-level metrics that all jobs of the model measured.
    """
    single: list[dict[str, Any]] = []
    groups: dict[tuple[str, str, str], list[Evaluated]] = {}
    for one in evaluated:
        job = one.job
        key = {"data": job.data, "model": job.model, "checkpoint": one.checkpoint}
        single.append(
            {**key, "fold": job.fold, "seed": job.seed, "threshold": one.run.threshold}
            | {name: one.values[name] for name in IMAGE_METRICS}
            | one.costs
            | one.pixel_values
        )
        groups.setdefault((job.data, job.model, one.checkpoint), []).append(one)
    rows: list[dict[str, Any]] = []
    for (data, model, checkpoint), ones in groups.items():
        intervals = bootstrap_intervals([one.run for one in ones], draws, level)
        row: dict[str, Any] = {"data": data, "model": model, "checkpoint": checkpoint}
        row |= {"jobs": len(ones), "planned": planned[data, model]}
        for name in IMAGE_METRICS:
            low, high, undefined = intervals[name]
            row |= _mean_and_spread(name, [one.values[name] for one in ones])
            row |= {f"{name}_low": low, f"{name}_high": high, f"{name}_undefined": undefined}
        row |= {name: float(np.mean([one.costs[name] for one in ones])) for name in ones[0].costs}
        for name in [name for name in ones[0].pixel_values if all(name in one.pixel_values for one in ones)]:
            row |= _mean_and_spread(name, [one.pixel_values[name] for one in ones])
        rows.append(row)
    order = {key: index for index, key in enumerate(planned)}
    rows.sort(key=lambda row: (order[row["data"], row["model"]], row["checkpoint"]))
    return pd.DataFrame(single), pd.DataFrame(rows)


def _mean_and_spread(name: str, values: Sequence[float]) -> dict[str, float]:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
    return {name: float(np.mean(values)), f"{name}_sd": spread}


def to_markdown(table: pd.DataFrame, rule: str | Mapping[str, float], draws: int, level: float) -> str:
    """Write the table of models for people.

    Args:
        table: Second table of :func:`make_tables`.
        rule: How thresholds were chosen.
        draws: Draws of the bootstrap.
        level: Level of the intervals.

    Returns:
        Markdown with a line that says what the figures are.
    """
    pixel = [name for name in table.columns if name.startswith("pixel_") and not name.endswith("_sd")]
    costs = [name for name in COSTS if table[name].notna().any()]
    head = ["data", "model", "weights", "jobs", "fit, min", *(COSTS[name] for name in costs), *IMAGE_METRICS]
    head += [*(name.replace("_", " ") for name in pixel)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in table.to_dict("records"):
        cells = [row["data"], row["model"], row["checkpoint"], f"{row['jobs']}/{row['planned']}"]
        cells.append("–" if np.isnan(row["fit_seconds"]) else f"{row['fit_seconds'] / 60:.1f}")
        cells += ["–" if np.isnan(row[name]) else f"{row[name]:.3g}" for name in costs]
        cells += [f"{_shown(row, name)}{_interval(row, name)}" for name in IMAGE_METRICS]
        cells += ["" if np.isnan(row[name]) else _shown(row, name) for name in pixel]
        lines.append(f"| {' | '.join(cells)} |")
    shown = rule if isinstance(rule, str) else ", ".join(f"{name} {share}" for name, share in rule.items())
    lines.append("")
    lines.append(
        f"Mean ± standard deviation over jobs ({level:.0%} interval of the mean by {draws} draws of patients). "
        f"Threshold: {shown} on validation. Weights '{BEST}' were chosen with the labels of the validation images, as "
        f"published results are; '{LAST}' without any label, but for the threshold where its rule uses labels."
    )
    if (table[[f"{name}_undefined" for name in IMAGE_METRICS]] > 0).any(axis=None):
        lines[-1] += " Draws without an image of a label that a metric needs are left out of its interval and counted."
    if table[list(IMAGE_METRICS)].isna().any(axis=None):
        lines[-1] += " – stands where a test holds no image of such a label, in any of the jobs."
    if costs:
        lines[-1] += (
            " Time for an image is the network's own in the job's test, scoring and search included; memory is the "
            "most that the job's process held, training included."
        )
    if pixel:
        lines[-1] += " Pixel-level metrics are those of each model's own evaluator."
    return "\n".join(lines)


def _shown(row: Mapping[Any, Any], name: str) -> str:
    if np.isnan(row[name]):
        return "–"
    spread = "" if np.isnan(row[f"{name}_sd"]) else f" ± {row[f'{name}_sd']:.3f}"
    return f"{row[name]:.3f}{spread}"


def _interval(row: Mapping[Any, Any], name: str) -> str:
    """Interval and the number of draws that it leaves out; nothing where there is no figure."""
    low, high, undefined = (row[f"{name}_{end}"] for end in ("low", "high", "undefined"))
    if np.isnan(row[name]):
        return ""
    left_out = f", {undefined} draws left out" if undefined else ""
    return " (no interval)" if np.isnan(low) else f" ({low:.3f}–{high:.3f}{left_out})"

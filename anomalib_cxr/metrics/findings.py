"""Metrics by finding: each finding's images against all normal ones, as AnatPaste's Table II has them."""

import logging

import numpy as np
import pandas as pd

from anomalib_cxr.metrics.bootstrap import Run, bootstrap_intervals
from anomalib_cxr.metrics.checks import check_labelled
from anomalib_cxr.metrics.image_level import image_metrics

logger = logging.getLogger(__name__)

SEPARATOR = "|"
"""Between the findings of one image."""

_SHOWN = ("AUROC", "accuracy", "F1")


def finding_table(
    predictions: pd.DataFrame,
    threshold: float,
    min_cases: int = 10,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute AUROC, accuracy and F1 of each finding against all normal images.

    An image with several findings counts for each of them. A finding of fewer than ``min_cases`` images is shown
    without intervals.

    Args:
        predictions: Rows with ``image``, ``patient_id``, ``label``, ``findings`` and ``raw_score``, as
            :func:`~anomalib_cxr.metrics.predictions.read_predictions` gives them, of one test.
        threshold: Raw score from which on an image is called abnormal, chosen on validation.
        min_cases: Images that an interval needs.
        draws: Draws of the bootstrap over patients.
        level: Level of the intervals.
        seed: Seed of the bootstrap.

    Returns:
        One row a finding, most frequent first: ``finding``, ``cases``, ``normals``, and for each metric its value and
        ``<metric>_low``, ``<metric>_high``, NaN where there are too few cases. No rows where no image has a finding.

    Raises:
        ValueError: If there is no normal image, or a score is not finite.
    """
    labelled = predictions[predictions["label"] != ""]
    abnormal = (labelled["label"] == "abnormal").to_numpy()
    check_labelled(labelled["raw_score"], abnormal, labelled["image"].tolist())
    if abnormal.all():
        msg = "Findings are compared with normal images, and there is none among the predictions."
        raise ValueError(msg)
    listed = [
        {finding.strip() for finding in findings.split(SEPARATOR)} - {""} if sick else set()
        for findings, sick in zip(labelled["findings"].fillna(""), abnormal, strict=True)
    ]
    unnamed = int(sum(sick and not findings for findings, sick in zip(listed, abnormal, strict=True)))
    if unnamed:
        logger.info("%d of %d abnormal images have no finding and are in no row.", unnamed, int(abnormal.sum()))
    patients = patients_or_images(labelled)
    scores = labelled["raw_score"].to_numpy()
    rows = []
    for finding in sorted(set().union(*listed)):
        has = np.array([finding in findings for findings in listed])
        used = has | ~abnormal
        run = Run(scores[used], has[used], [patients[index] for index in np.flatnonzero(used)], threshold)
        values = image_metrics(run.scores, run.labels, threshold)
        enough = int(has.sum()) >= min_cases
        intervals = bootstrap_intervals(run, draws, level, seed) if enough else {}
        row: dict[str, object] = {"finding": finding, "cases": int(has.sum()), "normals": int((~abnormal).sum())}
        for name in _SHOWN:
            low, high = intervals[name][:2] if enough else (np.nan, np.nan)
            row |= {name: values[name], f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    columns = ["finding", "cases", "normals", *(f"{name}{end}" for name in _SHOWN for end in ("", "_low", "_high"))]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(["cases", "finding"], ascending=[False, True], ignore_index=True)


def patients_or_images(predictions: pd.DataFrame) -> list[str]:
    """Name the patient of each image, or the image itself where the patient is not known.

    Args:
        predictions: Rows with ``image`` and ``patient_id``.

    Returns:
        (n,) names for a bootstrap over patients. The log counts the images whose patient is unknown.
    """
    patients = predictions["patient_id"].fillna("").astype(str)
    unknown = patients == ""
    if unknown.any():
        logger.warning(
            "%d of %d images have no patient: each is taken for a patient of its own, and intervals are too narrow if "
            "some share one.",
            int(unknown.sum()),
            len(patients),
        )
    return patients.mask(unknown, "image " + predictions["image"].astype(str)).tolist()

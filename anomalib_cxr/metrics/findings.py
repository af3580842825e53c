"""Metrics by finding: each finding's images against all normal ones, as AnatPaste's Table II has them."""

import logging
from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches

import numpy as np
import pandas as pd

from anomalib_cxr.metrics.bootstrap import Run, bootstrap_intervals
from anomalib_cxr.metrics.checks import check_labelled
from anomalib_cxr.metrics.image_level import IMAGE_METRICS, image_metrics

logger = logging.getLogger(__name__)

SEPARATOR = "|"
"""Between the findings of one image."""

BY_FINDING = tuple(name for name, metric in IMAGE_METRICS.items() if metric.by_finding)
"""Metrics of each finding against all normal images."""
_NAMED = 20


def finding_key(finding: str) -> str:
    """Name by which findings are compared: "Pleural  Effusion" and "pleural effusion" are one.

    Args:
        finding: Name of a finding.

    Returns:
        The name without outer spaces, with single spaces, in lower case.
    """
    return " ".join(finding.split()).casefold()


def split_findings(cell: str) -> dict[str, str]:
    """Split the findings of one image.

    Args:
        cell: Findings joined by "|", "" for none.

    Returns:
        Name as it is written, but for its spaces, of each :func:`finding_key`.
    """
    return {finding_key(name): " ".join(name.split()) for name in cell.split(SEPARATOR) if name.strip()}


def count_findings(cells: Mapping[str, int]) -> dict[str, int]:
    """Count the images of each finding.

    Args:
        cells: Number of abnormal images with each text of findings, joined by "|".

    Returns:
        Images of each finding, most frequent first, under its most frequent spelling.
    """
    images: Counter[str] = Counter()
    spellings: dict[str, Counter[str]] = {}
    for cell, number in cells.items():
        for key, name in split_findings(cell).items():
            images[key] += number
            spellings.setdefault(key, Counter())[name] += number
    ordered = sorted(images, key=lambda key: (-images[key], key))
    return {min(spellings[key], key=lambda name: (-spellings[key][name], name)): images[key] for key in ordered}


def describe_absence(finding: str, counts: Mapping[str, int]) -> str:
    """Say that no image has a finding, which it may have been meant for, and which findings there are.

    Args:
        finding: Name that no image has.
        counts: Images of each finding, as :func:`count_findings` gives them.

    Returns:
        One sentence.
    """
    if not counts:
        return f"no abnormal image has the finding {finding!r}, nor any other"
    names = {finding_key(name): name for name in counts}
    nearest = get_close_matches(finding_key(finding), names, n=1)
    meant = f", did you mean {names[nearest[0]]!r}?" if nearest else ";"
    listed = ", ".join(f"{name} ({number})" for name, number in list(counts.items())[:_NAMED])
    more = f" and {len(counts) - _NAMED} more" if len(counts) > _NAMED else ""
    return f"no abnormal image has the finding {finding!r}{meant} There are: {listed}{more}"


def finding_table(
    predictions: pd.DataFrame,
    threshold: float,
    min_cases: int = 10,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute AUROC, accuracy and F1 of each finding against all normal images.

    An image with several findings counts for each of them; findings that differ in case or spaces only are one, under
    the most frequent spelling. A finding of fewer than ``min_cases`` images is shown
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
        ``<metric>_low``, ``<metric>_high``, NaN where there are too few cases, and ``<metric>_undefined``, the draws
        left out of the interval since they held no image of a label. No rows where no image has a finding.

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
        set(split_findings(findings)) if sick else set()
        for findings, sick in zip(labelled["findings"].fillna(""), abnormal, strict=True)
    ]
    unnamed = int(sum(sick and not findings for findings, sick in zip(listed, abnormal, strict=True)))
    if unnamed:
        logger.info("%d of %d abnormal images have no finding and are in no row.", unnamed, int(abnormal.sum()))
    patients = patients_or_images(labelled)
    scores = labelled["raw_score"].to_numpy()
    rows = []
    for finding in count_findings(Counter(labelled["findings"].fillna("")[abnormal])):
        has = np.array([finding_key(finding) in findings for findings in listed])
        used = has | ~abnormal
        run = Run(scores[used], has[used], [patients[index] for index in np.flatnonzero(used)], threshold)
        values = image_metrics(run.scores, run.labels, threshold)
        enough = int(has.sum()) >= min_cases
        intervals = bootstrap_intervals(run, draws, level, seed) if enough else {}
        row: dict[str, object] = {"finding": finding, "cases": int(has.sum()), "normals": int((~abnormal).sum())}
        for name in BY_FINDING:
            low, high, undefined = intervals[name] if enough else (np.nan, np.nan, 0)
            row |= {name: values[name], f"{name}_low": low, f"{name}_high": high, f"{name}_undefined": undefined}
        rows.append(row)
    ends = ("", "_low", "_high", "_undefined")
    columns = ["finding", "cases", "normals", *(f"{name}{end}" for name in BY_FINDING for end in ends)]
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

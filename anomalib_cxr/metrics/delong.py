"""DeLong's test for the AUROCs of two models on the same images."""

import logging
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from anomalib_cxr.metrics.checks import absent_class, check_labelled

logger = logging.getLogger(__name__)


class DeLongTest(NamedTuple):
    """Result of :func:`delong_test`."""

    auroc_a: float
    auroc_b: float
    difference: float
    """``auroc_a - auroc_b``."""
    standard_error: float
    z: float
    p_value: float
    """Two-sided."""


def delong_covariance(
    labels: npt.ArrayLike, *scores: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """AUROCs of several models on the same images, and their covariance.

    DeLong, DeLong and Clarke-Pearson (Biometrics 1988), by the midranks of Sun and Xu (IEEE SPL 2014): O(n log n)
    instead of a comparison of each abnormal with each normal image.

    Args:
        labels: (n,) 0 for normal, 1 for abnormal.
        *scores: (n,) anomaly scores of each of the K models.

    Returns:
        (K,) AUROCs and (K, K) covariance.

    Raises:
        ValueError: If there are fewer than two images of a class, or scores or labels are unusable.
    """
    rows = []
    truth = np.empty(0, dtype=bool)
    for model in scores:
        values, truth = check_labelled(model, labels)
        rows.append(values)
    normal, abnormal = int((~truth).sum()), int(truth.sum())
    if absent_class(truth) or min(normal, abnormal) < 2:
        msg = f"DeLong's variance needs two images of each class, there are {normal} normal and {abnormal} abnormal."
        raise ValueError(msg)
    # Share of normal images that each abnormal one beats, and of abnormal ones that beat each normal image.
    of_abnormal, of_normal = np.empty((len(rows), abnormal)), np.empty((len(rows), normal))
    for index, values in enumerate(rows):
        ranks = stats.rankdata(values)
        of_abnormal[index] = (ranks[truth] - stats.rankdata(values[truth])) / normal
        of_normal[index] = 1 - (ranks[~truth] - stats.rankdata(values[~truth])) / abnormal
    covariance = np.cov(of_abnormal) / abnormal + np.cov(of_normal) / normal
    return of_abnormal.mean(axis=1), np.atleast_2d(covariance)


def delong_test(labels: npt.ArrayLike, scores_a: npt.ArrayLike, scores_b: npt.ArrayLike) -> DeLongTest:
    """Test whether two models have the same AUROC on the same images.

    It takes images for independent. With several images a patient, prefer the interval of the difference by a
    bootstrap over patients, :func:`~anomalib_cxr.metrics.bootstrap.bootstrap_difference`.

    Args:
        labels: (n,) 0 for normal, 1 for abnormal.
        scores_a: (n,) anomaly scores of one model.
        scores_b: (n,) anomaly scores of the other on the same images.

    Returns:
        AUROCs, their difference, its standard error, z and the two-sided p-value. Models that rank all images alike
        have z = 0 and p = 1. Where the standard error is 0 and the AUROCs differ (a perfect model against one whose
        scores are all equal) z and p are NaN, and the log says why.

    Raises:
        ValueError: As :func:`delong_covariance`.
    """
    (auroc_a, auroc_b), covariance = delong_covariance(labels, scores_a, scores_b)
    difference = float(auroc_a - auroc_b)
    error = math.sqrt(max(0.0, float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])))
    if error < 1e-12:
        same = abs(difference) < 1e-12
        if not same:
            logger.warning("DeLong's test says nothing: the difference of the AUROCs has no variance.")
        return DeLongTest(
            float(auroc_a), float(auroc_b), difference, 0.0, 0.0 if same else math.nan, 1.0 if same else math.nan
        )
    z = difference / error
    return DeLongTest(float(auroc_a), float(auroc_b), difference, error, z, float(2 * stats.norm.sf(abs(z))))

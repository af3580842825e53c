"""Scores with a meaning: conformal p-values against held-out normal images."""

import numpy as np
import numpy.typing as npt

from anomalib_cxr.metrics.checks import check_scores


def conformal_p_values(calibration: npt.ArrayLike, scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Say how unusual scores are among normal images that the model was not trained on.

    ``p = (1 + #{calibration scores >= score}) / (n + 1)`` (split conformal, Vovk et al. 2005). A new normal image,
    exchangeable with the calibration images, gets a p-value of at most α with a probability of at most α, for every α
    (on the grid of multiples of 1 / (n + 1), exactly α where scores have no ties). Several images of one patient, or
    another hospital's images, are not exchangeable.

    Args:
        calibration: (n,) scores of held-out normal images.
        scores: (m,) scores of any images by the same model.

    Returns:
        (m,) p-values in [1 / (n + 1), 1]; small is unusual.

    Raises:
        ValueError: If there are no calibration scores, or any score is not finite.
    """
    reference = np.sort(check_scores(calibration, what="calibration scores"))
    at_least = len(reference) - np.searchsorted(reference, check_scores(scores), side="left")
    return (1 + at_least) / (len(reference) + 1)


def outside_of_normal(p_values: npt.ArrayLike, n: int) -> npt.NDArray[np.bool_]:
    """Say which scores are beyond those of all normal calibration images.

    There p is below 2 / (n + 1): the score may be as unusual as one likes, and the image of another population.

    Args:
        p_values: (m,) of :func:`conformal_p_values`; NaN is not outside.
        n: Number of its calibration scores.

    Returns:
        (m,) bool.

    Examples:
        >>> outside_of_normal(conformal_p_values([1.0, 2.0, 3.0], [3.0, 3.1]), 3).tolist()
        [False, True]
    """
    return np.asarray(p_values, float) < 2 / (n + 1) * (1 - 1e-9)

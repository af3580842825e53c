"""Lung masks of frontal chest radiographs, without annotations or learned weights, and a check of their quality."""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from anomalib_cxr.anatomy.lung_contour import bend_outline
from anomalib_cxr.anatomy.lung_outline import PRIOR, FloatArray, place_outline
from anomalib_cxr.anatomy.otsu_lungs import otsu_lungs
from anomalib_cxr.anatomy.region_quality import Fallback, RegionQuality, describe_mask
from anomalib_cxr.checks import check_choice

LungMethod = Literal["shape", "otsu"]

MIN_SIDE = 16
"""Smallest height and width accepted, in pixels."""

MIN_PLACEMENT_SCORE = 0.25
"""Below this score of the placed outline the image shows no lungs and the prior outline is used (ours).

On radiographs of adults and children scores go from 0.29 to 0.7; on noise, on turned and on inverted radiographs from 0
to 0.38, so not all of these are caught.
"""

SEGMENTATION_VERSION = 1
"""Raised whenever a mask changes for the same image, so that masks kept on disk are not mixed."""

_WORK_SIZE = 256
_OUTLINE_POINTS = 72


def segment_lungs(image: FloatArray, method: LungMethod = "shape") -> NDArray[np.bool_]:
    """Segment the lungs of a frontal chest radiograph.

    ``"shape"`` (ours) places a hand-drawn average outline of both lungs where it separates dark from bright best, then
    bends it onto the edges of the image. ``"otsu"`` is Algorithm 1 of AnatPaste (Sato et al. 2023).

    Args:
        image: Radiograph of shape (H, W) in [0, 1], air dark and bone bright, at least 16×16.
        method: ``"shape"`` or ``"otsu"``.

    Returns:
        Boolean mask of shape (H, W), never empty. :func:`segment_lungs_with_quality` says whether a fallback was used.

    Raises:
        ValueError: If the image is not two-dimensional, is too small, holds NaN or infinity or values outside [0, 1],
            or if the method is unknown.
    """
    return segment_lungs_with_quality(image, method)[0]


def segment_lungs_with_quality(
    image: FloatArray, method: LungMethod = "shape"
) -> tuple[NDArray[np.bool_], RegionQuality]:
    """Segment the lungs and describe the mask.

    Args:
        image: Radiograph of shape (H, W) in [0, 1], air dark and bone bright, at least 16×16.
        method: ``"shape"`` or ``"otsu"``, see :func:`segment_lungs`.

    Returns:
        Boolean mask of shape (H, W), never empty, and its quality.

    Raises:
        ValueError: As :func:`segment_lungs`.
    """
    check_choice("method", method, LungMethod)
    image = _checked(image)
    mask = otsu_lungs(image) if method == "otsu" else None
    if mask is not None and mask.any():
        return mask, describe_mask(image, mask, None, None)
    mask, score = _shape_lungs(image)
    fallback: Fallback | None = None
    if score < MIN_PLACEMENT_SCORE:
        fallback = "prior"
    elif method == "otsu":
        fallback = "shape"
    return mask, describe_mask(image, mask, fallback, score)


def _checked(image: FloatArray) -> NDArray[np.float32]:
    image = np.asarray(image)
    if image.ndim != 2 or min(image.shape) < MIN_SIDE:
        msg = f"Lung segmentation needs an image of shape (H, W), at least {MIN_SIDE}×{MIN_SIDE}, got {image.shape}."
        raise ValueError(msg)
    if not np.issubdtype(image.dtype, np.floating):
        msg = f"Lung segmentation needs a floating-point image in [0, 1], got {image.dtype}: divide by its full scale."
        raise ValueError(msg)
    low, high = image.min(), image.max()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also false for NaN
        msg = f"Lung segmentation needs finite values in [0, 1], got values from {low} to {high}: rescale the image."
        raise ValueError(msg)
    return np.clip(image, 0, 1).astype(np.float32)


def _shape_lungs(image: NDArray[np.float32]) -> tuple[NDArray[np.bool_], float]:
    """Return the mask by outline and the placement's score; a mask by the prior outline where that is too low."""
    height, width = image.shape
    shrinks = height * width >= _WORK_SIZE**2
    work = cv2.resize(image, (_WORK_SIZE, _WORK_SIZE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    low, high = np.percentile(work, (1, 99))
    placement = PRIOR
    if high > low:
        work = np.clip((work - low) / (high - low), 0, 1).astype(np.float32)
        placement = place_outline(work)
    if placement.score >= MIN_PLACEMENT_SCORE:
        outline = bend_outline(work, placement.outline(_OUTLINE_POINTS) * _WORK_SIZE - 0.5)
    else:
        outline = PRIOR.outline(_OUTLINE_POINTS) * _WORK_SIZE - 0.5
    scale = np.array([width, height]) / _WORK_SIZE
    return _fill((outline + 0.5) * scale - 0.5, image.shape), placement.score


def _fill(outlines: FloatArray, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the pixels inside closed outlines of shape (lungs, points, 2)."""
    mask = np.zeros(shape, dtype=np.uint8)
    for outline in outlines:
        cv2.fillPoly(mask, [np.round(outline * 16).astype(np.int32)], 1, shift=4)
    return mask.astype(bool)

"""What a film looks like as a whole: a small picture of it, and what was found where its lungs should be (ours).

All is measured on the film at one small size, so that the size of a detector's input hardly matters.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from anomalib_cxr.anatomy.lung_outline import Placement, place_outline
from anomalib_cxr.anatomy.region_quality import describe_mask

SIDE = 16
"""Of the small picture, in pixels."""

NUMBERS = (
    "placement_score", "contrast", "area", "symmetry", "top", "bottom", "left", "right", "brightness", "deviation",
)  # fmt: skip
"""What :class:`FilmLook` has numbers of."""

_WORK_SIZE = 128  # the one at which the outline of the lungs is placed
_POINTS = 72  # of each lung's outline
_OPACITY = 0.75  # of what makes a lung opaque, 1 would leave nothing of it
_SOFT_EDGE = 4.0  # pixels at the work size
_LEAST_CONTRAST = 1e-3  # a film of one grey has no contrast to be divided by


class FilmLook(NamedTuple):
    """What a film looks like.

    Attributes:
        picture: (256,) float32, the film at 16×16, row by row, of mean 0 and deviation 1.
        values: The :data:`NUMBERS`: of the placed outline of the lungs ``placement_score``, ``contrast``, ``area`` and
            ``symmetry`` (:class:`~anomalib_cxr.anatomy.RegionQuality`), how far it stays from each border in parts of
            the film, below 0 outside (``top``, ``bottom``, ``left``, ``right``), and of the film itself ``brightness``
            and ``deviation``.
    """

    picture: NDArray[np.float32]
    values: Mapping[str, float]


class TrainingLook(NamedTuple):
    """What a normal film of a training looks like, and would look like otherwise.

    Attributes:
        plain: As it is.
        faults: Small picture (256,) with each of :data:`FAULTS`, which make it unfit to be judged.
        opaque: With opaque lungs, which do not: that is for the detector to find. None where that was not drawn.
    """

    plain: FilmLook
    faults: Mapping[str, NDArray[np.float32]]
    opaque: FilmLook | None


def look_at(film: NDArray[Any]) -> FilmLook:
    """Look at a film.

    Args:
        film: (H, W) brightness in [0, 1], at least 2×2.

    Returns:
        What it looks like.
    """
    small = _at_work_size(film)
    return _look(small, _place(small))


def look_at_training_film(film: NDArray[Any], number: int) -> TrainingLook:
    """Look at a normal film of a training, with faults and with opaque lungs.

    Args:
        film: (H, W) brightness in [0, 1].
        number: Of the film. Lungs of every other one are made opaque: the left on the film, the right, both, and what
            lies below their middle take turns.

    Returns:
        What it looks like.
    """
    small = _at_work_size(film)
    placement = _place(small)
    opaque = None
    if number % 2 == 0:
        drawn = _with_opaque_lungs(small, placement, number // 2 % 4)
        opaque = _look(drawn, _place(drawn))
    faults = {name: _picture(draw(small)) for name, draw in FAULTS.items()}
    return TrainingLook(_look(small, placement), faults, opaque)


def _look(small: NDArray[np.float32], placement: Placement) -> FilmLook:
    values = {"brightness": float(small.mean()), "deviation": float(small.std())}
    return FilmLook(_picture(small), _lungs(small, placement) | values)


def _stretched(small: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = np.percentile(small, (1, 99))
    return np.clip((small - low) / max(float(high - low), _LEAST_CONTRAST), 0, 1).astype(np.float32)


def _place(small: NDArray[np.float32]) -> Placement:
    """Where the outline of the lungs fits best; it is not bent onto their edges, which would cost as much again."""
    return place_outline(_stretched(small))


def _filled(outlines: NDArray[Any]) -> NDArray[np.uint8]:
    mask = np.zeros((_WORK_SIZE, _WORK_SIZE), np.uint8)
    for outline in outlines:
        cv2.fillPoly(mask, [np.round((outline * _WORK_SIZE - 0.5) * 16).astype(np.int32)], 1, shift=4)
    return mask


def _lungs(small: NDArray[np.float32], placement: Placement) -> dict[str, float]:
    outlines = placement.outline(_POINTS)
    quality = describe_mask(_stretched(small), _filled(outlines).astype(bool), None, placement.score)
    (left, top), (right, bottom) = outlines.min(axis=(0, 1)), 1 - outlines.max(axis=(0, 1))
    return {
        "placement_score": placement.score,
        "contrast": quality.contrast,
        "area": quality.area_fraction,
        "symmetry": quality.symmetry,
        "top": float(top),
        "bottom": float(bottom),
        "left": float(left),
        "right": float(right),
    }


def _with_opaque_lungs(small: NDArray[np.float32], placement: Placement, which: int) -> NDArray[np.float32]:
    """Make lungs nearly as bright as what is between and around them: 0 left on the film, 1 right, 2 both, 3 below."""
    outlines = placement.outline(_POINTS)
    lungs = _filled(outlines).astype(bool)
    if not lungs.any() or lungs.all():
        return small
    rows, columns = np.flatnonzero(lungs.any(axis=1)), np.flatnonzero(lungs.any(axis=0))
    around = np.zeros_like(lungs)
    around[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    chosen = _filled(outlines if which > 1 else outlines[which : which + 1]).astype(np.float32)
    if which == 3:
        chosen[: (rows[0] + rows[-1]) // 2] = 0
    share = _OPACITY * cv2.GaussianBlur(chosen, (0, 0), _SOFT_EDGE)
    bright = small[around & ~lungs].mean() if (around & ~lungs).any() else small.max()
    return np.asarray(small + (np.maximum(bright, small) - small) * share, np.float32)


def _at_work_size(film: NDArray[Any]) -> NDArray[np.float32]:
    size = (_WORK_SIZE, _WORK_SIZE)
    shrinks = film.size >= _WORK_SIZE**2
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    small = cv2.resize(np.asarray(film, np.float32), size, interpolation=how)
    return np.asarray(np.clip(small, 0, 1), np.float32)


def _picture(small: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = np.percentile(small, (1, 99))  # markers and dead pixels are not the film
    tiny = cv2.resize(np.clip(small, low, high), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return ((tiny - tiny.mean()) / max(float(tiny.std()), _LEAST_CONTRAST)).astype(np.float32).ravel()


def _turned(degrees: float) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    def draw(film: NDArray[np.float32]) -> NDArray[np.float32]:
        middle = (_WORK_SIZE - 1) / 2
        turn = cv2.getRotationMatrix2D((middle, middle), degrees, 1)
        # What lies beyond the film is unknown: mirrored, it gives nothing away.
        drawn = cv2.warpAffine(film, turn, film.shape[::-1], borderMode=cv2.BORDER_REFLECT_101)
        return np.asarray(drawn, np.float32)

    return draw


def _cropped(
    top: float = 0, bottom: float = 0, left: float = 0, right: float = 0
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    def draw(film: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = slice(round(top * _WORK_SIZE), round((1 - bottom) * _WORK_SIZE))
        columns = slice(round(left * _WORK_SIZE), round((1 - right) * _WORK_SIZE))
        return film[rows, columns]

    return draw


FAULTS: Mapping[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "grey values inverted": lambda film: 1 - film,
    "upside down": lambda film: np.ascontiguousarray(film[::-1, ::-1]),
    "turned a quarter to the left": lambda film: np.ascontiguousarray(np.rot90(film)),
    "turned a quarter to the right": lambda film: np.ascontiguousarray(np.rot90(film, 3)),
    "turned to the left": _turned(20),
    "turned to the right": _turned(-20),
    "cut off at the top": _cropped(top=0.25),
    "cut off at the bottom": _cropped(bottom=0.25),
    "cut off at the left": _cropped(left=0.25),
    "cut off at the right": _cropped(right=0.25),
    "cut off all around": _cropped(0.18, 0.18, 0.18, 0.18),
}
"""Faults that are drawn, by what reasons call them. A new one is one entry."""

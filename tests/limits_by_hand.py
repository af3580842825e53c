"""Limits of films that know brightness alone: a film is not assessable where its mean is above a number."""

from typing import Any

import numpy as np

from anomalib_cxr.anatomy.assessable import _SINGLE, FilmLimits, _Taught
from anomalib_cxr.anatomy.film_look import NUMBERS, SIDE


def too_bright_above(mean: float) -> dict[str, Any]:
    """The record."""
    count = len(NUMBERS)
    nothing = np.zeros((0, SIDE * SIDE))
    taught = _Taught(
        np.zeros(SIDE * SIDE), nothing, np.zeros(0), 1.0, nothing, np.zeros(0), np.zeros(count), np.eye(count)
    )
    asked = [name == "brightness" and sign > 0 for name, sign, _ in _SINGLE]
    scales = np.array([(0.0, 1e9), (0.0, 1e9), *((0.0, 1.0 if one else 1e9) for one in asked)])
    return FilmLimits(100, (), taught, scales, mean).record()

"""The picture of a heat map as people see it: film and map, scale of colours, and a caption below."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from anomalib_cxr.imaging.heat_map import (
    TRUE_OUTLINE,
    about_threshold,
    blend_heat_map,
    colour_bar,
    draw_outlines,
    fitted_mask,
    smooth_heat_map,
)
from anomalib_cxr.imaging.lettering import lettering

_GAP = 4


def heat_map_picture(
    image: npt.NDArray[Any],
    heat: npt.NDArray[Any],
    lines: Sequence[str],
    threshold: float = 0.5,
    longest_side: int = 1024,
    mask: npt.NDArray[Any] | None = None,
    beside: bool = False,
) -> npt.NDArray[np.uint8]:
    """Draw a heat map over its radiograph, with a scale at the right and a caption below.

    The map is smoothed (:func:`~anomalib_cxr.imaging.heat_map.smooth_heat_map`), and outlined in white where it exceeds
    the threshold. Letters are at least 14 pixels high, whatever the size of the film.

    Args:
        image: (H, W) brightness in [0, 1].
        heat: (h, w) normalised heat map in [0, 1].
        lines: Caption; long lines are broken.
        threshold: Of the map, marked on the scale.
        longest_side: Larger films are shrunk to so many pixels.
        mask: (H', W') what is known to be abnormal, outlined in yellow; not 0: inside.
        beside: Draw the bare film to the left.

    Returns:
        (h, w, 3) uint8 RGB; the film with its map, or the bare film, begins in the upper left corner.
    """
    factor = min(1.0, longest_side / max(image.shape))
    height, width = (max(1, round(side * factor)) for side in image.shape)
    grey = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) if factor < 1 else image
    smooth = smooth_heat_map(heat, (height, width))
    coloured = np.ascontiguousarray(blend_heat_map(grey, about_threshold(smooth, threshold)))
    draw_outlines(coloured, smooth > threshold)
    if mask is not None:
        draw_outlines(coloured, fitted_mask(mask, (height, width)), TRUE_OUTLINE)
    size = max(14, round(max(height, width) / 48))
    gap = np.zeros((height, _GAP, 3), np.uint8)
    film = [blend_heat_map(grey, np.zeros_like(grey)), gap] if beside else []
    row = np.concatenate([*film, coloured, gap, colour_bar(height, threshold, size)], axis=1)
    return np.concatenate([row, lettering(lines, row.shape[1], size)])

"""A heat map in colour over its radiograph, smoothed for display."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from anomalib_cxr.imaging.lettering import lettering

SMOOTHED = "map smoothed for display"
"""What pictures say of :func:`smooth_heat_map`."""

TRUE_OUTLINE = (255, 220, 0)
"""Yellow: outlines of what is known to be abnormal; white ones are the model's."""

# Normalised maps have 0.5 at the pixel threshold: colour fades in below it, and grows with the map.
_FAINT, _OPACITY = 0.35, 0.65
_BAR_WIDTH, _TICK = 14, 12
_WHITE = (255, 255, 255)


def smooth_heat_map(heat: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Draw a heat map as a smooth surface of another size.

    Many detectors give one value for each cell of a grid, and a map of hard-edged tiles. A run of equal rows or columns
    is taken for a row or column of cells, and the surface is interpolated cubically through the cells' centres: at a
    centre it has the map's own value, and it never leaves the map's range. A map without tiles has cells of one pixel,
    for which this is an ordinary bicubic resize.

    For display alone: masks, metrics and exports keep the map as it is.

    Args:
        heat: (h, w), finite.
        size: (H, W) of the result in pixels.

    Returns:
        (H, W) float32.

    Examples:
        >>> import numpy as np
        >>> tiles = np.kron([[0.0, 1.0]], np.ones((4, 4)))
        >>> smooth_heat_map(tiles, (4, 4))[0].tolist()
        [0.0, 0.203125, 0.796875, 1.0]
    """
    heat = np.asarray(heat, np.float64)
    rows, cols = _cells(heat), _cells(heat.T)
    values = heat[np.ix_(rows.astype(int), cols.astype(int))]
    surface = _through(rows, heat.shape[0], size[0]) @ values @ _through(cols, heat.shape[1], size[1]).T
    return surface.clip(values.min(), values.max()).astype(np.float32)


def _cells(heat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Centres of the rows of cells, in pixels from the upper edge."""
    height = len(heat)
    steps = np.abs(np.diff(heat, axis=0)).max(axis=1, initial=0)
    # Equal but for the rounding of float32.
    edges = np.flatnonzero(steps > 1e-6 * np.ptp(heat)) + 1
    starts, ends = np.r_[0, edges], np.r_[edges, height]
    lengths = ends - starts
    # Neighbouring cells of one value, as in an empty margin, are a long run.
    counts = np.maximum(1, np.rint(lengths / np.median(lengths)).astype(int))
    parts = [
        start + (np.arange(n) + 0.5) * (length / n) for start, length, n in zip(starts, lengths, counts, strict=True)
    ]
    return np.concatenate(parts)


def _through(centres: npt.NDArray[np.float64], length: int, size: int) -> npt.NDArray[np.float64]:
    """Weights (size, cells) of Catmull and Rom's cubic through the cells' centres; level outside of the outer ones."""
    n = len(centres)
    place = np.interp((np.arange(size) + 0.5) * length / size, centres, np.arange(n))
    base = np.minimum(place.astype(int), max(0, n - 2))
    t = place - base
    weights = np.zeros((size, n))
    for offset, weight in (
        (-1, (-t + 2 * t**2 - t**3) / 2),
        (0, (2 - 5 * t**2 + 3 * t**3) / 2),
        (1, (t + 4 * t**2 - 3 * t**3) / 2),
        (2, (-(t**2) + t**3) / 2),
    ):
        np.add.at(weights, (np.arange(size), np.clip(base + offset, 0, n - 1)), weight)
    return weights


def blend_heat_map(image: npt.NDArray[Any], heat: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Colour a radiograph where its normalised heat map is high.

    Pixels well below the threshold keep their grey; above, the colour covers the more the higher the map is.

    Args:
        image: (H, W) brightness in [0, 1].
        heat: (H, W) normalised heat map in [0, 1], the threshold at 0.5.

    Returns:
        (H, W, 3) uint8 RGB.

    Examples:
        >>> import numpy as np
        >>> blend_heat_map(np.full((1, 2), 0.5), np.array([[0.1, 0.1]])).tolist()
        [[[128, 128, 128], [128, 128, 128]]]
    """
    strength = np.clip((np.asarray(heat) - _FAINT) / (1 - _FAINT), 0, 1)
    shade = np.rint(strength * 255).astype(np.uint8)
    colour = cv2.applyColorMap(shade, cv2.COLORMAP_JET)[..., ::-1] / 255.0
    opacity = _OPACITY * strength[..., None]
    return np.rint(((1 - opacity) * image[..., None] + opacity * colour) * 255).astype(np.uint8)


def about_threshold(heat: npt.NDArray[Any], threshold: float) -> npt.NDArray[np.float64]:
    """Stretch a map so that its threshold comes to lie at 0.5, for which colours are laid out.

    Args:
        heat: Values in [0, 1].
        threshold: In [0, 1].

    Returns:
        Values in [0, 1] of the same shape, in the same order.
    """
    return np.interp(heat, (0.0, threshold, 1.0), (0.0, 0.5, 1.0))


def fitted_mask(mask: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Resize a mask to be outlined: without stairs where it grows, without losing small parts where it shrinks.

    Args:
        mask: (h, w) bool, or number (not 0: inside).
        size: (H, W) in pixels.

    Returns:
        (H, W) bool.
    """
    inside = (mask != 0).astype(np.float32)
    grows = size[0] >= mask.shape[0]
    fitted = cv2.resize(inside, size[::-1], interpolation=cv2.INTER_LINEAR if grows else cv2.INTER_AREA)
    return fitted >= 0.5 if grows else fitted > 0.25


def draw_outlines(
    picture: npt.NDArray[np.uint8], inside: npt.NDArray[Any], colour: tuple[int, int, int] = _WHITE
) -> None:
    """Draw smooth outlines of a region, in place.

    The rim of each part is averaged along itself over a few pixels, which takes away the stairs and moves it by less
    than two pixels in a picture of 512.

    Args:
        picture: (H, W, 3) RGB, contiguous.
        inside: (H, W) bool, or number (not 0: inside).
        colour: RGB.
    """
    side = max(picture.shape[:2])
    reach, thickness = 1 + side // 256, 1 + side // 768
    rims, _ = cv2.findContours((inside != 0).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for rim in rims:
        points = rim[:, 0].astype(np.float64)
        if len(points) > 4 * reach:
            points = np.mean([np.roll(points, shift, axis=0) for shift in range(-reach, reach + 1)], axis=0)
        # Sixteenths of a pixel.
        cv2.polylines(picture, [np.rint(points * 16).astype(np.int32)], True, colour, thickness, cv2.LINE_AA, 4)


def colour_bar(height: int, threshold: float, size: int) -> npt.NDArray[np.uint8]:
    """Draw the scale of :func:`blend_heat_map`, its threshold marked.

    Args:
        height: Of the bar in pixels.
        threshold: Pixel threshold, in [0, 1]; it stands half-way up, where the colours have it.
        size: Of the letters in pixels.

    Returns:
        (height, w, 3) uint8 RGB on black, as if laid over medium grey.
    """
    heat = np.repeat(np.linspace(1, 0, height)[:, None], _BAR_WIDTH, axis=1)
    labels = [lettering([text], 3 * size, size) for text in ("1", f"{threshold:.2f}", "0")]
    bar = np.zeros((height, _BAR_WIDTH + _TICK + labels[0].shape[1], 3), np.uint8)
    bar[:, 4 : 4 + _BAR_WIDTH] = blend_heat_map(np.full(heat.shape, 0.5), heat)
    middle = height // 2
    bar[max(0, middle - 1) : middle + 1, : 4 + _BAR_WIDTH + 6] = 255
    for label, centre in zip(labels, (0, middle, height), strict=True):
        top = min(max(0, centre - label.shape[0] // 2), max(0, height - label.shape[0]))
        bar[top : top + label.shape[0], _BAR_WIDTH + _TICK :] = label[: height - top]
    return bar

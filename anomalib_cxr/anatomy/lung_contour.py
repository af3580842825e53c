"""Bending a placed outline onto the true edge of the lungs: a closed active contour solved by dynamic programming.

Each point of the outline may move along its normal. The cost of a position is low where the image turns from dark to
bright (edge), where what lies before it is dark and what lies after it is bright (region), and near the starting
outline (prior); neighbouring points must move alike. Two laps of dynamic programming find the cheapest
closed path (in rare cases only nearly the cheapest).
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from anomalib_cxr.anatomy.lung_outline import FloatArray, local_contrast, outward_normals, sample

_BLUR = 1.0  # pixels at 256×256, as all lengths here
_CONTRAST_FLOOR = 0.05
_REACHES = (24.0, 9.0)  # how far points may move, in one round after the other
_POSITIONS = 41
_EDGE_WEIGHT = 12.0
_REGION_WEIGHT = 1.2
_PRIOR_WEIGHT = 1.0
_BEND_WEIGHT = 0.1
_MAX_JUMP = 2  # positions between neighbouring points
_SMOOTHING = 2.0  # of the displacement, in points


def bend_outline(image: FloatArray, outline: FloatArray) -> FloatArray:
    """Move outlines onto the edges between dark inside and bright outside.

    Args:
        image: float32 radiograph of shape (256, 256), air dark.
        outline: Closed outlines of shape (lungs, points, 2), x before y, in pixels.

    Returns:
        The bent outlines, of the same shape.
    """
    blurred = cv2.GaussianBlur(image, (0, 0), _BLUR)
    scaled = blurred / (local_contrast(blurred) + _CONTRAST_FLOOR)
    for reach in _REACHES:
        normals = outward_normals(outline)
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-12
        offsets = np.linspace(-reach, reach, _POSITIONS)
        position = closed_path(_cost(scaled, outline, normals, offsets), _BEND_WEIGHT, _MAX_JUMP)
        moved = normals * offsets[position][..., None]
        outline = outline + gaussian_filter1d(moved, _SMOOTHING, axis=1, mode="wrap")
    return outline


def _cost(image: FloatArray, outline: FloatArray, normals: FloatArray, offsets: FloatArray) -> FloatArray:
    """Return the cost (lungs, points, positions) of moving each point by each offset along its normal."""
    at = outline[:, :, None] + normals[:, :, None] * offsets[:, None]
    lungs, points, positions, _ = at.shape
    profile = sample(image, at.reshape(-1, positions, 2), cv2.BORDER_REPLICATE).reshape(lungs, points, positions)
    step, reach = offsets[1] - offsets[0], offsets[-1]
    edge = np.clip(np.gradient(profile, step, axis=2), -0.25, 0.25)
    half = positions // 2
    inside = gaussian_filter1d(profile[..., :half].mean(-1), 2.0, axis=1, mode="wrap")
    outside = gaussian_filter1d(profile[..., half + 1 :].mean(-1), 2.0, axis=1, mode="wrap")
    contrast = np.maximum(outside - inside, 0.15)
    brightness = np.clip((profile - ((inside + outside) / 2)[..., None]) / contrast[..., None], -1, 1)
    region = np.cumsum(brightness, axis=2) * (step / reach)
    out_of_image = ((at < 0) | (at > np.array(image.shape[::-1]) - 1)).any(-1)
    prior = (offsets / reach) ** 2
    return -_EDGE_WEIGHT * edge + _REGION_WEIGHT * region + _PRIOR_WEIGHT * prior + 3.0 * out_of_image


def closed_path(cost: FloatArray, bend_weight: float, max_jump: int) -> NDArray[np.intp]:
    """Return the cheapest way round: one position a point, neighbours at most `max_jump` positions apart.

    The sum of the positions' costs and of ``bend_weight * jump**2`` is minimised by dynamic programming over two laps,
    of which the middle one is kept, so that start and end meet. On outlines much longer than the way a path needs to
    forget its start, that is the optimum; it is not guaranteed.

    Args:
        cost: Costs of shape (paths, points, positions).
        bend_weight: Weight of the squared jump between neighbouring points.
        max_jump: Largest jump between neighbouring points.

    Returns:
        Positions of shape (paths, points).
    """
    paths, points, positions = cost.shape
    jumps = np.arange(-max_jump, max_jump + 1)
    penalty = (bend_weight * jumps.astype(float) ** 2)[:, None, None]
    padded = np.full((paths, positions + 2 * max_jump), np.inf)
    inner = padded[:, max_jump : max_jump + positions]
    windows = np.lib.stride_tricks.sliding_window_view(padded, positions, axis=1).transpose(1, 0, 2)
    came_from = np.zeros((2 * points, paths, positions), dtype=np.intp)
    inner[:] = cost[:, 0]
    for point in range(1, 2 * points):
        total = windows + penalty
        came_from[point] = total.argmin(axis=0)
        inner[:] = total.min(axis=0) + cost[:, point % points]
    path = np.empty((2 * points, paths), dtype=np.intp)
    path[-1] = inner.argmin(axis=1)
    for point in range(2 * points - 1, 0, -1):
        path[point - 1] = path[point] + came_from[point, np.arange(paths), path[point]] - max_jump
    middle = points // 2
    return np.concatenate([path[points : points + middle], path[middle:points]]).T

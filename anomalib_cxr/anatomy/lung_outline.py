"""The average outline of the two lungs, drawn by hand, and where it sits in a given radiograph.

The outline is a handful of points a lung, in a frame whose origin is on the midline, half-way between the apices and
the costophrenic angles: x = ±1 at the lateral ends, y = −1 at the apices, y = 1 at the angles. Placing it takes four
numbers: centre (x, y) and half-size (x, y). The best placement is the one whose outline crosses the image from dark
(lung) to bright (chest wall, mediastinum, diaphragm) everywhere.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]

# Image-left lung (the patient's right) and image-right lung (with the heart's notch), clockwise or not: either will do.
_LEFT_OF_IMAGE = (
    (-0.26, -0.97), (-0.40, -1.00), (-0.53, -0.95), (-0.65, -0.82), (-0.76, -0.60), (-0.85, -0.32), (-0.91, 0.00),
    (-0.95, 0.30), (-0.98, 0.60), (-1.00, 0.95), (-0.88, 0.80), (-0.70, 0.69), (-0.50, 0.64), (-0.30, 0.70),
    (-0.21, 0.68), (-0.20, 0.50), (-0.22, 0.25), (-0.17, 0.00), (-0.13, -0.30), (-0.12, -0.60), (-0.17, -0.84),
)  # fmt: skip
_RIGHT_OF_IMAGE = (
    (0.26, -0.97), (0.40, -1.00), (0.53, -0.95), (0.65, -0.82), (0.76, -0.60), (0.85, -0.32), (0.91, 0.00),
    (0.95, 0.30), (0.98, 0.60), (1.00, 0.95), (0.90, 0.84), (0.78, 0.77), (0.66, 0.76), (0.57, 0.74),
    (0.51, 0.60), (0.46, 0.40), (0.38, 0.20), (0.23, -0.02), (0.20, -0.30), (0.13, -0.60), (0.16, -0.84),
)  # fmt: skip

PRIOR_PLACEMENT = (0.50, 0.45, 0.36, 0.36)
"""Where the outline goes when the image says nothing: centre x, centre y, half-width, half-height (image = 1)."""

_GRID_SIZE = 32  # the exhaustive search runs at 32×32,
_GRID_BLUR = 2.0  # on an image blurred by this much (pixels at 128×128),
_DIRECTIONS = 16  # with outward normals rounded to this many directions
_REFINE_SIZE = 128
_REFINE_BLUR = 1.0
_REFINE_STEPS = (0.03, 0.015, 0.007)
_STARTS = 2  # placements refined, for each of the two mirror images
_LOCAL_SIGMA = 30 / 256  # neighbourhood whose contrast scales the gradient
_CONTRAST_FLOOR = 0.1
_GRID_CLIP = 0.3  # one strong edge counts no more than this
_SIZE_REWARD = 0.05  # larger outlines win over smaller ones that cross the same edges


@dataclass(frozen=True)
class Placement:
    """The average outline placed in an image.

    Attributes:
        parameters: Centre x, centre y, half-width, half-height, all with the image's width and height as 1.
        mirrored: Whether the heart's notch is on the image's left.
        score: Mean outward change of brightness along the outline, in local standard deviations a pixel at 128×128.
            Above zero where the inside is darker than the outside.
    """

    parameters: tuple[float, float, float, float]
    mirrored: bool
    score: float

    def outline(self, points: int) -> FloatArray:
        """Return both outlines in image units, shape (2, points, 2), the image-left lung first."""
        x, y, half_width, half_height = self.parameters
        return average_outline(points, self.mirrored) * (half_width, half_height) + (x, y)


PRIOR = Placement(PRIOR_PLACEMENT, mirrored=False, score=0.0)


@cache
def average_outline(points: int, mirrored: bool = False) -> FloatArray:
    """Return the hand-drawn outlines with equally spaced points.

    Args:
        points: Number of points a lung.
        mirrored: Swap left and right.

    Returns:
        Array of shape (2, points, 2): image-left lung first, x before y.
    """
    lungs = np.stack([_equally_spaced(np.array(lung), points) for lung in (_LEFT_OF_IMAGE, _RIGHT_OF_IMAGE)])
    outline = lungs[::-1] * (-1, 1) if mirrored else lungs
    outline.setflags(write=False)
    return outline


def outward_normals(outline: FloatArray) -> FloatArray:
    """Return unit normals that point out of closed outlines of shape (..., points, 2)."""
    following, preceding = np.roll(outline, -1, axis=-2), np.roll(outline, 1, axis=-2)
    tangent = following - preceding
    normal = np.stack([tangent[..., 1], -tangent[..., 0]], axis=-1)
    cross = outline[..., 0] * following[..., 1] - following[..., 0] * outline[..., 1]
    normal = np.where(cross.sum(-1)[..., None, None] < 0, -normal, normal)
    return normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)


def place_outline(image: FloatArray) -> Placement:
    """Find the placement whose outline best separates dark inside from bright outside.

    Args:
        image: Square float32 radiograph, air dark, at least 128×128.

    Returns:
        The best placement of the outline or of its mirror image. Always a result: look at its score.
    """
    small = cv2.resize(image, (_REFINE_SIZE, _REFINE_SIZE), interpolation=cv2.INTER_AREA)
    coarse = _local_gradient(cv2.GaussianBlur(small, (0, 0), _GRID_BLUR))
    fine = _local_gradient(cv2.GaussianBlur(small, (0, 0), _REFINE_BLUR))
    candidates = [(start, mirrored) for mirrored in (False, True) for start in _search_grid(*coarse, mirrored)]
    refined = [_refine(*fine, start, mirrored) for start, mirrored in candidates]
    return max(refined, key=lambda placement: placement.score + _size_reward(np.array(placement.parameters)))


def _equally_spaced(polygon: FloatArray, points: int) -> FloatArray:
    closed = np.vstack([polygon, polygon[:1]])
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    at = np.linspace(0, along[-1], points, endpoint=False)
    return np.stack([np.interp(at, along, closed[:, axis]) for axis in (0, 1)], axis=1)


def _local_gradient(image: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the gradient (x, y) a pixel over the local standard deviation."""
    sigma = _LOCAL_SIGMA * image.shape[0]
    mean = cv2.GaussianBlur(image, (0, 0), sigma)
    variance = cv2.GaussianBlur(image * image, (0, 0), sigma) - mean * mean
    contrast = np.sqrt(np.maximum(variance, 0)) + _CONTRAST_FLOOR
    dx = cv2.Sobel(image, cv2.CV_32F, 1, 0, scale=1 / 8)
    dy = cv2.Sobel(image, cv2.CV_32F, 0, 1, scale=1 / 8)
    return dx / contrast, dy / contrast


def _size_reward(parameters: FloatArray) -> FloatArray:
    return _SIZE_REWARD * np.log(parameters[..., 2] * parameters[..., 3])


@cache
def _grid(mirrored: bool) -> tuple[FloatArray, NDArray[np.int32]]:
    """Return candidate placements (N, 4) and, for each, the flat indices (N, points) into the direction images."""
    half_sizes = np.linspace(0.22, 0.52, 9)
    candidates = np.array(
        [
            (x, y, half_width, half_height)
            for half_width, half_height in product(half_sizes, half_sizes)
            for x, y in product(np.linspace(0.38, 0.62, 11), np.linspace(0.24, 0.66, 15))
            if 0.55 < half_height / half_width < 1.75
            and x - half_width > -0.06
            and x + half_width < 1.06
            and y - half_height > -0.06
            and y + half_height < 1.12
        ]
    )
    outline = average_outline(40, mirrored)
    normal = (outward_normals(outline) / candidates[:, None, None, 2:]).reshape(len(candidates), -1, 2)
    angle = np.arctan2(normal[..., 1], normal[..., 0])
    direction = np.round(angle / (2 * np.pi) * _DIRECTIONS).astype(int) % _DIRECTIONS
    position = (outline * candidates[:, None, None, 2:] + candidates[:, None, None, :2]).reshape(len(candidates), -1, 2)
    pixel = np.clip((position * _GRID_SIZE).astype(int), 0, _GRID_SIZE - 1)
    flat = (direction * _GRID_SIZE + pixel[..., 1]) * _GRID_SIZE + pixel[..., 0]
    return candidates, flat.astype(np.int32)


def _search_grid(dx: FloatArray, dy: FloatArray, mirrored: bool) -> list[FloatArray]:
    """Return the `_STARTS` best placements of an exhaustive search that are not neighbours of each other."""
    angle = np.arange(_DIRECTIONS)[:, None, None] * (2 * np.pi / _DIRECTIONS)
    grid = (_GRID_SIZE, _GRID_SIZE)
    small_dx, small_dy = (cv2.resize(part, grid, interpolation=cv2.INTER_AREA) for part in (dx, dy))
    change = np.clip(2 * (np.cos(angle) * small_dx + np.sin(angle) * small_dy), -_GRID_CLIP, _GRID_CLIP)
    change[:, [0, -1], :] = 0
    change[:, :, [0, -1]] = 0
    candidates, indices = _grid(mirrored)
    score = change.astype(np.float32).ravel()[indices].mean(axis=1) + _size_reward(candidates)
    starts: list[FloatArray] = []
    for index in np.argsort(-score, kind="stable"):
        if all(np.abs(candidates[index] - start).max() > 0.06 for start in starts):
            starts.append(candidates[index])
            if len(starts) == _STARTS:
                break
    return starts


_NEIGHBOURS = np.array(list(product((-1, 0, 1), repeat=4)), dtype=float)


def _refine(dx: FloatArray, dy: FloatArray, start: FloatArray, mirrored: bool) -> Placement:
    """Climb from a placement to the best one around it, in steps that get smaller."""
    outline = average_outline(40, mirrored).reshape(1, -1, 2)
    normals = outward_normals(average_outline(40, mirrored)).reshape(1, -1, 2)

    def score(placements: FloatArray) -> FloatArray:
        size = placements[:, None, 2:]
        at = ((outline * size + placements[:, None, :2]) * _REFINE_SIZE - 0.5).astype(np.float32)
        normal = normals / size
        normal /= np.linalg.norm(normal, axis=2, keepdims=True)
        sampled = [cv2.remap(part, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for part in (dx, dy)]
        return (sampled[0] * normal[..., 0] + sampled[1] * normal[..., 1]).mean(axis=1)

    best, best_value = start, -np.inf
    for step in _REFINE_STEPS:
        for _ in range(3):
            around = best + step * _NEIGHBOURS
            around[:, 2:] = np.maximum(around[:, 2:], 0.12)
            values = score(around) + _size_reward(around)
            index = int(values.argmax())
            if values[index] <= best_value + 1e-9:
                break
            best, best_value = around[index], float(values[index])
    x, y, half_width, half_height = (float(value) for value in best)
    return Placement((x, y, half_width, half_height), mirrored, float(score(best[None])[0]))

"""The average outline of the two lungs, drawn by hand, and where it sits in a given radiograph.

The outline is a handful of points a lung, in a frame whose origin is on the midline, half-way between the apices and
the costophrenic angles: x = ±1 at the lateral ends, y = −1 at the apices, y = 1 at the angles. Placing it takes eight
numbers: centre (x, y), half-size (x, y), how deep the heart's notch is in each lung and how much further down than
usual each lung's base reaches. The best placement is the one whose outline crosses the image from dark (lung) to bright
(chest wall, mediastinum, diaphragm) everywhere. Both lungs may have the notch, so a mirrored image gives the mirrored
outline. The method and its numbers are ours.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[Any]

# The lung on the image's right without and with the heart's notch: from the apex down the chest wall to the
# costophrenic angle, along the diaphragm towards the midline and up the mediastinum.
_PLAIN = (
    (0.26, -0.97), (0.40, -1.00), (0.53, -0.95), (0.65, -0.82), (0.76, -0.60), (0.85, -0.32), (0.91, 0.00),
    (0.95, 0.30), (0.98, 0.60), (1.00, 0.95), (0.88, 0.80), (0.70, 0.69), (0.50, 0.64), (0.30, 0.70),
    (0.21, 0.68), (0.20, 0.50), (0.22, 0.25), (0.17, 0.00), (0.13, -0.30), (0.12, -0.60), (0.17, -0.84),
)  # fmt: skip
_NOTCHED = (
    (0.26, -0.97), (0.40, -1.00), (0.53, -0.95), (0.65, -0.82), (0.76, -0.60), (0.85, -0.32), (0.91, 0.00),
    (0.95, 0.30), (0.98, 0.60), (1.00, 0.95), (0.90, 0.84), (0.78, 0.77), (0.66, 0.76), (0.57, 0.74),
    (0.51, 0.60), (0.46, 0.40), (0.38, 0.20), (0.23, -0.02), (0.20, -0.30), (0.13, -0.60), (0.16, -0.84),
)  # fmt: skip
_INNER = slice(10, 20)  # the points of diaphragm and mediastinum: no air behind them, unlike the chest wall
_BASE_FROM = -0.2  # a longer or shorter base stretches what lies below this y

_POINTS = 40  # a lung, while searching
_LOCAL_SIGMA = 30 / 256  # of the neighbourhood whose contrast scales all changes of brightness

# What placements cost or earn besides their score.
_USUAL_SIZE = (0.37, 0.36)  # half-width and half-height: smaller ones cost a little, larger ones more
_SMALL_WEIGHT = 0.07
_LARGE_WEIGHT = 0.2
_ASPECT_WEIGHT = 0.02
_NOTCH_REWARD = 0.02  # the deeper notch of the two: a heart there is, however faint beside the spine
_BASE_WEIGHT = 0.3

# First an exhaustive search at 32×32 over centre and size ...
_GRID_SIZE = 32
_GRID_BLUR = 2.0  # pixels at 128×128
_GRID_CLIP = 0.3  # one strong edge counts no more than this
_GRID_NOTCH = 0.3
_DIRECTIONS = 16  # outward normals are rounded to this many directions
_STARTS = 2
_START_DISTANCE = 0.06

# ... then climbing at 128×128 in all eight numbers: from every start by the first step, from the best by the others.
_CLIMB_SIZE = 128
_CLIMB_STEPS = (0.03, 0.015, 0.007)
_CLIMB_ROUNDS = 4
_NOTCH_STEP, _BASE_STEP = 10.0, 3.0  # notches and bases move in steps this much larger
_NOTCH_RANGE = (-0.2, 1.3)
_SMALLEST_HALF_SIZE = 0.12
_EDGE_BLUR = 1.0
_BAND_BLUR = 3.0
_BAND_DISTANCE = 0.06 * _CLIMB_SIZE
_BAND_CLIP = 2.0
_BAND_WEIGHT = 0.6
_CONTRAST_FLOOR = 0.1


@dataclass(frozen=True)
class Placement:
    """The average outline placed in an image.

    Attributes:
        centre: x and y, with the image's width and height as 1.
        half_size: Half-width and half-height, in the same units.
        notches: Depth of the heart's notch in the image-left and the image-right lung; 1 is the average left lung's.
        bases: How much further down than usual the two lungs reach, in half-heights.
        score: How much darker the inside of the outline is than its outside, in local standard deviations; see
            :func:`place_outline`. About 0.4 to 0.7 on chest radiographs.
    """

    centre: tuple[float, float]
    half_size: tuple[float, float]
    notches: tuple[float, float]
    bases: tuple[float, float]
    score: float

    def outline(self, points: int) -> FloatArray:
        """Return both outlines in image units, shape (2, points, 2), the image-left lung first."""
        plain, notch, base = average_outline(points)
        notches, bases = (np.reshape(change, (2, 1, 1)) for change in (self.notches, self.bases))
        return (plain + notch * notches + base * bases) * self.half_size + self.centre


PRIOR = Placement(centre=(0.5, 0.45), half_size=(0.36, 0.36), notches=(0.0, 1.0), bases=(0.0, 0.0), score=0.0)
"""Where the outline goes when the image says nothing: the usual place and size, the heart on the image's right."""


def average_outline(points: int) -> FloatArray:
    """Return the hand-drawn outlines with about equally spaced points, and the ways they vary.

    Args:
        points: Number of points a lung.

    Returns:
        Array of shape (3, 2, points, 2): the outlines without the heart's notch, what a notch of depth 1 adds to them,
        and what a base lower by 1 adds. Image-left lung first, x before y.
    """
    along = _arc_length()
    at = np.linspace(0, along[-1], points, endpoint=False)

    def both_lungs(lung: FloatArray) -> FloatArray:
        right = np.stack([np.interp(at, along, np.append(lung[:, axis], lung[0, axis])) for axis in (0, 1)], axis=1)
        return np.stack([right * (-1, 1), right])

    plain, notched = both_lungs(np.array(_PLAIN)), both_lungs(np.array(_NOTCHED))
    base = np.zeros_like(plain)
    base[..., 1] = np.maximum(plain[..., 1] - _BASE_FROM, 0) / (1 - _BASE_FROM)
    return np.stack([plain, notched - plain, base])


def _arc_length() -> FloatArray:
    """Return the way from the first point to every point of the mean of the two drawn outlines, and back to it."""
    mean = (np.array(_PLAIN) + np.array(_NOTCHED)) / 2
    closed = np.vstack([mean, mean[:1]])
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])


def outward_normals(outline: FloatArray) -> FloatArray:
    """Return normals that point out of closed outlines of shape (..., points, 2).

    They are as long as the chord between a point's two neighbours.
    """
    following, preceding = np.roll(outline, -1, axis=-2), np.roll(outline, 1, axis=-2)
    chord = following - preceding
    normal = np.stack([chord[..., 1], -chord[..., 0]], axis=-1)
    cross = outline[..., 0] * following[..., 1] - following[..., 0] * outline[..., 1]
    return np.where(cross.sum(-1)[..., None, None] < 0, -normal, normal)


def local_contrast(image: FloatArray) -> FloatArray:
    """Return the standard deviation of brightness in a Gaussian neighbourhood of each pixel of a square image."""
    size = image.shape[0]
    small = (32, 32)  # the neighbourhood is wide: coarse pixels do
    moments = cv2.resize(np.dstack([image, image * image]), small, interpolation=cv2.INTER_AREA)
    moments = cv2.GaussianBlur(moments, (0, 0), _LOCAL_SIGMA * small[0])
    variance = np.maximum(moments[..., 1] - moments[..., 0] ** 2, 0)
    return cv2.resize(np.sqrt(variance), (size, size), interpolation=cv2.INTER_LINEAR)


def place_outline(image: FloatArray) -> Placement:
    """Find the placement whose outline best separates dark inside from bright outside.

    The score of a placement is the mean over the outline of the outward gradient; along diaphragm and mediastinum the
    difference between a band outside and a band inside is added, since ribs have edges too but dark lung behind them.
    Everything is in units of the local contrast. An unusual size or shape costs a little.

    Args:
        image: Square float32 radiograph, air dark, at least 128×128.

    Returns:
        The best placement. Always a result: look at its score.
    """
    small = cv2.resize(image, (_CLIMB_SIZE, _CLIMB_SIZE), interpolation=cv2.INTER_AREA)
    contrast = local_contrast(small) + _CONTRAST_FLOOR
    edges = _gradient(cv2.GaussianBlur(small, (0, 0), _EDGE_BLUR)) / contrast[..., None]
    bands = cv2.GaussianBlur(small, (0, 0), _BAND_BLUR) / contrast
    starts = _search_grid(_gradient(cv2.GaussianBlur(small, (0, 0), _GRID_BLUR)) / contrast[..., None])
    climbed = [_climb(edges, bands, start, _CLIMB_STEPS[:1]) for start in starts]
    best = max(climbed, key=lambda found: found[1] + _prior(found[0]))[0]
    best, score = _climb(edges, bands, best, _CLIMB_STEPS[1:])
    centre, half_size, notches, bases = ((float(a), float(b)) for a, b in best.reshape(4, 2))
    return Placement(centre, half_size, notches, bases, score)


def _gradient(image: FloatArray) -> FloatArray:
    """Return the change of brightness a pixel, shape (H, W, 2), x before y."""
    return np.dstack([cv2.Sobel(image, cv2.CV_32F, dx, 1 - dx, scale=1 / 8) for dx in (1, 0)])


def _prior(placements: FloatArray) -> FloatArray:
    """Return how usual placements (..., 8) are: 0 for the usual size and shape but for the notch's reward."""
    width, height = (np.log(placements[..., 2 + axis] / _USUAL_SIZE[axis]) for axis in (0, 1))
    area = width + height
    size = np.where(area < 0, _SMALL_WEIGHT * area, -_LARGE_WEIGHT * area**2) - _ASPECT_WEIGHT * (width - height) ** 2
    notch = _NOTCH_REWARD * placements[..., 4:6].max(axis=-1)
    return size + notch - _BASE_WEIGHT * (placements[..., 6:] ** 2).sum(axis=-1)


@cache
def _frame() -> tuple[FloatArray, FloatArray, NDArray[np.intp]]:
    """Return what placing the outline needs, computed once.

    Returns:
        The average outline and its variations, shape (3, 2, points, 2); their outward normals, likewise (normals are
        linear in the variations); the indices of diaphragm and mediastinum among the points of both lungs in a row.
    """
    outlines = average_outline(_POINTS)
    normals = outward_normals(outlines[0])
    varied = outward_normals(outlines[0] + outlines[1:]) - normals
    along = _arc_length()
    at = np.linspace(0, along[-1], _POINTS, endpoint=False)
    inner = np.tile((at >= along[_INNER.start]) & (at <= along[_INNER.stop - 1]), 2)
    return outlines.astype(np.float32), np.stack([normals, *varied]).astype(np.float32), np.flatnonzero(inner)


def _place(placements: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return points and outward unit normals, both (N, 2 · points, 2), of the outlines at placements (N, 8)."""
    outlines, normals, _ = _frame()
    centre, size = placements[:, None, None, :2], placements[:, None, None, 2:4]
    notches, bases = placements[:, 4:6, None, None], placements[:, 6:8, None, None]
    at = (outlines[0] + outlines[1] * notches + outlines[2] * bases) * size + centre
    normal = (normals[0] + normals[1] * notches + normals[2] * bases) / size  # normals scale by the inverse
    normal /= np.sqrt((normal * normal).sum(-1, keepdims=True)) + 1e-12
    return at.reshape(len(placements), -1, 2), normal.reshape(len(placements), -1, 2)


@cache
def _grid() -> tuple[FloatArray, NDArray[np.int32]]:
    """Return candidate placements (N, 8) and, for each, the flat indices (N, points) into the direction images."""
    half_sizes = np.linspace(0.22, 0.52, 9)
    candidates = np.array(
        [
            (x, y, half_width, half_height, _GRID_NOTCH, _GRID_NOTCH, 0.0, 0.0)
            for half_width, half_height in product(half_sizes, half_sizes)
            for x, y in product(np.linspace(0.38, 0.62, 11), np.linspace(0.24, 0.66, 15))
            if 0.55 < half_height / half_width < 1.75
            and half_width - 0.06 < x < 1.06 - half_width
            and half_height - 0.06 < y < 1.12 - half_height
        ]
    )
    at, normal = _place(candidates)
    angle = np.arctan2(normal[..., 1], normal[..., 0])
    direction = np.round(angle / (2 * np.pi) * _DIRECTIONS).astype(int) % _DIRECTIONS
    pixel = np.clip((at * _GRID_SIZE).astype(int), 0, _GRID_SIZE - 1)
    return candidates, ((direction * _GRID_SIZE + pixel[..., 1]) * _GRID_SIZE + pixel[..., 0]).astype(np.int32)


def _search_grid(gradient: FloatArray) -> list[FloatArray]:
    """Return the best placements of an exhaustive search that are not neighbours of each other."""
    angle = np.arange(_DIRECTIONS)[:, None, None] * (2 * np.pi / _DIRECTIONS)
    small = 2 * cv2.resize(gradient, (_GRID_SIZE, _GRID_SIZE), interpolation=cv2.INTER_AREA)
    change = np.clip(np.cos(angle) * small[..., 0] + np.sin(angle) * small[..., 1], -_GRID_CLIP, _GRID_CLIP)
    change[:, [0, -1], :] = 0
    change[:, :, [0, -1]] = 0
    candidates, indices = _grid()
    score = change.astype(np.float32).ravel()[indices].mean(axis=1) + _prior(candidates)
    starts: list[FloatArray] = []
    for index in np.argsort(-score, kind="stable"):
        if all(np.abs(candidates[index] - start).max() > _START_DISTANCE for start in starts):
            starts.append(candidates[index])
            if len(starts) == _STARTS:
                break
    return starts


def _unit_moves() -> FloatArray:
    """Return moves (N, 8): one number alone, or two that make up for each other, standing still first."""
    x, y, width, height, notch_left, notch_right, base_left, base_right = np.eye(8)
    pairs = [(x, y), (x, width), (x, height), (y, width), (y, height), (width, height)]
    pairs += [(notch_left, notch_right), (base_left, base_right), (notch_left, base_left), (notch_right, base_right)]
    pairs += [(y, base_left), (y, base_right), (height, base_left), (height, base_right)]
    moves = [np.zeros(8)]
    moves += [sign * number for number in np.eye(8) for sign in (-1, 1)]
    moves += [a * first + b * second for first, second in pairs for a, b in product((-1, 1), repeat=2)]
    moves += [sign * number for number in np.eye(8)[4:] for sign in (-2, 2)]
    return np.array(moves) * (1, 1, 1, 1, _NOTCH_STEP, _NOTCH_STEP, _BASE_STEP, _BASE_STEP)


_MOVES = _unit_moves()


def _climb(
    edges: FloatArray, bands: FloatArray, start: FloatArray, steps: tuple[float, ...]
) -> tuple[FloatArray, float]:
    """Climb from a placement to the best one around it, in steps that get smaller; return it and its score."""
    best, best_score = start, float(_scores(edges, bands, start[None])[0])
    for step in steps:
        for _ in range(_CLIMB_ROUNDS):
            around = best + step * _MOVES
            around[:, 2:4] = np.maximum(around[:, 2:4], _SMALLEST_HALF_SIZE)
            around[:, 4:6] = np.clip(around[:, 4:6], *_NOTCH_RANGE)
            scores = _scores(edges, bands, around)
            index = int((scores + _prior(around)).argmax())
            if scores[index] + _prior(around[index]) <= best_score + _prior(best) + 1e-9:
                break
            best, best_score = around[index], float(scores[index])
    return best, best_score


def _scores(edges: FloatArray, bands: FloatArray, placements: FloatArray) -> FloatArray:
    """Return the scores of placements (N, 8); a point outside the image crosses no edge."""
    at, normal = _place(placements.astype(np.float32))
    at = at * _CLIMB_SIZE - 0.5
    change = (sample(edges, at, cv2.BORDER_CONSTANT) * normal).sum(-1)
    inner = _frame()[2]
    away = _BAND_DISTANCE * normal[:, inner]
    outside, inside = (sample(bands, at[:, inner] + way, cv2.BORDER_REPLICATE) for way in (away, -away))
    change[:, inner] += _BAND_WEIGHT * np.clip(outside - inside, -_BAND_CLIP, _BAND_CLIP)
    return change.mean(axis=1)


def sample(image: FloatArray, at: FloatArray, border: int) -> FloatArray:
    """Return an image's values at points between its pixels, bilinearly.

    Args:
        image: Array of shape (H, W) or (H, W, C).
        at: Points of shape (N, M, 2), x before y, in pixels.
        border: OpenCV's code for what lies outside the image.

    Returns:
        Values of shape (N, M) or (N, M, C).
    """
    return cv2.remap(image, at.astype(np.float32), None, cv2.INTER_LINEAR, borderMode=border)  # type: ignore[call-overload]

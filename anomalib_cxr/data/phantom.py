"""Drawn chest radiographs: a PA film from a few dozen numbers, and lesions with pixel masks.

Everything is drawn in centimetres in the plane of the detector: organs are closed curves filled to thickness maps, the
thicknesses add up to an attenuation (the line integral of the absorption coefficient), and the attenuation is exposed:
transmission, scatter, quantum and electronic noise, logarithm, automatic exposure, tone curve. A lesion is an addition
to the attenuation, so the film of a patient with and without it differs nowhere else before exposure.

The design is ours; it copies no phantom. It is meant for trying methods out and for tests, not for conclusions about
patients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]

RENDERER_VERSION = 1
"""Part of the name of every cache of rendered films: raise it whenever any pixel changes."""

MIN_SIZE = 32
"""Smallest side of a film in pixels; below it ribs and nodules vanish."""

FIELD_CM = 35.0
"""Side of the square field of view in cm; a film that is not square shows more on its longer side."""

_WORK_SIZE = 256  # smaller films are drawn at least this large and averaged down, so that thin structures survive
_SOFT = 0.19  # attenuation of soft tissue per cm at about 110 kV
_AIR = 0.76  # share of the lung that is air
_COARSE = 64  # side of the square field where scatter and exposure are computed
_SUBPIXEL_BITS = 4  # fixed-point fraction that OpenCV's polygon filler reads


@dataclass(frozen=True)
class Patient:
    """What differs between patients: pose, build and exposure.

    Attributes:
        shift: (x, y) of the thorax relative to the centre of the film, cm.
        rotation: In the plane of the film, degrees.
        scale: Size of the thorax relative to the average.
        lung_width: Width of the lungs relative to the average.
        lung_height: Height of the lungs relative to the average (depth of inspiration).
        heart_width: Width of the heart relative to the average.
        rib_offset: Vertical shift of the rib cage against the lungs, cm.
        rib_spacing: Distance between neighbouring posterior ribs, cm.
        thickness: Of the body from front to back, cm.
        breast: Thickness of the breast shadow, cm (0: none).
        bone: Mineral density relative to the average.
        vessels: Strength of the vessel markings relative to the average.
        scatter: Scattered over primary radiation reaching the detector.
        dose: Detected quanta per cm² in air.
        brightness: Offset of the tone curve, in units of the film's range.
        contrast: Slope of the tone curve relative to the average.
        gamma: Exponent of the tone curve.
    """

    shift: tuple[float, float]
    rotation: float
    scale: float
    lung_width: float
    lung_height: float
    heart_width: float
    rib_offset: float
    rib_spacing: float
    thickness: float
    breast: float
    bone: float
    vessels: float
    scatter: float
    dose: float
    brightness: float
    contrast: float
    gamma: float


@dataclass(frozen=True)
class Phantom:
    """A drawn film and what is known about it.

    Attributes:
        image: (H, W) float32 in [0, 1], bone bright, air dark.
        mask: (H, W) bool, the lesion; all False where there is none.
        lungs: (H, W) bool, both lungs of the patient without the heart, and with any lesion inside them.
        attenuation: (H, W) float32, line integrals of the absorption before exposure and noise, 0 in air.
        kind: One of :data:`LESIONS`, or None for a normal film.
        patient: The numbers the film was drawn from.
    """

    image: Array
    mask: Mask
    lungs: Mask
    attenuation: Array
    kind: str | None
    patient: Patient


def render_phantom(size: int | tuple[int, int], seed: int, index: int, lesion: str | None = None) -> Phantom:
    """Draw the chest film of one patient.

    A pure function of its arguments: no order, worker count or earlier call changes a pixel. The anatomy depends on
    ``seed`` and ``index`` alone, so the same patient can be drawn with and without a lesion and at several sizes.

    Args:
        size: Side of a square film, or (height, width), in pixels; at least :data:`MIN_SIZE`.
        seed: Of the population, non-negative.
        index: Of the patient in the population, non-negative.
        lesion: One of :data:`LESIONS`; None draws a normal film.

    Returns:
        The film, its lesion mask, its lungs and the patient.

    Raises:
        ValueError: If the size is too small, the seed or index negative, or the lesion unknown.

    Examples:
        >>> film = render_phantom(64, seed=0, index=3, lesion="nodule")
        >>> film.image.shape, film.image.dtype, bool(film.mask.any())
        ((64, 64), dtype('float32'), True)
    """
    height, width = check_size(size)
    if seed < 0 or index < 0:
        msg = f"Phantom seed and index must be non-negative, got seed={seed}, index={index}."
        raise ValueError(msg)
    if lesion is not None:
        check_kinds([lesion])

    factor = -(-_WORK_SIZE // min(height, width))
    anatomy_rng, lesion_rng, noise_rng = (_stream(seed, index, stream) for stream in range(3))
    patient = _draw_patient(anatomy_rng)
    chest = _Chest(_Canvas(height * factor, width * factor, patient), patient, anatomy_rng)
    attenuation, mask = chest.attenuation, np.zeros(chest.attenuation.shape, dtype=bool)
    if lesion is not None:
        added, mask = _LESIONS[lesion](chest, lesion_rng)
        attenuation = attenuation + added
    image = _expose(attenuation, chest.canvas, patient, noise_rng)
    lungs = chest.lungs > 0.5
    if factor > 1:
        image, attenuation = (_resize(field, (height, width), cv2.INTER_AREA) for field in (image, attenuation))
        share = _resize(mask.astype(np.float32), (height, width), cv2.INTER_AREA)
        mask = share >= max(min(0.5, float(share.max())), 1e-6)  # the smallest nodule keeps a pixel on a tiny film
        lungs = _resize(lungs.astype(np.float32), (height, width), cv2.INTER_AREA) > 0.5
    return Phantom(image, mask, lungs, attenuation, lesion, patient)


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Turn a film size into (height, width).

    Raises:
        ValueError: If it is not one or two integers of at least :data:`MIN_SIZE`.
    """
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or any(not isinstance(side, (int, np.integer)) or side < MIN_SIZE for side in pair):
        msg = f"Phantom size must be one or two integers of at least {MIN_SIZE} pixels, got {size!r}."
        raise ValueError(msg)
    return int(pair[0]), int(pair[1])


def check_kinds(kinds: list[str] | tuple[str, ...]) -> None:
    """Refuse lesion kinds that nobody can draw.

    Raises:
        ValueError: If a kind is unknown; names the known ones.
    """
    unknown = [kind for kind in kinds if kind not in _LESIONS]
    if unknown:
        msg = f"Unknown lesion kind {unknown[0]!r}: choose from {', '.join(_LESIONS)}."
        raise ValueError(msg)


def _stream(seed: int, index: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, index, stream))))


def _resize(field: Array, shape: Sequence[int], how: int) -> Array:
    """A field at another (height, width)."""
    return np.asarray(cv2.resize(field, shape[::-1], interpolation=how), np.float32)


def _draw_patient(rng: np.random.Generator) -> Patient:
    def spread(mean: float, deviation: float) -> float:
        """Normal, cut at two deviations: no patient is an outlier by pose alone."""
        return mean + deviation * float(np.clip(rng.standard_normal(), -2, 2))

    return Patient(
        shift=(spread(0, 0.35), spread(0, 0.4)),
        rotation=spread(0, 0.8),
        scale=spread(1, 0.02),
        lung_width=spread(1, 0.02),
        lung_height=spread(1, 0.025),
        heart_width=spread(1, 0.04),
        rib_offset=spread(0, 0.25),
        rib_spacing=spread(2.35, 0.04),
        thickness=spread(22, 1.6),
        breast=max(0.0, float(rng.uniform(-2.5, 2.5))),
        bone=spread(1, 0.12),
        vessels=spread(1, 0.15),
        scatter=spread(0.35, 0.08),
        dose=float(np.exp(spread(np.log(3e6), 0.3))),
        brightness=spread(0, 0.03),
        contrast=spread(1, 0.06),
        gamma=spread(1, 0.08),
    )


class _Canvas:
    """The film as a grid over the patient: centimetres to pixels and back.

    Attributes:
        x: (H, W) horizontal position of each pixel in the patient's frame, cm, positive towards the patient's left.
        y: (H, W) vertical position, cm, positive towards the feet.
        scale: Pixels per cm.
    """

    def __init__(self, height: int, width: int, patient: Patient) -> None:
        self.shape = (height, width)
        self.scale = min(height, width) / FIELD_CM * patient.scale
        angle = np.deg2rad(patient.rotation)
        cosine, sine = np.cos(angle), np.sin(angle)
        self._turn = np.array([[cosine, sine], [-sine, cosine]])
        self._centre = np.array([width - 1, height - 1]) / 2 + np.array(patient.shift) * self.scale
        columns = ((np.arange(width) - self._centre[0]) / self.scale)[None]
        rows = ((np.arange(height) - self._centre[1]) / self.scale)[:, None]
        self.x = (columns * cosine).astype(np.float32) + (rows * sine).astype(np.float32)
        self.y = (rows * cosine).astype(np.float32) - (columns * sine).astype(np.float32)

    def pixels(self, points: Points) -> npt.NDArray[np.int32]:
        """Points (..., 2) in cm as the fixed-point pixel positions OpenCV draws at."""
        unit = 1 << _SUBPIXEL_BITS
        positions = points.reshape(-1, 2) @ (self._turn * (self.scale * unit)) + self._centre * unit
        return np.rint(positions).astype(np.int32).reshape(points.shape)

    def fill(self, *polygons: Points, values: Sequence[float] = ()) -> Array:
        """Polygons (N, 2), or stacks (K, N, 2), in cm, drawn one over the other.

        Args:
            polygons: Outlines; those of one stack must not overlap.
            values: What each polygon or stack is filled with, in [0, 1] to steps of 1/255; 1 if left out.

        Returns:
            (H, W) in [0, 1]; pixels at a rim hold the share that is covered.
        """
        drawn = np.zeros(self.shape, np.uint8)
        for stack, value in zip(polygons, values or [1.0] * len(polygons), strict=True):
            outlines = list(self.pixels(np.atleast_3d(stack.T).T))
            cv2.fillPoly(drawn, outlines, round(255 * value), cv2.LINE_AA, _SUBPIXEL_BITS)
        return drawn * np.float32(1 / 255)

    def blur(self, field: Array, sigma: float) -> Array:
        """Gaussian blur by ``sigma`` cm."""
        return np.asarray(cv2.GaussianBlur(field, (0, 0), sigma * self.scale), np.float32)

    def enlarge(self, field: Array) -> Array:
        """A field drawn on a coarser canvas of the same patient, at this one's resolution."""
        return _resize(field, self.shape, cv2.INTER_LINEAR)

    def noise(self, rng: np.random.Generator, period: float, strength: float) -> Array:
        """Smooth noise (H, W) with the given period in cm and about the given deviation, the same at every size."""
        cells = [max(4, math.ceil(side / min(self.shape) * FIELD_CM / period)) for side in self.shape]
        # A stream of its own, so that what is drawn afterwards doesn't depend on the number of cells.
        own = np.random.Generator(np.random.SFC64(rng.integers(1 << 63)))
        grid = own.standard_normal(cells, dtype=np.float32) * np.float32(1.5 * strength)
        half = _resize(grid, [-(-side // 2) for side in self.shape], cv2.INTER_CUBIC)
        return self.enlarge(half)

    def inside(self, filled: Array, rise: float, depth: float) -> Array:
        """Thickness of a rounded body: 0 at the rim, ``depth`` from ``rise`` cm inwards, a quarter circle between."""
        way: Array = np.asarray(cv2.distanceTransform((filled > 0.5).view(np.uint8), cv2.DIST_L2, 5), np.float32)
        way *= np.float32(1 / (rise * self.scale))
        np.minimum(way, 1, out=way)
        way *= 2 - way
        np.sqrt(way, out=way)
        way *= filled
        way *= np.float32(depth)
        return way


def _spline(points: Points, steps: int = 8) -> Points:
    """Closed Catmull-Rom curve through (..., N, 2) points, as (..., N * steps, 2) points."""
    return _spline_weights(points.shape[-2], steps) @ points


@lru_cache
def _spline_weights(count: int, steps: int) -> Points:
    """Share (count * steps, count) of each control point in each point of a closed Catmull-Rom curve."""
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    before, start, end, after = (np.roll(np.eye(count), shift, axis=0)[:, None] for shift in (1, 0, -1, -2))
    curve = start + 0.5 * t * (
        end - before + t * (2 * before - 5 * start + 4 * end - after + t * (3 * (start - end) + after - before))
    )
    return curve.reshape(-1, count)


def _open_spline(points: Points, steps: int = 8) -> Points:
    """Smooth curve from the first to the last of (..., N, 2) points."""
    first, last = 2 * points[..., :1, :] - points[..., 1:2, :], 2 * points[..., -1:, :] - points[..., -2:-1, :]
    return _spline(np.concatenate([first, points, last], axis=-2), steps)[..., steps : -2 * steps + 1, :]


def _band(centre: Points, width: Points | float) -> Points:
    """Outlines (..., 2N, 2) of strips of the given width(s) along lines of (..., N, 2) points."""
    along = np.empty_like(centre)
    along[..., 1:-1, :] = centre[..., 2:, :] - centre[..., :-2, :]
    along[..., 0, :] = centre[..., 1, :] - centre[..., 0, :]
    along[..., -1, :] = centre[..., -1, :] - centre[..., -2, :]
    along *= np.asarray(width)[..., None] / 2 / np.sqrt(np.square(along).sum(axis=-1, keepdims=True))
    half = along[..., ::-1] * [1, -1]
    return np.concatenate([centre + half, (centre - half)[..., ::-1, :]], axis=-2)


_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 40)), np.sin(np.linspace(0, 2 * np.pi, 40))], axis=1)


def _ellipse(x: float, y: float, rx: float, ry: float) -> Points:
    """Outline (N, 2) of an ellipse with its centre and half axes in cm."""
    return _CIRCLE * [rx, ry] + [x, y]


def _mirror(points: Points) -> Points:
    return points * [-1, 1]


# Outlines in cm, origin at the centre of the thorax, the patient's left side (x is mirrored for the other), drawn by
# eye after adult PA films.
_LUNG = np.array(
    [
        (5.2, -13.6), (8.1, -12.1), (10.3, -9.2), (11.9, -5.0), (12.9, 0.0), (13.4, 4.0), (13.6, 8.0),
        (13.4, 11.2), (11.9, 9.0), (9.0, 7.2), (6.0, 6.6), (3.6, 6.9), (2.3, 7.4),
        (2.2, 6.0), (2.6, 1.0), (2.8, -3.0), (2.6, -7.0), (2.3, -10.2), (3.0, -12.6),
    ]
)  # fmt: skip
_LUNG_WALL, _LUNG_BASE = slice(0, 8), slice(8, 13)
_HEART = np.array(
    [
        (-1.6, -3.0), (-3.4, 0.2), (-4.1, 3.4), (-3.6, 6.6), (-0.8, 8.8), (3.2, 9.8), (6.6, 9.2),
        (8.5, 6.8), (8.0, 4.0), (6.5, 1.0), (4.7, -1.4), (3.3, -3.4), (0.8, -4.4),
    ]
)  # fmt: skip
_TRUNK = np.array(
    [
        (3.8, -40.0), (4.0, -19.0), (4.8, -16.6), (8.0, -15.2), (13.0, -14.4), (17.5, -13.0), (20.5, -9.0), (21.5, 0.0),
        (19.6, 1.5), (18.2, -0.5), (17.2, 2.0), (16.8, 6.0), (17.0, 14.0), (17.3, 22.0), (17.6, 60.0),
    ]
)  # fmt: skip
_CLAVICLE = np.array([(1.4, -8.8), (4.5, -9.8), (8.0, -11.6), (11.5, -12.9), (15.0, -12.9)])
_SHOULDER_BLADE = np.array([(12.9, -12.5), (12.2, -6.0), (14.0, 1.5), (15.2, -3.0), (15.4, -9.0)])
_ARM = np.array([(17.3, -11.5), (19.0, -4.0), (19.9, 6.0)])
_VERTEBRA = np.array([(-1.0, 0.0), (-0.92, 1.0), (-1.0, 2.05), (1.0, 2.05), (0.92, 1.0), (1.0, 0.0)])
_WINDPIPE = np.array([(0.0, -25.0), (0.1, -12.0), (-0.1, -7.0), (-0.2, -4.2)])
_BRONCHI = np.array([[(-0.4, -4.6), (-2.8, -1.8)], [(0.2, -4.6), (3.2, -2.2)]])

# Great vessels that bound the mediastinum (aortic arch, pulmonary trunk, upper vena cava), and the hila beside it.
_GREAT_VESSELS = [_ellipse(2.8, -5.3, 2.0, 1.8), _ellipse(3.1, -2.3, 1.8, 1.4), _ellipse(-2.4, -6.5, 1.1, 4.0)]
_HILA = [_ellipse(-4.0, -0.2, 1.1, 1.9), _ellipse(4.2, -1.0, 1.1, 1.7)]


class _Chest:
    """The normal anatomy of one patient as fields over the film.

    Attributes:
        canvas: The film.
        patient: The numbers it is drawn from.
        outlines: Lung outlines (N, 2) in cm: the patient's right (left on the film), then left.
        sides: Share of each pixel covered by each of the two lungs, (H, W) in [0, 1].
        lungs: Both lungs without the heart, (H, W) in [0, 1].
        lung_depth: Thickness of both lungs, cm, as if there were no heart.
        heart_outline: (N, 2) control points in cm.
        heart_depth: Thickness of the heart, cm.
        vessels: Thickness of the vessel markings, cm.
        tissue: Thickness of all that lies within the lungs' depth and is not air, cm.
        attenuation: Sum of it all.
    """

    def __init__(self, canvas: _Canvas, patient: Patient, rng: np.random.Generator) -> None:
        self.canvas, self.patient = canvas, patient
        self.outlines = self._lung_outlines(rng)
        self.sides = [canvas.fill(outline) for outline in self.outlines]
        both = self.sides[0] + self.sides[1]
        self.lung_depth = canvas.inside(both, 4.5, 0.66 * patient.thickness)
        self.heart_outline = _HEART * [patient.heart_width, 1] + rng.normal(0, 0.1, _HEART.shape)
        self.heart_depth, heart = self.draw_heart(self.heart_outline)
        great = canvas.fill(*_GREAT_VESSELS)
        self.lungs = both * (1 - np.maximum(heart, great))
        self.vessels = self._vessels(rng)
        self.vessels *= both
        self.tissue = canvas.blur(great, 0.15) * np.float32(6)
        self.tissue += self.heart_depth
        self.tissue += self.vessels
        self.attenuation = self._ribs_and_clavicles(rng)
        coarse = _Canvas(-(-canvas.shape[0] // 2), -(-canvas.shape[1] // 2), patient)
        self.attenuation += canvas.enlarge(self._background(coarse, rng))
        self.attenuation -= self.air(self.tissue)

    def draw_heart(self, outline: Points) -> tuple[Array, Array]:
        """Thickness (H, W) in cm and silhouette (H, W) in [0, 1] of the heart with the given control points."""
        silhouette = self.canvas.fill(_spline(outline))
        return self.canvas.inside(silhouette, 1.5, 9.0), silhouette

    def air(self, tissue: Array) -> Array:
        """Attenuation (H, W) that the air in the lungs spares, where ``tissue`` cm of the lung are something else."""
        return np.maximum(self.lung_depth - tissue, 0) * np.float32(_AIR * _SOFT)

    def _lung_outlines(self, rng: np.random.Generator) -> list[Points]:
        patient, outlines = self.patient, []
        for side, dome in ((-1, -0.7), (1, 0.4)):  # the right dome stands higher
            points = _LUNG * [patient.lung_width, patient.lung_height] + rng.normal(0, 0.12, _LUNG.shape)
            points[_LUNG_BASE, 1] += dome + rng.normal(0, 0.25)
            outlines.append(_spline(points * [side, 1]))
        return outlines

    def _vessels(self, rng: np.random.Generator) -> Array:
        """Vessels that fan out of the hila and get thinner with every fork, over a fine texture."""
        canvas, levels = self.canvas, []
        fans = np.linspace(-1.35, 1.35, 9) + rng.normal(0, 0.12, (2, 9))
        begin = np.stack([np.repeat([-3.6, 3.8], 9), fans.ravel() * 1.1 - 0.4], axis=1)
        heading = np.concatenate([np.pi - fans[0], fans[1]])
        for level in range(6):
            length = 2.5 * 0.88**level * rng.uniform(0.7, 1.3, len(heading))
            end = begin + length[:, None] * np.stack([np.cos(heading), np.sin(heading)], axis=1)
            levels.append(np.stack([begin, end], axis=1))
            begin = np.concatenate([end, end])
            fork = rng.uniform(0.15, 0.5, len(heading)) * (1 if level else 0.6)
            heading = np.concatenate([heading + fork, heading - fork])
        drawn = np.zeros(canvas.shape, np.uint8)
        for level in reversed(range(6)):  # thin first, so that the trunks lie on top
            width = 0.5 * 0.68**level * canvas.scale
            grey = 255 * 0.75**level * min(1.0, width)
            lines = list(canvas.pixels(levels[level]))
            cv2.polylines(drawn, lines, False, grey, max(1, round(width)), cv2.LINE_AA, _SUBPIXEL_BITS)
        markings = canvas.blur(drawn * np.float32(1.5 / 255), 0.05)
        texture = canvas.noise(rng, 0.7, 0.10) + canvas.noise(rng, 1.7, 0.12)
        return (markings + texture) * np.float32(self.patient.vessels)

    def _background(self, canvas: _Canvas, rng: np.random.Generator) -> Array:
        """Attenuation (H, W) of all that has no sharp edges, so that a coarser canvas will do."""
        patient = self.patient
        trunk = _open_spline(_TRUNK, 4)
        body = canvas.inside(canvas.fill(np.concatenate([trunk, _mirror(trunk)[::-1]])), 4.5, patient.thickness)
        soft = body + canvas.noise(rng, 9.0, 0.45) + canvas.noise(rng, 4.0, 0.25)
        if patient.breast:
            for x in (-7.6, 7.6):
                reach = np.square((canvas.x - np.float32(x)) / 5.4) + np.square((canvas.y - np.float32(3.6)) / 5.2)
                soft += np.sqrt(np.maximum(1 - reach, 0)) * np.float32(patient.breast)

        # Air in the windpipe, its two branches and the stomach.
        airways = canvas.fill(_band(_BRONCHI, 1.1), _band(_WINDPIPE, 1.7), values=(0.7, 1))
        stomach = _ellipse(rng.normal(6.8, 0.4), rng.normal(10.8, 0.3), rng.uniform(1.8, 2.8), rng.uniform(0.8, 1.3))
        soft -= canvas.blur(airways, 0.2) * np.float32(1.6)
        soft -= canvas.blur(canvas.inside(canvas.fill(stomach), 1.0, rng.uniform(1.0, 4.5)), 0.15)
        soft += canvas.blur(canvas.fill(*_HILA), 0.5) * np.float32(1.3)

        # Spine: vertebral bodies with lighter discs between, spinous processes and pedicles.
        tops = np.arange(-18.5, 24.0, 2.45)[:, None, None] + rng.normal(0, 0.3)
        place, wide = tops * [0, 1], 1.5 + 0.02 * (tops + 18.5)
        vertebrae = _VERTEBRA * (wide * [1, 0] + [0, 1]) + place
        pedicles = [_ellipse(0, 0.6, 0.3, 0.42) + place + wide * [side, 0] for side in (-0.6, 0.6)]
        knobs = np.concatenate([_ellipse(0, 1.6, 0.3, 0.65) + place, *pedicles])
        # Shoulder blades and upper arms, mostly outside the lungs.
        blades, arms = (np.stack([outline, _mirror(outline)]) for outline in (_SHOULDER_BLADE, _ARM))
        bones = canvas.fill(vertebrae, knobs, _spline(blades), _band(arms, 2.6), values=(0.32, 0.52, 0.22, 1))
        soft = np.maximum(soft, 0) * np.float32(_SOFT) * (body > 0)
        return soft + canvas.blur(bones, 0.15) * np.float32(0.5 * patient.bone)

    def _ribs_and_clavicles(self, rng: np.random.Generator) -> Array:
        canvas = self.canvas
        (behind, behind_width), (front, front_width) = self._ribs()
        bones = self._tubes(front, front_width) * np.float32(0.22)
        bones += self._tubes(behind, behind_width) * np.float32(0.4)
        # Over the heart and below the diaphragm, scatter leaves little of the ribs.
        bones *= canvas.blur(self.lungs, 0.3) * np.float32(0.7) + np.float32(0.3)

        lift, tilt = rng.normal(0, 0.4, (2, 1, 1)), rng.normal(0, 0.5, (2, 1, 1))
        clavicles = _CLAVICLE + (lift + tilt * np.linspace(0, 1, len(_CLAVICLE))[:, None]) * [0, 1]
        clavicles[0] *= [-1, 1]
        drawn = self._tubes(_open_spline(clavicles), 1.3)
        drawn *= np.clip(np.abs(canvas.x) * np.float32(0.12), np.float32(0.2), np.float32(0.6))
        bones += drawn
        bones *= np.float32(self.patient.bone)
        return bones

    def _ribs(self) -> tuple[tuple[Points, Points], tuple[Points, Points]]:
        """Centre lines (K, N, 2) and widths (N,) of the posterior and the anterior ribs.

        A rib is a hoop that tilts downwards to the front, so its projection is half an ellipse: level at the spine,
        turning at the chest wall, running steeply back towards the breastbone.
        """
        patient = self.patient
        wall_y, wall_x = (_LUNG[_LUNG_WALL] * [patient.lung_width, patient.lung_height]).T[::-1]
        number = np.arange(10.0)[:, None]
        top, drop = -13.8 + patient.rib_offset + number * patient.rib_spacing, 3.4 + 0.72 * number
        reach = np.interp(top + drop / 2, wall_y, wall_x) - 1.2

        def project(angle: Points, taper: Points, count: int) -> tuple[Points, Points]:
            y = top + drop * (1 - np.cos(angle)) / 2
            x = np.minimum(1.7 + reach * np.sin(angle) ** 0.9, np.interp(y, wall_y, wall_x) + 0.4)  # along the wall
            lines = np.stack([x, y], axis=-1)[:count]
            return np.concatenate([lines, _mirror(lines)]), 1.15 * taper

        behind, front = np.linspace(0.02, 0.55, 26) * np.pi, np.linspace(0.45, 0.82, 18) * np.pi
        return (
            project(behind, np.interp(behind, [0, 0.5, 1.4, 1.75], [0.55, 0.9, 1, 0.6]), 10),
            # Rib cartilage hardly shows: the lowest ribs have no more than that in front.
            project(front, np.interp(front, [1.4, 1.7, 2.3, 2.6], [0.6, 0.9, 1, 1.1]), 7),
        )

    def _tubes(self, lines: Points, width: Points | float) -> Array:
        """Hollow bones along lines (K, N, 2) that don't cross: the rim absorbs more than the marrow. Peak 1."""
        rim, marrow = _band(lines, width), _band(lines, np.multiply(width, 0.65))
        return self.canvas.blur(self.canvas.fill(rim, marrow, values=(1, 0.6)), 0.07)


def _expose(attenuation: Array, canvas: _Canvas, patient: Patient, rng: np.random.Generator) -> Array:
    """The film (H, W) in [0, 1] that a digital detector makes of an attenuation."""
    coarse = [_COARSE * side // min(canvas.shape) for side in canvas.shape]
    primary = np.exp(-attenuation)
    spread = _COARSE / FIELD_CM * 3.0
    scattered = np.asarray(cv2.GaussianBlur(_resize(primary, coarse, cv2.INTER_AREA), (0, 0), spread), np.float32)
    signal = canvas.enlarge(scattered * np.float32(patient.scatter))
    signal += primary
    variance = signal * np.float32(canvas.scale**2 / patient.dose) + np.float32(1e-8)
    grain = rng.standard_normal(canvas.shape, dtype=np.float32)
    grain *= np.sqrt(variance, out=variance)
    signal += grain
    film = -np.log(np.maximum(signal, np.float32(1e-4), out=signal), out=signal)

    # Automatic exposure: the device finds the range of the chest and maps it to the same greys in every patient.
    small = _resize(film, coarse, cv2.INTER_AREA)
    rows, columns = (slice(side // 2 - _COARSE // 3, side // 2 + _COARSE // 3) for side in small.shape)
    dark, bright = np.percentile(small[rows, columns], (5, 75))
    slope = 0.62 * patient.contrast / (bright - dark)
    grey = (film - np.float32((dark + bright) / 2)) * np.float32(slope) + np.float32(0.5 + patient.brightness)
    # A soft shoulder, so that dense parts approach white without a hard edge.
    dense = np.tanh((grey - np.float32(0.7)) * np.float32(1 / 0.3)) * np.float32(0.3) + np.float32(0.7)
    grey = np.maximum(np.minimum(grey, dense), 0)  # below 0.7 the tanh lies above
    return np.power(grey, np.float32(patient.gamma))


# Lesions. Each draws an addition to the attenuation and a mask from the anatomy and a random stream of its own.


def _nodule(chest: _Chest, rng: np.random.Generator) -> tuple[Array, Mask]:
    """A soft, slightly lobulated ball in the lung, 1.6 to 4 cm across."""
    canvas, radius = chest.canvas, rng.uniform(0.8, 2.0)
    x, y = _point_in_lung(chest, rng, 0.6 * radius + 0.5)
    dx, dy = canvas.x - np.float32(x), canvas.y - np.float32(y)
    angle, rim = np.arctan2(dy, dx), np.ones(canvas.shape, np.float32)
    for lobes in (2, 3, 5):
        rim += np.float32(rng.uniform(0, 0.09)) * np.cos(np.float32(lobes) * angle + np.float32(rng.uniform(0, 6.3)))
    reach = (dx * dx + dy * dy) / np.square(rim * np.float32(radius))
    chord = np.sqrt(np.maximum(1 - reach, 0))
    # Hardly thicker if larger: small nodules that are seen at all are dense.
    return canvas.blur(chord, 0.08) * np.float32(0.62 + 0.1 * radius), reach < 1


def _consolidation(chest: _Chest, rng: np.random.Generator) -> tuple[Array, Mask]:
    """Patchy filling of air spaces with a soft edge, 4 to 8 cm across, within one lung."""
    canvas = chest.canvas
    x, y = _point_in_lung(chest, rng, 2.0)
    rx, ry = rng.uniform(2.0, 4.2, 2)
    reach = np.square((canvas.x - np.float32(x)) / rx) + np.square((canvas.y - np.float32(y)) / ry)
    patches = canvas.noise(rng, 1.6, 0.3) + canvas.noise(rng, 0.7, 0.15)
    within = chest.lungs * chest.sides[int(x > 0)]
    filled = canvas.blur(np.clip(np.float32(1.2) - reach + patches, 0, 1) * within, 0.3) * within
    filled = np.maximum(filled - np.float32(0.15), 0) * np.float32(1 / 0.85)  # no faint patches outside the mask
    return filled * np.float32(rng.uniform(0.6, 0.9)), filled > 0.12


def _effusion(chest: _Chest, rng: np.random.Generator) -> tuple[Array, Mask]:
    """Fluid that fills the costophrenic angle of one lung and climbs the chest wall in a meniscus."""
    canvas, side = chest.canvas, int(rng.integers(2))
    level, climb = rng.uniform(2.5, 6.5), rng.uniform(2.5, 4.5)
    outward = np.clip(canvas.x * np.float32((2 * side - 1) / (13.5 * chest.patient.lung_width)), 0, 1)
    below = canvas.y - np.float32(level) + np.float32(climb) * np.square(np.square(outward))
    fluid = np.clip(below / np.float32(0.6), 0, 1) * chest.sides[side] * chest.lungs
    share = np.float32(0.55) + np.float32(0.4) * np.clip(below / np.float32(4.0), 0, 1)
    return fluid * share * chest.air(chest.tissue), fluid > 0.5


def _cardiomegaly(chest: _Chest, rng: np.random.Generator) -> tuple[Array, Mask]:
    """A heart widened by a fifth to a half, mostly to the patient's left; the mask is what was added."""
    outline = chest.heart_outline.copy()
    growth = np.where(outline[:, 0] > 0, rng.uniform(0.3, 0.5), rng.uniform(0.1, 0.35))
    outline[:, 0] *= 1 + growth * np.clip((outline[:, 1] + 3) / 5, 0, 1)  # the great vessels above stay
    depth, silhouette = chest.draw_heart(outline)
    more = np.maximum(depth - chest.heart_depth, 0)
    return chest.air(chest.tissue) - chest.air(chest.tissue + more), silhouette * chest.lungs > 0.5


def _pneumothorax(chest: _Chest, rng: np.random.Generator) -> tuple[Array, Mask]:
    """Air between the chest wall and a lung that has shrunk away from it: no vessels, darker, a fine pleural line."""
    canvas, side = chest.canvas, int(rng.integers(2))
    anchor = np.array([(2 * side - 1) * 2.2, 10.0])  # the lung shrinks away from the top and the side
    shrunk = canvas.fill(anchor + (chest.outlines[side] - anchor) * rng.uniform((0.7, 0.74), (0.84, 0.88)))
    within = chest.sides[side] * chest.lungs
    edge = canvas.blur(shrunk, 0.07)
    line = edge * (1 - edge) * within * np.float32(1.0)
    gap = (1 - shrunk) * within
    lost = np.float32(0.14 * _SOFT) * chest.lung_depth + np.float32(_AIR * _SOFT) * chest.vessels
    return line - gap * lost, gap > 0.5


def _point_in_lung(chest: _Chest, rng: np.random.Generator, margin: float) -> tuple[float, float]:
    """A uniformly drawn point (x, y) in cm, at least ``margin`` cm inside a lung and outside the heart."""
    lungs = [outline.astype(np.float32) for outline in chest.outlines]
    heart = _spline(chest.heart_outline).astype(np.float32)
    for x, y in rng.uniform((-14, -14), (14, 14), (500, 2)):
        depth = cv2.pointPolygonTest(lungs[int(x > 0)], (x, y), True)
        if min(depth, -cv2.pointPolygonTest(heart, (x, y), True)) >= margin:
            return x, y
    return (8.0, 0.0)  # the middle of the left lung, at least 3 cm from any edge: hardly ever needed


_LESIONS: dict[str, Callable[[_Chest, np.random.Generator], tuple[Array, Mask]]] = {
    "nodule": _nodule,
    "consolidation": _consolidation,
    "effusion": _effusion,
    "cardiomegaly": _cardiomegaly,
    "pneumothorax": _pneumothorax,
}

LESIONS: tuple[str, ...] = tuple(_LESIONS)
"""The kinds of lesion that can be drawn."""

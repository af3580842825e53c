"""Whether a film is of the kind that a detector was trained on, or should not be judged by its score (ours).

A detector gives any picture a score: a lateral view, a hand, a film with inverted grey values. :class:`FilmLimits` are
fixed on the normal films of the training and on faults drawn into them, and go where the model goes, as plain numbers.

How strange a film is is measured in several ways, each with a name: how like a drawn fault (a linear discriminant of
its small picture), how far its picture and its numbers, all together, are from those of the training films
(Mahalanobis distances), and some of the numbers of its lungs and its brightness by themselves.
Each is scaled by its median among the training normals and its upper 2 % among these, as they are and with opaque
lungs drawn into them: a sick film is to be judged. The largest says how strange the film is.
The limit is an order statistic of that among the training normals, each measured by what the others taught (five
folds): new normal films, exchangeable with them, are flagged with a probability of about 2 % at most (split conformal,
but for the folds). The covariance is that of probabilistic principal components (Tipping and Bishop 1999).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalib_cxr.anatomy.film_look import FAULTS, NUMBERS, SIDE, FilmLook, TrainingLook, look_at, look_at_training_film

Array = NDArray[np.float64]

NOT_ASSESSABLE = "not assessable"
"""Decision on a film that is beyond the limits, in place of normal and abnormal."""

RATE = 0.02
"""Share of normal films that may be flagged."""

FEWEST = 20
"""Training normals from which on limits are fixed at all."""

LIMITS_KEY = "film_limits"
"""Where checkpoints and exported files keep :meth:`FilmLimits.record`."""

RECORD_FORMAT = 1
"""Changes whenever a reader of the old record would misread the new."""

_COMPONENTS = 24
_FOLDS = 5
_MARGIN = 1.25  # of the limit, where the films are too few for the rate
_SHRINKAGE = 0.1  # of the correlations of the numbers
_AS_A_WHOLE = "unlike the training films: perhaps lateral or another body part"
_NEARER = 0.7  # to a fault than to the normal films, in parts of the distance
_WHOLE = 2  # measures of that

#: Numbers of a film, whether low (−1) or high (1) ones are strange, and what reasons call that.
_SINGLE = (
    ("placement_score", -1, "lungs not found"),
    ("contrast", -1, "lungs not darker than what is around them"),
    ("area", -1, "lungs too small"),
    ("area", 1, "lungs too large"),
    ("symmetry", -1, "one lung far smaller than the other"),
    ("top", -1, "lungs too near to the top"),
    ("bottom", -1, "lungs too near to the bottom"),
    ("brightness", -1, "too dark"),
    ("brightness", 1, "too bright"),
    ("deviation", -1, "too little contrast"),
    ("deviation", 1, "too much contrast"),
)


class Assessment(NamedTuple):
    """Whether a film may be judged by its score.

    Attributes:
        assessable: Whether it is within the limits.
        because: Why it is not, in plain words, several joined by "; "; "" where it is.
    """

    assessable: bool
    because: str = ""


class FilmLimitsError(ValueError):
    """A record of limits that cannot be read. The message says why, and what to do."""


class _Taught(NamedTuple):
    """What small pictures of normal films, and their numbers, teach.

    Attributes:
        mean: (256,).
        components: (k, 256) principal components.
        variances: (k,) along them.
        rest: Variance along every other direction.
        directions: (faults, 256) discriminant of each drawn fault.
        lengths: (faults,) what the discriminant gives for the mean faulty picture, and 0 for the mean.
        usual: (numbers,) mean of the numbers.
        precision: (numbers, numbers) inverse of their covariance.
    """

    mean: Array
    components: Array
    variances: Array
    rest: float
    directions: Array
    lengths: Array
    usual: Array
    precision: Array

    def likeness(self, picture: NDArray[Any]) -> Array:
        """(faults,) how like each drawn fault a picture is: 0 the mean normal film, 1 the mean faulty one."""
        return self.directions @ (picture - self.mean) / self.lengths

    def distance(self, picture: NDArray[Any]) -> float:
        """Mahalanobis distance of a picture from the normal films."""
        centred = picture - self.mean
        along = self.components @ centred
        beside = max(0.0, float(centred @ centred - along @ along))
        return math.sqrt(float((along**2 / self.variances).sum()) + beside / self.rest)

    def oddness(self, values: Mapping[str, float]) -> float:
        """Mahalanobis distance of a film's numbers from those of the normal films."""
        away = np.array([values[name] for name in NUMBERS]) - self.usual
        return math.sqrt(float(away @ self.precision @ away))

    def nearest(self, picture: NDArray[Any]) -> tuple[int, float]:
        """The drawn fault whose mean is the nearest to a picture, and the Mahalanobis distance from it."""
        # |x - a|² = |x|² - 2 (x·a - |a|²/2), all from the mean normal picture.
        gain = (self.likeness(picture) - 0.5) * self.lengths
        fault = int(gain.argmax())
        return fault, math.sqrt(max(0.0, self.distance(picture) ** 2 - 2 * float(gain[fault])))


@dataclass(frozen=True, eq=False)
class FilmLimits:
    """What normal films of a training look like, and how far from that a film may be.

    Attributes:
        films: Training normals that the limits are fixed on.
        faults: Names of the drawn faults, as reasons call them.
        taught: What their small pictures teach.
        scales: (measures, 2) median and spread of each measure: likeness to faults, distance, oddness, and numbers by
            themselves.
        limit: A film is not assessable where a scaled measure is above it.
    """

    films: int
    faults: tuple[str, ...]
    taught: _Taught
    scales: Array
    limit: float

    # ------------------------------------------------------------------ fixing them

    @classmethod
    def from_films(cls, films: Iterable[NDArray[Any]]) -> "FilmLimits | None":
        """Fix limits on normal films.

        Args:
            films: (H, W) brightness in [0, 1] each, at the size that the detector sees.

        Returns:
            The limits; None with fewer than :data:`FEWEST` films, which say too little.
        """
        return cls.fix([look_at_training_film(film, number) for number, film in enumerate(films)])

    @classmethod
    def fix(cls, films: Sequence[TrainingLook]) -> "FilmLimits | None":
        """Fix limits on the normal films of a training.

        Args:
            films: What each looks like, in an order that says nothing.

        Returns:
            The limits; None with fewer than :data:`FEWEST` films, which say too little.
        """
        count, names = len(films), tuple(FAULTS)
        looks = [film.plain for film in films]
        if count < FEWEST:
            return None
        pictures = np.array([look.picture for look in looks], float)
        numbers = np.array([[look.values[name] for name in NUMBERS] for look in looks])
        faulty = np.array([[film.faults[name] for name in names] for film in films], float)
        folds = np.arange(count) % _FOLDS
        kept = min(_COMPONENTS, count // 5)  # the same in all folds, so that their measures compare
        unseen = np.empty((count, len(names) + _WHOLE + len(_SINGLE)))
        opaque = np.full_like(unseen, np.nan)
        for fold in range(_FOLDS):
            others = folds != fold
            taught = _teach(pictures[others], faulty[others], numbers[others], kept)
            for film in np.flatnonzero(folds == fold):
                unseen[film] = _measures(taught, looks[int(film)])
                sick = films[int(film)].opaque
                if sick is not None:
                    opaque[film] = _measures(taught, sick)
        median = np.median(unseen, axis=0)
        spread = np.maximum(np.nanquantile(np.concatenate([unseen, opaque]), 1 - RATE, axis=0) - median, 1e-6)
        scales = np.stack([median, spread], axis=1)
        strangest = ((unseen - median) / spread).max(axis=1)
        # Rounded as it is kept, so that a run and what is exported of it say the same.
        draft = cls.from_record(
            cls(count, names, _teach(pictures, faulty, numbers, kept), scales, _limit_of(strangest)).record()
        )
        seen = np.array([draft.strangeness(look).max() for look in looks])
        return cls(count, names, draft.taught, draft.scales, _rounded(max(draft.limit, _limit_of(seen))))

    @property
    def promised_rate(self) -> float:
        """Probability that a new normal film is flagged, about and at most: :data:`RATE`, or more with few films."""
        return max(RATE, 1 / (self.films + 1))

    # ------------------------------------------------------------------ a film

    def strangeness(self, look: FilmLook) -> Array:
        """(measures,) how strange a film is, by each measure: 0 for the median normal film, 1 for the strangest 2 %."""
        return (_measures(self.taught, look) - self.scales[:, 0]) / self.scales[:, 1]

    def assess(self, film: NDArray[Any]) -> Assessment:
        """Say whether a film may be judged by its score.

        Args:
            film: (H, W) brightness in [0, 1], at the size that the detector sees, as the films were that taught.

        Returns:
            Yes, or no with the reasons.
        """
        look = look_at(film)
        beyond = self.strangeness(look) > self.limit
        faults, whole, single = np.split(beyond, [len(self.faults), len(self.faults) + _WHOLE])
        reasons = [self._kind(look)] if faults.any() or whole.any() else []
        reasons += [reason for (_, _, reason), strange in zip(_SINGLE, single, strict=True) if strange]
        return Assessment(not beyond.any(), "; ".join(reasons))

    def _kind(self, look: FilmLook) -> str:
        """What a strange film is: like the drawn fault that it is nearest to, or like none of them."""
        if not self.faults:
            return _AS_A_WHOLE
        fault, distance = self.taught.nearest(look.picture)
        median, spread = self.scales[len(self.faults)]
        as_normal_films_are = (distance - median) / spread <= self.limit  # as near as those are to their own mean
        by_far = distance <= _NEARER * self.taught.distance(look.picture)
        return self.faults[fault] if as_normal_films_are or by_far else _AS_A_WHOLE

    # ------------------------------------------------------------------ keeping them

    def record(self) -> dict[str, Any]:
        """What JSON can hold of the limits, a few tens of kilobytes; :meth:`from_record` reads it."""
        taught = self.taught
        return {
            "format": RECORD_FORMAT,
            "films": self.films,
            "limit": _rounded(self.limit),
            "scales": _rounded(self.scales),
            "mean": _rounded(taught.mean),
            "components": _rounded(taught.components),
            "variances": _rounded(taught.variances),
            "rest": _rounded(taught.rest),
            "usual": _rounded(taught.usual),
            "precision": _rounded(taught.precision),
            "faults": {
                name: {"direction": _rounded(direction), "length": _rounded(length)}
                for name, direction, length in zip(self.faults, taught.directions, taught.lengths, strict=True)
            },
        }

    @classmethod
    def from_record(cls, record: Any) -> "FilmLimits":
        """Read what :meth:`record` gave.

        Args:
            record: The record.

        Raises:
            FilmLimitsError: If it is of another version, or damaged.
        """
        try:
            if record["format"] != RECORD_FORMAT:
                msg = f"Limits of films are of format {record['format']}, not {RECORD_FORMAT}: train with this version."
                raise FilmLimitsError(msg)
            faults = record["faults"]
            taught = _Taught(
                np.asarray(record["mean"], float),
                np.asarray(record["components"], float).reshape(-1, SIDE * SIDE),
                np.asarray(record["variances"], float),
                float(record["rest"]),
                np.asarray([fault["direction"] for fault in faults.values()], float).reshape(-1, SIDE * SIDE),
                np.asarray([fault["length"] for fault in faults.values()], float),
                np.asarray(record["usual"], float),
                np.asarray(record["precision"], float),
            )
            limits = cls(
                int(record["films"]), tuple(faults), taught, np.asarray(record["scales"], float), float(record["limit"])
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, FilmLimitsError):
                raise
            msg = f"Limits of films are damaged ({error!r}): train again, or export again."
            raise FilmLimitsError(msg) from error
        numbers = (*taught[:3], np.array(taught.rest), *taught[4:], limits.scales, np.array(limits.limit))
        whole = (
            taught.mean.shape == (SIDE * SIDE,)
            and (taught.usual.shape, taught.precision.shape) == ((len(NUMBERS),), (len(NUMBERS),) * 2)
            and taught.variances.shape == taught.components.shape[:1]
            and limits.scales.shape == (len(faults) + _WHOLE + len(_SINGLE), 2)
            and all(np.isfinite(part).all() for part in numbers)
        )
        if not whole:
            msg = "Limits of films are damaged (numbers are missing or not finite): train again, or export again."
            raise FilmLimitsError(msg)
        return limits


def _teach(pictures: Array, faulty: Array, numbers: Array, kept: int) -> _Taught:
    """Learn from normal films.

    Args:
        pictures: (n, 256).
        faulty: (n, faults, 256) the same with faults.
        numbers: (n, numbers) in the order of :data:`NUMBERS`.
        kept: Number of principal components.
    """
    mean = pictures.mean(axis=0)
    _, singular, axes = np.linalg.svd(pictures - mean, full_matrices=False)
    variances = singular**2 / (len(pictures) - 1)
    rest = max(float(variances[kept:].sum()) / (mean.size - kept), 1e-6)
    variances, axes = np.maximum(variances[:kept], rest), axes[:kept]
    away = faulty.mean(axis=0) - mean
    directions = away / rest + (away @ axes.T) * (1 / variances - 1 / rest) @ axes
    lengths = np.maximum((directions * away).sum(axis=1), 1e-6)
    covariance = np.cov(numbers.T)
    variance = np.diag(np.maximum(np.diag(covariance), 1e-9))
    precision = np.linalg.inv((1 - _SHRINKAGE) * covariance + _SHRINKAGE * variance)
    usual = numbers.mean(axis=0)
    return _Taught(
        mean, axes, variances, rest, directions, lengths, np.asarray(usual, float), np.asarray(precision, float)
    )


def _measures(taught: _Taught, look: FilmLook) -> Array:
    whole = [taught.distance(look.picture), taught.oddness(look.values)]
    return np.array([*taught.likeness(look.picture), *whole, *(sign * look.values[name] for name, sign, _ in _SINGLE)])


def _limit_of(strangest: Array) -> float:
    """Order statistic that a share of at most :data:`RATE` of new films exceeds; beyond all where these are too few."""
    rank = math.ceil((1 - RATE) * (len(strangest) + 1))
    ordered = np.sort(strangest)
    return float(ordered[rank - 1]) if rank <= len(ordered) else float(ordered[-1]) * _MARGIN


def _rounded(values: Any) -> Any:
    """Five significant digits, as plain numbers."""
    if np.ndim(values) == 0:
        return float(f"{float(values):.5g}")
    return [_rounded(value) for value in values]

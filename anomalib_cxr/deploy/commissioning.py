"""Commissioning of an exported model at a site: what its scores mean there, from normal films of that site (ours).

A threshold promises a false-positive rate for films like those it was chosen on. Films of another hospital, detector
plate or post-processing score otherwise: on ZhangLab's test films a nominal 10 % came to 27 %. Twenty to a hundred
films known to be normal mend that without training: new normal films of the site, exchangeable with them, are called
abnormal with at most the stated probability (split conformal, Vovk et al. 2005).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from anomalib_cxr import __version__
from anomalib_cxr.anatomy.assessable import FEWEST, FilmLimits
from anomalib_cxr.deploy.detector import ExportedDetector
from anomalib_cxr.deploy.metadata import STEEPNESS
from anomalib_cxr.deploy.secondary_capture import is_own_capture
from anomalib_cxr.files import write_text
from anomalib_cxr.imaging import lettering
from anomalib_cxr.imaging.listing import list_radiographs
from anomalib_cxr.imaging.progress import progress as show_progress
from anomalib_cxr.metrics.conformal import conformal_p_values
from anomalib_cxr.metrics.thresholds import lowest_alarm

#: Changes whenever a reader of the old file would misread the new.
SITE_FORMAT = 1
#: False-positive rates for which a site file states thresholds unasked.
RATES = (0.05, 0.1, 0.2)
#: Films from which on a site is commissioned without a word of warning.
ENOUGH = 20


class SiteError(ValueError):
    """A site file that cannot be used with a model. The message says why, and what to do."""


@dataclass(frozen=True)
class Shift:
    """How a site's normal films score beside the model's own validation normals.

    Attributes:
        films: Validation normals compared with.
        median_before: Median of their scores.
        median_here: Median of the site's.
        p_value: Of the two-sample Kolmogorov-Smirnov test; small says that the scores are distributed otherwise.
    """

    films: int
    median_before: float
    median_here: float
    p_value: float


@dataclass(frozen=True)
class Site:
    """What a model's scores mean at a site. Holds no names of films or persons.

    Attributes:
        model: Class of the model, to be read.
        model_sha256: Of the exported file, by which another model is refused.
        scores: (n,) normalised scores of the site's normal films, ascending.
        unreadable: Films that could not be read or scored, and folders that could not be opened: not among them.
        shift: Against the model's validation normals; None where those were not given.
        film_limits: Record of :class:`~anomalib_cxr.anatomy.assessable.FilmLimits` of the site's films, which take the
            place of the model's: films like these are assessable here. None with too few films, where the model's stay,
            and for a model that has none.
        not_assessable: Films beyond the model's own limits; None where it has none.
    """

    model: str
    model_sha256: str
    scores: tuple[float, ...]
    unreadable: int = 0
    shift: Shift | None = None
    film_limits: Mapping[str, Any] | None = None
    not_assessable: int | None = None

    @property
    def smallest_p_value(self) -> float:
        """Below this no score can be shown to be unusual: 1 / (n + 1)."""
        return 1 / (len(self.scores) + 1)

    @property
    def digest(self) -> str:
        """SHA-256 of model, scores and limits: two sites of one digest judge alike."""
        limits = [] if self.film_limits is None else [self.film_limits]
        return sha256(json.dumps([self.model_sha256, self.scores, *limits]).encode()).hexdigest()

    def p_values(self, scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Say how unusual scores are at this site.

        Args:
            scores: (m,) normalised scores of the same model.

        Returns:
            (m,) conformal p-values in [1 / (n + 1), 1].
        """
        return conformal_p_values(np.asarray(self.scores), scores)

    def threshold(self, rate: float) -> float:
        """Score above which a film is called abnormal.

        Args:
            rate: False-positive rate, in (0, 1).

        Returns:
            The k-th highest score of the site, k = ⌊rate · (n + 1)⌋: films that score higher than it have a p-value of
            at most ``rate``; infinity where n is too small to promise it.

        Raises:
            SiteError: If ``rate`` is out of range.
        """
        _check_rate(rate)
        rank = lowest_alarm(len(self.scores), rate)
        return self.scores[-rank] if rank else math.inf

    def save(self, path: str | Path, rates: Sequence[float] = RATES) -> None:
        """Write the site file.

        Args:
            path: ``.json`` file.
            rates: False-positive rates for which thresholds are listed, for people: decisions are made from the scores.
        """
        content = {
            "format": SITE_FORMAT,
            "package_version": __version__,
            "films": len(self.scores),
            "smallest_p_value": self.smallest_p_value,
            "thresholds": {f"{rate:g}": _plain(self.threshold(rate)) for rate in rates},
        }
        write_text(path, json.dumps(content | asdict(self), indent=1))

    @classmethod
    def load(cls, path: str | Path, detector: ExportedDetector | None = None) -> "Site":
        """Read a site file.

        Args:
            path: What :meth:`save` wrote.
            detector: The model that it shall be used with.

        Returns:
            The site.

        Raises:
            SiteError: If the file is none, was changed into something impossible, or belongs to another model.
        """
        try:
            content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            scores = np.asarray(content["scores"], dtype=float)
            made_as, unreadable = int(content["format"]), int(content["unreadable"])
            shift = None if content["shift"] is None else Shift(**content["shift"])
            limits, unfit = content.get("film_limits"), content.get("not_assessable")
            if limits is not None:
                FilmLimits.from_record(limits)
            site = cls(
                str(content["model"]),
                str(content["model_sha256"]),
                tuple(scores.tolist()),
                unreadable,
                shift,
                limits,
                None if unfit is None else int(unfit),
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            msg = f"{path} is no site file ({error}): make one with `anomalib-cxr-infer commission`."
            raise SiteError(msg) from error
        if made_as != SITE_FORMAT:
            msg = f"{path} is a site file of format {made_as}, this version reads {SITE_FORMAT}: commission anew."
            raise SiteError(msg)
        whole = scores.ndim == 1 and len(scores) > 0 and np.isfinite(scores).all() and (np.diff(scores) >= 0).all()
        if not whole:
            msg = f"The scores in {path} are not finite and ascending: commission anew."
            raise SiteError(msg)
        if detector is not None:
            site.refuse_other_model(detector, path)
        return site

    def refuse_other_model(self, detector: ExportedDetector, path: str | Path = "The site file") -> None:
        """Refuse a model that the scores are not of.

        Args:
            detector: Model.
            path: Where the site file lies, for the message.

        Raises:
            SiteError: If it is another model.
        """
        if detector.metadata["file_sha256"] != self.model_sha256:
            msg = (
                f"{path} was made with another model ({self.model}, SHA-256 {self.model_sha256[:16]}) than "
                f"{detector.metadata['model']}, SHA-256 {detector.metadata['file_sha256'][:16]}: commission this one."
            )
            raise SiteError(msg)


def commission(
    detector: ExportedDetector,
    folder: str | Path,
    validation_scores: npt.ArrayLike | None = None,
    progress: bool = True,
) -> Site:
    """Score normal films of a site.

    Args:
        detector: Exported model.
        folder: Films known to be normal, one a patient: several of one person count as one, and promise too much.
            Secondary Captures of this package are no films, as in :func:`~anomalib_cxr.deploy.predict_folder`.
        validation_scores: Normalised scores of the model's validation normals, to say how the site differs.
        progress: Show a progress bar.

    Returns:
        The site.

    Raises:
        SiteError: If no film of the folder could be scored.
    """
    root = Path(folder)
    if not root.is_dir():
        msg = f"{root} is no folder: give one with normal films of the site."
        raise SiteError(msg)
    found = list_radiographs(root)
    films = [root / name for name in found.images if not is_own_capture(root / name)]
    scored = list(show_progress(detector.predict_files(films), "Scoring", len(films), shown=progress))
    found_of = [(film.image, film.prediction) for film in scored if film.image is not None and film.prediction]
    scores = sorted(prediction.score for _, prediction in found_of)
    if not scores:
        msg = f"None of the {len(films)} radiographs in {root} could be scored: give normal films of the site."
        raise SiteError(msg)
    unreadable = len(films) - len(scores) + len(found.closed)
    shift = None if validation_scores is None else compare(validation_scores, scores)
    limits, unfit = None, None
    if detector.limits is not None:
        unfit = sum(not one.assessment.assessable for _, one in found_of if one.assessment is not None)
        if len(scores) >= FEWEST:
            limits = FilmLimits.from_films(detector.seen(image) for image, _ in found_of)
    return Site(
        detector.metadata["model"],
        detector.metadata["file_sha256"],
        tuple(scores),
        unreadable,
        shift,
        None if limits is None else limits.record(),
        unfit,
    )


def normalised(raw_scores: npt.ArrayLike, metadata: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """Bring raw scores, as tables of training runs have them, to the scale that the exported model gives.

    Args:
        raw_scores: (m,) raw scores.
        metadata: Of the model, see :func:`~anomalib_cxr.deploy.read_metadata`.

    Returns:
        (m,) scores in (0, 1): with ``z = 4 (x − threshold) / (max − min)``, ``(1 + z / (1 + |z|)) / 2``.
    """
    low, high = metadata["normalisation"]["image_min"], metadata["normalisation"]["image_max"]
    spread = high - low if high > low else 1.0
    z = STEEPNESS * (np.asarray(raw_scores, float) - metadata["thresholds"]["image"]) / spread
    return 0.5 * (1 + z / (1 + np.abs(z)))


def compare(validation_scores: npt.ArrayLike, site_scores: npt.ArrayLike) -> Shift:
    """Compare the scores of a site's normal films with those of the model's validation normals.

    Args:
        validation_scores: (m,) normalised scores.
        site_scores: (n,) normalised scores.

    Returns:
        Medians, and the p-value of the two-sample Kolmogorov-Smirnov test.
    """
    from scipy.stats import ks_2samp  # slow to load, and nothing else here needs it

    before, here = np.asarray(validation_scores, float), np.asarray(site_scores, float)
    tested: Any = ks_2samp(before, here)
    return Shift(len(before), float(np.median(before)), float(np.median(here)), float(tested.pvalue))


def shift_picture(site: Site, validation_scores: npt.ArrayLike, width: int = 640) -> npt.NDArray[np.uint8]:
    """Draw both distributions: the share of normal films that score at most so much, validation grey, site orange.

    Args:
        site: The site.
        validation_scores: (m,) normalised scores of the model's validation normals.
        width: Of the picture in pixels.

    Returns:
        (h, width, 3) uint8 RGB.
    """
    height, margin = width // 2, 10
    picture = np.full((height, width, 3), 16, np.uint8)
    for scores, colour in ((validation_scores, (170, 170, 170)), (site.scores, (255, 150, 40))):
        values = np.sort(np.asarray(scores, float))
        x = margin + np.clip(np.repeat(values, 2), 0, 1) * (width - 2 * margin)
        steps = np.arange(len(values) + 1) / len(values)
        y = height - margin - np.repeat(steps, 2)[1:-1] * (height - 2 * margin)
        cv2.polylines(picture, [np.stack([x, y], 1).round().astype(np.int32)], False, colour, 2, cv2.LINE_AA)
    lines = [f"normalised score 0 to 1: {len(site.scores)} normal films here (orange), validation (grey)"]
    return np.concatenate([picture, lettering([*lines, *promises(site)], width, 14)])


def promises(site: Site, rates: Sequence[float] = RATES) -> list[str]:
    """Say in sentences what a site file can promise.

    Args:
        site: The site.
        rates: False-positive rates.

    Returns:
        Lines to print.
    """
    n = len(site.scores)
    smallest = site.smallest_p_value
    lines = [f"{n} normal films scored, {site.unreadable} could not be; p-values go down to {smallest:.3g}."]
    if n < ENOUGH:
        lines.append(f"With fewer than {ENOUGH} films rates below {smallest:.3g} cannot be promised.")
    for rate in rates:
        threshold = site.threshold(rate)
        exact = lowest_alarm(n, rate) / (n + 1)
        promise = f"score above {threshold:.4f}" if math.isfinite(threshold) else "not possible with so few films"
        lines.append(f"At most {rate:.0%} of new normal films called abnormal ({exact:.1%} expected): {promise}.")
    if site.not_assessable is not None:
        lines.append(f"{site.not_assessable} of these films are not assessable by the model's own limits.")
    if site.film_limits is not None:
        rate = FilmLimits.from_record(site.film_limits).promised_rate
        lines.append(f"Here films are assessable that are like these: at most {rate:.1%} of new normal ones are not.")
    if site.shift is not None:
        lines.append(
            f"Median score {site.shift.median_here:.4f} here, {site.shift.median_before:.4f} of {site.shift.films} "
            f"validation normals; the same distribution has p = {site.shift.p_value:.2g}."
        )
    return lines


def _check_rate(rate: float) -> None:
    if not 0 < rate < 1:
        msg = f"A false-positive rate lies in (0, 1), {rate} does not."
        raise SiteError(msg)


def _plain(number: float) -> float | None:
    return number if math.isfinite(number) else None

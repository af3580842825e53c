"""Decisions on scores: as the model makes them, or as its commissioning at a site does."""

from typing import NamedTuple

from anomalib_cxr import __version__
from anomalib_cxr.anatomy.assessable import NOT_ASSESSABLE, Assessment, FilmLimits
from anomalib_cxr.deploy.commissioning import Site
from anomalib_cxr.deploy.detector import ExportedDetector
from anomalib_cxr.metrics.conformal import outside_of_normal


class Verdict(NamedTuple):
    """Decision on one film.

    Attributes:
        abnormal: Whether the score is above the threshold.
        p_value: Of the score among the site's normal films, in (0, 1]; None without a site.
        outside: Whether the score is beyond those of all normal films of the site.
        assessment: Whether the film is of the kind that the model was trained on; None where nobody knows.
    """

    abnormal: bool
    p_value: float | None = None
    outside: bool = False
    assessment: Assessment | None = None

    @property
    def not_assessable(self) -> str:
        """Why the film should not be judged by its score; "" where it may be, or nobody knows."""
        return "" if self.assessment is None else self.assessment.because

    @property
    def decision(self) -> str:
        """The decision in a word: normal, abnormal, or not assessable, whatever the score."""
        return NOT_ASSESSABLE if self.not_assessable else "abnormal" if self.abnormal else "normal"


class Judge:
    """Decides on the scores of one model.

    Args:
        detector: Model that the scores are of.
        site: What they mean at a site; None leaves the decision to the model. A site that has limits of its own films
            gives them to the detector.
        rate: False-positive rate of the decision at the site, in (0, 1); without a site it is not used.

    Attributes:
        threshold: Normalised score above which a film is called abnormal; infinity where the site has too few films
            to promise the rate.
        made_with: All that a table of decisions depends on beside the films, by name.

    Raises:
        SiteError: If the site is another model's, or the rate out of range.
    """

    def __init__(self, detector: ExportedDetector, site: Site | None, rate: float) -> None:
        self.site, self.rate = site, rate
        self.threshold = detector.thresholds.image
        if site is not None:
            site.refuse_other_model(detector)
            self.threshold = site.threshold(rate)
            if site.film_limits is not None:
                detector.limits = FilmLimits.from_record(site.film_limits)
        self.made_with = {
            "model": detector.metadata["file_sha256"],
            "arithmetic": detector.arithmetic,
            "package version": __version__,
            "site": None if site is None else site.digest,
            "threshold": f"{self.threshold:.7g}",
        }

    def __call__(self, score: float, abnormal: bool, assessment: Assessment | None = None) -> Verdict:
        """Decide.

        Args:
            score: Normalised score.
            abnormal: What the model says of it, which holds without a site.
            assessment: What its limits say of the film.
        """
        if self.site is None:
            return Verdict(abnormal, assessment=assessment)
        p_value = float(self.site.p_values([score])[0])
        outside = bool(outside_of_normal([p_value], len(self.site.scores))[0])
        return Verdict(score > self.threshold, p_value, outside, assessment)

"""The exported models in use, exchanged for others without a stop."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anomalib_cxr.deploy import ExportedDetector, Judge, Site
from anomalib_cxr.node.configuration import Model
from anomalib_cxr.node.logs import event
from anomalib_cxr.node.settings import ConfigurationError


class LoadedModel:
    """A model that is ready, and what its scores mean at the site.

    Args:
        configuration: Of the model.

    Attributes:
        name: Its name in the configuration.
        detector: The model.
        judge: Decides on its scores.
        sha256: Of its exported file.
        reference: Scores that the drift alarm starts from, ascending; none: no alarm.

    Raises:
        ConfigurationError: If model, site file or reference cannot be used.
    """

    def __init__(self, configuration: Model) -> None:
        given = configuration
        self.configuration, self.name = given, given.name
        try:
            self.detector = ExportedDetector(given.path, given.runtime, given.threads, given.precision)
            site = None if given.site is None else Site.load(given.site, self.detector)
            self.judge = Judge(self.detector, site, given.rate)
            own = () if site is None else site.scores
            self.reference = own if given.reference is None else _scores(given.reference)
        except (OSError, ValueError) as error:
            msg = f"Model {given.name!r} cannot be used: {error}"
            raise ConfigurationError(msg) from error
        self.sha256 = str(self.detector.metadata["file_sha256"])

    @property
    def kind(self) -> str:
        """Class of the model."""
        return str(self.detector.metadata["model"])

    @property
    def version(self) -> str:
        """Version of the package that exported it, and the first digits of its SHA-256."""
        return f"{self.detector.metadata['package_version']} {self.sha256[:16]}"


class Shelf:
    """The models in use.

    Args:
        models: Their configurations.

    Attributes:
        models: Those that are ready.
        problem: Why the last exchange was not made, or None.

    Raises:
        ConfigurationError: If one cannot be used.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        self.models = _load(models)
        self.problem: str | None = None

    @property
    def hashes(self) -> list[str]:
        """SHA-256 of each model."""
        return [model.sha256 for model in self.models]

    def exchange(self, models: Sequence[Model]) -> bool:
        """Take other models; if one of them cannot be used, all old ones stay.

        Args:
            models: Their configurations.

        Returns:
            Whether it was done; else ``problem`` says why not.
        """
        try:
            self.models, self.problem = _load(models), None
        except ConfigurationError as error:
            self.problem = str(error)
            event("models not exchanged", logging.ERROR, reason=self.problem)
            return False
        event("models exchanged", models=[f"{model.name} {model.sha256[:16]}" for model in self.models])
        return True


def _load(models: Sequence[Model]) -> tuple[LoadedModel, ...]:
    loaded = tuple(LoadedModel(model) for model in models)
    hashes = [model.sha256 for model in loaded]
    for number, model in enumerate(loaded):
        if model.sha256 in hashes[:number]:
            other = loaded[hashes.index(model.sha256)].name
            msg = f"Models {other!r} and {model.name!r} are one file, and so would be their results: leave one out."
            raise ConfigurationError(msg)
    return loaded


def _scores(path: Path) -> tuple[float, ...]:
    """Scores of a table of predictions, ascending."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    try:
        scores = sorted(float(row["score"]) for row in rows)
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{path} is no table of predictions with a column 'score' of numbers ({error})."
        raise ValueError(msg) from error
    if not scores or not np.isfinite(scores).all():
        msg = f"{path} lists no film, or scores that are not finite."
        raise ValueError(msg)
    return tuple(scores)

"""What one model found on one film: what every kind of result is made of."""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from anomalib_cxr import __version__
from anomalib_cxr.deploy import Prediction, Thresholds, Verdict
from anomalib_cxr.imaging import SMOOTHED
from anomalib_cxr.imaging.heat_map import smooth_heat_map
from anomalib_cxr.node.journal import Score
from anomalib_cxr.node.shelf import LoadedModel

if TYPE_CHECKING:
    from pydicom import Dataset


class Finding(NamedTuple):
    """What a model found.

    Attributes:
        path: The film's file.
        header: Its elements, but for the pixels.
        image: (H, W) brightness in [0, 1].
        model: The model.
        prediction: What it said.
        verdict: What that means at the site.
    """

    path: Path
    header: "Dataset"
    image: npt.NDArray[np.float32]
    model: LoadedModel
    prediction: Prediction
    verdict: Verdict

    @property
    def thresholds(self) -> Thresholds:
        """Of this site, or of the model without one."""
        return self.model.detector.thresholds._replace(image=self.model.judge.threshold)

    @property
    def score(self) -> Score:
        """Row of the journal."""
        verdict = self.verdict
        return Score(
            self.model.name,
            self.model.sha256,
            self.prediction.score,
            verdict.p_value,
            self.model.judge.threshold,
            verdict.abnormal,
            verdict.outside,
            None if verdict.assessment is None else verdict.not_assessable,
        )

    @property
    def description(self) -> str:
        """How the result came about, in plain ASCII."""
        return (
            f"{self.model.kind} {self.model.version} by anomalib-cxr {__version__}, for research, not for diagnosis; "
            f"{SMOOTHED}"
        )

    def surface(self) -> npt.NDArray[np.float32]:
        """(H, W) heat map at the film's geometry, smoothed as it is drawn."""
        height, width = self.image.shape
        return smooth_heat_map(self.prediction.heat_map, (height, width))

    def uid(self, what: str, of: str | None = None) -> str:
        """Identifier that the same film and the same model file always give (PS3.5 B.2).

        Args:
            what: Which of the result's identifiers.
            of: Identifier of what it belongs to; None: of the film.
        """
        parts = [self.model.sha256, what, of or str(self.header.SOPInstanceUID)]
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(parts)).int}"

"""An exported detector: brightness arrays or files in, scores, decisions and heat maps out."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from anomalib_cxr.anatomy.assessable import LIMITS_KEY, Assessment, FilmLimits, FilmLimitsError
from anomalib_cxr.checks import check_choice
from anomalib_cxr.deploy.metadata import EXACT_RESIZE, ExportedModelError, read_metadata, weights_path
from anomalib_cxr.deploy.resize import antialiased_resize
from anomalib_cxr.deploy.runtimes import Precision, Runtime, open_session
from anomalib_cxr.imaging import RadiographError, read_radiograph

logger = logging.getLogger(__name__)


class Thresholds(NamedTuple):
    """Normalised values above which something is abnormal: 0.5, unless the model was given another sensitivity.

    Attributes:
        image: For scores, in [0, 1].
        pixel: For heat maps, in [0, 1].
    """

    image: float = 0.5
    pixel: float = 0.5


class Prediction(NamedTuple):
    """What the model says of one image.

    Attributes:
        score: Normalised score in (0, 1); 0.5 is the threshold found in training.
        abnormal: Decision: whether the score is above the image threshold of :class:`Thresholds`.
        heat_map: (h, w) float32 in (0, 1) at the model's input size; 0.5 is the pixel threshold found in training.
        mask: (h, w) bool: pixels above the pixel threshold of :class:`Thresholds`.
        assessment: Whether the film is of the kind that the model was trained on; if not, its score says little. None
            for a model that has no limits of it.
    """

    score: float
    abnormal: bool
    heat_map: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    assessment: Assessment | None = None


class FilePrediction(NamedTuple):
    """What the model says of one file.

    Attributes:
        path: File.
        image: (H, W) brightness as read, or None if it could not be.
        prediction: None if the file could not be read or scored.
        error: Why, or None.
    """

    path: Path
    image: npt.NDArray[np.float32] | None
    prediction: Prediction | None
    error: str | None


class ExportedDetector:
    """A model that `anomalib export` wrote, ready to run without torch, Lightning and Anomalib.

    Args:
        path: ``.onnx`` or ``.xml``, its weights beside it.
        runtime: ``"onnxruntime"`` or ``"openvino"``; None takes that of the file's format.
        threads: Cores to use; None lets the runtime choose.
        precision: ``"f32"`` gives the numbers of the trained model; ``"default"``, with OpenVINO, what the CPU does
            fastest.
        batch_size: Images at once.

    Attributes:
        metadata: See :func:`read_metadata`.
        thresholds: What scores and maps are compared with.
        limits: Of the films that may be judged by their scores, the model's own or a site's
            (:class:`~anomalib_cxr.deploy.Judge` puts those here); None for a model that was exported without.
        arithmetic: Runtime and precision, to be read: other ones give the same numbers up to rounding alone.

    Raises:
        ExportedModelError: If the model cannot be used; the message says why.
        ValueError: If runtime or precision is unknown, or ``batch_size`` less than 1.

    Examples:
        >>> detector = ExportedDetector("weights/onnx/model.onnx")  # doctest: +SKIP
        >>> detector.predict([read_radiograph("chest.dcm")])[0].score  # doctest: +SKIP
        0.62
    """

    def __init__(
        self,
        path: str | Path,
        runtime: Runtime | None = None,
        threads: int | None = None,
        precision: Precision = "f32",
        batch_size: int = 1,
    ) -> None:
        check_choice("runtime", runtime, Runtime | None)
        check_choice("precision", precision, Precision)
        if batch_size < 1:
            msg = f"batch_size must be at least 1, not {batch_size}."
            raise ValueError(msg)
        self.metadata = read_metadata(path)
        size = self.metadata["input_size"]
        if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
            msg = f"The metadata of {path} states no input size ({size}): export a model whose pre-processor resizes."
            raise ExportedModelError(msg)
        if self.metadata["pre_processing"] != EXACT_RESIZE:
            msg = (
                f"{path} was exported with the pre-processing {self.metadata['pre_processing']}, where this inferencer "
                "can only resize: train a model with the default pre-processor."
            )
            raise ExportedModelError(msg)
        self.batch_size = batch_size
        self.thresholds = Thresholds(self.metadata["decision"]["image"], self.metadata["decision"]["pixel"])
        self._size = (size[0], size[1])
        self.limits = _limits(path, self.metadata.get(LIMITS_KEY))
        weights = weights_path(Path(path), self.metadata)
        self._session = open_session(Path(path), runtime, threads, precision, self._size, batch_size, weights)
        self.arithmetic = f"{type(self._session).__name__.removesuffix('Session')}, {precision}"
        if any(fixed not in {None, side} for fixed, side in zip(self._session.size, self._size, strict=True)):
            msg = (
                f"The graph of {path} takes images of {self._session.size} only, where its metadata states {size}: "
                "export the model again without an input size."
            )
            raise ExportedModelError(msg)
        missing = set(self.metadata["outputs"]) - set(self._session.outputs)
        if missing:
            msg = f"{path} lacks the outputs {sorted(missing)} that its metadata states: export the model again."
            raise ExportedModelError(msg)

    def seen(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """An image (H, W) as the model sees it: resized to its input size."""
        return antialiased_resize(image, self._size)

    def predict(self, images: Sequence[npt.NDArray[np.float32]]) -> list[Prediction]:
        """Score images.

        Args:
            images: (H, W) brightness in [0, 1] as :func:`read_radiograph` gives it, any sizes.

        Returns:
            One prediction an image.

        Raises:
            ValueError: If an image is not (H, W) and finite, or the model's answer is not finite.
        """
        predictions = self._run(images)
        for number, prediction in enumerate(predictions):
            if fault := _fault(prediction):
                msg = f"Image {number} cannot be scored: {fault}."
                raise ValueError(msg)
        return predictions

    def _run(self, images: Sequence[npt.NDArray[np.float32]]) -> list[Prediction]:
        for image in images:
            if image.ndim != 2 or not np.isfinite(image).all():
                msg = f"An image must be a finite (H, W) array, got {image.shape}."
                raise ValueError(msg)
        predictions: list[Prediction] = []
        for start in range(0, len(images), self.batch_size):
            part = [self.seen(image) for image in images[start : start + self.batch_size]]
            batch = np.stack(part)[:, None].astype(np.float32)
            outputs = self._session(np.ascontiguousarray(np.broadcast_to(batch, (len(part), 3, *self._size))))
            predictions += [
                Prediction(
                    float(outputs["pred_score"][i]),
                    bool(outputs["pred_label"][i]),
                    outputs["anomaly_map"][i, 0],
                    outputs["pred_mask"][i, 0].astype(bool),
                    None if self.limits is None else self.limits.assess(part[i]),
                )
                for i in range(len(part))
            ]
        return predictions

    def predict_files(self, paths: Iterable[str | os.PathLike[str]]) -> Iterator[FilePrediction]:
        """Score files one batch at a time; a file that cannot be read or scored is reported, not raised.

        Args:
            paths: Files for :func:`read_radiograph`; may be endless, no more than a batch is held.

        Yields:
            One entry a file, in their order.
        """
        remaining = iter(paths)
        while part := [Path(path) for path in islice(remaining, self.batch_size)]:
            read = [_read(path) for path in part]
            found = iter(self._run([image for image, _ in read if image is not None]))
            for path, (image, error) in zip(part, read, strict=True):
                prediction = None if image is None else next(found)
                if prediction is not None and (fault := _fault(prediction)):
                    prediction, error = None, f"{path} cannot be scored: {fault}"
                yield FilePrediction(path, image, prediction, error)


def _limits(path: str | Path, record: Any) -> FilmLimits | None:
    if record is None:
        logger.info("Films are not assessed: %s was exported without limits of what it was trained on.", path)
        return None
    try:
        return FilmLimits.from_record(record)
    except FilmLimitsError as error:
        msg = f"{path} cannot assess films: {error}"
        raise ExportedModelError(msg) from error


def _fault(prediction: Prediction) -> str | None:
    """Why a prediction is none: compared with a threshold, NaN would come out as normal."""
    if np.isfinite(prediction.score) and np.isfinite(prediction.heat_map).all():
        return None
    return "the model's score or heat map is not finite"


def _read(path: Path) -> tuple[npt.NDArray[np.float32] | None, str | None]:
    try:
        return read_radiograph(path), None
    except RadiographError as error:
        return None, str(error)

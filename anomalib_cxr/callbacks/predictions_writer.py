"""Writes what a run predicted, image by image, for any Anomalib model."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch
from anomalib.data import InferenceBatch
from anomalib.post_processing import PostProcessor
from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_cxr.anatomy.assessable import NOT_ASSESSABLE, Assessment
from anomalib_cxr.callbacks.film_assessor import assessment_of
from anomalib_cxr.callbacks.pictures import images_root, pictures_of
from anomalib_cxr.callbacks.run_record import TRAINING_KEY, describe_run, describe_training, write_json
from anomalib_cxr.callbacks.unreadable_list import unreadable_of, write_unreadable
from anomalib_cxr.checkpoint_files import load_checkpoint
from anomalib_cxr.distributed import gather_objects, order_without_repeats
from anomalib_cxr.imaging.picture_names import below
from anomalib_cxr.metrics.checks import check_scores
from anomalib_cxr.metrics.conformal import conformal_p_values, outside_of_normal
from anomalib_cxr.metrics.predictions import ASSESSABLE, BECAUSE, PICTURE, write_predictions
from anomalib_cxr.run_folder import PREDICTIONS, RECORD, UNREADABLE, VALIDATION_PREDICTIONS

if TYPE_CHECKING:
    from anomalib.models import AnomalibModule

logger = logging.getLogger(__name__)

_WORDS = {0: "normal", 1: "abnormal", None: ""}


@dataclass
class _Rows:
    """Predictions of one loop, in the order of arrival."""

    images: list[str] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)
    raw_scores: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    decisions: list[int | None] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    assessments: list[Assessment | None] = field(default_factory=list)


@dataclass
class _Validation:
    """The last validation: what thresholds and p-values are made of. ``images`` is None where a checkpoint gave it."""

    digest: str
    labels: list[int | None]
    raw_scores: list[float]
    step: int
    images: list[str] | None = None


class PredictionsWriter(Callback):
    """Writes ``predictions.csv`` beside the pictures of every test and predict run, and ``predictions_val.csv``.

    Columns are those of :func:`~anomalib_cxr.metrics.predictions.read_predictions`. Runs of our models or on
    our datamodules have this callback (:mod:`~anomalib_cxr.callbacks.attach`); for others, pass it:
    ``--trainer.callbacks anomalib_cxr.callbacks.PredictionsWriter``.

    The raw score is what the model gave before the post-processor, which may clamp it. P-values are conformal, against
    the raw scores of the normal validation images under the same weights: those of the run, or of the checkpoint that
    is tested. A checkpoint keeps scores and labels of its validation images, but neither names nor patients: it may
    leave the hospital. ``predictions_val.csv`` is written where the run's datamodule has the very validation images of
    the checkpoint, and taken away where it would be another model's.

    ``run.json`` beside it says what the run was (:func:`~anomalib_cxr.callbacks.run_record.describe_run`): versions,
    model and data with their arguments, the weights' checkpoint and step, and the training with the quality of its
    region masks, which its checkpoints keep too.

    A film that is not assessable (:class:`~anomalib_cxr.callbacks.film_assessor.FilmAssessor`) has its score, and the
    decision "not assessable" with the reason.

    Images of a folder that cannot be read are left out of a prediction, and listed in ``unreadable.csv``.

    With several processes the first writes, each image once.

    Raises:
        ValueError: During a test or predict run, if a raw score is NaN or infinite; the images are named.
    """

    def __init__(self) -> None:
        self._rows = _Rows()
        self._pending: Any = None
        self._is_processed = False
        self._validation: _Validation | None = None
        self._training: dict[str, Any] | None = None
        self._checkpoint: str | Path | None = None
        self._step: int | None = None

    # ------------------------------------------------------------------ the checkpoint's share

    def state_dict(self) -> dict[str, Any]:
        """Return scores and labels of the last validation, for the checkpoint."""
        known = self._validation
        if known is None:
            return {}
        return {"digest": known.digest, "labels": known.labels, "raw_scores": known.raw_scores, "step": known.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the validation of a checkpoint."""
        self._validation = _Validation(**state_dict) if state_dict else None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint say how it was trained."""
        if trainer.state.fn == "fit":
            self._training = describe_training(trainer, pl_module)
        if self._training is not None:
            checkpoint[TRAINING_KEY] = self._training

    def _load_from(self, path: str | Path, pl_module: LightningModule) -> None:
        """Take up the validation and the training that a checkpoint file keeps, without reading its weights."""
        checkpoint = load_checkpoint(path, cast("AnomalibModule", pl_module).checkpoint_safe_globals())
        self.load_state_dict(checkpoint.get("callbacks", {}).get(self.state_key, {}))
        self._training = checkpoint.get(TRAINING_KEY)
        self._checkpoint, self._step = path, checkpoint.get("global_step")

    # ------------------------------------------------------------------ validation

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the post-processor comes later: its scores are not raw any more."""
        del pl_module, stage
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if callback is self:
                return
            if isinstance(callback, PostProcessor):
                msg = "PredictionsWriter must come before the post-processor among the trainer's callbacks."
                raise ValueError(msg)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with no rows."""
        del trainer, pl_module
        self._rows = _Rows()

    def on_validation_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep the raw scores of a batch."""
        del trainer, pl_module, args, kwargs
        self._add(outputs if hasattr(outputs, "pred_score") else batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the validation, before any checkpoint of it is saved."""
        del pl_module
        rows, self._rows = _gathered(self._rows), _Rows()
        if trainer.sanity_checking or not rows.images:
            return
        digest = _digest(_names(rows.images, trainer))
        self._validation = _Validation(digest, rows.labels, rows.raw_scores, trainer.global_step, rows.images)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the predictions of a validation that is a run of its own."""
        if trainer.state.fn == "validate":
            self._write_validation(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow a model that ends its fit with the weights of an earlier checkpoint."""
        chosen = getattr(pl_module, "chosen_checkpoint", None)
        known = self._validation
        self._checkpoint, self._step = None, trainer.global_step
        self._training = describe_training(trainer, pl_module)
        if chosen is not None:
            self._load_from(chosen, pl_module)
            if known is not None and self._validation is not None and known.digest == self._validation.digest:
                self._validation.images = known.images
        elif known is not None and known.step != trainer.global_step:
            logger.warning(
                "Thresholds and p-values are those of the validation at step %d, the weights are of step %d.",
                known.step,
                trainer.global_step,
            )

    # ------------------------------------------------------------------ test and predict

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the validation of the checkpoint that is tested, if any."""
        self._rows, self._pending = _Rows(), None
        path = getattr(trainer, "ckpt_path", None)
        if path is not None:
            self._validation = None
            self._load_from(path, pl_module)

    def on_test_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep the raw scores of a batch; the post-processor is yet to come."""
        del args, kwargs
        self._finish(trainer)
        outputs = outputs if hasattr(outputs, "pred_score") else batch
        first = len(self._rows.images)
        self._add(outputs)
        check_scores(self._rows.raw_scores[first:], self._rows.images[first:], "raw scores")
        self._pending = outputs
        self._is_processed = getattr(pl_module, "post_processor", None) is not None

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files."""
        self._finish(trainer)
        rows, self._rows = _gathered(self._rows), _Rows()
        if not rows.images or getattr(trainer, "fast_dev_run", False):
            return
        table = _table(rows, trainer)
        table["p_value"] = self._p_values(rows)
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / PREDICTIONS
            record = path.with_name(RECORD)
            record.unlink(missing_ok=True)  # a run that is killed here must not leave another one's
            write_predictions(path, table)
            write_json(record, describe_run(trainer, pl_module, self._training, self._checkpoint, self._step))
            logger.info("Wrote the predictions of %d images to %s.", len(table), path)
        self._write_validation(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As for a test."""
        self.on_test_start(trainer, pl_module)

    def on_predict_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """As for a test."""
        self.on_test_batch_end(trainer, pl_module, outputs, batch, *args, **kwargs)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As for a test, and list the images that could not be read."""
        self.on_test_epoch_end(trainer, pl_module)
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        unreadable = unreadable_of(trainer)
        write_unreadable(Path(trainer.default_root_dir), unreadable)
        if unreadable:
            logger.warning("%d images could not be read, and are in %s instead.", len(unreadable), UNREADABLE)

    def p_value_of(self, image: str) -> tuple[float, bool] | None:
        """Say how unusual the last raw score of an image is, while a test or predict run goes on.

        Args:
            image: Path as in the batch.

        Returns:
            Its p-value, and whether it is beyond all normal validation images; None where there is no p-value.
        """
        known = self._validation
        if known is None or image in (known.images or ()) or image not in self._rows.images:
            return None
        normal = [score for score, label in zip(known.raw_scores, known.labels, strict=True) if label == 0]
        if not normal:
            return None
        last = len(self._rows.images) - 1 - self._rows.images[::-1].index(image)
        p_value = conformal_p_values(normal, self._rows.raw_scores[last : last + 1])
        return float(p_value[0]), bool(outside_of_normal(p_value, len(normal))[0])

    # ------------------------------------------------------------------ rows and files

    def _add(self, batch: Any) -> None:
        """Add what is known of a batch before its post-processing."""
        scores = batch.pred_score
        if scores is None and batch.anomaly_map is not None:
            scores = batch.anomaly_map.amax(dim=(-2, -1))  # as Anomalib's PostProcessor does
        if scores is None or batch.image_path is None:
            msg = (
                "PredictionsWriter needs the path of each image and a score or an anomaly map, the batch has "
                f"{'no paths' if batch.image_path is None else 'neither'}."
            )
            raise ValueError(msg)
        raw = scores.detach().cpu().double().reshape(-1).tolist()
        labels = [None] * len(raw) if batch.gt_label is None else [int(label) for label in batch.gt_label.reshape(-1)]
        self._rows.images += [str(path) for path in batch.image_path]
        self._rows.labels += labels
        self._rows.raw_scores += raw

    def _finish(self, trainer: Trainer) -> None:
        """Add what post-processor and visualizer have made of the batch before; the former changes it in place."""
        batch, self._pending = self._pending, None
        if batch is None:
            return
        number = len(batch.image_path)
        scores = batch.pred_score if self._is_processed else None
        self._rows.scores += (
            [math.nan] * number if scores is None else scores.detach().cpu().double().reshape(-1).tolist()
        )
        decisions = batch.pred_label
        self._rows.decisions += (
            [None] * number if decisions is None else [int(value) for value in decisions.reshape(-1)]
        )
        written, folder = pictures_of(trainer).written, Path(trainer.default_root_dir)
        self._rows.pictures += [
            _below(written[path], folder) if path in written else "" for path in map(str, batch.image_path)
        ]
        self._rows.assessments += [assessment_of(trainer, path) for path in batch.image_path]

    def _p_values(self, rows: _Rows) -> Any:
        known = self._validation
        if known is None:
            logger.warning("No p-values: neither this run nor the checkpoint holds scores of validation images.")
            return math.nan
        normal = [place for place, label in enumerate(known.labels) if label == 0]
        if not normal:
            logger.warning("No p-values: no validation image is normal.")
            return math.nan
        images = None if known.images is None else [known.images[place] for place in normal]
        both = set(images or ()) & set(rows.images)
        if both:
            logger.warning(
                "No p-values: %d of the normal validation images are predicted here too, the first is %s.",
                len(both),
                min(both),
            )
            return math.nan
        calibration = check_scores(
            [known.raw_scores[place] for place in normal], images, "raw scores of normal validation images"
        )
        return conformal_p_values(calibration, rows.raw_scores)

    def _write_validation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the validation images' predictions, or take away those of other weights."""
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        path = Path(trainer.default_root_dir) / VALIDATION_PREDICTIONS
        known = self._validation
        reason = "there are no scores of validation images"
        if known is not None and known.images is None:
            images = _validation_images(trainer)
            if _digest(_names(images, trainer)) == known.digest:
                known.images = images
            reason = "the checkpoint's validation images are not those of this datamodule"
        if known is None or known.images is None:
            path.unlink(missing_ok=True)
            logger.info("No %s: %s.", path.name, reason)
            return
        rows = _Rows(known.images, known.labels, known.raw_scores)
        rows.scores, rows.decisions = _post_processed(known.raw_scores, pl_module)
        write_predictions(path, _table(rows, trainer))


def _gathered(rows: _Rows) -> _Rows:
    """Join the processes' rows in the order of the data set, each image once: samplers pad with duplicates."""
    shares = gather_objects(rows)
    joined = _Rows()
    for rank, place in order_without_repeats([share.images for share in shares]):
        for name, values in vars(joined).items():
            values.extend(getattr(shares[rank], name)[place : place + 1])
    left_out = len(rows.images) - len(joined.images)
    if len(shares) == 1 and left_out:
        logger.warning("%d images came more than once, and are listed once.", left_out)
    return joined


def _table(rows: _Rows, trainer: Trainer) -> pd.DataFrame:
    """Make the table of predictions, without p-values."""
    known = _known_of_images(trainer)
    nothing = {"patient_id": "", "findings": ""}
    described = [known.get(image, nothing) for image in rows.images]
    assessed = rows.assessments or [None] * len(rows.images)
    decisions = [
        NOT_ASSESSABLE if one is not None and not one.assessable else _WORDS[decision]
        for one, decision in zip(assessed, rows.decisions, strict=True)
    ]
    return pd.DataFrame(
        {
            "image": _names(rows.images, trainer),
            "patient_id": [row["patient_id"] for row in described],
            "label": [_WORDS[label] for label in rows.labels],
            "findings": [row["findings"] for row in described],
            "raw_score": rows.raw_scores,
            "score": rows.scores,
            "p_value": np.nan,
            "decision": decisions,
            "split_hash": getattr(getattr(trainer, "datamodule", None), "split_hash", ""),
            PICTURE: rows.pictures or "",
            ASSESSABLE: ["" if one is None else "yes" if one.assessable else "no" for one in assessed],
            BECAUSE: ["" if one is None else one.because for one in assessed],
        }
    )


def _known_of_images(trainer: Trainer) -> dict[str, dict[str, str]]:
    """Patient and findings of each evaluated image, as far as the datamodule's tables have them."""
    known: dict[str, dict[str, str]] = {}
    for part in ("val_data", "test_data"):
        samples = getattr(getattr(getattr(trainer, "datamodule", None), part, None), "samples", None)
        if samples is None:
            continue
        columns = {
            name: samples[name].fillna("").astype(str) if name in samples else [""] * len(samples)
            for name in ("patient_id", "findings")
        }
        for image, patient, findings in zip(samples["image_path"], *columns.values(), strict=True):
            known[str(image)] = {"patient_id": patient, "findings": findings}
    return known


def _validation_images(trainer: Trainer) -> list[str]:
    samples = getattr(getattr(getattr(trainer, "datamodule", None), "val_data", None), "samples", None)
    return [] if samples is None else [str(path) for path in samples["image_path"]]


def _names(images: Sequence[str], trainer: Trainer) -> list[str]:
    """Paths below the root of the data with forward slashes, so that files of different machines compare."""
    root = images_root(trainer)
    return list(images) if root is None else [_below(Path(image), root) for image in images]


def _below(path: Path, folder: Path) -> str:
    """Path below a folder with forward slashes; as it is where it lies elsewhere."""
    is_below = path.absolute().is_relative_to(folder.absolute())
    return below([path], folder)[0] if is_below else str(path)


def _digest(names: Sequence[str]) -> str:
    return sha256("\n".join(names).encode("utf-8", "surrogatepass")).hexdigest()


def _post_processed(raw_scores: list[float], pl_module: LightningModule) -> tuple[list[float], list[int | None]]:
    """Scores and decisions that the model's post-processor makes of raw scores; nothing where it needs maps."""
    processor = getattr(pl_module, "post_processor", None)
    stock = isinstance(processor, PostProcessor) and type(processor).forward is PostProcessor.forward
    if not stock and not getattr(processor, "takes_scores_alone", False):
        return [math.nan] * len(raw_scores), [None] * len(raw_scores)
    with torch.no_grad():
        raw = torch.tensor(raw_scores, dtype=torch.float32, device=pl_module.device)
        processed = cast("PostProcessor", processor)(InferenceBatch(pred_score=raw))
    decisions = processed.pred_label
    return (
        processed.pred_score.cpu().double().tolist(),
        [None] * len(raw_scores) if decisions is None else [int(value) for value in decisions],
    )

"""Sends heat maps and image-level metrics to W&B, MLflow and TensorBoard; stock Anomalib sends no pictures."""

import copy
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from anomalib.data import ImageBatch, InferenceBatch
from anomalib.post_processing import PostProcessor
from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_cxr.callbacks.visualizer import HeatMapVisualizer
from anomalib_cxr.imaging import Names
from anomalib_cxr.metrics.image_level import THRESHOLD_METRICS, image_metrics

logger = logging.getLogger(__name__)

Picture = npt.NDArray[np.uint8]


class HeatMapLogger(Callback):
    """Sends pictures and metrics of each validation of a fit, and of test and predict runs, to the trainer's loggers.

    ``--trainer.logger TensorBoardLogger --trainer.logger.save_dir logs``, with
    ``--trainer.callbacks anomalib_cxr.callbacks.HeatMapLogger``.

    A picture is the image beside its heat map, smoothed for display, with a scale of colours, and name, decision and
    score below; it is named ``heat_maps/<stage>/<label>/<file>``. Those of the first images of each label are sent, the
    same at every step. Metrics are named ``<stage>/AUROC`` and so on: AUROC and AUPR of the
    raw scores, the others of the model's decisions. TensorBoard, W&B and MLflow take both; loggers that take no
    pictures get the metrics, and are named in the log.

    With several processes the first sends what it has seen.

    Args:
        per_label: Pictures of each label, 0 or more.
        side: Longest side of an image in a picture, in pixels; larger ones are shrunk.
        names: What is written below a picture, see :func:`~anomalib_cxr.imaging.shown_name`. The pictures' own names
            in the logger hold those of the files either way.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, per_label: int = 8, side: int = 256, names: Names = "path") -> None:
        if per_label < 0 or side < 32:
            msg = f"HeatMapLogger needs per_label of 0 or more and side of 32 or more, got {per_label} and {side}."
            raise ValueError(msg)
        self.per_label = per_label
        self._visualizer = HeatMapVisualizer(side, names)
        self._begin()

    def _begin(self) -> None:
        self._shown: dict[str, int] = {}
        self._pictures: dict[str, Picture] = {}
        self._raw: list[tuple[str, Any]] = []
        self._scores: list[float] = []
        self._labels: list[int] = []
        self._decisions: list[int] = []
        self._pending: ImageBatch | None = None

    # ------------------------------------------------------------------ validation of a fit: maps are still raw

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with nothing."""
        del trainer, pl_module
        self._begin()

    def on_validation_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Keep scores, and the maps that will be shown."""
        del trainer, pl_module, args
        batch = outputs if isinstance(outputs, ImageBatch) else batch
        self._add_scores(batch)
        self._raw += [(name, copy.copy(item)) for item, name in self._chosen(batch)]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Normalise what was kept as the post-processor does by now, and send it."""
        if trainer.sanity_checking:
            return
        processor = getattr(pl_module, "post_processor", None)
        for name, item in self._raw:
            if isinstance(processor, PostProcessor):
                with torch.no_grad():
                    batch = InferenceBatch(
                        pred_score=None if item.pred_score is None else item.pred_score.reshape(1),
                        anomaly_map=item.anomaly_map.reshape(1, 1, *item.anomaly_map.shape[-2:]),
                    )
                    found = processor(batch)
                item.anomaly_map = found.anomaly_map[0, 0]
                if item.pred_score is not None:
                    item.pred_score, item.pred_label = found.pred_score[0], found.pred_label[0]
            self._draw(name, item, trainer, pl_module)
        self._send(trainer, "validation")

    # ------------------------------------------------------------------ test and predict: maps will be normalised

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with nothing."""
        del trainer, pl_module
        self._begin()

    def on_test_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Keep raw scores; the post-processor changes the batch in place afterwards."""
        del args
        self._finish(trainer, pl_module)
        self._pending = outputs if isinstance(outputs, ImageBatch) else batch
        self._add_scores(self._pending)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send what was kept."""
        self._finish(trainer, pl_module)
        self._send(trainer, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As for a test."""
        self.on_test_start(trainer, pl_module)

    def on_predict_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """As for a test."""
        self.on_test_batch_end(trainer, pl_module, outputs, batch, *args)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As for a test."""
        self._finish(trainer, pl_module)
        self._send(trainer, "predict")

    # ------------------------------------------------------------------ collecting

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the post-processor comes later, and that there is something to send to."""
        del pl_module, stage
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        after = callbacks[callbacks.index(self) :]
        if any(isinstance(one, PostProcessor) for one in callbacks) and not any(
            isinstance(one, PostProcessor) for one in after
        ):
            msg = "HeatMapLogger must come before the post-processor among the trainer's callbacks."
            raise ValueError(msg)
        if not trainer.loggers:
            logger.warning("HeatMapLogger has nothing to send to: give the trainer a logger (--trainer.logger).")
        for one in trainer.loggers:
            if _sender(one) is None:
                logger.warning("%s takes no pictures: it gets the metrics alone.", type(one).__name__)

    def _add_scores(self, batch: ImageBatch) -> None:
        if batch.pred_score is None or batch.gt_label is None:
            return
        self._scores += batch.pred_score.detach().cpu().double().reshape(-1).tolist()
        self._labels += [int(label) for label in batch.gt_label.reshape(-1)]

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw from the batch before: the post-processor has normalised it by now."""
        batch, self._pending = self._pending, None
        if batch is None:
            return
        if batch.pred_label is not None:
            self._decisions += [int(label) for label in batch.pred_label.reshape(-1)]
        for item, name in self._chosen(batch):
            self._draw(name, item, trainer, pl_module)

    def _chosen(self, batch: ImageBatch) -> Iterable[tuple[Any, str]]:
        """Items whose pictures are sent, and their names."""
        if batch.anomaly_map is None:
            return
        for item in batch.items:
            label = "unknown" if item.gt_label is None else "abnormal" if bool(item.gt_label) else "normal"
            number = self._shown.get(label, 0)
            if number < self.per_label:
                self._shown[label] = number + 1
                stem = Path(item.image_path).name if item.image_path else f"image_{number}"
                yield item, f"{label}/{number:02d}_{re.sub(r'[^A-Za-z0-9._-]', '_', stem)}"

    def _draw(self, name: str, item: Any, trainer: Trainer, pl_module: LightningModule) -> None:
        picture = self._visualizer.picture(item, trainer, pl_module)
        if picture is not None:
            self._pictures[name] = picture

    # ------------------------------------------------------------------ sending

    def _send(self, trainer: Trainer, stage: str) -> None:
        pictures, metrics = self._pictures, self._metrics(stage)
        self._begin()
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        step = trainer.global_step
        for one in trainer.loggers:
            if metrics:
                one.log_metrics(metrics, step)
            send = _sender(one)
            for name, picture in pictures.items() if send is not None else ():
                send(one, f"heat_maps/{stage}/{name}", picture, step)
            one.save()

    def _metrics(self, stage: str) -> dict[str, float]:
        """Metrics that can be computed of what was seen; NaN ones are left out: loggers draw them badly."""
        if not self._scores or not np.isfinite(self._scores).all():
            return {}
        values = image_metrics(self._scores, self._labels)
        if len(self._decisions) == len(self._labels):
            decided = image_metrics(self._decisions, self._labels, threshold=0.5)
            values |= {name: decided[name] for name in THRESHOLD_METRICS}
        return {f"{stage}/{name}": value for name, value in values.items() if not np.isnan(value)}


def _sender(one: Any) -> Any:
    """How a logger takes a picture; None if it takes none. By what it can do: W&B and MLflow need not be installed."""
    if hasattr(one, "log_image"):
        return _to_wandb
    if hasattr(one, "run_id") and hasattr(one.experiment, "log_image"):
        return _to_mlflow
    if hasattr(one.experiment, "add_image"):
        return _to_tensorboard
    return None


def _to_wandb(one: Any, name: str, picture: Picture, step: int) -> None:
    one.log_image(key=name, images=[picture], step=step)


def _to_mlflow(one: Any, name: str, picture: Picture, step: int) -> None:
    one.experiment.log_image(one.run_id, picture, artifact_file=f"{name}_step_{step:06d}.png")


def _to_tensorboard(one: Any, name: str, picture: Picture, step: int) -> None:
    one.experiment.add_image(name, picture, global_step=step, dataformats="HWC")

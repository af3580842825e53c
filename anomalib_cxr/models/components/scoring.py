"""How this package's detectors are scored: metrics, resizing, and steps that leave scores raw."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from anomalib.data import AnomalibDataset, ImageBatch
from anomalib.data.transforms.utils import extract_transforms_by_type
from anomalib.metrics import AUROC, F1Score
from anomalib.metrics.evaluator import Evaluator
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torchvision.transforms.v2 import Resize

from anomalib_cxr import metrics
from anomalib_cxr.callbacks.attach import with_run_callbacks
from anomalib_cxr.callbacks.checkpoint_choice import MONITOR
from anomalib_cxr.callbacks.visualizer import HeatMapVisualizer
from anomalib_cxr.models.components.deployable import DeployableMixin
from anomalib_cxr.models.components.exact_resize import ExactResizePreProcessor


class ScoringMixin(DeployableMixin):
    """Mixin for an ``AnomalibModule`` whose ``model`` gives a score and a map of each image."""

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Anomalib's test metrics, and the AUROC on validation that the checkpoint is chosen by.

        The image-level AUROCs are ours, which rank raw scores: Anomalib's would put those outside of [0, 1] through a
        sigmoid, batch by batch, which ties large ones, and normalised ones tie far from the validation scores.
        """
        test_metrics: list[Any] = [
            metrics.AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
            F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
            AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
            F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
        ]
        return Evaluator(
            val_metrics=[metrics.AUROC(fields=["pred_score", "gt_label"], prefix=MONITOR.removesuffix("AUROC"))],
            test_metrics=test_metrics,
        )

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Resize only, exported as it is: intensities are normalised inside the model."""
        return ExactResizePreProcessor(transform=Resize(image_size or (256, 256), antialias=True))

    #: What the anomaly map is, in a few words: for ``run.json``, the report and captions.
    map_description: str = "anomaly map"

    @classmethod
    def configure_visualizer(cls) -> HeatMapVisualizer:
        """Pictures of single films that say which film they are."""
        return HeatMapVisualizer()

    def configure_callbacks(self) -> Sequence[Callback]:
        """Anomalib's component callbacks, after those that every run has."""
        return with_run_callbacks(self, super().configure_callbacks())

    def validation_step(self, batch: ImageBatch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Score a batch. Scores stay raw in validation: the post-processor takes its statistics from them."""
        del args, kwargs
        return self._scored(batch)

    def test_step(self, batch: Any, batch_idx: int, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Score a batch; the post-processor normalises it afterwards."""
        del batch_idx, args, kwargs
        return self._scored(batch)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> STEP_OUTPUT:
        """Score a batch; the post-processor normalises it afterwards."""
        del batch_idx, dataloader_idx
        return self._scored(batch)

    def _scored(self, batch: ImageBatch) -> STEP_OUTPUT:
        # The bank is built in float32: queries of a run trained in mixed precision must not be rounded differently.
        with torch.autocast(self.device.type, enabled=False):
            predictions = self.model(batch.image)
        return batch.update(**predictions._asdict())

    def without_augmentation(self, dataset: AnomalibDataset) -> AnomalibDataset:
        """View of the data set with the model's own resizing and nothing else."""
        plain = copy.copy(dataset)
        resizes = extract_transforms_by_type(self.pre_processor.transform, Resize) if self.pre_processor else []
        plain.augmentations = resizes[0] if resizes else None
        return plain

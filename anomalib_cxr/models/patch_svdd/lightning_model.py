"""PatchSVDD as an Anomalib module: training glue."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from anomalib.data import ImageBatch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import Tensor
from torch.utils.data import DataLoader

from anomalib_cxr.callbacks.checkpoint_choice import Checkpoint
from anomalib_cxr.imaging.progress import progress
from anomalib_cxr.models.components.bank import BankMixin
from anomalib_cxr.models.components.presets import resolve_preset
from anomalib_cxr.models.components.stages import Stage
from anomalib_cxr.models.components.step_order import seeded
from anomalib_cxr.models.components.step_training import Schedule
from anomalib_cxr.models.patch_svdd.torch_model import Fusion, PatchSVDDModel

#: What ``preset`` sets, strides by patch size; an argument given by the user wins. "paper" is Yi and Yoon's setting:
#: 300 epochs of 100 pairs of each of some 240 images, in batches of 64. "laptop" is ours.
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {
        "image_size": 128,
        "width": 16,
        "strides": {32: 16, 64: 16},
        "patch_distance": 1,
        "svdd_weight": 0.001,
        "max_steps": 200,
        "steps_per_epoch": 100,
        "learning_rate": 1e-3,
        "lr_schedule": "cosine",
    },
    "paper": {
        "image_size": 256,
        "width": 32,
        "strides": {32: 4, 64: 16},
        "patch_distance": -1,
        "svdd_weight": 1.0,
        "max_steps": 112_500,
        "steps_per_epoch": 1_875,
        "learning_rate": 1e-4,
        "lr_schedule": "constant",
    },
}
_PAPER_BATCH = 64


class PatchSVDD(BankMixin, AnomalibModule):  # type: ignore[misc]  # as in Anomalib, two bases have to_onnx
    """PatchSVDD: patches that know where they lie, and how far they are from those of normal images.

    Yi and Yoon, "Patch SVDD: patch-level SVDD for anomaly detection and segmentation" (ACCV 2020, arXiv 2006.16067). An
    encoder learns to tell in which direction one patch lies of another, and to code nearly the same patches alike. A
    patch is scored by the distance of its code to the nearest one of normal images; the score of an image is the
    maximum of its map.

    The batch size is the datamodule's ``train_batch_size`` (64 as published): of each image one pair of patches of each
    kind and size is drawn a step.

    Args:
        preset: ``"laptop"`` (ours: 128², half the width, strides of 16, search within one cell), or ``"paper"`` (256²,
            strides of 4 and 16, search of the whole image, 112,500 steps). The arguments whose default is None
            override it.
        image_size: Side of the square model input in pixels, even, twice the largest patch or more.
        patch_sizes: Sides of the patches, of 32 and 64.
        strides: Pixels between the patches that are compared, even, one for each size; small ones cost memory and time.
        patch_distance: Cells of the grid that a reference may lie away (ours: anatomy has its place); -1 searches the
            whole image, as published.
        svdd_weight: Weight λ of the distance of nearly the same patches, beside telling directions; where it is large
            for the length of a training, all codes become one.
        fusion: ``"product"`` of both sizes' maps (published), or their ``"sum"``.
        width: Channels of the encoder's first layer, which all others but the last follow; 32 as published.
        max_steps: Optimiser steps of the whole training.
        steps_per_epoch: Optimiser steps between two validations, a divisor of ``max_steps``; None takes the preset's,
            made to divide.
        optimizer: Any optimiser name of timm; the published one is Adam.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay.
        lr_schedule: ``"constant"`` (published) or ``"cosine"`` to zero over ``max_steps``.
        checkpoint: ``"last"``, which no label chooses, or ``"best"`` by AUROC on the labelled validation split.
        seed: Seed of weights, order and all that is drawn.
        films_in_memory: Keep the training films in memory at the model's size; the numbers are the same. None does so
            where it pays and fits.
        pre_processor: As in Anomalib; the default resizes to ``image_size``.
        post_processor: As in Anomalib; the default keeps ranks.
        evaluator: As in Anomalib; the default adds AUROC on validation.
        visualizer: As in Anomalib.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    map_description = "distance of the patches that cover each pixel to the nearest of normal training images"

    def __init__(
        self,
        preset: Literal["laptop", "paper"] = "laptop",
        image_size: int | None = None,
        patch_sizes: Sequence[int] = (32, 64),
        strides: Sequence[int] | None = None,
        patch_distance: int | None = None,
        svdd_weight: float | None = None,
        fusion: Fusion = "product",
        width: int | None = None,
        max_steps: int | None = None,
        steps_per_epoch: int | None = None,
        optimizer: str = "adam",
        learning_rate: float | None = None,
        weight_decay: float = 0.0,
        lr_schedule: Schedule | None = None,
        checkpoint: Checkpoint = "last",
        seed: int = 0,
        films_in_memory: bool | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        resolved = resolve_preset(
            PRESETS,
            preset,
            image_size=image_size,
            width=width,
            patch_distance=patch_distance,
            svdd_weight=svdd_weight,
            max_steps=max_steps,
            learning_rate=learning_rate,
            lr_schedule=lr_schedule,
        )
        if strides is None:
            known = PRESETS[preset]["strides"]
            strides = [known.get(size, size) for size in patch_sizes]
        side, reach = resolved.image_size, resolved.patch_distance
        if reach < -1:
            msg = f"patch_distance must be 0 or more, or -1 for the whole image, not {reach}."
            raise ValueError(msg)
        if pre_processor is True:
            pre_processor = self.configure_pre_processor((side, side))
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.set_up_training(
            seed=seed,
            max_steps=resolved.max_steps,
            steps_per_epoch=steps_per_epoch,
            default_steps_per_epoch=PRESETS[preset]["steps_per_epoch"],
            checkpoint=checkpoint,
            optimizer=optimizer,
            learning_rate=resolved.learning_rate,
            weight_decay=weight_decay,
            lr_schedule=resolved.lr_schedule,
            films_in_memory=films_in_memory,
            published_batch=_PAPER_BATCH if preset == "paper" else None,
        )
        with seeded(seed):
            self.model: PatchSVDDModel = PatchSVDDModel(
                patch_sizes=patch_sizes,
                strides=strides,
                image_size=(side, side),
                patch_distance=None if reach < 0 else reach,
                svdd_weight=resolved.svdd_weight,
                fusion=fusion,
                width=resolved.width,
            )
        self.keep_resolved(**vars(resolved), strides=strides)

    def on_stage_start(self, stage: Stage) -> None:
        """Take the mean of the normal training images, which every patch is seen against."""
        super().on_stage_start(stage)
        self.over_normal_films(self._fit_mean_image)

    def _fit_mean_image(self, loader: DataLoader) -> None:
        grey = (images.mean(dim=1, keepdim=True) for images in self.pre_processed(loader))
        self.model.mean_image = self.mean_over_films(grey)

    def training_loss(self, batch: ImageBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Tell where the second patch of a pair lies, and code nearly the same patches alike."""
        return self.model.losses(cast("Tensor", batch.image), generator)

    def build_bank(self, loader: DataLoader) -> None:
        """Collect the codes of the training images."""
        batches = progress(self.pre_processed(loader), "Reference bank", len(loader), unit="batch")
        found = [self.model.codes(images) for images in batches]
        self.model.fit([self.gather_references(torch.cat(size)) for size in zip(*found, strict=True)])

    def extend_bank(self, images: Tensor) -> None:
        """Add normal images of another place to the banks."""
        with torch.no_grad():
            self.model.extend(self.model.codes(images))

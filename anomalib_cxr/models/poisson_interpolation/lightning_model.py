"""PoissonInterpolation as an Anomalib module: training glue."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import pandas as pd
import torch
from anomalib.data import ImageBatch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import Tensor
from torch.nn import functional as F

from anomalib_cxr.anatomy import Lungs, Region, RegionMasks
from anomalib_cxr.augmentations import Blend, PatchInterpolation
from anomalib_cxr.callbacks.checkpoint_choice import Checkpoint
from anomalib_cxr.models.components.presets import resolve_preset
from anomalib_cxr.models.components.region_finding import find_region_masks, listed_region
from anomalib_cxr.models.components.step_order import seeded
from anomalib_cxr.models.components.step_training import Schedule, StepTrainingMixin
from anomalib_cxr.models.components.training_sheets import save_training_sheets
from anomalib_cxr.models.poisson_interpolation.torch_model import PUBLISHED, PoissonInterpolationModel

#: What ``preset`` sets; an argument given by the user wins. "paper" is Tan et al.'s setting, "laptop" is ours.
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {
        "image_size": 64,
        "max_steps": 120,
        "steps_per_epoch": 40,
        "backbone": "resnet10t",
        "shift": 0.5,
        "lungs": True,
        "weight_decay": 0.0,
        "lr_schedule": "cosine",
    },
    "paper": {
        "image_size": 256,
        "max_steps": 14_000,
        "steps_per_epoch": 1_000,
        "backbone": PUBLISHED,
        "shift": 0.0,
        "lungs": False,
        "weight_decay": 5e-4,
        "lr_schedule": "constant",
    },
}
_PAPER_BATCH = 64


class PoissonInterpolation(StepTrainingMixin, AnomalibModule):  # type: ignore[misc]  # as in Anomalib, two bases have to_onnx
    """PoissonInterpolation: learn by what share another normal film was blended into a square, and where.

    Tan et al., "Detecting outliers with Poisson image interpolation" (PII, MICCAI 2021, arXiv 2107.02622); with
    ``blend="linear"`` its forerunner foreign patch interpolation (FPI, MELBA 2022, arXiv 2011.04197). Two normal films
    are interpolated inside a square by a share α, in their gradients or in their intensities, and a network predicts α
    at each pixel, 0 outside. At test time the prediction is the map, and its mean the score.

    The batch size is the datamodule's ``train_batch_size``, an even number of 2 or more, since films are taken in pairs
    and both of a pair are trained on; the paper's is 64, 32 pairs.

    Args:
        preset: ``"laptop"`` (ours: 64², ResNet-10 from scratch, 120 steps), or ``"paper"`` (256², PII's network, 14,000
            steps: 50 passes over its 17,852 films of men). The arguments whose default is None override it.
        image_size: Side of the square model input in pixels.
        max_steps: Optimiser steps of the whole training.
        steps_per_epoch: Optimiser steps between two validations, a divisor of ``max_steps``; None takes the preset's,
            made to divide.
        blend: ``"poisson"`` (PII) or ``"linear"`` (FPI).
        patch_share: Lowest and highest half side of the square as a share of the image's side (paper: 0.05 to 0.2).
        shift: How far from the square's own place the other film's square may lie at most, along each axis, as a share
            of the image's side (paper: 0, the same place). Of the same place another normal film has much the same
            brightness, and what is learnt is doubled edges; from elsewhere come bright and dark patches too (ours).
        lungs: Centre the squares in the lungs (ours), or in the region that the datamodule lists as ``region_path``;
            False: anywhere in the inner 80 % of both sides.
        backbone: ``"wide_residual"``, PII's own network, or any timm model with feature maps or tokens, which gets a
            light decoder.
        pre_trained: Start from timm's weights; the paper does not.
        layers: Levels of a timm model that the decoder reads, 0 the finest; the default are a ResNet's strides 4, 8 and
            16.
        optimizer: Any optimiser name of timm (``timm.optim.list_optimizers()``).
        learning_rate: Peak learning rate.
        weight_decay: Weight decay, not of biases and norms.
        lr_schedule: ``"cosine"`` to zero over ``max_steps``, or ``"constant"``.
        warmup_steps: Linear warm-up of the learning rate.
        checkpoint: ``"last"``, which no label chooses, or ``"best"`` by AUROC on the labelled validation split.
        seed: Seed of weights, order and interpolation.
        num_workers: Processes for the lung masks; ``None`` takes all cores.
        films_in_memory: As of every detector.
        pre_processor: As in Anomalib; the default resizes to ``image_size``.
        post_processor: As in Anomalib; the default keeps ranks.
        evaluator: As in Anomalib; the default adds AUROC on validation.
        visualizer: As in Anomalib.

    Raises:
        ValueError: If an argument is out of range; the message names it.

    Examples:
        >>> from anomalib.engine import Engine
        >>> from anomalib_cxr.data import PhantomCXR
        >>> from anomalib_cxr.models import PoissonInterpolation
        >>> Engine().train(model=PoissonInterpolation(), datamodule=PhantomCXR())  # doctest: +SKIP
    """

    map_description = "predicted share of another film at each pixel"

    def __init__(
        self,
        preset: Literal["laptop", "paper"] = "laptop",
        image_size: int | None = None,
        max_steps: int | None = None,
        steps_per_epoch: int | None = None,
        blend: Blend = "poisson",
        patch_share: Sequence[float] = (0.05, 0.2),
        shift: float | None = None,
        lungs: bool | None = None,
        backbone: str | None = None,
        pre_trained: bool = False,
        layers: Sequence[int] = (1, 2, 3),
        optimizer: str = "adam",
        learning_rate: float = 1e-3,
        weight_decay: float | None = None,
        lr_schedule: Schedule | None = None,
        warmup_steps: int = 0,
        checkpoint: Checkpoint = "last",
        seed: int = 0,
        num_workers: int | None = None,
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
            max_steps=max_steps,
            shift=shift,
            lungs=lungs,
            backbone=backbone,
            weight_decay=weight_decay,
            lr_schedule=lr_schedule,
        )
        side = resolved.image_size
        if pre_processor is True:
            if side < 32:
                msg = f"image_size must be at least 32, not {side}."
                raise ValueError(msg)
            pre_processor = self.configure_pre_processor((side, side))
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.set_up_training(
            seed=seed,
            max_steps=resolved.max_steps,
            steps_per_epoch=steps_per_epoch,
            default_steps_per_epoch=PRESETS[preset]["steps_per_epoch"],
            checkpoint=checkpoint,
            optimizer=optimizer,
            learning_rate=learning_rate,
            weight_decay=resolved.weight_decay,
            decay_all=False,
            lr_schedule=resolved.lr_schedule,
            warmup_steps=warmup_steps,
            films_in_memory=films_in_memory,
            published_batch=_PAPER_BATCH if preset == "paper" else None,
        )
        self.pasting = PatchInterpolation(
            blend, (patch_share[0], patch_share[1]), shift=resolved.shift, segmentation=resolved.lungs
        )
        self.keep_resolved(**vars(resolved), patch_share=self.pasting.patch_share, layers=tuple(layers))
        self.num_workers = num_workers
        self.region_masks: RegionMasks | None = None
        with seeded(seed):
            self.model: PoissonInterpolationModel = PoissonInterpolationModel(
                resolved.backbone, pre_trained, layers, image_size=(side, side)
            )

    def on_fit_start(self) -> None:
        """Find the lungs of all training images, once, and save pictures of what is trained on."""
        super().on_fit_start()
        if self.pasting.segmentation:
            self.region_masks = find_region_masks(self, _region, self.num_workers)
        save_training_sheets(self, self.region_masks, self.pasting)

    def training_loss(self, batch: ImageBatch, generator: torch.Generator) -> Tensor:
        """Binary cross-entropy between predicted and true share, at each pixel."""
        images = self.model.standardise(cast("Tensor", batch.image))
        paths = cast("list[str]", batch.image_path)
        region = self.region_masks.lookup(paths, images.device) if self.region_masks else None
        (pasted,) = self.pasting.paste(images, region, generator)
        return F.binary_cross_entropy_with_logits(self.model.logits(pasted.image), pasted.mask)


def _region(samples: pd.DataFrame) -> Region:
    """The region that the datamodule lists, or the lungs."""
    listed = listed_region(samples)
    return Lungs() if listed is None else listed

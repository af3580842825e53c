"""FeatureDistillation as an Anomalib module: training glue."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from anomalib.data import ImageBatch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch.utils.data import DataLoader

from anomalib_cxr.callbacks.checkpoint_choice import Checkpoint
from anomalib_cxr.models.components.bank import BankMixin
from anomalib_cxr.models.components.presets import resolve_preset
from anomalib_cxr.models.components.step_order import seeded
from anomalib_cxr.models.components.step_training import Schedule
from anomalib_cxr.models.feature_distillation.torch_model import FeatureDistillationModel

#: What ``preset`` sets; an argument given by the user wins. "paper" is Salehi et al.'s setting, "laptop" is ours.
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {
        "image_size": 128,
        "teacher": "tf_efficientnet_lite0",
        "layers": (1, 2, 3, 4),
        "pooled": False,
        "relative": True,
        "max_steps": 800,
        "steps_per_epoch": 400,
        "lr_schedule": "cosine",
    },
    "paper": {
        "image_size": 128,
        "teacher": "vgg16",
        "layers": (1, 2, 3, 4),
        "pooled": True,
        "relative": False,
        "max_steps": 15_800,
        "steps_per_epoch": 790,
        "lr_schedule": "constant",
    },
}


class FeatureDistillation(BankMixin, AnomalibModule):  # type: ignore[misc]  # as in Anomalib, two bases have to_onnx
    """FeatureDistillation: a narrow student learns a frozen teacher's features of normal images, and fails elsewhere.

    Salehi et al., "Multiresolution knowledge distillation for anomaly detection" (CVPR 2021, arXiv 2011.11108). The
    student, far narrower than the teacher, has to match the direction and the values of whole feature maps at several
    levels; an image is scored by how far it fails. The published map needs a backward pass; ours is the place-wise
    difference, which exports. After a short training the student fails on normal images, too, in some places more than
    in others: ``relative`` compares each place with what is usual there.

    The batch size is the datamodule's ``train_batch_size`` (the published code's is 64; ours is 16).

    Args:
        preset: ``"laptop"`` (ours: EfficientNet-lite0 as teacher, 128², 800 steps, scores relative to normal images,
            chosen on ZhangLab's validation images), or ``"paper"`` (VGG-16 at 128², pooled stages 2 to 5, Adam at a
            constant 1e-3 for 15,800 steps, which are the published 200 epochs of the 5,000 images of a class of
            CIFAR-10, and the last weights). The arguments whose default is None override it.
        image_size: Side of the square model input in pixels, a multiple of the coarsest level's reduction.
        teacher: Any timm model whose levels halve the image.
        pre_trained: Take timm's weights for the teacher; without them, and without ``weights_path``, it is random.
        weights_path: Local weights file for the teacher.
        layers: Levels of the teacher, 0 the finest; the first of them trains and does not score, as published.
        pooled: Compare levels after a max-pooling by two, as VGG's stages end.
        width: Channels of the student's inner convolutions.
        relative: Standardise the difference of each place by those of normal training images there, and score by its
            mean over places; False scores by the differences of whole maps, as published.
        mse_weight: Weight λ of the squared difference, beside that of the direction.
        normalise: Give teacher and student grey values as the teacher's weights want them; the published code gives
            them in [0, 1] at this size, ``False``.
        max_steps: Optimiser steps of the whole training.
        steps_per_epoch: Optimiser steps between two validations, a divisor of ``max_steps``; None takes the preset's,
            made to divide.
        optimizer: Any optimiser name of timm; the published one is Adam.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay.
        lr_schedule: ``"constant"`` (published) or ``"cosine"`` to zero over ``max_steps``.
        checkpoint: ``"last"`` (published) or ``"best"`` by AUROC on the labelled validation split.
        seed: Seed of weights and order.
        films_in_memory: Keep the training films in memory at the model's size; the numbers are the same. None does so
            where it pays and fits.
        pre_processor: As in Anomalib; the default resizes to ``image_size``.
        post_processor: As in Anomalib; the default keeps ranks.
        evaluator: As in Anomalib; the default adds AUROC on validation.
        visualizer: As in Anomalib.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    map_description = "how far the student's features of each place are from the teacher's"

    def __init__(
        self,
        preset: Literal["laptop", "paper"] = "laptop",
        image_size: int | None = None,
        teacher: str | None = None,
        pre_trained: bool = True,
        weights_path: str | None = None,
        layers: Sequence[int] | None = None,
        pooled: bool | None = None,
        relative: bool | None = None,
        width: int = 16,
        mse_weight: float = 0.01,
        normalise: bool = True,
        max_steps: int | None = None,
        steps_per_epoch: int | None = None,
        optimizer: str = "adam",
        learning_rate: float = 1e-3,
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
            teacher=teacher,
            layers=layers,
            pooled=pooled,
            relative=relative,
            max_steps=max_steps,
            lr_schedule=lr_schedule,
        )
        side = resolved.image_size
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
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            lr_schedule=resolved.lr_schedule,
            films_in_memory=films_in_memory,
        )
        with seeded(seed):
            self.model: FeatureDistillationModel = FeatureDistillationModel(
                teacher=resolved.teacher,
                pre_trained=pre_trained,
                weights_path=weights_path,
                layers=resolved.layers,
                pooled=resolved.pooled,
                width=width,
                mse_weight=mse_weight,
                normalise=normalise,
                relative=resolved.relative,
            )
        coarsest = max(self.model.student.reductions)
        if side < coarsest or side % coarsest:
            msg = f"image_size must be a multiple of {coarsest}, by which the coarsest level is reduced, not {side}."
            raise ValueError(msg)
        self.keep_resolved(**vars(resolved))

    def training_loss(self, batch: ImageBatch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Learn the teacher's features."""
        del generator
        return self.model.losses(cast("torch.Tensor", batch.image))

    def build_bank(self, loader: DataLoader) -> None:
        """Learn how large the differences of normal images are, where scores are relative to them."""
        if not self.model.relative:
            return
        found = [self.model.differences(images) for images in self.pre_processed(loader)]
        self.model.fit([self.gather_references(torch.cat(level)) for level in zip(*found, strict=True)])

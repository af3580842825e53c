"""SQUID as an Anomalib module: training glue."""

from typing import Any, Literal, cast

import torch
from anomalib.data import ImageBatch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import Tensor

from anomalib_cxr.augmentations.checks import check_number
from anomalib_cxr.augmentations.position import shift_and_scale
from anomalib_cxr.callbacks.checkpoint_choice import Checkpoint
from anomalib_cxr.models.components.adversarial import takes_turn
from anomalib_cxr.models.components.presets import resolve_preset
from anomalib_cxr.models.components.schedule import warmup_cosine
from anomalib_cxr.models.components.step_order import seeded
from anomalib_cxr.models.components.step_training import Schedule, StepTrainingMixin
from anomalib_cxr.models.squid.torch_model import SQUIDModel, grey

#: What ``preset`` sets; an argument given by the user wins. "paper" is Xiang et al.'s setting, "laptop" is ours.
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {
        "image_size": 64, "width": 8, "learning_rate": 3e-3, "discriminator_learning_rate": 1e-4,
        "max_steps": 400, "steps_per_epoch": 100,
    },
    "paper": {
        "image_size": 128, "width": 32, "learning_rate": 1e-4, "discriminator_learning_rate": 1e-4,
        "max_steps": 15_600, "steps_per_epoch": 780,
    },
}  # fmt: skip
#: What the published Adam has besides.
_ADAM: dict[str, Any] = {"betas": (0.5, 0.999), "eps": 1e-7}
#: The discriminator learns in every step, what makes films in every second.
_MAKES_EVERY = 2
#: The cosine's end, in lengths of the training, and the factor there.
_PERIOD, _FLOOR = 1.5, 0.1


class SQUID(StepTrainingMixin, AnomalibModule):  # type: ignore[misc]  # as in Anomalib, two bases have to_onnx
    """SQUID: in-paint windows of a film from what normal films remember, and ask a discriminator how real that looks.

    Xiang et al., "SQUID: Deep Feature In-Painting for Unsupervised Anomaly Detection" (CVPR 2023, arXiv 2111.13495).
    Films are cut into windows; at the bottleneck each is replaced by a mixture of features of the same place in earlier
    normal films, fitted to its neighbours. A student decoder with memories of its own makes a film of them, near to
    that of a teacher decoder without. Normal films are made so well that the discriminator takes them for real. The
    score is minus its logit; the published one divides it by statistics of the training films, which changes no rank.

    The batch size is the datamodule's ``train_batch_size`` (16 as published). Across several processes the trainer
    wants ``--trainer.strategy ddp_find_unused_parameters_true``, since what makes films learns in each second step
    alone.

    Args:
        preset: ``"laptop"`` (ours: 64², 8 channels, 400 steps at 3e-3, the discriminator's at 1e-4), or ``"paper"``
            (128², 32 channels, 15,600 steps at 1e-4, which are the published 200 epochs of ZhangLab's 1,249 films). The
            arguments whose default is None override it.
        image_size: Side of the square model input in pixels, a multiple of 16 · ``grid``.
        width: Channels of the first map, an even number.
        grid: Windows along each side of a film, 2 or more.
        slots: Slots of each memory.
        top: Rank from which on a slot's weight is 0: of the top 5, 4 remain, as in the published code.
        shortcut: Share of the places that pass a memory by in training, in [0, 1).
        shift: Largest movement of a training film along each axis, as a share of its length.
        scale: Largest change of its size.
        max_steps: Optimiser steps of the whole training. The discriminator learns in each of them.
        steps_per_epoch: Optimiser steps between two validations, a divisor of ``max_steps``; None takes the preset's,
            made to divide.
        optimizer: Any optimiser name of timm. The published one is Adam, whose first moment of 0.5 and ε of 1e-7 go
            with ``"adam"`` alone.
        learning_rate: Peak learning rate of what makes films.
        discriminator_learning_rate: That of the discriminator.
        weight_decay: Weight decay of what makes films; the discriminator has none, as published.
        lr_schedule: ``"cosine"``, of which the training covers two thirds, above a floor of a tenth (published: a
            period of 300 epochs, of which 200 are run), or ``"constant"``.
        checkpoint: ``"best"`` by AUROC on the labelled validation split (as published), or ``"last"``.
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

    map_description = "difference between the film and what the student made of it"

    def __init__(
        self,
        preset: Literal["laptop", "paper"] = "laptop",
        image_size: int | None = None,
        width: int | None = None,
        grid: int = 2,
        slots: int = 200,
        top: int = 5,
        shortcut: float = 0.05,
        shift: float = 0.05,
        scale: float = 0.05,
        max_steps: int | None = None,
        steps_per_epoch: int | None = None,
        optimizer: str = "adam",
        learning_rate: float | None = None,
        discriminator_learning_rate: float | None = None,
        weight_decay: float = 1e-5,
        lr_schedule: Schedule = "cosine",
        checkpoint: Checkpoint = "best",
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
            learning_rate=learning_rate,
            discriminator_learning_rate=discriminator_learning_rate,
            max_steps=max_steps,
        )
        if not resolved.discriminator_learning_rate > 0:
            msg = f"discriminator_learning_rate must be positive, not {resolved.discriminator_learning_rate}."
            raise ValueError(msg)
        side = resolved.image_size
        if pre_processor is True:
            pre_processor = self.configure_pre_processor((side, side))
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.discriminator_learning_rate = resolved.discriminator_learning_rate
        self.shift = check_number("shift", shift, high=0.5)
        self.scale = check_number("scale", scale, high=0.5)
        self.set_up_training(
            seed=seed,
            max_steps=resolved.max_steps,
            steps_per_epoch=steps_per_epoch,
            default_steps_per_epoch=PRESETS[preset]["steps_per_epoch"],
            checkpoint=checkpoint,
            optimizer=optimizer,
            learning_rate=resolved.learning_rate,
            weight_decay=weight_decay,
            lr_schedule=lr_schedule,
            films_in_memory=films_in_memory,
            published_batch=16 if preset == "paper" else None,
            **(_ADAM if optimizer == "adam" else {}),
        )
        self.keep_resolved(**vars(resolved))
        with seeded(seed):
            self.model: SQUIDModel = SQUIDModel(side, resolved.width, grid, slots, top, shortcut)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What makes films, with weight decay, and the discriminator, without and with Adam's own ε."""
        judges: dict[str, Any] = {
            "params": list(self.model.discriminator.parameters()),
            "lr": self.discriminator_learning_rate,
            "weight_decay": 0.0,
        }
        if self.optimizer_name == "adam":
            judges["eps"] = 1e-8
        return [{"params": list(self.model.generator.parameters())}, judges]

    def rate_at(self, step: int) -> float:
        """Factor on the learning rate: a cosine that is cut off at two thirds, above a floor, as published."""
        if self.lr_schedule == "constant":
            return 1.0
        return _FLOOR + (1 - _FLOOR) * warmup_cosine(step, 0, _PERIOD * self.max_steps)

    def training_loss(self, batch: ImageBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Move films a little, and let each player learn whose turn it is."""
        films = shift_and_scale(grey(cast("Tensor", batch.image)), self.shift, self.scale, generator)
        return self.model.losses(films, generator, makes=takes_turn(self.steps_trained, _MAKES_EVERY))

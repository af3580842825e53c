"""DeepSVDD as an Anomalib module: training glue."""

from collections.abc import Iterator, Sequence
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
from anomalib_cxr.models.components.bank import BankMixin
from anomalib_cxr.models.components.presets import resolve_preset
from anomalib_cxr.models.components.stages import Stage, stage_at
from anomalib_cxr.models.components.step_order import seeded
from anomalib_cxr.models.components.step_training import Schedule
from anomalib_cxr.models.deep_svdd.torch_model import DeepSVDDModel, Objective

#: What ``preset`` sets; an argument given by the user wins. "paper" is Ruff et al.'s setting for CIFAR-10, of whose
#: classes each has 5,000 images: 350 and 150 epochs of 25 steps. "laptop" is ours.
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {
        "image_size": 32,
        "max_steps": 600,
        "steps_per_epoch": 150,
        "pretraining_share": 0.5,
        "lr_schedule": "cosine",
        "milestone": 1.0,
    },
    "paper": {
        "image_size": 32,
        "max_steps": 12_500,
        "steps_per_epoch": 625,
        "pretraining_share": 0.7,
        "lr_schedule": "constant",
        "milestone": 1 / 3,
    },
}

PRETRAINING, DESCRIPTION = "pretraining", "description"
#: Share of the second stage in which the radius stays 0: ten epochs of 150.
_RADIUS_WAITS = 1 / 15
_PAPER_BATCH = 200


class DeepSVDD(BankMixin, AnomalibModule):  # type: ignore[misc]  # as in Anomalib, two bases have to_onnx
    """DeepSVDD: a network that maps normal films near a centre; the score is the squared distance to it.

    Ruff et al., "Deep one-class classification" (ICML 2018). First the network learns as the encoder of an autoencoder;
    then the mean code becomes the centre, and the network learns to map films near it.

    The batch size is the datamodule's ``train_batch_size`` (200 as published).

    Args:
        preset: ``"laptop"`` (ours: 300 + 300 steps), or ``"paper"`` (8,750 + 3,750 steps of 200 films, the
            published epochs of a class of CIFAR-10). The arguments whose default is None override it.
        image_size: Side of the square model input in pixels, a multiple of 8 from 32 on.
        max_steps: Optimiser steps of the whole training, both stages.
        steps_per_epoch: Optimiser steps between two validations, a divisor of ``max_steps``; None takes the preset's,
            made to divide.
        objective: ``"one_class"``, the mean squared distance, or ``"soft_boundary"``, a sphere that leaves the share
            ``nu`` of the training films outside.
        nu: ν of ``"soft_boundary"``, in (0, 1].
        pretraining_steps: Steps as an autoencoder, 0 to below ``max_steps``; None takes the preset's share.
        contrast_normalisation: Give each film the mean 0 and the mean absolute value 1, then bring the extremes of the
            training films to 0 and 1, as published.
        optimizer: Any optimiser name of timm; the published one is Adam.
        learning_rate: Peak learning rate, in both stages.
        weight_decay: Weight decay, a part of the method.
        lr_schedule: ``"cosine"`` to zero over each stage, or ``"constant"``.
        milestone: Share of each stage from which on the rate is a tenth, in (0, 1]; 1 is never.
        checkpoint: ``"last"``, which no label chooses, or ``"best"`` by AUROC on the labelled validation split, among
            validations of the second stage.
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

    map_description = "squared difference of the last feature map from its mean over normal training images"

    def __init__(
        self,
        preset: Literal["laptop", "paper"] = "laptop",
        image_size: int | None = None,
        max_steps: int | None = None,
        steps_per_epoch: int | None = None,
        objective: Objective = "one_class",
        nu: float = 0.1,
        pretraining_steps: int | None = None,
        contrast_normalisation: bool = True,
        optimizer: str = "adam",
        learning_rate: float = 1e-4,
        weight_decay: float = 5e-7,
        lr_schedule: Schedule | None = None,
        milestone: float | None = None,
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
            max_steps=max_steps,
            lr_schedule=lr_schedule,
            milestone=milestone,
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
            published_batch=_PAPER_BATCH if preset == "paper" else None,
        )
        if pretraining_steps is None:
            pretraining_steps = int(PRESETS[preset]["pretraining_share"] * self.max_steps)
        if not 0 <= pretraining_steps < self.max_steps:
            msg = (
                f"pretraining_steps must lie in 0 to {self.max_steps - 1}, below max_steps, not be {pretraining_steps}."
            )
            raise ValueError(msg)
        if not 0 < resolved.milestone <= 1:
            msg = f"milestone must lie in (0, 1], not be {resolved.milestone}."
            raise ValueError(msg)
        self.pretraining_steps = pretraining_steps
        self.milestone = resolved.milestone
        self.keep_resolved(**vars(resolved), pretraining_steps=pretraining_steps)
        with seeded(seed):
            self.model: DeepSVDDModel = DeepSVDDModel(
                objective, nu, contrast_normalisation, pretraining_steps > 0, (side, side)
            )

    @property
    def stages(self) -> Sequence[Stage]:
        """As an autoencoder, then towards the centre."""
        description = Stage(DESCRIPTION, self.max_steps - self.pretraining_steps)
        return (Stage(PRETRAINING, self.pretraining_steps), description) if self.pretraining_steps else (description,)

    def on_stage_start(self, stage: Stage) -> None:
        """Before the first step take the films' extremes; before the second stage the centre, with a new optimiser."""
        super().on_stage_start(stage)
        if stage == self.stages[0] and self.model.contrast_normalisation:
            self.over_normal_films(self._fit_range)
        if stage.name == DESCRIPTION:
            self.over_normal_films(self._fit_centre)
            cast("torch.optim.Optimizer", self.trainer.optimizers[0]).state.clear()

    def training_loss(self, batch: ImageBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """The autoencoder's error, or the distances to the centre, which the radius follows."""
        del generator
        images = cast("Tensor", batch.image)
        if self.stage.name == PRETRAINING:
            return {"reconstruction": self.model.reconstruction_loss(images)}
        distances = self.model.distances(self.model.encoder(self.model.normalised(images)))
        loss = self.model.description_loss(distances)
        if self.model.objective == "soft_boundary" and self._steps_described >= _RADIUS_WAITS * self.stages[-1].steps:
            self.model.fit_radius(distances)
        return {"distance": loss}

    @property
    def _steps_described(self) -> int:
        """Steps of the second stage that are done."""
        return self.steps_trained - self.pretraining_steps

    def rate_at(self, step: int) -> float:
        """Factor on the learning rate: each stage has a course of its own."""
        index = stage_at(self.stages, step)
        step, length = step - sum(stage.steps for stage in self.stages[:index]), self.stages[index].steps
        return self._factor(step, 0, length) * (1.0 if step < self.milestone * length else 0.1)

    def _fit_range(self, loader: DataLoader) -> None:
        extremes = [
            torch.stack(self.model.contrast(images).flatten(1).aminmax(dim=1), dim=1)
            for images in self.pre_processed(loader)
        ]
        every = self.gather_references(torch.cat(extremes))
        self.model.fit_range(every[:, 0].min(), every[:, 1].max())

    def _fit_centre(self, loader: DataLoader) -> None:
        codes = [self.model.encoder(self.model.normalised(images)) for images in self.pre_processed(loader)]
        self.model.fit_centre(self.gather_references(torch.cat(codes)))

    def build_bank(self, loader: DataLoader) -> None:
        """Take the mean feature map of the training films, and refuse a network that maps all of them to one point."""
        distances = []

        def maps() -> Iterator[Tensor]:
            for images in self.pre_processed(loader):
                found = self.model.encoder.maps(self.model.normalised(images))
                distances.append(self.model.distances(self.model.encoder.code(found.flatten(1))))
                yield found

        self.model.normal_map.fit(self.mean_over_films(maps())[None])
        if self.may_choose_checkpoint:
            self.model.refuse_collapse(self.gather_references(torch.cat(distances)))

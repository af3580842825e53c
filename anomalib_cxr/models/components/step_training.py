"""Training by steps: order, randomness, loss, optimiser, rate, stages, and the checkpoint that a fit ends with."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import timm.optim
import torch
from anomalib import LearningType
from anomalib.data import ImageBatch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRSchedulerConfig
from torch import Tensor
from torch.utils.data import DataLoader

from anomalib_cxr.callbacks.checkpoint_choice import Checkpoint, CheckpointChoice
from anomalib_cxr.callbacks.freed_memory import KeepFreedMemory
from anomalib_cxr.callbacks.heat_map_sheet import HeatMapSheet
from anomalib_cxr.checks import check_choice
from anomalib_cxr.models.components.finite_losses import FiniteLosses
from anomalib_cxr.models.components.optimizer import build_optimizer
from anomalib_cxr.models.components.post_processor import RankPreservingPostProcessor
from anomalib_cxr.models.components.resident_films import ResidentFilms, has_room, stays_the_same
from anomalib_cxr.models.components.schedule import validation_interval, warmup_cosine
from anomalib_cxr.models.components.scoring import ScoringMixin
from anomalib_cxr.models.components.stages import Stage, stage_at
from anomalib_cxr.models.components.step_order import ResidentStepDataset, StepDataset, StepSampler, mix_seed

logger = logging.getLogger(__name__)

Schedule = Literal["cosine", "constant"]


class StepTrainingMixin(ScoringMixin):
    """Mixin for an ``AnomalibModule`` that learns from normal images, step by step (ours).

    A subclass calls :meth:`set_up_training` in its constructor and implements :meth:`training_loss`. It lists
    ``AnomalibModule`` among its own bases, since Anomalib's ``get_model`` sees direct subclasses only. A detector that
    scores against a bank of normal images takes :class:`~anomalib_cxr.models.components.bank.BankMixin` instead.

    What it holds:

    - Length is counted in batches trained. An epoch is ``steps_per_epoch`` optimiser steps, whatever the length of the
      training set, and ends with a validation.
    - The order of the images and all random numbers are functions of (seed, step, rank), so a run resumed from a
      validation boundary equals an unbroken one.
    - One optimiser, whose parameter groups (:meth:`parameter_groups`) may be several players', see
      :func:`~anomalib_cxr.models.components.players.held`. A loss that is not finite ends the run by name and step.
    - Stages (:attr:`stages`): :meth:`on_stage_start` is called before the first batch of each, and only validations
      of the last one choose the checkpoint.
    - Validation logs ``image_AUROC``; the fit ends with the chosen checkpoint in memory
      (:class:`~anomalib_cxr.callbacks.checkpoint_choice.CheckpointChoice`).
    - On a CPU, memory freed by one step is kept for the next.

    Hooks of a fit, in order; callbacks' hooks of the same name come before the module's unless they are said to come
    after:

    ========================  ==================================================================================
    ``configure_callbacks``   ``PredictionsWriter`` first, since it wants raw scores; then Anomalib's components
                              (the post-processor takes its statistics, the evaluator measures); then the
                              checkpoint choice, which needs both; the sheet; thrift with memory.
    ``setup``                 The datamodule's training loader is replaced by one that follows the step.
    ``on_load_checkpoint``    On resuming: split, post-processor and bank come back, before the weights.
    ``on_fit_start``          The split's hash is taken; subclasses prepare what every step needs (region masks).
    ``on_train_batch_start``  The random state becomes a function of (seed, step, rank); then, before the first
                              batch of a stage, ``on_stage_start``.
    ``training_step``         A generator is drawn from that state, :meth:`training_loss` is called, and its value
                              checked and logged; backward, optimiser and rate follow.
    ``on_validation_start``   Freed memory is given back (callback), then the bank is rebuilt: validation scores
                              belong to the weights of this moment.
    ``validation_step``       Raw scores; ``PredictionsWriter`` keeps them.
    ``on_validation_epoch_end``  The writer keeps the validation, the post-processor fixes thresholds and ranges.
    ``on_validation_end``     The checkpoint choice saves ``best.ckpt`` if this is the best of the last stage;
                              Lightning saves ``model.ckpt`` at the end of the epoch.
    ``on_save_checkpoint``    Class, resolved arguments, split.
    ``on_train_end``          Lightning saves the last; a bank of other weights is rebuilt; the chosen checkpoint is
                              loaded and published as ``model.ckpt``.
    ``on_fit_end``            The writer follows to the chosen checkpoint's validation.
    ``teardown``              The datamodule gets its own training loader back.
    ``test_step``             Raw scores; the writer keeps them, then the post-processor normalises in place, then
                              the evaluator measures and the visualizer draws.
    ========================  ==================================================================================
    """

    seed: int
    max_steps: int
    steps_per_epoch: int
    checkpoint: Checkpoint
    optimizer_name: str
    learning_rate: float
    momentum: float
    weight_decay: float
    lr_schedule: Schedule
    warmup_steps: int
    films_in_memory: bool | None
    _stage: int | None = None
    _films: ResidentFilms | None = None
    _losses: FiniteLosses
    _published_batch: int | None

    # ------------------------------------------------------------------ what a detector says

    def training_loss(self, batch: ImageBatch, generator: torch.Generator) -> Tensor | Mapping[str, Tensor]:
        """Compute the loss of a training batch.

        Args:
            batch: Normal images, ``image`` (B, 3, H, W), after the pre-processor and on this device.
            generator: On the CPU, seeded by (seed, step, rank): draw everything random from it.

        Returns:
            Scalar loss, or several by name, whose sum is trained; each is logged as ``train_loss_<name>``.
        """
        raise NotImplementedError

    @property
    def stages(self) -> Sequence[Stage]:
        """Stages of the training, whose steps add up to ``max_steps``; one unless overridden."""
        return (Stage("train", self.max_steps),)

    def on_stage_start(self, stage: Stage) -> None:
        """Prepare a stage, before its first batch; what is changed here must be in the module's state.

        A run that is resumed within a stage has been through it: its checkpoint holds what this changed.

        Args:
            stage: The stage that begins.
        """

    def parameter_groups(self) -> Any:
        """What the optimiser trains: the network, or a list of groups, each with its own ``lr`` and so on.

        A group may have a length of its own, ``max_steps`` and ``warmup_steps``: its rate is 0 from there on.
        """
        return self.model

    # ------------------------------------------------------------------ arguments

    def set_up_training(
        self,
        *,
        seed: int,
        max_steps: int,
        steps_per_epoch: int | None,
        default_steps_per_epoch: int,
        checkpoint: Checkpoint = "best",
        optimizer: str = "adamw",
        learning_rate: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        decay_all: bool = True,
        lr_schedule: Schedule = "cosine",
        warmup_steps: int = 0,
        least_steps: int = 1,
        films_in_memory: bool | None = None,
        published_batch: int | None = None,
        **optimizer_arguments: Any,
    ) -> None:
        """Check and keep the arguments of a training.

        Args:
            seed: Seed of weights, order and augmentations.
            max_steps: Optimiser steps of the whole training.
            steps_per_epoch: Optimiser steps between two validations, a divisor of ``max_steps``; None is the default.
            default_steps_per_epoch: Made to divide ``max_steps``.
            checkpoint: ``"best"`` by AUROC on the labelled validation split, or ``"last"``.
            optimizer: Any optimiser name of timm (``timm.optim.list_optimizers()``).
            learning_rate: Peak learning rate, above 0.
            momentum: For optimisers that have one.
            weight_decay: Weight decay, 0 or more.
            decay_all: Whether biases and the scales of normalisation decay too.
            lr_schedule: ``"cosine"`` to zero over ``max_steps``, or ``"constant"``.
            warmup_steps: Linear warm-up of the learning rate, 0 or more.
            least_steps: Smallest ``max_steps``; 0 where a network may be used as it is.
            films_in_memory: Keep the training films in memory at the model's size, see :class:`ResidentFilms`; None
                does so where each is read at least twice, nothing augments them, and they fit.
            published_batch: Images a step of ``preset: paper``, which no model can set: a datamodule with another batch
                is said at the start of a fit. None where that preset is not taken.
            **optimizer_arguments: For the optimiser, for example ``betas``.

        Raises:
            ValueError: If an argument is out of range; the message names it.
        """
        check_choice("checkpoint", checkpoint, Checkpoint)
        check_choice("lr_schedule", lr_schedule, Schedule)
        for wrong, message in (
            (max_steps < least_steps, f"max_steps must be {_at_least(least_steps)}, not {max_steps}."),
            (not learning_rate > 0, f"learning_rate must be positive, not {learning_rate}."),
            (not weight_decay >= 0, f"weight_decay must be 0 or more, not {weight_decay}."),
            (warmup_steps < 0, f"warmup_steps must be 0 or more, not {warmup_steps}."),
            (
                optimizer.removeprefix("lookahead_") not in timm.optim.list_optimizers(),
                f"optimizer must be one of timm's (timm.optim.list_optimizers()), not {optimizer!r}.",
            ),
        ):
            if wrong:
                raise ValueError(message)
        self.seed = seed
        self._losses = FiniteLosses()
        self.set_length(max_steps, steps_per_epoch, default_steps_per_epoch)
        self.checkpoint = checkpoint
        self.optimizer_name = optimizer
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.decay_all = decay_all
        self.optimizer_arguments = optimizer_arguments
        self.lr_schedule = lr_schedule
        self.warmup_steps = warmup_steps
        self.films_in_memory = films_in_memory
        self._published_batch = published_batch
        self.keep_resolved(
            max_steps=max_steps,
            steps_per_epoch=self.steps_per_epoch,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
        )

    def set_length(self, max_steps: int, steps_per_epoch: int | None, default_steps_per_epoch: int) -> None:
        """Fix how long is trained; also in :meth:`setup`, where the length follows from the training set.

        Args:
            max_steps: See :meth:`set_up_training`.
            steps_per_epoch: See :meth:`set_up_training`.
            default_steps_per_epoch: See :meth:`set_up_training`.

        Raises:
            ValueError: If ``steps_per_epoch`` does not divide ``max_steps``.
        """
        self.max_steps = max_steps
        self.steps_per_epoch = validation_interval(max_steps, steps_per_epoch, default_steps_per_epoch)
        if self._trainer is not None:
            self.trainer.fit_loop.max_epochs = self.trainer_arguments["max_epochs"]

    @property
    def learning_type(self) -> LearningType:
        """One-class: trained on normal images only."""
        return LearningType.ONE_CLASS

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Length and validation interval; Anomalib lets these override ``--trainer.*``.

        Length is given in epochs of ``steps_per_epoch`` batches each: Lightning's own ``max_steps`` counts a batch once
        for each optimiser. Where nothing is trained, one idle step.
        """
        return {
            "max_steps": -1,
            "max_epochs": max(1, self.max_steps // self.steps_per_epoch),
            "num_sanity_val_steps": 0,
            "check_val_every_n_epoch": 1,
            "val_check_interval": 1.0,
            "log_every_n_steps": min(10, self.steps_per_epoch),
        }

    # ------------------------------------------------------------------ components

    def configure_post_processor(self) -> RankPreservingPostProcessor:
        """Post-processing that keeps ranks."""
        return RankPreservingPostProcessor()

    def configure_callbacks(self) -> Sequence[Callback]:
        """What every run has, the checkpoint choice, a sheet of heat maps and thrift with memory."""
        self._choice = CheckpointChoice(self.checkpoint)
        return [*super().configure_callbacks(), self._choice, HeatMapSheet(), KeepFreedMemory()]

    @property
    def datamodule(self) -> Any:
        """Datamodule of the running fit."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def chosen_checkpoint(self) -> str | None:
        """Checkpoint whose weights the last fit ended with; None where they are those of its last step."""
        choice: CheckpointChoice | None = vars(self).get("_choice")
        return None if choice is None or choice.choose == "last" else choice.best_path

    # ------------------------------------------------------------------ order and randomness

    @property
    def steps_trained(self) -> int:
        """Optimiser steps done, counted in batches trained."""
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.total.completed
        return int(batches) // self.trainer.accumulate_grad_batches

    def setup(self, stage: str) -> None:
        """Replace the datamodule's training loader by one whose order depends on the step alone."""
        super().setup(stage)
        if stage != TrainerFn.FITTING:
            return
        if getattr(self.trainer, "datamodule", None) is None:
            msg = (
                f"{type(self).__name__} needs a datamodule to train, which makes its own order of the training images: "
                "pass datamodule= instead of train_dataloaders=."
            )
            raise ValueError(msg)
        self._stage = None
        vars(self.datamodule)["train_dataloader"] = self._step_loader

    def on_fit_start(self) -> None:
        """Say so where the datamodule's batch is not the published one."""
        super().on_fit_start()
        if self._published_batch not in (None, self.datamodule.train_batch_size):
            logger.warning(
                "preset=paper trains with batch %d, the datamodule has train_batch_size=%d.",
                self._published_batch,
                self.datamodule.train_batch_size,
            )

    def teardown(self, stage: str) -> None:
        """Give the datamodule its own training loader back."""
        super().teardown(stage)
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            vars(datamodule).pop("train_dataloader", None)
        self._films = None

    def _step_loader(self) -> DataLoader:
        datamodule = self.datamodule
        dataset = datamodule.train_data
        if len(dataset) < datamodule.train_batch_size:
            logger.warning(
                "The training set (%d images) is smaller than one batch (%d): images repeat within a batch.",
                len(dataset),
                datamodule.train_batch_size,
            )
        accumulate = self.trainer.accumulate_grad_batches
        self._films = self._keep_films(dataset)
        seed = mix_seed(self.seed, 1)
        stream = ResidentStepDataset(self._films, seed) if self._films else StepDataset(dataset, seed)
        sampler = StepSampler(
            stream,
            batch_size=datamodule.train_batch_size,
            batches_per_epoch=self.steps_per_epoch * accumulate,
            first_batch=lambda: self.steps_trained * accumulate,
            num_replicas=self.trainer.world_size,
            rank=self.trainer.global_rank,
        )
        return DataLoader(
            stream,
            batch_size=datamodule.train_batch_size,
            sampler=sampler,
            drop_last=True,
            **self._loading(dataset),
        )

    def _loading(self, dataset: Any) -> dict[str, Any]:
        """How a loader makes batches of training films: resident ones come as batches, others are read by workers."""
        if self._films is not None:
            return {"collate_fn": _as_it_is}
        datamodule = self.datamodule
        return {
            "num_workers": datamodule.num_workers,
            "collate_fn": datamodule.external_collate_fn or dataset.collate_fn,
        }

    def _keep_films(self, dataset: Any) -> ResidentFilms | None:
        """Read the training films into memory, where that is wanted, possible and pays."""
        if self.films_in_memory is False or self._films is not None:
            return self._films
        datamodule = self.datamodule
        if datamodule.external_collate_fn is not None or not stays_the_same(dataset):
            if self.films_in_memory:
                msg = (
                    "films_in_memory=True keeps what is read once, and the datamodule's train_augmentations or "
                    "external_collate_fn make something new at each reading: leave one of them out."
                )
                raise ValueError(msg)
            return None
        plain = self.without_augmentation(dataset)
        if self.films_in_memory is None:
            batches = self.trainer.accumulate_grad_batches * self.max_steps
            if batches * datamodule.train_batch_size < 2 * len(dataset):
                return None
            first: Any = plain[0]
            height, width = first.image.shape[-2:]
            if not has_room(len(dataset), (height, width), self.device):
                return None
        films = ResidentFilms(plain, self.device, datamodule.eval_batch_size, datamodule.num_workers)
        logger.info("%d training films are kept in memory (%s, %s).", len(films), films.films.dtype, self.device)
        return films

    def on_train_batch_start(self, batch: ImageBatch, batch_idx: int) -> None:
        """Make everything random in this step a function of (seed, step, rank), and begin a stage where one begins."""
        del batch
        step = self.steps_trained
        torch.manual_seed(mix_seed(self.seed, 2, step, batch_idx, self.global_rank))
        stage = stage_at(self.stages, step)
        if stage != self._stage:
            begins = step == sum(earlier.steps for earlier in self.stages[:stage])
            self._stage = stage
            if begins:
                if len(self.stages) > 1:
                    logger.info("Stage %s begins at step %d.", self.stages[stage].name, step)
                self.on_stage_start(self.stages[stage])

    @property
    def stage(self) -> Stage:
        """Stage of the running step."""
        return self.stages[self._stage or 0]

    @property
    def may_choose_checkpoint(self) -> bool:
        """Whether a validation now is one of the last stage's, of which the best is chosen."""
        return self.steps_trained > sum(stage.steps for stage in self.stages[:-1])

    # ------------------------------------------------------------------ the step

    def training_step(self, batch: ImageBatch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Compute the loss, refuse one that is not finite, and log it."""
        del args, kwargs
        if self.max_steps == 0:
            # An idle step. Lightning lets one process skip it, which a gradient scaler wants; several need a loss, and
            # that of no parameter moves none.
            return None if self.trainer.world_size == 1 else torch.zeros((), device=self.device, requires_grad=True)
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, (1,))))
        losses = self.training_loss(batch, generator)
        named = losses if isinstance(losses, Mapping) else {"": losses}
        total = sum(named.values(), torch.zeros((), device=self.device)) if isinstance(losses, Mapping) else losses
        self._losses.look(named, self.steps_trained)
        for name, loss in named.items():
            if name:
                self.log(f"train_loss_{name}", loss)
        self.log("train_loss", total, prog_bar=True, on_step=True, on_epoch=False)
        return total

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One optimiser by timm's name; warm-up, then cosine or constant rate, by the step."""
        optimizer = build_optimizer(
            self.parameter_groups(),
            self.optimizer_name,
            self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            filter_bias_and_bn=not self.decay_all,
            **self.optimizer_arguments,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, [self._rate(group) for group in optimizer.param_groups]
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def rate_at(self, step: int) -> float:
        """Factor on the learning rate at an optimiser step, counted from 0."""
        return self._factor(step, self.warmup_steps, self.max_steps)

    def _factor(self, step: int, warmup_steps: int, max_steps: int) -> float:
        return warmup_cosine(step, warmup_steps, max_steps if self.lr_schedule == "cosine" else math.inf)

    def _rate(self, group: Mapping[str, Any]) -> Callable[[int], float]:
        """Factor on the rate of a parameter group by the optimiser step."""
        if "max_steps" not in group:
            return self.rate_at
        warmup, length = group["warmup_steps"], group["max_steps"]
        return lambda step: self._factor(step, warmup, length) if step < length else 0.0

    def on_validation_start(self) -> None:
        """Look at the last loss: nothing is measured with weights that it has spoilt."""
        super().on_validation_start()
        self._losses.settle()

    def on_train_epoch_end(self) -> None:
        """Look at the last loss: nothing is kept of weights that it has spoilt."""
        super().on_train_epoch_end()
        self._losses.settle()

    def on_train_end(self) -> None:
        """Give the model its chosen checkpoint."""
        super().on_train_end()
        self._choice.load_chosen(self.trainer, self)

    def pre_processed(self, loader: DataLoader) -> Iterator[Tensor]:
        """Yield the images of a loader's batches, (B, 3, H, W), on this device and after the pre-processor."""
        transform: Any = self.pre_processor.transform if self.pre_processor else None
        for batch in loader:
            images = batch.image.to(self.device)
            yield transform(images) if transform else images


def _as_it_is(batch: Any) -> Any:
    return batch


def _at_least(number: int) -> str:
    return "0 or more" if number == 0 else f"at least {number}"

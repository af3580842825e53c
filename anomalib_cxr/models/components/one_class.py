"""Training glue shared by the one-class detectors: step-wise epochs, a fresh reference bank, the chosen checkpoint."""

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from anomalib import LearningType
from anomalib.data import ImageBatch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Subset

from anomalib_cxr.callbacks.checkpoint_choice import CheckpointChoice
from anomalib_cxr.callbacks.freed_memory import KeepFreedMemory
from anomalib_cxr.callbacks.heat_map_sheet import HeatMapSheet
from anomalib_cxr.models.components.post_processor import RankPreservingPostProcessor
from anomalib_cxr.models.components.pretrained import weights_come_later
from anomalib_cxr.models.components.scoring import Scoring
from anomalib_cxr.models.components.step_order import StepDataset, StepSampler, mix_seed

if TYPE_CHECKING:
    from anomalib.models import AnomalibModule

    _Base = AnomalibModule
else:
    _Base = object

logger = logging.getLogger(__name__)


class OneClassTraining(Scoring, _Base):
    """Mixin for an ``AnomalibModule`` that learns from normal images and scores against a bank of them.

    A subclass sets ``seed``, ``max_steps``, ``steps_per_epoch`` and ``checkpoint`` in its constructor, and implements
    :meth:`build_bank`. It lists ``AnomalibModule`` among its own bases, since Anomalib's ``get_model`` sees direct
    subclasses only.

    What it holds (all ours):

    - An epoch is ``steps_per_epoch`` optimiser steps, whatever the length of the training set, and ends with a
      validation. The order of the images and all random numbers are functions of (seed, step, rank), so a run resumed
      from a validation boundary equals an unbroken one.
    - The bank is rebuilt, from un-augmented training images in evaluation mode, before every validation of a fit, and
      is part of the checkpoint.
    - On a CPU, memory freed by one step is kept for the next (:class:`KeepFreedMemory`).
    - Validation logs ``image_AUROC``; the fit ends with the chosen checkpoint in memory (:class:`CheckpointChoice`).
    """

    seed: int
    max_steps: int
    steps_per_epoch: int
    checkpoint: str
    _bank_step: int | None = None

    def build_bank(self, loader: DataLoader) -> None:
        """Fill the reference bank.

        Args:
            loader: This process's share of the training images, un-augmented, as Anomalib batches in the order of the
                data set (every ``world_size``-th image); :meth:`gather_references` joins the shares.
        """
        raise NotImplementedError

    @property
    def learning_type(self) -> LearningType:
        """One-class: trained on normal images only."""
        return LearningType.ONE_CLASS

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Length and validation interval; Anomalib lets these override ``--trainer.*``."""
        return {
            "max_steps": self.max_steps,
            "max_epochs": -1,
            "num_sanity_val_steps": 0,
            "check_val_every_n_epoch": 1,
            "val_check_interval": 1.0,
            "log_every_n_steps": min(10, self.steps_per_epoch),
        }

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint as Lightning does, without fetching the pretrained weights that it replaces."""
        with weights_come_later():
            return super().load_from_checkpoint(*args, **kwargs)

    def configure_post_processor(self) -> RankPreservingPostProcessor:
        """Post-processing that keeps ranks."""
        return RankPreservingPostProcessor()

    def configure_callbacks(self) -> Sequence[Callback]:
        """Anomalib's component callbacks, the checkpoint choice, a sheet of heat maps and thrift with memory."""
        self._choice = CheckpointChoice(self.checkpoint)
        callbacks = super().configure_callbacks()
        given = callbacks if isinstance(callbacks, Sequence) else [callbacks]
        return [*given, self._choice, HeatMapSheet(), KeepFreedMemory()]

    @property
    def datamodule(self) -> Any:
        """Datamodule of the running fit."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def chosen_checkpoint(self) -> str | None:
        """Checkpoint whose weights the last fit ended with; None where they are those of its last step."""
        choice: CheckpointChoice | None = vars(self).get("_choice")
        return None if choice is None or choice.choose == "last" else choice.best_path

    # ------------------------------------------------------------------ training order and randomness

    def setup(self, stage: str) -> None:
        """Replace the datamodule's training loader by one whose order depends on the step alone."""
        super().setup(stage)
        if stage != TrainerFn.FITTING:
            return
        if getattr(self.trainer, "datamodule", None) is None:
            msg = (
                f"{type(self).__name__} needs a datamodule to train (its bank is made of the un-augmented training "
                "images): pass datamodule= instead of train_dataloaders=."
            )
            raise ValueError(msg)
        vars(self.datamodule)["train_dataloader"] = self._step_loader

    def teardown(self, stage: str) -> None:
        """Give the datamodule its own training loader back."""
        super().teardown(stage)
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            vars(datamodule).pop("train_dataloader", None)

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
        stream = StepDataset(dataset, mix_seed(self.seed, 1))
        if len(dataset) < self.trainer.world_size:
            msg = (
                f"The training set has {len(dataset)} images for {self.trainer.world_size} processes, and each builds "
                "a share of the reference bank: train with fewer processes (--trainer.devices) or more images."
            )
            raise ValueError(msg)
        sampler = StepSampler(
            stream,
            batch_size=datamodule.train_batch_size,
            batches_per_epoch=self.steps_per_epoch * accumulate,
            first_batch=lambda: self.trainer.global_step * accumulate,
            num_replicas=self.trainer.world_size,
            rank=self.trainer.global_rank,
        )
        return DataLoader(
            stream,
            batch_size=datamodule.train_batch_size,
            sampler=sampler,
            num_workers=datamodule.num_workers,
            collate_fn=datamodule.external_collate_fn or dataset.collate_fn,
            drop_last=True,
        )

    def on_train_batch_start(self, batch: ImageBatch, batch_idx: int) -> None:
        """Make everything random in this step a function of (seed, step, rank)."""
        del batch
        torch.manual_seed(mix_seed(self.seed, 2, self.trainer.global_step, batch_idx, self.global_rank))

    # ------------------------------------------------------------------ bank

    def on_validation_start(self) -> None:
        """Rebuild the bank with the weights of this moment; outside of a fit, only check that there is one."""
        super().on_validation_start()
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self._rebuild_bank()

    def on_train_end(self) -> None:
        """Give the model its chosen checkpoint, and a bank if no validation built one."""
        super().on_train_end()
        if self._bank_step != self.trainer.global_step:
            self._rebuild_bank()
        self._choice.load_chosen(self.trainer, self)

    def _rebuild_bank(self) -> None:
        datamodule = self.datamodule
        dataset = self.without_augmentation(datamodule.train_data)
        share: Any = dataset
        if self.trainer.world_size > 1:
            share = Subset(dataset, range(self.trainer.global_rank, len(dataset), self.trainer.world_size))
        loader = DataLoader(
            share,
            batch_size=datamodule.eval_batch_size,
            num_workers=datamodule.num_workers,
            collate_fn=datamodule.external_collate_fn or dataset.collate_fn,
        )
        self._agree_on_statistics()
        training = self.training
        self.eval()
        # Validation runs in inference mode, whose tensors could not be updated in place by a later load_state_dict.
        with torch.inference_mode(mode=False), torch.no_grad():
            self.build_bank(loader)
        self.train(training)
        self._bank_step = self.trainer.global_step

    def _agree_on_statistics(self) -> None:
        """Take the first process's running statistics, as DDP does before each step, and as the checkpoint has them.

        Batch normalisation has just updated them from each process's own images: without this, each share of the bank
        would come from another encoder.
        """
        if self.trainer.world_size == 1:
            return
        for module in self.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                for buffer in module.buffers():
                    torch.distributed.broadcast(buffer, src=0)

    def pre_processed(self, loader: DataLoader) -> Iterator[torch.Tensor]:
        """Yield the images of a loader's batches, (B, 3, H, W), on this device and after the pre-processor."""
        transform: Any = self.pre_processor.transform if self.pre_processor else None
        for batch in loader:
            images = batch.image.to(self.device)
            yield transform(images) if transform else images

    def gather_references(self, references: torch.Tensor) -> torch.Tensor:
        """Join the processes' shares of per-image rows into the order of the data set.

        Args:
            references: (n_rank, …) rows of this process.

        Returns:
            (n, …) rows of all, each image once, the same on every process.
        """
        world = self.trainer.world_size
        if world == 1:
            return references
        shares: list[Any] = [None] * world
        torch.distributed.all_gather_object(shares, references.cpu())
        joined = references.new_empty((sum(len(share) for share in shares), *references.shape[1:]))
        for rank, share in enumerate(shares):
            joined[rank::world] = share.to(references)
        return joined

"""A bank of normal images, rebuilt before every validation, that a detector scores against."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from anomalib_cxr.distributed import gather_in_order
from anomalib_cxr.models.components.step_order import seeded
from anomalib_cxr.models.components.step_training import StepTrainingMixin


class BankMixin(StepTrainingMixin):
    """Mixin for a step-trained ``AnomalibModule`` that scores against a bank of normal images (ours).

    A subclass implements :meth:`build_bank` besides what
    :class:`~anomalib_cxr.models.components.step_training.StepTrainingMixin` asks for.

    The bank is rebuilt, from un-augmented training images in evaluation mode, before every validation of a fit, and is
    part of the checkpoint. Anomalib's ``MemoryBankMixin`` fits once: a model that goes on learning would keep a bank of
    earlier weights.
    """

    _bank_step: int | None = None

    def build_bank(self, loader: DataLoader) -> None:
        """Fill the reference bank.

        Args:
            loader: This process's share of the training images, un-augmented, as Anomalib batches in the order of the
                data set (every ``world_size``-th image); :meth:`gather_references` joins the shares.
        """
        raise NotImplementedError

    def extend_bank(self, images: Tensor) -> None:
        """Add normal images of another place to the bank of a trained model; what it has learned stays.

        Args:
            images: (n, 3, H, W) in [0, 1], pre-processed.

        Raises:
            ValueError: If this detector's bank is fitted as a whole, and cannot grow.
        """
        del images
        msg = f"The bank of {type(self).__name__} is fitted as a whole and cannot grow: train with the films instead."
        raise ValueError(msg)

    def _step_loader(self) -> DataLoader:
        images, processes = len(self.datamodule.train_data), self.trainer.world_size
        if 0 < images < processes:
            msg = (
                f"The training set has {images} images for {processes} processes, and each builds "
                "a share of the reference bank: train with fewer processes (--trainer.devices) or more images."
            )
            raise ValueError(msg)
        return super()._step_loader()

    def on_validation_start(self) -> None:
        """Rebuild the bank with the weights of this moment; outside of a fit it is the checkpoint's."""
        super().on_validation_start()
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.rebuild_bank()

    def on_train_end(self) -> None:
        """Build a bank if no validation did for these weights, then take the chosen checkpoint."""
        if self._bank_step != self.steps_trained:
            self.rebuild_bank()
        super().on_train_end()

    def rebuild_bank(self) -> None:
        """Build the bank with the present weights, in evaluation mode, each process its share."""
        self.over_normal_films(self.build_bank)
        self._bank_step = self.steps_trained

    def over_normal_films(self, look: Callable[[DataLoader], None]) -> None:
        """Look at the training images with the present weights, in evaluation mode; random numbers stay as they were.

        What a stage begins with, in ``on_stage_start``, is learnt here, as banks are.

        Args:
            look: Is given :meth:`normal_films`.
        """
        loader = self.normal_films()
        self._agree_on_statistics()
        training = self.training
        self.eval()
        # Validation runs in inference mode, whose tensors could not be updated in place by a later load_state_dict.
        with torch.inference_mode(mode=False), torch.no_grad(), seeded(self.seed):  # a loader draws its workers' seed
            look(loader)
        self.train(training)

    def normal_films(self) -> DataLoader:
        """This process's share of the training images, un-augmented: what :meth:`build_bank` is given."""
        datamodule = self.datamodule
        dataset = self.without_augmentation(datamodule.train_data)
        films: Any = dataset if self._films is None else self._films
        if self.trainer.world_size > 1:
            films = Subset(films, range(self.trainer.global_rank, len(films), self.trainer.world_size))
        return DataLoader(films, batch_size=datamodule.eval_batch_size, **self._loading(dataset))

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

    def mean_over_films(self, batches: Iterable[Tensor]) -> Tensor:
        """Mean of something over the training images of all processes, which are never held together.

        Args:
            batches: (B, …) of this process's share, batch by batch.

        Returns:
            (…), the same on every process.
        """
        total, films = torch.zeros((), device=self.device), 0
        for batch in batches:
            total, films = total + batch.sum(dim=0), films + len(batch)
        every = self.gather_references(torch.tensor([films], device=self.device))
        return self.gather_references(total[None]).sum(dim=0) / every.sum()

    def gather_references(self, references: Tensor) -> Tensor:
        """Join the processes' shares of per-image rows into the order of the data set.

        Args:
            references: (n_rank, …) rows of this process.

        Returns:
            (n, …) rows of all, each image once, the same on every process.
        """
        return gather_in_order(references)

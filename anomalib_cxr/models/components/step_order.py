"""Training order as a function of the optimiser step, so that a resumed run sees what an unbroken one would; ours."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import Dataset, DistributedSampler


class StepSampler(DistributedSampler):
    """Yields positions of an endless stream of images, in epochs of a fixed number of batches.

    Batch ``s`` of rank ``r`` takes the ``batch_size`` positions from ``(s·world + r)·batch_size`` on, so the order is
    a function of (step, rank), wherever a run was resumed. :class:`StepDataset` turns positions into images. Deriving
    from ``DistributedSampler`` keeps Lightning from replacing it.

    Args:
        dataset: The data set that the positions are for.
        batch_size: Images a batch and process.
        batches_per_epoch: Batches between two validations.
        first_batch: Returns the index of the next batch to be served; asked at the start of each epoch.
        num_replicas: Number of processes.
        rank: Index of this process.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        batches_per_epoch: int,
        first_batch: Callable[[], int],
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank)
        self.batch_size = batch_size
        self.batches_per_epoch = batches_per_epoch
        self.first_batch = first_batch

    def __len__(self) -> int:
        """Positions a rank serves in one epoch."""
        return self.batch_size * self.batches_per_epoch

    def __iter__(self) -> Iterator[int]:
        """Yield the positions of one epoch, batch after batch."""
        start = self.first_batch()
        for batch in range(start, start + self.batches_per_epoch):
            first = (batch * self.num_replicas + self.rank) * self.batch_size
            yield from range(first, first + self.batch_size)


class StepDataset(Dataset):
    """An endless stream of shuffled passes over a data set.

    Position ``p`` is entry ``p mod n`` of pass ``p div n``; its permutation depends on the seed and the pass alone, and
    the random state that augmentations see on the seed and the position alone, whatever the number of workers.

    Args:
        dataset: The training set, of length ``n ≥ 1``.
        seed: Seed of the order and of the augmentations.

    Raises:
        ValueError: If the data set is empty.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        if len(dataset) == 0:
            msg = "The training set is empty: check the root and the filters of the datamodule."
            raise ValueError(msg)
        self.dataset = dataset
        self.seed = seed
        self._pass: tuple[int, torch.Tensor] | None = None

    def __len__(self) -> int:
        """Images in one pass."""
        return len(self.dataset)

    def index_at(self, position: int) -> int:
        """Index into the data set of a position of the stream."""
        pass_index, offset = divmod(position, len(self.dataset))
        if self._pass is None or self._pass[0] != pass_index:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, 0, pass_index))
            self._pass = (pass_index, torch.randperm(len(self.dataset), generator=generator))
        return int(self._pass[1][offset])

    def __getitem__(self, position: int) -> Any:
        """Item at a position of the stream."""
        with seeded(mix_seed(self.seed, 1, position)):
            return self.dataset[self.index_at(position)]


class ResidentStepDataset(StepDataset):
    """The same stream over films that lie in memory: a whole batch is cut out at once.

    Args:
        dataset: :class:`~anomalib_cxr.models.components.resident_films.ResidentFilms`, whose items draw nothing.
        seed: Seed of the order.
    """

    def __getitems__(self, positions: Sequence[int]) -> Any:
        """Batch at some positions of the stream."""
        return self.dataset.__getitems__([self.index_at(position) for position in positions])


def mix_seed(*parts: int) -> int:
    """Mix integers into one 63-bit seed, so that neighbouring (seed, step, rank) give unrelated streams.

    Uses the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), part after part.
    """
    mask = (1 << 64) - 1
    state = 0
    for part in parts:
        state = (state + (part & mask) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside the block, and put its state back after it."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)

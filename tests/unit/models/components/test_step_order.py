"""Training order against the definition of an endless stream of permutations."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from anomalib_cxr.models.components.step_order import StepDataset, StepSampler, mix_seed, seeded


class _Numbers(Dataset):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, torch.rand(()).item()


def _epochs(
    n: int, epochs: int, start: int = 0, workers: int = 0, world: int = 1, rank: int = 0, batch: int = 4
) -> list:
    stream = StepDataset(_Numbers(n), seed=5)
    at = [start]
    sampler = StepSampler(stream, batch, 3, first_batch=lambda: at[0], num_replicas=world, rank=rank)
    loader = DataLoader(stream, batch_size=batch, sampler=sampler, num_workers=workers, drop_last=True)
    batches = []
    for _ in range(epochs):
        for indices, draws in loader:
            batches.append((indices.tolist(), draws.tolist()))
        at[0] += 3
    return batches


def test_every_pass_shows_each_image_once() -> None:
    indices = [i for batch, _ in _epochs(n=10, epochs=5) for i in batch]
    assert len(indices) == 60
    passes = [indices[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert passes[0] != passes[1]


def test_resumed_order_and_draws_equal_unbroken_ones() -> None:
    assert _epochs(n=10, epochs=4)[6:] == _epochs(n=10, epochs=2, start=6)


def test_workers_change_nothing() -> None:
    assert _epochs(n=10, epochs=2) == _epochs(n=10, epochs=2, workers=2)


def test_two_ranks_share_the_batches_of_one() -> None:
    whole = _epochs(n=10, epochs=1, batch=8)
    halves = [_epochs(n=10, epochs=1, world=2, rank=rank) for rank in (0, 1)]
    assert [a + b for (a, _), (b, _) in zip(*halves, strict=True)] == [indices for indices, _ in whole]


def test_fewer_images_than_a_batch_repeat() -> None:
    indices = [i for batch, _ in _epochs(n=3, epochs=1) for i in batch]
    assert all(sorted(indices[i : i + 3]) == [0, 1, 2] for i in range(0, 12, 3))


def test_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="training set is empty"):
        StepDataset(_Numbers(0), seed=0)


def test_mixed_seeds_are_uncorrelated() -> None:
    seeds = [mix_seed(0, step, rank) for step in range(200) for rank in range(4)]
    assert len(set(seeds)) == 800
    bits = torch.tensor([[seed >> bit & 1 for bit in range(63)] for seed in seeds], dtype=torch.float64)
    # Each bit is a fair coin over neighbouring steps: 5 sigma of 800 draws is 0.09.
    assert (bits.mean(dim=0) - 0.5).abs().max() < 0.09


def test_seeded_restores_the_state() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    first = torch.rand(1)
    with seeded(9):
        torch.rand(7)
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)

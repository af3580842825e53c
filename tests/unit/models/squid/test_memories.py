"""Reading against numpy, the ring against a deque, what passes by against its share."""

import copy
from collections import deque

import numpy as np
import pytest
import torch
from torch import Tensor

from anomalib_cxr.models.squid import memory_queue
from anomalib_cxr.models.squid.memory_matrix import MemoryMatrix
from anomalib_cxr.models.squid.memory_queue import MemoryQueue
from anomalib_cxr.models.squid.sparse_reading import first_slots, read, sparse_weights


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights_by_hand(likeness: np.ndarray, top: int) -> np.ndarray:
    """Softmax; of the ``top`` highest all but the lowest; over their sum."""
    shares = np.exp(likeness - likeness.max())
    shares /= shares.sum()
    kept = np.zeros_like(shares)
    for slot in np.argsort(shares)[::-1][: top - 1]:
        kept[slot] = shares[slot]
    return kept / kept.sum()


def test_four_of_the_five_highest_weights_remain() -> None:
    likeness = draws(3, 20)
    found = sparse_weights(likeness, 5)
    assert ((found > 0).sum(dim=1) == 4).all()
    for row, expected in zip(found, likeness.double().numpy(), strict=True):
        np.testing.assert_allclose(row.numpy(), weights_by_hand(expected, 5), atol=1e-6)


def test_the_gradient_of_the_weights_is_the_softmaxs() -> None:
    likeness, factors = draws(3, 20).requires_grad_(), draws(3, 20, seed=1)
    (found,) = torch.autograd.grad((sparse_weights(likeness, 5) * factors).sum(), likeness)
    shares = likeness.detach().softmax(dim=1)
    expected = shares * (factors - (shares * factors).sum(dim=1, keepdim=True))
    torch.testing.assert_close(found, expected)
    assert found.all()


def test_slots_that_are_all_alike_give_nothing_and_no_nan() -> None:
    assert torch.equal(sparse_weights(torch.zeros(1, 6), 3), torch.zeros(1, 6))


def test_each_place_reads_its_own_memory() -> None:
    asked, slots = draws(2, 3, 4), draws(3, 9, 4, seed=1)
    found = read(asked, slots, 4)
    for film, place in np.ndindex(2, 3):
        memory = slots[place].double().numpy()
        weights = weights_by_hand(memory @ asked[film, place].double().numpy(), 4)
        np.testing.assert_allclose(found[film, place].numpy(), weights @ memory, atol=1e-5)


def test_slots_start_uniform_in_one_over_the_root_of_their_length() -> None:
    slots = first_slots(2, 300, 64)
    assert slots.shape == (2, 300, 64)
    assert 0.12 < slots.max() <= 1 / 8
    assert -1 / 8 <= slots.min() < -0.12
    assert float(slots.std()) == pytest.approx(1 / 8 / 3**0.5, rel=0.02)


def test_the_ring_keeps_the_films_that_came_last() -> None:
    queue = MemoryQueue(places=2, slots=5, length=3, top=2)
    kept: deque[Tensor] = deque(queue.slots.transpose(0, 1), maxlen=5)
    for seed, count in enumerate((2, 2, 3, 5, 12, 1)):
        rows = draws(count, 2, 3, seed=seed)
        queue.enqueue(rows)
        kept.extend(rows)
        oldest_first = queue.slots.roll(-int(queue.position), dims=1)
        assert torch.equal(oldest_first, torch.stack(list(kept), dim=1))


def test_a_queue_from_a_checkpoint_goes_on_where_it_was() -> None:
    first, second = (MemoryQueue(places=1, slots=5, length=3, top=2) for _ in range(2))
    first.enqueue(draws(3, 1, 3))
    second.load_state_dict(first.state_dict())
    for queue in (first, second):
        queue.enqueue(draws(4, 1, 3, seed=1))
    assert torch.equal(first.slots, second.slots)
    assert int(second.position) == 2


def test_a_queue_may_be_filled_before_what_was_read_goes_backward() -> None:
    queue = MemoryQueue(places=1, slots=6, length=3, top=3)
    asked = draws(2, 1, 3).requires_grad_()
    (expected,) = torch.autograd.grad(queue(asked).square().sum(), asked)
    found = queue(asked).square().sum()
    queue.enqueue(asked)
    assert torch.equal(torch.autograd.grad(found, asked)[0], expected)
    assert not queue.slots.requires_grad


def test_processes_that_train_together_fill_their_queues_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    one = MemoryQueue(places=1, slots=6, length=3, top=3)
    several = copy.deepcopy(one)
    mine, theirs = draws(2, 1, 3), draws(2, 1, 3, seed=1)
    one.enqueue(torch.cat([mine, theirs]))
    monkeypatch.setattr(memory_queue, "gather_with_gradient", lambda rows: torch.cat([rows, theirs]))
    several.enqueue(mine)
    assert torch.equal(one.slots, several.slots)
    assert one.position == several.position


def test_a_matrix_makes_each_quarter_of_a_map_from_its_own_patterns() -> None:
    matrix, maps = MemoryMatrix(channels=3, side=4, slots=7, top=3, shortcut=0.5), draws(2, 3, 4, 4)
    found = matrix(maps).detach()
    for film in range(2):
        for quarter, (top, left) in enumerate(((0, 0), (0, 2), (2, 0), (2, 2))):
            memory = matrix.slots[quarter].detach().double().numpy()
            asked = maps[film, :, top : top + 2, left : left + 2]
            weights = weights_by_hand(memory @ asked.flatten().double().numpy(), 3)
            made = found[film, :, top : top + 2, left : left + 2].flatten()
            np.testing.assert_allclose(made.numpy(), weights @ memory, atol=1e-5)


def test_the_share_of_places_that_passes_by_does_so_in_all_channels() -> None:
    matrix, maps = MemoryMatrix(channels=3, side=32, slots=7, top=3, shortcut=0.3), draws(6, 3, 32, 32)
    found, made = matrix(maps, torch.Generator().manual_seed(0)), matrix(maps)
    passed = (found == maps).all(dim=1)
    assert float(passed.float().mean()) == pytest.approx(0.3, abs=0.02)
    assert torch.equal(found, torch.where(passed[:, None], maps, made))
    assert not (made == maps).any()

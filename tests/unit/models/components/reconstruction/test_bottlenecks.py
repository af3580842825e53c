"""Codes against torch's own distributions and plain loops."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from anomalib_cxr.models.components.reconstruction.bottlenecks import (
    GaussianBottleneck,
    MemoryBottleneck,
    divergence,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_divergence_is_torchs() -> None:
    mean, log_variance = torch.randn(2, 7, 5, generator=seeded(0)).unbind()
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(divergence(mean, log_variance), expected)
    bottleneck = GaussianBottleneck(2, 2, 8, 5, kl_weight=0.3)
    numbers = torch.cat([mean, log_variance], dim=1)
    penalty = bottleneck.code(numbers, seeded(1))[2]["kl"]
    torch.testing.assert_close(penalty, 0.3 * expected.mean())


def test_scores_see_the_mean_and_training_a_draw_of_the_deviation() -> None:
    bottleneck = GaussianBottleneck(2, 2, 8, 2)
    mean, deviation = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    numbers = torch.cat([mean, 2 * deviation.log()]).expand(20_000, -1)
    for other in (numbers, torch.cat([numbers[:, :2], torch.full_like(numbers[:, 2:], 5.0)], dim=1)):
        passed, code, _ = bottleneck.code(other, None)
        assert torch.equal(passed, mean.expand(20_000, -1))
        assert torch.equal(code, passed)
    passed, code, _ = bottleneck.code(numbers, seeded(0))
    assert torch.equal(code, mean.expand(20_000, -1))
    torch.testing.assert_close(passed.mean(dim=0), mean, atol=0.08, rtol=0)
    torch.testing.assert_close(passed.std(dim=0), deviation, atol=0, rtol=0.03)


@pytest.mark.parametrize("shrinkage", [0.0, 0.2])
def test_the_memory_is_a_loop_over_its_slots(shrinkage: float) -> None:
    torch.manual_seed(0)
    bottleneck = MemoryBottleneck(2, 2, 8, 3, slots=4, shrinkage=shrinkage, entropy_weight=0.5)
    codes = 2 * torch.randn(6, 3)
    slots = bottleneck.memory.detach().double().numpy()
    rows, entropies, cut = [], [], 0
    for code in codes.double().numpy():
        shares = np.exp([code @ slot for slot in slots])
        shares /= shares.sum()
        kept = np.array([share if share > shrinkage else 0.0 for share in shares])
        cut += (kept == 0).sum()
        kept /= kept.sum()
        rows.append(sum(share * slot for share, slot in zip(kept, slots, strict=True)))
        entropies.append(-sum(share * np.log(share) for share in kept if share))
    passed, code, penalties = bottleneck.code(codes, None)
    np.testing.assert_allclose(passed.detach().numpy(), rows, rtol=1e-4, atol=1e-6)
    assert torch.equal(code, codes)
    assert penalties["entropy"].item() == pytest.approx(0.5 * np.mean(entropies), rel=1e-4)
    torch.testing.assert_close(bottleneck.weights(codes).sum(dim=1), torch.ones(6))
    assert (cut > 0) == (shrinkage > 0)
    assert torch.autograd.grad(passed.sum(), bottleneck.memory)[0].abs().min() >= 0


def test_one_slot_lets_nothing_pass() -> None:
    torch.manual_seed(0)
    bottleneck = MemoryBottleneck(2, 2, 8, 3, slots=1).eval()
    found = bottleneck(torch.randn(5, 2, 2, 2)).features
    torch.testing.assert_close(found, found[:1].expand(5, -1, -1, -1))


@pytest.mark.parametrize("arguments", [{"slots": 0}, {"slots": 25, "shrinkage": 0.04}, {"shrinkage": -0.1}])
def test_a_memory_that_could_be_empty_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="1 slot or more and shrinks by less than 1 / slots"):
        MemoryBottleneck(2, 2, 8, 3, **arguments)

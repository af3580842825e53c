"""The density against scikit-learn's, which keeps the kernel's constant."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KernelDensity

from anomalib_cxr.models.components.kernel_density import GaussianKernelDensity


def _embeddings(n: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) * 3 + 1


@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("block", [7, 16384])
def test_equals_scikit_learn(bandwidth: float, block: int) -> None:
    references, queries = _embeddings(50, 16, 0), _embeddings(20, 16, 1)
    density = GaussianKernelDensity(bandwidth, block)
    density.fit(references)
    unit = lambda x: (x / x.norm(dim=1, keepdim=True)).double().numpy()  # noqa: E731
    expected = -KernelDensity(kernel="gaussian", bandwidth=bandwidth).fit(unit(references)).score_samples(unit(queries))
    constant = 16 / 2 * math.log(2 * math.pi * bandwidth**2)
    np.testing.assert_allclose(density(queries).double().numpy() + constant, expected, rtol=0, atol=2e-5)


def test_far_queries_do_not_underflow() -> None:
    density = GaussianKernelDensity(bandwidth=0.05)
    density.fit(torch.tensor([[1.0, 0.0]]))
    # Opposite point: distance 2, so the score is 2² / (2 · 0.05²) = 800, whose exponential is zero in any float.
    assert density(torch.tensor([[-1.0, 0.0]])).item() == pytest.approx(800.0, rel=1e-5)


def test_one_reference_is_half_the_squared_distance() -> None:
    density = GaussianKernelDensity()
    density.fit(torch.tensor([[0.0, 5.0]]))
    assert density(torch.tensor([[3.0, 0.0], [0.0, 1.0]])).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_bank_of_another_size_loads() -> None:
    density = GaussianKernelDensity()
    density.fit(_embeddings(9, 4, 0))
    fresh = GaussianKernelDensity()
    fresh.load_state_dict(density.state_dict())
    queries = _embeddings(3, 4, 2)
    assert torch.equal(fresh(queries), density(queries))


def test_bad_input() -> None:
    with pytest.raises(RuntimeError, match="bank is empty"):
        GaussianKernelDensity()(torch.ones(1, 4))
    with pytest.raises(ValueError, match="bandwidth must be positive"):
        GaussianKernelDensity(0)
    with pytest.raises(ValueError, match="at least one image"):
        GaussianKernelDensity().fit(torch.empty(0, 4))
    with pytest.raises(ValueError, match="not finite"):
        GaussianKernelDensity().fit(torch.tensor([[1.0, float("nan")]]))


def test_references_that_join_later_count_like_the_first() -> None:
    first, later, queries = torch.randn(3, 7, 5), torch.randn(3, 4, 5), torch.randn(3, 6, 5)
    grown, whole = GaussianKernelDensity(0.5), GaussianKernelDensity(0.5)
    grown.fit(first)
    grown.extend(later)
    whole.fit(torch.cat([first, later], dim=1))
    assert torch.equal(grown(queries), whole(queries))
    for shape in ((3, 4, 6), (2, 4, 5), (4, 5)):
        with pytest.raises(ValueError, match="cannot join references"):
            grown.extend(torch.randn(*shape))
    with pytest.raises(ValueError, match="cannot join references"):
        GaussianKernelDensity().extend(torch.randn(4, 5))

"""What noise and erased squares are, by their statistics and by counting pixels."""

import numpy as np
import pytest
import torch

from anomalib_cxr.models.components.reconstruction.corruption import CoarseNoise, ErasedSquare


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kept_variance(cells: int, side: int) -> float:
    """Share of the variance that bilinear enlarging with aligned corners keeps, averaged over pixels: Σ of squared
    weights along one axis, and the other axis the same."""
    places = np.arange(side) * (cells - 1) / (side - 1)
    between = places - np.floor(places)
    return float(((1 - between) ** 2 + between**2).mean() ** 2)


def test_coarse_noise_has_the_variance_of_its_enlargement_and_mean_zero() -> None:
    assert kept_variance(16, 128) == pytest.approx(0.448, abs=5e-4)
    images = torch.full((600, 1, 128, 128), 0.25)
    noise = CoarseNoise(std=0.2)(images, seeded(0)) - images
    assert float(noise.mean()) == pytest.approx(0, abs=4e-3)  # four deviations of a mean of 600 · 256 numbers
    assert float(noise.var()) == pytest.approx(kept_variance(16, 128) * (2 * 0.2) ** 2, rel=0.02)


def test_the_grid_leaves_no_trace() -> None:
    """Each pixel's variance is the same, though one at a node would have all and one in between a quarter."""
    noise = CoarseNoise()(torch.zeros(4000, 1, 33, 33), seeded(1))
    deviations = noise.std(dim=0)[0]
    assert float(deviations.std() / deviations.mean()) < 0.02
    assert not torch.equal(noise[0], noise[1])


def test_one_square_of_each_image_is_black() -> None:
    images = torch.rand(400, 1, 64, 64, generator=seeded(0)) - 0.5
    found = ErasedSquare()(images, seeded(1))
    black = found == -1
    assert black.sum(dim=(1, 2, 3)).tolist() == [100] * 400
    assert torch.equal(found[~black], images[~black])
    tops = [int(one[0].any(dim=1).int().argmax()) for one in black]
    lefts = [int(one[0].any(dim=0).int().argmax()) for one in black]
    for places in (tops, lefts):
        assert min(places) == 0
        assert max(places) == 54
    for one, top, left in zip(black, tops, lefts, strict=True):
        assert one[0, top : top + 10, left : left + 10].all()
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.15


def test_noise_without_size_is_refused() -> None:
    with pytest.raises(ValueError, match="noise must be positive, not 0"):
        CoarseNoise(std=0)

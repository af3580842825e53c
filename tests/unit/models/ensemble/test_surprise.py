"""P-values of an ensemble's members against plain definitions."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from anomalib_cxr.metrics import conformal_p_values
from anomalib_cxr.models.ensemble.surprise import Surprise


def by_definition(normal: np.ndarray, score: float) -> float:
    iqr = stats.iqr(normal)
    bandwidth = 0.9 * min(normal.std(ddof=1), iqr / 1.34) * len(normal) ** (-1 / 5)
    return -math.log(sum(1 / (1 + math.exp(-(one - score) / bandwidth)) for one in normal) / len(normal))


def test_it_is_the_definition() -> None:
    rng = np.random.default_rng(0)
    normal = rng.gamma(2.0, 3.0, 80)
    scores = np.linspace(normal.min() - 1, normal.max() + 3, 23)
    found = Surprise(normal.tolist())(torch.tensor(scores, dtype=torch.float32))
    assert found.numpy() == pytest.approx([by_definition(normal, score) for score in scores], rel=1e-4, abs=1e-5)


def test_it_is_close_to_the_conformal_p_value_and_never_ties() -> None:
    rng = np.random.default_rng(1)
    normal, new = rng.normal(5, 2, 2000), np.sort(rng.normal(5, 2, 500))
    found = Surprise(normal.tolist())(torch.tensor(new, dtype=torch.float32)).double().numpy()
    assert np.abs(np.exp(-found) - conformal_p_values(normal, new)).max() < 0.05
    assert stats.kstest(np.exp(-found), "uniform").pvalue > 0.01
    far = Surprise(normal.tolist())(torch.tensor([20.0, 40.0, 80.0, 1000.0]))
    assert (far.diff() > 0).all()
    assert torch.isfinite(far).all()


def test_scale_and_shift_of_the_scores_do_not_matter() -> None:
    normal = np.random.default_rng(2).normal(size=50)
    scores = torch.linspace(-2, 6, 9)
    moved = Surprise((1000 + 7 * normal).tolist())(1000 + 7 * scores)
    assert moved.numpy() == pytest.approx(Surprise(normal.tolist())(scores).numpy(), rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("scores", [[], [1.0], [2.0, 2.0, 2.0], [1.0, math.nan]])
def test_scores_that_calibrate_nothing_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="two or more different finite scores"):
        Surprise(scores)


def test_mostly_equal_scores_still_have_a_bandwidth() -> None:
    assert torch.isfinite(Surprise([1.0] * 20 + [2.0])(torch.tensor([0.0, 5.0]))).all()

"""Conformal p-values: the definition, and uniform on normal images."""

import numpy as np
import pytest
from scipy import stats

from anomalib_cxr.metrics import conformal_p_values, outside_of_normal


def test_p_values_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(1)
    calibration, scores = rng.integers(0, 6, 17), rng.integers(-1, 8, 40)
    expected = [(1 + sum(c >= s for c in calibration)) / 18 for s in scores]
    assert conformal_p_values(calibration, scores).tolist() == pytest.approx(expected)


def test_p_values_of_normal_images_are_uniform() -> None:
    """Fresh calibration and one query each time: uniform on {1/20, ..., 1}, tested by chi-square."""
    rng = np.random.default_rng(0)
    p_values = [conformal_p_values(rng.gamma(2, size=19), rng.gamma(2, size=1))[0] for _ in range(4000)]
    counts = np.bincount(np.rint(np.array(p_values) * 20).astype(int), minlength=21)[1:]
    assert counts.sum() == 4000
    assert stats.chisquare(counts).pvalue > 0.01


def test_p_values_of_tied_scores_are_not_too_small() -> None:
    rng = np.random.default_rng(0)
    p_values = np.array([conformal_p_values(rng.integers(0, 3, 19), rng.integers(0, 3, 1))[0] for _ in range(3000)])
    for level in (0.1, 0.4, 0.7):
        assert (p_values <= level).mean() <= level + 0.02


def test_scores_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="calibration scores"):
        conformal_p_values([], [1.0])
    with pytest.raises(ValueError, match="calibration scores are NaN"):
        conformal_p_values([1.0, float("nan")], [1.0])


@pytest.mark.parametrize("n", [1, 2, 3, 49, 50, 116, 997])
def test_outside_is_beyond_every_normal_score(n) -> None:
    """Also where 2 / (n + 1) is not exact in binary; a score that ties with the highest is not outside."""
    rng = np.random.default_rng(n)
    calibration = rng.integers(0, 5, n).astype(float)
    scores = np.r_[rng.integers(-1, 7, 50), calibration.max(), np.sort(calibration)[-2:]].astype(float)
    found = outside_of_normal(conformal_p_values(calibration, scores), n)
    assert found.tolist() == [bool(score > calibration.max()) for score in scores]
    assert not outside_of_normal([np.nan], n)[0]

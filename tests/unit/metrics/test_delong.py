"""DeLong's test against its definition as a double loop, and against chance."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from anomalib_cxr.metrics import delong_covariance, delong_test


def covariance_by_loops(labels: np.ndarray, models: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """DeLong, DeLong and Clarke-Pearson 1988, equations 4 to 6, pair by pair."""
    abnormal, normal = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    m, n, k = len(abnormal), len(normal), len(models)
    v10, v01 = np.zeros((k, m)), np.zeros((k, n))
    for r, scores in enumerate(models):
        for i, x in enumerate(abnormal):
            for j, y in enumerate(normal):
                psi = 1.0 if scores[x] > scores[y] else 0.5 if scores[x] == scores[y] else 0.0
                v10[r, i] += psi / n
                v01[r, j] += psi / m
    theta = v10.mean(axis=1)
    s10, s01 = np.zeros((k, k)), np.zeros((k, k))
    for r in range(k):
        for s in range(k):
            s10[r, s] = sum((v10[r, i] - theta[r]) * (v10[s, i] - theta[s]) for i in range(m)) / (m - 1)
            s01[r, s] = sum((v01[r, j] - theta[r]) * (v01[s, j] - theta[s]) for j in range(n)) / (n - 1)
    return theta, s10 / m + s01 / n


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 25), st.integers(1, 30))
def test_covariance_is_that_of_the_double_loop(seed: int, size: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 0, 1, 1, rng.integers(0, 2, size - 4)]
    models = [rng.integers(0, levels, size) + 2.0 * labels * rng.uniform() for _ in range(3)]
    aurocs, covariance = delong_covariance(labels, *models)
    expected_aurocs, expected = covariance_by_loops(labels, models)
    np.testing.assert_allclose(aurocs, expected_aurocs, atol=1e-12)
    np.testing.assert_allclose(covariance, expected, atol=1e-12)


def test_the_test_is_the_normal_approximation_of_the_difference() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 80)
    a, b = labels + rng.normal(size=80), 0.4 * labels + rng.normal(size=80)
    (auroc_a, auroc_b), s = covariance_by_loops(labels, [a, b])
    error = math.sqrt(s[0, 0] + s[1, 1] - 2 * s[0, 1])
    result = delong_test(labels, a, b)
    assert result[:4] == pytest.approx((auroc_a, auroc_b, auroc_a - auroc_b, error))
    assert result.z == pytest.approx((auroc_a - auroc_b) / error)
    assert result.p_value == pytest.approx(2 * (1 - stats.norm.cdf(abs(result.z))))
    assert delong_test(labels, b, a).z == pytest.approx(-result.z)


def test_p_values_are_uniform_where_models_are_equally_good() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    p_values = []
    for _ in range(600):
        shared = rng.normal(size=120)
        a, b = (labels + shared + rng.normal(size=120) for _ in range(2))
        p_values.append(delong_test(labels, a, b).p_value)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_models_that_rank_alike_do_not_differ() -> None:
    labels, scores = [0, 1, 0, 1, 1], np.array([1.0, 3, 2, 2, 5])
    result = delong_test(labels, scores, np.exp(scores))
    assert (result.difference, result.z, result.p_value) == (0, 0, 1)


def test_a_difference_without_variance_is_nan_with_a_reason(caplog) -> None:
    result = delong_test([0, 0, 1, 1], [1, 2, 3, 4], [7, 7, 7, 7])
    assert result.difference == 0.5
    assert math.isnan(result.p_value)
    assert "no variance" in caplog.text


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]])
def test_too_few_images_of_a_class_are_refused(labels) -> None:
    with pytest.raises(ValueError, match="two images of each class"):
        delong_test(labels, [1, 2, 3, 4], [4, 3, 2, 1])

"""Shrunk covariance against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from anomalib_cxr.models.components.patch_search.whitening import ledoit_wolf, mean_and_covariance, whitening_matrix


@pytest.mark.parametrize(("n", "dim"), [(200, 5), (7, 30), (2, 4)])
def test_equals_scikit_learn(n, dim):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(n, dim)) * rng.uniform(0.1, 5, dim) + 3
    mean, covariance = ledoit_wolf(torch.from_numpy(samples), chunk=3)
    expected = LedoitWolf().fit(samples)
    np.testing.assert_allclose(mean.numpy(), expected.location_, rtol=1e-10)
    np.testing.assert_allclose(covariance.numpy(), expected.covariance_, rtol=1e-9, atol=1e-12)


def test_moments_do_not_depend_on_chunks_or_leading_dimensions():
    samples = torch.randn(10, 3, 4, 6)
    mean, covariance = mean_and_covariance(samples, chunk=4)
    flat = samples.reshape(-1, 6).double().numpy()
    np.testing.assert_allclose(mean.numpy(), flat.mean(0), atol=1e-12)
    np.testing.assert_allclose(covariance.numpy(), np.cov(flat.T, bias=True), rtol=1e-10, atol=1e-12)


def test_whitened_samples_have_the_inverse_covariance_as_metric():
    samples = torch.randn(50, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    _, whitening = whitening_matrix(samples)
    precision = np.linalg.inv(LedoitWolf().fit(samples.numpy()).covariance_)
    np.testing.assert_allclose((whitening @ whitening.T).numpy(), precision, rtol=1e-8, atol=1e-10)


def test_constant_samples_keep_their_distance():
    mean, whitening = whitening_matrix(torch.full((5, 3), 2.0))
    assert torch.equal(mean, torch.full((3,), 2.0, dtype=torch.float64))
    assert torch.equal(whitening, torch.eye(3, dtype=torch.float64))


def test_a_constant_feature_does_not_break_the_inverse():
    samples = torch.randn(40, 4, dtype=torch.float64)
    samples[:, 2] = 7
    _, whitening = whitening_matrix(samples)
    assert whitening.isfinite().all()

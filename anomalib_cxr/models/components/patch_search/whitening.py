"""Shrunk covariance of reference features, as the matrix that turns Mahalanobis into Euclidean distance.

The paper takes the sample covariance of the reference features, which has no inverse when there are fewer samples
than features or a feature is constant. We shrink it after Ledoit and Wolf ("A well-conditioned estimator for
large-dimensional covariance matrices", 2004). scikit-learn's estimator holds several float64 copies of all samples;
the two moments it needs can be summed chunk by chunk instead, so any number of references will do.
"""

import torch
from torch import Tensor


def mean_and_covariance(features: Tensor, chunk: int = 64) -> tuple[Tensor, Tensor]:
    """Sample mean and covariance, in float64, converting a part of the samples at a time.

    Args:
        features: Samples of shape ``(..., D)``.
        chunk: Entries of the first dimension converted at once.

    Returns:
        Mean of shape ``(D,)`` and covariance (divided by the number of samples) of shape ``(D, D)``.
    """
    dim = features.shape[-1]
    n = features.numel() // dim
    mean = torch.zeros(dim, dtype=torch.float64, device=features.device)
    for part in features.split(chunk):
        mean += part.reshape(-1, dim).double().sum(0) / n
    covariance = torch.zeros(dim, dim, dtype=torch.float64, device=features.device)
    for part in features.split(chunk):
        centred = part.reshape(-1, dim).double() - mean
        covariance += centred.T @ centred / n
    return mean, covariance


def ledoit_wolf(features: Tensor, chunk: int = 64) -> tuple[Tensor, Tensor]:
    """Mean and shrunk covariance.

    With S the sample covariance of n centred samples x of length p and m = tr(S)/p, the estimate is
    ``(1 - s) S + s m I``, where s = b²/d² (at most 1), d² = |S - m I|² and b² is the mean over samples of
    |x xᵀ - S|², divided by n.

    Args:
        features: Samples of shape ``(..., D)``.
        chunk: Entries of the first dimension converted to float64 at once.

    Returns:
        Mean of shape ``(D,)`` and covariance of shape ``(D, D)``, float64.
    """
    dim = features.shape[-1]
    n = features.numel() // dim
    mean, covariance = mean_and_covariance(features, chunk)
    # The mean over samples of |x xᵀ|² is that of |x|⁴.
    fourth = torch.zeros((), dtype=torch.float64, device=features.device)
    for part in features.split(chunk):
        fourth += (part.reshape(-1, dim).double() - mean).square().sum(1).square().sum() / n
    scale = covariance.trace() / dim
    squared = covariance.square().sum()
    spread = squared - dim * scale.square()
    noise = torch.minimum((fourth - squared).clamp(min=0) / n, spread)
    shrinkage = torch.where(noise > 0, noise / spread, 0.0)
    identity = torch.eye(dim, dtype=torch.float64, device=features.device)
    return mean, (1 - shrinkage) * covariance + shrinkage * scale * identity


def whitening_matrix(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean m and matrix W for which ``|(x - y) W|`` is the Mahalanobis distance of x and y.

    Directions without any variance, which shrinkage leaves at zero in degenerate cases, are given 1e-10 of the mean
    variance; features that are all constant keep their Euclidean distance.

    Args:
        features: Samples of shape ``(..., D)``.

    Returns:
        Mean of shape ``(D,)`` and whitening of shape ``(D, D)``, float64.
    """
    mean, covariance = ledoit_wolf(features)
    values, vectors = torch.linalg.eigh(covariance)
    if values.max() <= 0:
        return mean, torch.eye(len(mean), dtype=torch.float64, device=features.device)
    values = values.clamp(min=1e-10 * values.mean())
    return mean, vectors * values.rsqrt()

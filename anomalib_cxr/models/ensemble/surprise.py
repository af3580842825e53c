"""How unusual a score is among normal ones, on a scale that detectors of different kinds share: what is exported."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Surprise(nn.Module):
    """Minus the logarithm of a smooth p-value against held-out normal images (ours).

    ``-log p(x)`` with ``p(x) = mean_i σ((sᵢ − x) / h)`` over the scores sᵢ of normal validation images: a kernel
    estimate of the share of normal images that score at least x. A conformal p-value can only take n + 1 values, so
    that all abnormal images beyond the highest normal one tie; this one keeps ranks (it is strictly increasing in x),
    and grows by 1 with every h beyond: there it is a score, extrapolated, and no p-value. Bandwidth h is Silverman's,
    ``0.9 min(sd, IQR / 1.34) n^(-1/5)``.

    The mean over detectors is Fisher's statistic for combining p-values of independent tests, but for a factor.

    Args:
        normal_scores: (n,) raw scores of held-out normal images, two or more different ones.

    Raises:
        ValueError: If there are fewer than two different scores, or one is not finite.
    """

    normal_scores: Tensor
    bandwidth: Tensor

    def __init__(self, normal_scores: Sequence[float]) -> None:
        super().__init__()
        scores = torch.as_tensor(normal_scores, dtype=torch.float64).flatten()
        if not torch.isfinite(scores).all() or len(scores.unique()) < 2:
            msg = (
                "p-values need two or more different finite scores of normal validation images, got "
                f"{len(scores)} scores, {len(scores.unique())} of them different."
            )
            raise ValueError(msg)
        lower, upper = torch.quantile(scores, torch.tensor([0.25, 0.75], dtype=torch.float64))
        spreads = torch.stack([scores.std(), (upper - lower) / 1.34])
        bandwidth = 0.9 * spreads[spreads > 0].min() * len(scores) ** -0.2
        self.register_buffer("normal_scores", scores.float())
        self.register_buffer("bandwidth", bandwidth.float())

    def forward(self, scores: Tensor) -> Tensor:
        """Tell how unusual scores are.

        Args:
            scores: (B,) raw scores.

        Returns:
            (B,), at least 0; 3 is a p-value of 0.05.
        """
        beyond = (scores[:, None] - self.normal_scores) / self.bandwidth
        return -torch.logsumexp(-F.softplus(beyond), dim=1) + torch.log(torch.tensor(float(len(self.normal_scores))))

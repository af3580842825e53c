"""What a reconstruction has to pass through: few numbers, drawn ones, a memory, or few channels."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from anomalib_cxr.devices import on_device


class Coded(NamedTuple):
    """Features after a bottleneck.

    Attributes:
        features: (B, C, h, w), as they came in, made anew from the code.
        code: (B, d) or (B, d, h, w).
        penalties: What training adds to the reconstruction's loss, weighted, by name.
    """

    features: Tensor
    code: Tensor
    penalties: dict[str, Tensor]


class VectorBottleneck(nn.Module):
    """A code of d numbers between two layers of h units (MedIAnomaly).

    Linear, batch normalisation, ReLU, linear; and back the same way. The code has no activation. A kind of code of its
    own overrides :meth:`code`. :class:`~anomalib_cxr.models.components.reconstruction.convolutional.ConvEncoder` names
    the paper.

    Args:
        channels: C of the features.
        cells: Their height and width.
        hidden: h, 1 or more.
        latent: d, 1 or more.
    """

    #: Numbers that the encoder gives for each number of the code.
    per_number = 1

    def __init__(self, channels: int, cells: int, hidden: int = 1024, latent: int = 16) -> None:
        super().__init__()
        features = channels * cells**2
        self.squeeze = nn.Sequential(
            nn.Flatten(),
            nn.Linear(features, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, self.per_number * latent),
        )
        self.expand = nn.Sequential(
            nn.Linear(latent, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, features),
            nn.Unflatten(1, (channels, cells, cells)),
        )

    def forward(self, features: Tensor, generator: torch.Generator | None = None) -> Coded:
        """Pass features through.

        Args:
            features: (B, C, h, w).
            generator: On the CPU, for what is drawn in training; None draws nothing.
        """
        passed, code, penalties = self.code(self.squeeze(features), generator)
        return Coded(self.expand(passed), code, penalties)

    def code(self, numbers: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Make a code of what the encoder says.

        Args:
            numbers: (B, per_number · d).
            generator: See :meth:`forward`.

        Returns:
            What the decoder gets (B, d), the code (B, d), and penalties.
        """
        del generator
        return numbers, numbers, {}


class GaussianBottleneck(VectorBottleneck):
    """A code drawn from a Gaussian that the encoder gives, kept near N(0, 1) (Kingma and Welling 2014).

    The code is its mean μ. It is drawn, μ + σ ε, only where there is a generator: scores are never random. (The
    published code of MedIAnomaly draws at test time too.)

    Args:
        channels: See :class:`VectorBottleneck`.
        cells: See :class:`VectorBottleneck`.
        hidden: See :class:`VectorBottleneck`.
        latent: See :class:`VectorBottleneck`.
        kl_weight: Weight of the Kullback–Leibler divergence, which is a mean over numbers and images (MedIAnomaly:
            0.005, beside a mean squared error on [−1, 1]).
    """

    per_number = 2

    def __init__(
        self, channels: int, cells: int, hidden: int = 1024, latent: int = 16, kl_weight: float = 0.005
    ) -> None:
        super().__init__(channels, cells, hidden, latent)
        if not kl_weight >= 0:
            msg = f"kl_weight must be 0 or more, not {kl_weight}."
            raise ValueError(msg)
        self.kl_weight = kl_weight

    def code(self, numbers: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """A draw, the mean, and the divergence."""
        mean, log_variance = numbers.float().chunk(2, dim=1)
        drawn = mean
        if generator is not None:
            noise = on_device(torch.randn(mean.shape, generator=generator), mean.device)
            drawn = mean + (log_variance / 2).exp() * noise
        return drawn, mean, {"kl": self.kl_weight * divergence(mean, log_variance).mean()}


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback–Leibler divergence of Gaussians from N(0, 1), number by number, in nats."""
    return (mean.square() + log_variance.exp() - log_variance - 1) / 2


class MemoryBottleneck(VectorBottleneck):
    """A code made of learnt normal ones (Gong et al., ICCV 2019, "MemAE"; values of MedIAnomaly).

    The decoder gets a mixture of slots, weighted by the softmax of their dot products with the code; weights below a
    threshold are cut off, and the rest add up to 1 again. With 25 slots the published threshold hardly ever cuts.

    Args:
        channels: See :class:`VectorBottleneck`.
        cells: See :class:`VectorBottleneck`.
        hidden: See :class:`VectorBottleneck`.
        latent: See :class:`VectorBottleneck`.
        slots: Learnt codes, 1 or more.
        shrinkage: Threshold of the weights, 0 or more, below 1 / slots.
        entropy_weight: Weight of the entropy of an image's weights, a mean over images, in nats.
    """

    def __init__(
        self,
        channels: int,
        cells: int,
        hidden: int = 1024,
        latent: int = 16,
        slots: int = 25,
        shrinkage: float = 0.0025,
        entropy_weight: float = 0.0002,
    ) -> None:
        super().__init__(channels, cells, hidden, latent)
        if slots < 1 or not 0 <= shrinkage < 1 / slots:
            msg = f"A memory has 1 slot or more and shrinks by less than 1 / slots, not {slots} and {shrinkage}."
            raise ValueError(msg)
        self.memory = nn.Parameter(torch.empty(slots, latent).uniform_(-1, 1) / latent**0.5)
        self.shrinkage = shrinkage
        self.entropy_weight = entropy_weight

    def weights(self, code: Tensor) -> Tensor:
        """Share of each slot, (B, slots), of codes (B, d)."""
        shares = (code.float() @ self.memory.float().T).softmax(dim=1)
        over = (shares - self.shrinkage).relu()
        # relu(w − λ) · w / |w − λ|: w where it is above the threshold, with the gradient of w.
        kept = over * shares / ((shares - self.shrinkage).abs() + 1e-12)
        return kept / kept.sum(dim=1, keepdim=True)

    def code(self, numbers: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The mixture, the code, and the entropy of the weights."""
        del generator
        weights = self.weights(numbers)
        entropy = -(weights * (weights + 1e-12).log()).sum(dim=1).mean()
        return weights @ self.memory, numbers, {"entropy": self.entropy_weight * entropy}


class SpatialBottleneck(nn.Module):
    """A code of d numbers at each cell: 1 × 1 convolutions in place of the linear layers (MedIAnomaly).

    Args:
        channels: C of the features.
        hidden: Channels between, 1 or more.
        latent: d, 1 or more.
    """

    def __init__(self, channels: int, hidden: int = 1024, latent: int = 16) -> None:
        super().__init__()
        self.squeeze = _pointwise(channels, hidden, latent)
        self.expand = _pointwise(latent, hidden, channels)

    def forward(self, features: Tensor, generator: torch.Generator | None = None) -> Coded:
        """Pass features (B, C, h, w) through; nothing is drawn."""
        del generator
        code = self.squeeze(features)
        return Coded(self.expand(code), code, {})


def _pointwise(before: int, hidden: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True), nn.Conv2d(hidden, after, 1)
    )

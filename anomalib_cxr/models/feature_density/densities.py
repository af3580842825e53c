"""How far features lie from normal ones: scikit-learn fits, plain torch scores, so that scores export.

Each density takes features of shape ``(P, n, D)``: ``P`` places of the image, each a problem of its own, ``n`` normal
images, ``D`` numbers. A new one is a subclass of :class:`Density` and an entry of :data:`DENSITIES`.
"""

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from anomalib.models.components.base import DynamicBufferMixin
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.svm import OneClassSVM
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cxr.checks import check_choice
from anomalib_cxr.models.components.full_precision import full_precision
from anomalib_cxr.models.components.kernel_density import GaussianKernelDensity


class Density(DynamicBufferMixin, nn.Module):
    """Base of densities: checks what it is given, and keeps what is fitted of each place as buffers, in float32."""

    def fit(self, features: Tensor) -> None:
        """Learn what is normal.

        Args:
            features: (P, n, D) of normal images.

        Raises:
            ValueError: If there is no image, or some features are not finite.
        """
        if features.ndim != 3 or features.numel() == 0:
            msg = f"A density needs features (P, n, D) of normal images, got {tuple(features.shape)}."
            raise ValueError(msg)
        if not torch.isfinite(features).all():
            msg = "Features of training images are not finite: check the encoder's weights and the films."
            raise ValueError(msg)
        places = [self.fit_place(place.double().cpu().numpy()) for place in features]
        for name in places[0]:
            longest = max(len(place[name]) for place in places)
            parts = [torch.from_numpy(place[name]) for place in places]
            padded = [F.pad(part, (0, 0) * (part.ndim - 1) + (0, longest - len(part))) for part in parts]
            setattr(self, name, torch.stack(padded).to(features.device, torch.float32))

    def fit_place(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """Learn what is normal at one place.

        Args:
            features: (n, D), float64.

        Returns:
            What to keep, by the names of buffers; where places differ in length, zeros are added at the end.
        """
        raise NotImplementedError

    def forward(self, features: Tensor) -> Tensor:
        """Score features.

        Args:
            features: (P, B, D).

        Returns:
            (P, B); higher is more abnormal.

        Raises:
            RuntimeError: If :meth:`fit` has not been called.
        """
        if not all(buffer.numel() for buffer in self.buffers()):
            msg = (
                "The density knows no normal images: fit the model, or load a checkpoint that was saved after a "
                "validation."
            )
            raise RuntimeError(msg)
        return self.score(features.float())

    def score(self, features: Tensor) -> Tensor:
        """What :meth:`forward` gives, in plain torch, once there is something fitted."""
        raise NotImplementedError

    def _empty(self, *names: str) -> None:
        """Buffers that :meth:`fit`, or a state that is loaded, fills."""
        for name in names:
            self.register_buffer(name, torch.empty(0))


class KernelDensity(Density):
    """Negative log density under a Gaussian kernel on each normal feature of unit length.

    As AnatPaste scores its own embeddings (Sato et al. 2023, arXiv 2205.04282, method section).

    Args:
        bandwidth: Kernel's standard deviation, above 0.
    """

    def __init__(self, bandwidth: float = 1.0) -> None:
        super().__init__()
        self.kernel = GaussianKernelDensity(bandwidth)

    def fit(self, features: Tensor) -> None:
        """Take the features as references."""
        self.kernel.fit(features)

    def score(self, features: Tensor) -> Tensor:
        """(P, B) of features (P, B, D)."""
        return self.kernel(features)


class SupportVectors(Density):
    """One-class support vector machine with a radial kernel (Schölkopf et al. 2001): its negative decision function.

    ``score(x) = ρ − Σᵢ αᵢ exp(−γ ‖xᵢ − x‖²)`` with γ = 1 / (D · variance), scikit-learn's "scale". The support vector
    data description (Tax and Duin 2004) ranks alike: under a kernel that is constant on the diagonal, as this one, both
    have the same αᵢ up to a factor.

    Args:
        nu: Upper bound on the share of normal images left outside, in (0, 1].
    """

    references: Tensor
    weights: Tensor
    gamma: Tensor
    offset: Tensor

    def __init__(self, nu: float = 0.1) -> None:
        super().__init__()
        _require(0 < nu <= 1, f"nu must lie in (0, 1], not be {nu}.")
        self.nu = nu
        self._empty("references", "weights", "gamma", "offset")

    def fit_place(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """Support vectors, their weights, γ and ρ."""
        machine = OneClassSVM(nu=self.nu, gamma="scale").fit(features)
        return {
            "references": machine.support_vectors_,
            "weights": machine.dual_coef_[0],
            "gamma": np.array([machine._gamma]),
            "offset": machine.offset_,
        }

    def score(self, features: Tensor) -> Tensor:
        """(P, B) of features (P, B, D)."""
        kernel = torch.exp(-self.gamma[..., None] * squared_distances(features, self.references))
        return self.offset - (kernel * self.weights[:, None]).sum(dim=-1)


class PrincipalSubspace(Density):
    """Squared distance from the subspace of the leading principal components: the PCA's reconstruction error.

    Args:
        components: Share of the variance that the subspace holds, in (0, 1), or from 1 on the number of components.
    """

    mean: Tensor
    axes: Tensor

    def __init__(self, components: float = 0.9) -> None:
        super().__init__()
        _require(
            0 < components < 1 or (components >= 1 and components == int(components)),
            f"components must be a share in (0, 1) or a whole number of 1 or more, not {components}.",
        )
        self.components = components
        self._empty("mean", "axes")

    def fit_place(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """Mean and axes, one a row; a place where all is constant has none."""
        if not features.var(axis=0).any():
            return {"mean": features.mean(axis=0), "axes": np.zeros((1, features.shape[1]))}
        wanted = self.components if self.components < 1 else min(int(self.components), *features.shape)
        pca = PCA(n_components=wanted, svd_solver="full").fit(features)
        return {"mean": pca.mean_, "axes": pca.components_}

    def score(self, features: Tensor) -> Tensor:
        """(P, B) of features (P, B, D)."""
        centred = features - self.mean[:, None]
        with full_precision(features.device):
            return (centred - centred @ self.axes.mT @ self.axes).square().sum(dim=-1)


class ShrunkGaussian(Density):
    """Mahalanobis distance under one Gaussian, its covariance shrunk after Ledoit and Wolf (2004)."""

    mean: Tensor
    whitening: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._empty("mean", "whitening")

    def fit_place(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """Mean, and the matrix after which the Mahalanobis distance is the Euclidean one."""
        estimate = LedoitWolf().fit(features)
        values, vectors = np.linalg.eigh(estimate.covariance_)
        # One image, or all alike, have no covariance: every distance then counts as it is.
        floor = 1e-10 * values.max() or 1.0
        return {"mean": estimate.location_, "whitening": vectors / np.sqrt(values.clip(min=floor))}

    def score(self, features: Tensor) -> Tensor:
        """(P, B) of features (P, B, D)."""
        with full_precision(features.device):
            return ((features - self.mean[:, None]) @ self.whitening).norm(dim=-1)


class NearestNeighbours(Density):
    """Mean Euclidean distance to the k nearest normal features.

    Args:
        neighbours: k, 1 or more; of fewer normal images, all count.
    """

    references: Tensor

    def __init__(self, neighbours: int = 1) -> None:
        super().__init__()
        _require(
            neighbours >= 1 and neighbours == int(neighbours),
            f"neighbours must be a whole number of 1 or more, not {neighbours}.",
        )
        self.neighbours = int(neighbours)
        self._empty("references")

    def fit_place(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """The features themselves."""
        return {"references": features}

    def score(self, features: Tensor) -> Tensor:
        """(P, B) of features (P, B, D)."""
        distances = squared_distances(features, self.references).sqrt()
        nearest = distances.topk(min(self.neighbours, self.references.shape[1]), dim=-1, largest=False).values
        return nearest.mean(dim=-1)


#: Densities by the name that the detector's argument ``density`` has.
DENSITIES: Mapping[str, type[Density]] = {
    "kde": KernelDensity,
    "svm": SupportVectors,
    "pca": PrincipalSubspace,
    "gaussian": ShrunkGaussian,
    "knn": NearestNeighbours,
}


def build_density(name: str, options: Mapping[str, Any]) -> Density:
    """Build a density.

    Args:
        name: One of :data:`DENSITIES`.
        options: Arguments of its own.

    Raises:
        ValueError: If there is no such density, or it has no such argument.
    """
    kind = DENSITIES[check_choice("density", name, DENSITIES)]
    known = list(inspect.signature(kind).parameters)
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}."
            msg = f"density_options: density={name} has no option {option!r}: {hint}"
            raise ValueError(msg)
    return kind(**options)


def squared_distances(features: Tensor, references: Tensor) -> Tensor:
    """Squared Euclidean distances of features (P, B, D) and references (P, m, D), shape (P, B, m), 0 at least.

    Seen from the references' mean: what all share would cost the products their last digits.
    """
    centre = references.mean(dim=1, keepdim=True)
    asked, known = features - centre, references - centre
    with full_precision(features.device):
        products = asked @ known.mT
    squares = asked.square().sum(dim=-1, keepdim=True) + known.square().sum(dim=-1)[:, None]
    return (squares - 2 * products).clamp(min=0)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)

"""DeepSVDD's network, centre and map: what is exported."""

from typing import Literal

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cxr.checks import check_choice
from anomalib_cxr.models.components.normal_map import NormalMap
from anomalib_cxr.models.deep_svdd.networks import CODE, FIRST, REDUCTION, Decoder, Encoder

Objective = Literal["one_class", "soft_boundary"]

#: No coordinate of the centre is nearer to 0, where weights of 0 would reach it.
LEAST_COORDINATE = 0.1
#: Least variance of the training films' distances; below it all of them lie at one point.
_COLLAPSED = 1e-12


class DeepSVDDModel(nn.Module):
    """Codes of films, their squared distance to a centre, and where the last feature map is unlike normal ones.

    Args:
        objective: ``"one_class"``, the mean squared distance, or ``"soft_boundary"``, a sphere that leaves the share ν
            of the films outside.
        nu: ν in (0, 1].
        contrast_normalisation: Give each film the mean 0 and the mean absolute value 1, then bring the extremes of
            the training films to 0 and 1.
        pretraining: Whether there is a decoder to pre-train with.
        image_size: Height and width of the images, multiples of 8, at least 32.

    Raises:
        ValueError: If an argument is out of range; the message names it.
    """

    centre: Tensor
    radius: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(
        self,
        objective: Objective = "one_class",
        nu: float = 0.1,
        contrast_normalisation: bool = True,
        pretraining: bool = True,
        image_size: tuple[int, int] = (32, 32),
    ) -> None:
        super().__init__()
        self.objective = check_choice("objective", objective, Objective)
        if not 0 < nu <= 1:
            msg = f"nu must lie in (0, 1], not be {nu}."
            raise ValueError(msg)
        if any(side % REDUCTION or side < REDUCTION * FIRST for side in image_size):
            msg = f"image_size must be a multiple of {REDUCTION}, {REDUCTION * FIRST} or more, not {image_size[0]}."
            raise ValueError(msg)
        self.nu = nu
        self.contrast_normalisation = contrast_normalisation
        self.encoder = Encoder(image_size)
        self.decoder = Decoder(image_size) if pretraining else None
        self.normal_map = NormalMap()
        self.register_buffer("centre", torch.zeros(CODE))
        self.register_buffer("radius", torch.zeros(()))
        self.register_buffer("lowest", torch.zeros(()))
        self.register_buffer("highest", torch.ones(()))

    # ------------------------------------------------------------------ input

    def contrast(self, images: Tensor) -> Tensor:
        """Grey images (B, 1, H, W), each with mean 0 and mean absolute value 1, or as they are.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].
        """
        grey = images.mean(dim=1, keepdim=True)
        if not self.contrast_normalisation:
            return grey
        centred = grey - grey.mean(dim=(2, 3), keepdim=True)
        return centred / centred.abs().mean(dim=(2, 3), keepdim=True).clamp(min=1e-6)

    def normalised(self, images: Tensor) -> Tensor:
        """What the network sees of images (B, 3 or 1, H, W): (B, 1, H, W), in [0, 1] for training films."""
        return (self.contrast(images) - self.lowest) / (self.highest - self.lowest)

    def fit_range(self, lowest: Tensor, highest: Tensor) -> None:
        """Keep the extremes of :meth:`contrast` over the training films.

        Raises:
            ValueError: If they are the same.
        """
        if not bool(highest > lowest):
            msg = "All training films are of one grey, so there is no contrast to normalise: look at the data set."
            raise ValueError(msg)
        self.lowest, self.highest = lowest, highest

    # ------------------------------------------------------------------ training

    def reconstruction_loss(self, images: Tensor) -> Tensor:
        """Squared error of the autoencoder, summed over pixels, mean over films (B, 3 or 1, H, W) in [0, 1]."""
        assert self.decoder is not None
        seen = self.normalised(images)
        return (self.decoder(self.encoder(seen)) - seen).square().sum(dim=(1, 2, 3)).mean()

    def description_loss(self, distances: Tensor) -> Tensor:
        """Mean squared distance; with a soft boundary R² and the mean excess over it, divided by ν.

        Args:
            distances: Squared distances to the centre, (B,).
        """
        if self.objective == "one_class":
            return distances.mean()
        squared_radius = self.radius.square()
        return squared_radius + (distances - squared_radius).clamp(min=0).mean() / self.nu

    def fit_radius(self, distances: Tensor) -> None:
        """Take the 1 − ν quantile of the distances as radius; squared distances, (B,)."""
        self.radius = torch.quantile(distances.detach().float().sqrt(), 1 - self.nu)

    def fit_centre(self, codes: Tensor) -> None:
        """Take the mean code as centre, coordinates nearer to 0 than 0.1 moved away to it; exact zeros stay.

        Args:
            codes: Of all training films in evaluation mode, (n, 128).
        """
        mean = codes.mean(dim=0)
        self.centre = torch.where(mean.abs() < LEAST_COORDINATE, LEAST_COORDINATE * mean.sign(), mean)

    @staticmethod
    def refuse_collapse(distances: Tensor) -> None:
        """Refuse a network that maps every film to one point.

        Args:
            distances: Squared distances of the training films to the centre, (n,).

        Raises:
            RuntimeError: If their variance is below 1e-12.
        """
        if len(distances) > 1 and float(distances.double().var()) < _COLLAPSED:
            msg = (
                "DeepSVDD has collapsed, for its network maps all training films to one point: lower learning_rate, "
                "train for fewer steps, or pre-train for more (pretraining_steps)."
            )
            raise RuntimeError(msg)

    # ------------------------------------------------------------------ scores

    def distances(self, codes: Tensor) -> Tensor:
        """Squared distances (B,) of codes (B, 128) to the centre."""
        return (codes - self.centre).square().sum(dim=1)

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            ``pred_score`` (B,), the squared distance to the centre, with a soft boundary less the squared radius;
            ``anomaly_map`` (B, 1, H, W), the squared difference of the last feature map from its mean over normal
            training films, mean over channels, enlarged (ours). Higher is more abnormal.
        """
        maps = self.encoder.maps(self.normalised(images))
        score = self.distances(self.encoder.code(maps.flatten(1)))
        if self.objective == "soft_boundary":
            score = score - self.radius.square()
        different = self.normal_map(maps).square().mean(dim=1, keepdim=True)
        anomaly_map = F.interpolate(different, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return InferenceBatch(pred_score=score, anomaly_map=anomaly_map)

"""PoissonInterpolation's network and score: what is exported."""

from collections.abc import Sequence

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_cxr.models.poisson_interpolation.networks import LightNetwork, WideResidualNetwork

#: Name of PII's own network; other names are timm's.
PUBLISHED = "wide_residual"
#: Added to the variance, so that a film of one grey value stays one.
_LEAST_VARIANCE = 1e-8


class PoissonInterpolationModel(nn.Module):
    """Predicts at each pixel by what share another image was blended in: that is the map, and its mean the score.

    Args:
        backbone: ``"wide_residual"``, PII's own network, or any timm model with feature maps or tokens.
        pre_trained: Start from timm's weights.
        layers: Levels of a timm model that are read, 0 the finest.
        image_size: Height and width of the images.

    Raises:
        ValueError: If the network is unknown, has no such levels, cannot be pretrained or cannot take the size.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        pre_trained: bool = False,
        layers: Sequence[int] = (1, 2, 3),
        image_size: tuple[int, int] = (128, 128),
    ) -> None:
        super().__init__()
        if backbone == PUBLISHED:
            _require(not pre_trained, f"There are no weights for backbone={PUBLISHED}: leave pre_trained out.")
            stride = WideResidualNetwork.stride
            _require(
                not any(side % stride for side in image_size),
                f"backbone={PUBLISHED} wants an image_size that is a multiple of {stride}, not {image_size[0]}.",
            )
            self.network: nn.Module = WideResidualNetwork()
        else:
            self.network = LightNetwork(backbone, pre_trained, layers, image_size=image_size)

    @staticmethod
    def standardise(images: Tensor) -> Tensor:
        """Grey images (B, 1, H, W) of mean 0 and standard deviation 1, each by itself.

        Args:
            images: (B, 3 or 1, H, W), of any range.
        """
        centred = images.mean(dim=1, keepdim=True)
        centred = centred - centred.mean(dim=(2, 3), keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(dim=(2, 3), keepdim=True) + _LEAST_VARIANCE)

    def logits(self, standardised: Tensor) -> Tensor:
        """Log odds of α at each pixel, (B, 1, H, W), of standardised images (B, 1, H, W)."""
        return self.network(standardised)

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images: (B, 3 or 1, H, W) in [0, 1].

        Returns:
            ``anomaly_map`` (B, 1, H, W), the predicted share in [0, 1], and ``pred_score`` (B,), its mean.
        """
        shares = self.logits(self.standardise(images)).sigmoid()
        return InferenceBatch(pred_score=shares.mean(dim=(1, 2, 3)), anomaly_map=shares)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)

"""Networks from an image to a map of its size: any timm encoder with a light decoder, and PII's own."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cxr.models.components.patch_encoder import PatchEncoder

#: Share of pixels that a network takes for interpolated before it has learnt anything: about as many as are.
_FIRST_GUESS = 0.03


class LightNetwork(nn.Module):
    """A timm encoder and a light decoder (ours).

    The decoder brings some levels of the encoder to one width, adds them up from the coarsest to the finest, as a
    feature pyramid does (Lin et al., CVPR 2017), and reads the map off the finest, which is then enlarged. What comes
    after the coarsest level is cut off.

    Args:
        backbone: Name of any timm model that has feature maps or tokens.
        pre_trained: Whether to start from timm's weights.
        layers: Levels of the encoder that the decoder reads, 0 the finest.
        width: Channels of the decoder.
        image_size: Height and width of the images, see
            :class:`~anomalib_cxr.models.components.patch_encoder.PatchEncoder`.

    Raises:
        ValueError: If timm does not know the model, or has no such levels.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        pre_trained: bool = False,
        layers: Sequence[int] = (1, 2, 3),
        width: int = 64,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        # Images come standardised: nothing is left to normalise.
        self.encoder = PatchEncoder(
            backbone, pre_trained=pre_trained, layers=layers, mean=0.0, std=1.0, image_size=image_size
        )
        self.encoder.model.prune_intermediate_layers(self.encoder.layers, prune_norm=True)  # what no level is made of
        self.lateral = nn.ModuleList(nn.Conv2d(size, width, 1, bias=False) for size in self.encoder.level_features)
        self.read = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 1, 1),
        )
        last: Any = self.read[-1]
        nn.init.constant_(last.bias, math.log(_FIRST_GUESS / (1 - _FIRST_GUESS)))

    def forward(self, images: Tensor) -> Tensor:
        """Map of each image, (B, 1, H, W), of standardised images (B, 1, H, W)."""
        coarser: Tensor | None = None
        for level, lateral in reversed(list(zip(self.encoder.levels(images), self.lateral, strict=True))):
            here = lateral(level)
            coarser = here if coarser is None else here + _enlarged(coarser, here.shape[-2:])
        return _enlarged(self.read(coarser), images.shape[-2:])


class WideResidualNetwork(nn.Module):
    """PII's network: a wide residual encoder and decoder without skips between them (Tan et al. 2021).

    A 3 × 3 convolution to 16 channels, then one pre-activation block a stage: 64 channels at full size, 128, 256, 256
    and 256, each at half the size of the one before; then 128, 64, 16 and 1, each at twice. No layer has a bias; He's
    initialisation.

    Args:
        factor: Width factor; 4 is published.
    """

    #: By how much sides are shrunk.
    stride = 16

    def __init__(self, factor: int = 4) -> None:
        super().__init__()
        widths = (16, 16 * factor, 32 * factor, 64 * factor, 64 * factor, 64 * factor)
        self.first = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.encoder = _blocks(widths, ["same"] + ["down"] * 4)
        self.decoder = _blocks((widths[-1], 32 * factor, 16 * factor, 16, 1), ["up"] * 4)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map of each image, (B, 1, H, W), of standardised images (B, 1, H, W); sides are multiples of 16."""
        return self.decoder(self.encoder(self.first(images)))


class WideBlock(nn.Module):
    """Pre-activation residual block: norm, ReLU, 3 × 3 convolution, twice, and a 1 × 1 convolution around them.

    Args:
        width_in: Channels that come.
        width_out: Channels that go.
        scale: ``"same"`` size; ``"down"``, half of it by stride; ``"up"``, twice by repeated pixels after the first
            convolution.
    """

    def __init__(self, width_in: int, width_out: int, scale: str) -> None:
        super().__init__()
        stride = 2 if scale == "down" else 1
        larger: nn.Module = nn.Upsample(scale_factor=2) if scale == "up" else nn.Identity()
        self.activate = nn.Sequential(nn.BatchNorm2d(width_in), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(width_in, width_out, 3, stride, padding=1, bias=False),
            larger,
            nn.BatchNorm2d(width_out),
            nn.ReLU(),
            nn.Conv2d(width_out, width_out, 3, padding=1, bias=False),
        )
        self.around = nn.Sequential(nn.Conv2d(width_in, width_out, 1, stride, bias=False), larger)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width_out, h, w) of features (B, width_in, H, W)."""
        active = self.activate(features)
        return self.residual(active) + self.around(active)


def _blocks(widths: Sequence[int], scales: Sequence[str]) -> nn.Sequential:
    return nn.Sequential(*(WideBlock(a, b, scale) for a, b, scale in zip(widths[:-1], widths[1:], scales, strict=True)))


def _enlarged(features: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)

"""pix2pixHD's global generator in two halves, between which a bottleneck fits."""

import torch
from torch import Tensor, nn

from anomalib_cxr.models.components.reconstruction.convolutional import HALVINGS


class GlobalEncoder(nn.Sequential):
    """First half of the global generator (Wang et al., CVPR 2018, "pix2pixHD").

    Reflection, convolution 7 × 7, then four of stride 2 that double the channels, then residual blocks; instance
    normalisation without parameters. The whole generator has nine blocks and nothing between them: it copies whatever
    it sees. Kim et al. (Sci. Rep. 2023) name a latent vector and do not say where; here (ours) it stands after the
    first four.

    Args:
        width: n, channels of the first convolution; 64 as published.
        blocks: Residual blocks.
    """

    def __init__(self, width: int = 64, blocks: int = 4) -> None:
        self.channels = width * 2**HALVINGS
        super().__init__(nn.ReflectionPad2d(3), *_normed(nn.Conv2d(1, width, 7)))
        for level in range(HALVINGS):
            before = width * 2**level
            self.extend(_normed(nn.Conv2d(before, 2 * before, 3, stride=2, padding=1)))
        self.extend(ResidualBlock(self.channels) for _ in range(blocks))
        self.apply(_start)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) to (B, 16 n, H / 16, W / 16)."""
        return super().forward(images)


class GlobalDecoder(nn.Module):
    """Second half: residual blocks, four transposed convolutions that halve the channels, convolution 7 × 7, tanh.

    Args:
        width: n of the encoder.
        out_channels: Channels of what is made; the hyperbolic tangent is the image's, the first.
        blocks: Residual blocks.
    """

    def __init__(self, width: int = 64, out_channels: int = 1, blocks: int = 5) -> None:
        super().__init__()
        channels = width * 2**HALVINGS
        self.layers = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        for level in range(HALVINGS, 0, -1):
            before = width * 2**level
            enlarge = nn.ConvTranspose2d(before, before // 2, 3, stride=2, padding=1, output_padding=1)
            self.layers.extend(_normed(enlarge))
        self.layers.extend([nn.ReflectionPad2d(3), nn.Conv2d(width, out_channels, 7)])
        self.apply(_start)

    def forward(self, features: Tensor) -> Tensor:
        """(B, 16 n, h, w) to (B, out_channels, 16 h, 16 w)."""
        made = self.layers(features)
        return torch.cat([made[:, :1].tanh(), made[:, 1:]], dim=1)


class ResidualBlock(nn.Module):
    """Two convolutions 3 × 3 after reflection, added to what came in.

    Args:
        channels: Channels in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1),
            *_normed(nn.Conv2d(channels, channels, 3)),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        return features + self.layers(features)


def _normed(convolution: nn.Conv2d | nn.ConvTranspose2d) -> tuple[nn.Module, ...]:
    return convolution, nn.InstanceNorm2d(convolution.out_channels), nn.ReLU(inplace=True)


def _start(layer: nn.Module) -> None:
    """Weights as published, N(0, 0.02)."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, std=0.02)

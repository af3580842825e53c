"""U-Net of the denoising autoencoder."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cxr.models.components.reconstruction.reconstructor import Reconstruction


class UNet(nn.Module):
    """U-Net of Kascenas et al. (MIDL 2022), whose skips let pass what noise keeps it from copying.

    Each level has two of: convolution 3 × 3 of standardised weights after reflection, Swish, group normalisation.
    Levels are halved by averages, doubled by transposed convolutions 2 × 2, and joined by concatenation.

    Args:
        width: Channels of the first level, doubled at each further one.
        depth: Halvings.
        out_channels: Channels of what is made.
    """

    def __init__(self, width: int = 64, depth: int = 4, out_channels: int = 1) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(_level(before, after) for before, after in zip([1, *widths], widths, strict=False))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(2 * after, after, 2, stride=2) for after in widths[:-1])
        self.up = nn.ModuleList(_level(2 * after, after) for after in widths[:-1])
        self.last = nn.Conv2d(width, out_channels, 1)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Reconstruction:
        """Make images (B, out_channels, H, W) of images (B, 1, H, W); there is no code."""
        del generator
        features = images
        kept: list[Tensor] = []
        for level in self.down:
            features = level(F.avg_pool2d(features, 2) if kept else features)
            kept.append(features)
        kept.pop()
        for enlarge, level, skipped in zip(self.enlarge[::-1], self.up[::-1], kept[::-1], strict=True):
            features = level(torch.cat([skipped, enlarge(features)], dim=1))
        return Reconstruction(self.last(features), None, {})


class StandardisedConv(nn.Conv2d):
    """Convolution whose filters have mean 0 and deviation 1 (Qiao et al. 2019, arXiv 1903.10520)."""

    def forward(self, features: Tensor) -> Tensor:
        """As ``nn.Conv2d``."""
        centred = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        weight = centred / (self.weight.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
        return self._conv_forward(features, weight, self.bias)


def middle_divisor(number: int) -> int:
    """The middle one of the divisors of a number, the greater of two: 8 of 64, 16 of 128 and of 256."""
    divisors = [part for part in range(1, number + 1) if number % part == 0]
    return divisors[len(divisors) // 2]


def _level(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        *(
            layer
            for channels in (before, after)
            for layer in (
                StandardisedConv(channels, after, 3, padding=1, padding_mode="reflect"),
                nn.SiLU(),
                nn.GroupNorm(middle_divisor(after), after),
            )
        )
    )

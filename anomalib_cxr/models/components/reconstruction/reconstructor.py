"""An encoder, a bottleneck and a decoder, and what they give."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Reconstruction(NamedTuple):
    """What a network makes of images.

    Attributes:
        made: (B, channels, H, W), the image and what else its error asks for.
        code: What it passed through, or None where it did not pass through a code.
        penalties: What training adds to the loss, weighted, by name.
    """

    made: Tensor
    code: Tensor | None
    penalties: dict[str, Tensor]


class Reconstructor(nn.Module):
    """Encoder, bottleneck, decoder: any of this room's.

    Args:
        encoder: Images (B, 1, H, W) to features (B, C, h, w).
        bottleneck: Features to :class:`~anomalib_cxr.models.components.reconstruction.bottlenecks.Coded`.
        decoder: Features to (B, channels, H, W).
    """

    def __init__(self, encoder: nn.Module, bottleneck: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.bottleneck = bottleneck
        self.decoder = decoder

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Reconstruction:
        """Make images anew.

        Args:
            images: (B, 1, H, W) on [−1, 1].
            generator: On the CPU, for what is drawn in training; None draws nothing.
        """
        features, code, penalties = self.bottleneck(self.encoder(images), generator)
        return Reconstruction(self.decoder(features), code, penalties)

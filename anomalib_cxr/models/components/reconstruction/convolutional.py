"""A stack of strided convolutions that shrinks images to a sixteenth, and its mirror."""

from itertools import pairwise

from torch import Tensor, nn

#: Halvings between an image and its smallest feature map.
HALVINGS = 4


def check_side(side: int) -> None:
    """Refuse images that cannot be halved four times down to two cells or more.

    Raises:
        ValueError: Naming the nearest side that can.
    """
    factor = 2**HALVINGS
    if side < 2 * factor or side % factor:
        near = max(2 * factor, round(side / factor) * factor)
        msg = f"image_size must be a multiple of {factor}, {2 * factor} or more, not {side}: take {near}."
        raise ValueError(msg)


class ConvEncoder(nn.Sequential):
    """Four strided convolutions.

    The encoder of Cai et al., "MedIAnomaly" (Medical Image Analysis 2025, arXiv 2404.04518): convolutions 4 × 4 of
    stride 2 without bias, batch normalisation and ReLU; widths w, 2w, 4w, 4w.

    Args:
        width: w, 1 or more.
        in_channels: Channels of the images.
    """

    def __init__(self, width: int = 16, in_channels: int = 1) -> None:
        self.channels = 4 * width
        super().__init__()
        for before, after in pairwise((in_channels, width, 2 * width, 4 * width, 4 * width)):
            self.append(nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False))
            self.append(nn.BatchNorm2d(after))
            self.append(nn.ReLU(inplace=True))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 4w, H / 16, W / 16)."""
        return super().forward(images)


class ConvDecoder(nn.Sequential):
    """Four transposed convolutions, the mirror of :class:`ConvEncoder`; the last one has no activation.

    Args:
        width: w of the encoder.
        out_channels: Channels of what is made.
    """

    def __init__(self, width: int = 16, out_channels: int = 1) -> None:
        super().__init__()
        widths = (4 * width, 4 * width, 2 * width, width, out_channels)
        for number, (before, after) in enumerate(pairwise(widths), start=1):
            self.append(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False))
            if number < HALVINGS:
                self.append(nn.BatchNorm2d(after))
                self.append(nn.ReLU(inplace=True))

    def forward(self, features: Tensor) -> Tensor:
        """(B, 4w, h, w) to (B, out_channels, 16 h, 16 w)."""
        return super().forward(features)

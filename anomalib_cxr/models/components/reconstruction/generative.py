"""Between images and codes without a bottleneck's hidden layer: a coder, a generator and a critic of images (ours).

Stacks of strided convolutions in the manner of DCGAN (Radford et al. 2016), at the widths of
:class:`~anomalib_cxr.models.components.reconstruction.convolutional.ConvEncoder`, for detectors whose papers leave the
networks open, or whose own are too large for a CPU.
"""

from itertools import pairwise

from torch import Tensor, nn

from anomalib_cxr.models.components.reconstruction.convolutional import HALVINGS, ConvDecoder, ConvEncoder


class ConvCoder(nn.Sequential):
    """Four strided convolutions and a linear layer: images (B, 1, H, W) to codes (B, d).

    Args:
        image_size: H and W, a multiple of 16.
        width: Channels of the first layer.
        latent: d, 1 or more.
    """

    def __init__(self, image_size: int, width: int = 16, latent: int = 128) -> None:
        encoder = ConvEncoder(width)
        cells = image_size // 2**HALVINGS
        super().__init__(encoder, nn.Flatten(), nn.Linear(encoder.channels * cells**2, latent))


class ConvGenerator(nn.Sequential):
    """Its mirror, with a tanh at the end: codes (B, d) to images (B, 1, H, W) on [−1, 1]; arguments are the same."""

    def __init__(self, image_size: int, width: int = 16, latent: int = 128) -> None:
        cells = image_size // 2**HALVINGS
        channels = 4 * width
        super().__init__(
            nn.Linear(latent, channels * cells**2, bias=False),
            nn.Unflatten(1, (channels, cells, cells)),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            ConvDecoder(width),
            nn.Tanh(),
        )


class ConvCritic(nn.Module):
    """Four strided convolutions, LeakyReLU and a linear layer: what a critic thinks of images.

    Normalised by layer (all channels and places of one image together) after all convolutions but the first: its
    answer to an image does not depend on the others of the batch.

    Args:
        image_size: H and W, a multiple of 16.
        width: Channels of the first layer.
    """

    def __init__(self, image_size: int, width: int = 16) -> None:
        super().__init__()
        self.convolutions = nn.Sequential()
        for number, (before, after) in enumerate(pairwise((1, width, 2 * width, 4 * width, 4 * width))):
            self.convolutions.append(nn.Conv2d(before, after, 4, stride=2, padding=1))
            if number:
                self.convolutions.append(nn.GroupNorm(1, after))
            self.convolutions.append(nn.LeakyReLU(0.2, inplace=True))
        self.answer = nn.Linear(4 * width * (image_size // 2**HALVINGS) ** 2, 1)

    def features(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) on [−1, 1] to (B, n): what the answer is made of."""
        return self.convolutions(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) on [−1, 1] to (B,): higher is more real."""
        return self.answer(self.features(images)).flatten()

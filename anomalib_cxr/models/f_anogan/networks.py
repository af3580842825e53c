"""The residual networks of f-AnoGAN, which are those of Gulrajani et al. (2017) for images of 64²."""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

from anomalib_cxr.models.components.reconstruction.convolutional import HALVINGS

Norm = Callable[[int], nn.Module]


class ResidualTrunk(nn.Sequential):
    """A convolution and four residual blocks that halve the image, flat at the end; no activation after the last.

    Args:
        width: Channels c of the first layer; those of the blocks are 2c, 4c, 8c and 8c.
        norm: Normalisation of so many channels.
    """

    def __init__(self, width: int, norm: Norm) -> None:
        widths = (width, 2 * width, 4 * width, 8 * width, 8 * width)
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1),
            *(_HalvingBlock(before, after, norm) for before, after in pairwise(widths)),
            nn.Flatten(),
        )


class ResidualCoder(nn.Sequential):
    """Images (B, 1, H, W) to codes (B, d): the trunk, normalised over the batch, and a linear layer.

    Args:
        image_size: H and W, a multiple of 16.
        width: Channels of the first layer.
        latent: d, 1 or more.
    """

    def __init__(self, image_size: int, width: int = 64, latent: int = 128) -> None:
        super().__init__(
            ResidualTrunk(width, nn.BatchNorm2d), nn.Linear(8 * width * (image_size // 2**HALVINGS) ** 2, latent)
        )


class ResidualCritic(nn.Module):
    """What a critic thinks of images: the trunk, normalised by layer, and a linear layer.

    Args:
        image_size: H and W, a multiple of 16.
        width: Channels of the first layer.
    """

    def __init__(self, image_size: int, width: int = 64) -> None:
        super().__init__()
        self.trunk = ResidualTrunk(width, lambda channels: nn.GroupNorm(1, channels))
        self.answer = nn.Linear(8 * width * (image_size // 2**HALVINGS) ** 2, 1)

    def features(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) on [−1, 1] to (B, n): what the answer is made of."""
        return self.trunk(images)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) on [−1, 1] to (B,): higher is more real."""
        return self.answer(self.features(images)).flatten()


class ResidualGenerator(nn.Sequential):
    """Codes (B, d) to images (B, 1, H, W) on [−1, 1]: a linear layer and four residual blocks that double.

    Args:
        image_size: H and W, a multiple of 16.
        width: Channels before the last layer.
        latent: d, 1 or more.
    """

    def __init__(self, image_size: int, width: int = 64, latent: int = 128) -> None:
        cells = image_size // 2**HALVINGS
        widths = (8 * width, 8 * width, 4 * width, 2 * width, width)
        super().__init__(
            nn.Linear(latent, widths[0] * cells**2),
            nn.Unflatten(1, (widths[0], cells, cells)),
            *(_DoublingBlock(before, after) for before, after in pairwise(widths)),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 1, 3, padding=1),
            nn.Tanh(),
        )


class _Residual(nn.Module):
    """Body and shortcut, added; the body's convolutions start as in He et al. 2015."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        for layer in body.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, features: Tensor) -> Tensor:
        return self.body(features) + self.shortcut(features)


class _HalvingBlock(_Residual):
    def __init__(self, before: int, after: int, norm: Norm) -> None:
        super().__init__(
            nn.Sequential(
                norm(before),
                nn.ReLU(inplace=True),
                nn.Conv2d(before, before, 3, padding=1, bias=False),
                norm(before),
                nn.ReLU(inplace=True),
                nn.Conv2d(before, after, 3, padding=1),
                nn.AvgPool2d(2),
            ),
            nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(before, after, 1)),
        )


class _DoublingBlock(_Residual):
    def __init__(self, before: int, after: int) -> None:
        super().__init__(
            nn.Sequential(
                nn.BatchNorm2d(before),
                nn.ReLU(inplace=True),
                nn.Upsample(scale_factor=2),
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
                nn.Conv2d(after, after, 3, padding=1),
            ),
            # Published the other way round, which gives the same at four times the work.
            nn.Sequential(nn.Conv2d(before, after, 1), nn.Upsample(scale_factor=2)),
        )

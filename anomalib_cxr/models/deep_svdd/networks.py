"""Deep SVDD's networks: a LeNet without biases, and a decoder to pre-train it with."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

#: Channels after each block of the encoder, and numbers of the code.
WIDTHS, CODE = (32, 64, 128), 128
#: By how much the encoder shrinks sides, and the side of the decoder's first map.
REDUCTION, FIRST = 2 ** len(WIDTHS), 4
#: Added to variances by the batch normalisations.
_EPSILON = 1e-4


class Encoder(nn.Module):
    """Ruff et al.'s LeNet for CIFAR-10: three blocks and a linear layer to 128 numbers.

    A block is a 5 × 5 convolution, batch normalisation, leaky ReLU and the largest of 2 × 2. Nothing has a bias or a
    learnt scale, and nothing is bounded: otherwise the network could map every film to the centre.

    Args:
        image_size: Height and width of the images, multiples of 8.
    """

    def __init__(self, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.blocks = nn.Sequential()
        for before, after in pairwise((1, *WIDTHS)):
            self.blocks.append(nn.Conv2d(before, after, 5, padding=2, bias=False))
            self.blocks.append(nn.BatchNorm2d(after, eps=_EPSILON, affine=False))
            self.blocks.append(nn.LeakyReLU(0.01))
            self.blocks.append(nn.MaxPool2d(2))
        cells = (image_size[0] // REDUCTION) * (image_size[1] // REDUCTION)
        self.code = nn.Linear(cells * WIDTHS[-1], CODE, bias=False)

    def maps(self, images: Tensor) -> Tensor:
        """Last feature map (B, 128, H / 8, W / 8) of images (B, 1, H, W)."""
        return self.blocks(images)

    def forward(self, images: Tensor) -> Tensor:
        """Codes (B, 128) of images (B, 1, H, W)."""
        return self.code(self.maps(images).flatten(1))


class Decoder(nn.Module):
    """From codes to images in [0, 1]: a mirror of the encoder, for pre-training alone.

    The code, normalised, is a map of 4 × 4. Transposed 5 × 5 convolutions follow, each after leaky ReLU and an
    enlargement by repeated pixels, which doubles sides at 32² and more at first for larger images (ours).

    Args:
        image_size: Height and width of the images, multiples of 8.
    """

    def __init__(self, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.sizes = [(image_size[0] // part, image_size[1] // part) for part in (4, 2, 1)]
        self.code_norm = nn.BatchNorm1d(CODE, eps=_EPSILON, affine=False)
        self.layers = nn.ModuleList()
        self.norms = nn.ModuleList()
        for before, after in pairwise((CODE // FIRST**2, *WIDTHS[::-1])):
            self.layers.append(nn.ConvTranspose2d(before, after, 5, padding=2, bias=False))
            self.norms.append(nn.BatchNorm2d(after, eps=_EPSILON, affine=False))
        self.last = nn.ConvTranspose2d(WIDTHS[0], 1, 5, padding=2, bias=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Images (B, 1, H, W) in [0, 1] of codes (B, 128)."""
        maps = F.leaky_relu(self.code_norm(codes).unflatten(1, (-1, FIRST, FIRST)))
        for layer, norm, size in zip(self.layers, self.norms, self.sizes, strict=True):
            maps = F.interpolate(F.leaky_relu(norm(layer(maps))), size=size)
        return self.last(maps).sigmoid()

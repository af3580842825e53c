"""Encoders of patches of 32 and of 64 pixels, applied to whole images at once."""

from itertools import pairwise

from torch import Tensor, nn

#: Sides of patches, in pixels.
SMALL, LARGE = 32, 64

#: Length of a code.
CODE = 64

#: Pixels between neighbouring patches of the maps.
STEP = 2

#: Of the rectifiers, below zero.
SLOPE = 0.1

#: Channels of the layers but the last, by the first one's.
_WIDER = (1, 2, 4, 4, 2, 1, 1)


class SmallEncoder(nn.Sequential):
    """Eight convolutions without padding that turn 32² pixels into a code (Yi and Yoon, ACCV 2020, arXiv 2006.16067).

    3 × 3, the first one of stride 2, LeakyReLU of slope 0.1 between them and tanh at the end. Without padding and
    without normalisation a code depends on its own patch alone, so of a larger image come the codes of all patches
    whose corners lie at even pixels.

    Args:
        width: Channels of the first layer, 32 as published.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (1, *(width * times for times in _WIDER), CODE)
        for number, (before, after) in enumerate(pairwise(widths), start=1):
            self.append(nn.Conv2d(before, after, 3, stride=STEP if number == 1 else 1))
            self.append(nn.LeakyReLU(SLOPE) if number < len(widths) - 1 else nn.Tanh())

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) to (B, 64, (H − 32) // 2 + 1, (W − 32) // 2 + 1)."""
        return super().forward(images)


class LargeEncoder(nn.Sequential):
    """Joins the codes of a patch's four quarters, each by the small encoder, to one of 64² pixels (the same paper).

    A 2 × 2 convolution, LeakyReLU, a 1 × 1 convolution, tanh. On a map of small codes, quarters lie 16 places apart.
    """

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(CODE, 2 * CODE, 2, dilation=(LARGE - SMALL) // STEP),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(2 * CODE, CODE, 1),
            nn.Tanh(),
        )

    def forward(self, codes: Tensor) -> Tensor:
        """(B, 64, h, w) of the small encoder to (B, 64, h − 16, w − 16)."""
        return super().forward(codes)


class PatchEncoders(nn.Module):
    """Codes of patches of both sizes; the small encoder serves both.

    Args:
        large: Whether there is an encoder of 64 pixels.
        width: Of the small one.
    """

    def __init__(self, large: bool = True, width: int = 32) -> None:
        super().__init__()
        self.small = SmallEncoder(width)
        self.large = LargeEncoder() if large else None
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                # By He et al. (ICCV 2015), ours: eight layers of torch's own shrink what tells patches apart to a
                # thousandth, and hundreds of steps pass before any direction is told.
                nn.init.kaiming_normal_(layer.weight, a=SLOPE)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor, size: int) -> Tensor:
        """Codes of all patches of a size whose corners lie at even pixels.

        Args:
            images: (B, 1, H, W), patches themselves or what they are cut from.
            size: 32 or 64.

        Returns:
            (B, 64, (H − size) // 2 + 1, (W − size) // 2 + 1), in (−1, 1).
        """
        codes = self.small(images)
        return codes if size == SMALL or self.large is None else self.large(codes)

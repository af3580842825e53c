"""Three convolutions, of which two are a residual: what encoder and decoders are made of."""

from torch import Tensor, nn


class TripleConv(nn.Module):
    """Convolution, batch normalisation, ReLU; then two more around which the first one's result is led (SQUID).

    Args:
        before: Channels of what comes in.
        after: Channels of what goes out.
        stride: Of the first convolution.
    """

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Sequential(*_normed(before, after, stride), nn.ReLU(inplace=True))
        self.residual = nn.Sequential(*_normed(after, after), nn.ReLU(inplace=True), *_normed(after, after))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H / stride, W / stride)."""
        first = self.first(maps)
        return (first + self.residual(first)).relu()


def _normed(before: int, after: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(after)

"""Tells films from what is made of them; its answer is the score."""

from torch import Tensor, nn
from torch.nn import functional as F

#: Channels of its convolutions; of a film that is too small for all of them, the first ones.
_WIDTHS = (16, 32, 64, 128, 128)
#: Cells that are left along a side, at least.
_LEAST_CELLS = 4


class FilmNorm(nn.BatchNorm2d):
    """Batch normalisation in training; at test each film by its own mean and deviation (SQUID).

    The published discriminator never leaves training mode and is given one film at a time, which is instance
    normalisation with the scale and shift that were trained for batches. Here it is written as such: a film's score
    does not depend on what else is in its batch. There are no running statistics, so films and reconstructions do not
    mix theirs.

    Args:
        channels: Channels of the maps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, track_running_stats=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        if self.training:
            return super().forward(maps)
        return F.instance_norm(maps, weight=self.weight, bias=self.bias, use_input_stats=True, eps=self.eps)


class Discriminator(nn.Module):
    """Up to five convolutions of stride 2, and a linear layer.

    Films below 128² have fewer of them (ours), so that 4 × 4 cells or more remain: those of a single cell would all be
    normalised to the same.

    Args:
        side: Height and width of films, 8 or more.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        before = 1
        for after in _WIDTHS:
            if side < 2 * _LEAST_CELLS:
                break
            first = before == 1
            self.layers.append(nn.Conv2d(before, after, 5, stride=2, padding=2, bias=first))
            if not first:
                self.layers.append(FilmNorm(after))
            self.layers.append(nn.LeakyReLU(0.2))
            before, side = after, -(-side // 2)
        self.last = nn.Linear(before * side**2, 1)

    def forward(self, films: Tensor) -> Tensor:
        """Films (B, 1, side, side) in [0, 1] to logits (B,), higher for those that look real."""
        return self.last(self.layers(films).flatten(1)).squeeze(1)

"""SQUID's encoder, which sees one window of a film."""

from itertools import pairwise

from torch import Tensor, nn

from anomalib_cxr.models.squid.convolutions import TripleConv

#: Halvings between a window and its smallest map.
HALVINGS = 4


class WindowEncoder(nn.Module):
    """Four halvings, each of which doubles the channels.

    Args:
        width: w, channels of the first map.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(HALVINGS + 1)]
        self.start = TripleConv(1, width)
        self.down = nn.ModuleList(TripleConv(before, after, stride=2) for before, after in pairwise(widths))

    def forward(self, windows: Tensor) -> list[Tensor]:
        """Windows (N, 1, h, w) to five maps, from (N, w, h, w) to (N, 16 w, h / 16, w / 16)."""
        maps = [self.start(windows)]
        for down in self.down:
            maps.append(down(maps[-1]))
        return maps

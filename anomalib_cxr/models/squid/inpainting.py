"""The block that makes a window's features from what its neighbours remember."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cxr.models.squid.memory_queue import MemoryQueue
from anomalib_cxr.models.squid.shortcut import masked_shortcut

#: What the channels are divided by before a window is one vector, and that vector inside the feed-forward layers.
_REDUCED = 4
#: Heads of the attention.
HEADS = 8


class InPainting(nn.Module):
    """Replaces a window's features by normal ones, which fit to its neighbours (SQUID's in-painting block).

    Each window asks the queue of its place for normal features. The windows then attend to what their up to eight
    neighbours were told, each by its own features as they came in; outside the film there are zeros. What comes out
    knows its place by a binary number, from 1 on, which is concatenated.

    Args:
        channels: C of the maps, a multiple of 4.
        side: Their height and width; C / 4 · side² is a multiple of 8, the attention's heads.
        grid: Windows along each side of a film.
        slots: See :class:`~anomalib_cxr.models.squid.memory_queue.MemoryQueue`.
        top: See :func:`~anomalib_cxr.models.squid.sparse_reading.sparse_weights`.
        shortcut: Share of the places that pass by in training.
    """

    place_code: Tensor

    def __init__(self, channels: int, side: int, grid: int, slots: int, top: int, shortcut: float) -> None:
        super().__init__()
        self.grid = grid
        self.shortcut = shortcut
        reduced, places = channels // _REDUCED, grid**2
        length = reduced * side**2
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.queue = MemoryQueue(places, slots, length, top)
        self.attention = nn.MultiheadAttention(length, HEADS, batch_first=True)
        self.attention_norm = nn.LayerNorm(length)
        self.feed_forward = nn.Sequential(
            nn.Linear(length, length // _REDUCED), nn.ReLU(), nn.Linear(length // _REDUCED, length)
        )
        self.feed_forward_norm = nn.LayerNorm(length)
        bits = places.bit_length()
        code = torch.arange(1, places + 1)[:, None] >> torch.arange(bits) & 1
        self.register_buffer("place_code", code.float(), persistent=False)
        self.restore = nn.Sequential(
            nn.Conv2d(reduced + bits, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )

    def forward(self, bottom: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Make windows' features anew.

        Args:
            bottom: (B · grid², C, side, side), windows film by film.
            generator: On the CPU, for the places that pass by in training; None lets none.

        Returns:
            Features of the same shape, and what the queue may be given: (B, grid², C / 4 · side²).
        """
        reduced = self.reduce(bottom)
        features = reduced.reshape(-1, self.grid**2, reduced[0].numel())
        made = self.made(features, self.queue(features)).reshape(reduced.shape)
        code = self.place_code.expand(*features.shape[:2], -1).flatten(0, 1)[:, :, None, None]
        code = code.expand(-1, -1, *reduced.shape[2:])
        restored = self.restore(torch.cat([made, code.to(made)], dim=1))
        return masked_shortcut(bottom, restored, self.shortcut, generator), features

    def made(self, features: Tensor, remembered: Tensor) -> Tensor:
        """Windows' features from what was remembered at each place and around it.

        Args:
            features: (B, grid², d) as they came in.
            remembered: (B, grid², d) as the queue has them.

        Returns:
            (B · grid², d).
        """
        around = neighbours(remembered, self.grid).flatten(0, 1)
        asked, own = features.reshape(-1, 1, features.shape[-1]), remembered.flatten(0, 1)
        attended, _ = self.attention(asked, around, around, need_weights=False)
        fitted = self.attention_norm(attended[:, 0] + own).relu()
        return self.feed_forward_norm(fitted + self.feed_forward(fitted)).relu()


def neighbours(cells: Tensor, grid: int) -> Tensor:
    """The eight neighbours of each cell of a grid, row by row, with zeros outside.

    Args:
        cells: (B, grid², d), row by row.
        grid: Cells along each side.

    Returns:
        (B, grid², 8, d).
    """
    padded = F.pad(cells.reshape(-1, grid, grid, cells.shape[-1]), (0, 0, 1, 1, 1, 1))
    shifted = [
        padded[:, row : row + grid, col : col + grid] for row in range(3) for col in range(3) if (row, col) != (1, 1)
    ]
    return torch.stack(shifted, dim=3).flatten(1, 2)

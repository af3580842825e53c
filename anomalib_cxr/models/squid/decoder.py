"""SQUID's decoder: the student's, with memories, and the teacher's, without."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cxr.models.components.windows import join_windows
from anomalib_cxr.models.squid.convolutions import TripleConv
from anomalib_cxr.models.squid.encoder import HALVINGS

#: Steps that see windows; the others see the whole film.
WINDOW_STEPS = 2


class Decoded(NamedTuple):
    """What a decoder makes.

    Attributes:
        films: (B, 1, H, W) in (0, 1).
        levels: What each step hands on, the coarsest first: two of windows, two of films.
    """

    films: Tensor
    levels: list[Tensor]


class Decoder(nn.Module):
    """Four doublings; the first two join the encoder's maps, and windows are joined to films after them.

    Args:
        width: w of the encoder.
        grid: Windows along each side of a film.
        memories: What the maps of the first two steps pass through, each; empty for a decoder without.
    """

    def __init__(self, width: int, grid: int, memories: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.grid = grid
        self.steps = nn.ModuleList()
        for step in range(HALVINGS):
            after = width * 2 ** (HALVINGS - 1 - step)
            skipped = after if step < WINDOW_STEPS else 0
            self.steps.append(TripleConv(2 * after + skipped, after))
        self.memories = nn.ModuleList(memories)
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, bottom: Tensor, skipped: Sequence[Tensor], generator: torch.Generator | None = None) -> Decoded:
        """Make films.

        Args:
            bottom: (B · grid², 16 w, h, w), windows film by film.
            skipped: The encoder's maps of twice and four times that side, in this order.
            generator: On the CPU, for the places that pass a memory by in training; None lets none.
        """
        maps, levels = bottom, []
        for number, step in enumerate(self.steps):
            maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
            if number < WINDOW_STEPS:
                maps = torch.cat([maps, skipped[number]], dim=1)
            maps = step(maps)
            if number < len(self.memories):
                maps = self.memories[number](maps, generator)
            levels.append(maps)
            if number == WINDOW_STEPS - 1:
                maps = join_windows(maps, self.grid)
        return Decoded(self.last(maps).sigmoid(), levels)

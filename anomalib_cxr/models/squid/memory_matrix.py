"""Learnt patterns that a map is made of, quarter by quarter."""

import torch
from torch import Tensor, nn

from anomalib_cxr.models.components.windows import cut_windows, join_windows
from anomalib_cxr.models.squid.shortcut import masked_shortcut
from anomalib_cxr.models.squid.sparse_reading import first_slots, read

#: Parts along each side of a map.
_PARTS = 2


class MemoryMatrix(nn.Module):
    """Makes each quarter of a map from learnt ones of that quarter.

    Args:
        channels: C of the maps.
        side: Their height and width, an even number.
        slots: Patterns of each quarter.
        top: See :func:`~anomalib_cxr.models.squid.sparse_reading.sparse_weights`.
        shortcut: Share of the places that pass by in training.
    """

    def __init__(self, channels: int, side: int, slots: int, top: int, shortcut: float) -> None:
        super().__init__()
        self.top = top
        self.shortcut = shortcut
        self.slots = nn.Parameter(first_slots(_PARTS**2, slots, channels * (side // _PARTS) ** 2))

    def forward(self, maps: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Maps (N, C, side, side) to the same shape; the generator is for what passes by, None lets nothing."""
        quarters = cut_windows(maps, _PARTS)
        asked = quarters.reshape(-1, *self.slots.shape[::2])
        made = join_windows(read(asked, self.slots, self.top).reshape(quarters.shape), _PARTS)
        return masked_shortcut(maps, made.to(maps), self.shortcut, generator)

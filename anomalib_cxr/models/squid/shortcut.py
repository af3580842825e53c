"""Places that pass a memory by in training, so that what comes after learns from both."""

import torch
from torch import Tensor

from anomalib_cxr.devices import on_device


def masked_shortcut(before: Tensor, after: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Take some places as they were before (SQUID's "masked shortcut").

    Args:
        before: (N, C, h, w) before the memory.
        after: (N, C, h, w) after it.
        share: Probability that a place of a map is taken as it was, in all channels.
        generator: On the CPU; None takes all places as they are after it, as at test.
    """
    if generator is None:
        return after
    places = torch.rand(len(after), 1, *after.shape[2:], generator=generator) < share
    return torch.where(on_device(places, after.device), before, after)

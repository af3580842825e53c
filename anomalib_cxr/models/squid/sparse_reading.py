"""Reading a memory: a mixture of the few slots that are most like what is asked for."""

import torch
from torch import Tensor

#: So that nothing is divided by 0 where all slots are alike.
_TINY = 1e-12


def sparse_weights(likeness: Tensor, top: int) -> Tensor:
    """Softmax of which the highest remain, with the gradient of the whole (SQUID's shrinkage).

    The published code keeps what lies *above* the fifth highest, so of a top five, four remain. We do so too.

    Args:
        likeness: (…, slots).
        top: The rank from which on a weight is 0, 2 … slots.

    Returns:
        (…, slots), ``top - 1`` of them above 0, which add up to 1. The gradient is that of the softmax
        ("straight through"), so that a slot which is not read now may be later.
    """
    shares = likeness.softmax(dim=-1)
    kept = shares * (shares > shares.topk(top, dim=-1).values[..., -1:])
    return shares + (kept / kept.sum(dim=-1, keepdim=True).clamp(min=_TINY) - shares).detach()


def read(asked: Tensor, slots: Tensor, top: int) -> Tensor:
    """Read memories, each place its own.

    Args:
        asked: (N, places, d).
        slots: (places, slots, d).
        top: See :func:`sparse_weights`.

    Returns:
        (N, places, d), mixtures of slots by the dot product with what is asked.
    """
    weights = sparse_weights(asked.transpose(0, 1).float() @ slots.mT, top)
    return (weights @ slots).transpose(0, 1)


def first_slots(places: int, slots: int, length: int) -> Tensor:
    """Slots (places, slots, length) before anything was learnt: uniform in ± 1 / √length, as published."""
    return torch.empty(places, slots, length).uniform_(-1, 1) / length**0.5

"""What several processes hold, joined on each of them; on one process, and without a process group, what it holds."""

import os
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


def world_size() -> int:
    """Number of processes that train or test together; 1 where none were started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first_process() -> bool:
    """Whether this process is the first of those that run together, asked before they know each other.

    Returns:
        What the environment says that Lightning, torchrun or a cluster has set; True where none of them has.
    """
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return getattr(rank_zero_only, "rank", 0) == 0 and int(node) == 0


def gather_objects(value: T) -> list[T]:
    """Gather anything that can be pickled; all processes must call it.

    Args:
        value: This process's.

    Returns:
        That of each process, in order of rank.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather_ragged(rows: Tensor) -> Tensor:
    """Gather tensors of different lengths; all processes must call it.

    Args:
        rows: (n_rank, …) of this process; n_rank may be 0.

    Returns:
        (n, …) rows of all processes, one process after the other, on the device of ``rows``.
    """
    return torch.cat([share.to(rows.device) for share in gather_objects(rows.cpu())]) if world_size() > 1 else rows


def gather_in_order(rows: Tensor) -> Tensor:
    """Gather rows of a data set that is dealt out in turn; all processes must call it.

    Args:
        rows: (n_rank, …): items rank, rank + world_size, rank + 2 world_size … of the data set, none of them twice.

    Returns:
        (n, …) rows of all items in the order of the data set, on the device of ``rows``.
    """
    if world_size() == 1:
        return rows
    shares = gather_objects(rows.cpu())
    joined = rows.new_empty((sum(len(share) for share in shares), *rows.shape[1:]))
    for rank, share in enumerate(shares):
        joined[rank :: len(shares)] = share.to(rows)
    return joined


def order_without_repeats(names: Sequence[Sequence[Hashable]]) -> Iterable[tuple[int, int]]:
    """Order the items that processes took in turn; samplers pad the last shares with items that come twice.

    Args:
        names: What tells an item from others, for each process in order of rank, in the order that it took them.

    Yields:
        Rank and place of each item in the order of the data set, each once, where it came first.

    Examples:
        >>> list(order_without_repeats([["a", "c", "e"], ["b", "d", "a"]]))
        [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]
    """
    seen: set[Hashable] = set()
    for place in range(max(map(len, names), default=0)):
        for rank, share in enumerate(names):
            if place < len(share) and share[place] not in seen:
                seen.add(share[place])
                yield rank, place


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Concatenate tensors of one shape over processes, in order of rank; all processes must call it.

    Args:
        tensor: (n, …) of this process; n is the same on each.

    Returns:
        (n world_size, …). Its gradient is summed over processes, and each gets its own part.
    """
    return tensor if world_size() == 1 else _GatherWithGradient.apply(tensor)


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad: Tensor) -> Tensor:
        total = grad[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]

"""One way to show progress, wherever a run goes: a bar where a person looks on, else a line a minute."""

import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SECONDS = 60.0
_RANKS = ("LOCAL_RANK", "RANK", "SLURM_PROCID")


def progress(
    items: Iterable[T], description: str, total: int | None = None, unit: str = "image", shown: bool = True
) -> Iterator[T]:
    """Go through items, and show how far it is (ours).

    A terminal or a notebook gets a bar, which goes when it is full. Where another bar is live already (Lightning's,
    drawn by rich, which cannot share the screen), or nobody looks on (a log file, a pipe), a line is logged every
    minute. Worker processes and all but the first process of a distributed run show nothing.

    Args:
        items: What to go through.
        description: What is done to them.
        total: Their number; None takes their length.
        unit: What one of them is.
        shown: Whether to show anything.

    Yields:
        The items.

    Examples:
        >>> list(progress([1, 2], "Counting", shown=False))
        [1, 2]
    """
    if not shown or _is_helper():
        yield from items
    elif is_watched(sys.stderr) and not _is_another_live():
        yield from tqdm(items, description, total, unit=unit, leave=False)
    else:
        yield from _logged(items, description, total)


def _logged(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    known = len(items) if total is None and isinstance(items, Sized) else total
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= _SECONDS:
            last = now
            minutes = (now - start) / max(done, 1) * ((known or done) - done) / 60
            logger.info("%s: %d of %s, %.0f min left", description, done, known or "?", minutes)
        yield item


def _is_helper() -> bool:
    """Whether another process speaks for this one."""
    rank = next((os.environ[name] for name in _RANKS if name in os.environ), "0")
    return multiprocessing.parent_process() is not None or rank != "0"


def is_watched(stream: Any) -> bool:
    """Say whether somebody looks on.

    Args:
        stream: ``sys.stdout`` or ``sys.stderr``, which are None where there is no console.

    Returns:
        Whether the stream is a terminal or a notebook, not a file or a pipe.
    """
    return stream is not None and (stream.isatty() or type(stream).__module__.startswith("ipykernel"))


def _is_another_live() -> bool:
    """Whether rich draws a live display now: it puts a stand-in in place of the stream, or keeps its console busy."""
    rich = sys.modules.get("rich")
    console = getattr(rich, "_console", None)
    busy = getattr(console, "_live_stack", None) or getattr(console, "_live", None)
    return (
        bool(busy) or type(sys.stderr).__module__.startswith("rich") or type(sys.stdout).__module__.startswith("rich")
    )

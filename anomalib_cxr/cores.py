"""How many processor cores there are to use."""

import os


def available_cores() -> int:
    """Count the cores that this process may use: a batch system or container often grants fewer than there are.

    Returns:
        1 or more.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

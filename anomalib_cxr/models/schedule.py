"""Learning-rate schedule shared by the detectors."""

import math


def warmup_cosine(step: int, warmup_steps: int, max_steps: float) -> float:
    """Linear warm-up, then cosine decay to 0 (SimCLR, Chen et al. 2020, section 2.2).

    Args:
        step: Optimiser steps done.
        warmup_steps: Steps until the full rate; 0 starts with it.
        max_steps: Step at which the decay ends; ``math.inf`` keeps the full rate.

    Returns:
        Factor on the learning rate, in [0, 1].
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    span = max(1.0, max_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup_steps) / span)))

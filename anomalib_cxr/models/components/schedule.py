"""Schedule shared by the detectors: learning rate and validation interval."""

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


def validation_interval(max_steps: int, steps_per_epoch: int | None, default: int) -> int:
    """Optimiser steps between two validations, such that the last step is followed by one (ours).

    Otherwise bank and thresholds of the last weights would be those of earlier ones.

    Args:
        max_steps: Optimiser steps of the whole training; 0 where nothing is trained.
        steps_per_epoch: What the user gave, or None; more than ``max_steps`` counts as ``max_steps``.
        default: What to take where the user gave nothing. Where it does not divide ``max_steps``, the largest divisor
            below it is taken, or ``max_steps``, one validation at the end, where that is below a quarter of it.

    Returns:
        Divisor of ``max_steps``; 1 for a ``max_steps`` of 0.

    Raises:
        ValueError: If ``steps_per_epoch`` is below 1 or does not divide ``max_steps``.
    """
    if steps_per_epoch is not None and steps_per_epoch < 1:
        msg = f"steps_per_epoch must be at least 1, not {steps_per_epoch}."
        raise ValueError(msg)
    wanted = min(default if steps_per_epoch is None else steps_per_epoch, max_steps)
    if wanted < 1:
        return 1
    fitting = next(steps for steps in range(wanted, 0, -1) if max_steps % steps == 0)
    if 4 * fitting < wanted:
        fitting = max_steps
    if steps_per_epoch is not None and fitting != wanted:
        msg = (
            f"max_steps={max_steps} is no multiple of steps_per_epoch={steps_per_epoch}, so the last steps would never "
            f"be validated: take steps_per_epoch={fitting}."
        )
        raise ValueError(msg)
    return fitting

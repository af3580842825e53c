"""A training in stages, and which one a batch belongs to."""

from collections.abc import Sequence
from typing import NamedTuple


class Stage(NamedTuple):
    """One stage of a training.

    Attributes:
        name: For the log and for :meth:`~anomalib_cxr.models.components.step_training.StepTrainingMixin.training_loss`.
        steps: Optimiser steps, 1 or more.
    """

    name: str
    steps: int


def stage_at(stages: Sequence[Stage], step: int) -> int:
    """Index of the stage that an optimiser step belongs to.

    Args:
        stages: One or more.
        step: Steps done before it, 0 or more.

    Returns:
        Index into ``stages``; the last one for every step beyond its end.
    """
    for index, stage in enumerate(stages):
        if step < stage.steps:
            return index
        step -= stage.steps
    return len(stages) - 1

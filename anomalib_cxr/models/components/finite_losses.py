"""A training whose loss is no longer finite is stopped (ours)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class FiniteLosses:
    """Looks at the losses of each step.

    On a CPU at once. A CUDA device would have to be waited for, and would idle while the next operations are sent: the
    losses of a step there are looked at when those of the next have been asked for, or by :meth:`settle`.
    """

    def __init__(self) -> None:
        self._waiting: tuple[int, list[str], Tensor, torch.cuda.Event] | None = None

    def look(self, losses: Mapping[str, Tensor], step: int) -> None:
        """Look at losses.

        Args:
            losses: Scalars by the name of their term; the name may be empty.
            step: The optimiser step, counted from 0, for the message.

        Raises:
            RuntimeError: If one is not finite: here of this step, or on a device of the one before.
        """
        self.settle()
        if not losses:
            return
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        if values.device.type != "cuda":
            _refuse(list(losses), values.tolist(), step)
            return
        values = values.to("cpu", non_blocking=True)
        there = torch.cuda.Event()
        there.record()
        self._waiting = step, list(losses), values, there

    def settle(self) -> None:
        """Look at what still waits: before a validation, and before weights are kept.

        Raises:
            RuntimeError: If a loss was not finite.
        """
        if self._waiting:
            step, names, values, there = self._waiting
            self._waiting = None
            there.synchronize()
            _refuse(names, values.tolist(), step)


def _refuse(names: list[str], values: list[float], step: int) -> None:
    for name, value in zip(names, values, strict=True):
        if not math.isfinite(value):
            term = f" term {name}" if name else ""
            msg = f"The loss{term} is {value} at step {step}: lower learning_rate or raise warmup_steps."
            raise RuntimeError(msg)

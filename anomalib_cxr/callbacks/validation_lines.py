"""A line for each validation, where no terminal shows a bar."""

import logging
import math
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_cxr.callbacks.checkpoint_choice import MONITOR
from anomalib_cxr.imaging.progress import is_watched

logger = logging.getLogger(__name__)


class ValidationLines(Callback):
    """Logs step, loss, AUROC and the minutes that are left after each validation of a fit, for log files (ours).

    A terminal or a notebook has Lightning's bar, which says as much; elsewhere the bar would only leave torn lines, and
    is switched off. Loss and AUROC are named as the model logs them, and left out where it logs none. Only the first
    process speaks.
    """

    def __init__(self) -> None:
        self._start, self._first = 0.0, 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Switch the bar off where nobody looks on."""
        del pl_module, stage
        bar = trainer.progress_bar_callback
        if bar is not None and not is_watched(sys.stdout):
            bar.disable()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count; a resumed run does not begin at 0."""
        del pl_module
        self._start, self._first = time.monotonic(), _steps_done(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the line."""
        del pl_module
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero or is_watched(sys.stdout):
            return
        done, total = _steps_done(trainer), _steps_planned(trainer)
        values = {name: value for name, value in trainer.callback_metrics.items() if "loss" in name or name == MONITOR}
        words = [f"{name} {float(value):.4g}" for name, value in values.items()]
        if math.isfinite(total):
            minutes = (time.monotonic() - self._start) / max(done - self._first, 1) * (total - done) / 60
            words.append(f"{minutes:.0f} min left")
        logger.info("Step %d of %s: %s", done, total if math.isfinite(total) else "?", ", ".join(words))


def _steps_done(trainer: Any) -> int:
    """Training batches so far."""
    return int(trainer.fit_loop.epoch_loop.total_batch_idx) + 1


def _steps_planned(trainer: Any) -> float:
    """Training batches of the whole fit, infinite where no limit is known."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    planned = [steps] if steps > 0 else []
    if epochs is not None and epochs > 0 and math.isfinite(trainer.num_training_batches):
        planned.append(epochs * trainer.num_training_batches)
    return min(planned, default=math.inf)

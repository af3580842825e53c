"""Which checkpoint a fit ends with: the best by labelled validation AUROC, or the last."""

import logging
import math
import shutil
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from anomalib_cxr.checks import check_choice
from anomalib_cxr.files import written_atomically
from anomalib_cxr.run_folder import BEST_CHECKPOINT, CHECKPOINTS, LAST_CHECKPOINT, MODEL_CHECKPOINT

logger = logging.getLogger(__name__)

Checkpoint = Literal["best", "last"]

MONITOR = "image_AUROC"


class CheckpointChoice(Callback):
    """Keeps the checkpoint of the best validation AUROC and gives it to the model when the fit ends.

    Anomalib's Engine tests the weights in memory after a fit. So that its figures, the model in memory and
    ``weights/lightning/model.ckpt`` are one and the same, the chosen checkpoint is loaded at the end of the fit and
    takes that name; the last one stays beside it as ``last.ckpt``, to resume from. A checkpoint brings its own
    reference bank and thresholds.

    Choosing by AUROC uses the *labels* of the validation split, as AnatPaste's published results do; ``"last"`` does
    not. The log says which was done.

    Args:
        choose: ``"best"`` or ``"last"``.

    Raises:
        ValueError: If ``choose`` is neither.
    """

    def __init__(self, choose: Checkpoint = "best") -> None:
        self.choose: Checkpoint = check_choice("choose", choose, Checkpoint)
        self.best_score: float | None = None
        self.best_step: int | None = None
        self.best_path: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to know of the best checkpoint so far."""
        return {"best_score": self.best_score, "best_step": self.best_step, "best_path": self.best_path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best checkpoint of the run that is resumed."""
        self.best_score = state_dict["best_score"]
        self.best_step = state_dict["best_step"]
        self.best_path = state_dict["best_path"]
        if self.best_score is not None and math.isnan(self.best_score):  # version 0.1 kept it for ever
            self.best_score = self.best_step = self.best_path = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to resume when the best checkpoint so far has gone: the choice would silently change."""
        del trainer, pl_module
        if self.choose == "best" and self.best_path and not Path(self.best_path).is_file():
            msg = (
                f"The best checkpoint so far, {self.best_path} (step {self.best_step}), is missing: put it back to "
                "resume this run, or start a new one."
            )
            raise FileNotFoundError(msg)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep this checkpoint if its validation AUROC is the highest so far."""
        if self.choose == "last" or trainer.state.fn != "fit" or trainer.sanity_checking or _is_dry(trainer):
            return
        if not getattr(pl_module, "may_choose_checkpoint", True):
            return
        score = trainer.callback_metrics.get(MONITOR)
        if score is None or not _both_classes_validated(trainer):
            return
        if math.isnan(float(score)):  # one class in the images validated, or in limit_val_batches of them
            logger.warning("The validation at step %d has no AUROC and is not chosen by.", trainer.global_step)
            return
        if self.best_score is None or float(score) > self.best_score:
            self.best_score, self.best_step = float(score), trainer.global_step
            path = _weights_folder(trainer) / BEST_CHECKPOINT
            # The path is part of the state that is saved, so it is set first.
            self.best_path = str(path)
            trainer.save_checkpoint(path)

    def load_chosen(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the chosen checkpoint into the model; called by the model when everything else of the fit is done."""
        if self.choose == "last":
            logger.info("Keeping the last weights (step %d), chosen without labels.", trainer.global_step)
            return
        if self.best_path is None:
            if not _is_dry(trainer):
                logger.warning(
                    "Keeping the last weights (step %d): the validation split has no two classes to choose by.",
                    trainer.global_step,
                )
            return
        logger.info(
            "Keeping the weights of step %s: best AUROC on the labelled validation split (%.4f).",
            self.best_step,
            self.best_score,
        )
        checkpoint = trainer.strategy.checkpoint_io.load_checkpoint(
            self.best_path, map_location=pl_module.device, weights_only=True
        )
        pl_module.load_state_dict(checkpoint["state_dict"])
        trainer.strategy.barrier("chosen checkpoint loaded")
        if trainer.is_global_zero:
            self._publish(trainer)

    def _publish(self, trainer: Trainer) -> None:
        """Let Anomalib's own ``model.ckpt`` be the chosen checkpoint, and keep the last as ``last.ckpt``."""
        best = Path(str(self.best_path))
        model_ckpt = _weights_folder(trainer) / MODEL_CHECKPOINT
        callback = trainer.checkpoint_callback
        if not isinstance(callback, ModelCheckpoint) or callback.best_model_path != str(model_ckpt):
            return  # the user's own checkpointing is left alone
        for source, target in ((model_ckpt, model_ckpt.with_name(LAST_CHECKPOINT)), (best, model_ckpt)):
            with written_atomically(target, durable=True) as temporary:
                shutil.copyfile(source, temporary)


def _is_dry(trainer: Trainer) -> bool:
    """Whether this is a ``fast_dev_run``, which writes nothing."""
    return bool(getattr(trainer, "fast_dev_run", False))


def _weights_folder(trainer: Trainer) -> Path:
    """Folder where Anomalib's Engine keeps its checkpoints."""
    return Path(trainer.default_root_dir) / CHECKPOINTS


def _both_classes_validated(trainer: Trainer) -> bool:
    """Whether the validation split has normal and abnormal images, without which an AUROC means nothing."""
    val_data = getattr(getattr(trainer, "datamodule", None), "val_data", None)
    return val_data is None or (val_data.has_normal and val_data.has_anomalous)

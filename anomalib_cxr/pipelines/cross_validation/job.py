"""One job of a cross-validation, in a process of its own.

``python -m anomalib_cxr.pipelines.cross_validation.job FOLDER [LEASE]``, where the folder holds ``job.yaml``, a
configuration of the stock ``anomalib train``. What the run leaves lies directly in the folder: predictions, pictures,
weights; ``last/`` holds the predictions by the last weights, where the model chose earlier ones by validation labels.
``done.json`` is written last.

A job that was cut off goes on: from its last checkpoint where the model's trainings equal unbroken ones (ours), at the
test where the training was complete, else from the start. A process that was asleep for so long that another one has
taken its lease of the folder over ends without another word into it.
"""

import logging
import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from anomalib.cli import AnomalibCLI
from anomalib.loggers import configure_logger
from filelock import FileLock
from lightning.pytorch import seed_everything

from anomalib_cxr import __version__
from anomalib_cxr.callbacks.run_record import write_json
from anomalib_cxr.checkpoint_files import CheckpointError, load_checkpoint
from anomalib_cxr.files import read_json
from anomalib_cxr.leased_process import LOST
from anomalib_cxr.leases import Lease, LeaseLostError
from anomalib_cxr.metrics.predictions import read_predictions
from anomalib_cxr.models.components.step_training import StepTrainingMixin
from anomalib_cxr.pipelines.cross_validation.cost import ImageTimer, peak_gib
from anomalib_cxr.plugin.log_lines import log_each_line_once
from anomalib_cxr.run_folder import (
    BEST_CHECKPOINT,
    CHECKPOINTS,
    CONFIG,
    DONE,
    FITTED,
    LAST_CHECKPOINT,
    LAST_FOLDER,
    METRICS,
    MODEL_CHECKPOINT,
    PREDICTIONS,
    VALIDATION_PREDICTIONS,
    WEIGHTS,
)

logger = logging.getLogger(__name__)

# Our models and datamodules attach it by themselves, stock ones do not.
_WRITER = "--trainer.callbacks+=anomalib_cxr.callbacks.PredictionsWriter"


def run_job(folder: Path, check_lease: Callable[[], object] = lambda: None) -> None:
    """Train and test as the folder's configuration says.

    Args:
        folder: Folder with ``job.yaml``.
        check_lease: Called before the job counts as done; raises if it is another process's by now.
    """
    start = time.monotonic()
    seed = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))["seed_everything"]
    seed_everything(seed, workers=True, verbose=False)
    engine, model, datamodule = _prepare(folder, folder)
    fitted = read_json(folder / FITTED)
    trained = fitted is None
    if fitted is None:
        resumed = _resume_from(folder, model)
        engine.fit(model, datamodule=datamodule, ckpt_path=resumed)
        chosen = getattr(model, "chosen_checkpoint", None) or engine.best_model_path
        # The time before a kill is not known, and the rest alone would look like a small budget.
        kept = os.path.relpath(chosen, folder) if chosen else None
        fitted = {"chosen": kept, "seconds": None if resumed else time.monotonic() - start}
        write_json(folder / FITTED, fitted)
        checkpoint = None
    else:
        logger.info("The training was complete: only the test is run.")
        checkpoint = folder / fitted["chosen"] if fitted["chosen"] else None
    timer = ImageTimer()
    with timer.watch(model.model):
        metrics = engine.test(model, datamodule=datamodule, ckpt_path=checkpoint)
    _keep_metrics(folder, metrics)
    last = folder / CHECKPOINTS / LAST_CHECKPOINT
    if isinstance(model, StepTrainingMixin) and last.is_file():
        engine, model, datamodule = _prepare(folder, folder / LAST_FOLDER, "--model.visualizer=false")
        _keep_metrics(folder / LAST_FOLDER, engine.test(model, datamodule=datamodule, ckpt_path=last))
    for place in (folder, folder / LAST_FOLDER) if last.is_file() else (folder,):
        read_predictions(place / PREDICTIONS)
        read_predictions(place / VALIDATION_PREDICTIONS)
    versions = {"anomalib_cxr": __version__, "torch": torch.__version__}
    check_lease()
    # As for the time: what a training held before a kill is not known.
    whole = fitted["seconds"] is not None and trained
    costs = {
        "fit_seconds": fitted["seconds"],
        "image_ms": timer.milliseconds(),
        "peak_gib": peak_gib() if whole else None,
    }
    write_json(folder / DONE, {**costs, "versions": versions})


def _keep_metrics(place: Path, metrics: Sequence[Mapping[str, float]]) -> None:
    """Keep what the model's own evaluator measured: pixel-level metrics cannot be made from predictions."""
    write_json(place / METRICS, {name: value for loader in metrics for name, value in loader.items()})


def _prepare(folder: Path, output: Path, *arguments: str) -> tuple[Any, Any, Any]:
    """Engine, model and datamodule of the configuration; the engine writes right into the output folder."""
    cli = AnomalibCLI(
        ["train", "--config", str(folder / CONFIG), f"--default_root_dir={output}", _WRITER, *arguments],
        run=False,
    )
    # A job has its folder already; Anomalib would add model, data set and version below it.
    cli.engine._setup_workspace = lambda **_: None  # type: ignore[method-assign]
    return cli.engine, cli.model, cli.datamodule


def _resume_from(folder: Path, model: Any) -> Path | None:
    """Checkpoint to go on from; None to start, with the leftovers of a start before cleared away."""
    # The best is as good a place to go on from: an older version's model.ckpt may be torn by a kill.
    for name in (MODEL_CHECKPOINT, BEST_CHECKPOINT) if isinstance(model, StepTrainingMixin) else ():
        checkpoint = folder / CHECKPOINTS / name
        if not checkpoint.is_file():
            continue
        try:
            step = load_checkpoint(checkpoint, model.checkpoint_safe_globals())["global_step"]
        except (CheckpointError, KeyError) as error:
            logger.warning("It cannot be gone on from %s: %s", checkpoint, error)
        else:
            logger.info("Going on from step %d.", step)
            return checkpoint
    shutil.rmtree(folder / WEIGHTS, ignore_errors=True)
    return None


def _end_with_parent() -> None:
    """End when the process that started this one does, even if it was killed: its end of the pipe closes then."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def _end_without_lease(reason: str) -> None:
    """End at once: any file written from here on would lie among another process's."""
    print(reason, flush=True)
    os._exit(LOST)


def main() -> None:
    """Run the job of the folder that the command line names."""
    folder = Path(sys.argv[1]).resolve()
    lease = Lease(Path(sys.argv[2])) if len(sys.argv) > 2 else None
    _end_with_parent()
    configure_logger()
    log_each_line_once()
    logging.getLogger("anomalib_cxr").setLevel(logging.INFO)
    if lease is not None:
        lease.keep_beating(_end_without_lease)
    # A process of a killed run may need a moment to end; two in one folder would mix their files.
    with FileLock(folder / ".lock", timeout=60):
        try:
            run_job(folder, lease.beat if lease is not None else lambda: None)
        except LeaseLostError as error:
            _end_without_lease(str(error))
        except SystemExit as error:
            # Whatever ended the process, status 0 stands for a job that is done.
            sys.exit(error.code or "SystemExit: the job was ended before it was done")
        except Exception as error:
            logger.exception("The job failed.")
            reason = textwrap.shorten(str(error), 300)
            # The last line of the log is what the table of failures shows.
            sys.exit(f"{type(error).__name__}: {reason}")


if __name__ == "__main__":
    main()

"""One folder for each run: `latest` is always a link, and all processes of a run use the folder of the first.

Anomalib 2.7 lets each process make a version folder of its own, and a test before the first training makes a folder in
the place of the link, which the training then cannot replace.
"""

import functools
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_cxr.distributed import is_first_process
from anomalib_cxr.files import remove_link
from anomalib_cxr.plugin.wrapping import Wrapping
from anomalib_cxr.run_folder import RUN_FOLDER

logger = logging.getLogger(__name__)

_LATEST = "latest"


class SharedRunFolder(Callback):
    """Lets each process of a run write into the folder of the first one, once they know each other.

    Links that stand there under the names of what a run writes are taken away: Anomalib and Lightning would write to
    where they lead.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the first process's folder; before any other callback asks for it."""
        del pl_module, stage
        vars(trainer)["_default_root_dir"] = trainer.strategy.broadcast(trainer.default_root_dir)
        if trainer.is_global_zero:
            for name in RUN_FOLDER:
                remove_link(Path(trainer.default_root_dir) / name)
        trainer.strategy.barrier("run folder")


def _wrap_create(stock: Callable[[Any], Path]) -> Callable[[Any], Path]:
    """Make a version folder in the first process only; what stands in the place of the link becomes a version."""

    @functools.wraps(stock)
    def create_versioned_dir(root_dir: str | Path) -> Path:
        latest = Path(root_dir).resolve() / _LATEST
        if not is_first_process():
            return latest.resolve()  # for the moment, see SharedRunFolder
        if latest.is_dir() and latest.resolve() == latest and not (latest / ".version_pointer").exists():
            kept = latest.with_name(f"v{_next_version(latest.parent)}")
            latest.rename(kept)
            logger.info("%s was a folder and no link: it is %s now.", latest, kept.name)
        return stock(root_dir)

    return create_versioned_dir


def _wrap_resolve(stock: Callable[[Any], Path]) -> Callable[[Any], Path]:
    """Give a run that comes before every training a version folder too."""

    @functools.wraps(stock)
    def resolve_versioned_path(path: str | Path) -> Path:
        from anomalib.engine import engine

        path = Path(path)
        if path.name == _LATEST and not os.path.lexists(path):
            return engine.create_versioned_dir(path.parent)
        return stock(path)

    return resolve_versioned_path


def _wrap_callbacks(stock: Callable[[Any], None]) -> Callable[[Any], None]:
    """Let the processes agree on the folder before all else."""

    @functools.wraps(stock)
    def _setup_anomalib_callbacks(self: Any) -> None:
        stock(self)
        self._cache.args["callbacks"].insert(0, SharedRunFolder())

    return _setup_anomalib_callbacks


def _next_version(folder: Path) -> int:
    versions = [int(match[1]) for child in folder.iterdir() if (match := re.fullmatch(r"v(\d+)", child.name))]
    return max(versions, default=-1) + 1


#: Where Anomalib's Engine makes and finds the folder of a run.
RUN_FOLDERS = Wrapping(
    [
        ("anomalib.engine.engine", "create_versioned_dir", _wrap_create),
        ("anomalib.engine.engine", "resolve_versioned_path", _wrap_resolve),
        ("anomalib.engine.engine", "Engine._setup_anomalib_callbacks", _wrap_callbacks),
    ]
)

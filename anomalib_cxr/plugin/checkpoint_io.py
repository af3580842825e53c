"""Anomalib's reading and writing of checkpoints: never code, always whole, without absolute paths."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anomalib_cxr.checkpoint_files import in_one_sentence, with_own_folder, without_own_folder
from anomalib_cxr.files import written_atomically
from anomalib_cxr.plugin.wrapping import Wrapping


def _wrap_load(stock: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Keep code in the file from being run, unless the caller asked for that."""

    @functools.wraps(stock)
    def load_checkpoint(self: Any, path: Any, map_location: Any = None, weights_only: bool | None = True) -> Any:
        if weights_only is False:
            return stock(self, path, map_location=map_location, weights_only=False)
        # Lightning gives None, which the environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD turns into False.
        checkpoint = in_one_sentence(path, lambda: stock(self, path, map_location=map_location, weights_only=True))
        return _with_callbacks(checkpoint, with_own_folder, path)

    return load_checkpoint


def _wrap_save(stock: Callable[..., None]) -> Callable[..., None]:
    """Write beside the old checkpoint, which stays until the new one is on disk.

    Lightning writes into the folder for temporary files and moves that, which is a copy where it is another disk.
    """

    @functools.wraps(stock)
    def save_checkpoint(self: Any, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if "://" in str(path):
            stock(self, checkpoint, path, storage_options)
            return
        with written_atomically(Path(path), durable=True) as temporary:
            stock(self, _with_callbacks(checkpoint, without_own_folder, path), temporary, storage_options)

    return save_checkpoint


def _with_callbacks(checkpoint: Any, change: Callable[[Any, Path], Any], path: Any) -> Any:
    """A checkpoint with the paths that callbacks keep changed; they are those of other checkpoints."""
    if not isinstance(checkpoint, dict) or "callbacks" not in checkpoint or "://" in str(path):
        return checkpoint
    return {**checkpoint, "callbacks": change(checkpoint["callbacks"], Path(path).absolute().parent)}


#: Where Anomalib's Engine reads and writes checkpoints.
CHECKPOINT_IO = Wrapping(
    [
        ("anomalib.engine.plugins.checkpoint_io", "AnomalibCheckpointIO.load_checkpoint", _wrap_load),
        ("anomalib.engine.plugins.checkpoint_io", "AnomalibCheckpointIO.save_checkpoint", _wrap_save),
    ]
)

"""Checkpoint files: read without running what is in them, and written whole or not at all."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from anomalib.utils.serialization import anomalib_safe_globals

T = TypeVar("T")

# "… unsupported GLOBAL posix.system whose …", "Unsupported global: GLOBAL builtins.eval was …"
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says which, why, and what to do."""


def load_checkpoint(path: str | Path, extra_safe_globals: Sequence[Any] = ()) -> dict[str, Any]:
    """Load a checkpoint of plain data and weights; its tensors are read when they are used.

    Args:
        path: The file.
        extra_safe_globals: Types that the model's class allows in its checkpoints.

    Returns:
        The checkpoint as Lightning wrote it; no code in it is run.

    Raises:
        CheckpointError: If there is no such file, it is no checkpoint, or it holds more than data and weights.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"There is no checkpoint {path}."
        raise CheckpointError(msg)
    with anomalib_safe_globals(extra=list(extra_safe_globals)):
        checkpoint = in_one_sentence(path, lambda: torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    if not isinstance(checkpoint, dict):
        msg = f"{path} is no checkpoint of an Anomalib model: it holds a {type(checkpoint).__name__}."
        raise CheckpointError(msg)
    return checkpoint


def in_one_sentence(path: str | os.PathLike[str], load: Callable[[], T]) -> T:
    """Load a file of torch's, and say in one sentence why that fails.

    Torch's own words are a page, and advise to switch the check off that keeps code in the file from being run.

    Args:
        path: The file, for the message.
        load: Loads it with ``weights_only=True``.

    Returns:
        What ``load`` gives.

    Raises:
        CheckpointError: If ``load`` raises whatever, but for the errors of the file system, which stay.
    """
    try:
        return load()
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001  # a broken pickle raises anything
        msg = f"{os.fspath(path)} is no checkpoint of an Anomalib model that holds plain data and weights: "
        raise CheckpointError(msg + _reason(str(error))) from None


def _reason(said: str) -> str:
    if asked := _GLOBAL.search(said):
        return f"it asks for {asked[1]}, which no checkpoint needs, and nothing of it was run."
    if "TorchScript" in said:
        return "it is a TorchScript program."
    if "Weights only load failed" in said:
        return "it asks for more than these, and nothing of it was run."
    return "it is damaged, cut short or of another format; copy it again or train again."

"""Checkpoint files: read without running what is in them, and free of absolute paths."""

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

_HERE = "<checkpoint's folder>"
# From weights/lightning of one version to the other versions it is three steps up.
_TOO_FAR = "../../../../"


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


def without_own_folder(state: Any, folder: Path) -> Any:
    """Say paths near a checkpoint from its folder, so that it neither names other folders nor depends on them.

    Args:
        state: Plain data of a checkpoint.
        folder: Absolute path of the checkpoint's folder.

    Returns:
        The same, with texts that are absolute paths in the folder of runs rewritten as ``<checkpoint's folder>/…``.
    """

    def rewritten(text: str) -> str:
        if not Path(text).is_absolute() or "\n" in text:
            return text
        steps = Path(os.path.relpath(text, folder)).as_posix()
        return text if steps.startswith(_TOO_FAR) else f"{_HERE}/{steps}"

    return _with_texts(state, rewritten)


def with_own_folder(state: Any, folder: Path) -> Any:
    """Take back what :func:`without_own_folder` did.

    Args:
        state: Plain data of a checkpoint.
        folder: Absolute path of the checkpoint's folder, which may have been moved since.

    Returns:
        The same, with absolute paths.
    """

    def rewritten(text: str) -> str:
        return os.path.normpath(folder / text[len(_HERE) + 1 :]) if text.startswith(f"{_HERE}/") else text

    return _with_texts(state, rewritten)


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Plain data with its texts changed; whatever is of another type stays the very same."""
    if type(value) is dict:
        return {_with_texts(key, change): _with_texts(item, change) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_with_texts(item, change) for item in value)
    return change(value) if type(value) is str else value


def _reason(said: str) -> str:
    if asked := _GLOBAL.search(said):
        return f"it asks for {asked[1]}, which no checkpoint needs, and nothing of it was run."
    if "TorchScript" in said:
        return "it is a TorchScript program."
    if "Weights only load failed" in said:
        return "it asks for more than these, and nothing of it was run."
    return "it is damaged, cut short or of another format; copy it again or train again."

"""What a run was: versions, model, data and training, kept beside its predictions so that a report can tell."""

import importlib.metadata
import inspect
import json
import math
import platform
import re
import textwrap
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import anomalib
import lightning
import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer

from anomalib_cxr import __version__
from anomalib_cxr.callbacks.pictures import evaluated_datasets, images_root
from anomalib_cxr.files import write_text
from anomalib_cxr.folders import without_folders

TRAINING_KEY = "anomalib_cxr_training"
"""Where a checkpoint keeps :func:`describe_training`."""

_LONGEST, _MOST, _DEEPEST = 300, 50, 6
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class RunRecordError(ValueError):
    """A ``run.json`` cannot be read; the message says why."""


def describe_training(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Describe the training that is going on, for the checkpoints that it leaves.

    Args:
        trainer: Trainer in the middle or at the end of a fit.
        pl_module: What it trains.

    Returns:
        ``versions``, ``device``, ``processes``, ``precision``, and ``region_masks``, the summary of the model's
        region masks, "" where it has none. No date: the same training leaves the same checkpoint.
    """
    summary = getattr(getattr(pl_module, "region_masks", None), "summary", None)
    return {**_circumstances(trainer), "region_masks": str(summary()) if callable(summary) else ""}


def describe_run(
    trainer: Trainer,
    pl_module: LightningModule,
    training: Mapping[str, Any] | None,
    checkpoint: str | Path | None,
    step: int | None,
) -> dict[str, Any]:
    """Describe a test or predict run.

    Neither patients nor folders outside the run's are named: of an absolute path its last part is kept.

    Args:
        trainer: Trainer at the end of the run.
        pl_module: What it tested.
        training: What :func:`describe_training` said of the training, None where it is not known.
        checkpoint: Checkpoint of the weights, None where they are as the training left them or as constructed.
        step: Optimiser step of the weights, None where it is not known.

    Returns:
        What JSON can hold: ``stage`` ("test" or "predict"), ``date``, ``versions``, ``device``, ``processes`` and
        ``precision`` of this run; ``model`` and ``data`` with ``class_path`` and ``init_args``, and of the data the
        name of the ``root`` that images are named below; ``map``, what the model says of its heat maps
        (``map_description``), "" where it says nothing; ``nearest_references``, whether the model can name the normal
        images that it compared an image with; ``checkpoint``, ``step`` and ``training``.
    """
    return {
        "stage": str(getattr(trainer.state.fn, "value", trainer.state.fn)),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **_circumstances(trainer),
        "model": {"class_path": _class_path(pl_module), "init_args": plain(dict(pl_module.hparams))},
        "map": str(getattr(pl_module, "map_description", "")),
        "nearest_references": hasattr(getattr(pl_module, "model", None), "nearest_references"),
        "data": _describe_data(trainer),
        "checkpoint": None if checkpoint is None else _below(Path(checkpoint), Path(trainer.default_root_dir)),
        "step": step,
        "training": None if training is None else plain(training),
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small file, atomically: a killed run leaves the old file or none, never half a file.

    Args:
        path: File to write.
        content: What JSON can hold.
    """
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """Read a ``run.json``.

    Args:
        path: The file.

    Returns:
        As :func:`describe_run` gives it. Parts of the wrong kind are left out, so that a reader need not check.

    Raises:
        RunRecordError: If there is none, or it is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        msg = f"The run left no {path.name}"
        raise RunRecordError(msg) from error
    except (OSError, ValueError, RecursionError) as error:
        msg = f"The run's {path.name} cannot be read ({textwrap.shorten(str(error), _LONGEST)})"
        raise RunRecordError(msg) from error
    if not isinstance(content, dict):
        msg = f"The run's {path.name} cannot be read (it holds no object)"
        raise RunRecordError(msg)
    kinds = {"model": dict, "data": dict, "versions": dict, "training": dict, "step": int, "map": str}
    return {name: value for name, value in content.items() if isinstance(value, kinds.get(name, object))}


def plain(value: Any, depth: int = 0) -> Any:
    """Turn any value into what JSON can hold.

    Args:
        value: Hyper-parameter of any kind.
        depth: How deep it lies in others.

    Returns:
        Numbers, texts, lists and mappings as they are, long lists cut; of absolute paths the last part; of anything
        else its repr, shortened, without addresses in memory.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Enum):
        return plain(value.value, depth)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(float(value))
    if isinstance(value, str | PurePath):
        return _short(str(value))
    if isinstance(value, Namespace):
        value = value.as_dict()
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {str(key): _plain_item(str(key), item, depth + 1) for key, item in value.items()}
    if depth < _DEEPEST and isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else list(value)
        more = [f"… {len(items) - _MOST} more"] if len(items) > _MOST else []
        return [plain(item, depth + 1) for item in items[:_MOST]] + more
    if isinstance(value, torch.Tensor) or hasattr(value, "dtype"):
        if getattr(value, "ndim", 1) == 0 and hasattr(value, "item"):
            return plain(value.item(), depth)
        if hasattr(value, "shape"):
            return f"{type(value).__name__} of the shape {tuple(value.shape)}, {value.dtype}"
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # a broken repr is no reason to lose the run
        text = f"<{type(value).__name__}>"
    return _short(_ADDRESS.sub("", text))


def _plain_item(name: str, value: Any, depth: int) -> Any:
    """As :func:`plain`; a list of patients is only counted."""
    if "patient" in name.lower() and not isinstance(value, str) and isinstance(value, Sequence | set | Mapping):
        return f"{len(value)} values, not listed"
    return plain(value, depth)


def _short(text: str) -> str:
    return textwrap.shorten(without_folders(text), _LONGEST, placeholder=" …")


def _below(path: Path, root: Path) -> str:
    path, root = path.absolute(), root.absolute()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else f"…/{path.name}"


def _class_path(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _circumstances(trainer: Trainer) -> dict[str, Any]:
    """With what and on what."""
    device = trainer.strategy.root_device
    return {
        "versions": {
            "anomalib-cxr": __version__,
            "anomalib": anomalib.__version__,
            "lightning": lightning.__version__,
            "torch": str(torch.__version__),
            "timm": importlib.metadata.version("timm"),
            "python": platform.python_version(),
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
    }


def _describe_data(trainer: Trainer) -> dict[str, Any]:
    """Class and arguments of the datamodule, or the class of the data set where there is none; name of the root."""
    root = images_root(trainer)
    named = {} if root is None else {"root": plain(root.absolute())}
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is not None:
        return {"class_path": _class_path(datamodule), "init_args": plain(_arguments(datamodule)), **named}
    datasets = evaluated_datasets(trainer)
    return {"class_path": _class_path(datasets[0]), "init_args": {}, **named} if datasets else {}


def _arguments(thing: Any) -> dict[str, Any]:
    """Arguments that an object was made with, as far as it keeps them under their names."""
    found: dict[str, Any] = {}
    for cls in type(thing).__mro__:
        if "__init__" not in vars(cls) or cls is object:
            continue
        for name, parameter in list(inspect.signature(vars(cls)["__init__"]).parameters.items())[1:]:
            if name in found or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            value = vars(thing).get(name, vars(thing).get(f"_{name}", inspect.Parameter.empty))
            if value is not inspect.Parameter.empty and value is not None:
                found[name] = value
    return found

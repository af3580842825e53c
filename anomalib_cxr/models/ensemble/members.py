"""Members of an ensemble: out of checkpoints, and out of the plain data that the ensemble's own checkpoint keeps."""

import importlib
import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from anomalib.models import AnomalibModule

from anomalib_cxr.models.components.checkpoints import CLASS_PATH_KEY, constructor_arguments, read_checkpoint
from anomalib_cxr.models.components.pretrained import weights_come_later

logger = logging.getLogger(__name__)

#: Arguments by which ours are told from Anomalib's models.
_OURS = {"preset", "checkpoint", "seed"}
#: What a checkpoint says of the components, beside the hyper-parameters.
_KEPT = (
    "anomalib_components_enabled",
    "anomalib_pre_processor_config",
    "anomalib_post_processor_config",
    "split_sha256",
)
#: Where bare names of classes are looked up, ours first.
_ROOMS = ("anomalib_cxr.models", "anomalib.models")
_PLAIN = (str, int, float, bool, type(None))


def read_member(path: str | Path, class_path: str | None = None) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read what makes a member out of its checkpoint.

    Args:
        path: Checkpoint of an Anomalib model.
        class_path: Its class; None finds it out for this package's models.

    Returns:
        Plain data for :func:`build_member`, and its weights.

    Raises:
        ValueError: If there is no such file, it is no checkpoint, the class is unknown, or a setting is no plain data.
    """
    path = Path(path)
    cls = None if class_path is None else find_class(class_path)
    checkpoint = read_checkpoint(path, cls.checkpoint_safe_globals() if cls else ())
    arguments, weights = constructor_arguments(checkpoint), checkpoint["state_dict"]
    if cls is None:
        wrote = checkpoint.get(CLASS_PATH_KEY)
        cls = find_class(wrote) if wrote else _class_of(dict(checkpoint["hyper_parameters"]), path)
    odd = [name for name, value in arguments.items() if not _is_plain(value)]
    if odd:
        msg = f"{path}: the settings {odd} of {cls.__name__} are no plain data, so an ensemble cannot keep them."
        raise ValueError(msg)
    components = {key: checkpoint[key] for key in _KEPT if checkpoint.get(key) is not None}
    return {
        "class_path": f"{cls.__module__}.{cls.__qualname__}",
        "init_args": arguments,
        "components": components,
        "normal_scores": _normal_scores(checkpoint),
    }, weights


def _normal_scores(checkpoint: dict[str, Any]) -> list[float]:
    """Raw scores of the normal validation images, which `PredictionsWriter` leaves in a checkpoint."""
    kept = checkpoint.get("callbacks", {}).get("PredictionsWriter") or {"raw_scores": [], "labels": []}
    return [score for score, label in zip(kept["raw_scores"], kept["labels"], strict=True) if label == 0]


def build_member(member: dict[str, Any]) -> Any:
    """Build a member, without its weights.

    Args:
        member: Plain data of :func:`read_member`.

    Returns:
        ``AnomalibModule`` in evaluation mode.
    """
    cls = find_class(member["class_path"])
    with weights_come_later():
        module: Any = cls(**member["init_args"])
    enabled = {**member["components"].get("anomalib_components_enabled", {}), "evaluator": False, "visualizer": False}
    module.on_load_checkpoint({**member["components"], "anomalib_components_enabled": enabled})
    return module.eval()


def find_class(class_path: str) -> type[AnomalibModule]:
    """Find a model class by its path, or by its name among Anomalib's and ours.

    Args:
        class_path: ``Padim`` or ``package.module.Class``.

    Returns:
        The class.

    Raises:
        ValueError: If there is none.
    """
    module, _, name = class_path.rpartition(".")
    try:
        rooms = [importlib.import_module(room) for room in ([module] if module else _ROOMS)]
        cls = getattr(next((room for room in rooms if hasattr(room, name)), rooms[0]), name)
    except (ImportError, AttributeError) as error:
        msg = f"There is no model class {class_path}: {error}."
        raise ValueError(msg) from error
    if not (isinstance(cls, type) and issubclass(cls, AnomalibModule)):
        msg = f"{class_path} is no Anomalib model."
        raise ValueError(msg)
    return cls


def _class_of(arguments: dict[str, Any], path: Path) -> type[AnomalibModule]:
    """Class of ours whose constructor takes these arguments: checkpoints of 0.1.0 do not say which wrote them."""
    ours = importlib.import_module(_ROOMS[0])
    classes = [getattr(ours, name) for name in ours.__all__]
    fitting = [cls for cls in classes if set(inspect.signature(cls.__init__).parameters) >= set(arguments) >= _OURS]
    if len(fitting) != 1:
        msg = (
            f"{path} does not say of which model it is: name the class of each checkpoint, "
            "for example --model.classes [Padim,AnatPaste]."
        )
        raise ValueError(msg)
    return fitting[0]


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return type(value) in _PLAIN


def common_split(members: Sequence[dict[str, Any]]) -> str | None:
    """Hash of the split manifest that all members were trained on.

    Args:
        members: Plain data of :func:`read_member`.

    Returns:
        SHA-256; None where it is not known or not one. The log says if there are several, or if some are not known.
    """
    known = [member["components"].get("split_sha256") for member in members]
    hashes = set(known) - {None}
    if None in known:
        logger.warning(
            "%d of %d members do not say on which split they were trained: make sure that no test image was a training "
            "image of theirs.",
            known.count(None),
            len(known),
        )
    if len(hashes) > 1:
        logger.warning(
            "The members were trained on %d different splits: test images of one may be training images of another, "
            "and a test of the ensemble then says too much.",
            len(hashes),
        )
        return None
    return next(iter(hashes), None)

"""Checkpoints that say what they are: class, resolved arguments, split."""

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomalib_cxr.anatomy.assessable import FilmLimits
from anomalib_cxr.callbacks.film_assessor import keep_limits, take_limits
from anomalib_cxr.checkpoint_files import CheckpointError, load_checkpoint
from anomalib_cxr.folders import without_folders
from anomalib_cxr.models.components.module import MixedIntoModule
from anomalib_cxr.models.components.pretrained import weights_come_later

logger = logging.getLogger(__name__)

#: Where a checkpoint keeps the path of the class that wrote it.
CLASS_PATH_KEY = "class_path"


class SelfDescribingMixin(MixedIntoModule):
    """Mixin for an ``AnomalibModule`` whose checkpoints can be loaded without knowing how they were made (ours).

    A checkpoint holds the class's path, and the arguments as they were *used*: what a preset filled in stands in it as
    a value, so that a preset of a later version changes no old model. The SHA-256 of the split, the one in
    ``predictions.csv``, goes from the fit into checkpoints, and from there into exported files; it is None for a
    datamodule of Anomalib's, which knows none. ``film_limits`` say which films should not be judged by their score;
    None where none were fixed.
    """

    split_sha256: str | None = None
    film_limits: FilmLimits | None = None
    _loaded_arguments: Mapping[str, Any] | None = None

    def keep_resolved(self, **arguments: Any) -> None:
        """Have checkpoints keep arguments as they are used, in place of those that were given.

        Args:
            **arguments: Values that give the same model whatever the presets say: plain data, and never None where
                None would ask a preset. What is no argument of the constructor is left out.
        """
        known = inspect.signature(type(self).__init__).parameters
        self.hparams.update({name: _plain(value) for name, value in arguments.items() if name in known})

    def on_fit_start(self) -> None:
        """Remember which split the model is trained on."""
        super().on_fit_start()
        self.split_sha256 = getattr(getattr(self.trainer, "datamodule", None), "split_hash", None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the class and the hash of the split."""
        super().on_save_checkpoint(checkpoint)
        arguments = checkpoint.get("hyper_parameters", {})
        if arguments.get("weights_path"):  # not read again, see constructor_arguments
            checkpoint["hyper_parameters"] = {
                **arguments,
                "weights_path": without_folders(arguments["weights_path"]),
            }
        checkpoint[CLASS_PATH_KEY] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["split_sha256"] = self.split_sha256
        keep_limits(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the hash of the split, and remember the arguments that the weights belong to."""
        refuse_other_class(checkpoint, type(self))
        super().on_load_checkpoint(checkpoint)
        self.split_sha256 = checkpoint.get("split_sha256")
        take_limits(self, checkpoint)
        self._loaded_arguments = checkpoint.get("hyper_parameters")

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load weights and banks.

        Args:
            state_dict: As in torch.
            *args: As in torch.
            **kwargs: As in torch.

        Raises:
            CheckpointError: If they do not fit this model; the message names the arguments that differ from the
                checkpoint's.
        """
        arguments, self._loaded_arguments = self._loaded_arguments, None
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:
            name = type(self).__name__
            different = differing_arguments(arguments or {}, self.hparams)
            if different:
                msg = (
                    f"The checkpoint does not fit this {name}, for it was trained with "
                    f"{', '.join(f'{key}={theirs!r} (here {ours!r})' for key, theirs, ours in different)}: "
                    f"build the model with {name}.load_from_checkpoint, which takes the checkpoint's own arguments."
                )
            else:
                first = str(error).split("\n")[1].strip() if "\n" in str(error) else str(error)
                msg = (
                    f"The checkpoint does not fit this {name} ({first[:200]}): it is another model's, or of a version "
                    "whose weights had other names; use the version that wrote it, or train again."
                )
            raise CheckpointError(msg) from error

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint as Lightning does, without the pretrained weights that it replaces.

        Args:
            checkpoint_path: As in Lightning.
            *args: As in Lightning.
            **kwargs: As in Lightning; arguments given here win over the checkpoint's.

        Raises:
            CheckpointError: If a path leads to no checkpoint, or to one of another class.
        """
        if isinstance(checkpoint_path, str | Path):
            checkpoint = read_checkpoint(checkpoint_path, cls.checkpoint_safe_globals())
            refuse_other_class(checkpoint, cls)
            arguments = constructor_arguments(checkpoint)
            given = checkpoint["hyper_parameters"]
            kwargs = {name: value for name, value in arguments.items() if value != given.get(name)} | kwargs
        kwargs.setdefault("weights_only", True)
        with weights_come_later():
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)


def read_checkpoint(path: str | Path, extra_safe_globals: Any = ()) -> dict[str, Any]:
    """Read a checkpoint of an Anomalib model; its tensors are read when they are used.

    Args:
        path: The file.
        extra_safe_globals: Types that the model's class allows in its checkpoints.

    Returns:
        The checkpoint as Lightning wrote it; no code in it is run.

    Raises:
        CheckpointError: If there is no such file, or it is no checkpoint of plain data and weights.
    """
    checkpoint = load_checkpoint(path, extra_safe_globals)
    absent = [key for key in ("hyper_parameters", "state_dict") if not isinstance(checkpoint.get(key), Mapping)]
    if absent:
        msg = f"{path} is no checkpoint of an Anomalib model: it lacks {' and '.join(absent)}."
        raise CheckpointError(msg)
    return checkpoint


def refuse_other_class(checkpoint: Mapping[str, Any], cls: type) -> None:
    """Raise if a checkpoint says that another class wrote it.

    Args:
        checkpoint: As Lightning wrote it; one that does not say passes.
        cls: Class of the model that is to take it, which may derive from the one that wrote it.

    Raises:
        CheckpointError: Naming both.
    """
    wrote = checkpoint.get(CLASS_PATH_KEY)
    if wrote is not None and wrote.rpartition(".")[2] not in {one.__name__ for one in cls.__mro__}:
        msg = f"The checkpoint is one of {wrote} and not of {cls.__name__}: take that class for it."
        raise CheckpointError(msg)


def constructor_arguments(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that build a checkpoint's model anywhere.

    Args:
        checkpoint: As :func:`read_checkpoint` gives it.

    Returns:
        Its hyper-parameters. A local file of weights is left out: they are in the checkpoint, and the file may be
        elsewhere by now.
    """
    arguments = dict(checkpoint["hyper_parameters"])
    if arguments.get("weights_path"):
        arguments |= {"weights_path": None, "pre_trained": True}
    return arguments


def differing_arguments(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Arguments of which both sides name a value, and not the same one.

    Args:
        theirs: Arguments by name, None where one was left out.
        ours: The same of the other side.

    Returns:
        Name, their value, our value, in the order of ``theirs``. Lists equal tuples.
    """
    return [
        (name, value, ours[name])
        for name, value in theirs.items()
        if value is not None and ours.get(name) is not None and _plain(value) != _plain(ours[name])
    ]


def _plain(value: Any) -> Any:
    """Lists for tuples, also inside of others: what a configuration file would give."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value

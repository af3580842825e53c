"""The stock `anomalib` command builds our models from the checkpoint that it is given."""

import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from anomalib_cxr.plugin.wrapping import Wrapping

#: A training that goes on may be made longer, or keep another checkpoint; all else is the checkpoint's.
_CHANGEABLE = {"max_steps", "steps_per_epoch", "checkpoint"}
_MODEL_OPTION = re.compile(r"--model\.(?:init_args\.)?(\w+)")


def _wrap_init(stock: Callable[..., None]) -> Callable[..., None]:
    """Remember what was typed: the parsed configuration does not tell it from defaults."""

    @functools.wraps(stock)
    def __init__(self: Any, args: Sequence[str] | None = None, run: bool = True) -> None:  # noqa: N807
        self.typed = list(sys.argv[1:] if args is None else args)
        stock(self, args, run)

    return __init__


def _wrap_trainer_arguments(stock: Any) -> Any:
    """Let `predict` and `export` read the `config.yaml` of a training, which names optimiser and rate, too."""
    add = stock.__func__ if isinstance(stock, staticmethod) else stock

    @functools.wraps(add)
    def _add_trainer_arguments_to_parser(parser: Any, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        add(parser, add_optimizer=True, add_scheduler=True)

    return staticmethod(_add_trainer_arguments_to_parser)


def _wrap_before_instantiation(stock: Callable[..., None]) -> Callable[..., None]:
    """Give one of our models the arguments of the checkpoint that it is to load."""

    @functools.wraps(stock)
    def before_instantiate_classes(self: Any) -> None:
        stock(self)
        config = self.config.get(str(self.subcommand))
        if config is not None and config.get("model") is not None and config.get("ckpt_path"):
            _take_arguments(config, self.typed, resumes=self.subcommand in {"fit", "train"})

    return before_instantiate_classes


def _take_arguments(config: Any, typed: Sequence[str], resumes: bool) -> None:
    """Put a checkpoint's arguments in place of those that nobody gave.

    Args:
        config: Of the subcommand; its model is changed.
        typed: Command line.
        resumes: Whether a training goes on.

    Raises:
        ValueError: If there is no such checkpoint, it is another class's, or an argument was given that contradicts it.
    """
    import importlib

    from anomalib_cxr.models.components.checkpoints import (
        SelfDescribingMixin,
        constructor_arguments,
        differing_arguments,
        read_checkpoint,
        refuse_other_class,
    )

    module, _, name = config.model.class_path.rpartition(".")
    cls: Any = getattr(importlib.import_module(module), name)
    if not issubclass(cls, SelfDescribingMixin):
        return
    path = Path(config.ckpt_path)
    checkpoint = read_checkpoint(path, cls.checkpoint_safe_globals())
    refuse_other_class(checkpoint, cls)
    theirs = constructor_arguments(checkpoint)
    given = {key: value for key, value in config.model.init_args.items() if key in _given(typed)}
    different = differing_arguments(theirs, given)
    if resumes:
        different = [one for one in different if one[0] not in _CHANGEABLE]
    if different:
        named = ", ".join(f"{key}={ours!r} (trained with {value!r})" for key, value, ours in different)
        msg = f"{path} contradicts {named}: leave these arguments out, or give another checkpoint."
        raise ValueError(msg)
    kept = {key for key in given if resumes and key in _CHANGEABLE and given[key] is not None}
    if "max_steps" in kept:
        kept.add("steps_per_epoch")
    for key, value in theirs.items():
        if key in config.model.init_args and key not in kept:
            config.model.init_args[key] = value


def _given(typed: Sequence[str]) -> set[str]:
    """Names of the model's arguments on the command line and in the files that it names."""
    names = {match[1] for word in typed if (match := _MODEL_OPTION.match(word))}
    for word, following in zip(typed, [*typed[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option not in {"--config", "-c"}:
            continue
        file = Path(value if equals else following)
        content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
        model = content.get("model") if isinstance(content, dict) else None
        if isinstance(model, dict):
            names |= set(model.get("init_args") or {}) | (set(model) - {"class_path", "init_args"})
    return names


#: What `anomalib` does before it builds a model.
COMMAND_LINE = Wrapping(
    [
        ("anomalib.cli.cli", "AnomalibCLI.__init__", _wrap_init),
        ("anomalib.cli.cli", "AnomalibCLI._add_trainer_arguments_to_parser", _wrap_trainer_arguments),
        ("anomalib.cli.cli", "AnomalibCLI.before_instantiate_classes", _wrap_before_instantiation),
    ]
)

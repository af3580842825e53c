"""The stock `anomalib` command builds our models from the checkpoint that it is given."""

import argparse
import contextlib
import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from anomalib_cxr.checkpoint_files import CheckpointError
from anomalib_cxr.plugin.wrapping import Wrapping

#: A training that goes on may be made longer, or keep another checkpoint; all else is the checkpoint's.
_CHANGEABLE = {"max_steps", "steps_per_epoch", "checkpoint"}
#: Subcommands that run a model, each of which leaves a `config.yaml`.
_RUNS = ("fit", "validate", "test", "train", "predict", "export")
_MODEL_OPTION = re.compile(r"--model\.(?:init_args\.)?(\w+)")


def _wrap_init(stock: Callable[..., None]) -> Callable[..., None]:
    """Remember what was typed: the parsed configuration does not tell it from defaults."""

    @functools.wraps(stock)
    def __init__(self: Any, args: Sequence[str] | None = None, run: bool = True) -> None:  # noqa: N807
        self.typed = list(sys.argv[1:] if args is None else args)
        stock(self, args, run)

    return __init__


def _wrap_subcommands(stock: Callable[..., None]) -> Callable[..., None]:
    """Let every subcommand read the `config.yaml` that another one left, and pass over what it has no use for."""

    @functools.wraps(stock)
    def add_subcommands(self: Any, **kwargs: Any) -> None:
        stock(self, **kwargs)
        parsers = {name: self.subcommand_parsers[name] for name in _RUNS if name in self.subcommand_parsers}
        names = {
            name: {action.dest.partition(".")[0] for action in parser._actions} for name, parser in parsers.items()
        }
        for name, parser in parsers.items():
            for other in sorted(set().union(*names.values()) - names[name]):
                parser.add_argument(f"--{other}", type=Any, default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    return add_subcommands


def _wrap_before_instantiation(stock: Callable[..., None]) -> Callable[..., None]:
    """Give one of our models the arguments of the checkpoint that it is to load."""

    @functools.wraps(stock)
    def before_instantiate_classes(self: Any) -> None:
        stock(self)
        config = self.config.get(str(self.subcommand))
        self.is_built_from_checkpoint = False
        if config is not None and config.get("ckpt_path", "") is None:
            # A configuration named after it says "ckpt_path: null", which nobody means by it.
            config.ckpt_path = _typed_value(self.typed, "--ckpt_path")
        if config is not None and config.get("model") is not None and config.get("ckpt_path"):
            resumes = self.subcommand in {"fit", "train"}
            self.is_built_from_checkpoint = _take_arguments(config, self.typed, resumes)

    return before_instantiate_classes


def _wrap_instantiation(stock: Callable[..., None]) -> Callable[..., None]:
    """Fetch no pretrained weights that a checkpoint's own replace at once; let constructors speak for themselves."""

    @functools.wraps(stock)
    def instantiate_classes(self: Any) -> None:
        from anomalib_cxr.models.components.pretrained import weights_come_later

        built_later = weights_come_later() if self.is_built_from_checkpoint else contextlib.nullcontext()
        with built_later, _own_errors(self.parser):
            stock(self)

    return instantiate_classes


@contextlib.contextmanager
def _own_errors(parser: Any) -> Iterator[None]:
    """Let a constructor's error out as it was raised: jsonargparse buries it in a list of types that do not fit."""
    from anomalib.data import AnomalibDataModule
    from anomalib.models import AnomalibModule

    raised: list[Exception] = []

    def build(cls: type[Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return cls(*args, **kwargs)
        except Exception as error:
            raised.append(error)
            raise

    for base in (AnomalibModule, AnomalibDataModule):
        parser.add_instantiator(build, base)
    try:
        yield
    except ValueError:
        if raised:
            raise raised[-1] from None
        raise


def _take_arguments(config: Any, typed: Sequence[str], resumes: bool) -> bool:
    """Put a checkpoint's arguments in place of those that nobody gave.

    Args:
        config: Of the subcommand; its model is changed.
        typed: Command line.
        resumes: Whether a training goes on.

    Returns:
        Whether the model is one of ours, and so takes them.

    Raises:
        CheckpointError: If there is no such checkpoint, it is another class's, or an argument contradicts it.
    """
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
        return False
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
        raise CheckpointError(msg)
    kept = {key for key in given if resumes and key in _CHANGEABLE and given[key] is not None}
    if "max_steps" in kept:
        kept.add("steps_per_epoch")
    for key, value in theirs.items():
        if key in config.model.init_args and key not in kept:
            config.model.init_args[key] = value
    return True


def _typed_value(typed: Sequence[str], option: str) -> str | None:
    """Value of an option on the command line, None where it is not there."""
    for word, following in zip(typed, [*typed[1:], None], strict=True):
        name, equals, value = word.partition("=")
        if name == option:
            return value if equals else following
    return None


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
        ("anomalib.cli.cli", "AnomalibCLI.add_subcommands", _wrap_subcommands),
        ("anomalib.cli.cli", "AnomalibCLI.before_instantiate_classes", _wrap_before_instantiation),
        ("anomalib.cli.cli", "AnomalibCLI.instantiate_classes", _wrap_instantiation),
    ]
)

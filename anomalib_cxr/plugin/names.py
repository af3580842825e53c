"""A name that nobody knows is answered with the nearest that somebody does."""

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

_OPTION = re.compile(r"--(model|data)(?:\.class_path)?(?:=(.*))?", re.DOTALL)
_CONFIG = re.compile(r"(?:--config|-c)(?:=(.*))?", re.DOTALL)

#: Modules whose classes go by their bare names. Classes elsewhere are for the command to import.
_REGISTRIES = {
    "model": ("", "anomalib.models", "anomalib_cxr.models"),
    "data": ("", "anomalib.data", "anomalib_cxr.data"),
}


class UnknownNameError(ValueError):
    """There is no such model or datamodule; the message says which names are near."""


def refuse_unknown_names(typed: Sequence[str]) -> None:
    """Look whether the models and datamodules that a command line names exist.

    Args:
        typed: Command line without the program's name.

    Raises:
        UnknownNameError: If there is no such class among all that are registered, Anomalib's and ours.
    """
    predicts = bool(typed) and typed[0] == "predict"
    for section, name in _named(typed):
        module, _, bare = name.rpartition(".")
        is_path = predicts and section == "data"
        if Path(name).exists() or (module not in _REGISTRIES[section] and not (is_path and "/" in name)):
            continue
        known = _classes(section, any_data=is_path)
        if bare in known:
            continue
        kind = {"model": "model", "data": "file, folder or datamodule" if is_path else "datamodule"}[section]
        msg = f"There is no {kind} {name}: {_suggest(bare, known)}"
        raise UnknownNameError(msg)


def _named(typed: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Section, "model" or "data", and class or path that the command line and its configuration files name."""
    for word, following in zip(typed, [*typed, ""][1:], strict=True):
        if match := _OPTION.fullmatch(word):
            name = match[2] if match[2] is not None else following
            if re.fullmatch(r"[\w./\\ -]+", name) and not name.startswith("-") and name != "null":
                yield match[1], name
        elif match := _CONFIG.fullmatch(word):
            yield from _configured(Path(match[1] if match[1] is not None else following))


def _configured(file: Path) -> Iterator[tuple[str, str]]:
    """The same of a configuration file; what is wrong with a file is for the command to say."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return
    for section in _REGISTRIES if isinstance(content, dict) else ():
        inner = content.get(section)
        name = inner.get("class_path") if isinstance(inner, dict) else inner
        if isinstance(name, str):
            yield section, name


def _classes(section: str, any_data: bool) -> list[str]:
    """Names of all classes that may stand in a section, as far as they are imported."""
    from anomalib.data import AnomalibDataModule
    from anomalib.models import AnomalibModule
    from torch.utils.data import DataLoader, Dataset

    bases: tuple[type[Any], ...] = (AnomalibModule,) if section == "model" else (AnomalibDataModule,)
    if any_data:
        bases += (Dataset, DataLoader)
    concrete = (cls for cls in _subclasses(bases) if not inspect.isabstract(cls))
    return sorted({cls.__name__ for cls in concrete if not cls.__name__.startswith("_")})


def _subclasses(classes: Iterable[type[Any]]) -> Iterator[type[Any]]:
    for cls in classes:
        yield from _subclasses(cls.__subclasses__())
        yield cls


def _suggest(name: str, known: Sequence[str]) -> str:
    """Near names, whatever their case; all where none is near."""
    by_lower = {one.lower(): one for one in known}
    near = [by_lower[one] for one in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.65)]
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}."

"""From the plain data of a YAML file to dataclasses: every value checked, every error one sentence that says where."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from anomalib_cxr.checks import check_choice

T = TypeVar("T")

_NAMES: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


class ConfigurationError(ValueError):
    """A configuration that cannot be used. The message says where, why, and what to do."""


def build(kind: type[T], given: Any, place: str, base: Path) -> T:
    """Make a dataclass of plain data.

    Fields may be text, numbers, paths, ``Literal``, further dataclasses, tuples of such (a list in the file), or None.
    ``metadata={"range": (low, high)}`` of a field bounds its number; what ``__post_init__`` refuses by a ValueError is
    refused with the place before it.

    Args:
        kind: Dataclass.
        given: What the file has in its place.
        place: Where that is, for errors.
        base: Folder that paths are relative to.

    Returns:
        The dataclass.

    Raises:
        ConfigurationError: If something is unknown, missing, of another type or out of range.
    """
    if not isinstance(given, Mapping):
        msg = f"{place} must be a list of names with values, not {given!r}."
        raise ConfigurationError(msg)
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    for name in given:
        try:
            check_choice(f"{place}: the name", name, tuple(known))
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
    values = {}
    for name, field in known.items():
        where = f"{place}.{name}"
        if name in given:
            values[name] = _value(hints[name], given[name], where, base)
            _check_range(field, values[name], where)
        elif field.default is MISSING and field.default_factory is MISSING:
            msg = f"{where} is missing: state it."
            raise ConfigurationError(msg)
    try:
        return kind(**values)
    except ConfigurationError:
        raise
    except ValueError as error:
        msg = f"{place}: {error}"
        raise ConfigurationError(msg) from None


def _value(kind: Any, given: Any, place: str, base: Path) -> Any:
    origin = get_origin(kind)
    if origin in {Union, types.UnionType}:
        if given is None and type(None) in get_args(kind):
            return None
        kind = next(part for part in get_args(kind) if part is not type(None))
        return _value(kind, given, place, base)
    if origin is tuple:
        if not isinstance(given, list):
            msg = f"{place} must be a list, not {given!r}."
            raise ConfigurationError(msg)
        return tuple(_value(get_args(kind)[0], one, f"{place}[{number}]", base) for number, one in enumerate(given))
    if origin is Literal:
        try:
            return check_choice(place, given, kind)
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
    if is_dataclass(kind):
        return build(kind, given, place, base)  # type: ignore[arg-type]
    if kind is Path and isinstance(given, str) and given:
        return base / Path(given).expanduser()
    # True is an int to Python, and none to the writer of a file.
    fits = isinstance(given, bool) == (kind is bool) and isinstance(given, (int, float) if kind is float else kind)
    if not fits:
        msg = f"{place} must be {_NAMES[kind]}, not {given!r}."
        raise ConfigurationError(msg)
    return float(given) if kind is float else given


def _check_range(field: "Field[Any]", value: Any, place: str) -> None:
    low, high = field.metadata.get("range", (None, None))
    if low is not None and value is not None and not low <= value <= high:  # NaN too
        msg = f"{place} must lie in {low:g} to {high:g}, {value} does not."
        raise ConfigurationError(msg)

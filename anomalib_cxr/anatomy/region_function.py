"""Functions by the path that they are imported by: what a configuration or a checkpoint can hold of them."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from anomalib_cxr.anatomy.regions import RegionFunction

FunctionPath = str | Mapping[str, Any]
"""``"package.module.name"`` of a function, or of a class that is made without arguments and called; or ``class_path``
and ``init_args`` of a class that is made with them."""


def load_function(given: FunctionPath | Callable[..., Any]) -> RegionFunction:
    """Import what finds the regions.

    Args:
        given: Its path, or the function itself.

    Returns:
        The region that it finds.

    Raises:
        ValueError: If nothing can be imported by the path, or what is there cannot be made or called.
    """
    if callable(given):
        return RegionFunction(given, describe_function(given))
    path, arguments = (given, {}) if isinstance(given, str) else _parts(given)
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        msg = f"region {path!r} cannot be imported ({error}): give the path of a function (image) -> mask."
        raise ValueError(msg) from error
    if isinstance(found, type):
        try:
            found = found(**arguments)
        except TypeError as error:
            msg = f"region {path!r} cannot be made: {error}; give class_path and init_args."
            raise ValueError(msg) from error
    elif arguments:
        msg = f"region {path!r} is a function, which takes no init_args: give the path of a class, or none of them."
        raise ValueError(msg)
    if not callable(found):
        msg = f"region {path!r} cannot be called: give the path of a function (image) -> mask."
        raise ValueError(msg)
    return RegionFunction(found, path)


def describe_function(given: FunctionPath | Callable[..., Any]) -> Any:
    """Say in plain data what finds the regions.

    Args:
        given: A path, or the function itself.

    Returns:
        The path as it is; of a function the path to import it by; of another object that of its class, in angle
        brackets, since its arguments are not known.

    Raises:
        ValueError: If a mapping is not of ``class_path`` and ``init_args``.
    """
    if isinstance(given, Mapping):
        path, arguments = _parts(given)
        return {"class_path": path, "init_args": dict(arguments)}
    if not callable(given):
        return given
    named = given if hasattr(given, "__qualname__") else type(given)
    path = f"{named.__module__}.{named.__qualname__}"
    return path if named is given else f"<{path}>"


def _parts(given: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    if "class_path" not in given or set(given) - {"class_path", "init_args"}:
        msg = f"region must be a path, or class_path and init_args, not {sorted(given)}."
        raise ValueError(msg)
    return given["class_path"], given.get("init_args") or {}

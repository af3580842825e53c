"""Packages whose names load their module at first use, so that importing the package costs nothing (ours)."""

import sys

TYPE_CHECKING = False  # type checkers take it for True; `typing` is slow to load
if TYPE_CHECKING:
    from typing import Any


def at_first_use(package: str) -> tuple[object, object]:
    """Make ``__getattr__`` and ``__dir__`` of a package.

    What it offers stands in its source alone: what it imports below ``if TYPE_CHECKING``, where a star stands for the
    ``__all__`` of the module that it is imported from. None of these modules is imported to know that.

    Args:
        package: Its ``__name__``.

    Returns:
        Both functions; the first raises AttributeError for a name that is not on offer.
    """
    modules: dict[str, str] = {}

    def offered() -> dict[str, str]:
        if not modules:
            modules.update(_imports(package))
        return modules

    def load(name: str) -> object:
        """Load a name at its first use."""
        if name.startswith("__") or name not in offered():
            msg = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(msg)
        from importlib import import_module

        value = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        """List what is on offer, too."""
        return sorted({*vars(sys.modules[package]), *offered()})

    return load, names


def _imports(package: str) -> dict[str, str]:
    """Module of each name that a package's source imports for type checkers."""
    import ast

    found = {}
    for node in ast.walk(_source(package)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                if isinstance(line, ast.ImportFrom) and line.module:
                    for each in line.names:
                        names = _all(line.module) if each.name == "*" else [each.name]
                        found.update(dict.fromkeys(names, line.module))
    return found


def _all(module: str) -> list[str]:
    """What the source of a module names as its ``__all__``."""
    import ast

    return next(
        ast.literal_eval(node.value)
        for node in _source(module).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )


def _source(module: str) -> "Any":
    import ast
    from importlib.util import find_spec

    spec = find_spec(module)
    return ast.parse(spec.loader.get_source(module))  # type: ignore[union-attr]

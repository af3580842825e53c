"""Wrappers put in place of names of Anomalib's, and taken back."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

#: Module of Anomalib, name in it (or "Class.method"), and what makes the wrapper of what stands there.
Wrapper = tuple[str, str, Callable[[Any], Any]]


class Wrapping:
    """A group of wrappers that are put in place and taken back together.

    Args:
        wrappers: One for each name.
    """

    def __init__(self, wrappers: Sequence[Wrapper]) -> None:
        self.wrappers = wrappers
        self._stock: dict[tuple[str, str], Any] = {}

    def put(self) -> None:
        """Wrap the names of those modules that are loaded; what is wrapped already stays as it is.

        Nothing is imported, so this is safe in the midst of an import of Anomalib. Call it again when more is loaded.

        Raises:
            AttributeError: If this version of Anomalib has no such name in a module.
        """
        for module_name, name, wrapper in self.wrappers:
            module = sys.modules.get(module_name)
            if module is None or (module_name, name) in self._stock:
                continue
            first = name.partition(".")[0]
            if not hasattr(module, first) and getattr(module.__spec__, "_initializing", False):
                continue
            owner, attribute = _owner(module, name)
            stock = vars(owner).get(attribute, getattr(owner, attribute))
            setattr(owner, attribute, wrapper(stock))
            self._stock[module_name, name] = stock

    def take_back(self) -> None:
        """Put back the very objects that were wrapped; without them, do nothing."""
        while self._stock:
            (module_name, name), stock = self._stock.popitem()
            owner, attribute = _owner(sys.modules[module_name], name)
            setattr(owner, attribute, stock)


def _owner(module: Any, name: str) -> tuple[Any, str]:
    """What holds the name: the module, or a class in it."""
    *classes, attribute = name.split(".")
    for one in classes:
        module = getattr(module, one)
    return module, attribute

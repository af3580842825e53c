"""Docstrings' roles, literal blocks and ``#:`` comments, which are Sphinx's, in the Markdown of the site."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(?P<short>~?)(?P<name>[\w.]+)`")
_MATH = re.compile(r":math:(?=`)")
_DIRECTIVE = re.compile(r"^(\s*)\.\. math::\n", re.M)
_LITERAL = re.compile(r"::$", re.M)
_EXAMPLE = re.compile(r"^\s*Example:$", re.M)


class Roles(griffe.Extension):
    """Make a link of each role; one that names nothing of ours becomes a link to nowhere, which ends a strict build."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        del kwargs
        if obj.is_attribute and not obj.docstring:
            comment = _comment_above(obj)
            obj.docstring = griffe.Docstring(comment, lineno=obj.lineno, parent=obj) if comment else None
        if obj.docstring:
            if _EXAMPLE.search(obj.docstring.value):
                msg = f"{obj.path}: the section is called 'Examples:'; what stands below 'Example:' is shown as prose."
                raise ValueError(msg)
            text = _ROLE.sub(lambda match: _link(match, obj), obj.docstring.value)
            obj.docstring.value = _LITERAL.sub(":", _DIRECTIVE.sub("", _MATH.sub("", text)))


def _comment_above(obj: griffe.Object) -> str:
    """What ``#:`` lines right above an attribute say of it."""
    lines = obj.lines_collection[obj.filepath][: (obj.lineno or 1) - 1]
    said: list[str] = []
    while lines and (line := lines.pop().strip()).startswith("#:"):
        said.insert(0, line.removeprefix("#:").strip())
    return "\n".join(said)


def _link(match: re.Match[str], obj: griffe.Object) -> str:
    """``[`short`][full.name]``, or code where the name belongs to another package."""
    name = match["name"]
    shown = name.rpartition(".")[2] if match["short"] else name
    first, _, rest = name.partition(".")
    try:
        full = ".".join(filter(None, (obj.resolve(first), rest)))
    except griffe.NameResolutionError:
        full = name
    return f"[`{shown}`][{full}]" if full.partition(".")[0] == "anomalib_cxr" or "." not in full else f"`{shown}`"

"""The check of an argument that takes one of a few values."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, get_args, get_origin

T = TypeVar("T")


def check_choice(name: str, value: T, allowed: Any) -> T:
    """Check an argument that takes one of a few values.

    Types are checked on the command line alone: from Python, a misspelt word would go on as whatever comes last.

    Args:
        name: The argument's name, for the error.
        value: What was given.
        allowed: The values, or a ``Literal`` of them, ``| None`` where None is one.

    Returns:
        The value.

    Raises:
        ValueError: If it is none of them; the message lists them, and names the nearest.

    Examples:
        >>> check_choice("lr_schedule", "cosin", ("cosine", "constant"))
        Traceback (most recent call last):
        ...
        ValueError: lr_schedule must be one of 'cosine', 'constant', not 'cosin': did you mean 'cosine'?
    """
    choices = tuple(_choices(allowed))
    if value in choices:
        return value
    words = [choice for choice in choices if isinstance(choice, str)]
    near = get_close_matches(str(value).lower(), words, n=1)
    listed = ", ".join(repr(choice) for choice in choices)
    hint = f": did you mean {near[0]!r}?" if near else "."
    msg = f"{name} must be one of {listed}, not {value!r}{hint}"
    raise ValueError(msg)


def _choices(allowed: Any) -> Iterable[Any]:
    """The values of a ``Literal``, or of a union of such; what is no type is given back."""
    if get_origin(allowed) is Literal:
        return get_args(allowed)
    if get_args(allowed):
        return [value for one in get_args(allowed) for value in _choices(one)]
    return [None] if allowed is type(None) else allowed

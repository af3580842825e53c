"""The check of an argument that takes one of a few values."""

from difflib import get_close_matches
from typing import Any, TypeVar, get_args

T = TypeVar("T")


def check_choice(name: str, value: T, allowed: Any) -> T:
    """Check an argument that takes one of a few values.

    Types are checked on the command line alone: from Python, a misspelt word would go on as whatever comes last.

    Args:
        name: The argument's name, for the error.
        value: What was given.
        allowed: The values, or a ``Literal`` of them.

    Returns:
        The value.

    Raises:
        ValueError: If it is none of them; the message lists them, and names the nearest.

    Example:
        >>> check_choice("lr_schedule", "cosin", ("cosine", "constant"))
        Traceback (most recent call last):
        ...
        ValueError: lr_schedule must be one of 'cosine', 'constant', not 'cosin': did you mean 'cosine'?
    """
    choices = get_args(allowed) or tuple(allowed)
    if value in choices:
        return value
    words = [choice for choice in choices if isinstance(choice, str)]
    near = get_close_matches(str(value).lower(), words, n=1)
    listed = ", ".join(repr(choice) for choice in choices)
    hint = f": did you mean {near[0]!r}?" if near else "."
    msg = f"{name} must be one of {listed}, not {value!r}{hint}"
    raise ValueError(msg)

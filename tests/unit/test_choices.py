"""Every argument that takes one of a few words refuses another word by its name, from Python too."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin
from unittest.mock import MagicMock

import pytest

import anomalib_cxr
from anomalib_cxr.checks import check_choice

WRONG = "no such word"


def choices(hint: Any) -> list[Any]:
    """Values of the ``Literal`` in a type, alone or among others; none if any text will do."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) in (Union, UnionType) and str not in get_args(hint):
        return [value for one in get_args(hint) for value in choices(one)]
    return []


def hint_of(parameter: inspect.Parameter, signature: Callable[..., Any]) -> Any:
    """Type of a parameter; None where it is written as a name of an optional package, which has no words of ours."""
    hint = parameter.annotation
    try:
        return eval(hint, signature.__globals__) if isinstance(hint, str) else hint
    except NameError:
        return None


def wrong_value(hint: Any) -> Any:
    """A value of the kind that the type asks for, with a word that is none of its; None where it has no words."""
    if choices(hint):
        return WRONG
    (inner,) = get_args(hint) if len(get_args(hint)) == 1 else (None,)
    return [WRONG] if choices(inner) else None


def public(module: Any) -> Iterator[tuple[str, Callable[..., Any], Callable[..., Any]]]:
    """Name, what has the signature and what to call: functions, classes and their methods that a module defines."""
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(thing):
            yield name, thing, thing
        elif inspect.isclass(thing) and not issubclass(thing, tuple):  # a named tuple is what a function gives back
            if "__init__" in vars(thing) and not hasattr(thing, "__dataclass_fields__"):
                yield name, thing.__init__, constructor(thing)
            for member, method in vars(thing).items():
                function = getattr(method, "__func__", method)
                if not member.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{member}", function, function


def constructor(cls: type) -> Callable[..., Any]:
    """Make an object of a class or, where it is abstract, of one below it."""
    if not inspect.isabstract(cls):
        return lambda self, **arguments: cls(**arguments)
    concrete = type(f"Concrete{cls.__name__}", (cls,), {})  # a class of the same name would be taken for another model
    concrete.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
    return lambda self, **arguments: concrete(**arguments)


def arguments_with_choices() -> Iterator[Any]:
    for found in pkgutil.walk_packages(anomalib_cxr.__path__, "anomalib_cxr."):
        if "_startup" in found.name or found.name.endswith("__main__"):
            continue
        for name, signature, call in public(importlib.import_module(found.name)):
            for argument, parameter in inspect.signature(signature).parameters.items():
                value = wrong_value(hint_of(parameter, signature))
                if value is not None:
                    where = f"{found.name.removeprefix('anomalib_cxr.')}.{name}-{argument}"
                    yield pytest.param(signature, call, argument, value, id=where)


@pytest.mark.parametrize(("signature", "call", "argument", "value"), list(arguments_with_choices()))
def test_another_word_is_refused_before_anything_else(
    signature: Callable[..., Any], call: Callable[..., Any], argument: str, value: Any
) -> None:
    given = {
        name: next(iter(choices(hint_of(parameter, signature))), MagicMock(name=name))
        for name, parameter in inspect.signature(signature).parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    given.setdefault("self", None)
    if "self" not in inspect.signature(signature).parameters:
        del given["self"]
    with pytest.raises(ValueError, match=f"^`?{argument}`? must be .*{WRONG}"):
        call(**given | {argument: value})


def test_some_arguments_are_looked_at() -> None:
    looked_at = " ".join(parameters.id for parameters in arguments_with_choices())
    for known in ("lightning_model.AnatPaste-lr_schedule", "segment_lungs-method", "MultiResPatchSSLModel-score"):
        assert known in looked_at


def test_unions_of_words_and_none_are_taken_apart() -> None:
    hint = Literal["a", "b"] | Literal[3] | None
    assert [check_choice("x", value, hint) for value in ("a", 3, None)] == ["a", 3, None]
    assert check_choice("x", None, (None, "a")) is None
    with pytest.raises(ValueError, match=r"^x must be one of 'a', 'b', 3, None, not 'c'"):
        check_choice("x", "c", hint)

"""Check a value against a type annotation, and convert it: an int is accepted as a float, a float is no int."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Container, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from foundation.config.plain import key_of
from foundation.core.errors import UserError
from foundation.core.registry import UntypedNameError, resolve_attribute
from foundation.core.text import quoted

MAX_INTEGER = 2**53
"""Largest integer: every smaller one is a ``float`` too, and what is counted up from it still fits into 64 bits."""
_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "a mapping {key: value}",
    type(None): "null",
    Path: "a path",
}


class MisfitError(ValueError):
    """A value does not fit its type; the message states what would."""


@cache
def field_hints(cls: type) -> dict[str, Any]:
    """Return the annotations of a class, resolved one by one; what cannot be resolved is ``Any``."""
    try:
        return typing.get_type_hints(cls)
    except Exception:  # an annotation imported only for type checkers, in someone else's config class
        hints: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            for name, annotation in inspect.get_annotations(base).items():
                hints[name] = _evaluate(annotation, base)
        return hints


def _evaluate(annotation: object, owner: type) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, vars(sys.modules[owner.__module__]), dict(vars(owner)))
    except Exception:
        return Any


def members(hint: object) -> tuple[Any, ...]:
    """Return the alternatives of a union, or the annotation alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def choices_of(hint: object) -> tuple[str, ...]:
    """Return the texts that an annotation is a choice of (``Literal``), or none."""
    literals = [get_args(member) for member in members(hint) if get_origin(member) is typing.Literal]
    return tuple(choice for choices in literals for choice in choices if isinstance(choice, str))


def value_hint(hint: object) -> Any:
    """Return the type of the values of a ``dict[K, V]`` annotation, or ``Any``."""
    for member in members(hint):
        if get_origin(member) in (dict, Mapping):
            return get_args(member)[1]
    return Any


def is_mapping(hint: object) -> bool:
    """Return whether an annotation accepts a mapping with keys of the user's choice."""
    return any((get_origin(m) or m) in (dict, Mapping) for m in members(hint))


def describe(hint: object) -> str:
    """Put an annotation in a user's words."""
    if len(members(hint)) > 1:
        return " or ".join(dict.fromkeys(describe(m) for m in members(hint)))
    if get_origin(hint) is typing.Literal:
        return " | ".join(repr(a) for a in get_args(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return " | ".join(repr(m.name) for m in hint)
    origin = get_origin(hint) or hint
    args = get_args(hint)
    if origin is tuple and args and args[-1] is not Ellipsis:
        return f"a list of {len(args)}: {', '.join(describe(a) for a in args)}"
    if origin in (list, tuple, set) and args:
        return f"a list, each {describe(args[0])}"
    if origin in _NAMES:
        return _NAMES[origin]
    if isinstance(origin, type) and dataclasses.is_dataclass(origin):
        names = [key_of(entry.name) for entry in dataclasses.fields(origin)]
        return f"{{{', '.join(f'{name}: ...' for name in names[:2])}{', ...' if len(names) > 2 else ''}}}"
    return getattr(origin, "__name__", str(origin))


def fit(value: object, hint: object) -> Any:
    """Convert ``value`` to the annotated type.

    Raises:
        MisfitError: If it does not fit; the message is what would have been accepted.
    """
    alternatives = members(hint)
    for alternative in alternatives:  # an exact match first, so that int | float keeps an int
        if isinstance(alternative, type) and type(value) is alternative and type(value) not in (list, tuple, dict):
            return _in_range(_not_nan(value))
    for alternative in alternatives:
        try:
            return _fit_one(value, alternative)
        except MisfitError:
            continue
    raise MisfitError(describe(hint))


def read_fields(cls: type, values: Mapping[Any, Any], where: str, leave: Container[str] = ()) -> dict[str, Any]:
    """Return the values of a dataclass's fields that a file holds, each of its annotated type; no others.

    Args:
        cls: The dataclass. A field without a default has to be there.
        values: What the file holds.
        where: What to name in the error.
        leave: Fields that are read otherwise.

    Raises:
        UserError: Naming the first field that is missing or of another type.
    """
    hints = field_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        if field.name in leave:
            continue
        key = key_of(field.name)
        if key not in values:
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise UserError(f"{where} is corrupt or incomplete: it lacks '{key}'.")
            continue
        try:
            found[field.name] = fit(values[key], hints[field.name])
        except MisfitError as error:
            raise UserError(f"{where} is corrupt: '{key}' is {quoted(values[key])}, it must be {error}.") from None
    return found


def _not_nan(value: object) -> Any:
    if isinstance(value, float) and math.isnan(value):
        raise MisfitError("a number that is not NaN")
    return value


def _in_range(value: object) -> Any:
    """Refuse integers that neither a checkpoint nor a tensor's counters hold; as a ``float`` they would be others."""
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise MisfitError(f"an integer of at most {MAX_INTEGER}")
    return value


def _fit_one(value: Any, hint: Any) -> Any:
    if hint is Any or hint is object or isinstance(hint, typing.TypeVar):
        return _not_nan(value)
    if hint is None or hint is type(None):
        return _need(value is None, value, hint)
    origin = get_origin(hint) or hint
    args = get_args(hint)
    if origin is typing.Literal:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and str(value) in args:
            return str(value)
        return _need(any(value == a and type(value) is type(a) for a in args), value, hint)
    if origin in (list, tuple, set, frozenset) or (isinstance(origin, type) and origin in _SEQUENCES):
        return _fit_sequence(value, hint, origin, args)
    if origin in (dict, Mapping):
        _need(isinstance(value, Mapping), value, hint)
        return {k: fit(v, args[1]) if args else v for k, v in value.items()}
    if origin is type or origin is Callable:
        return _fit_callable(value, hint)
    if isinstance(origin, type):
        return _fit_class(value, origin)
    return value  # an annotation this function does not know: leave it to its owner


_SEQUENCES = (typing.get_origin(typing.Sequence[int]), typing.get_origin(typing.Iterable[int]))


def _need(ok: bool, value: object, hint: object) -> Any:
    if not ok:
        raise MisfitError(describe(hint))
    return value


def _fit_sequence(value: Any, hint: Any, origin: Any, args: tuple[Any, ...]) -> Any:
    _need(isinstance(value, (list, tuple)), value, hint)
    if origin is tuple and args and args[-1] is not Ellipsis:
        _need(len(value) == len(args), value, hint)
        return tuple(fit(v, a) for v, a in zip(value, args, strict=True))
    items = [fit(v, args[0]) for v in value] if args else list(value)
    return items if origin in (list, *_SEQUENCES) else origin(items)


def _fit_class(value: object, cls: type) -> Any:
    if cls is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _not_nan(_as_float(value))
    if cls is int and isinstance(value, int) and not isinstance(value, bool):
        return _in_range(value)
    if cls is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if issubclass(cls, enum.Enum) and isinstance(value, str):
        return _need(value in cls.__members__, value, cls) and cls[value]
    if issubclass(cls, Path) and isinstance(value, str):
        return cls(value)
    if cls in (int, bool):
        return _need(type(value) is cls, value, cls)
    return _need(isinstance(value, cls), value, cls)


def _as_float(value: float) -> float:
    """Convert a number, which may be an integer larger than any ``float``."""
    try:
        return float(value)
    except OverflowError:
        raise MisfitError(f"a number of at most {sys.float_info.max:g}") from None


def _fit_callable(value: object, hint: object) -> Any:
    if isinstance(value, str) and ":" in value:
        return import_attribute(value)
    return _need(callable(value), value, hint)


def import_attribute(spec: str) -> Any:
    """Import ``"pkg.module:Attr"``.

    Raises:
        MisfitError: If there is no such module or attribute; the message states which.
        UserError: If a file alone names the module.
    """
    try:
        return resolve_attribute(spec, "the value")
    except UntypedNameError:
        raise
    except UserError as error:
        kind = "can be imported" if isinstance(error.__cause__, ImportError) else "exists"
        raise MisfitError(f'a "pkg.module:Attr" that {kind} ({error.__cause__})') from None

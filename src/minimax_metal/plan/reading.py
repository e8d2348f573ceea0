"""Dataclasses from plain data, by their type hints: pure.

Strictly: what this version writes and nothing else. Leniently: what some version wrote, as far as this one
understands it.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from math import isfinite
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from minimax_metal.common.text import one_line

T = TypeVar("T")

_NONE: Any = type(None)
_NAMES: Mapping[Any, str] = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false",
    tuple: "a list", Mapping: "an object", _NONE: "null",
}  # fmt: skip
_NEUTRAL: Mapping[Any, Any] = {str: "", int: 0, float: 0.0, bool: False, tuple: ()}


class ShapeError(ValueError):
    """Data of another shape; the text is "found ..., expected ..." and names the key."""


class _Kind(NamedTuple):
    """One of the types that a hint allows."""

    form: Any
    """A plain type, tuple, Mapping (of a dataclass, too), or Any."""
    inside: tuple[Any, ...]
    """Hints of what is inside a tuple or a mapping."""
    record: Any
    """The dataclass, or none."""


def strict(kind: type[T], value: Any) -> T:
    """Return the dataclass of that data.

    Raises:
        ShapeError: a key is unknown or missing, or a value is of another type.
    """
    found: T = _read(kind, value, "", lenient=False)
    return found


def lenient(kind: type[T], value: Any) -> T:
    """Return the dataclass of that data, whatever it is: unknown keys are left out.

    What is missing or of another type takes the field's neutral value: none where the field may be none, else
    an empty text, list or mapping, 0 or false. A list loses the items that are of another type.
    """
    found: T = _read(kind, value, "", lenient=True)
    return found


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _kinds(hint: Any) -> tuple[_Kind, ...]:
    united = get_origin(hint) in {Union, types.UnionType}
    return tuple(
        _Kind(Mapping, (), one) if is_dataclass(one) else _Kind(get_origin(one) or one, get_args(one), None)
        for one in (get_args(hint) if united else (hint,))
    )


def _fits(kind: _Kind, value: Any) -> bool:
    """Whether a value is of a type at all, whatever is inside; a boolean is not a number."""
    form = kind.form
    if form is Any:
        return True
    if form is Mapping:
        return isinstance(value, dict | Mapping)
    if form is tuple:
        return isinstance(value, list | tuple)
    if form is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return isinstance(value, form) and (form is bool or not isinstance(value, bool))


def _read(hint: Any, value: Any, where: str, *, lenient: bool) -> Any:
    kinds = _kinds(hint)
    for kind in kinds:
        if _fits(kind, value):
            return _inside(kind, value, where, lenient=lenient)
    if not lenient:
        raise ShapeError(f"found {where} {one_line(repr(value), 80)}, expected {_named(hint)}")
    if any(kind.form is _NONE for kind in kinds):
        return None
    return _inside(kinds[0], {}, where, lenient=True) if kinds[0].form is Mapping else _NEUTRAL[kinds[0].form]


def _inside(kind: _Kind, value: Any, where: str, *, lenient: bool) -> Any:
    if kind.record:
        return _object(kind.record, value, where, lenient=lenient)
    if kind.form is tuple:
        (hint, *_) = kind.inside
        return tuple(
            _read(hint, item, f"{where}[{number}]", lenient=lenient)
            for number, item in enumerate(value)
            if not lenient or any(_fits(one, item) for one in _kinds(hint))
        )
    if kind.form is Mapping:
        key_hint, hint = kind.inside
        return {
            int(key) if key_hint is int else str(key): _read(hint, item, _under(where, key), lenient=lenient)
            for key, item in value.items()
            if _is_key(key_hint, key, where, lenient=lenient)
            and (not lenient or any(_fits(one, item) for one in _kinds(hint)))
        }
    return value


def _object(kind: Any, value: Mapping[str, Any], where: str, *, lenient: bool) -> Any:
    hints = _hints(kind)
    if not lenient:
        for key in value:
            if key not in hints:
                raise ShapeError(f"found the unknown key {_under(where, key)}, expected only known ones")
        for key, hint in hints.items():
            if key not in value:
                raise ShapeError(f"found no key {_under(where, key)}, expected {_named(hint)}")
    return kind(
        **{
            key: _read(hint, value.get(key), _under(where, key), lenient=lenient)
            for key, hint in hints.items()
        }
    )


def _is_key(hint: Any, key: Any, where: str, *, lenient: bool) -> bool:
    """Whether a key of a mapping is of that type: JSON has texts only, so a number is written as one."""
    text = str(key)
    good = hint is not int or (text.isascii() and text.isdecimal() and len(text) < 19)
    if not good and not lenient:
        raise ShapeError(f"found the key {one_line(repr(key), 80)} in {where}, expected a whole number")
    return good


def _under(where: str, key: Any) -> str:
    name = key if isinstance(key, str) and key.isidentifier() else one_line(str(key), 80)
    return f"{where}.{name}" if where else name


def _named(hint: Any) -> str:
    """What a type is called in messages."""
    return " or ".join(_NAMES.get(kind.form, "a value") for kind in _kinds(hint))

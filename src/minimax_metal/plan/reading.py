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
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from minimax_metal.common.text import one_line

T = TypeVar("T")

_NAMES: Mapping[Any, str] = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false",
    tuple: "a list", Mapping: "an object", types.NoneType: "null",
}  # fmt: skip
_NEUTRAL: Mapping[Any, Any] = {str: "", int: 0, float: 0.0, bool: False}


class ShapeError(ValueError):
    """Data of another shape; the text is "found ..., expected ..." and names the key."""


def strict(kind: type[T], value: Any, where: str = "") -> T:
    """Return the dataclass of that data; ``where`` is put before the names of its keys.

    Raises:
        ShapeError: a key is unknown or missing, or a value is of another type.
    """
    found: T = _strict(kind, value, where)
    return found


def lenient(kind: type[T], value: Any) -> T:
    """Return the dataclass of that data, whatever it is: unknown keys are left out.

    What is missing or of another type takes the field's neutral value: none where the field may be none, else
    an empty text, list or mapping, 0 or false. A list loses the items that are of another type.
    """
    found: T = _lenient(kind, value)
    return found


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _may_be(kind: Any) -> tuple[Any, ...]:
    """The types of a union; of any other hint the hint itself."""
    return get_args(kind) if get_origin(kind) in {Union, types.UnionType} else (kind,)


def _named(kind: Any) -> str:
    """What a type is called in messages."""
    names = [
        "an object" if is_dataclass(one) else _NAMES.get(get_origin(one) or one, "a value")
        for one in _may_be(kind)
    ]
    return " or ".join(names)


def _is(kind: Any, value: Any) -> bool:
    """Whether a value is of a plain type; a boolean is not a number."""
    if kind is types.NoneType:
        return value is None
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _strict(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    for one in _may_be(kind):
        origin = get_origin(one)
        if is_dataclass(one):
            if isinstance(value, Mapping):
                return _object(one, value, where)
        elif origin is tuple:
            if isinstance(value, list | tuple):
                return tuple(_strict(get_args(one)[0], item, f"{where}[{n}]") for n, item in enumerate(value))
        elif origin is Mapping:
            if isinstance(value, Mapping):
                key_kind, item_kind = get_args(one)
                return {
                    _key(key_kind, key, where): _strict(item_kind, item, f"{where}.{one_line(str(key), 80)}")
                    for key, item in value.items()
                }
        elif _is(one, value):
            return value
    raise ShapeError(f"found {where} {one_line(repr(value), 80)}, expected {_named(kind)}")


def _object(kind: Any, value: Mapping[str, Any], where: str) -> Any:
    hints = _hints(kind)
    inside = f"{where}." if where else ""
    for key in value:
        if key not in hints:
            raise ShapeError(
                f"found the unknown key {inside}{one_line(str(key), 80)}, expected only known ones"
            )
    for key, hint in hints.items():
        if key not in value:
            raise ShapeError(f"found no key {inside}{key}, expected {_named(hint)}")
    return kind(**{key: _strict(hint, value[key], inside + key) for key, hint in hints.items()})


def _key(kind: Any, key: Any, where: str) -> Any:
    """A key of a mapping: JSON has texts only, so a number is written as one."""
    if kind is int and not (str(key).isascii() and str(key).isdecimal() and len(str(key)) < 19):
        raise ShapeError(f"found the key {one_line(repr(key), 80)} in {where}, expected a whole number")
    return int(key) if kind is int else str(key)


def _lenient(kind: Any, value: Any) -> Any:
    if kind is Any:
        return value
    kinds = _may_be(kind)
    for one in kinds:
        origin = get_origin(one) or one
        if is_dataclass(one):
            if isinstance(value, Mapping):
                made: Any = one
                return made(**{key: _lenient(hint, value.get(key)) for key, hint in _hints(made).items()})
        elif origin is tuple:
            if isinstance(value, list | tuple):
                return tuple(
                    _lenient(get_args(one)[0], item) for item in value if _fits(get_args(one)[0], item)
                )
        elif origin is Mapping:
            if isinstance(value, Mapping):
                key_kind, item_kind = get_args(one)
                return {
                    _key(key_kind, key, ""): _lenient(item_kind, item)
                    for key, item in value.items()
                    if _fits(item_kind, item) and _fits_key(key_kind, key)
                }
        elif _is(one, value):
            return value
    return _neutral(kinds)


def _neutral(kinds: tuple[Any, ...]) -> Any:
    if types.NoneType in kinds:
        return None
    if is_dataclass(kinds[0]):
        return _lenient(kinds[0], {})
    origin = get_origin(kinds[0]) or kinds[0]
    return () if origin is tuple else {} if origin is Mapping else _NEUTRAL[origin]


def _fits(kind: Any, value: Any) -> bool:
    """Whether an item is of a type at all, whatever is inside."""
    return kind is Any or any(
        isinstance(value, Mapping)
        if is_dataclass(one) or get_origin(one) is Mapping
        else isinstance(value, list | tuple)
        if get_origin(one) is tuple
        else _is(one, value)
        for one in _may_be(kind)
    )


def _fits_key(kind: Any, key: Any) -> bool:
    try:
        _key(kind, key, "")
    except ShapeError:
        return False
    return True

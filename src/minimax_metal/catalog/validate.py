"""Validates a catalogue with pydantic. Imported only when there is something to validate: it takes 0.3 s."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from minimax_metal.catalog.schema import Catalog, Entry, Figure
from minimax_metal.common.errors import UserError


@cache
def _adapter() -> TypeAdapter[Catalog]:
    return TypeAdapter(Catalog)


def validated(document: Mapping[str, Any]) -> Catalog:
    """Return the catalogue from a document in the files' format.

    Raises:
        UserError: the document does not have that format; one line, with the place.
    """
    document = _with_figures(document, Catalog)
    try:
        catalog = _adapter().validate_python(document)
    except ValidationError as error:
        raise UserError(
            f"catalogue: {_one_line(error)}; compare with the shape on top of models.yml"
        ) from error
    _note_written(catalog, document)
    return catalog


_hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)


def _with_figures(value: Any, kind: Any) -> Any:
    """Return the value with its bare numbers as the user's :class:`Figure` where ``kind`` expects one.

    Anything that does not match ``kind`` stays unchanged: pydantic reports the error.
    """
    arguments = [one for one in get_args(kind) if one is not NoneType]
    if kind is Figure:
        if isinstance(value, int) and not isinstance(value, bool):
            value = {"value": value}
        if isinstance(value, Mapping) and set(value) == {"value"}:
            return {**value, "confidence": "U", "source": "catalogue overlay"}
    elif isinstance(kind, type) and issubclass(kind, Entry) and isinstance(value, Mapping):
        return {key: _with_figures(one, _hints(kind).get(key)) for key, one in value.items()}
    elif get_origin(kind) is dict and isinstance(value, Mapping):
        return {key: _with_figures(one, arguments[1]) for key, one in value.items()}
    elif get_origin(kind) is tuple and isinstance(value, list):
        return [_with_figures(one, arguments[0]) for one in value]
    elif len(arguments) == 1:  # X | None
        return _with_figures(value, arguments[0])
    return value


def _note_written(found: Any, document: Any) -> None:
    """Note in every entry which fields the document sets."""
    if isinstance(found, Entry):
        found.__dict__["written"] = frozenset(document)
        for name in document:
            _note_written(getattr(found, name), document[name])
    elif isinstance(found, Mapping):
        # Keys may have become numbers; the order is the document's. 8 and "8" became one.
        for one, written in zip(found.values(), document.values(), strict=False):
            _note_written(one, written)
    elif isinstance(found, tuple):
        for one, written in zip(found, document, strict=True):
            _note_written(one, written)


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    # Pydantic speaks of arguments when an entry has an unknown key.
    message = "unknown key" if first["type"] == "unexpected_keyword_argument" else first["msg"]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {message}{more}"

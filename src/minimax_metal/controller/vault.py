"""Variables encrypted with ansible-vault: the files that contain them, and their decrypted values."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.files import read_bounded

MARK: Final = "__ansible_vault"
"""The key under which ansible-inventory prints an encrypted value."""
MASK: Final = "***"
_HEAD: Final = b"$ANSIBLE_VAULT;"
_FILES: Final = 5_000
_BYTES: Final = 4 << 20
_SHORT: Final = 4
"""A value with fewer characters is masked only as a whole word: otherwise it would mask half a page."""


def encrypted_files(inventories: Sequence[str | Path]) -> list[str]:
    """Return the inventory files that contain encrypted variables, whole or inline, sorted."""
    found = []
    for path in _files(inventories):
        try:
            content = read_bounded(path, _BYTES)
        except OSError:
            continue
        if content.startswith(_HEAD) or _HEAD in content:
            found.append(str(path))
    return sorted(set(found))


def _files(inventories: Sequence[str | Path]) -> Iterator[Path]:
    left = _FILES
    for inventory in map(Path, inventories):
        beside = inventory if inventory.is_dir() else inventory.parent
        places = [inventory, *(beside / name for name in ("group_vars", "host_vars"))]
        for place in places:
            if place.is_file():
                yield place
            elif place.is_dir():
                for directory, _, names in os.walk(place):
                    for name in sorted(names):
                        left -= 1
                        if left < 0:
                            return
                        yield Path(directory, name)


def is_encrypted(value: Any) -> bool:
    """Return whether a value from ansible-inventory is encrypted, or contains one that is."""
    if isinstance(value, Mapping):
        return MARK in value or any(is_encrypted(one) for one in value.values())
    return isinstance(value, list) and any(is_encrypted(one) for one in value)


def decrypted_of(listed: Any, filled: Any) -> list[str]:
    """Return the texts that were decrypted.

    Args:
        listed: variables as ansible-inventory lists them.
        filled: the same with everything decrypted and filled in.
    """
    if isinstance(listed, Mapping):
        if MARK in listed:
            return _texts(filled)
        if isinstance(filled, Mapping):
            return [
                text
                for key, one in listed.items()
                if key in filled
                for text in decrypted_of(one, filled[key])
            ]
    if isinstance(listed, list) and isinstance(filled, list):
        return [text for one, other in zip(listed, filled, strict=False) for text in decrypted_of(one, other)]
    return []


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for one in value.values() for text in _texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    return [str(value)] if isinstance(value, str | int | float) and not isinstance(value, bool) else []


def masked(value: Any, secrets: Sequence[str]) -> Any:
    """Return a value (texts, lists, mappings, dataclasses) without any decrypted text."""
    if not secrets:
        return value
    if isinstance(value, str):
        return _masked_text(value, secrets)
    if isinstance(value, Mapping):
        return {key: masked(one, secrets) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(masked(one, secrets) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.init]
        return replace(value, **{name: masked(getattr(value, name), secrets) for name in names})
    return value


def _masked_text(text: str, secrets: Sequence[str]) -> str:
    for secret in sorted(set(secrets), key=len, reverse=True):
        if text == secret:
            return MASK
        if len(secret) >= _SHORT:
            text = text.replace(secret, MASK)
    return text

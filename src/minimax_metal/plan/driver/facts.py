"""The answer of the module metal_driver_facts, with the types that its reader expects: pure.

A host may be broken or hostile, and its answer of any shape: parts without their documented type are dropped,
as if the host had not sent them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from minimax_metal.common.text import printable

MOST: Final = 5_000
"""Maximum entries read of a list or a mapping."""
TEXT: Final = 4 << 20
"""Maximum characters of a text: ``nvidia-smi -q`` of 8 GPUs prints about 130,000."""
_TEXTS: Final = ("sources", "dkms", "active_units", "stopped_units", "nodes")
_FLAGS: Final = ("container", "nouveau")


def read_collected(raw: Any) -> dict[str, Any]:
    """Return the valid parts of a host's answer. Raises nothing; unknown keys stay unchanged."""
    if not isinstance(raw, Mapping):
        return {}
    found = {str(key): value for key, value in list(raw.items())[:MOST]}
    readers: dict[str, Any] = dict.fromkeys(_TEXTS, _texts) | dict.fromkeys(_FLAGS, _flag)
    readers |= {
        "packages": _packages,
        "versions": _lists,
        "dkms_logs": _lists,
        "module_users": _module_users,
        "kernels": _kernels,
        "keys": _keys,
        "uninstaller": _text,
        "modprobe": _text,
        "fabric": _answer,
    }
    return {key: readers[key](value) if key in readers else value for key, value in found.items()}


def _text(value: Any) -> str | None:
    return printable(value[:TEXT]) if isinstance(value, str) and value else None


def _flag(value: Any) -> bool:
    return value is True


def _texts(value: Any) -> list[str]:
    items = value[:MOST] if isinstance(value, (list, tuple)) else []
    return [printable(one[:TEXT]) for one in items if isinstance(one, str)]


def _items(value: Any) -> list[tuple[str, Any]]:
    pairs = list(value.items())[:MOST] if isinstance(value, Mapping) else []
    return [(key, one) for key, one in pairs if isinstance(key, str)]


def _lists(value: Any) -> dict[str, list[str]]:
    return {key: _texts(one) for key, one in _items(value)}


def _packages(value: Any) -> dict[str, dict[str, str]]:
    return {
        name: {part: _text(package.get(part)) or "" for part in ("state", "version", "source")}
        for name, package in _items(value)
        if isinstance(package, Mapping)
    }


def _kernels(value: Any) -> dict[str, Any]:
    parts = dict(_items(value))
    if not parts:
        return {}
    return {"running": _text(parts.get("running")) or ""} | {
        part: _texts(parts.get(part)) for part in ("modules", "bootable", "headers")
    }


def _keys(value: Any) -> dict[str, bool]:
    return {path: known for path, known in _items(value) if isinstance(known, bool)}


def _module_users(value: Any) -> dict[str, Any]:
    parts = dict(_items(value))
    processes = parts.get("processes")
    return {
        "holders": _lists(parts.get("holders")),
        "processes": [
            {"pid": one["pid"], "name": _text(one.get("name")) or "a process"}
            for one in (processes[:MOST] if isinstance(processes, list) else [])
            if isinstance(one, Mapping) and isinstance(one.get("pid"), int)
        ],
    }


def _answer(value: Any) -> list[Any] | None:
    """Return ``[exit status, output]`` of a program, or None if it is missing."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    status, out = value
    if isinstance(status, bool) or not isinstance(status, int) or not isinstance(out, str):
        return None
    return [status, out[:TEXT]]

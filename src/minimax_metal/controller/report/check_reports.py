"""Post-check reports come from hosts in any shape and size: reduced to what the report can show. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import isfinite
from typing import Any, Final

from minimax_metal.common.text import one_line

BYTES: Final = 8 << 20
"""Maximum size of one report; a complete one has about 40 KB."""
TEXT: Final = 2_000
CHECKS: Final = 500
LEVELS: Final = 50
STATUSES: Final = ("passed", "failed", "limited", "skipped")


def host_of(name: str, hosts: Collection[str]) -> str:
    """Return host and instance of a report named ``HOST.INSTANCE``: both may contain dots."""
    return max((one for one in hosts if name.startswith(f"{one}.")), key=len, default=name.partition(".")[0])


def shaped(raw: Any) -> dict[str, Any]:
    """Return a report with only the parts whose type is right."""
    raw = raw if isinstance(raw, Mapping) else {}
    counts = raw.get("counts")
    checks = raw.get("checks")
    figures = raw.get("figures")
    return {
        "model": _text(raw.get("model")),
        "url": _text(raw.get("url")),
        "passed": raw.get("passed") is True,
        "counts": {
            _text(key): int(one)
            for key, one in list(counts.items())[:20]
            if isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 1 << 31
        }
        if isinstance(counts, Mapping)
        else {},
        "seconds": number(raw.get("seconds")),
        "checks": [_check(one) for one in checks[:CHECKS] if isinstance(one, Mapping)]
        if isinstance(checks, list)
        else [],
        "figures": [dict(one) for one in figures[:LEVELS] if isinstance(one, Mapping)]
        if isinstance(figures, list)
        else [],
    }


def number(value: Any) -> float | None:
    """Return a number, or the median in a mapping of some; None if it is neither."""
    if isinstance(value, Mapping):
        value = value.get("median")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        made = float(value)
    except OverflowError:
        return None
    return made if isfinite(made) else None


def level(value: Any) -> int:
    """Return the number of concurrent requests that a row of measurements is for."""
    found = number(value)
    return int(found) if found is not None and 0 <= found < 1 << 31 else 0


def _check(raw: Mapping[str, Any]) -> dict[str, Any]:
    status = _text(raw.get("status"))
    return {
        **{key: _text(raw.get(key)) for key in ("name", "expected", "got", "detail")},
        "status": status if status in STATUSES else "failed",
        "seconds": number(raw.get("seconds")),
    }


def _text(value: Any) -> str:
    return (
        "" if value is None else one_line(value if isinstance(value, str) else str(value)[: 4 * TEXT], TEXT)
    )

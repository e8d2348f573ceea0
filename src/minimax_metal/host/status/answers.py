"""Hosts' answers to ``metal status --here --json``: validated, bounded, made printable. Pure.

A host may be broken or hostile. Everything about it that is shown or compared passes through here first, so
that its answer can affect only its own row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Final

from minimax_metal.common.text import one_line

TEXT: Final = 400
"""Maximum characters of one text."""
ITEMS: Final = 4_000
"""Maximum values of a whole answer: a plan of 8 replicas has about 600."""
DEPTH: Final = 12
MOST: Final = 1e12
"""Maximum seconds or requests: larger values are not measurements."""


class UnreadableError(Exception):
    """An answer that no host of this product gives; the text is one line."""


class _Budget:
    left = ITEMS


def bounded(value: Any, depth: int = DEPTH, budget: _Budget | None = None) -> Any:
    """Return a JSON value with short printable texts, finite numbers and a bounded size.

    Raises:
        UnreadableError: it has more than :data:`ITEMS` values, or is deeper than :data:`DEPTH`.
    """
    budget = budget or _Budget()
    budget.left -= 1
    if budget.left < 0:
        raise UnreadableError(f"an answer of more than {ITEMS} values")
    if depth < 0:
        raise UnreadableError(f"an answer nested more than {DEPTH} levels deep")
    if isinstance(value, str):
        return one_line(value, TEXT)
    if isinstance(value, Mapping):
        return {one_line(str(key), TEXT): bounded(one, depth - 1, budget) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [bounded(one, depth - 1, budget) for one in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 63:
        return None
    return value


def checked(here: Mapping[str, Any]) -> dict[str, Any]:
    """Return a host's answer with the type of every part checked.

    Raises:
        UnreadableError: a part has another type.
    """
    here = bounded(here)
    found = {key: value for key, value in here.items() if key not in {"host", "state", "why", "drift"}}
    for key in ("release", "lock", "rollout"):
        found[key] = _part(here, key, Mapping, None)
    found["applied"] = _applied(_part(here, "applied", Mapping, {}))
    found["instances"] = [_instance(one) for one in _part(here, "instances", list, [])]
    found["missing"] = [str(one) for one in _part(here, "missing", list, [])]
    found["firewall_differences"] = [str(one) for one in _part(here, "firewall_differences", list, [])][:8]
    found["certificates"] = [_certificate(one) for one in _part(here, "certificates", list, [])[:8]]
    for key in ("driver", "hostname", "metal", "time"):
        found[key] = _part(here, key, str, None)
    for key in ("cpu_count", "memory_total_bytes"):
        found[key] = _whole(here, key)
    found["environment_exists"] = bool(here.get("environment_exists", True))
    return found


def _part(of: Mapping[str, Any], key: str, kind: type | tuple[type, ...], default: Any) -> Any:
    value = of.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UnreadableError(f"an answer with {key} of type {type(value).__name__}")
    return value


def _whole(of: Mapping[str, Any], key: str) -> int | None:
    value = _part(of, key, (int, float), None)
    return None if value is None or abs(value) >= 1 << 63 else int(value)


def _number(of: Mapping[str, Any], key: str) -> Any:
    value = _part(of, key, (int, float), None)
    return value if value is None or abs(value) < MOST else None


def _instance(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UnreadableError(f"an answer with an instance of type {type(value).__name__}")
    texts = {key: _part(value, key, str, "") for key in ("instance", "unit", "active", "status", "health")}
    return {
        **value,
        **texts,
        "health": texts["health"] or "stopped",
        "url": _part(value, "url", str, None),
        "enabled": bool(value.get("enabled")),
        "recorded": bool(value.get("recorded")),
        "restarts": _whole(value, "restarts") or 0,
        "running": _number(value, "running"),
        "waiting": _number(value, "waiting"),
        "seconds": _number(value, "seconds"),
    }


def _certificate(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UnreadableError(f"an answer with a certificate of type {type(value).__name__}")
    ends = _part(value, "ends", str, None)
    try:
        ends = None if ends is None else datetime.fromisoformat(ends).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UnreadableError("an answer with a certificate that has no end") from None
    return {
        "path": _part(value, "path", str, ""),
        "ends": None if ends is None else ends.isoformat(),
        "fleet": value.get("fleet") is True,
    }


_PARTS: Final = ("platform", "model", "gpus", "parallelism", "engine", "driver", "cuda", "tls")


def _applied(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a recorded plan, each with the type that a comparison needs."""
    found = dict(plan)
    for key in _PARTS:
        if plan.get(key) is not None:
            found[key] = dict(_part(plan, key, Mapping, {}))
    services = _part(plan, "services", list, [])
    for service in services:
        if not isinstance(service, Mapping) or not isinstance(service.get("unit"), str):
            raise UnreadableError("an answer with a service without a unit")
        for key, kind in (("argv", list), ("environment", Mapping), ("credentials", (Mapping, list))):
            _part(service, key, kind, None)
    indices = (found.get("gpus") or {}).get("indices")
    if indices is not None and not (
        isinstance(indices, Sequence) and all(isinstance(one, int) for one in indices)
    ):
        raise UnreadableError("an answer with GPUs without numbers")
    if services or "services" in plan:
        found["services"] = services
    return found

"""A run, event by event: the stored part of ansible-runner's events.

One record is a JSON dictionary; ``events.jsonl`` has one per line. Everything that is shown of a run, live
and afterwards, is computed from them (:mod:`minimax_metal.controller.run.events`).

``kind`` is one of ``start``, ``play``, ``task``, ``begin``, ``ok``, ``changed``, ``skipped``, ``failed``,
``unreachable``, ``item``, ``retry``, ``line``, ``stats``, ``stop`` and ``end``; ``at`` is seconds since the
epoch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from minimax_metal.common.redact import Redactor
from minimax_metal.common.text import printable
from minimax_metal.controller.run.stages import stage_of

Record = dict[str, Any]

_RESULTS: Final = {
    "runner_on_ok": "ok",
    "runner_on_failed": "failed",
    "runner_on_skipped": "skipped",
    "runner_on_unreachable": "unreachable",
}
_ITEMS: Final = {
    "runner_item_on_ok": "ok",
    "runner_item_on_failed": "failed",
    "runner_item_on_skipped": "skipped",
}
_LINES: Final = ("verbose", "warning", "system_warning", "deprecated", "error", "debug")
_COUNTS: Final = ("ok", "changed", "failures", "dark", "skipped", "rescued", "ignored")
_COLOURS: Final = re.compile(r"(\x1b\[[0-9;]{0,32}m)")


MOST_TEXT: Final = 10_000
"""Maximum characters of a part of a record."""
_TEXTS: Final = (
    "host", "task", "role", "stage", "action", "where", "play", "playbook", "text", "sort", "became", "how",
)  # fmt: skip
_NEEDED: Final = {"line": ("text",), "item": ("became",), "stop": ("how",)}


def plain(text: str) -> str:
    """Return a terminal's text without colours and other control sequences."""
    return printable(text).rstrip()


def coloured(text: str) -> str:
    """Return a terminal's text with its colours, and without other control sequences."""
    return "".join(part if _COLOURS.fullmatch(part) else printable(part) for part in _COLOURS.split(text))


def clean(value: Any) -> Any:
    """Return a JSON value in which no text has control characters: it is shown on a terminal."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(str(key)): clean(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [clean(one) for one in value]
    return value


def seconds_of(stamp: Any) -> float:
    """Return the runner's time as seconds since the epoch; 0 if it is not a time."""
    try:
        return round(datetime.fromisoformat(str(stamp)).timestamp(), 3)
    except (ValueError, OverflowError):
        return 0.0


def shaped(raw: Any) -> Record | None:
    """Return a stored record with only the parts whose type is right; None if it is not a record.

    The file is the controller's own, but its contents came from hosts or earlier releases, or may be damaged.
    """
    if not isinstance(raw, Mapping) or not isinstance(raw.get("kind"), str):
        return None
    made = {str(key): one for key, one in raw.items()}
    for key in _TEXTS:
        if made.get(key) is not None and not isinstance(made[key], str):
            made[key] = str(made[key])[:MOST_TEXT]
    if not isinstance(made.get("result", {}), Mapping):
        made["result"] = {}
    if "result" in made:
        made["result"] = _result(made["result"])
    for key in _COUNTS:
        counts = made.get(key)
        if counts is not None:
            known = counts.items() if isinstance(counts, Mapping) else ()
            made[key] = {str(host): one for host, one in known if isinstance(one, int) and one < 1 << 31}
    at = made.get("at")
    known_time = isinstance(at, int | float) and not isinstance(at, bool) and 0 <= at < 1e11
    made["at"] = float(at) if known_time and at is not None else 0.0
    for kind, keys in _NEEDED.items():
        if made["kind"] == kind:
            for key in keys:
                made.setdefault(key, "")
    return made


def _result(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's result whose items are mappings."""
    kept = {str(key): one for key, one in result.items()}
    if "items" in kept:
        items = kept["items"]
        kept["items"] = [one for one in items if isinstance(one, Mapping)] if isinstance(items, list) else []
    return kept


def record_of(event: Mapping[str, Any], redactor: Redactor) -> Record | None:
    """Return the stored part of an ansible-runner event, or None if nothing is stored."""
    name = str(event.get("event"))
    data = _mapping(event.get("event_data"))
    made = _record(name, data, event)
    if made is None:
        return None
    made["at"] = seconds_of(event.get("created"))
    # Controls first: an escape sequence inside a secret must not hide it.
    kept: Record = redactor.value(clean({key: one for key, one in made.items() if one not in (None, "", [])}))
    return kept


def _record(name: str, data: Mapping[str, Any], event: Mapping[str, Any]) -> Record | None:
    if name in _RESULTS:
        kind = _RESULTS[name]
        result = _mapping(data.get("res"))
        if kind == "ok" and result.get("changed"):
            kind = "changed"
        if kind == "failed" and data.get("ignore_errors"):
            kind = "ok"
        return {"kind": kind, "host": data.get("host"), "result": result, **_task(data)}
    if name in _ITEMS:
        result = _mapping(data.get("res"))
        kind = "changed" if _ITEMS[name] == "ok" and result.get("changed") else _ITEMS[name]
        # Skipped and unchanged items are many and carry no information.
        if kind not in {"changed", "failed"}:
            return None
        return {"kind": "item", "became": kind, "host": data.get("host"), "result": result, **_task(data)}
    if name == "runner_on_start":
        return {"kind": "begin", "host": data.get("host"), **_task(data)}
    if name == "runner_retry":
        return {"kind": "retry", "host": data.get("host"), "result": _mapping(data.get("res")), **_task(data)}
    if name == "playbook_on_task_start":
        return {"kind": "task", **_task(data)}
    if name == "playbook_on_play_start":
        return {"kind": "play", "play": data.get("name"), "pattern": data.get("pattern")}
    if name == "playbook_on_start":
        return {"kind": "start", "playbook": data.get("playbook"), "pid": event.get("pid")}
    if name == "playbook_on_stats":
        return {"kind": "stats", **{count: data.get(count) or {} for count in _COUNTS}}
    if name in _LINES:
        text = plain(str(event.get("stdout") or ""))
        return {"kind": "line", "text": text, "sort": name} if text.strip() else None
    return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _task(data: Mapping[str, Any]) -> Record:
    role = data.get("role")
    role = role if isinstance(role, str) else None
    named = data.get("tags")
    tags = [one for one in named if isinstance(one, str)] if isinstance(named, list | tuple) else []
    path = str(data.get("task_path") or "")
    return {
        "task": data.get("task"),
        "role": role,
        "stage": stage_of(
            role,
            [one for one in tags if isinstance(one, str)] if isinstance(tags, list | tuple) else (),
            path,
        ),
        "action": str(data.get("resolved_action") or data.get("task_action") or ""),
        # The directory is the user's own and of no use to readers.
        "where": "/".join(path.rsplit("/", 3)[1:]),
    }

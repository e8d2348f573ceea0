"""A small report each time the engine ends unexpectedly or hangs, stored on the host.

``<state directory>/incidents/<instance>/<number>-<time>.json``, the newest ``KEPT`` of them. The number grows
by one with each report: their order, and how many there were recently, does not depend on a clock that may
jump. Keys are removed before anything gets here. Names are opened beneath the state directory without
following links: it may belong to another user than the reader.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from minimax_metal.common import program
from minimax_metal.common.documents import read_json
from minimax_metal.common.files import directory_beneath, new_file, read_beneath
from minimax_metal.host.engine import kernel_lines as kernel_log

KEPT: Final = 20
SCHEMA: Final = 2
"""2: ``boot`` and ``uptime`` are new."""
PROGRAM_SECONDS: Final = 20.0
LARGEST: Final = 4 << 20
"""Maximum bytes of a report; 200 lines of an engine and nvidia-smi's table take some 60 KB."""
BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_NAME: Final = re.compile(r"(\d{6,12})-[0-9TZ.]{8,40}\.json")


@dataclass(frozen=True, slots=True)
class Incident:
    """Data about one end."""

    instance: str
    kind: str
    """``start`` (before it was ready), ``crash`` (after), ``timeout`` (not ready in time) or ``hang``."""
    how: str
    """How the process ended."""
    reason: str | None
    """The reason, from the engine's or the kernel's messages; None if unknown."""
    code: str | None
    phase: str
    age_seconds: float
    exit_status: int
    xids: Sequence[str]
    output: Sequence[str]
    who: str | None = None
    """Who must act: ``restart``, ``user``, ``operator`` or ``weights``."""
    evidence: Sequence[str] = ()


def _answer(*command: str, stop: Callable[[], bool]) -> str | None:
    answer = program.run(command, seconds=PROGRAM_SECONDS, limit=1 << 18, stop=stop)
    if answer.status == program.NO_PROGRAM:
        return None
    return answer.out + answer.err


def kernel_lines(since: float) -> list[str]:
    """Return the kernel's lines about GPUs and memory since a time (seconds since 1970), without controls.

    Empty if unit ``metal-kernel-lines.service`` does not run: this process may not read the journal.
    """
    return kernel_log.read(since)


def uptime() -> float:
    """Return seconds since boot, including sleep: independent of clock changes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot() -> str:
    """Return this boot's id."""
    try:
        return BOOT.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def write_report(
    directory: Path,
    incident: Incident,
    now: float | None = None,
    at: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Store the report of one incident and remove the oldest; return its path.

    Args:
        directory: of incidents; created if missing.
        incident: what to store.
        now: seconds since 1970.
        at: seconds since boot.
        stop: true ends the wait for nvidia-smi.

    Raises:
        OSError: it can't be written (a full disk, for example).
    """
    moment = datetime.fromtimestamp(time.time() if now is None else now, UTC)
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "time": moment.isoformat(timespec="milliseconds"),
        "boot": boot(),
        "uptime": round(uptime() if at is None else at, 3),
        **asdict(incident),
        "nvidia_smi": _answer("nvidia-smi", stop=stop),
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    directory.mkdir(parents=True, exist_ok=True)
    with directory_beneath(directory, incident.instance, create=0o755) as place:
        names = _names(place)
        number = (_number(names[-1]) if names else 0) + 1
        name = f"{number:06d}-{moment:%Y%m%dT%H%M%S.%fZ}.json"
        with (
            new_file(place, name, suffix=".new") as descriptor,
            os.fdopen(os.dup(descriptor), "w", encoding="utf-8", errors="replace") as stream,
        ):
            stream.write(text)
        for old in _names(place)[:-KEPT]:
            with contextlib.suppress(OSError):
                os.unlink(old, dir_fd=place)
    return directory / incident.instance / name


def _number(name: str) -> int:
    """Return a report's number; those of older releases without numbers come first."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else 0


def _names(place: int) -> list[str]:
    return sorted(
        (name for name in os.listdir(place) if name.endswith(".json")), key=lambda name: (_number(name), name)
    )


def reports(directory: Path, instance: str) -> list[Path]:
    """Return the reports of an instance, oldest first; empty if its directory is missing or a link."""
    try:
        with directory_beneath(directory, instance) as place:
            return [directory / instance / name for name in _names(place)]
    except OSError:
        return []


def recent(directory: Path, instance: str, seconds: float, at: float | None = None) -> int:
    """Return the number of incidents in the last ``seconds`` of this boot; ``at``: seconds since boot."""
    newest = uptime() if at is None else at
    here, count = boot(), 0
    for path in reports(directory, instance):
        try:
            content = read_json(read_beneath(directory, f"{instance}/{path.name}", LARGEST))
            age = newest - float(content["uptime"])
        except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
            continue  # the engine's user can write there
        count += content.get("boot") == here and 0 <= age <= seconds
    return count

"""A small report of each time the engine ended by itself or hung, kept on the host.

``<state directory>/incidents/<instance>/<number>-<time>.json``, the newest ``KEPT`` of them. The number grows
by one with each report: which is the newest, and how many there were lately, does not hang on a clock that
may jump. Keys are taken out before anything comes here. Names are opened beneath the state directory without
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
"""Bytes of a report; 200 lines of an engine and nvidia-smi's table take some 60 KB."""
BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_NAME: Final = re.compile(r"(\d{6,12})-[0-9TZ.]{8,40}\.json")


@dataclass(frozen=True, slots=True)
class Incident:
    """What is known of one end."""

    instance: str
    kind: str
    """``start`` (before it was ready), ``crash`` (after), ``timeout`` (not ready in time) or ``hang``."""
    how: str
    """How the process ended."""
    reason: str | None
    """Why, from the engine's own words or the kernel's; none where they do not say."""
    code: str | None
    phase: str
    age_seconds: float
    exit_status: int
    xids: Sequence[str]
    output: Sequence[str]
    who: str | None = None
    """Who acts: ``restart``, ``user``, ``operator`` or ``weights``."""
    evidence: Sequence[str] = ()


def _answer(*command: str, stop: Callable[[], bool]) -> str | None:
    answer = program.run(command, seconds=PROGRAM_SECONDS, limit=1 << 18, stop=stop)
    if answer.status == program.NO_PROGRAM:
        return None
    return answer.out + answer.err


def kernel_lines(since: float) -> list[str]:
    """The kernel's lines about GPUs and memory since a time (seconds since 1970), without controls.

    Empty where unit ``metal-kernel-lines.service`` does not run: this process may not read the journal.
    """
    return kernel_log.read(since)


def uptime() -> float:
    """Seconds since the boot, sleep included: no clock that is set changes it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot() -> str:
    """This boot's identity."""
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
    """Keep the report of one incident and drop the oldest; return where it is.

    Args:
        directory: the incidents'; it is made where it is missing.
        incident: what to keep.
        now: seconds since 1970.
        at: seconds since the boot.
        stop: true ends the wait for nvidia-smi.

    Raises:
        OSError: it can't be written (disk full, say).
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
    """A report's number; those of releases before numbers come first."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else 0


def _names(place: int) -> list[str]:
    return sorted(
        (name for name in os.listdir(place) if name.endswith(".json")), key=lambda name: (_number(name), name)
    )


def reports(directory: Path, instance: str) -> list[Path]:
    """The reports of an instance, oldest first; none where its directory is missing or a link."""
    try:
        with directory_beneath(directory, instance) as place:
            return [directory / instance / name for name in _names(place)]
    except OSError:
        return []


def recent(directory: Path, instance: str, seconds: float, at: float | None = None) -> int:
    """How many incidents the last ``seconds`` of this boot saw; ``at``: seconds since the boot."""
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

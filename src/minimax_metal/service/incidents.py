"""A small report of each time the engine ended by itself or hung, kept on the host.

``<state directory>/incidents/<instance>/<time>.json``, the newest ``KEPT`` of them. Keys are taken out before
anything comes here.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from minimax_metal.service import kernel_lines as kernel_log

KEPT: Final = 20
SCHEMA: Final = 1
PROGRAM_SECONDS: Final = 20.0


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


def _answer(*command: str) -> str | None:
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=PROGRAM_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return f"{command[0]} did not answer within {PROGRAM_SECONDS:.0f} s"
    return done.stdout + done.stderr


def kernel_lines(since: float) -> list[str]:
    """The kernel's lines about GPUs and lack of memory since a time (seconds since 1970), without controls.

    Empty where unit ``metal-kernel-lines.service`` does not run: this process may not read the journal.
    """
    return kernel_log.read(since)


def write_report(directory: Path, incident: Incident, now: float | None = None) -> Path:
    """Keep the report of one incident and drop the oldest; return where it is.

    Raises:
        OSError: it can't be written (disk full, say).
    """
    moment = datetime.fromtimestamp(time.time() if now is None else now, UTC)
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "time": moment.isoformat(timespec="milliseconds"),
        **asdict(incident),
        "nvidia_smi": _answer("nvidia-smi"),
    }
    place = directory / incident.instance
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{moment:%Y%m%dT%H%M%S.%fZ}.json"
    written = path.with_suffix(".new")
    written.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    written.replace(path)
    for old in reports(directory, incident.instance)[:-KEPT]:
        with contextlib.suppress(OSError):
            old.unlink()
    return path


def reports(directory: Path, instance: str) -> list[Path]:
    """The reports of an instance, oldest first."""
    return sorted((directory / instance).glob("*.json"))


def recent(directory: Path, instance: str, seconds: float, now: float | None = None) -> int:
    """How many incidents the last ``seconds`` saw."""
    oldest = (time.time() if now is None else now) - seconds
    count = 0
    for path in reports(directory, instance):
        with contextlib.suppress(OSError):
            count += path.stat().st_mtime >= oldest
    return count

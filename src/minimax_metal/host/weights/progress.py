"""A pull's patience settings, its failures, and its progress reports."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from minimax_metal.common.errors import UserError
from minimax_metal.common.files import write_atomic
from minimax_metal.common.text import one_line
from minimax_metal.host.engine.notify import Notifier
from minimax_metal.host.weights.request import Request

SPARE_BYTES: Final = 1 << 30
"""Bytes to leave free on the disk beyond the model (logs, the journal); choice of this project."""


class PullError(UserError):
    """No source could deliver the model; the text is one line."""


class NoSpaceError(PullError):
    """The disk cannot hold the model."""


class RefusedError(PullError):
    """Every source permanently refuses (no such repository, gated, damaged): pulling again won't help."""


@dataclass(frozen=True, slots=True)
class Options:
    """How patient a pull is; times in seconds."""

    workers: int = 8
    stall: float = 60.0
    """A connection without a byte for this long is dropped, and the file continues over another one."""
    attempts: int = 3
    """Consecutive fruitless attempts at one source before the next source is tried."""
    backoff: float = 2.0
    """Pause after the first such attempt, doubled for each further one, a minute at most."""
    interval: float = 60.0
    """Interval between two lines of progress in the journal; the unit's status line is updated every two
    seconds.
    """
    patience: float = 900.0
    """A source that answers "too many requests" and serves nothing is given up after this long."""
    rate: float = 0.0
    """Maximum bytes per second; 0 means no limit."""
    spare: int = SPARE_BYTES
    """Bytes left free on the disk."""


DEFAULTS: Final = Options()


@dataclass
class Reporter:
    """Reports a pull's progress: on standard output, to systemd, and in a file that ``await`` reads."""

    request: Request
    notifier: Notifier = field(default_factory=Notifier.from_environment)
    output: IO[str] = field(default_factory=lambda: sys.stdout)

    def say(self, text: str) -> None:
        """Print one line."""
        # It may contain a hub's own text.
        print(f"weights {self.request.name}: {one_line(text)}", file=self.output, flush=True)

    def state(self, state: str, text: str, *, silent: bool = False, **fields: Any) -> None:
        """Print one line (unless silent), show it as the unit's status and store it in the state file."""
        if not silent:
            self.say(text)
        text = one_line(text)
        self.notifier.status(text)
        content = {
            "schema": 1,
            "state": state,
            "text": text,
            "pid": os.getpid(),
            "time": time.time(),
            **fields,
        }
        with contextlib.suppress(OSError):  # on a full disk the line above has reported it
            write_atomic(
                self.request.state, json.dumps(content) + "\n", owner=owner_of(self.request.state.parent)
            )


def owner_of(directory: Path) -> tuple[int, int] | None:
    """Return uid and gid of a directory if this process is root: the next pull may run as that user."""
    if os.geteuid() != 0:
        return None
    status = directory.stat()
    return status.st_uid, status.st_gid


def spell_seconds(duration: float) -> str:
    """Return a readable duration: ``34 s``, ``12 min``, ``3 h 07 min``."""
    if duration < 90:
        return f"{duration:.0f} s"
    minutes = round(duration / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"

"""Preparations that run in parallel while the hosts' network is created: roots, packages, models, plug-in."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from lab.hosts.errors import LabError
from lab.hosts.paths import CHECKOUT
from lab.hosts.processes import Process, spawn


@dataclass
class Preparation:
    """One running preparation."""

    title: str
    result: Path
    log: Path
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)

    def wait(self) -> tuple[dict[str, str], float]:
        """Wait for its end; return its result and the seconds it took.

        Raises:
            LabError: it failed; its own reason, or the end of its log.
        """
        self.process.wait()
        seconds = time.monotonic() - self.started
        try:
            # The result's own time: waiting for another preparation first does not count.
            seconds = max(0.0, seconds - (time.time() - self.result.stat().st_mtime))
            outcome: dict[str, str] = json.loads(self.result.read_text())
        except (OSError, ValueError):
            lines = self.log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
            raise LabError(
                f"{self.title}: ended with {self.process.returncode}: {lines[-1]} (log: {self.log})"
            ) from None
        if "error" in outcome:
            where = f" (log: {self.log})" if "unexpected" in outcome else ""
            raise LabError(f"{self.title}: {outcome['error']}{where}")
        return outcome, seconds


class Preparations:
    """All of them; on leaving, running ones are ended."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.under_way: list[Preparation] = []

    def __enter__(self) -> Preparations:
        return self

    def __exit__(self, *_: object) -> None:
        for preparation in self.under_way:
            if preparation.process.poll() is None:
                end(Process.of(preparation.process.pid))
        for record in self.directory.glob("*.process.json"):
            record.unlink()

    def start(self, title: str, kind: str, *arguments: str) -> Preparation:
        """Start one."""
        key = "-".join([kind, *arguments[:1]])
        result, log = self.directory / f"{key}.json", self.directory / f"{key}.log"
        result.unlink(missing_ok=True)
        log.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "lab.hosts.prepare", str(result), kind, *arguments]
        preparation = Preparation(title, result, log, spawn(argv, log=log, cwd=CHECKOUT))
        Process.of(preparation.process.pid).write(self.directory / f"{key}.process.json")
        self.under_way.append(preparation)
        return preparation


def end(process: Process) -> None:
    """End a preparation and everything it started."""
    process.stop(grace=10)
    # It leads its own session; its id can't be reused while its group lives.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def end_recorded(directory: Path) -> None:
    """End preparations that a killed ``up`` left running."""
    for record in directory.glob("*.process.json"):
        process = Process.read(record)
        if process is not None and process.alive():
            end(process)
        record.unlink()

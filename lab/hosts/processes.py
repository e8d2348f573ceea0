"""Programs that the lab runs, and how it finds running ones again.

A process is identified by its id *and* its start time: after a crash the same id may belong to another
process, and nothing is ever stopped by name.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.hosts.errors import LabError


def run(argv: Sequence[str], *, stdin: str | None = None, check: bool = True) -> str:
    """Run a program until it ends and return its standard output.

    Raises:
        LabError: it is not installed, or (with ``check``) it failed; its last line gives the reason.
    """
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise LabError(f"{argv[0]}: not installed; see lab/system-packages.txt") from None
    if check and done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "it printed nothing").splitlines()
        raise LabError(f"{' '.join(argv)}: exit status {done.returncode}: {lines[-1].strip()}")
    return done.stdout


def succeeds(argv: Sequence[str]) -> bool:
    """Run a program for its exit status only."""
    done = subprocess.run(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode == 0


def start_time(pid: int) -> str | None:
    """Return the start of a process in clock ticks since boot; None when there is none, or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name may contain anything, including parentheses and spaces: fields are counted after the last one.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def boot_id() -> str:
    """Return this machine's boot id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class Process:
    """One process that runs, or ran."""

    pid: int
    started: str
    boot: str
    digest: str = ""
    """Its command; a service whose configuration changed is restarted."""

    @classmethod
    def of(cls, pid: int, digest: str = "") -> Process:
        """Describe a process that runs now."""
        return cls(pid, start_time(pid) or "", boot_id(), digest)

    @classmethod
    def read(cls, record: Path) -> Process | None:
        """Read a record; None if there is none, or an incomplete one."""
        try:
            return cls(**json.loads(record.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, record: Path) -> None:
        """Store the record atomically."""
        write_whole(record, json.dumps(asdict(self)) + "\n")

    def alive(self) -> bool:
        """Tell whether this very process still runs."""
        return bool(self.started) and self.boot == boot_id() and start_time(self.pid) == self.started

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def stop(self, grace: float = 5.0) -> None:
        """Ask it to end, wait ``grace`` seconds, then end it."""
        self.signal(signal.SIGTERM)
        if not wait_until(lambda: not self.alive(), grace):
            self.signal(signal.SIGKILL)
            wait_until(lambda: not self.alive(), 5)


def spawn(
    argv: Sequence[str],
    *,
    log: Path,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program that outlives this one: its own session, no terminal, output to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=dict(environment) if environment is not None else None,
            start_new_session=True,
        )


def wait_until(condition: Callable[[], bool], seconds: float, interval: float = 0.05) -> bool:
    """Call ``condition`` until it is true or ``seconds`` have passed; return its last answer."""
    end = time.monotonic() + seconds
    while not (answer := condition()) and time.monotonic() < end:
        time.sleep(interval)
    return answer


def write_whole(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that readers see the old text or the new one, never part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.chmod(mode)
    draft.replace(path)

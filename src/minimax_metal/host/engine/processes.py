"""Signals, process groups and ports: the supervisor's access to the system."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from minimax_metal.common import program
from minimax_metal.common.documents import digits


class Signals:
    """Wakes the main loop on a signal and remembers a stop request."""

    def __init__(self) -> None:
        self.stop: signal.Signals | None = None
        self.hurry = False
        """A second request: don't wait any longer."""
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    @contextlib.contextmanager
    def installed(self) -> Iterator[Signals]:
        """Handle SIGTERM, SIGINT and SIGCHLD for the time of the context (main thread only)."""
        kept = {
            number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
        }
        wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        try:
            for number in kept:
                signal.signal(number, self._handle)
            yield self
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
            self._read.close()
            self._write.close()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGCHLD:
            return
        self.hurry = self.stop is not None
        self.stop = self.stop or signal.Signals(number)

    def wait(self, seconds: float) -> None:
        """Sleep up to ``seconds``; return immediately when a signal arrives."""
        if select.select([self._read], [], [], max(0.0, seconds))[0]:
            with contextlib.suppress(BlockingIOError):
                while self._read.recv(512):
                    pass


def group_alive(group: int) -> bool:
    """Return whether any process of the group is more than a zombie (read from ``/proc``)."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in {"Z", "X"}:
            return True
    return False


def accepts_connections(host: str, port: int, timeout: float = 2.0) -> bool:
    """Return whether a TCP connection to ``host:port`` opens; nothing is sent."""
    try:
        with socket.create_connection((host, port), timeout=timeout):
            return True
    except OSError:
        return False


def signal_name(number: int) -> str:
    """Return ``SIGKILL`` for 9, ``signal 99`` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def restarts(unit: str) -> int | None:
    """Return how often systemd has restarted the unit since its last manual start; None if unknown."""
    answer = program.run(
        ["systemctl", "show", "--property=NRestarts", "--value", f"{unit}.service"], seconds=10.0
    )
    return digits(answer.out.strip()) if answer.ok else None

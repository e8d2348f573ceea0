"""``metal supervise``: start the engine for systemd and tell systemd the truth about it.

The engine has no sd_notify and serves ``/v1/models`` long before it can generate. This process stands between
the two: it starts the engine in a process group of its own, says on the unit's status line what is going on,
reports ready when the health URL (a real one-token generation) answers 200, fails at once with the engine's
exit status when the engine ends, and passes a stop on. Standard library only: it starts in milliseconds.

After the engine is ready only a TCP connection is tried: one failed ``/health`` makes the engine count itself
unhealthy, after which it no longer drains on SIGTERM (facts seen in the engine's ``tokenizer_manager.py``).

Exit status:

=====  =============================================================================================
0      stopped on request (SIGTERM or SIGINT)
1-255  the engine ended by itself: its own status, 128 + N when signal N ended it, 1 when its status was 0
124    the engine was not ready within ``--start-timeout``; it was stopped
126/7  the engine could not be started: not executable / no such program
2      usage
=====  =============================================================================================
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from minimax_metal.service.notify import Notifier

EXIT_STOPPED: Final = 0
EXIT_USAGE: Final = 2
EXIT_START_TIMEOUT: Final = 124
EXIT_NOT_EXECUTABLE: Final = 126
EXIT_NO_PROGRAM: Final = 127

PROBE_PAUSE_SECONDS: Final = 1.0
"""Between two questions to the health URL while the engine starts."""

PROBE_TIMEOUT_SECONDS: Final = 60.0
"""One health call. The engine gives its own generation 20 s; giving up before it does would prove nothing."""

KILL_GRACE_SECONDS: Final = 10.0
"""How long a killed process group may take to vanish."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What ``metal supervise`` was asked to do; times in seconds."""

    instance: str
    ready_url: str
    start_timeout: float
    stop_timeout: float
    command: tuple[str, ...]
    status_interval: float = 30.0

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the health URL."""
        parts = urllib.parse.urlsplit(self.ready_url)
        return parts.hostname or "127.0.0.1", parts.port or (443 if parts.scheme == "https" else 80)


class HealthProbe(threading.Thread):
    """Asks the health URL until it answers 200; a thread, so that the engine's death is noticed meanwhile."""

    def __init__(self, url: str, pause: float = PROBE_PAUSE_SECONDS) -> None:
        super().__init__(name="health", daemon=True)
        self.url = url
        self.pause = pause
        self.ready = threading.Event()
        self.halted = threading.Event()
        self.last = "not asked yet"
        # No proxy: the engine is on this host, whatever the environment says about the internet.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def run(self) -> None:
        """Ask until ready or halted."""
        while not self.halted.is_set():
            self.last = self.ask()
            if self.last == "200":
                self.ready.set()
                return
            self.halted.wait(self.pause)

    def ask(self) -> str:
        """Return the status of one health call, or why there was none, in a few words."""
        try:
            with self.opener.open(self.url, timeout=PROBE_TIMEOUT_SECONDS) as response:
                return str(response.status)
        except urllib.error.HTTPError as error:
            error.close()
            return str(error.code)
        except TimeoutError:
            return "no answer"
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ConnectionRefusedError):
                return "port closed"
            return "no answer" if isinstance(reason, TimeoutError) else type(reason).__name__


class Signals:
    """Wakes the main loop on a signal and remembers the request to stop."""

    def __init__(self) -> None:
        self.stop: signal.Signals | None = None
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
        if number != signal.SIGCHLD and self.stop is None:
            self.stop = signal.Signals(number)

    def wait(self, seconds: float) -> None:
        """Sleep up to ``seconds``; return at once when a signal arrives."""
        if select.select([self._read], [], [], max(0.0, seconds))[0]:
            with contextlib.suppress(BlockingIOError):
                while self._read.recv(512):
                    pass


class Supervisor:
    """One engine process from its start to its end."""

    def __init__(self, settings: Settings, notifier: Notifier) -> None:
        self.settings = settings
        self.notifier = notifier
        self.signals = Signals()
        self.started = time.monotonic()

    def run(self) -> int:
        """Start the engine, see it through to its end and return the exit status of ``metal supervise``."""
        with self.signals.installed():
            try:
                # A group of its own, so that a stop reaches every rank the engine started.
                engine = subprocess.Popen(self.settings.command, process_group=0)
            except FileNotFoundError:
                return self.fail(
                    EXIT_NO_PROGRAM,
                    f"cannot start {self.settings.command[0]}: no such file; run the playbook again",
                )
            except OSError as error:
                return self.fail(
                    EXIT_NOT_EXECUTABLE, f"cannot start {self.settings.command[0]}: {error.strerror or error}"
                )
            self.started = time.monotonic()
            probe = HealthProbe(self.settings.ready_url)
            probe.start()
            try:
                return self.watch(engine, probe)
            finally:
                probe.halted.set()
                self.kill_group(engine)

    def watch(self, engine: subprocess.Popen[bytes], probe: HealthProbe) -> int:
        """Follow the engine until it ends or a stop is asked for."""
        ready_after: float | None = None
        next_status = 0.0
        while True:
            if self.signals.stop is not None:
                return self.stop(engine)
            status = engine.poll()
            if status is not None:
                return self.ended(status, ready_after)
            age = self.age()
            if ready_after is None and probe.ready.is_set():
                ready_after = age
                self.say(f"ready after {spell(age)}; engine pid {engine.pid}")
                self.notifier.send(
                    READY=1, STATUS=f"ready: answered {self.settings.ready_url} after {spell(age)}"
                )
                next_status = age + self.settings.status_interval
            if ready_after is None and age >= self.settings.start_timeout:
                return self.give_up(engine, probe)
            if age >= next_status:
                self.notifier.status(self.describe(age, ready_after, probe))
                # Short while starting: somebody is watching then.
                next_status = age + (2.0 if ready_after is None else self.settings.status_interval)
            self.signals.wait(0.25 if ready_after is None else min(5.0, next_status - age))

    def describe(self, age: float, ready_after: float | None, probe: HealthProbe) -> str:
        """Return the status line: what can be seen from outside without disturbing the engine."""
        if ready_after is None:
            path = urllib.parse.urlsplit(self.settings.ready_url).path or "/"
            seen = {
                "port closed": f"loading, nothing listens on port {self.settings.address[1]} yet",
                "503": f"{path} says 503 (loading or warming up)",
            }.get(probe.last, f"waiting for {path} ({probe.last})")
            return (
                f"starting: engine alive {spell(age)} of at most {spell(self.settings.start_timeout)}, {seen}"
            )
        host, port = self.settings.address
        open_port = accepts_connections(host, port)
        seen = f"port {port} accepts connections" if open_port else f"port {port} does NOT accept connections"
        return f"{'ready' if open_port else 'troubled'}: engine alive {spell(age)}, {seen}"

    def ended(self, status: int, ready_after: float | None) -> int:
        """Report that the engine ended by itself; return its status as ours, never 0."""
        how = f"was ended by {signal_name(-status)}" if status < 0 else f"exited with status {status}"
        when = "before it was ready" if ready_after is None else "after it had been ready"
        code = 128 - status if status < 0 else status or 1
        return self.fail(
            code,
            f"engine {how} after {spell(self.age())}, {when}; its own words: "
            f"journalctl -u sglang@{self.settings.instance} -n 50",
        )

    def give_up(self, engine: subprocess.Popen[bytes], probe: HealthProbe) -> int:
        """Stop an engine that did not become ready in time."""
        message = (
            f"engine not ready within {spell(self.settings.start_timeout)} (last answer of "
            f"{self.settings.ready_url}: {probe.last}); stopping it. Still loading? Raise the start "
            f"timeout. Otherwise: journalctl -u sglang@{self.settings.instance} -n 50"
        )
        self.fail(EXIT_START_TIMEOUT, message)
        self.terminate(engine)
        return EXIT_START_TIMEOUT

    def stop(self, engine: subprocess.Popen[bytes]) -> int:
        """Pass the request to stop on to the engine and wait for it."""
        name = self.signals.stop.name if self.signals.stop is not None else "SIGTERM"
        self.say(
            f"{name}: stopping the engine, up to {spell(self.settings.stop_timeout)} for requests in flight"
        )
        self.notifier.send(STOPPING=1, STATUS="stopping: requests in flight may finish")
        begun = time.monotonic()
        if self.terminate(engine):
            self.say(f"engine stopped after {spell(time.monotonic() - begun)}")
        else:
            self.say(f"engine did not stop within {spell(self.settings.stop_timeout)}: killed")
        return EXIT_STOPPED

    def terminate(self, engine: subprocess.Popen[bytes]) -> bool:
        """Send SIGTERM to the engine, SIGKILL to its group after the stop timeout; return whether it obeyed.

        SIGTERM goes to the engine's main process alone: it ends its ranks itself once requests are done, and
        a rank that got the signal first would break them off.
        """
        with contextlib.suppress(ProcessLookupError):
            engine.terminate()
        deadline = time.monotonic() + self.settings.stop_timeout
        next_status = time.monotonic() + 2.0
        while engine.poll() is None:
            now = time.monotonic()
            if now >= deadline:
                self.kill_group(engine)
                return False
            if now >= next_status:
                self.notifier.status(
                    f"stopping: the engine has another {spell(deadline - now)} for requests in flight"
                )
                next_status = now + 2.0
            self.signals.wait(min(0.5, deadline - now))
        return True

    def kill_group(self, engine: subprocess.Popen[bytes]) -> None:
        """Kill whatever is left of the engine's process group and wait until it is gone."""
        deadline = time.monotonic() + KILL_GRACE_SECONDS
        while time.monotonic() < deadline:
            try:
                os.killpg(engine.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                # Nobody left (or only zombies that init has yet to reap).
                break
            if engine.poll() is not None and not group_alive(engine.pid):
                break
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            engine.wait(timeout=1.0)

    def age(self) -> float:
        """Seconds since the engine was started."""
        return time.monotonic() - self.started

    def say(self, text: str) -> None:
        """Write one line to the journal."""
        print(f"metal supervise: {text}", file=sys.stderr, flush=True)

    def fail(self, code: int, message: str) -> int:
        """Say why, on the journal and on the status line, and return ``code``."""
        self.say(message)
        self.notifier.send(STATUS=f"failed: {message}")
        return code


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


def spell(seconds: float) -> str:
    """Return a duration for people: ``34 s``, ``5 min 02 s``, ``3 h 07 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def signal_name(number: int) -> str:
    """Return ``SIGKILL`` for 9, ``signal 99`` for what has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def seconds(text: str) -> float:
    """Parse a positive number of seconds (for argparse)."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def parse(argv: Sequence[str]) -> Settings:
    """Parse the command line after ``metal supervise``."""
    parser = argparse.ArgumentParser(
        prog="metal supervise",
        description="Start the engine for systemd (Type=notify): status line, readiness, stop.",
        epilog="Exit status: 0 stopped on request; the engine's own (128+N for signal N) if it ended itself; "
        "124 not ready in time; 126/127 cannot be started; 2 usage.",
    )
    parser.add_argument("--instance", required=True, help="name after the @ of the unit")
    parser.add_argument("--ready-url", required=True, help="health URL of the engine; 200 means ready")
    parser.add_argument("--start-timeout", required=True, type=seconds, help="seconds until ready at most")
    parser.add_argument("--stop-timeout", required=True, type=seconds, help="seconds for requests in flight")
    parser.add_argument("--status-interval", type=seconds, default=30.0, help="seconds between status lines")
    parser.add_argument(
        "command", nargs="+", metavar="-- ENGINE [ARGUMENT ...]", help="the engine's command line"
    )
    own, separator, command = split_command(argv)
    if not separator and not {"-h", "--help"} & set(own):
        parser.error("the engine's command line is missing: put it after --")
    arguments = parser.parse_args([*own, *(["--", *command] if command else [])])
    return Settings(
        instance=arguments.instance,
        ready_url=arguments.ready_url,
        start_timeout=arguments.start_timeout,
        stop_timeout=arguments.stop_timeout,
        status_interval=arguments.status_interval,
        command=tuple(arguments.command),
    )


def split_command(argv: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    """Split at the first ``--``: our arguments, whether there was one, the engine's command."""
    if "--" not in argv:
        return list(argv), False, []
    at = list(argv).index("--")
    return list(argv[:at]), True, list(argv[at + 1 :])


def main(argv: list[str]) -> int:
    """Run ``metal supervise``; return its exit status."""
    try:
        settings = parse(argv)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_USAGE
    return Supervisor(settings, Notifier.from_environment()).run()

"""Control of a running engine: ask it to end, wait, kill it, and report progress meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import Final

from minimax_metal.common.durations import spell
from minimax_metal.host.engine import gpus
from minimax_metal.host.engine.arguments import Settings
from minimax_metal.host.engine.drain import ANSWER_SECONDS, QUIET_LOOKS, Drain
from minimax_metal.host.engine.notify import Notifier
from minimax_metal.host.engine.output import Journal
from minimax_metal.host.engine.processes import Signals, group_alive

EXIT_STOPPED: Final = 0

KILL_GRACE_SECONDS: Final = 10.0
"""Seconds that a killed process group may take to vanish."""

TEARDOWN_SECONDS: Final = 90.0
"""An idle engine checks for SIGTERM every 5 s and takes up to 15 s and 60 s to end its ranks
(``tokenizer_manager.py``, 0.5.23).
"""


class Control:
    """Shared state of the supervisor's parts, and the end of an engine."""

    def __init__(self, settings: Settings, notifier: Notifier) -> None:
        self.settings = settings
        self.notifier = notifier
        self.signals = Signals()
        self.journal = Journal()
        self.started = time.monotonic()
        self.drain = Drain.of_environment(dict(os.environ))

    def stop(self, engine: subprocess.Popen[bytes], *, ready: bool) -> int:
        """Let requests in flight finish, end the engine, and check that its GPUs are free."""
        name = self.signals.stop.name if self.signals.stop is not None else "SIGTERM"
        if not ready:
            self.say(f"{name}: stopping an engine that was not ready yet")
            self.notifier.send(STOPPING=1, STATUS="stopping: the engine was not ready yet")
            self.end_engine(engine, min(self.settings.stop_timeout, TEARDOWN_SECONDS))
            return EXIT_STOPPED
        self.say(f"{name}: draining, up to {spell(self.settings.stop_timeout)} for requests in flight")
        self.notifier.send(STOPPING=1, STATUS="stopping: new requests are refused, running ones may finish")
        begun = time.monotonic()
        deadline = begun + self.settings.stop_timeout
        drained = self.wait_for_requests(engine, deadline)
        if drained is None:
            # No plug-in: the engine drains by itself, as well as it can.
            obeyed = self.end_engine(engine, self.settings.stop_timeout)
        else:
            obeyed = self.end_engine(engine, TEARDOWN_SECONDS if drained == 0 else KILL_GRACE_SECONDS)
            if drained:
                self.say(
                    f"{drained} requests did not finish within {spell(self.settings.stop_timeout)}: cut off"
                )
        took = spell(time.monotonic() - begun)
        self.say(f"engine stopped after {took}" if obeyed else f"engine did not stop within {took}: killed")
        self.kill_group(engine)
        self.look_for_ghosts()
        return EXIT_STOPPED

    def wait_for_requests(self, engine: subprocess.Popen[bytes], deadline: float) -> int | None:
        """Return how many requests are still in flight when all are done or time is up; None: unknown."""
        try:
            self.drain.begin()
        except OSError as error:
            self.say(f"can't drain: {error.strerror or error}")
            return None
        patience = time.monotonic() + ANSWER_SECONDS
        quiet, next_status = 0, 0.0
        while engine.poll() is None:
            now = time.monotonic()
            running = self.drain.running()
            if running is None:
                if now >= patience:
                    return None
            elif running == 0:
                quiet += 1
                if quiet >= QUIET_LOOKS:
                    return 0
            else:
                quiet = 0
                if now >= deadline or self.signals.hurry:
                    return running
                if now >= next_status:
                    self.notifier.status(
                        f"stopping: {running} requests in flight, {spell(deadline - now)} left"
                    )
                    next_status = now + 2.0
            self.signals.wait(0.1)
        return 0

    def end_engine(self, engine: subprocess.Popen[bytes], patience: float) -> bool:
        """Send SIGTERM to the engine, SIGKILL to its group after ``patience``; return whether it ended in
        time.

        SIGTERM goes to the engine's main process only: it ends its ranks itself once requests are done, and a
        rank that got the signal first would abort them.
        """
        with contextlib.suppress(ProcessLookupError):
            engine.terminate()
        deadline = time.monotonic() + patience
        next_status = time.monotonic() + 2.0
        while engine.poll() is None:
            now = time.monotonic()
            if now >= deadline or self.signals.hurry:
                self.kill_group(engine)
                return False
            if now >= next_status:
                self.notifier.status(f"stopping: the engine has {spell(deadline - now)} left to exit")
                next_status = now + 2.0
            self.signals.wait(min(0.5, deadline - now))
        return True

    def look_for_ghosts(self) -> None:
        """Report what still holds GPU memory; the next start waits for it, or fails if it stays."""
        try:
            memory = gpus.read_memory(self.settings.gpus) if self.settings.gpus else None
        except gpus.GpuError as error:
            self.say(f"{error}; {error.remedy}")
            return
        for line in memory.taken if memory else ():
            self.say(f"after the stop, {line}")

    def kill_group(self, engine: subprocess.Popen[bytes]) -> None:
        """Kill the rest of the engine's process group and wait until it has ended."""
        deadline = time.monotonic() + KILL_GRACE_SECONDS
        while time.monotonic() < deadline:
            try:
                os.killpg(engine.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                # Nothing left (or only zombies that init has yet to reap).
                break
            if engine.poll() is not None and not group_alive(engine.pid):
                break
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            engine.wait(timeout=1.0)

    def age(self) -> float:
        """Seconds since the engine started."""
        return time.monotonic() - self.started

    def stopping(self) -> bool:
        """Return whether a stop was requested: long work ends then."""
        return self.signals.stop is not None

    @property
    def again(self) -> str:
        """How to start again by hand, also after systemd has given up."""
        unit = self.settings.unit
        return f"to start it again: systemctl reset-failed {unit}; systemctl start {unit}"

    def say(self, text: str) -> None:
        """Write one line to the journal without ever blocking."""
        self.journal.say(f"metal supervise: {text}")

    def fail(self, code: int, message: str) -> int:
        """Report the reason in the journal and on the status line, and return ``code``."""
        self.say(message)
        self.notifier.send(STATUS=f"failed: {message}")
        return code

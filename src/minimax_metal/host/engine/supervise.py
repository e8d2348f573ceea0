"""``metal supervise``: start the engine for systemd and tell systemd the truth about it.

The engine has no sd_notify and serves ``/v1/models`` long before it can generate. This process stands between
the two. It waits until port and GPUs are free, starts the engine in a process group of its own, passes its
output on without the keys, says on the unit's status line what is going on, reports ready when the health URL
(a real one-token generation) answers 200, drains before it stops, and ends at once with the engine's own
reason when the engine ends or hangs. Standard library only: it starts in milliseconds.

Exit status:

=====  =============================================================================================
0      stopped on request (SIGTERM or SIGINT)
1-255  the engine ended by itself: its own status, 128 + N when signal N ended it, 1 when its status was 0
70     a GPU fault that needs an operator; systemd does not start again
78     a start that can never succeed as it is; systemd does not start again
123    the engine hung; it was killed
124    the engine was not ready within ``--start-timeout``; it was stopped
126/7  the engine could not be started: not executable / no such program
2      usage
=====  =============================================================================================
"""

from __future__ import annotations

import os
import subprocess
import time
import urllib.parse
from typing import Final

from minimax_metal.common.durations import spell
from minimax_metal.host.engine import incidents
from minimax_metal.host.engine.arguments import Settings, parse
from minimax_metal.host.engine.control import EXIT_STOPPED, TEARDOWN_SECONDS
from minimax_metal.host.engine.diagnosis import EXIT_NEVER, diagnose, find_events, find_xids
from minimax_metal.host.engine.guarded import GuardProbe
from minimax_metal.host.engine.health import HealthProbe, Watch
from minimax_metal.host.engine.listener import Port
from minimax_metal.host.engine.notify import Notifier
from minimax_metal.host.engine.output import Output, Secrets
from minimax_metal.host.engine.processes import signal_name
from minimax_metal.host.engine.starting import Starting

EXIT_USAGE: Final = 2
EXIT_HUNG: Final = 123
EXIT_START_TIMEOUT: Final = 124
EXIT_NOT_EXECUTABLE: Final = 126
EXIT_NO_PROGRAM: Final = 127

START_MARGIN_SECONDS: Final = 180.0
"""How much longer than ``--start-timeout`` the unit's TimeoutStartSec is: to end a late engine and report
why.
"""

JOURNAL_SECONDS: Final = 3.0
"""Seconds to wait at the end for a blocked journal."""


class Supervisor(Starting):
    """One engine process from start to end."""

    def __init__(self, settings: Settings, notifier: Notifier) -> None:
        super().__init__(settings, notifier)
        self.began = time.time()
        self.secrets = Secrets(())
        self.port = Port(settings.address[1])
        self.guard = GuardProbe(settings.ready_url, None)

    def run(self) -> int:
        """Start the engine, run it until it ends and return the exit status of ``metal supervise``."""
        self.journal.start()
        try:
            return self._run()
        finally:
            self.drain.close()
            self.journal.finish(JOURNAL_SECONDS)

    def _run(self) -> int:
        try:
            self.secrets = Secrets.of_directory(self.settings.secrets)
            self.guard = GuardProbe.of(self.settings.ready_url, self.settings.secrets, os.environ)
        except OSError as error:
            return self.fail(
                EXIT_NEVER, f"can't read {error.filename}: {error.strerror}; run the playbook again"
            )
        with self.signals.installed():
            status = self.prepare()
            if status is not None:
                return status
            try:
                # A separate group, so that a stop reaches every rank the engine started.
                engine = subprocess.Popen(
                    self.settings.command,
                    process_group=0,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=self.drain.environment(dict(os.environ), self.settings.secrets),
                )
            except FileNotFoundError:
                return self.fail(
                    EXIT_NO_PROGRAM,
                    f"cannot start {self.settings.command[0]}: no such file; run the playbook again",
                )
            except OSError as error:
                return self.fail(
                    EXIT_NOT_EXECUTABLE, f"cannot start {self.settings.command[0]}: {error.strerror or error}"
                )
            self.started, self.began = time.monotonic(), time.time()
            # systemd has counted the waiting so far: the engine gets its whole time from here.
            limit = self.settings.start_timeout + START_MARGIN_SECONDS
            self.notifier.send(EXTEND_TIMEOUT_USEC=int(limit * 1e6))
            assert engine.stdout is not None  # noqa: S101  # asked for above
            output = self.output = Output(engine.stdout, self.secrets, lambda line: self.journal.say(line, 1))
            output.start()
            probe = HealthProbe(self.settings.ready_url)
            probe.start()
            watch = Watch(
                self.settings.ready_url,
                self.settings.watch_interval,
                self.settings.hang_timeout,
                lambda: output.worked,
            )
            try:
                return self.follow(engine, probe, watch)
            finally:
                probe.halted.set()
                watch.halted.set()
                self.kill_group(engine)
                output.finish()

    def follow(self, engine: subprocess.Popen[bytes], probe: HealthProbe, watch: Watch) -> int:
        """Follow the engine until it ends or a stop is requested."""
        ready_after: float | None = None
        next_status = 0.0
        while True:
            if self.signals.stop is not None:
                return self.stop(engine, ready=ready_after is not None)
            status = engine.poll()
            if status is not None:
                return self.ended(engine, status, ready_after)
            age = self.age()
            if ready_after is None and probe.ready.is_set() and self.may_serve(engine.pid):
                ready_after = age
                self.say(f"ready after {spell(age)}; engine pid {engine.pid}")
                self.notifier.send(
                    READY=1, STATUS=f"ready: answered {self.settings.ready_url} after {spell(age)}"
                )
                next_status = age + self.settings.status_interval
                watch.start()
            if ready_after is None and (self.port.is_lost or self.guard.is_missing):
                return self.over(engine, "start", f"was stopped: {self.wrong()}", EXIT_NEVER)
            if ready_after is None and age >= self.settings.start_timeout:
                return self.give_up(engine, probe)
            if watch.hung.is_set():
                return self.hung(engine, watch)
            if age >= next_status:
                self.notifier.status(self.describe(age, ready_after, probe, watch))
                # Short while starting: somebody is watching then.
                next_status = age + (2.0 if ready_after is None else self.settings.status_interval)
            self.signals.wait(0.25 if ready_after is None else min(1.0, max(0.05, next_status - age)))

    def may_serve(self, pid: int) -> bool:
        """Return whether the server is the engine, with the guard in it."""
        return self.port.is_the_engines(pid) and self.guard.is_there()

    def wrong(self) -> str:
        """Return why an engine that answers is not ready; empty if nothing is wrong."""
        return self.port.note or self.guard.note

    def describe(self, age: float, ready_after: float | None, probe: HealthProbe, watch: Watch) -> str:
        """Return the status line: what can be seen without disturbing the engine."""
        if ready_after is None and self.wrong():
            return f"waiting: {self.wrong()}"
        if ready_after is None:
            path = urllib.parse.urlsplit(self.settings.ready_url).path or "/"
            seen = {
                "port closed": f"nothing listens on port {self.settings.address[1]} yet",
                "503": f"{path} says 503",
            }.get(probe.last, f"waiting for {path} ({probe.last})")
            phase = self.output.phase if self.output and self.output.phase else "loading"
            limit = spell(self.settings.start_timeout)
            return f"starting: {phase}; engine running for {spell(age)} of at most {limit}, {seen}"
        if watch.note:
            return f"troubled: engine running for {spell(age)}, {watch.note}"
        load = watch.figures
        seen = f", {load.running} requests running, {load.queued} waiting" if load else ""
        return f"ready: engine running for {spell(age)}{seen}"

    def ended(self, engine: subprocess.Popen[bytes], status: int, ready_after: float | None) -> int:
        """Report that the engine ended by itself; return its status as ours, never 0."""
        how = f"was killed by {signal_name(-status)}" if status < 0 else f"exited with status {status}"
        when = "before it was ready" if ready_after is None else "after it had been ready"
        return self.over(
            engine,
            "start" if ready_after is None else "crash",
            f"{how} after {spell(self.age())}, {when}",
            128 - status if status < 0 else status or 1,
        )

    def give_up(self, engine: subprocess.Popen[bytes], probe: HealthProbe) -> int:
        """Stop an engine that did not become ready in time."""
        phase = self.output.phase if self.output and self.output.phase else "loading"
        how = (
            f"not ready within {spell(self.settings.start_timeout)} (last seen: {phase}; last answer of "
            f"{self.settings.ready_url}: {probe.last}). Still loading? Raise metal_start_timeout_seconds"
        )
        self.end_engine(engine, min(self.settings.stop_timeout, TEARDOWN_SECONDS))
        return self.over(engine, "timeout", how, EXIT_START_TIMEOUT)

    def hung(self, engine: subprocess.Popen[bytes], watch: Watch) -> int:
        """Kill an engine that hangs."""
        return self.over(engine, "hang", f"hung ({watch.note}); killed", EXIT_HUNG)

    def over(self, engine: subprocess.Popen[bytes], kind: str, how: str, status: int) -> int:
        """Report why the engine has ended, or must: write a report, return the exit status."""
        self.kill_group(engine)
        if self.output:
            self.output.finish()
        # By the current clock: it may have been set since the start.
        kernel = incidents.kernel_lines(min(self.began, time.time() - self.age()) - 1.0)
        xids, events = find_xids(kernel), find_events(kernel, stop=self.stopping)
        lines = self.output.last(200) if self.output else []
        reason = diagnose(
            lines,
            xids,
            ready=kind in {"crash", "hang"},
            events=events,
            port=self.settings.address[1],
            signal=status - 128 if kind in {"start", "crash"} and 128 < status < 160 else None,
            stop=self.stopping,
        )
        if reason and reason.status is not None and (kind != "timeout" or reason.gpu):
            status = reason.status
        where = self.report(kind, how, reason, status, [str(xid) for xid in xids], lines)
        if self.signals.stop is not None:
            # During a requested stop the way the engine ends is not a failure to restart after.
            self.say(f"engine {how} during a requested stop")
            return EXIT_STOPPED
        why = f": {reason.text}" if reason else ""
        more = f"report: {where}" if where else f"its messages: journalctl -u {self.settings.unit} -n 50"
        return self.fail(status, f"engine {how}{why} ({more}; {self.again})")


def main(argv: list[str]) -> int:
    """Run ``metal supervise``; return its exit status."""
    try:
        settings = parse(argv)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_USAGE
    return Supervisor(settings, Notifier.from_environment()).run()

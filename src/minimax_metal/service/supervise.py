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

import contextlib
import os
import signal
import subprocess
import time
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from minimax_metal.service import gpus, incidents
from minimax_metal.service.arguments import Settings, parse
from minimax_metal.service.diagnosis import EXIT_NEVER, Reason, Who, diagnose, find_events, find_xids
from minimax_metal.service.drain import ANSWER_SECONDS, QUIET_LOOKS, Drain
from minimax_metal.service.guarded import GuardProbe
from minimax_metal.service.health import HealthProbe, Watch
from minimax_metal.service.listener import Port
from minimax_metal.service.notify import Notifier
from minimax_metal.service.output import Journal, Output, Secrets
from minimax_metal.service.processes import (
    Signals,
    accepts_connections,
    group_alive,
    restarts,
    signal_name,
)

EXIT_STOPPED: Final = 0
EXIT_USAGE: Final = 2
EXIT_HUNG: Final = 123
EXIT_START_TIMEOUT: Final = 124
EXIT_NOT_EXECUTABLE: Final = 126
EXIT_NO_PROGRAM: Final = 127

KILL_GRACE_SECONDS: Final = 10.0
"""How long a killed process group may take to vanish."""

TEARDOWN_SECONDS: Final = 90.0
"""An engine with nothing in flight looks for SIGTERM every 5 s and takes up to 15 s and 60 s to end its ranks
(``tokenizer_manager.py``, 0.5.23)."""

DELAYS: Final = (0.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds before a start by systemd itself, by the number of incidents of the last hour."""

START_MARGIN_SECONDS: Final = 180.0
"""What the unit's TimeoutStartSec is above ``--start-timeout``: to end an engine that is late and say why."""

JOURNAL_SECONDS: Final = 3.0
"""How long the end waits for a journal that does not take the last lines."""


class Supervisor:
    """One engine process from its start to its end."""

    def __init__(self, settings: Settings, notifier: Notifier) -> None:
        self.settings = settings
        self.notifier = notifier
        self.signals = Signals()
        self.journal = Journal()
        self.started = time.monotonic()
        self.began = time.time()
        self.drain = Drain.of_environment(dict(os.environ))
        self.secrets = Secrets(())
        self.output: Output | None = None
        self.port = Port(settings.address[1])
        self.guard = GuardProbe(settings.ready_url, None)

    def run(self) -> int:
        """Start the engine, see it through to its end and return the exit status of ``metal supervise``."""
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
                EXIT_NEVER, f"cannot read {error.filename}: {error.strerror}; run the playbook again"
            )
        with self.signals.installed():
            status = self.prepare()
            if status is not None:
                return status
            try:
                # A group of its own, so that a stop reaches every rank the engine started.
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

    def prepare(self) -> int | None:
        """Wait until the engine may start; an exit status when it may not."""
        self.drain.clear()
        pause = self.delay()
        if pause:
            text = f"{self.incidents_of_last_hour()} incidents"
            self.say(f"{text} within the last hour: waiting {spell(pause)} before the next start")
            now = f"systemctl restart {self.settings.unit} starts at once"
            if not self.wait(pause, f"waiting before the next start, {text} within the last hour; {now}"):
                return EXIT_STOPPED
        problem = self.taken()
        deadline = time.monotonic() + self.settings.free_timeout
        while problem is not None and time.monotonic() < deadline:
            if not self.wait(2.0, f"waiting: {problem.text}"):
                return EXIT_STOPPED
            problem = self.taken()
        if problem is None:
            return None
        if self.stopping():
            return EXIT_STOPPED
        status = problem.status or EXIT_NEVER
        self.report("start", "was not started", problem, status)
        return self.fail(status, f"engine was not started: {problem.text}; {self.again}")

    def delay(self) -> float:
        """Seconds to wait before a start: growing with the incidents of the last hour, none by hand."""
        if restarts(self.settings.unit) == 0:
            return 0.0
        return DELAYS[min(self.incidents_of_last_hour(), len(DELAYS) - 1)]

    def incidents_of_last_hour(self) -> int:
        """How often the engine ended by itself lately."""
        return incidents.recent(self.settings.state / "incidents", self.settings.instance, 3600.0)

    def taken(self) -> Reason | None:
        """What an engine needs and somebody else holds."""
        host, port = self.settings.address
        if accepts_connections(host, port):
            return Reason(
                "port",
                f"port {port} is taken, expected a free one; find the program with "
                f"ss -ltnp 'sport = :{port}' and stop it, or set metal_port",
                final=True,
                who=Who.USER,
            )
        try:
            memory = gpus.read_memory(self.settings.gpus, self.stopping) if self.settings.gpus else None
        except gpus.GpuError as error:
            return Reason("gpu", f"{error}; {error.remedy}", final=True, gpu=error.operator, who=Who.OPERATOR)
        if memory is not None and memory.mig:
            names = ",".join(map(str, memory.mig))
            return Reason(
                "mig",
                f"GPU {names}: MIG is on, expected off; turn it off with nvidia-smi -i {names} -mig 0, then "
                "reset the GPU (nvidia-smi --gpu-reset) or reboot",
                final=True,
                who=Who.USER,
            )
        if memory is None or not memory.taken:
            return None
        held = "; ".join(memory.taken)
        return Reason(
            "gpu-memory",
            f"{held}; expected free GPUs; stop that process or, if it is gone, reset the GPU "
            "(nvidia-smi --gpu-reset) or reboot",
            final=True,
            who=Who.USER,
        )

    def wait(self, seconds: float, status: str) -> bool:
        """Wait and say so; false when a stop was asked for."""
        deadline = time.monotonic() + seconds
        self.notifier.send(STATUS=status, EXTEND_TIMEOUT_USEC=int((seconds + 30.0) * 1e6))
        while self.signals.stop is None and (rest := deadline - time.monotonic()) > 0:
            self.signals.wait(rest)
        return self.signals.stop is None

    def follow(self, engine: subprocess.Popen[bytes], probe: HealthProbe, watch: Watch) -> int:
        """Follow the engine until it ends or a stop is asked for."""
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
        """Whether what answers is the engine, and the guard is in it."""
        return self.port.is_the_engines(pid) and self.guard.is_there()

    def wrong(self) -> str:
        """Why an engine that answers is not ready; empty when nothing is wrong."""
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
            return f"starting: {phase}; engine alive {spell(age)} of at most {limit}, {seen}"
        if watch.note:
            return f"troubled: engine alive {spell(age)}, {watch.note}"
        load = watch.figures
        seen = f", {load.running} requests running, {load.queued} waiting" if load else ""
        return f"ready: engine alive {spell(age)}{seen}"

    def ended(self, engine: subprocess.Popen[bytes], status: int, ready_after: float | None) -> int:
        """Report that the engine ended by itself; return its status as ours, never 0."""
        how = f"was ended by {signal_name(-status)}" if status < 0 else f"exited with status {status}"
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
        """Kill an engine that no longer gets on."""
        return self.over(engine, "hang", f"hung ({watch.note}); killed", EXIT_HUNG)

    def over(self, engine: subprocess.Popen[bytes], kind: str, how: str, status: int) -> int:
        """The engine is gone, or has to be: say why, keep a report, return the exit status."""
        self.kill_group(engine)
        if self.output:
            self.output.finish()
        # By the clock of now: it may have been set since the start.
        kernel = incidents.kernel_lines(min(self.began, time.time() - self.age()) - 1.0)
        xids, events = find_xids(kernel), find_events(kernel)
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
            # Somebody stops the unit: how its engine ended is no failure to start again from.
            self.say(f"engine {how} while it was told to stop")
            return EXIT_STOPPED
        why = f": {reason.text}" if reason else ""
        more = f"report: {where}" if where else f"its own words: journalctl -u {self.settings.unit} -n 50"
        return self.fail(status, f"engine {how}{why} ({more}; {self.again})")

    def report(
        self,
        kind: str,
        how: str,
        reason: Reason | None,
        status: int,
        xids: Sequence[str] = (),
        lines: Sequence[str] = (),
    ) -> Path | None:
        """Keep a report of an incident; none where it can't be written, which hides nothing else."""
        incident = incidents.Incident(
            instance=self.settings.instance,
            kind=kind,
            how=how,
            reason=reason.text if reason else None,
            code=reason.code if reason else None,
            phase=self.output.phase if self.output else "",
            age_seconds=round(self.age(), 1),
            exit_status=status,
            xids=list(xids),
            output=list(lines),
            who=str(reason.who) if reason else None,
            evidence=list(reason.evidence) if reason else [],
        )
        try:
            return incidents.write_report(self.settings.state / "incidents", incident, stop=self.stopping)
        except OSError as error:
            self.say(f"the report of this incident could not be kept: {error.strerror or error}")
            return None

    def stop(self, engine: subprocess.Popen[bytes], *, ready: bool) -> int:
        """Let requests in flight finish, end the engine, and see that its GPUs are free."""
        name = self.signals.stop.name if self.signals.stop is not None else "SIGTERM"
        if not ready:
            self.say(f"{name}: stopping an engine that was not ready yet")
            self.notifier.send(STOPPING=1, STATUS="stopping: the engine was not ready yet")
            self.end_engine(engine, min(self.settings.stop_timeout, TEARDOWN_SECONDS))
            return EXIT_STOPPED
        self.say(f"{name}: draining, up to {spell(self.settings.stop_timeout)} for requests in flight")
        self.notifier.send(
            STOPPING=1, STATUS="stopping: new requests are refused, those in flight may finish"
        )
        begun = time.monotonic()
        deadline = begun + self.settings.stop_timeout
        drained = self.wait_for_requests(engine, deadline)
        if drained is None:
            # No plug-in: the engine drains by itself, as well as it does.
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
        """How many requests are still in flight when all are done or time is up; none: nobody counts them."""
        try:
            self.drain.begin()
        except OSError as error:
            self.say(f"cannot drain: {error.strerror or error}")
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
                        f"stopping: {running} requests in flight have another {spell(deadline - now)}"
                    )
                    next_status = now + 2.0
            self.signals.wait(0.1)
        return 0

    def end_engine(self, engine: subprocess.Popen[bytes], patience: float) -> bool:
        """Send SIGTERM to the engine, SIGKILL to its group after ``patience``; return whether it obeyed.

        SIGTERM goes to the engine's main process alone: it ends its ranks itself once requests are done, and
        a rank that got the signal first would break them off.
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
                self.notifier.status(f"stopping: the engine has another {spell(deadline - now)} to end")
                next_status = now + 2.0
            self.signals.wait(min(0.5, deadline - now))
        return True

    def look_for_ghosts(self) -> None:
        """Say what still holds memory of the GPUs; the next start waits for it, or fails if it stays."""
        try:
            memory = gpus.read_memory(self.settings.gpus) if self.settings.gpus else None
        except gpus.GpuError as error:
            self.say(f"{error}; {error.remedy}")
            return
        for line in memory.taken if memory else ():
            self.say(f"after the stop, {line}")

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

    def stopping(self) -> bool:
        """Whether a stop was asked for: what takes long ends then."""
        return self.signals.stop is not None

    @property
    def again(self) -> str:
        """How to start again by hand, also where systemd has given up."""
        unit = self.settings.unit
        return f"again: systemctl reset-failed {unit}; systemctl start {unit}"

    def say(self, text: str) -> None:
        """Write one line to the journal; never waits for it."""
        self.journal.say(f"metal supervise: {text}")

    def fail(self, code: int, message: str) -> int:
        """Say why, on the journal and on the status line, and return ``code``."""
        self.say(message)
        self.notifier.send(STATUS=f"failed: {message}")
        return code


def spell(seconds: float) -> str:
    """Return a duration for people: ``34 s``, ``5 min 02 s``, ``3 h 07 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def main(argv: list[str]) -> int:
    """Run ``metal supervise``; return its exit status."""
    try:
        settings = parse(argv)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_USAGE
    return Supervisor(settings, Notifier.from_environment()).run()

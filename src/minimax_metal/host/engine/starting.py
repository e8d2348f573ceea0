"""Before an engine starts: check that its port and GPUs are free and healthy, or report what holds them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from minimax_metal.common.durations import spell
from minimax_metal.host.engine import gpus, incidents
from minimax_metal.host.engine.arguments import Settings
from minimax_metal.host.engine.control import EXIT_STOPPED, Control
from minimax_metal.host.engine.diagnosis import EXIT_NEVER, Reason, Who
from minimax_metal.host.engine.notify import Notifier
from minimax_metal.host.engine.output import Output
from minimax_metal.host.engine.processes import accepts_connections, restarts

DELAYS: Final = (0.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds before a restart by systemd, by the number of incidents in the last hour."""


class Starting(Control):
    """The wait before a start, and the report of an end."""

    def __init__(self, settings: Settings, notifier: Notifier) -> None:
        super().__init__(settings, notifier)
        self.output: Output | None = None

    def prepare(self) -> int | None:
        """Wait until the engine may start; return an exit status if it may not."""
        self.drain.clear()
        pause = self.delay()
        if pause:
            text = f"{self.incidents_of_last_hour()} incidents"
            self.say(f"{text} within the last hour: waiting {spell(pause)} before the next start")
            now = f"systemctl restart {self.settings.unit} starts immediately"
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
        """Return seconds to wait before a start: growing with the incidents in the last hour, 0 for a manual
        start.
        """
        if restarts(self.settings.unit) == 0:
            return 0.0
        return DELAYS[min(self.incidents_of_last_hour(), len(DELAYS) - 1)]

    def incidents_of_last_hour(self) -> int:
        """Return how often the engine ended unexpectedly in the last hour."""
        return incidents.recent(self.settings.state / "incidents", self.settings.instance, 3600.0)

    def taken(self) -> Reason | None:
        """Return what the engine needs and another program holds."""
        host, port = self.settings.address
        if accepts_connections(host, port):
            return Reason(
                "port",
                f"port {port} is taken, expected a free one; find the program with ss -ltnp 'sport "
                f"= :{port}' and stop it, or set metal_port",
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
            f"{held}; expected free GPUs; stop that process or, if it no longer exists, reset the "
            "GPU (nvidia-smi --gpu-reset) or reboot",
            final=True,
            who=Who.USER,
        )

    def wait(self, seconds: float, status: str) -> bool:
        """Wait and report it; false if a stop was requested."""
        deadline = time.monotonic() + seconds
        self.notifier.send(STATUS=status, EXTEND_TIMEOUT_USEC=int((seconds + 30.0) * 1e6))
        while self.signals.stop is None and (rest := deadline - time.monotonic()) > 0:
            self.signals.wait(rest)
        return self.signals.stop is None

    def report(
        self,
        kind: str,
        how: str,
        reason: Reason | None,
        status: int,
        xids: Sequence[str] = (),
        lines: Sequence[str] = (),
    ) -> Path | None:
        """Store a report of an incident; None if it can't be written, which must not hide anything else."""
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
            self.say(f"the report of this incident could not be written: {error.strerror or error}")
            return None

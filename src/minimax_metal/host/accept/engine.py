"""Stopping the engine for a while: whatever happens to this program, it is started again.

A small unit of systemd's waits for the end of this process and starts the engine then: after Ctrl-C, a lost
connection or SIGKILL as well.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from minimax_metal.common.errors import UserError
from minimax_metal.common.files import write_atomic
from minimax_metal.host.accept.context import Service
from minimax_metal.host.accept.machine import Machine
from minimax_metal.host.accept.sandbox import UNITS

GUARD: Final = "metal-accept-restart.service"
SANDBOX: Final = (
    "MemoryMax=64M", "TasksMax=8", "UMask=0077", "CapabilityBoundingSet=", "NoNewPrivileges=yes",
    "ProtectSystem=strict", "ProtectHome=yes", "PrivateDevices=yes", "PrivateNetwork=yes",
    "IPAddressDeny=any", "ProtectClock=yes", "ProtectControlGroups=yes", "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes", "ProtectKernelTunables=yes", "RestrictAddressFamilies=AF_UNIX",
    "RestrictNamespaces=yes", "RestrictRealtime=yes", "RestrictSUIDSGID=yes", "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes", "SystemCallArchitectures=native", "SystemCallFilter=@system-service",
)  # fmt: skip
"""It watches a process, asks systemd, and removes its own file."""


def guard_text(pid: int, units: Sequence[str], file: Path) -> str:
    """The unit that starts ``units`` when process ``pid`` is gone."""
    return "\n".join(
        [
            "[Unit]",
            f"Description=Starts {' and '.join(units)} again when metal accept is over",
            "CollectMode=inactive-or-failed",
            "[Service]",
            "Type=exec",
            f"ExecStart=/usr/bin/tail --pid={pid} --follow /dev/null",
            f"ExecStopPost=/usr/bin/systemctl start --no-block {' '.join(units)}",
            f"ExecStopPost=-/usr/bin/rm -f {file}",
            f"ReadWritePaths={file.parent}",
            *SANDBOX,
            "",
        ]
    )


@contextlib.contextmanager
def stopped(machine: Machine, services: Sequence[Service], directory: Path = UNITS) -> Iterator[None]:
    """Stop the instances, and start them again at the end of the block; an exception does not wait for them.

    Raises:
        UserError: they could not be stopped, or did not come up again; systemd is at it in either case.
    """
    units = [service.unit for service in services]
    if not units:
        yield
        return
    file = directory / GUARD
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(file, guard_text(os.getpid(), units, file))
    machine.run("systemctl", "daemon-reload")
    guard = machine.run("systemctl", "start", GUARD)
    if guard.status:
        file.unlink(missing_ok=True)
        raise UserError(
            f"found no way to make sure of a restart ({guard.words}), expected {GUARD} to start; the engine "
            "was left running"
        )
    try:
        patience = max(service.stop_seconds for service in services) + 240.0
        answer = machine.run("systemctl", "stop", *units, seconds=patience)
        if answer.status:
            raise UserError(f"found {answer.words}, expected {', '.join(units)} to stop; look at its journal")
        yield
    finally:
        # It starts them without waiting, and takes its file away.
        machine.run("systemctl", "stop", GUARD)


def await_start(machine: Machine, services: Sequence[Service]) -> bool:
    """Wait until the instances are ready; false when one is not."""
    if not services:
        return True
    patience = max(service.start_seconds for service in services) + 300.0
    return machine.run("systemctl", "start", *(one.unit for one in services), seconds=patience).status == 0

"""Stop the engine temporarily, with a guaranteed restart.

A small systemd unit waits until this process ends and then starts the engine: also after Ctrl-C, a lost
connection or SIGKILL.
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
"""It watches a process, talks to systemd, and removes its own file."""


def guard_text(pid: int, units: Sequence[str], file: Path) -> str:
    """Return the unit that starts ``units`` when process ``pid`` has ended."""
    return "\n".join(
        [
            "[Unit]",
            f"Description=Start {' and '.join(units)} again when metal accept has finished",
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
    """Stop the instances, and start them again at the end of the block; after an exception without waiting.

    Raises:
        UserError: they could not be stopped, or did not become ready; systemd keeps trying in either case.
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
            f"found no way to ensure a restart ({guard.words}), expected {GUARD} to start; the "
            "engine was left running"
        )
    try:
        patience = max(service.stop_seconds for service in services) + 240.0
        answer = machine.run("systemctl", "stop", *units, seconds=patience)
        if answer.status:
            raise UserError(f"found {answer.words}, expected {', '.join(units)} to stop; look at its journal")
        yield
    finally:
        # It starts them without waiting, and removes its file.
        machine.run("systemctl", "stop", GUARD)


def await_start(machine: Machine, services: Sequence[Service]) -> bool:
    """Wait until the instances are ready; false if one is not."""
    if not services:
        return True
    patience = max(service.start_seconds for service in services) + 300.0
    return machine.run("systemctl", "start", *(one.unit for one in services), seconds=patience).status == 0

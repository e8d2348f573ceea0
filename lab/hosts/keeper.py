"""Keeps one host switched on: starts systemd-nspawn, and again when the host reboots itself.

``python -m lab.hosts.keeper DIRECTORY``; the directory's ``boot.json`` describes the command. It ends when
the host powers off or its nspawn is killed: a crashed host stays down, as a real one might, until the next
``up``.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Final

from lab.hosts import cgroups
from lab.hosts.paths import HostPaths
from lab.hosts.processes import Process

REBOOTED: Final = 133  # systemd-nspawn --keep-unit: the host asked for a reboot
QUICK_SECONDS: Final = 3.0
MAX_QUICK_BOOTS: Final = 5


def log(text: str) -> None:
    """Write to the keeper's log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


def keep(paths: HostPaths) -> int:
    """Run the host until it is off; return the last exit status of nspawn."""
    boot = json.loads(paths.boot.read_text())
    group: str = boot["cgroup"]
    child: subprocess.Popen[bytes] | None = None
    asked_to_stop = False

    def power_off(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True
        if child is not None:
            child.terminate()  # nspawn shuts the host down cleanly

    signal.signal(signal.SIGTERM, power_off)
    quick = 0
    while True:
        start = time.monotonic()
        with paths.console.open("ab") as console:
            child = subprocess.Popen(
                boot["argv"],
                env=boot["environment"],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: cgroups.enter(group),
            )
        Process.of(child.pid).write(paths.machine)
        log(f"booting, nspawn is process {child.pid}")
        status = child.wait()
        log(f"nspawn ended with {status} after {time.monotonic() - start:.1f} s")
        cgroups.kill(group)
        quick = quick + 1 if time.monotonic() - start < QUICK_SECONDS else 0
        if status != REBOOTED or asked_to_stop:
            return status
        if quick >= MAX_QUICK_BOOTS:
            log(f"{quick} boots in a row took less than {QUICK_SECONDS:.0f} s: giving up")
            return status


def main() -> int:
    """Keep the host whose directory is the first argument."""
    paths = HostPaths(Path(sys.argv[1]))
    try:
        return keep(paths)
    finally:
        paths.machine.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())

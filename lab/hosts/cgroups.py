"""A control group per host.

systemd inside a host manages its units through the group that nspawn gives it. Without separate groups, two
hosts on a machine whose systemd does not separate them would share one, and stopping a unit on one could end
the processes of its namesake on the other. The group also finds every process of a host, even if records are
lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Final

from lab.hosts.processes import wait_until

MOUNTS: Final = Path("/proc/self/mountinfo")


def hierarchies() -> list[Path]:
    """Return the mount points that systemd in a host uses: cgroup v2, and v1's name=systemd."""
    found = []
    for line in MOUNTS.read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(maxsplit=2)
        point = Path(before.split()[4])
        if (kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options)) and point not in found:
            found.append(point)
    return found


def groups(name: str) -> list[Path]:
    """Return the group's directory in each hierarchy, whether or not it exists."""
    return [point / name for point in hierarchies()]


def existing(prefix: str) -> list[str]:
    """Return the names of the groups that begin with ``prefix``."""
    return sorted(
        {path.name for point in hierarchies() for path in point.glob(f"{prefix}*") if path.is_dir()}
    )


def enter(name: str) -> None:
    """Move this process into the group, creating it if needed; called between fork and exec."""
    for group in groups(name):
        group.mkdir(exist_ok=True)
        (group / "cgroup.procs").write_text(str(os.getpid()))


def _directories(name: str) -> list[Path]:
    """Return the group's directories, deepest first; some may vanish meanwhile, as a host cleans up too."""
    # os.walk skips unreadable directories; pathlib's rglob raises.
    return [Path(path) for group in groups(name) for path, _, _ in os.walk(group, topdown=False)]


def members(name: str) -> list[int]:
    """Return the ids of all processes in the group and below it."""
    found: set[int] = set()
    for directory in _directories(name):
        with contextlib.suppress(OSError):
            found.update(int(line) for line in (directory / "cgroup.procs").read_text().split())
    return sorted(found - {0})


def kill(name: str, seconds: float = 15.0) -> bool:
    """End every process of the group, then remove it; True if nothing is left."""

    def ended() -> bool:
        left = members(name)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    if not wait_until(ended, seconds):
        return False
    remove(name)
    return not any(group.exists() for group in groups(name))


def remove(name: str) -> None:
    """Remove an empty group and those below it."""
    for directory in _directories(name):
        with contextlib.suppress(OSError):
            directory.rmdir()

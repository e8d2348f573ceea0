"""Who holds the fleet's lock: this run, in the words of the lock, and whether the run of a lock has ended.

A run that was killed, or that failed where Ansible ends at once, leaves its lock. Whether a run on another
machine still lives can't be known from here; of a run on this one it can, by its process: the number alone is
given again, so the lock also says when the process began, in which boot and in which name space of processes.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

PROC: Final = Path("/proc")


def this_run(pid: int, playbooks: Sequence[str], proc: Path = PROC) -> dict[str, Any]:
    """Return a run's name and who runs it.

    The command line is left out on purpose, since it may hold a secret (``-e``).

    Args:
        pid: the process that a lock belongs to, ``ansible-playbook``.
        playbooks: what it was asked to play.
        proc: where processes are read.
    """
    began = datetime.now(UTC)
    return {
        "run": f"{began:%Y%m%dT%H%M%SZ}-{pid}",
        "user": getpass.getuser(),
        "controller": socket.gethostname(),
        "pid": pid,
        "command": ", ".join(Path(name).name for name in playbooks),
        "time": began.isoformat(timespec="seconds"),
        "process": _identity(pid, proc) or "?",
    }


def ended(holder: Mapping[str, Any], proc: Path = PROC) -> bool:
    """Return whether the run that holds a lock was one of this machine, and its process is gone."""
    known = str(holder.get("process")).split()
    place = _place(proc)
    if len(known) != 3 or place is None or known[:2] != place:
        return False
    pid = str(holder.get("pid"))
    return pid.isdecimal() and _identity(int(pid), proc) != " ".join(known)


def _place(proc: Path) -> list[str] | None:
    """The boot of this machine and its name space of processes; None where there are none to be read."""
    try:
        boot = (proc / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return [boot, (proc / "self/ns/pid").readlink().name]
    except (OSError, UnicodeDecodeError):
        return None


def _identity(pid: int, proc: Path) -> str | None:
    place = _place(proc)
    try:
        # The program's name, in parentheses, may hold anything; the 22nd field is when the process began.
        began = (proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[19]
    except (OSError, IndexError):
        return None
    return " ".join([*place, began.decode()]) if place else None

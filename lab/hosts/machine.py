"""The machine that runs the lab: its requirements, what labs share of it, and its former settings.

Two labs may run side by side, and each may crash. What they share (the numbers of their networks, the
forwarding switch, the directory of named network namespaces) is in :data:`lab.hosts.paths.RUNTIME`, which a
reboot empties like the settings themselves.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lab.hosts import mounts
from lab.hosts.apt import machine_release
from lab.hosts.errors import LabError
from lab.hosts.paths import RUNTIME
from lab.hosts.processes import boot_id, run, succeeds, write_whole

PACKAGES: Final = Path(__file__).parents[1] / "system-packages.txt"
FIXED_NUMBERS: Final = {"demo": 0, "molecule": 1}
FIRST_FREE_NUMBER: Final = 2
LAST_NUMBER: Final = 254
INOTIFY_OF_A_HOST: Final = 7
"""inotify instances of a booted Debian host: five of systemd, logind and D-Bus at rest (counted), two for a
login.
"""
INOTIFY_LIMIT: Final = Path("/proc/sys/fs/inotify/max_user_instances")
IP_FORWARD: Final = Path("/proc/sys/net/ipv4/ip_forward")
NETNS: Final = Path("/run/netns")


def system_packages() -> list[str]:
    """Return the Debian packages the lab needs."""
    lines = (line.partition("#")[0].strip() for line in PACKAGES.read_text().splitlines())
    return [line for line in lines if line]


def check_root() -> None:
    """Raise :class:`LabError` unless this is root."""
    if os.geteuid() != 0:
        raise LabError(
            f"the lab needs root (found user id {os.geteuid()}): it mounts file systems and creates networks"
        )


def check() -> str:
    """Return this machine's Debian code name, or report what it lacks.

    Raises:
        LabError: not root, not Debian, or packages are missing.
    """
    check_root()
    release = machine_release()
    listed = run(["dpkg-query", "--show", "--showformat=${db:Status-Abbrev} ${Package}\n"])
    installed = {line.split()[-1] for line in listed.splitlines() if line.startswith("ii")}
    missing = [package for package in system_packages() if package not in installed]
    if missing:
        raise LabError(
            f"system packages missing: {' '.join(missing)}; install them with "
            f"'apt-get install --no-install-recommends {' '.join(missing)}', or use make, which does"
        )
    return release


def inotify_in_use(processes: str = "[0-9]*") -> int:
    """Return how many inotify instances the processes of this machine hold, or those that match a pattern."""
    count = 0
    for link in Path("/proc").glob(f"{processes}/fd/*"):
        with contextlib.suppress(OSError):  # it was closed meanwhile
            count += str(link.readlink()) == "anon_inode:inotify"
    return count


def check_inotify(hosts: int, in_use: int, limit: int) -> None:
    """Raise :class:`LabError` if so many more hosts can't boot: their systemd would get no watches.

    Args:
        hosts: hosts to be switched on.
        in_use: inotify instances that processes of root hold now.
        limit: how many a user may hold (``fs.inotify.max_user_instances``).
    """
    needed = in_use + hosts * INOTIFY_OF_A_HOST
    if hosts and needed > limit:
        raise LabError(
            f"found fs.inotify.max_user_instances {limit} and {in_use} in use, expected room for {hosts} "
            f"more hosts ({INOTIFY_OF_A_HOST} each): "
            f"sysctl -w fs.inotify.max_user_instances={max(512, 2 * needed)}"
        )


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a machine-wide lock; the kernel releases it when the holder dies."""
    directory = RUNTIME / "locks"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / name).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            start = time.monotonic()
            if name != "machine":
                print(f"{name}: another command is working on it; waiting", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
            if name != "machine":
                print(f"{name}: waited {time.monotonic() - start:.0f} s", flush=True)
        yield


def _claims() -> dict[int, Path]:
    """Return the networks in use: number and state directory."""
    directory = RUNTIME / "networks"
    claims: dict[int, Path] = {}
    for path in directory.glob("*") if directory.is_dir() else []:
        if path.name.isdigit():
            claims[int(path.name)] = Path(path.read_text().strip())
    return claims


def _former() -> dict[str, object] | None:
    """Return the machine's settings before its first lab; None if no lab runs, or only before a reboot."""
    try:
        record = json.loads((RUNTIME / "former.json").read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("boot") == boot_id() else None


def find_number(directory: Path) -> int | None:
    """Return the network number of the lab whose state is ``directory``, if it has one now."""
    return next((number for number, owner in _claims().items() if owner == directory), None)


def owner(number: int) -> Path | None:
    """Return the state directory of the lab that has a network number now."""
    return _claims().get(number)


def claim_network(name: str, directory: Path, recorded: int | None) -> int:
    """Return the lab's network number, taking one if it has none, and remember how the machine was.

    Args:
        name: The lab's name; two names have fixed numbers, the others take the next free one.
        directory: The lab's state directory, which owns the number.
        recorded: The number the state remembers, taken again after a crash.

    Raises:
        LabError: the number belongs to a lab of the same name elsewhere, or none is free.
    """
    with locked("machine"):
        if _former() is None:
            for stale in (RUNTIME / "networks").glob("*"):
                stale.unlink()
            former = {
                "boot": boot_id(),
                "ip_forward": IP_FORWARD.read_text().strip(),
                "netns_mounted": mounts.is_mounted(NETNS),
                "netns_existed": NETNS.exists(),
            }
            write_whole(RUNTIME / "former.json", json.dumps(former) + "\n")
        mine = find_number(directory)
        if mine is not None:
            return mine
        claims = _claims()
        fixed = FIXED_NUMBERS.get(name, recorded)
        if fixed is not None and fixed in claims and claims[fixed].exists():
            raise LabError(f"network {fixed} is in use by the lab in {claims[fixed]}: stop that one first")
        free = (
            number
            for number in range(FIRST_FREE_NUMBER, LAST_NUMBER + 1)
            if number not in claims and not Path(f"/sys/class/net/mmlab{number}").exists()
        )
        number = fixed if fixed is not None else next(free, None)
        if number is None:
            raise LabError("253 labs are running on this machine: stop one first")
        write_whole(RUNTIME / "networks" / str(number), f"{directory}\n")
        return number


def release_network(number: int) -> list[str]:
    """Release a number; after the last one, restore the machine's former settings. Return those."""
    restored = []
    with locked("machine"):
        (RUNTIME / "networks" / str(number)).unlink(missing_ok=True)
        former = _former()
        if _claims() or former is None:
            return []
        value = str(former["ip_forward"])
        if IP_FORWARD.read_text().strip() != value:
            IP_FORWARD.write_text(value)
            restored.append(f"net.ipv4.ip_forward = {value}")
        if not former["netns_mounted"] and NETNS.is_dir() and not any(NETNS.iterdir()):
            if mounts.is_mounted(NETNS) and succeeds(["umount", str(NETNS)]):
                restored.append(f"{NETNS} unmounted")
            if not former["netns_existed"]:
                with contextlib.suppress(OSError):
                    NETNS.rmdir()
        (RUNTIME / "former.json").unlink(missing_ok=True)
    return restored


def forward_packets() -> None:
    """Let this machine forward packets, as a gateway does."""
    if IP_FORWARD.read_text().strip() != "1":
        IP_FORWARD.write_text("1")

"""Which program listens on the endpoint's port: read from ``/proc`` before the endpoint is reported ready.

While an engine loads, its port is free, and any user of the host may bind it. A health request then gets 200
from that program, and clients and gateways would send it keys and prompts. So a port counts as the engine's
only if every listening socket that may receive a connection to it belongs to one of its processes.

``/proc/net/tcp`` and ``tcp6`` list the sockets of this network namespace with their inodes (the kernel's
documentation, networking/proc_net_tcp); ``/proc/PID/fd`` links a process's descriptors to them. Those of
another user's processes can't be read, and need not be: what the engine does not hold belongs to another
program.
"""

from __future__ import annotations

import contextlib
import ipaddress
import pwd
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LISTEN: Final = "0A"
LOST_SECONDS: Final = 15.0
"""Seconds that another program may hold the port of a starting engine; one that has just ended may linger."""
SOCKET: Final = re.compile(r"socket:\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Listening:
    """One listening TCP socket."""

    address: str
    port: int
    uid: int
    inode: int


@dataclass(frozen=True, slots=True)
class Holders:
    """The listeners on a port."""

    own: tuple[Listening, ...]
    foreign: tuple[Listening, ...]

    @property
    def proven(self) -> bool:
        """Whether the port belongs to the engine, and only to it."""
        return bool(self.own) and not self.foreign


def listening(port: int, proc: Path = Path("/proc")) -> list[Listening]:
    """Return every socket that listens on a TCP port, whatever its owner."""
    found = []
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / name).read_text(encoding="ascii", errors="replace").splitlines()[1:]
        except OSError:
            continue  # a host without IPv6 has no such file
        for line in lines:
            fields = line.split()
            if len(fields) < 10 or fields[3] != LISTEN:
                continue
            address, _, number = fields[1].partition(":")
            with contextlib.suppress(ValueError):  # a line that is not the kernel's
                if int(number, 16) == port:
                    found.append(Listening(_address(address), port, int(fields[7]), int(fields[9])))
    return found


def _address(digits: str) -> str:
    """Return an address as the kernel prints it: words of four bytes, each in the host's byte order."""
    raw = bytes.fromhex(digits)
    if sys.byteorder == "little":
        raw = b"".join(raw[place : place + 4][::-1] for place in range(0, len(raw), 4))
    return str(ipaddress.ip_address(raw))


def family(root: int, proc: Path = Path("/proc")) -> set[int]:
    """Return a process, all its descendants, and all of its group or session."""
    parents: dict[int, tuple[int, int, int]] = {}
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name in parentheses may contain anything, including blanks and parentheses.
            fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            parents[int(entry.name)] = (int(fields[1]), int(fields[2]), int(fields[3]))
        except (OSError, IndexError, ValueError):
            continue
    members = {pid for pid, (_, group, session) in parents.items() if root in {pid, group, session}}
    while True:
        more = {pid for pid, (parent, _, _) in parents.items() if parent in members} - members
        if not more:
            return members
        members |= more


def sockets(pids: Iterable[int], proc: Path = Path("/proc")) -> set[int]:
    """Return inodes of the sockets that processes hold."""
    found = set()
    for pid in pids:
        try:
            descriptors = list((proc / str(pid) / "fd").iterdir())
        except OSError:
            continue  # it has ended, or belongs to another user
        for descriptor in descriptors:
            try:
                link = descriptor.readlink()
            except OSError:
                continue
            if match := SOCKET.fullmatch(str(link)):
                found.add(int(match.group(1)))
    return found


def holders(root: int, port: int, proc: Path = Path("/proc")) -> Holders:
    """Return the listeners on a port that may be taken for the engine with first process ``root``.

    A socket at another address than the engine's (the engine at 10.0.0.5, another program at 127.0.0.1) gets
    none of the engine's connections and does not count. A second socket in a group of SO_REUSEPORT gets some
    of them: it is listed like any other.
    """
    all_of_them = listening(port, proc)
    inodes = sockets(family(root, proc), proc) if all_of_them else set()
    own = [one for one in all_of_them if one.inode in inodes]
    # The lists were read one after the other: changes in between are seen the next time.
    foreign = [
        one
        for one in all_of_them
        if one.inode not in inodes and (not own or any(_overlap(one, mine) for mine in own))
    ]
    return Holders(tuple(own), tuple(foreign))


@dataclass
class Port:
    """The endpoint's port while an engine starts: whether it belongs to the engine, and since when it does
    not.
    """

    number: int
    note: str = ""
    """Its other holder, for the status line; empty if there is none."""
    since: float | None = None

    def is_the_engines(self, root: int) -> bool:
        """Return whether the port is proven to belong to the engine with first process ``root``."""
        found = holders(root, self.number)
        self.note = foreign_text(found) if found.foreign else ""
        if not found.foreign:
            self.since = None
        elif self.since is None:
            self.since = time.monotonic()
        return found.proven

    @property
    def is_lost(self) -> bool:
        """Return whether another program has held it for so long that the engine won't get it."""
        return self.since is not None and time.monotonic() - self.since >= LOST_SECONDS


def _overlap(one: Listening, other: Listening) -> bool:
    """Return whether a connection to one address may reach the other. Names such as localhost stand for both
    families.
    """
    first, second = ipaddress.ip_address(one.address), ipaddress.ip_address(other.address)
    return first.is_unspecified or second.is_unspecified or _plain(first) == _plain(second)


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> object:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def foreign_text(found: Holders) -> str:
    """Return which program holds the port instead of the engine, and what to do; one line."""
    one = found.foreign[0]
    try:
        user = f"user {pwd.getpwuid(one.uid).pw_name}"
    except KeyError:
        user = f"user number {one.uid}"
    return (
        f"port {one.port} at {one.address} is used by a program of {user} that is not the engine, "
        f"expected only the engine; find it with ss -ltnp 'sport = :{one.port}' and stop it, or set "
        "metal_port"
    )

"""Whose socket answers at the endpoint's port: read from ``/proc`` before anybody is told it is ready.

While an engine loads, its port is free, and any user of the host may take it. A health call then gets 200
from whoever that is, and clients and gateways would send it keys and prompts. So a port counts as the
engine's only when every listening socket that may get a connection to it is held by one of its processes.

``/proc/net/tcp`` and ``tcp6`` list the sockets of this network namespace with their inodes (the kernel's
documentation, networking/proc_net_tcp); ``/proc/PID/fd`` links a process's descriptors to them. Those of
another user's processes can't be read, and need not be: what the engine does not hold is somebody else's.
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
"""How long somebody else may hold the port of an engine that starts; one that has just ended may linger."""
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
    """Who listens at a port."""

    own: tuple[Listening, ...]
    foreign: tuple[Listening, ...]

    @property
    def proven(self) -> bool:
        """Whether the port is the engine's, and nobody else's too."""
        return bool(self.own) and not self.foreign


def listening(port: int, proc: Path = Path("/proc")) -> list[Listening]:
    """Every socket that listens on a TCP port, whoever holds it."""
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
    """An address as the kernel prints it: words of four bytes, each in the host's byte order."""
    raw = bytes.fromhex(digits)
    if sys.byteorder == "little":
        raw = b"".join(raw[place : place + 4][::-1] for place in range(0, len(raw), 4))
    return str(ipaddress.ip_address(raw))


def family(root: int, proc: Path = Path("/proc")) -> set[int]:
    """A process, all that it started, and all of its group or session."""
    parents: dict[int, tuple[int, int, int]] = {}
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name in parentheses may hold anything, blanks and parentheses too.
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
    """Inodes of the sockets that processes hold."""
    found = set()
    for pid in pids:
        try:
            descriptors = list((proc / str(pid) / "fd").iterdir())
        except OSError:
            continue  # it has ended, or is another user's
        for descriptor in descriptors:
            try:
                link = descriptor.readlink()
            except OSError:
                continue
            if match := SOCKET.fullmatch(str(link)):
                found.add(int(match.group(1)))
    return found


def holders(root: int, port: int, proc: Path = Path("/proc")) -> Holders:
    """Who listens at a port, as far as it could be taken for the engine whose first process is ``root``.

    A socket at an address of its own beside the engine's (the engine at 10.0.0.5, another program at
    127.0.0.1) gets none of the engine's connections and counts as nobody. A second socket in a group of
    SO_REUSEPORT gets some of them: it is listed like any other.
    """
    all_of_them = listening(port, proc)
    inodes = sockets(family(root, proc), proc) if all_of_them else set()
    own = [one for one in all_of_them if one.inode in inodes]
    # The lists were read one after the other: what came between is seen the next time.
    foreign = [
        one
        for one in all_of_them
        if one.inode not in inodes and (not own or any(_overlap(one, mine) for mine in own))
    ]
    return Holders(tuple(own), tuple(foreign))


@dataclass
class Port:
    """The endpoint's port while an engine starts: whether it is the engine's, and since when it is not."""

    number: int
    note: str = ""
    """Who holds it instead, for the status line; empty while nobody does."""
    since: float | None = None

    def is_the_engines(self, root: int) -> bool:
        """Whether the port is proven to be held by the engine whose first process is ``root``."""
        found = holders(root, self.number)
        self.note = foreign_text(found) if found.foreign else ""
        if not found.foreign:
            self.since = None
        elif self.since is None:
            self.since = time.monotonic()
        return found.proven

    @property
    def is_lost(self) -> bool:
        """Whether somebody else has held it for so long that the engine won't get it."""
        return self.since is not None and time.monotonic() - self.since >= LOST_SECONDS


def _overlap(one: Listening, other: Listening) -> bool:
    """Whether a connection to one may reach the other. Names such as localhost stand for both families."""
    first, second = ipaddress.ip_address(one.address), ipaddress.ip_address(other.address)
    return first.is_unspecified or second.is_unspecified or _plain(first) == _plain(second)


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> object:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def foreign_text(found: Holders) -> str:
    """Who holds the port instead of the engine, and what to do about it; one line."""
    one = found.foreign[0]
    try:
        user = f"user {pwd.getpwuid(one.uid).pw_name}"
    except KeyError:
        user = f"user number {one.uid}"
    return (
        f"port {one.port} at {one.address} is held by a program of {user} that is not the engine's, expected "
        f"the engine alone; find it with ss -ltnp 'sport = :{one.port}' and stop it, or set metal_port"
    )

"""The host as the checks see it: programs it runs, files it has. Everything that reads goes through here."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from minimax_metal.common import program
from minimax_metal.common.documents import digits
from minimax_metal.common.files import read_head
from minimax_metal.common.privileges import acting_as_owner_of
from minimax_metal.common.program import NO_PROGRAM as NO_PROGRAM
from minimax_metal.common.program import TIMED_OUT as TIMED_OUT
from minimax_metal.common.text import one_line

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LARGEST: Final = 32 << 20
"""Bytes that are kept of the head of a program's output or of a file."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program said."""

    status: int
    out: str
    error: str = ""

    @property
    def words(self) -> str:
        """All it said on one line, cut at its end to a length that a message can hold."""
        return one_line(self.out[:4_000] + " " + self.error[:4_000], 300)


@dataclass(frozen=True, slots=True)
class Node:
    """A device node: its mode and when it was made (seconds since 1970)."""

    path: str
    character: bool
    mode: int
    made: float

    @property
    def usable_by_all(self) -> bool:
        """Whether every user may read and write it, as the driver makes them."""
        return self.character and self.mode & 0o006 == 0o006


class Machine(Protocol):
    """What checks may ask of a host."""

    def run(self, *command: str, seconds: float = 60.0) -> Answer:
        """Run a program and wait for its end; 127 where there is none, 124 where it took too long."""

    def read(self, path: str) -> str | None:
        """The text of a file, None where it can't be read."""

    def node(self, path: str) -> Node | None:
        """A device node, None where there is nothing of that name."""

    def list(self, pattern: str) -> Sequence[str]:
        """Paths that match a pattern below /, in order."""

    def modified(self, path: str) -> float | None:
        """When a file was last written (seconds since 1970)."""


class Local:
    """The host this runs on."""

    def run(self, *command: str, seconds: float = 60.0) -> Answer:
        """Run a program with the system's own path and no locale; one that hangs is left behind."""
        found = shutil.which(command[0], path=PATH)
        if found is None:
            return Answer(NO_PROGRAM, "", f"no program {command[0]}")
        environment = {"PATH": PATH, "LC_ALL": "C.UTF-8", "SYSTEMD_PAGER": "", "HOME": "/root"}
        done = program.run([found, *command[1:]], seconds=seconds, limit=LARGEST, environment=environment)
        return Answer(done.status, "" if done.timed_out else done.out, done.err)

    def read(self, path: str) -> str | None:
        """A file's text, of a large one its head; below a service's directory it is read as that service."""
        try:
            with acting_as_owner_of(Path(path)):
                return read_head(Path(path), LARGEST).decode("utf-8", "replace")
        except OSError:
            return None

    def node(self, path: str) -> Node | None:
        """A device node; its time is that of the node itself (mknod), which opening it does not change."""
        try:
            state = os.lstat(path)
        except OSError:
            return None
        return Node(path, stat.S_ISCHR(state.st_mode), stat.S_IMODE(state.st_mode), state.st_mtime)

    def list(self, pattern: str) -> Sequence[str]:
        """Paths that match, in a service's directory as that service finds them."""
        with acting_as_owner_of(Path(pattern).parent):
            return self._list(pattern)

    @staticmethod
    def _list(pattern: str) -> Sequence[str]:
        return sorted(str(path) for path in Path("/").glob(pattern.lstrip("/")))

    def modified(self, path: str) -> float | None:
        """Its mtime."""
        try:
            return Path(path).stat().st_mtime
        except OSError:
            return None


def properties(machine: Machine, unit: str, names: Iterable[str]) -> Mapping[str, str]:
    """Properties of a unit as systemd has them; times in seconds since 1970 as ``@N``.

    A unit that nobody knows answers with ``LoadState=not-found``.
    """
    answer = machine.run("systemctl", "show", "--timestamp=unix", f"--property={','.join(names)}", "--", unit)
    pairs = (line.partition("=") for line in answer.out.splitlines())
    return {name: value for name, _, value in pairs if name}


def moment(text: str) -> float | None:
    """A time of :func:`properties`."""
    seconds = digits(text.removeprefix("@"))
    return float(seconds) if seconds else None

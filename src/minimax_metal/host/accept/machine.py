"""The host as the checks see it: programs and files. All reading goes through here."""

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
"""Maximum bytes kept from the start of a program's output or of a file."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A program's result."""

    status: int
    out: str
    error: str = ""

    @property
    def words(self) -> str:
        """All its output on one line, cut at its end to fit a message."""
        return one_line(self.out[:4_000] + " " + self.error[:4_000], 300)


@dataclass(frozen=True, slots=True)
class Node:
    """A device node: its mode and creation time (seconds since 1970)."""

    path: str
    character: bool
    mode: int
    made: float

    @property
    def usable_by_all(self) -> bool:
        """Whether every user may read and write it, as created by the driver."""
        return self.character and self.mode & 0o006 == 0o006


class Machine(Protocol):
    """Operations that checks may use on a host."""

    def run(self, *command: str, seconds: float = 60.0) -> Answer:
        """Run a program and wait until it ends; 127 if there is none, 124 if it took too long."""

    def read(self, path: str) -> str | None:
        """Return the text of a file, None if it can't be read."""

    def node(self, path: str) -> Node | None:
        """Return a device node, None if there is nothing of that name."""

    def list(self, pattern: str) -> Sequence[str]:
        """Return paths that match a pattern below /, in order."""

    def modified(self, path: str) -> float | None:
        """Return when a file was last written (seconds since 1970)."""


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
        """Return a file's text, of a large one its start; below a service's directory it is read as that
        service.
        """
        try:
            with acting_as_owner_of(Path(path)):
                return read_head(Path(path), LARGEST).decode("utf-8", "replace")
        except OSError:
            return None

    def node(self, path: str) -> Node | None:
        """Return a device node; its time is that of the node itself (mknod), which opening it does not
        change.
        """
        try:
            state = os.lstat(path)
        except OSError:
            return None
        return Node(path, stat.S_ISCHR(state.st_mode), stat.S_IMODE(state.st_mode), state.st_mtime)

    def list(self, pattern: str) -> Sequence[str]:
        """Return matching paths, in a service's directory as that service sees them."""
        with acting_as_owner_of(Path(pattern).parent):
            return self._list(pattern)

    @staticmethod
    def _list(pattern: str) -> Sequence[str]:
        return sorted(str(path) for path in Path("/").glob(pattern.lstrip("/")))

    def modified(self, path: str) -> float | None:
        """Return its mtime."""
        try:
            return Path(path).stat().st_mtime
        except OSError:
            return None


def properties(machine: Machine, unit: str, names: Iterable[str]) -> Mapping[str, str]:
    """Return a unit's properties from systemd; times in seconds since 1970 as ``@N``.

    An unknown unit has ``LoadState=not-found``.
    """
    answer = machine.run("systemctl", "show", "--timestamp=unix", f"--property={','.join(names)}", "--", unit)
    pairs = (line.partition("=") for line in answer.out.splitlines())
    return {name: value for name, _, value in pairs if name}


def moment(text: str) -> float | None:
    """Return a time from :func:`properties`."""
    seconds = digits(text.removeprefix("@"))
    return float(seconds) if seconds else None

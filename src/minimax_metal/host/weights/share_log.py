"""A host's announcements to the others, as a file that its nginx serves: sealed lines, only ever appended to.

A line is its seals (:mod:`.keys`), a space, and JSON. A seal covers the host's name and everything since the
last start, so that nobody without the fleet's secret can make a line, drop one or move it.

A start of the pull is a line ``{"boot", "me", "piece"}``; it voids earlier lines of the same host. The lines
after it are lists: ``["claim", key, first, last, generation]``, ``["drop", key, first, last]``, ``["have",
key, number, sha256, generation, reader]``, ``["file", key]`` (complete and verified), ``["origin", true or
false]`` (whether this host can reach it), ``["distrust", host]`` (it sends other bytes than it announces),
``["beat", time]`` every second, compared with the ``Date`` of the same answer, so no two clocks are compared;
``["end"]``.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.files import read_bounded, write_atomic
from minimax_metal.host.weights import share_keys as keys
from minimax_metal.host.weights.manifest import FILE, FOLDER, MOST_BYTES, Entry, entries

PLACE: Final = f"{FOLDER}/share"
LOG: Final = "log"
LISTING: Final = "listing"
ANNOUNCED: Final = "announced"
"""The manifest of a verified model, sealed for the other hosts; beside the manifest, or where nginx runs."""
MOST_LINE: Final = 2000
"""Maximum bytes of a line; the longest has about 300."""
PULSE: Final = 1.0
"""Seconds between two beats."""
FAINT: Final = 6.0
"""Seconds without a beat after which a pull counts as dead."""


class Log:
    """This host's log, in its staging directory.

    Args:
        staging: the staging directory.
        me: this host's name.
        piece: bytes of a piece.
        fleet: the fleet's secrets.
    """

    def __init__(self, staging: Path, me: str, piece: int, fleet: Sequence[str]) -> None:
        folder = staging / PLACE
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / LOG
        self.me, self.fleet, self.link = me, tuple(fleet), b""
        self.lock = threading.Lock()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self.path, flags, 0o644)
        # A line that a crash cut off must not swallow the next; an empty line is ignored.
        self._add([{"boot": secrets.token_hex(16), "me": me, "piece": piece}], b"\n")
        self.beat()

    def _add(self, lines: Iterable[Any], content: bytes = b"") -> None:
        with self.lock:
            for line in lines:
                body = json.dumps(line, separators=(",", ":")).encode()
                self.link = chained(self.link, body)
                content += keys.seals(self.fleet, "log", self.me, self.link).encode() + b" " + body + b"\n"
            os.write(self._file, content)

    def post(self, *lines: list[Any]) -> None:
        """Append lines."""
        if lines:
            self._add(lines)

    def beat(self) -> None:
        """Show that the pull is running."""
        self.post(["beat", round(time.time(), 1)])

    def close(self) -> None:
        """Announce that the pull has ended, for now."""
        self.post(["end"])
        os.close(self._file)


def chained(link: bytes, body: bytes) -> bytes:
    """Return a digest of all lines up to this one."""
    return hashlib.sha256(link + body).digest()


@dataclass
class Reader:
    """How far a peer's log was read; ``offset`` is where the next line begins.

    Args:
        peer: the owner of the log.
        fleet: the fleet's secrets.
    """

    peer: str
    fleet: Sequence[str] = field(repr=False)
    offset: int = 0
    beat: float | None = None
    """The peer's time of its last beat."""
    strange: bool = False
    """Whether the last part that was read ended with lines that are not sealed by that host."""
    _link: bytes | None = None

    def feed(self, content: bytes, begin: int) -> list[Any] | None:
        """Return the lines in a part of the log; None if it is not the log that was read so far.

        Args:
            content: bytes of the log.
            begin: their offset: the one before :attr:`offset`, except at the very beginning.
        """
        if self.offset:
            if begin != self.offset - 1 or content[:1] != b"\n":
                self.forget()
                return None
            content = content[1:]
        end = content.rfind(b"\n") + 1
        lines = []
        for text in content[:end].splitlines():
            line = self._line(text) if text else None
            if isinstance(line, list) and line[:1] == ["beat"]:
                # No clock's time is later: seconds since 1970 of the year 36,812.
                if len(line) == 2 and isinstance(line[1], int | float) and 0 <= line[1] < 1 << 40:
                    self.beat = float(line[1])
            elif line is not None:
                lines.append(line)
        self.offset += end
        return lines

    def forget(self) -> None:
        """Start at the beginning."""
        self.offset, self.beat, self.strange, self._link = 0, None, False, None

    def _line(self, text: bytes) -> list[Any] | dict[str, Any] | None:
        """Return a sealed line; None for another, such as one cut off by a crash.

        After such a line nothing counts until the next start.
        """
        if len(text) > MOST_LINE:
            self._link, self.strange = None, True
            return None
        found, _, body = text.partition(b" ")
        starts = body.startswith(b'{"boot":')
        link = chained(b"" if starts or self._link is None else self._link, body)
        ours = (starts or self._link is not None) and keys.fits(
            self.fleet, found.decode("ascii", "replace"), "log", self.peer, link
        )
        self._link, self.strange = (link, False) if ours else (None, True)
        if not ours:
            return None
        try:
            line = read_json(body)
        except (ValueError, RecursionError):
            return None
        return line if isinstance(line, list | dict) else None


def write_listing(
    staging: Path,
    files: Iterable[tuple[Entry, str | None]],
    revision: str | None,
    me: str,
    fleet: Sequence[str],
) -> None:
    """Announce which files of the model this host pulls, for hosts that can't reach the origin."""
    folder = staging / PLACE
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "revision": revision,
        "files": [
            {
                "path": entry.path,
                "size": entry.size,
                "sha256": entry.sha256,
                "stated": entry.stated,
                "git_oid": entry.git_oid,
                "identity": identity,
            }
            for entry, identity in files
        ],
    }
    write_atomic(folder / LISTING, keys.seal(fleet, LISTING, me, json.dumps(content).encode()))


def parse_listing(raw: Any) -> tuple[list[tuple[Entry, str | None]], str | None]:
    """Parse another host's listing, or a manifest.

    Raises:
        KeyError, TypeError, ValueError, UserError: it is invalid.
    """
    revision, identities = raw["revision"], {}
    for file in raw["files"]:
        identity = file.get("identity")
        if identity is not None and (not isinstance(identity, str) or len(identity) > MOST_LINE):
            raise TypeError("an identity that is not text")
        identities[str(file["path"])] = identity
    files = [
        (entry, identities.get(entry.path) or entry.sha256 or entry.git_oid)
        for entry in entries(raw["files"])
    ]
    return files, revision if isinstance(revision, str) else None


def announce(directory: Path, target: Path, me: str, fleet: Sequence[str]) -> None:
    """Seal the manifest of a complete model, for the other hosts; nothing if it is incomplete."""
    try:
        manifest = read_bounded(directory / FOLDER / FILE, MOST_BYTES)
    except OSError:
        return
    write_atomic(target, keys.seal(fleet, ANNOUNCED, me, manifest))

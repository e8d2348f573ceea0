"""What a host tells the others, as a file that its nginx serves: lines of JSON, only ever appended to.

A start of the pull is a line ``{"boot", "me", "piece"}``; what was said before it by the same host is then
void. The lines after it are lists: ``["claim", key, first, last, generation]``, ``["drop", key, first,
last]``, ``["have", key, number, sha256, generation, reader]``, ``["file", key]`` (whole and verified),
``["origin", true or false]`` (whether this host can read it), ``["distrust", host]`` (it sends other bytes
than it announces), ``["end"]``. The file's modification time is the host's pulse: it is set every second, and
held against the ``Date`` of the same answer, so no two clocks are compared.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minimax_metal.artefacts.manifest import FOLDER, Entry

PLACE: Final = f"{FOLDER}/share"
LOG: Final = "log"
LISTING: Final = "listing.json"
PULSE: Final = 1.0
"""Seconds between two beats."""
FAINT: Final = 6.0
"""Seconds without one after which a pull counts as dead."""


class Log:
    """This host's log, in its staging directory."""

    def __init__(self, staging: Path, me: str, piece: int) -> None:
        folder = staging / PLACE
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / LOG
        self.lock = threading.Lock()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self.path, flags, 0o644)
        # A line that a crash cut off must not swallow the next; an empty line says nothing.
        self._write(b"\n")
        self._add([{"boot": secrets.token_hex(8), "me": me, "piece": piece}])

    def _write(self, content: bytes) -> None:
        with self.lock:
            os.write(self._file, content)

    def _add(self, lines: Iterable[Any]) -> None:
        self._write("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode())

    def post(self, *lines: list[Any]) -> None:
        """Append lines."""
        if lines:
            self._add(lines)

    def beat(self) -> None:
        """Show that the pull is at work."""
        os.utime(self._file)

    def close(self) -> None:
        """Say that the pull has ended, for now."""
        self.post(["end"])
        os.close(self._file)


@dataclass
class Reader:
    """How far a peer's log was read; ``offset`` is where the next line begins."""

    offset: int = 0

    def feed(self, content: bytes, begin: int) -> list[Any] | None:
        """Return the lines that a part of the log brings; None when it is not the log that was read so far.

        Args:
            content: bytes of the log.
            begin: their offset: the one before :attr:`offset`, except at the very beginning.
        """
        if self.offset:
            if begin != self.offset - 1 or content[:1] != b"\n":
                self.offset = 0
                return None
            content = content[1:]
        end = content.rfind(b"\n") + 1
        lines = []
        for text in content[:end].splitlines():
            if not text:
                continue
            try:
                line = json.loads(text)
            except ValueError:
                continue  # cut off by a crash
            if isinstance(line, list | dict):
                lines.append(line)
        self.offset += end
        return lines


def write_listing(staging: Path, files: Iterable[tuple[Entry, str | None]], revision: str | None) -> None:
    """Say what the files of the model are, for hosts that can't ask the origin themselves."""
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
    temporary = folder / f".{LISTING}.new"
    temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    temporary.replace(folder / LISTING)


def parse_listing(raw: Any) -> tuple[list[tuple[Entry, str | None]], str | None]:
    """Read a listing of another host, or a manifest.

    Raises:
        KeyError, TypeError, ValueError, UserError: it is none.
    """
    files = []
    for file in raw["files"]:
        entry = Entry(
            file["path"], int(file["size"]), file["sha256"], bool(file["stated"]), file.get("git_oid")
        )
        files.append((entry, file.get("identity") or entry.sha256))
    revision = raw["revision"]
    return files, revision if isinstance(revision, str) else None

"""The manifest of a model directory: what has to be there, and the proof that it is.

Kept inside the directory as ``.minimax-metal/manifest.json``. Sizes are in bytes. ``sha256`` comes from the
hub's own metadata where it states one (``stated`` true); otherwise it was computed here after the file had
passed what the hub does state: its size and, on Hugging Face, the git object id of small files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

from minimax_metal.errors import UserError

SCHEMA: Final = 1
FOLDER: Final = ".minimax-metal"
FILE: Final = "manifest.json"
INDEX: Final = "model.safetensors.index.json"
_BLOCK: Final = 1 << 20


class DamagedFileError(Exception):
    """A file's bytes are not what the manifest says; the text is one line."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: path below the model directory, size in bytes, SHA-256 in hex.

    ``git_oid`` is the SHA-1 under which git keeps a small file, where the hub states that instead.
    """

    path: str
    size: int
    sha256: str | None = None
    stated: bool = False
    git_oid: str | None = None

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path)
        if (
            not parts.parts
            or parts.is_absolute()
            or ".." in parts.parts
            or "\\" in self.path
            or "\0" in self.path
        ):
            raise UserError(
                f"the source lists a file {self.path!r} outside the model directory; do not trust it"
            )
        if parts.parts[0] == FOLDER:
            raise UserError(f"the source lists {self.path!r}, a name this project keeps for itself")


@dataclass(frozen=True, slots=True)
class Manifest:
    """Every file of one model at one revision, and where it came from."""

    name: str
    revision: str | None
    source: Mapping[str, Any]
    files: tuple[Entry, ...]

    @property
    def bytes(self) -> int:
        """Sum of the files' sizes."""
        return sum(entry.size for entry in self.files)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "revision": self.revision,
            "source": dict(self.source),
            "bytes": self.bytes,
            "files": [
                {"path": entry.path, "size": entry.size, "sha256": entry.sha256, "stated": entry.stated}
                for entry in sorted(self.files, key=lambda entry: entry.path)
            ],
        }

    @classmethod
    def read(cls, directory: Path) -> Manifest | None:
        """Return the manifest kept in a model directory; None when there is none that can be read."""
        try:
            return cls.parse(json.loads((directory / FOLDER / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, UserError):
            return None

    @classmethod
    def parse(cls, raw: Any) -> Manifest:
        """Read the JSON form.

        Raises:
            KeyError, TypeError, ValueError: it is no manifest.
            UserError: it names a file outside the directory.
        """
        files = tuple(
            Entry(file["path"], int(file["size"]), file["sha256"], bool(file["stated"]))
            for file in raw["files"]
        )
        return cls(name=raw["name"], revision=raw["revision"], source=raw["source"], files=files)

    def write(self, directory: Path) -> Path:
        """Keep the manifest in a model directory, on the disk before this returns."""
        folder = directory / FOLDER
        folder.mkdir(exist_ok=True)
        target = folder / FILE
        temporary = folder / f".{FILE}.new"
        temporary.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        sync(temporary)
        temporary.replace(target)
        sync(folder)
        return target


def missing(directory: Path, manifest: Manifest) -> list[str]:
    """Return one line for every file that is not there in its size (reads no content)."""
    lines = []
    for entry in manifest.files:
        try:
            size = (directory / entry.path).stat().st_size
        except OSError:
            lines.append(f"{entry.path}: missing, expected {entry.size} bytes")
            continue
        if size != entry.size:
            lines.append(f"{entry.path}: {size} bytes, expected {entry.size}")
    return lines


def missing_from_index(directory: Path, paths: Iterable[str]) -> list[str]:
    """Return the files of the index's ``weight_map`` that ``paths`` lacks; [] when the model has no index.

    Completeness is judged by the index, never by counting names: shard numbering differs between releases.

    Raises:
        DamagedFileError: the index cannot be read.
    """
    if not (directory / INDEX).exists():
        return []
    try:
        shards = set(json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedFileError(f"{INDEX} is no index of weights ({type(error).__name__})") from error
    return sorted(shards - set(paths))


def verify(directory: Path, entry: Entry, hashed: Callable[[int], None] = lambda _: None) -> Entry:
    """Read one file in full and return its entry with the SHA-256 that was found.

    Args:
        directory: the model directory.
        entry: what is expected.
        hashed: told the number of bytes after every block, for progress.

    Raises:
        DamagedFileError: size or hash differ from what is expected, or the file is missing.
    """
    path = directory / entry.path
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DamagedFileError(f"{entry.path} is missing ({error.strerror})") from error
    if size != entry.size:
        raise DamagedFileError(f"{entry.path} has {size} bytes, expected {entry.size}")
    sha256 = hashlib.sha256()
    # The object id git gives a file: SHA-1 over a header with its length, then its bytes.
    git = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False) if entry.git_oid else None
    for block in _blocks(path):
        sha256.update(block)
        if git is not None:
            git.update(block)
        hashed(len(block))
    found = sha256.hexdigest()
    if entry.sha256 is not None and found != entry.sha256:
        raise DamagedFileError(f"{entry.path} has sha256 {found[:12]}…, expected {entry.sha256[:12]}…")
    if git is not None and git.hexdigest() != entry.git_oid:
        raise DamagedFileError(
            f"{entry.path} has git id {git.hexdigest()[:12]}…, expected {str(entry.git_oid)[:12]}…"
        )
    return replace(entry, sha256=found)


def _blocks(path: Path) -> Iterator[memoryview]:
    """Yield a file's bytes, each block in the same memory: new pages for each cost more than hashing."""
    memory = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while size := file.readinto(memory):
            yield memory[:size]


def sync(path: Path) -> None:
    """Flush a file or directory to the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

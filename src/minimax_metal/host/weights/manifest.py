"""The manifest of a model directory: its expected files, and the proof that they are right.

Stored in the directory as ``.minimax-metal/manifest.json``. Sizes are in bytes. ``sha256`` is the hash of the
bytes on this host. ``stated`` tells whether the file list that the pull was checked against (:mod:`.proof`)
contains that hash; ``git_oid`` is the git object id that it has for a small file instead. ``proof`` is the
source of that list, and who asked for it when.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.files import read_bounded, write_atomic
from minimax_metal.common.text import has_controls, one_line

SCHEMA: Final = 1
FOLDER: Final = ".minimax-metal"
FILE: Final = "manifest.json"
INDEX: Final = "model.safetensors.index.json"
LONGEST_NAME: Final = 1000
"""Maximum characters of a model's name or revision; a commit has 40."""
MOST_BYTES: Final = 64 << 20
"""Maximum size of a manifest or a listing: a model of 10,000 files has one of 2 MB."""
MOST_FILES: Final = 100_000
MOST_SIZE: Final = 1 << 46
"""Maximum bytes of one file, 70 TB. A larger number is a mistake or an attack, and is not used in
computations.
"""
_BLOCK: Final = 1 << 20
_SHA256: Final = re.compile("[0-9a-f]{64}")
_GIT: Final = re.compile("[0-9a-f]{40}")


class DamagedFileError(Exception):
    """A file's bytes don't match the manifest; the text is one line."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: path below the model directory, size in bytes, SHA-256 in hex.

    ``git_oid`` is the SHA-1 of a small file in git, if the hub publishes that instead.
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
                f"the source lists a file {one_line(self.path, 200)!r} outside the model directory; do not "
                "trust it"
            )
        if has_controls(self.path) or len(self.path) > 1000:
            raise UserError(
                f"the source lists a file with control characters or more than 1000 characters in its name, "
                f"{one_line(self.path, 100)!r}; do not trust it"
            )
        if not 0 <= self.size <= MOST_SIZE:
            raise UserError(f"the source lists {self.path} with {self.size} bytes; do not trust it")
        for found, form in ((self.sha256, _SHA256), (self.git_oid, _GIT)):
            if found is not None and form.fullmatch(found) is None:
                raise UserError(
                    f"the source gives {one_line(found, 80)!r} as a hash of {self.path}; expected "
                    "lower-case hexadecimal digits"
                )
        if parts.parts[0] == FOLDER:
            raise UserError(f"the source lists {self.path!r}, a name reserved by this project")


@dataclass(frozen=True, slots=True)
class Manifest:
    """Every file of one model at one revision, and its source."""

    name: str
    revision: str | None
    source: Mapping[str, Any]
    files: tuple[Entry, ...]
    proof: Mapping[str, Any] = field(default_factory=dict)
    """Source of the file list (:attr:`.proof.Proof.about`); {} in manifests of older versions."""

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
            "proof": dict(self.proof),
            "files": [
                {"path": entry.path, "size": entry.size, "sha256": entry.sha256, "stated": entry.stated}
                | ({"git_oid": entry.git_oid} if entry.git_oid else {})
                for entry in sorted(self.files, key=lambda entry: entry.path)
            ],
        }

    @classmethod
    def read(cls, directory: Path) -> Manifest | None:
        """Return the manifest in a model directory; None if there is no readable one."""
        try:
            return cls.parse(read_json(read_bounded(directory / FOLDER / FILE, MOST_BYTES)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError):
            return None

    @classmethod
    def parse(cls, raw: Any) -> Manifest:
        """Parse the JSON form.

        Raises:
            KeyError, TypeError, ValueError: it is not a manifest.
            UserError: it names a file outside the directory.
        """
        source, proof = raw["source"], raw.get("proof") or {}
        if not isinstance(source, Mapping) or not isinstance(proof, Mapping):
            raise TypeError("source and proof are not objects")
        name, revision = raw["name"], raw["revision"]
        for text in (name, revision):
            if text is not None and not isinstance(text, str):
                raise TypeError("name or revision is not text")
            if text is not None and (has_controls(text) or len(text) > LONGEST_NAME):
                raise ValueError("name or revision contains control characters, or is too long")
        return cls(
            name=name,
            revision=revision,
            source=source,
            files=entries(raw["files"]),
            proof=proof,
        )

    def write(self, directory: Path) -> Path:
        """Store the manifest in a model directory; it is on the disk when this returns."""
        folder = directory / FOLDER
        folder.mkdir(exist_ok=True)
        target = folder / FILE
        write_atomic(target, json.dumps(self.as_dict(), indent=1) + "\n")
        return target


def entries(raw: Any) -> tuple[Entry, ...]:
    """Parse the files of a manifest or a listing.

    Raises:
        KeyError, TypeError, ValueError: it is not a list of files, or too long.
        UserError: it names a file outside the directory, or twice.
    """
    if not isinstance(raw, list) or len(raw) > MOST_FILES:
        raise ValueError(f"not a list of {MOST_FILES} files at most")
    found: dict[str, Entry] = {}
    for file in raw:
        path, size = file["path"], file["size"]
        hashes = [file.get("sha256"), file.get("git_oid")]
        if not isinstance(path, str) or not isinstance(size, int) or isinstance(size, bool):
            raise TypeError("a file without a path or a size")
        if not all(one is None or isinstance(one, str) for one in hashes):
            raise TypeError("a hash that is not text")
        if path in found:
            raise UserError(f"the source lists {one_line(path, 200)!r} twice; do not trust it")
        found[path] = Entry(path, size, hashes[0], bool(file.get("stated")), hashes[1])
    return tuple(found.values())


def missing(directory: Path, manifest: Manifest) -> list[str]:
    """Return one line for every file that is missing or has another size (reads no content)."""
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
    """Return the files of the index's ``weight_map`` that ``paths`` lacks; [] if the model has no index.

    Completeness is judged by the index, never by counting names: shard numbering differs between releases.

    Raises:
        DamagedFileError: the index can't be read.
    """
    if not (directory / INDEX).exists():
        return []
    try:
        shards = set(read_json(read_bounded(directory / INDEX, MOST_BYTES))["weight_map"].values())
        if not all(isinstance(shard, str) for shard in shards):
            raise TypeError("a shard that is not text")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedFileError(f"{INDEX} is not an index of weights ({type(error).__name__})") from error
    return sorted(shards - set(paths))


def verify(directory: Path, entry: Entry, hashed: Callable[[int], None] = lambda _: None) -> Entry:
    """Read one file completely and return its entry with its actual SHA-256.

    Args:
        directory: the model directory.
        entry: the expected file.
        hashed: called with the number of bytes after every block, for progress.

    Raises:
        DamagedFileError: size or hash differ from the expected ones, or the file is missing.
    """
    path = directory / entry.path
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DamagedFileError(f"{entry.path} is missing ({error.strerror})") from error
    if size != entry.size:
        raise DamagedFileError(f"{entry.path} has {size} bytes, expected {entry.size}")
    sha256 = hashlib.sha256()
    # Git's object id of a file: SHA-1 over a header with its length, then its bytes.
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


def git_id(path: Path) -> str:
    """Return git's object id of a file: SHA-1 over a header with its length, then its bytes."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


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

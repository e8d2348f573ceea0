"""The bundle's directory: files that are there only whole, and a manifest that is there only when all are.

``manifest.json`` is written last: while a bundle is made, and after a stop, there is none, and nobody takes
the directory for a bundle. A file has its name only when its hash was right; work goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Final

from minimax_metal import __version__
from minimax_metal.errors import UserError

MANIFEST: Final = "manifest.json"
PARTIAL: Final = ".partial"
SCHEMA: Final = 1
_BLOCK: Final = 1 << 22


@dataclass(frozen=True, order=True)
class File:
    """One file of a bundle: its path in it, its size in bytes, its SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """A whole bundle, as its manifest says it."""

    directory: Path
    created: str
    contents: dict[str, Any]
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def read(directory: Path) -> Bundle:
    """Return the bundle in a directory.

    Raises:
        UserError: there is none, it is not finished, or its manifest is not one.
    """
    path = directory / MANIFEST
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        half = (directory / PARTIAL).is_dir()
        found = "an unfinished bundle" if half else "no bundle"
        remedy = "run 'metal bundle export' or 'import' again, it goes on" if half else "put the path right"
        raise UserError(f"found {found} at {directory}, expected {MANIFEST} in it; {remedy}") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"found {path} that can't be read ({error}), expected a manifest; copy it again"
        ) from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise UserError(
            f"found {path} of another kind, expected schema {SCHEMA}; use the same version of metal"
        )
    try:
        files = tuple(File(**entry) for entry in document["files"])
    except (KeyError, TypeError):
        raise UserError(
            f"found {path} with entries of another kind, expected path, size and sha256"
        ) from None
    for file in files:
        parts = PurePosixPath(file.path).parts
        if not parts or file.path.startswith("/") or ".." in parts or parts[0] in {PARTIAL, MANIFEST}:
            raise UserError(f"found {file.path!r} in {path}, expected paths inside the bundle; don't use it")
    return Bundle(directory, str(document["created"]), dict(document["contents"]), files)


def begin(directory: Path) -> None:
    """Take the manifest away: what follows changes files.

    Raises:
        UserError: the directory holds other things than a bundle.
    """
    directory.mkdir(parents=True, exist_ok=True)
    known = {MANIFEST, PARTIAL, "pypi", "python", "nvidia", "apt", "weights", "lost+found"}
    strange = sorted(path.name for path in directory.iterdir() if path.name not in known)
    if strange:
        raise UserError(
            f"found {strange[0]} in {directory}, expected an empty directory or a bundle; name another "
            "directory"
        )
    (directory / PARTIAL).mkdir(exist_ok=True)
    (directory / MANIFEST).unlink(missing_ok=True)
    _sync(directory)


def remove(bundle: Bundle, files: Iterable[File]) -> None:
    """Take damaged files away; what is left is no bundle until they are brought again."""
    begin(bundle.directory)
    for file in files:
        (bundle.directory / file.path).unlink(missing_ok=True)


def finish(
    directory: Path, contents: dict[str, Any], files: Iterable[File], created: str | None = None
) -> Bundle:
    """Take away what is no part of it, flush everything, write the manifest; return the bundle."""
    listed = tuple(sorted(set(files)))
    paths = {file.path for file in listed}
    shutil.rmtree(directory / PARTIAL, ignore_errors=True)
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if path.name != "lost+found" and not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(directory).as_posix() not in paths:
            path.unlink()
    os.sync()
    created = created or datetime.now(UTC).isoformat(timespec="seconds")
    document = {
        "schema": SCHEMA,
        "created": created,
        "version": __version__,
        "contents": contents,
        "files": [asdict(file) for file in listed],
    }
    new = directory / f"{MANIFEST}.new"
    with new.open("w", encoding="utf-8") as stream:
        json.dump(document, stream, indent=1)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    new.rename(directory / MANIFEST)
    _sync(directory)
    return Bundle(directory, created, contents, listed)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def described(directory: Path, path: str) -> File:
    """Return the entry of a file that is there."""
    whole = directory / path
    return File(path, whole.stat().st_size, digest(whole))


def place(directory: Path, path: str, content: bytes) -> File:
    """Write a small file under its name, whole or not at all, and return its entry."""
    whole = directory / path
    whole.parent.mkdir(parents=True, exist_ok=True)
    new = directory / PARTIAL / f"{hashlib.sha256(path.encode()).hexdigest()}.new"
    new.write_bytes(content)
    new.rename(whole)
    return File(path, len(content), hashlib.sha256(content).hexdigest())


def damaged(bundle: Bundle, threads: int = 4) -> Iterator[tuple[File, str]]:
    """Read every byte; yield the files that are not as the manifest says, with what was found."""

    def look(file: File) -> str | None:
        path = bundle.directory / file.path
        try:
            size = path.stat().st_size
        except OSError:
            return "missing"
        if size != file.size:
            return f"{size} bytes, expected {file.size}"
        return None if digest(path) == file.sha256 else "another hash"

    with ThreadPoolExecutor(threads) as pool:
        for file, found in zip(bundle.files, pool.map(look, bundle.files), strict=True):
            if found:
                yield file, found


def copy(bundle: Bundle, target: Path, say: Callable[[str], None]) -> Bundle:
    """Copy a bundle, verify each file on the way, and make the copy a bundle when all are there.

    Files that an earlier, interrupted copy brought are taken as they are: they have their names only when
    verified.

    Raises:
        UserError: the target is too small, or a file is damaged.
    """
    begin(target)
    missing = [file for file in bundle.files if not _there(target, file)]
    need = sum(file.size for file in missing)
    room = shutil.disk_usage(target).free
    if room < need:
        raise UserError(
            f"found {room / 1e9:.1f} GB free at {target}, expected {need / 1e9:.1f} GB for the bundle; make "
            "room there"
        )
    say(f"{len(missing)} of {len(bundle.files)} files to copy, {need / 1e9:.2f} GB")
    for file in missing:
        _copy_one(bundle.directory / file.path, target, file)
    return finish(target, bundle.contents, bundle.files, bundle.created)


def _there(directory: Path, file: File) -> bool:
    try:
        return (directory / file.path).stat().st_size == file.size and digest(
            directory / file.path
        ) == file.sha256
    except OSError:
        return False


def _copy_one(source: Path, target: Path, file: File) -> None:
    new = target / PARTIAL / f"{file.sha256}.new"
    whole = hashlib.sha256()
    try:
        with source.open("rb") as reader, new.open("wb") as writer:
            while block := reader.read(_BLOCK):
                whole.update(block)
                writer.write(block)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise UserError(
            f"found {source} that can't be copied ({error.strerror}), expected {file.size} bytes; "
            "run 'metal bundle verify' on the source, and look at the disks"
        ) from None
    if whole.hexdigest() != file.sha256:
        new.unlink()
        raise UserError(
            f"found {source} with another hash than the manifest's, expected {file.sha256}; export it again"
        )
    path = target / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    new.rename(path)

"""The bundle's directory: complete files only, and a manifest only when all files are complete.

``manifest.json`` is written last: while a bundle is being made, and after an interruption, there is none, so
the directory does not count as a bundle. A file gets its name only after its hash was verified; work resumes
where it stopped. ``manifest.json.sig`` beside it is the signature
(:mod:`minimax_metal.controller.bundle_store.signature`) of the manifest's bytes, which cover every file. A
copy keeps both byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.errors import UserError
from minimax_metal.common.files import TooLargeError, read_beneath, sync_directory
from minimax_metal.controller.bundle_store import document, signature
from minimax_metal.controller.bundle_store.area import PARTIAL, Area, area, copy_bytes
from minimax_metal.controller.bundle_store.document import File

__all__ = ["MANIFEST", "PARTIAL", "SIGNATURE", "Bundle", "File"]

MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.json.sig"
NOTE: Final = "imported.json"
"""Beside an imported bundle: when it was imported, and whose signature it has, if any."""
OWN: Final = frozenset({MANIFEST, SIGNATURE, NOTE, PARTIAL, "lost+found", *document.ROOTS})


@dataclass(frozen=True)
class Bundle:
    """A complete bundle, as its manifest describes it.

    Attributes:
        directory: its location.
        created: when it was made, in its maker's words.
        contents: its contents, by kind.
        files: all its files.
        manifest: the bytes of its manifest.
        signature: those of the signature; empty if it has none.
        signer: fingerprint of the key that signed it; None: not signed by a known key.
    """

    directory: Path
    created: str
    contents: dict[str, Any]
    files: tuple[File, ...]
    manifest: bytes = field(repr=False, default=b"")
    signature: bytes = field(repr=False, default=b"")
    signer: str | None = None

    @property
    def size(self) -> int:
        """Total bytes of all files."""
        return sum(file.size for file in self.files)


def read(directory: Path, signers: Path | None = None) -> Bundle:
    """Return the bundle in a directory, with its signer; :func:`trusted` decides whether that is enough.

    Args:
        directory: of the bundle.
        signers: public keys; those of :data:`signature.SIGNERS` if that file exists.

    Raises:
        UserError: there is none, it is not finished, or its manifest is invalid.
    """
    if not directory.is_dir():
        raise UserError(f"found no bundle at {directory}, expected {MANIFEST} in it; fix the path")
    with area(directory) as opened:
        path = directory / MANIFEST
        try:
            content = read_beneath(opened.root, MANIFEST, document.LIMIT)
        except FileNotFoundError:
            half = (directory / PARTIAL).is_dir()
            found = "an unfinished bundle" if half else "no bundle"
            remedy = "run 'metal bundle export' or 'import' again: it resumes" if half else "fix the path"
            raise UserError(f"found {found} at {directory}, expected {MANIFEST} in it; {remedy}") from None
        except TooLargeError as error:
            raise UserError(f"found {path} with {error.strerror}, expected fewer; don't use it") from None
        except OSError as error:
            raise UserError(
                f"found {path} that can't be read ({error.strerror}), expected a plain file; copy it again"
            ) from None
        try:
            signed = read_beneath(opened.root, SIGNATURE, signature.LIMIT)
        except OSError:
            signed = b""
    # Before anything in it is parsed.
    signer = None
    if signers is None and signature.SIGNERS.is_file():
        signers = signature.SIGNERS
    if signers is not None:
        keys = signature.public_keys(signers)
        signer = signature.verify(content, signed, keys) if signed else None
    said = document.parse(content, str(path))
    return Bundle(directory, said.created, said.contents, said.files, content, signed, signer)


def trusted(bundle: Bundle, accept_unsigned: bool) -> str:
    """Describe whose signature a bundle is trusted by.

    Raises:
        UserError: no known key signed it, and unsigned bundles were not accepted.
    """
    if bundle.signer:
        return f"signed by {bundle.signer}"
    if accept_unsigned:
        return "signed by nobody known here, accepted with --accept-unsigned"
    found = "a signature by none of the known keys" if bundle.signature else "no signature"
    raise UserError(
        f"found {found} on {bundle.directory / MANIFEST}, expected one by a key of "
        f"{signature.SIGNERS} or --signers FILE; get the signer's public key some other way than "
        "from this disk, or accept the bundle with --accept-unsigned"
    )


def begin(directory: Path) -> None:
    """Remove the manifest: the next steps change files.

    Raises:
        UserError: the directory contains other things than a bundle.
    """
    directory.mkdir(parents=True, exist_ok=True)
    strange = sorted(path.name for path in directory.iterdir() if path.name not in OWN)
    if strange:
        raise UserError(
            f"found {strange[0]} in {directory}, expected an empty directory or a bundle; name another "
            "directory"
        )
    with area(directory) as opened:
        with suppress(FileExistsError):
            os.mkdir(PARTIAL, 0o755, dir_fd=opened.root)
        for name in (MANIFEST, SIGNATURE, NOTE):
            opened.unlink(name)
    sync_directory(directory)


def remove(bundle: Bundle, files: Iterable[File]) -> None:
    """Remove damaged files; the rest is not a bundle until they are fetched again."""
    begin(bundle.directory)
    with area(bundle.directory) as opened:
        for file in files:
            opened.unlink(file.path)


def finish(
    directory: Path,
    contents: dict[str, Any],
    files: Iterable[File],
    created: str | None = None,
    sign_key: Path | None = None,
) -> Bundle:
    """Remove foreign files, flush everything, write manifest and signature; return the bundle.

    Raises:
        UserError: it can't be signed with that key.
    """
    listed = tuple(sorted(set(files)))
    created = created or datetime.now(UTC).isoformat(timespec="seconds")
    content = document.write(contents, listed, created)
    document.parse(content, MANIFEST)  # only a manifest that can be read again is written
    signed = signature.sign(content, sign_key) if sign_key else b""
    _finish(directory, listed, content, signed)
    return Bundle(directory, created, contents, listed, content, signed)


def _finish(
    directory: Path, files: Iterable[File], manifest: bytes, signed: bytes, note: bytes = b""
) -> None:
    with area(directory) as opened:
        opened.prune({file.path for file in files})
        os.sync()
        for name, content in ((NOTE, note), (SIGNATURE, signed), (MANIFEST, manifest)):
            if content:
                _write(opened, f"{name}.new", content)
                opened.place(f"{name}.new", name)
        with suppress(OSError):
            os.rmdir(PARTIAL, dir_fd=opened.root)
    sync_directory(directory)


def _write(opened: Area, name: str, content: bytes) -> None:
    with os.fdopen(opened.write(name), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def described(directory: Path, path: str) -> File:
    """Return the entry of an existing file."""
    with area(directory) as opened, os.fdopen(opened.open(path), "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        return File(path, size, hashlib.file_digest(stream, "sha256").hexdigest())


def place(directory: Path, path: str, content: bytes) -> File:
    """Atomically write a small file under its name, and return its entry."""
    name = f"{hashlib.sha256(path.encode()).hexdigest()}.new"
    with area(directory) as opened:
        _write(opened, name, content)
        opened.place(name, path)
    return File(path, len(content), hashlib.sha256(content).hexdigest())


def damaged(bundle: Bundle, threads: int = 4) -> Iterator[tuple[File, str]]:
    """Read every byte; yield the files that differ from the manifest, with the difference."""
    with area(bundle.directory) as opened, ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda file: wrong(opened, file), bundle.files)
        yield from ((file, said) for file, said in zip(bundle.files, found, strict=True) if said)


def wrong(opened: Area, file: File) -> str | None:
    """Return what is wrong with a file, or None if it matches the manifest; reads at most its size."""
    try:
        descriptor = opened.open(file.path)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"not a plain file ({error.strerror})"
    with os.fdopen(descriptor, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size != file.size:
            return f"{size} bytes, expected {file.size}"
        return None if hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256 else "another hash"


def copy(bundle: Bundle, target: Path, say: Callable[[str], None], trust: str = "") -> Bundle:
    """Copy a bundle, verify each file on the way, and make the copy a bundle when all are complete.

    Files from an earlier, interrupted copy are used as they are: they have their names only if verified. The
    manifest and its signature are copied byte for byte; ``trust`` is noted beside them.

    Raises:
        UserError: the target is too small, or a file is damaged.
    """
    begin(target)
    with area(bundle.directory) as source, area(target) as opened:
        missing = [file for file in bundle.files if wrong(opened, file) is not None]
        need = sum(file.size for file in missing)
        room = shutil.disk_usage(target).free
        if room < need:
            raise UserError(
                f"found {room / 1000000000.0:.1f} GB free at {target}, expected "
                f"{need / 1000000000.0:.1f} GB for the bundle; free some space there"
            )
        say(f"{len(missing)} of {len(bundle.files)} files to copy, {need / 1e9:.2f} GB")
        for file in missing:
            _copy_one(source, opened, file)
    note = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "signer": bundle.signer, "trust": trust}
    _finish(target, bundle.files, bundle.manifest, bundle.signature, json.dumps(note).encode() + b"\n")
    return Bundle(
        target,
        bundle.created,
        bundle.contents,
        bundle.files,
        bundle.manifest,
        bundle.signature,
        bundle.signer,
    )


def _copy_one(source: Area, target: Area, file: File) -> None:
    # By path: hashes that a foreign manifest lists are not used as names.
    name = f"{hashlib.sha256(file.path.encode()).hexdigest()}.new"
    path = source.directory / file.path
    whole, count = hashlib.sha256(), 0
    try:
        reader = source.open(file.path)
    except OSError as error:
        raise UserError(
            f"found {path} that can't be copied ({error.strerror}), expected {file.size} bytes; "
            "run 'metal bundle verify' on the source, and look at the disks"
        ) from None
    try:
        writer = target.write(name)
    except OSError:
        os.close(reader)
        raise
    try:
        try:
            for block in copy_bytes(reader, writer, file.size):
                whole.update(block)
                count += len(block)
            os.fsync(writer)
        finally:
            os.close(writer)
    except OSError as error:
        target.discard(name)
        raise UserError(
            f"found {path} that can't be copied ({error.strerror}), expected {file.size} bytes; "
            "run 'metal bundle verify' on the source, and look at the disks"
        ) from None
    finally:
        os.close(reader)
    if count != file.size or whole.hexdigest() != file.sha256:
        target.discard(name)
        found = "other bytes" if count == file.size else "more" if count > file.size else "fewer bytes"
        raise UserError(
            f"found {path} with {found} than the manifest says, expected {file.size} with the hash "
            f"{file.sha256}; "
            "export it again"
        )
    target.place(name, file.path)

"""The bundle's directory: files that are there only whole, and a manifest that is there only when all are.

``manifest.json`` is written last: while a bundle is made, and after a stop, there is none, and nobody takes
the directory for a bundle. A file has its name only when its hash was right; work goes on where it stopped.
``manifest.json.sig`` beside it is its signature (:mod:`minimax_metal.controller.bundle_store.signature`) over
the manifest's bytes, which cover every file. A copy keeps both byte for byte.
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
"""Beside an imported bundle: when it was taken in, and on whose signature, or that it has none."""
OWN: Final = frozenset({MANIFEST, SIGNATURE, NOTE, PARTIAL, "lost+found", *document.ROOTS})


@dataclass(frozen=True)
class Bundle:
    """A whole bundle, as its manifest says it.

    Attributes:
        directory: where it is.
        created: when it was made, in its maker's words.
        contents: what is in it, by kind.
        files: every file of it.
        manifest: the bytes of its manifest.
        signature: those of the signature; empty where it has none.
        signer: fingerprint of the key that signed it; None: not signed by anybody who is known here.
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
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def read(directory: Path, signers: Path | None = None) -> Bundle:
    """Return the bundle in a directory, with who signed it; whether that will do is for :func:`trusted`.

    Args:
        directory: of the bundle.
        signers: public keys; those of :data:`signature.SIGNERS` where that file is.

    Raises:
        UserError: there is none, it is not finished, or its manifest is not one.
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
            remedy = "run 'metal bundle export' or 'import' again, it goes on" if half else "fix the path"
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
    # Before anything in it is looked at.
    signer = None
    if signers is None and signature.SIGNERS.is_file():
        signers = signature.SIGNERS
    if signers is not None:
        keys = signature.public_keys(signers)
        signer = signature.verify(content, signed, keys) if signed else None
    said = document.parse(content, str(path))
    return Bundle(directory, said.created, said.contents, said.files, content, signed, signer)


def trusted(bundle: Bundle, accept_unsigned: bool) -> str:
    """Return in words on whose word a bundle is used.

    Raises:
        UserError: nobody who is known here signed it, and that was not accepted by name.
    """
    if bundle.signer:
        return f"signed by {bundle.signer}"
    if accept_unsigned:
        return "without a signature that is known here, accepted with --accept-unsigned"
    found = "a signature by none of the known keys" if bundle.signature else "no signature"
    raise UserError(
        f"found {found} on {bundle.directory / MANIFEST}, expected one by a key of {signature.SIGNERS} or "
        f"--signers "
        "FILE; get the signer's public key by another way than this disk, or accept it with --accept-unsigned"
    )


def begin(directory: Path) -> None:
    """Take the manifest away: what follows changes files.

    Raises:
        UserError: the directory holds other things than a bundle.
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
    """Take damaged files away; what is left is no bundle until they are brought again."""
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
    """Take away what is no part of it, flush everything, write manifest and signature; return the bundle.

    Raises:
        UserError: it can't be signed with that key.
    """
    listed = tuple(sorted(set(files)))
    created = created or datetime.now(UTC).isoformat(timespec="seconds")
    content = document.write(contents, listed, created)
    document.parse(content, MANIFEST)  # what could not be read again is not written
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
    """Return the entry of a file that is there."""
    with area(directory) as opened, os.fdopen(opened.open(path), "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        return File(path, size, hashlib.file_digest(stream, "sha256").hexdigest())


def place(directory: Path, path: str, content: bytes) -> File:
    """Write a small file under its name, whole or not at all, and return its entry."""
    name = f"{hashlib.sha256(path.encode()).hexdigest()}.new"
    with area(directory) as opened:
        _write(opened, name, content)
        opened.place(name, path)
    return File(path, len(content), hashlib.sha256(content).hexdigest())


def damaged(bundle: Bundle, threads: int = 4) -> Iterator[tuple[File, str]]:
    """Read every byte; yield the files that are not as the manifest says, with what was found."""
    with area(bundle.directory) as opened, ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda file: wrong(opened, file), bundle.files)
        yield from ((file, said) for file, said in zip(bundle.files, found, strict=True) if said)


def wrong(opened: Area, file: File) -> str | None:
    """What is wrong with a file; None where it is what the manifest says. No more than its size is read."""
    try:
        descriptor = opened.open(file.path)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"no plain file ({error.strerror})"
    with os.fdopen(descriptor, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size != file.size:
            return f"{size} bytes, expected {file.size}"
        return None if hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256 else "another hash"


def copy(bundle: Bundle, target: Path, say: Callable[[str], None], trust: str = "") -> Bundle:
    """Copy a bundle, verify each file on the way, and make the copy a bundle when all are there.

    Files that an earlier, interrupted copy brought are taken as they are: they have their names only when
    verified. The manifest and its signature are copied byte for byte; ``trust`` is noted beside them.

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
                f"found {room / 1e9:.1f} GB free at {target}, expected {need / 1e9:.1f} GB for the bundle; "
                f"make "
                "room there"
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
    # By path: what a manifest says of hashes is no name for anything here.
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

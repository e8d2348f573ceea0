"""The sources of a model, each behind the same few calls: list the files, open one at an offset.

The hubs are in :mod:`.hubs`, directories on web servers in :mod:`.served`; here are directories on this host,
tokens, and the function that opens a source.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from minimax_metal.common.errors import UserError
from minimax_metal.common.files import read_bounded
from minimax_metal.host.weights import listings
from minimax_metal.host.weights.errors import SourceError, transport_error
from minimax_metal.host.weights.examine import Expected, examine
from minimax_metal.host.weights.hubs import (
    DEFAULT_BRANCHES,
    DEFAULT_ENDPOINTS,
    MODELSCOPE_LIMIT,
    HuggingFace,
    ModelScope,
    parse_refs,
    reading,
)
from minimax_metal.host.weights.hubs import endpoint_of as _endpoint
from minimax_metal.host.weights.listings import Listing
from minimax_metal.host.weights.manifest import Entry, Manifest
from minimax_metal.host.weights.request import (
    ACCEPT_UNPROVED,
    HF_MIRROR,
    HTTP,
    HUGGINGFACE,
    MODELSCOPE,
    Source,
)
from minimax_metal.host.weights.served import Served
from minimax_metal.host.weights.web import Body, Web

__all__ = [
    "ACCEPT_UNPROVED",
    "DEFAULT_BRANCHES",
    "DEFAULT_ENDPOINTS",
    "MODELSCOPE_LIMIT",
    "Directory",
    "HuggingFace",
    "Listing",
    "ModelScope",
    "Origin",
    "Served",
    "_endpoint",
    "open_source",
    "parse_refs",
    "token_of",
]

_BLOCK: Final = 1 << 20
MOST_TOKEN: Final = 1 << 16


class Origin(Protocol):
    """A source opened for reading; the methods raise :class:`SourceError`."""

    def list(self) -> Listing:
        """Return the files with their expected sizes and hashes."""

    def open(
        self, entry: Entry, offset: int, end: int | None = None
    ) -> contextlib.AbstractContextManager[Body]:
        """Open one file at an offset; ``end``: the end of the requested part, which some servers ignore."""

    def identity(self, entry: Entry) -> str | None:
        """Return the name for a partial file: the same name means the same bytes. None: don't keep it."""


def token_of(source: Source) -> str | None:
    """Return the token for a source, from its file; None if there is none.

    ``token_file`` of the source, else the unit's systemd credential under the source's kind
    (``LoadCredential=huggingface:…``), else the file that Hugging Face's own client reads. A token for
    Hugging Face is not sent to a mirror unless it was given for the mirror.

    Raises:
        UserError: the file in the request can't be read or is empty.
    """
    if source.token_file is not None:
        try:
            token = read_bounded(source.token_file, MOST_TOKEN).decode("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no text"
            raise UserError(f"can't read the token file {source.token_file}: {reason}") from error
        if not token or len(token.split()) != 1:
            raise UserError(f"the token file {source.token_file} contains no token; expected one line")
        return token
    folders = [os.environ.get("CREDENTIALS_DIRECTORY"), None]
    candidates = [Path(folder) / source.kind for folder in folders if folder]
    if source.kind == HUGGINGFACE and (path := os.environ.get("HF_TOKEN_PATH")):
        candidates.append(Path(path))
    for candidate in candidates:
        with contextlib.suppress(OSError):
            if token := read_bounded(candidate, MOST_TOKEN).decode("utf-8", "replace").strip():
                return token
    return None


def open_source(
    source: Source, stall: float = 60.0, expected: Expected | None = None, accept_unproved: bool = False
) -> Origin:
    """Return the reader for a source.

    Args:
        source: its description.
        stall: seconds without a byte after which a connection is dropped.
        expected: the catalogue's data on the model, for a directory without a manifest.
        accept_unproved: use such a directory although its files don't prove it.
    """
    if source.kind in {HUGGINGFACE, HF_MIRROR, MODELSCOPE}:
        web = Web(str(source), source.revision, token_of(source), stall)
        return ModelScope(source, web) if source.kind == MODELSCOPE else HuggingFace(source, web)
    if source.kind == HTTP:
        return Served(source, Web(str(source), source.revision, token_of(source), stall))
    return Directory(source, expected, accept_unproved)


@dataclass
class Directory:
    """A directory with the model: a disk, an NFS path, a hub client's snapshot (links are followed)."""

    source: Source
    expected: Expected | None = None
    accept_unproved: bool = False

    @property
    def root(self) -> Path:
        """The directory."""
        return self.source.path or Path("/nonexistent")

    def list(self) -> Listing:
        """Return the directory's files, with the hashes of its manifest if it has one of ours.

        Without a manifest every file is verified by its own contents, as far as possible (:mod:`.examine`).

        Raises:
            SourceError: a file is not as it should be; the line names it.
        """
        if not self.root.is_dir():
            raise SourceError(f"{self.source} does not exist or is not a directory", permanent=True)
        manifest = Manifest.read(self.root)
        if manifest is not None:
            return Listing(manifest.files, manifest.revision)
        try:
            found = examine(self.root, self.expected)
        except OSError as error:
            raise transport_error(self.source, error) from error
        if found.problems and not self.accept_unproved:
            raise SourceError(
                f"{self.source} is not proved to be the model: {found.line()}; 'metal weights verify' on it "
                "shows everything; fix it, or accept it as it is with model_weights_accept_unproved",
                permanent=True,
            )
        with reading(self.source):
            files = (Entry(path, size) for path, size in sorted(found.files.items()))
            return listings.listing(files, self.source.revision)

    @contextlib.contextmanager
    def open(self, entry: Entry, offset: int, end: int | None = None) -> Iterator[Body]:
        """Open one file at an offset."""
        try:
            with (self.root / entry.path).open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(min(offset, size))
                yield Body(min(offset, size), size, self._blocks(file))
        except OSError as error:
            raise transport_error(self.source, error) from error

    def _blocks(self, file: Any) -> Iterator[bytes]:
        try:
            while block := file.read(_BLOCK):
                yield block
        except OSError as error:
            raise transport_error(self.source, error) from error

    def identity(self, entry: Entry) -> str | None:
        """Return the file's hash from a manifest, else its path, size and time."""
        if entry.sha256 is not None:
            return entry.sha256
        try:
            status = (self.root / entry.path).stat()
        except OSError:
            return None
        return f"{self.root / entry.path}:{status.st_size}:{status.st_mtime_ns}"

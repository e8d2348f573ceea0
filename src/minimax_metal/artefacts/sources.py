"""The places a model comes from, each behind the same few calls: list the files, open one at an offset.

Hugging Face and ModelScope are read by their documented HTTP protocols, not by their clients, because of
what these were seen to do: ``huggingface_hub`` 2.4 never continues a partial file that another process left
(a kill costs up to eight shards) and compares sizes only; ``modelscope`` 1.40 gives a large shard one hour
and needs its space twice. The lab's hub is held to both protocols by the unmodified clients.

* Hugging Face: ``/api/models/<id>/revision/<revision>?blobs=true`` states commit, sizes, SHA-256 (large
  files) and git ids (small ones); ``/<id>/resolve/<commit>/<path>`` is the file or a redirect to it. Plain
  HTTP throughout, so Xet storage plays no part: hub and mirrors answer with whole files.
* ModelScope: ``/api/v1/models/<id>/repo/files`` states sizes and SHA-256, ``…/repo?FilePath=`` is the file.
  It names no commit for a branch; git does (``<id>.git/info/refs``, git's own smart HTTP protocol).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

from minimax_metal.artefacts.errors import SourceError, transport_error
from minimax_metal.artefacts.manifest import FILE as MANIFEST
from minimax_metal.artefacts.manifest import FOLDER, Entry, Manifest
from minimax_metal.artefacts.request import HF_MIRROR, HTTP, HUGGINGFACE, MODELSCOPE, Source, is_commit
from minimax_metal.artefacts.web import Body, Web
from minimax_metal.errors import UserError

LEFTOVERS: Final = frozenset(
    {FOLDER, ".cache", ".git", ".huggingface", ".lock", ".mdl", ".msc", ".mv", "._____temp", "__pycache__"}
)
"""Names that hub clients and tools leave in a model directory; no part of a model."""

DEFAULT_ENDPOINTS: Final = {
    HUGGINGFACE: ("HF_ENDPOINT", "https://huggingface.co"),
    HF_MIRROR: ("HF_ENDPOINT", "https://hf-mirror.com"),
    MODELSCOPE: ("MODELSCOPE_ENDPOINT", "https://www.modelscope.cn"),
}
"""Per kind of source: the variable its own client reads, and that client's default."""

DEFAULT_BRANCHES: Final = {HUGGINGFACE: "main", HF_MIRROR: "main", MODELSCOPE: "master"}

MODELSCOPE_LIMIT: Final = 3000
"""Entries after which ModelScope cuts a listing off without a word (``REPO_FILES_TRUNCATION_LIMIT`` in
``modelscope_hub`` 0.5.1)."""

_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Listing:
    """Every file of the model at the revision that the source resolved."""

    files: tuple[Entry, ...]
    revision: str | None


class Origin(Protocol):
    """A source opened for reading; the methods raise :class:`SourceError`."""

    def list(self) -> Listing:
        """Return the files and their expected sizes and hashes."""

    def open(
        self, entry: Entry, offset: int, end: int | None = None
    ) -> contextlib.AbstractContextManager[Body]:
        """Open one file at an offset; ``end``: where what is wanted ends, which not all heed."""

    def identity(self, entry: Entry) -> str | None:
        """Return what a partial file is kept under: the same name means the same bytes. None: don't keep."""


def token_of(source: Source) -> str | None:
    """Return the token for a source, from its file; None when there is none.

    ``token_file`` of the source, else the credential that systemd gives the unit under the source's kind
    (``LoadCredential=huggingface:…``), else the file that Hugging Face's own client reads. A token for
    Hugging Face is not sent to a mirror unless it was given for the mirror.

    Raises:
        UserError: the file that the request names cannot be read or is empty.
    """
    if source.token_file is not None:
        try:
            token = source.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no text"
            raise UserError(f"cannot read the token file {source.token_file}: {reason}") from error
        if not token or len(token.split()) != 1:
            raise UserError(f"the token file {source.token_file} holds no token; expected one line")
        return token
    folders = [os.environ.get("CREDENTIALS_DIRECTORY"), None]
    candidates = [Path(folder) / source.kind for folder in folders if folder]
    if source.kind == HUGGINGFACE and (path := os.environ.get("HF_TOKEN_PATH")):
        candidates.append(Path(path))
    for candidate in candidates:
        with contextlib.suppress(OSError):
            if token := candidate.read_text(encoding="utf-8").strip():
                return token
    return None


def open_source(source: Source, stall: float = 60.0) -> Origin:
    """Return the reader for a source."""
    if source.kind in {HUGGINGFACE, HF_MIRROR, MODELSCOPE}:
        web = Web(str(source), source.revision, token_of(source), stall)
        return ModelScope(source, web) if source.kind == MODELSCOPE else HuggingFace(source, web)
    if source.kind == HTTP:
        return Served(source, Web(str(source), source.revision, token_of(source), stall))
    return Directory(source)


def _endpoint(source: Source) -> str:
    variable, default = DEFAULT_ENDPOINTS[source.kind]
    return (source.endpoint or os.environ.get(variable) or default).rstrip("/")


@dataclass
class HuggingFace:
    """A repository on any endpoint that speaks Hugging Face's protocol."""

    source: Source
    web: Web
    revision: str | None = field(default=None, init=False)

    def list(self) -> Listing:
        """Return the files with the sizes and the SHA-256 (large files) or git ids (small ones) it states."""
        wanted = self.source.revision or DEFAULT_BRANCHES[self.source.kind]
        raw = self.web.json(
            f"{_endpoint(self.source)}/api/models/{self.source.repository}/revision/{quote(wanted, safe='')}",
            {"blobs": "true"},
        )
        with _reading(self.source):
            files = tuple(self._entry(file) for file in raw["siblings"])
            self.revision = str(raw["sha"])
        if is_commit(wanted) and self.revision != wanted:
            raise SourceError(f"{self.source} answers {self.revision} for {wanted}", permanent=True)
        return Listing(files, self.revision)

    def _entry(self, file: Any) -> Entry:
        lfs = file.get("lfs")
        size = lfs["size"] if lfs else file.get("size")
        if size is None:
            raise SourceError(f"{self.source} states no size for {file['rfilename']}", permanent=True)
        if lfs:
            return Entry(file["rfilename"], int(size), str(lfs["sha256"]), stated=True)
        return Entry(file["rfilename"], int(size), git_oid=file.get("blobId"))

    def open(
        self, entry: Entry, offset: int, end: int | None = None
    ) -> contextlib.AbstractContextManager[Body]:
        """Open one file at the commit that :meth:`list` resolved."""
        revision = self.revision or self.source.revision or DEFAULT_BRANCHES[self.source.kind]
        where = f"{self.source.repository}/resolve/{quote(revision, safe='')}/{quote(entry.path)}"
        return self.web.open(f"{_endpoint(self.source)}/{where}", offset=offset, end=end)

    def identity(self, entry: Entry) -> str | None:
        """Return the file's hash, as the hub states it."""
        return entry.sha256 or entry.git_oid


@dataclass
class ModelScope:
    """A repository on any endpoint that speaks ModelScope's protocol."""

    source: Source
    web: Web
    revision: str | None = field(default=None, init=False)

    @property
    def _api(self) -> str:
        return f"{_endpoint(self.source)}/api/v1/models/{self.source.repository}"

    def list(self) -> Listing:
        """Return the files with the sizes and SHA-256 that the hub states, at one commit."""
        wanted = self.source.revision or DEFAULT_BRANCHES[MODELSCOPE]
        revision = wanted if is_commit(wanted) else self._commit(wanted)
        self.revision = revision or wanted
        found = self._page(None, recursive=True)
        if len(found) >= MODELSCOPE_LIMIT:
            found = self._walk()
        with _reading(self.source):
            files = tuple(
                Entry(file["Path"], int(file["Size"]), file.get("Sha256") or None, bool(file.get("Sha256")))
                for file in found
                if file.get("Type") != "tree"
            )
        return Listing(files, self.revision)

    def _page(self, root: str | None, *, recursive: bool) -> Sequence[Any]:
        parameters = {"Revision": str(self.revision), "Recursive": str(recursive)}
        answer = self.web.json(
            f"{self._api}/repo/files", parameters | ({"Root": root} if root is not None else {})
        )
        with _reading(self.source):
            if answer.get("Success") is False:
                raise SourceError(f"{self.source}: {answer.get('Message') or 'refused'}", permanent=True)
            return tuple(answer["Data"]["Files"] or ())

    def _walk(self) -> Sequence[Any]:
        """List folder by folder: one listing of everything is cut off."""
        files: deque[Any] = deque()
        folders: deque[str | None] = deque([None])
        while folders:
            page = self._page(folders.pop(), recursive=False)
            if len(page) >= MODELSCOPE_LIMIT:
                raise SourceError(f"{self.source} lists folders incompletely", permanent=True)
            files += [file for file in page if file.get("Type") != "tree"]
            folders += [file["Path"] for file in page if file.get("Type") == "tree"]
        return tuple(files)

    def _commit(self, branch: str) -> str | None:
        """Return the commit of a branch or tag as git tells it; None when the hub does not speak git."""
        url = f"{_endpoint(self.source)}/{self.source.repository}.git/info/refs"
        try:
            text = self.web.text(url, {"service": "git-upload-pack"})
        except SourceError as error:
            if error.permanent:
                return None
            raise
        return parse_refs(text).get(branch)

    def open(
        self, entry: Entry, offset: int, end: int | None = None
    ) -> contextlib.AbstractContextManager[Body]:
        """Open one file at the revision that :meth:`list` resolved."""
        parameters = {"Revision": str(self.revision or self.source.revision), "FilePath": entry.path}
        return self.web.open(f"{self._api}/repo", parameters, offset, end)

    def identity(self, entry: Entry) -> str | None:
        """Return the file's hash; without one a partial file is good for this pull only."""
        return entry.sha256


def parse_refs(text: str) -> dict[str, str]:
    """Return branch or tag -> commit from git's reference advertisement (gitprotocol-http(5), pkt-lines).

    An annotated tag counts as the commit it points to.
    """
    found: dict[str, str] = {}
    for commit, kind, name, peeled in re.findall(
        r"([0-9a-f]{40}) refs/(heads|tags)/([^\s\0^]+)(\^\{\})?", text
    ):
        if kind == "heads" or peeled or name not in found:
            found[name] = commit
    return found


@contextlib.contextmanager
def _reading(source: Source) -> Iterator[None]:
    """Turn a listing of another shape than documented into one line."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(
            f"{source} describes its files in a way that is not understood ({type(error).__name__}: {error})",
            permanent=True,
        ) from error


@dataclass
class Directory:
    """A directory that holds the model: a disk, an NFS path, a hub client's snapshot (links are followed)."""

    source: Source

    @property
    def root(self) -> Path:
        """The directory."""
        return self.source.path or Path("/nonexistent")

    def list(self) -> Listing:
        """Return the directory's files, with the hashes of its manifest where it has one of ours."""
        if not self.root.is_dir():
            raise SourceError(f"{self.source} does not exist or is no directory", permanent=True)
        manifest = Manifest.read(self.root)
        if manifest is not None:
            return Listing(manifest.files, manifest.revision)
        files = []
        try:
            for path in sorted(self.root.rglob("*")):
                relative = path.relative_to(self.root)
                if LEFTOVERS.isdisjoint(relative.parts) and path.is_file():
                    files.append(Entry(relative.as_posix(), path.stat().st_size))
        except OSError as error:
            raise transport_error(self.source, error) from error
        return Listing(tuple(files), self.source.revision)

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
        """Return the file's hash where a manifest states it, else its place, size and time."""
        if entry.sha256 is not None:
            return entry.sha256
        try:
            status = (self.root / entry.path).stat()
        except OSError:
            return None
        return f"{self.root / entry.path}:{status.st_size}:{status.st_mtime_ns}"


@dataclass
class Served:
    """A verified directory that another host serves as plain files over HTTP, its manifest with it."""

    source: Source
    web: Web

    def list(self) -> Listing:
        """Return what the manifest there says."""
        raw = self.web.json(f"{self.source.endpoint}/{FOLDER}/{MANIFEST}")
        with _reading(self.source):
            manifest = Manifest.parse(raw)
        wanted, there = self.source.revision, manifest.revision
        if is_commit(wanted) and is_commit(there) and wanted != there:
            raise SourceError(f"{self.source} hold revision {there}, not {wanted}", permanent=True)
        return Listing(manifest.files, manifest.revision)

    def open(
        self, entry: Entry, offset: int, end: int | None = None
    ) -> contextlib.AbstractContextManager[Body]:
        """Open one file at an offset."""
        return self.web.open(f"{self.source.endpoint}/{quote(entry.path)}", offset=offset, end=end)

    def identity(self, entry: Entry) -> str | None:
        """Return the file's hash."""
        return entry.sha256


def resolve(source: Source) -> Source:
    """Return the source at a commit instead of a branch; unchanged where it has no commits.

    Raises:
        SourceError: it cannot be asked, or has no such branch.
    """
    if is_commit(source.revision):
        return source
    origin = open_source(source)
    if not isinstance(origin, HuggingFace | ModelScope):
        return source
    branch = source.revision or DEFAULT_BRANCHES[source.kind]
    return replace(source, revision=origin.list().revision, branch=branch)

"""The model hubs: Hugging Face and ModelScope, and what speaks their protocols.

Both are read by their documented HTTP protocols, not by their clients, because of what these were seen to do:
``huggingface_hub`` 2.4 never continues a partial file that another process left (a kill costs up to eight
shards) and compares sizes only; ``modelscope`` 1.40 gives a large shard one hour and needs its space twice.
The lab's hub is held to both protocols by the unmodified clients.

* Hugging Face: ``/api/models/<id>/revision/<revision>?blobs=true`` states commit, sizes, SHA-256 (large
  files) and git ids (small ones); ``/<id>/resolve/<commit>/<path>`` is the file or a redirect to it. Plain
  HTTP throughout, so Xet storage plays no part: hub and mirrors answer with whole files. Repository managers
  know less: Artifactory answers 404 to parameters that it does not know (huggingface_hub issue 2974) and
  lists no ``siblings`` (pull request 3241), so sizes are asked for in other ways, the best one first.
* ModelScope: ``/api/v1/models/<id>/repo/files`` states sizes and SHA-256, ``…/repo?FilePath=`` is the file.
  It names no commit for a branch; git does (``<id>.git/info/refs``, git's own smart HTTP protocol).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlsplit

from minimax_metal.common.errors import UserError
from minimax_metal.common.text import one_line
from minimax_metal.host.weights import listings
from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.listings import Listing
from minimax_metal.host.weights.manifest import Entry
from minimax_metal.host.weights.request import HF_MIRROR, HUGGINGFACE, MODELSCOPE, Source, is_commit
from minimax_metal.host.weights.web import Body, Web

DEFAULT_ENDPOINTS: Final = {
    HUGGINGFACE: ("HF_ENDPOINT", "https://huggingface.co"),
    HF_MIRROR: ("HF_ENDPOINT", "https://hf-mirror.com"),
    MODELSCOPE: ("MODELSCOPE_ENDPOINT", "https://www.modelscope.cn"),
}
"""Per kind of source: the variable that its own client reads, and that client's default."""

DEFAULT_BRANCHES: Final = {HUGGINGFACE: "main", HF_MIRROR: "main", MODELSCOPE: "master"}

MODELSCOPE_LIMIT: Final = 3000
"""Entries after which ModelScope silently cuts a listing off (``REPO_FILES_TRUNCATION_LIMIT`` in
``modelscope_hub`` 0.5.1).
"""

MOST_PAGES: Final = 50
MOST_FOLDERS: Final = 1000
MOST_HEADED: Final = 2000
"""Maximum files whose sizes are requested one by one."""
Names = list[str]
_FINAL: Final = frozenset({"RepoNotFound", "RevisionNotFound", "GatedRepo"})
_UNKNOWN: Final = frozenset({400, 404, 405, 422, 501})
"""Servers' answers to an unknown path or parameter."""


@contextlib.contextmanager
def reading(source: Source) -> Iterator[None]:
    """Report a listing in an undocumented format as one line."""
    try:
        yield
    except UserError as error:
        raise SourceError(f"{source}: {error}", permanent=True) from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise SourceError(
            f"{source} describes its files in an unknown way ({type(error).__name__}: "
            f"{one_line(str(error), 200)})",
            permanent=True,
        ) from error


def endpoint_of(source: Source) -> str:
    """Return the address of a hub."""
    variable, default = DEFAULT_ENDPOINTS[source.kind]
    return (source.endpoint or os.environ.get(variable) or default).rstrip("/")


@dataclass
class HuggingFace:
    """A repository on any endpoint with Hugging Face's protocol, or the part of it that mirrors support."""

    source: Source
    web: Web
    revision: str | None = field(default=None, init=False)

    def list(self) -> Listing:
        """Return the files with their published sizes and SHA-256 (large files) or git ids (small ones)."""
        wanted = self.source.revision or DEFAULT_BRANCHES[self.source.kind]
        raw = self._described(wanted)
        with reading(self.source):
            found: dict[str, Entry] = {}
            unsized: list[str] = []
            if raw.get("siblings"):
                found, unsized = listings.hugging_face(raw["siblings"], "rfilename")
            stated = listings.commit_of(raw.get("sha"))
        if stated is not None and is_commit(wanted) and stated != wanted:
            raise SourceError(f"{self.source} answers {stated} for {wanted}", permanent=True)
        self.revision = stated or (wanted if is_commit(wanted) else None)
        if unsized or not found:
            self._add_tree(found, unsized)
        self._add_headed(found, unsized)
        with reading(self.source):
            return listings.listing(found.values(), self.revision)

    def _api(self, what: str, revision: str) -> str:
        base = f"{endpoint_of(self.source)}/api/models/{self.source.repository}"
        return f"{base}/{what}/{quote(revision, safe='')}"

    def _described(self, wanted: str) -> Mapping[str, Any]:
        """Return the model's description, requested with and without parameters that some mirrors don't
        support.
        """
        url = self._api("revision", wanted)
        try:
            raw = self.web.json(url, {"blobs": "true"})
        except SourceError as error:
            if error.status not in _UNKNOWN or error.code in _FINAL:
                raise
            try:
                raw = self.web.json(url)
            except SourceError as again:
                # Report the first answer: it is the hub's to the usual request.
                raise (error if again.status in _UNKNOWN else again) from again
        if not isinstance(raw, Mapping):
            raise SourceError(
                f"{self.source} describes the model as a {type(raw).__name__}, expected an object; is the "
                "endpoint a model hub?",
                permanent=True,
            )
        return raw

    def _add_tree(self, found: dict[str, Entry], unsized: Names) -> None:
        """Add the tree listing's data for files without a size, or for all if none was listed."""
        revision = self.revision or self.source.revision or DEFAULT_BRANCHES[self.source.kind]
        wanted, query = set(unsized), {"recursive": "true"}
        pages: set[str] = set()
        for _ in range(MOST_PAGES):
            try:
                raw, headers = self.web.json_and_headers(self._api("tree", revision), query)
            except SourceError as error:
                if error.status in _UNKNOWN and error.code not in _FINAL:
                    return
                raise
            with reading(self.source):
                more, nameless = listings.hugging_face(raw, "path")
                found.update({path: one for path, one in more.items() if not wanted or path in wanted})
                unsized += [path for path in nameless if not wanted]
                if len(found) > listings.MOST_FILES:
                    raise UserError(f"the source lists more than {listings.MOST_FILES} files")
            # Mirrors pass on the hub's own address: only the next page's position is taken from it.
            cursor = _next_cursor(headers.get("Link", ""))
            if cursor is None or cursor in pages:
                break
            pages.add(cursor)
            query = {"recursive": "true", "cursor": cursor}
        else:
            raise SourceError(
                f"{self.source} lists its files on more than {MOST_PAGES} pages", permanent=True
            )
        unsized[:] = [path for path in unsized if path not in found]

    def _add_headed(self, found: dict[str, Entry], unsized: Names) -> None:
        """Request the sizes of the remaining files, one by one."""
        left = [path for path in unsized if path not in found]
        if len(left) > MOST_HEADED:
            raise SourceError(f"{self.source} gives no size for {len(left)} files", permanent=True)
        if not left:
            return
        with ThreadPoolExecutor(8, thread_name_prefix="sizes") as pool:
            asked = [pool.submit(self._headed, path) for path in left]
            try:
                for path, one in zip(left, asked, strict=True):
                    found[path] = one.result()
            except SourceError:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _headed(self, path: str) -> Entry:
        url = self._url(path)
        try:
            head = self.web.head(url)
            size, etag = head.size, head.etag
        except SourceError as error:
            if error.status not in {400, 405, 501}:
                raise
            size, etag = None, None
        if size is None:
            # hf-mirror sends no length for some files (huggingface_hub issue 2362): a range request gives it.
            with self.web.open(url, offset=0, end=1) as body:
                size = body.total
        if size is None:
            raise SourceError(f"{self.source} gives no size for {path}", permanent=True)
        with reading(self.source):
            return listings.headed(path, size, etag)

    def _url(self, path: str) -> str:
        revision = self.revision or self.source.revision or DEFAULT_BRANCHES[self.source.kind]
        where = f"{self.source.repository}/resolve/{quote(revision, safe='')}/{quote(path)}"
        return f"{endpoint_of(self.source)}/{where}"

    def open(
        self, entry: Entry, offset: int, end: int | None = None
    ) -> contextlib.AbstractContextManager[Body]:
        """Open one file at the commit that :meth:`list` resolved."""
        return self.web.open(self._url(entry.path), offset=offset, end=end)

    def identity(self, entry: Entry) -> str | None:
        """Return the file's hash, as published by the hub."""
        return entry.sha256 or entry.git_oid


def _next_cursor(link: str) -> str | None:
    """Return the start of the next page, from a ``Link`` header (RFC 8288); None on the last page."""
    found = re.search(r'<([^<>]{1,4000})>\s{0,10};\s{0,10}rel="?next"?', link[:16_384])
    if found is None:
        return None
    cursors = parse_qs(urlsplit(found[1]).query).get("cursor")
    return cursors[0] if cursors else None


@dataclass
class ModelScope:
    """A repository on any endpoint with ModelScope's protocol."""

    source: Source
    web: Web
    revision: str | None = field(default=None, init=False)

    @property
    def _api(self) -> str:
        return f"{endpoint_of(self.source)}/api/v1/models/{self.source.repository}"

    def list(self) -> Listing:
        """Return the files with their published sizes and SHA-256, at one commit."""
        wanted = self.source.revision or DEFAULT_BRANCHES[MODELSCOPE]
        revision = wanted if is_commit(wanted) else self._commit(wanted)
        self.revision = revision or wanted
        found, _, listed = self._page(None, recursive=True)
        if listed >= MODELSCOPE_LIMIT:
            found = self._walk()
        with reading(self.source):
            return listings.listing(found, self.revision)

    def _page(self, root: str | None, *, recursive: bool) -> tuple[Sequence[Entry], Sequence[str], int]:
        """Return files, folders, and the number of listed entries."""
        parameters = {"Revision": str(self.revision), "Recursive": str(recursive)}
        answer = self.web.json(
            f"{self._api}/repo/files", parameters | ({"Root": root} if root is not None else {})
        )
        with reading(self.source):
            if answer.get("Success") is False:
                said = one_line(str(answer.get("Message") or "refused"), 200)
                raise SourceError(f"{self.source}: {said}", permanent=True)
            files, folders = listings.model_scope(answer["Data"]["Files"] or [])
            return files, folders, len(files) + len(folders)

    def _walk(self) -> Sequence[Entry]:
        """List folder by folder: one listing of everything is cut off."""
        files: list[Entry] = []
        folders: deque[str | None] = deque([None])
        seen: set[str | None] = set()
        while folders:
            folder = folders.pop()
            if folder in seen:
                continue
            seen.add(folder)
            here, below, listed = self._page(folder, recursive=False)
            if listed >= MODELSCOPE_LIMIT:
                raise SourceError(f"{self.source} lists folders incompletely", permanent=True)
            files += here
            folders += below
            if len(files) > listings.MOST_FILES or len(seen) + len(folders) > MOST_FOLDERS:
                raise SourceError(
                    f"{self.source} lists more than {listings.MOST_FILES} files or {MOST_FOLDERS} folders",
                    permanent=True,
                )
        return files

    def _commit(self, branch: str) -> str | None:
        """Return the commit of a branch or tag from git; None if the hub does not support git."""
        url = f"{endpoint_of(self.source)}/{self.source.repository}.git/info/refs"
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
        """Return the file's hash; without one a partial file is only usable in this pull."""
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

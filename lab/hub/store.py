"""What the hub serves, on disk: files by their sha256, repositories as lists of them, branches as names.

    DIR/objects/<sha256>                       the bytes, each once however often published
    DIR/repositories/<site>/<organisation>/<name>/
        commits/<40 hex digits>.json           path -> size, sha256, git object id
        refs/<branch>                          a commit
        gate                                   SHA-256 of the token it takes, where it takes one

``site`` is "huggingface" or "modelscope": a repository may have another id on each, and exists only where it
was published.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Site = Literal["huggingface", "modelscope"]

DEFAULT_BRANCH: Mapping[Site, str] = {"huggingface": "main", "modelscope": "master"}
"""The branch each site's client asks for when no revision is named."""

LARGE_SUFFIXES = (".safetensors", "tokenizer.json")
"""Files stored in LFS, as in the models' own repositories: their ETag is a sha256, other files' a git object
id.
"""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class NotFoundError(LookupError):
    """Nothing is published under that name; ``what`` is the noun, ``commit`` the found revision."""

    def __init__(
        self, what: Literal["Repo", "Revision", "Entry"], name: str, commit: str | None = None
    ) -> None:
        super().__init__(f"{what} not found: {name}")
        self.what = what
        self.commit = commit


@dataclass(frozen=True)
class Entry:
    """One file of a revision: ``size`` in bytes, ``oid`` its git object id."""

    path: str
    size: int
    sha256: str
    oid: str

    @property
    def large(self) -> bool:
        """Whether the file is stored in LFS."""
        return self.path.endswith(LARGE_SUFFIXES)

    @property
    def etag(self) -> str:
        """Hugging Face's ETag of the file, without quotes."""
        return self.sha256 if self.large else self.oid


@dataclass(frozen=True)
class Snapshot:
    """One revision of a repository."""

    repository: str
    commit: str
    files: Mapping[str, Entry]

    def file(self, path: str) -> Entry:
        """Return the file ``path``; raises :class:`NotFoundError`."""
        try:
            return self.files[path]
        except KeyError:
            raise NotFoundError("Entry", path, self.commit) from None


class GatedError(LookupError):
    """The repository needs a token that the request did not have."""


class Store:
    """The published repositories under one folder, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def publish(self, site: Site, repository: str, folder: Path) -> Snapshot:
        """Publish the files below ``folder`` as the newest commit of ``repository`` (``Organisation/Name``).

        The commit's id follows from paths and contents, so publishing the same files again changes nothing.
        Readers see the repository before or after, never a part of the change.
        """
        home = self._home(site, repository)
        files = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = _describe(path, path.relative_to(folder).as_posix())
            self._keep(path, entry.sha256)
            files[entry.path] = entry
        listing = json.dumps({path: entry.oid for path, entry in files.items()}, sort_keys=True)
        commit = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()
        contents = json.dumps({path: asdict(entry) for path, entry in files.items()}, indent=1)
        _write(home / "commits" / f"{commit}.json", contents)
        _write(home / "refs" / DEFAULT_BRANCH[site], commit)
        return Snapshot(repository, commit, files)

    def snapshot(self, site: Site, repository: str, revision: str) -> Snapshot:
        """Return a revision, given as a branch or a whole commit id; raises :class:`NotFoundError`."""
        if not all(_NAME.fullmatch(part) for part in repository.split("/")):
            raise NotFoundError("Repo", repository)
        home = self._home(site, repository)
        if not home.is_dir():
            raise NotFoundError("Repo", repository)
        commit = self.branches(site, repository).get(revision, revision)
        try:
            if not _COMMIT.fullmatch(commit):
                raise FileNotFoundError
            entries = json.loads((home / "commits" / f"{commit}.json").read_text())
        except FileNotFoundError:
            raise NotFoundError("Revision", f"{repository}@{revision}") from None
        return Snapshot(repository, commit, {path: Entry(**entry) for path, entry in entries.items()})

    def branches(self, site: Site, repository: str) -> dict[str, str]:
        """Return branch -> commit."""
        refs = self._home(site, repository) / "refs"
        return {path.name: path.read_text() for path in refs.iterdir() if not path.name.startswith(".")}

    def gate(self, site: Site, repository: str, token: str) -> None:
        """From now on serve the repository only to requests with ``token``."""
        _write(self._home(site, repository) / "gate", hashlib.sha256(token.encode()).hexdigest())

    def admits(self, site: Site, repository: str, authorization: str | None) -> bool:
        """Return whether a request with this ``Authorization`` header may read the repository."""
        try:
            wanted = (self._home(site, repository) / "gate").read_text()
        except (FileNotFoundError, NotADirectoryError):
            return True
        token = (authorization or "").removeprefix("Bearer ")
        return hashlib.sha256(token.encode()).hexdigest() == wanted

    def object(self, sha256: str) -> Path:
        """Return the path of the bytes with this sha256; raises :class:`NotFoundError`."""
        path = self.root / "objects" / sha256
        if not (re.fullmatch(r"[0-9a-f]{64}", sha256) and path.is_file()):
            raise NotFoundError("Entry", sha256)
        return path

    def _home(self, site: Site, repository: str) -> Path:
        return self.root / "repositories" / site / repository

    def _keep(self, source: Path, sha256: str) -> None:
        """Copy the bytes of ``source`` in, unless they are there."""
        target = self.root / "objects" / sha256
        if target.is_file() and target.stat().st_size == source.stat().st_size:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(source, scratch)
        scratch.replace(target)


def _describe(path: Path, name: str) -> Entry:
    """Read a file once and return its entry."""
    size = path.stat().st_size
    sha256, oid = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            oid.update(block)
    return Entry(name, size, sha256.hexdigest(), oid.hexdigest())


def _write(path: Path, text: str) -> None:
    """Write ``text`` atomically; an equal file stays unchanged."""
    if path.is_file() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text)
    scratch.replace(path)

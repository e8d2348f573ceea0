"""The files of a model as listed by a source outside the fleet: the root of trust of a pull.

A proof is made once for all hosts (:mod:`.resolve`), is part of the request, and binds every source and every
other host: a file with another size or hash is refused, whoever sends it. As JSON::

{"by": "hub",                               # hub, mirror, manifest, bundle, hosts: its source
     "origin": "https://huggingface.co",        # where it was read
     "repository": "MiniMaxAI/MiniMax-M2.5", "revision": "<commit>",
     "resolver": "controller", "time": "2026-11-29T00:48:49Z",   # who asked, and when
     "files": [{"path": "config.json", "size": 612, "git_oid": "<sha1>"},
               {"path": "model-00001-of-00130.safetensors", "size": 1770000000, "sha256": "<sha256>"}]}

Hugging Face publishes a SHA-256 of large files and git's object id of small ones: SHA-1 over the length and
the bytes, for which nobody has found a way to make other bytes with a given id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any, Final

from minimax_metal.common.errors import UserError
from minimax_metal.common.text import one_line
from minimax_metal.host.weights.manifest import FOLDER, Entry, Manifest, entries

HUB, MIRROR, MANIFEST, BUNDLE, HOSTS = "hub", "mirror", "manifest", "bundle", "hosts"
_SAID_BY: Final = {
    HUB: "hub's hashes ({origin})",
    MIRROR: "mirror's own list ({origin})",
    MANIFEST: "manifest named by the user ({origin})",
    BUNDLE: "bundle's manifest, its signature verified ({origin})",
    HOSTS: "user's acceptance of what other hosts of the fleet list",
}

ACCEPT_UNHASHED: Final = "weights-unhashed"
"""Name of the acceptance: files without a published hash are accepted, and the manifest notes it."""

_DOCUMENTS: Final = frozenset(
    {".md", ".gitattributes", ".gitignore", ".pdf", ".png", ".jpg", ".jpeg", ".svg"}
)
_DOCUMENT_NAMES: Final = ("LICENSE", "NOTICE", "README")


def is_document(path: str) -> bool:
    """Return whether a file is for readers, not for the engine; hubs have their own versions of these."""
    name = PurePosixPath(path)
    suffix = name.suffix.lower() or name.name.lower()
    plain = suffix in {".txt", name.name.lower()}
    return suffix in _DOCUMENTS or (plain and name.name.upper().startswith(_DOCUMENT_NAMES))


@dataclass(frozen=True, slots=True)
class Proof:
    """One file list, and its source."""

    by: str
    origin: str
    resolver: str
    time: str
    files: tuple[Entry, ...]
    repository: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        said = _SAID_BY[self.by].format(origin=self.origin)
        return f"{said}, resolved by {self.resolver} at {self.time}"

    @property
    def unhashed(self) -> tuple[str, ...]:
        """Files for which it has no hash."""
        return tuple(entry.path for entry in self.files if entry.sha256 is None and entry.git_oid is None)

    @property
    def about(self) -> dict[str, Any]:
        """The part that a manifest and a release record keep: all but the files."""
        return {
            "by": self.by,
            "origin": self.origin,
            "repository": self.repository,
            "revision": self.revision,
            "resolver": self.resolver,
            "time": self.time,
            "text": str(self),
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        files = [
            {"path": entry.path, "size": entry.size}
            | ({"sha256": entry.sha256} if entry.sha256 else {})
            | ({"git_oid": entry.git_oid} if entry.git_oid else {})
            for entry in sorted(self.files, key=lambda entry: entry.path)
        ]
        about = {key: value for key, value in self.about.items() if key != "text"}
        return {**about, "files": files}

    @classmethod
    def parse(cls, raw: Any) -> Proof:
        """Parse the JSON form.

        Raises:
            UserError: it is not a proof.
        """
        try:
            texts = {key: raw[key] for key in ("by", "origin", "resolver", "time")}
            known = {key: raw.get(key) for key in ("repository", "revision")}
            files = tuple(replace(entry, stated=entry.sha256 is not None) for entry in entries(raw["files"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"the list of the model's files can't be read ({type(error).__name__}: "
                f"{one_line(str(error), 200)}); run playbooks/weights.yml again"
            ) from error
        for key, value in (texts | known).items():
            if (value is not None or key in texts) and (
                not isinstance(value, str) or one_line(value) != value
            ):
                raise UserError("the list of the model's files contains control characters")
        if texts["by"] not in _SAID_BY or not files:
            raise UserError(
                f"the list of the model's files is by {one_line(repr(texts['by']), 80)} with "
                f"{len(files)} files; expected one of {', '.join(_SAID_BY)}, and at least one file"
            )
        return cls(**texts, **known, files=files)


def now() -> str:
    """Return the current time in the records' format."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def named(
    raw: Any,
    file: str,
    time: str,
    *,
    repository: str | None,
    revision: str | None,
    resolver: str = "controller",
) -> Proof:
    """Parse a manifest file that the user named: ours, a bundle's, a proof, or Hugging Face's answer.

    Args:
        raw: the file's JSON.
        file: its path, for messages.
        time: when it was last changed.
        repository, revision: what it must be about, if it says so.
        resolver: who reads it.

    Raises:
        UserError: it is none of these, or about another revision.
    """
    try:
        if isinstance(raw, Mapping) and "siblings" in raw:
            found = _siblings(raw)
            about = raw.get("sha")
        elif isinstance(raw, Mapping) and "by" in raw:
            proof = Proof.parse(raw)
            found, about = proof.files, proof.revision
        elif isinstance(raw, Mapping) and "contents" in raw:
            found, about = _of_bundle(raw, f"weights/{repository}/{revision}/"), revision
        else:
            manifest = Manifest.parse(raw)
            found, about = manifest.files, manifest.revision
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"found {file} that is not a manifest ({type(error).__name__}: {one_line(str(error), 200)}); "
            "expected the output of 'metal weights manifest DIRECTORY', a .minimax-metal/manifest.json, or "
            "the answer of https://huggingface.co/api/models/ID/revision/COMMIT?blobs=true"
        ) from error
    if _is_id(revision) and _is_id(about) and revision != about:
        raise UserError(
            f"found {file} for revision {about}, expected {revision}; name the manifest of that revision, or "
            "set metal_model_revision"
        )
    if not found:
        raise UserError(f"found no file in {file}, expected the files of the model; write it again")
    files = tuple(replace(entry, stated=entry.sha256 is not None) for entry in found)
    return Proof(MANIFEST, file, resolver, time, files, repository, revision)


def _is_id(revision: Any) -> bool:
    return isinstance(revision, str) and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", revision) is not None


def _siblings(raw: Any) -> tuple[Entry, ...]:
    """Parse the files from Hugging Face's API (``blobs=true``)."""
    files = []
    for file in raw["siblings"]:
        lfs = file.get("lfs")
        hashed = {"size": lfs["size"], "sha256": lfs["sha256"]} if lfs else {}
        files.append({"size": file.get("size"), "git_oid": None if lfs else file.get("blobId"), **hashed})
        files[-1]["path"] = file["rfilename"]
    return entries(files)


def _of_bundle(raw: Mapping[str, Any], base: str) -> tuple[Entry, ...]:
    """Return the files of a model in a bundle, from the bundle's own manifest."""
    return entries(
        [
            {"path": file["path"].removeprefix(base), "size": file["size"], "sha256": file["sha256"]}
            for file in raw["files"]
            if file["path"].startswith(base) and not file["path"].startswith(f"{base}{FOLDER}/")
        ]
    )


def differences(wanted: Sequence[Entry], found: Sequence[Entry]) -> dict[str, str]:
    """Return path -> difference, for every file that ``found`` lacks or lists differently."""
    there = {entry.path: entry for entry in found}
    wrong = {}
    for entry in wanted:
        other = there.get(entry.path)
        if other is None:
            wrong[entry.path] = "not there"
        elif other.size != entry.size:
            wrong[entry.path] = f"{other.size} bytes, expected {entry.size}"
        elif entry.sha256 and other.sha256 and other.sha256 != entry.sha256:
            wrong[entry.path] = f"sha256 {other.sha256[:12]}…, expected {entry.sha256[:12]}…"
        elif entry.git_oid and other.git_oid and other.git_oid != entry.git_oid:
            wrong[entry.path] = f"git id {other.git_oid[:12]}…, expected {entry.git_oid[:12]}…"
    return wrong

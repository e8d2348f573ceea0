"""A source bound to the proof of a pull: its list is compared first, its bytes are hashed later."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.manifest import Entry
from minimax_metal.host.weights.proof import (
    ACCEPT_UNHASHED,
    HOSTS,
    HUB,
    MIRROR,
    Proof,
    differences,
    is_document,
    now,
)
from minimax_metal.host.weights.request import (
    DIRECTORY,
    HTTP,
    HUBS,
    HUGGINGFACE,
    MODELSCOPE,
    Source,
    is_commit,
)
from minimax_metal.host.weights.sources import DEFAULT_ENDPOINTS, Listing, Origin, _endpoint
from minimax_metal.host.weights.web import Body

WHAT_TO_DO: Final = (
    "give the fleet a list of the files from outside it: let the controller reach the hub, or set "
    "model_weights_manifest to a file that 'metal weights manifest DIRECTORY' wrote; or accept them "
    "as they are with model_weights_accept_unhashed"
)


def authority(source: Source) -> tuple[str, str]:
    """Return who vouches when a source lists its files (:data:`HUB`, :data:`MIRROR`), and its address.

    A hub is its publisher's own address over HTTPS; any other address is a mirror.
    """
    if source.kind == DIRECTORY:
        return MIRROR, str(source)
    if source.kind == HTTP:
        return MIRROR, str(source.endpoint)
    endpoint = _endpoint(source)
    own = source.kind in {HUGGINGFACE, MODELSCOPE} and endpoint == DEFAULT_ENDPOINTS[source.kind][1]
    return (HUB if own else MIRROR), endpoint


@dataclass
class Bound:
    """A source, and the expected files.

    Args:
        origin: the source, opened.
        source: the same, as in the request.
        proof: the expected files; None if no source outside the fleet listed them.
        accept_unhashed: accept files without a published hash.
        note: called with one line for people.
    """

    origin: Origin
    source: Source
    proof: Proof | None = None
    accept_unhashed: bool = False
    note: Callable[[str], None] = lambda _: None
    by: str | None = field(default=None, init=False)
    listed: tuple[Entry, ...] = field(default=(), init=False)

    def list(self) -> Listing:
        """Return the files as listed in the proof.

        Raises:
            SourceError: the source does not answer, or has other files.
        """
        if self.proof is None and self.source.kind in HUBS and not is_commit(self.source.revision):
            branch = self.source.revision or "its default branch"
            self.note(
                f"{self.source} is asked for {branch}: a branch may change, and no other source "
                "lists its files"
            )
        return self.bind(self.origin.list(), str(self.source))

    def bind(self, listing: Listing, where: str) -> Listing:
        """Return the expected files, out of those that ``where`` lists.

        Raises:
            SourceError: files are missing there or differ, or no source publishes their hashes.
        """
        files = listing.files
        if self.proof is not None:
            files = self._of_proof(self.proof, listing, where)
        unhashed = [entry.path for entry in files if entry.sha256 is None and entry.git_oid is None]
        # The user vouches for a directory that they named; it is judged by its files' contents.
        own_word = self.proof is None and self.source.kind == DIRECTORY
        if unhashed and not self.accept_unhashed and not own_word:
            raise SourceError(
                f"{where}: no source publishes a hash of {len(unhashed)} file(s), e.g. "
                f"{unhashed[0]}; {WHAT_TO_DO}",
                permanent=True,
            )
        self.listed = files
        return Listing(
            files, listing.revision if self.proof is None else self.proof.revision or listing.revision
        )

    def _of_proof(self, proof: Proof, listing: Listing, where: str) -> tuple[Entry, ...]:
        wrong = differences(proof.files, listing.files)
        fatal = {path: why for path, why in wrong.items() if not is_document(path)}
        if fatal:
            path, why = next(iter(sorted(fatal.items())))
            raise SourceError(
                f"{where} has other files than listed: {path}: {why}"
                + (f", and {len(fatal) - 1} more" if len(fatal) > 1 else "")
                + f"; listed by {proof}",
                permanent=True,
            )
        if wrong:
            some = ", ".join(sorted(wrong)[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
            self.note(f"{where} has a different text in {some}: left out, the engine does not read it")
        return tuple(entry for entry in proof.files if entry.path not in wrong)

    def open(
        self, entry: Entry, offset: int, end: int | None = None
    ) -> contextlib.AbstractContextManager[Body]:
        """Open one file at an offset."""
        return self.origin.open(entry, offset, end)

    def identity(self, entry: Entry) -> str | None:
        """Return the hash that identifies a file, else the source's identifier."""
        return entry.sha256 or entry.git_oid or self.origin.identity(entry)

    def shared_identity(self, entry: Entry) -> str | None:
        """Return the identifier under which other hosts know a file; None for one that is not shared."""
        hashed = entry.sha256 or entry.git_oid
        return hashed or (self.origin.identity(entry) if self.accept_unhashed else None)

    def record(self) -> Mapping[str, Any]:
        """Return what the manifest notes: the source of the file list, and what was accepted."""
        unhashed = [entry.path for entry in self.listed if entry.sha256 is None and entry.git_oid is None]
        if self.proof is not None:
            about = self.proof.about
        else:
            by, origin = authority(self.source)
            proof = Proof(
                self.by or by,
                origin,
                socket.gethostname(),
                now(),
                (),
                self.source.repository,
                self.source.revision,
            )
            about = proof.about
            if self.source.kind == DIRECTORY and unhashed and self.by != HOSTS:
                about["text"] = (
                    f"files of {origin} as found there, without hashes, read by {proof.resolver} at "
                    f"{proof.time}"
                )
        if not unhashed:
            return about
        accepted = {"accepted": [ACCEPT_UNHASHED]} if self.accept_unhashed else {}
        return {**about, **accepted, "unhashed": sorted(unhashed)}

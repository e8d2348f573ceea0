"""The file list of other hosts, if this one can't reach the source."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.host.weights import share_keys as keys
from minimax_metal.host.weights.bound import WHAT_TO_DO
from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.manifest import MOST_BYTES, Entry
from minimax_metal.host.weights.proof import HOSTS
from minimax_metal.host.weights.share.peers import AbsentError, Line, PeerError
from minimax_metal.host.weights.share_log import ANNOUNCED, LISTING, Reader, parse_listing
from minimax_metal.host.weights.sources import Listing

if TYPE_CHECKING:
    from minimax_metal.host.weights.share.swarm import SharedAttempt

ALONE: Final = 20.0
"""Seconds after which a host that can't reach the origin gives up if nobody has what it lacks."""


class ListingOfOthers:
    """Asks the other hosts for their file list, and checks it against the proof."""

    def __init__(self, attempt: SharedAttempt) -> None:
        self.attempt = attempt

    def ask(self, error: SourceError) -> Listing:
        """Return the files that another host pulls, checked against the proof of this pull.

        Raises:
            SourceError: there is no proof, so that another host would define the model; or nobody has a list.
        """
        it = self.attempt
        if it.origin.proof is None and not it.origin.accept_unhashed:
            raise SourceError(
                f"{error}; the other hosts are not asked instead: their list of the model's files is "
                f"not proved; {WHAT_TO_DO}",
                permanent=error.permanent,
            )
        begun = time.monotonic()
        lines = [Line(peer, it.secrets, stall=5.0) for peer in it.share.peers]
        said = False
        try:
            while True:
                hope = False
                for line in lines:
                    found, able = _ask_for_listing(line, it.secrets)
                    hope = hope or able
                    if found is not None and (listing := self._bound(line.peer.name, *found)) is not None:
                        it.say("note", text=f"{error}; {line.peer.name} has it")
                        return listing
                waited = time.monotonic() - begun
                if waited > (it.patience if hope else min(ALONE, it.patience)):
                    raise error
                if not said:
                    it.say("note", text=f"{error}; waiting for another host that has it")
                    said = True
                it.halted.wait(1.0)
        finally:
            for line in lines:
                line.close()

    def _bound(
        self, name: str, files: list[tuple[Entry, str | None]], revision: str | None
    ) -> Listing | None:
        """Return a host's list, checked against the proof; None if it does not match."""
        it = self.attempt
        try:
            listing = it.origin.bind(Listing(tuple(entry for entry, _ in files), revision), name)
        except SourceError as error:
            if name not in it.refused:
                it.refused.add(name)
                it.say("note", text=str(error))
            return None
        if it.origin.proof is None:
            it.origin.by = HOSTS
        said = {entry.path: identity for entry, identity in files}
        it.identities = {
            entry.path: entry.sha256 or entry.git_oid or said.get(entry.path) for entry in listing.files
        }
        return listing


def _ask_for_listing(
    line: Line, secrets: Sequence[str]
) -> tuple[tuple[list[tuple[Entry, str | None]], str | None] | None, bool]:
    """Return a host's list, or None, and whether it may still get one."""
    name = line.peer.name
    try:
        log = line.get("/log", 0, MOST_BYTES)
    except AbsentError:
        try:
            return _parsed(secrets, ANNOUNCED, name, line.get("/manifest", 0, MOST_BYTES).content), True
        except PeerError:
            return None, False
    except PeerError:
        return None, False
    able, said = False, Reader(name, secrets).feed(log.content, 0) or []
    for word in said:
        if isinstance(word, Mapping):
            able = True
        elif word[:1] == ["origin"]:
            able = word[1:] == [True]
    try:
        return _parsed(secrets, LISTING, name, line.get("/listing", 0, MOST_BYTES).content), able
    except PeerError:
        return None, able


def _parsed(
    secrets: Sequence[str], kind: str, name: str, content: bytes
) -> tuple[list[tuple[Entry, str | None]], str | None] | None:
    """Return a sealed list; None if it is not sealed by that host, or is not a list."""
    try:
        return parse_listing(read_json(keys.unseal(secrets, kind, name, content)))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, UserError):
        return None

"""Listen to the other hosts: each one's log is read as it grows, and its announcements go to the board."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.host.weights import share_keys as keys
from minimax_metal.host.weights.manifest import MOST_BYTES, Entry
from minimax_metal.host.weights.share.board import WINDOW, Board, Claim, Piece
from minimax_metal.host.weights.share.peers import AbsentError, DeniedError, Line, PeerError
from minimax_metal.host.weights.share_log import ANNOUNCED, FAINT, Reader, parse_listing
from minimax_metal.host.weights.share_settings import Peer, Share

FAILURES: Final = 2
"""Consecutive checks without an answer after which a host counts as lost."""
SELDOM: Final = 5.0
"""Seconds between two checks of a host that has everything, or that does not let this one in."""
LOG_BYTES: Final = 8 << 20
"""Maximum bytes of a log for a model without pieces; a host that writes more is left out."""
PIECE_BYTES: Final = 4 << 10
"""Additional bytes per piece: a claim, an announcement, and a few repeated ones, make about 1 kB."""
_SHA256: Final = re.compile("[0-9a-f]{64}")


def whole(value: Any, most: int = 1 << 31) -> int:
    """Return another host's number if it is a whole one from 0 on; else raise ``ValueError``."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError("not a number within its bounds")
    return value


class Listener:
    """Reads one host's log for as long as it is wanted.

    Args:
        peer: the host.
        share: the settings of this host.
        secrets: the fleet's.
        board: where announcements go, under ``changed``.
        changed: lock of the board; all waiting threads are woken when there is news.
        cleared: called with pieces that were suspect here and match an announcement.
        note: called with one line for people.
        entries: path -> file and its key, to compare a finished host's manifest with.
    """

    def __init__(
        self,
        peer: Peer,
        share: Share,
        secrets: Sequence[str],
        board: Board,
        changed: threading.Condition,
        cleared: Callable[[Piece, str, str], None],
        note: Callable[[str], None],
        entries: Mapping[str, tuple[Entry, str]],
    ) -> None:
        self.peer, self.share, self.board, self.changed = peer, share, board, changed
        self.cleared, self.note, self.entries = cleared, note, entries
        self.secrets = secrets
        self.line = Line(peer, secrets, stall=5.0)
        self.reader = Reader(peer.name, secrets)
        self.most = LOG_BYTES + PIECE_BYTES * len(board.index)
        self.stop = threading.Event()
        self.greeted = threading.Event()
        """Set after the first check, whatever its result."""
        self.failures = 0
        self.denied = self.other_pieces = self.ended = self.strange = False
        self.thread = threading.Thread(target=self._run, name=f"listen-{peer.name}", daemon=True)

    def start(self) -> None:
        """Start."""
        self.thread.start()

    def _run(self) -> None:
        while not self.stop.is_set():
            pause = self._look()
            self.greeted.set()
            self.stop.wait(pause)
        self.line.close()

    def _look(self) -> float:
        """Check once; return the seconds until the next check."""
        poll = self.share.poll
        try:
            answer = self.line.get("/log", max(0, self.reader.offset - 1), self.most)
            if self.reader.offset > self.most:
                raise PeerError(f"{self.peer.name} sends more than {self.most} bytes")
        except AbsentError:
            self.reader.forget()
            return self._without_log()
        except PeerError as error:
            return self._unanswered(error)
        begun_anew = self.reader.offset == 0
        lines = self.reader.feed(answer.content, answer.begin)
        if lines is None:
            return poll
        if self.reader.strange:
            return self._strange()
        self.failures = 0
        age = answer.date - (self.reader.beat or 0.0)
        with self.changed:
            if begun_anew:
                self.board.reborn(self.peer.name)
            self.board.met(self.peer.name, pulling=True)
            cleared = self._hear(lines)
            if age > FAINT or self.ended or self.other_pieces:
                self.board.met(self.peer.name, pulling=False)
            if lines:
                self.changed.notify_all()
            plenty = len(self.board.available) > WINDOW
        for piece, sha256, reader in cleared:
            self.cleared(piece, sha256, reader)
        return 4 * poll if plenty else poll

    def _hear(self, lines: list[Any]) -> list[tuple[Piece, str, str]]:
        """Put lines of the log onto the board; return pieces that are no longer suspect here."""
        cleared = []
        name, now = self.peer.name, time.monotonic()
        for line in lines:
            try:
                if isinstance(line, dict):
                    if "boot" in line:
                        self.board.reborn(name)
                        self.ended = False
                        self.other_pieces = line.get("piece") != self.share.piece
                    continue
                kind, rest = line[0], line[1:]
                if kind == "end":
                    self.ended = True
                elif kind == "origin":
                    self.board.can_read(name, rest[0] is True)
                elif kind == "distrust":
                    self._told_of_distrust(str(rest[0]))
                elif kind == "file":
                    self.board.announced_whole(name, str(rest[0]))
                elif self.other_pieces:
                    continue  # another version cuts files into other pieces: whole files only
                elif kind == "claim":
                    first, last, generation = map(whole, rest[1:4])
                    claim = Claim(str(rest[0]), first, last, generation, False)
                    self.board.claimed(name, claim, now)
                elif kind == "drop":
                    self.board.dropped(name, str(rest[0]), whole(rest[1]), whole(rest[2]))
                elif kind == "have":
                    piece, sha256, reader = (str(rest[0]), whole(rest[1])), str(rest[2]), str(rest[4])
                    if _SHA256.fullmatch(sha256) is None:
                        continue
                    if self.board.announced(name, piece, sha256, whole(rest[3]), reader, now):
                        cleared.append((piece, sha256, reader))
            except (IndexError, TypeError, ValueError):
                continue
        return cleared

    def _told_of_distrust(self, whom: str) -> None:
        before = self.board.trusted
        self.board.distrusted(self.peer.name, whom)
        if before and not self.board.trusted:
            self.note(
                "other hosts receive different bytes from this host than it read; it leaves the "
                "source to them: check its memory and disk"
            )

    def _without_log(self) -> float:
        """Handle a host without a log: it has the model, or does not pull."""
        try:
            sealed = self.line.get("/manifest", 0, MOST_BYTES).content
            manifest = keys.unseal(self.secrets, ANNOUNCED, self.peer.name, sealed)
            files, _ = parse_listing(read_json(manifest))
        except keys.SealError:
            return self._strange()
        except AbsentError:
            with self.changed:
                self.board.reborn(self.peer.name)
                self.board.met(self.peer.name, pulling=False)
            return self.share.poll  # it is about to begin, and must be heard immediately
        except PeerError as error:
            return self._unanswered(error)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, UserError):
            return SELDOM
        held = [
            known[1]
            for found, _ in files
            if (known := self.entries.get(found.path)) is not None
            and known[0].size == found.size
            and (known[0].sha256 is None or known[0].sha256 == found.sha256)
            and (known[0].git_oid is None or found.git_oid in {None, known[0].git_oid})
        ]
        with self.changed:
            self.board.completed(self.peer.name, held)
            self.changed.notify_all()
        self.failures = 0
        return SELDOM

    def _strange(self) -> float:
        """Handle a server at the host's address that does not know the fleet's secret: it is ignored."""
        self.reader.forget()
        if not self.strange:
            self.note(
                f"the server at {self.peer.address} does not know the fleet's secret: "
                f"{self.peer.name} is left out; find out which machine has that address, or run the "
                "play on both"
            )
        self.strange = True
        with self.changed:
            self.board.lost(self.peer.name)
            self.changed.notify_all()
        return SELDOM

    def _unanswered(self, error: PeerError) -> float:
        self.failures += 1
        if isinstance(error, DeniedError):
            if not self.denied:
                self.note(str(error))
            self.denied = True
        if self.failures >= FAILURES:
            self.reader.forget()
            with self.changed:
                self.board.lost(self.peer.name)
                self.changed.notify_all()
        if self.denied:
            return SELDOM
        return max(0.2, self.share.poll)

"""One attempt at a source, shared with the other hosts of the fleet.

The board decides; here are the threads: some read claimed pieces from the origin, some take announced ones
from other hosts, one for each host listens to it, one shows that this pull is running.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from minimax_metal.host.weights.attempt import ATTEMPTS, Attempt, Journal
from minimax_metal.host.weights.bound import WHAT_TO_DO, Bound
from minimax_metal.host.weights.errors import SourceError, transport_error
from minimax_metal.host.weights.manifest import FOLDER, DamagedFileError, Entry
from minimax_metal.host.weights.share.board import Board, File, Piece
from minimax_metal.host.weights.share.listen import Listener
from minimax_metal.host.weights.share.listing import ALONE, ListingOfOthers
from minimax_metal.host.weights.share.origin import OriginReader
from minimax_metal.host.weights.share.pieces import PieceFile, key_of
from minimax_metal.host.weights.share.take import PieceTaker
from minimax_metal.host.weights.share_log import ANNOUNCED, PULSE, Log, announce, write_listing
from minimax_metal.host.weights.share_settings import Share
from minimax_metal.host.weights.sources import Listing

TAKERS: Final = 4
"""Pieces taken from other hosts in parallel."""
GREETING: Final = 3.0
"""Seconds for the others to answer for the first time, before this host reads what may be theirs."""
BARREN: Final = 3600.0
"""Seconds without a byte after which an attempt is given up, whatever others announce."""
BEREFT: Final = 600.0
"""The same if others had data before: they may be restarting, as for a new driver."""


@dataclass
class SharedAttempt(Attempt):
    """An attempt whose files arrive in pieces, from the origin and from other hosts.

    Args:
        share: the other hosts.
        secrets: the fleet's, the current one first.
        stall: seconds without a byte after which a connection is dropped.
    """

    origin: Bound
    share: Share = field(kw_only=True)
    secrets: tuple[str, ...] = field(kw_only=True, repr=False)
    stall: float = field(default=60.0, kw_only=True)
    failure: SourceError | None = None
    """The reason for the end of this attempt."""
    shut: SourceError | None = None
    """Why this host can't read the origin."""
    helped: bool = False
    """Whether another host ever delivered something."""
    most: int = 0
    """Maximum bytes on this host so far, without discarded ones."""
    identities: dict[str, str | None] = field(default_factory=dict)
    entries: dict[str, tuple[Entry, str]] = field(default_factory=dict)
    stores: dict[str, PieceFile] = field(default_factory=dict)
    done: dict[str, Entry] = field(default_factory=dict)
    damaged: dict[str, int] = field(default_factory=dict)
    finishing: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    """Hosts whose listing was refused."""
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.log = Log(self.staging, self.share.me, self.share.piece, self.secrets)
        self.board = Board(self.share.me, self.share.names, [])
        threading.Thread(target=self._pulse, name="pulse", daemon=True).start()

    def _pulse(self) -> None:
        while not self.halted.wait(PULSE):
            self.log.beat()

    def _run(self, name: str, source: Mapping[str, object]) -> str | None:
        """Download everything; the result is announced under the fleet's seal, beside the manifest."""
        revision = super()._run(name, source)
        announce(self.staging, self.staging / FOLDER / ANNOUNCED, self.share.me, self.secrets)
        return revision

    # The files to download

    def _listing(self) -> Listing:
        """Return the files of the model; from another host if the origin can't be reached here."""
        try:
            listing = super()._listing()
            self.identities = {entry.path: self.origin.shared_identity(entry) for entry in listing.files}
            unshared = [path for path, identity in self.identities.items() if identity is None]
            if unshared:
                self.say(
                    "note",
                    text=f"no source publishes a hash of {len(unshared)} files: not shared; {WHAT_TO_DO}",
                )
        except SourceError as error:
            if error.space:
                raise
            self.shut = error
            self.log.post(["origin", False])
            listing = ListingOfOthers(self).ask(error)
        files = [(entry, self.identities[entry.path]) for entry in listing.files]
        write_listing(self.staging, files, listing.revision, self.share.me, self.secrets)
        return listing

    def _still_missing(self, entry: Entry) -> int:
        identity = self.identities.get(entry.path)
        if identity is None or (self.staging / entry.path).exists():
            return super()._still_missing(entry)
        store = self._store(entry, identity)
        return entry.size - store.staged()

    def _store(self, entry: Entry, identity: str) -> PieceFile:
        key = key_of(identity, entry.path)
        if key not in self.stores:
            self.stores[key] = PieceFile(self.staging, identity, entry, self.share.piece)
        return self.stores[key]

    # The pull

    def _fetch_all(self, todo: list[Entry], journal: Journal) -> dict[str, Entry]:
        """Download the files together with the other hosts."""
        self.journal = journal
        with ThreadPoolExecutor(self.workers, thread_name_prefix="there") as pool:
            for entry, found in zip(
                todo, pool.map(lambda entry: self._there(entry, journal), todo), strict=True
            ):
                if found is not None:
                    self.done[entry.path] = found
        alone = [entry for entry in todo if self.identities.get(entry.path) is None]
        self._make_board(todo)
        self._recall()
        listeners: dict[str, Listener] = {}
        try:
            self._together(listeners)
        finally:
            self.halted.set()
            for listener in listeners.values():
                listener.stop.set()
            self.log.close()
        self.halted.clear()
        rest = [entry for entry in alone if entry.path not in self.done]
        return {**self.done, **(super()._fetch_all(rest, journal) if rest else {})}

    def _make_board(self, todo: list[Entry]) -> None:
        files = []
        wanted = {entry.path for entry in todo} - self.done.keys()
        for path, identity in self.identities.items():
            if identity is None:
                continue
            entry = self.listed[path]
            store = self._store(entry, identity)
            self.entries[path] = (entry, store.key)
            files.append(File(store.key, path, entry.size, store.pieces, entry.sha256))
        self.board = Board(
            self.share.me,
            self.share.names,
            files,
            cap=self.share.origin_hosts,
            workers=self.workers,
        )
        self.board.origin = self.shut is None
        for file in files:
            if file.path not in wanted:
                self.board.verified(file.key)
                self.log.post(["file", file.key])

    def _recall(self) -> None:
        """Use what an earlier attempt left."""
        stores = [store for key, store in self.stores.items() if key not in self.board.whole]
        counted = {store.key: store.staged() for store in stores}
        with ThreadPoolExecutor(self.workers, thread_name_prefix="recall") as pool:
            list(pool.map(lambda store: store.recall(self._read_again), stores))
        for store in stores:
            store.open()
            if store.entry.size == 0:
                store.keep(0, hashlib.sha256().hexdigest())
            self._lose(counted[store.key] - store.present())
            with self.changed:
                for number, sha256 in store.have.items():
                    self.board.have((store.key, number), sha256, self.share.me)
            self.log.post(
                *(
                    ["have", store.key, number, sha256, 0, self.share.me]
                    for number, sha256 in store.have.items()
                )
            )
            if store.advance():
                self._finish(store.key)

    def _together(self, listeners: dict[str, Listener]) -> None:
        """Run the threads until everything is verified."""
        if self.board.done():
            return
        self._listen(listeners)
        deadline = time.monotonic() + GREETING
        for listener in list(listeners.values()):
            listener.greeted.wait(max(0.0, deadline - time.monotonic()))
        with self.changed:
            silent = [name for name in sorted(listeners) if not self.board.others[name].alive]
        if silent:
            some = ", ".join(silent[:5]) + (f" and {len(silent) - 5} more" if len(silent) > 5 else "")
            self.say("note", text=f"continuing without {some}: no answer (TCP port {self.share.port})")
        reader, taker = OriginReader(self), PieceTaker(self)
        if self.shut is not None:
            reader.close(self.shut)
        threads = [
            threading.Thread(target=reader.work, name="origin", daemon=True) for _ in range(self.workers)
        ]
        threads += [threading.Thread(target=taker.work, name="take", daemon=True) for _ in range(TAKERS)]
        for thread in threads:
            thread.start()
        idle_since = barren_since = time.monotonic()
        self.most = self.have
        while True:
            with self.changed:
                if self.board.done() or self.failure is not None:
                    break
                self.changed.wait(1.0)
                hopeless = self.board.hopeless()
            self._listen(listeners)
            now = time.monotonic()
            grew = self._grew()
            if grew:
                barren_since = now
            if grew or not (hopeless or self.shut):
                idle_since = now
            if now - barren_since > max(BARREN, 2 * self.patience):
                self.fail(SourceError(f"no data for {now - barren_since:.0f} s, from any source or host"))
            if hopeless and now - idle_since > self._patience_when_hopeless():
                error = self.shut or SourceError("no other host has the missing pieces")
                # If others had it, they may have it again: worth another start of the unit.
                self.fail(SourceError(str(error), permanent=error.permanent and not self.helped))
        self.halted.set()
        with self.changed:
            self.changed.notify_all()
        for thread in threads:
            thread.join(timeout=2.0)
        if self.failure is not None:
            raise self.failure

    def _grew(self) -> bool:
        """Return whether more data is here than ever before.

        Only bytes that stay are progress. A host that sends one byte each time and closes the connection
        could do so forever; that byte is lost with the rest of its piece.
        """
        with self.lock:
            grew, self.most = self.have > self.most, max(self.have, self.most)
            return grew

    def _patience_when_hopeless(self) -> float:
        if not self.helped:
            return ALONE
        return BEREFT if self.shut is not None and self.shut.permanent else 3 * ALONE

    def _listen(self, listeners: dict[str, Listener]) -> None:
        """Listen to the hosts that matter."""
        with self.changed:
            wanted = set(self.board.watched())
        for peer in self.share.peers:
            if peer.name in wanted and peer.name not in listeners:
                listeners[peer.name] = Listener(
                    peer,
                    self.share,
                    self.secrets,
                    self.board,
                    self.changed,
                    self._cleared,
                    lambda text: self.say("note", text=text),
                    self.entries,
                )
                listeners[peer.name].start()
        for name in listeners.keys() - wanted:
            listeners.pop(name).stop.set()
            with self.changed:
                self.board.lost(name)

    def fail(self, error: SourceError) -> None:
        """End the attempt."""
        with self.changed:
            self.failure = self.failure or error
            self.changed.notify_all()

    # Pieces

    def keep(self, piece: Piece, sha256: str, reader: str, sender: str = "") -> None:
        """Note a correct piece, tell the others, finish a complete file."""
        store = self.stores[piece[0]]
        with self.changed:
            if piece in self.board.mine or piece[0] in self.board.whole:
                self.board.failed(piece)
                return
            store.keep(piece[1], sha256)
            self.board.have(piece, sha256, reader, sender)
            generation = self.board.generations.get(piece[0], 0)
            self.changed.notify_all()
        self.log.post(["have", piece[0], piece[1], sha256, generation, reader])
        if store.advance():
            self._finish(piece[0])

    def _cleared(self, piece: Piece, sha256: str, reader: str) -> None:
        """Handle an announcement of a suspect piece as it is on this host: nothing need be fetched."""
        with self.changed:
            if self.board.suspect.get(piece) != sha256 or piece in self.board.flight:
                return
        begin, end = self.stores[piece[0]].span(piece[1])
        self._lose(begin - end)
        self.keep(piece, sha256, reader)

    def _finish(self, key: str) -> None:
        """Check a file's bytes against its hash and give it its name."""
        store = self.stores[key]
        with self.changed:
            if key in self.finishing or key in self.board.whole:
                return
            self.finishing.add(key)
        try:
            found = store.finish(self.staging / store.entry.path)
        except DamagedFileError as error:
            self._dispute(store, error)
        except OSError as error:
            self.fail(transport_error("the staging directory", error))
        else:
            self._note(found, self.journal)
            store.close()
            with self.changed:
                self.done[store.entry.path] = found
                self.board.verified(key)
                self.changed.notify_all()
            self.log.post(["file", key])
        finally:
            with self.changed:
                self.finishing.discard(key)

    def _dispute(self, store: PieceFile, error: DamagedFileError) -> None:
        """Handle pieces that each match their announcement, but together are not the file."""
        with self.changed:
            lost = store.dispute()
            blamed = self.board.disputed(store.key)
            self.changed.notify_all()
        self._lose(lost)
        with self.lock:
            # Reading it again is progress; how often is limited by the hosts to blame.
            self.most = min(self.most, self.have)
        whose = f", as {' and '.join(blamed)} had it" if blamed else ""
        self.say("damaged", path=store.entry.path, reason=f"{error}{whose}")
        if not blamed:
            self.count_damage(store.entry.path, error)

    def count_damage(self, path: str, error: DamagedFileError) -> None:
        """Note that the origin's bytes of a file were wrong; after some times the source is given up."""
        with self.changed:
            times = self.damaged[path] = self.damaged.get(path, 0) + 1
        if times >= ATTEMPTS:
            self.fail(SourceError(f"{error}, {times} times in a row", permanent=True))

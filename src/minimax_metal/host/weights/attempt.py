"""One attempt to download all files from one source into a staging directory.

It reports its progress as events, one line of JSON each (:mod:`minimax_metal.host.weights.fetch` lists them).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.files import read_bounded
from minimax_metal.host.weights.bound import Bound
from minimax_metal.host.weights.errors import SourceError, transport_error
from minimax_metal.host.weights.examine import Expected, examine
from minimax_metal.host.weights.manifest import (
    FOLDER,
    DamagedFileError,
    Entry,
    Manifest,
    missing_from_index,
    sync,
    verify,
)
from minimax_metal.host.weights.pacing import Gate, Throttle
from minimax_metal.host.weights.part import Part
from minimax_metal.host.weights.sources import ACCEPT_UNPROVED, Listing, Origin
from minimax_metal.host.weights.web import Body

ATTEMPTS: Final = 3
"""Times a file may have wrong bytes before its source is given up."""
RETRIES: Final = 2
"""Consecutive attempts at one file without any new bytes, within one attempt at a source."""
LEAST: Final = 64 << 10
"""New bytes of a file, or all that were missing, without which a connection counts as fruitless: otherwise a
source that sends a few bytes each time would be tried forever.
"""

JOURNAL: Final = "verified.jsonl"


JOURNAL_BYTES: Final = 256 << 20
"""Maximum bytes of a journal: one line of about 200 bytes for each verified file."""


@dataclass
class Journal:
    """Which staged files were verified and flushed, so that a resumed pull reads none of them again.

    A line is valid while the file's size and modification time are unchanged; no clock is used.
    """

    file: Path
    lines: dict[str, dict[str, Any]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, staging: Path) -> Journal:
        """Read the journal of a staging directory; lines cut off by a crash are dropped."""
        journal = cls(staging / FOLDER / JOURNAL)
        if journal.file.exists():
            content = read_bounded(journal.file, JOURNAL_BYTES)
            for text in filter(None, content.split(b"\n")):
                try:
                    line = read_json(text)
                    journal.lines[line["path"]] = line
                except (ValueError, KeyError, TypeError):
                    continue
            if not content.endswith(b"\n"):
                # The next line must not be appended to one that a crash cut off.
                with suppress(OSError), journal.file.open("ab") as file:
                    file.write(b"\n")
        return journal

    def knows(self, staging: Path, entry: Entry) -> Entry | None:
        """Return the verified entry if the staged file is still the one that was verified."""
        line = self.lines.get(entry.path)
        if line is None:
            return None
        try:
            status = (staging / entry.path).lstat()
        except OSError:
            return None
        if (line.get("size"), line.get("mtime")) != (status.st_size, status.st_mtime_ns):
            return None
        if status.st_size != entry.size:
            return None
        sha256 = line.get("sha256")
        if not isinstance(sha256, str) or (entry.sha256 is not None and sha256 != entry.sha256):
            return None
        # A file verified by its hash needs no git id; one that this source knows only by git id does.
        if entry.sha256 is None and line.get("git_oid") != entry.git_oid:
            return None
        return Entry(entry.path, entry.size, sha256, entry.stated, entry.git_oid)

    def add(self, staging: Path, entry: Entry) -> None:
        """Note a verified file; its bytes must already be on the disk."""
        line = {
            "path": entry.path,
            "size": entry.size,
            "mtime": (staging / entry.path).lstat().st_mtime_ns,
            "sha256": entry.sha256,
            "git_oid": entry.git_oid,
        }
        with self.lock, self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


@dataclass
class Attempt:
    """One run over the files of one source.

    Args:
        origin: the source.
        staging: where files are collected; partial ones in its :data:`FOLDER`.
        events: where events are written to.
        workers: parallel downloads.
        pause: seconds before a file is retried, doubled for each further attempt.
        patience: seconds to wait for a source that answers 429 or 503 before it is given up.
        rate: maximum bytes per second, all files together; 0 means no limit.
        expected: the catalogue's data on the model, for files without a published hash.
        accept_unproved: accept such files although they don't prove that they are the model.
    """

    origin: Origin
    staging: Path
    events: TextIO
    workers: int = 8
    pause: float = 1.0
    patience: float = 900.0
    rate: float = 0.0
    expected: Expected | None = None
    accept_unproved: bool = False
    have: int = 0
    fetched: int = 0
    from_peers: int = 0
    """Received bytes that other hosts of the fleet sent."""
    hashed: int = 0
    failures: int = 0
    """Files given up in a row without any new bytes."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    halted: threading.Event = field(default_factory=threading.Event)
    served: float = field(default_factory=time.monotonic)
    """When the source last sent a byte, or the attempt began."""

    def __post_init__(self) -> None:
        self.gate = Gate(self.pause)
        self.throttle = Throttle(self.rate)
        self.listed: dict[str, Entry] = {}
        self.versions: dict[str, str] = {}
        """The source's identifier for each file's bytes at its first answer."""

    def say(self, event: str, **fields: Any) -> None:
        """Write one event."""
        with self.lock:
            self.events.write(json.dumps({"event": event, **fields}) + "\n")
            self.events.flush()

    def run(self, name: str, source: Mapping[str, Any]) -> bool:
        """Download and verify everything; return whether the manifest was written."""
        try:
            with self._heartbeat():
                revision = self._run(name, source)
        except SourceError as error:
            self.say("failed", reason=str(error), permanent=error.permanent, space=error.space)
            return False
        except (DamagedFileError, UserError) as error:
            self.say("failed", reason=str(error), permanent=True, space=False)
            return False
        except OSError as error:
            failure = transport_error("the staging directory", error)
            self.say("failed", reason=str(failure), permanent=True, space=failure.space)
            return False
        self.say("done", revision=revision, fetched=self.fetched, peers=self.from_peers)
        return True

    def _run(self, name: str, source: Mapping[str, Any]) -> str | None:
        listing = self._listing()
        if not listing.files:
            raise SourceError("the source lists no file", permanent=True)
        self.listed = {entry.path: entry for entry in listing.files}
        journal = Journal.open(self.staging)
        known = [journal.knows(self.staging, entry) for entry in listing.files]
        todo = [entry for entry, seen in zip(listing.files, known, strict=True) if seen is None]
        total = sum(entry.size for entry in listing.files)
        needed = sum(self._still_missing(entry) for entry in todo)
        self.have = total - needed
        self.say("listed", revision=listing.revision, files=len(listing.files), bytes=total, needed=needed)
        done = {entry.path: entry for entry in known if entry is not None}
        done.update(self._fetch_all(todo, journal))
        absent = missing_from_index(self.staging, done)
        if absent:
            raise SourceError(
                f"the source lacks {len(absent)} file(s) that its index names, e.g. {absent[0]}",
                permanent=True,
            )
        record = self.origin.record() if isinstance(self.origin, Bound) else {}
        proved = self._prove(listing)
        accepted = [*record.get("accepted", []), *proved.get("accepted", [])]
        record = {**record, **proved} | ({"accepted": accepted} if accepted else {})
        Manifest(name, listing.revision, source, tuple(done.values()), record).write(self.staging)
        return listing.revision

    def _prove(self, listing: Listing) -> dict[str, Any]:
        """Verify files without a published hash by their own contents; return what the manifest notes of it.

        Raises:
            SourceError: a file is not as it should be, and this was not accepted.
        """
        if all(entry.sha256 or entry.git_oid for entry in listing.files):
            return {}
        found = examine(self.staging, self.expected, {entry.path for entry in listing.files})
        if found.ok:
            return {"examined": f"{len(found.files)} files, {found.tensors} tensors, {found.bytes} bytes"}
        if not self.accept_unproved:
            raise SourceError(
                f"the files fetched are not proved to be the model: {found.line()}; use another "
                "source, or accept it as it is with model_weights_accept_unproved",
                permanent=True,
            )
        self.say("note", text=f"accepted by {ACCEPT_UNPROVED}: {found.line()}")
        return {"accepted": [ACCEPT_UNPROVED], "problems": [str(problem) for problem in found.problems[:100]]}

    def _listing(self) -> Listing:
        """Return the files of the model."""
        return self._patiently(self.origin.list)

    def _patiently(self, ask: Callable[[], Listing]) -> Listing:
        """Call until it answers; a source that asks to wait gets the time."""
        tries = 0
        while True:
            try:
                answer = ask()
                self.gate.passed()
                return answer
            except SourceError as error:
                if error.busy:
                    self._be_patient(error)
                    continue
                tries += 1
                if error.permanent or tries >= RETRIES:
                    raise
                self.halted.wait(self.pause * 2 ** (tries - 1))

    def _be_patient(self, error: SourceError) -> None:
        """Wait as long as a busy source asks, or raise if that exceeds this pull's patience."""
        pause = self.gate.refused(error.after)
        waited = time.monotonic() - self.served
        if waited + pause > self.patience:
            raise SourceError(
                f"{error}, and asks to wait another {pause:.0f} s after {waited:.0f} s without a byte"
            ) from error
        self.say("waiting", seconds=round(pause, 1), reason=str(error))
        self.gate.wait(self.halted)

    def _still_missing(self, entry: Entry) -> int:
        """Return a file's bytes that are not staged yet."""
        with suppress(OSError):
            if (self.staging / entry.path).stat().st_size == entry.size:
                return 0
        return entry.size - Part.staged(self.staging, self.origin.identity(entry), entry)

    def _fetch_all(self, todo: list[Entry], journal: Journal) -> dict[str, Entry]:
        """Download the files in parallel.

        After a failure that a retry may fix, the other files are finished first: they may work. As many such
        failures as there are workers, without a byte between them, or any other failure, end the attempt.
        """
        done: dict[str, Entry] = {}
        failure: SourceError | None = None
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="fetch")
        # Largest first, so that the last to finish is small.
        futures = [
            pool.submit(self._one, entry, journal) for entry in sorted(todo, key=lambda entry: -entry.size)
        ]
        for future in as_completed(futures):
            try:
                entry = future.result()
            except SourceError as error:
                failure = failure or error
                self.failures += 1
                if error.permanent or self.failures >= self.workers:
                    self.halted.set()
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
                continue
            done[entry.path] = entry
        pool.shutdown()
        if failure is not None:
            raise failure
        return done

    def _one(self, entry: Entry, journal: Journal) -> Entry:
        """Download one file until it is verified, flushed and noted."""
        try:
            return self._there(entry, journal) or self._note(
                self._fetch(entry, self.staging / entry.path), journal
            )
        except OSError as error:
            raise transport_error("the staging directory", error) from error

    def _there(self, entry: Entry, journal: Journal) -> Entry | None:
        """Verify a file that existed before this attempt, but was not noted; None if it is missing or wrong.

        An older pull may have left it, or it is from a damaged directory.
        """
        target = self.staging / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            return None
        try:
            found = verify(self.staging, entry, self._read_again)
            sync(target)
            return self._note(found, journal)
        except DamagedFileError:
            target.unlink()
            self._lose(entry.size)
            return None

    def _fetch(self, entry: Entry, target: Path) -> Entry:
        """Receive one file, with as many connections as needed; each continues where the last one ended."""
        damaged = fruitless = 0
        while True:
            with Part.open(self.staging, self.origin.identity(entry), entry) as part:
                lost = part.recall(self._read_again)
                self._lose(lost)
                while part.offset < entry.size:
                    if self.halted.is_set():
                        raise SourceError("stopped because another file failed")
                    before = part.offset
                    try:
                        self.gate.wait(self.halted)
                        self._receive(entry, part)
                    except SourceError as error:
                        if error.permanent:
                            raise
                        fruitless = 0 if part.offset - before >= LEAST else fruitless
                        if error.busy:
                            self._be_patient(error)
                            continue
                        fruitless += 1
                        if fruitless >= RETRIES:
                            raise
                        self.say("retry", path=entry.path, reason=str(error), offset=part.offset)
                        self.halted.wait(self.pause * 2 ** (fruitless - 1))
                try:
                    found = part.finish(target)
                except DamagedFileError as error:
                    self._lose(part.offset)
                    part.discard()
                    damaged += 1
                    self.say("damaged", path=entry.path, reason=str(error))
                    if damaged >= ATTEMPTS:
                        raise SourceError(f"{error}, {damaged} times in a row", permanent=True) from error
                    self.halted.wait(self.pause * 2 ** (damaged - 1))
                    continue
                return found

    def _receive(self, entry: Entry, part: Part) -> None:
        """Receive the rest of a file from one connection; raise :class:`SourceError` if it ends too early."""
        with self.origin.open(entry, part.offset) as body:
            self.gate.passed()
            if body.total is not None and body.total != entry.size:
                raise SourceError(f"{entry.path} has {body.total} bytes at the source, expected {entry.size}")
            self._same_version(entry, part, body)
            position = body.start
            for block in body.blocks:
                if self.halted.is_set():
                    raise SourceError("stopped because another file failed")
                self.served = time.monotonic()
                self.throttle.take(len(block))
                with self.lock:
                    self.fetched += len(block)
                # Some mirrors send the whole file for any range: existing bytes are skipped.
                news = block[max(0, part.offset - position) :]
                position += len(block)
                if position > entry.size:
                    raise SourceError(
                        f"{entry.path} is longer at the source than the {entry.size} bytes expected"
                    )
                if news:
                    part.write(news)
                    with self.lock:
                        self.have += len(news)
                        self.failures = 0
        if part.offset < entry.size:
            raise SourceError(
                f"the connection ended after {part.offset} of {entry.size} bytes of {entry.path}"
            )

    def _same_version(self, entry: Entry, part: Part, body: Body) -> None:
        """Restart a file without a published hash if it has changed at the source."""
        if entry.sha256 or entry.git_oid or body.version is None:
            return
        before = self.versions.setdefault(entry.path, body.version)
        if before != body.version and part.offset:
            self.versions[entry.path] = body.version
            self._lose(part.offset)
            part.restart()
            raise SourceError(f"{entry.path} changed at the source while it was read; starting it again")

    def _note(self, found: Entry, journal: Journal) -> Entry:
        journal.add(self.staging, found)
        self.say("verified", path=found.path, size=found.size)
        return found

    def _read_again(self, size: int) -> None:
        with self.lock:
            self.hashed += size

    def _lose(self, size: int) -> None:
        with self.lock:
            self.have -= size

    @contextmanager
    def _heartbeat(self) -> Iterator[None]:
        """Report every second how much has arrived, if that changed."""
        ended = threading.Event()

        said: tuple[int, ...] = ()

        def tell() -> None:
            nonlocal said
            with self.lock:
                now = (self.have, self.fetched, self.hashed, self.from_peers)
            if now != said:
                said = now
                self.say("progress", have=now[0], fetched=now[1], hashed=now[2], peers=now[3])

        def beat() -> None:
            while not ended.wait(1.0):
                tell()

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            tell()  # bytes of the last second count for the source, too
            raise
        finally:
            ended.set()
            thread.join()

"""One attempt to bring every file of one source to a staging directory, as a process of its own.

``python -m minimax_metal.artefacts.fetch`` reads a job (one line of JSON) from standard input and writes
events, a line of JSON each, to standard output. A process, because hub clients read their environment when
imported, and because the parent can end one that hangs and lose nothing but the files in flight. It ends by
itself when its standard input is closed: no download outlives the pull that asked for it.

Events: ``listed`` (revision, files, bytes, needed: bytes still to be fetched), ``hashed`` (bytes, in total),
``verified`` (path, size), ``damaged`` (path, reason: fetched again), ``failed`` (reason, permanent, space),
``done`` (the manifest is written in the staging directory).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

from minimax_metal.artefacts.manifest import (
    FOLDER,
    DamagedFileError,
    Entry,
    Manifest,
    missing_from_index,
    sync,
    verify,
)
from minimax_metal.artefacts.request import Source
from minimax_metal.artefacts.sources import Origin, SourceError, one_line, open_source
from minimax_metal.errors import UserError

ATTEMPTS: Final = 3
"""Tries of one file within one attempt at a source."""

JOURNAL: Final = "verified.jsonl"


@dataclass
class Journal:
    """Which staged files were verified and flushed, so that a resumed pull reads none of them again.

    A line counts while size and modification time of the file are what they were.
    """

    file: Path
    lines: dict[str, dict[str, Any]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, staging: Path) -> Journal:
        """Read the journal of a staging directory; lines cut off by a crash are dropped."""
        journal = cls(staging / FOLDER / JOURNAL)
        if journal.file.exists():
            for text in journal.file.read_text(encoding="utf-8").splitlines():
                try:
                    line = json.loads(text)
                    journal.lines[line["path"]] = line
                except (ValueError, KeyError, TypeError):
                    continue
        return journal

    def knows(self, staging: Path, entry: Entry) -> Entry | None:
        """Return the verified entry when the staged file is still the one that was verified."""
        line = self.lines.get(entry.path)
        if line is None:
            return None
        try:
            status = (staging / entry.path).stat()
        except OSError:
            return None
        if (line.get("size"), line.get("mtime")) != (status.st_size, status.st_mtime_ns):
            return None
        if status.st_size != entry.size or line.get("git_oid") != entry.git_oid:
            return None
        sha256 = line.get("sha256")
        if not isinstance(sha256, str) or (entry.sha256 is not None and sha256 != entry.sha256):
            return None
        return Entry(entry.path, entry.size, sha256, entry.stated, entry.git_oid)

    def add(self, staging: Path, entry: Entry) -> None:
        """Note a verified file; its bytes must be on the disk by now."""
        line = {
            "path": entry.path,
            "size": entry.size,
            "mtime": (staging / entry.path).stat().st_mtime_ns,
            "sha256": entry.sha256,
            "git_oid": entry.git_oid,
        }
        with self.lock, self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


@dataclass
class Attempt:
    """One run over the files of one source."""

    origin: Origin
    staging: Path
    events: TextIO
    workers: int = 8
    pause: float = 1.0
    hashed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    halted: threading.Event = field(default_factory=threading.Event)

    def say(self, event: str, **fields: Any) -> None:
        """Write one event."""
        with self.lock:
            self.events.write(json.dumps({"event": event, **fields}) + "\n")
            self.events.flush()

    def run(self, name: str, source: Mapping[str, Any]) -> bool:
        """Fetch and verify everything; return whether the manifest was written."""
        try:
            self.origin.tidy(self.staging)
            listing = self.origin.list()
            if not listing.files:
                raise SourceError("the source lists no file", permanent=True)
            journal = Journal.open(self.staging)
            known = [journal.knows(self.staging, entry) for entry in listing.files]
            todo = [entry for entry, seen in zip(listing.files, known, strict=True) if seen is None]
            self.say(
                "listed",
                revision=listing.revision,
                files=len(listing.files),
                bytes=sum(entry.size for entry in listing.files),
                needed=sum(self._still_missing(entry) for entry in todo),
            )
            done = {entry.path: entry for entry in known if entry is not None}
            with self._heartbeat():
                done.update(self._fetch_all(todo, journal))
            absent = missing_from_index(self.staging, done)
            if absent:
                raise SourceError(
                    f"the source lacks {len(absent)} file(s) that its index names, e.g. {absent[0]}",
                    permanent=True,
                )
            Manifest(name, listing.revision, source, tuple(done.values())).write(self.staging)
        except SourceError as error:
            self.say("failed", reason=str(error), permanent=error.permanent, space=error.space)
            return False
        except (DamagedFileError, UserError) as error:
            self.say("failed", reason=str(error), permanent=True, space=False)
            return False
        self.say("done", revision=listing.revision)
        return True

    def _still_missing(self, entry: Entry) -> int:
        """Return the bytes of a file that are not staged yet, partial files counted as missing."""
        try:
            return 0 if (self.staging / entry.path).stat().st_size == entry.size else entry.size
        except OSError:
            return entry.size

    def _fetch_all(self, todo: list[Entry], journal: Journal) -> dict[str, Entry]:
        """Fetch the files side by side.

        A failure that another try may mend lets the others come to their end first: a client that cannot
        resume would otherwise lose them. Any other ends the attempt at once.
        """
        done: dict[str, Entry] = {}
        failure: SourceError | None = None
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="fetch")
        # Largest first: the last to finish is then a small one.
        futures = [
            pool.submit(self._one, entry, journal) for entry in sorted(todo, key=lambda entry: -entry.size)
        ]
        for future in as_completed(futures):
            try:
                entry = future.result()
            except SourceError as error:
                failure = failure or error
                if error.permanent:
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
        """Fetch one file until it is verified, flushed and noted."""
        target = self.staging / entry.path
        if target.exists():
            # Complete before a kill, but not yet noted.
            try:
                return self._verified(entry, journal)
            except DamagedFileError:
                target.unlink()
        again = False
        attempt = 0
        while True:
            attempt += 1
            if self.halted.is_set():
                raise SourceError("stopped because another file failed")
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                self.origin.fetch(entry, self.staging, again=again)
                return self._verified(entry, journal)
            except DamagedFileError as error:
                target.unlink(missing_ok=True)
                self.say("damaged", path=entry.path, reason=str(error))
                if attempt >= ATTEMPTS:
                    raise SourceError(f"{error}, {attempt} times in a row", permanent=True) from error
                again = True
            except SourceError as error:
                if error.permanent or attempt >= ATTEMPTS:
                    raise
            except OSError as error:
                raise SourceError(one_line(error), permanent=True) from error
            self.halted.wait(self.pause * 2 ** (attempt - 1))

    def _verified(self, entry: Entry, journal: Journal) -> Entry:
        found = verify(self.staging, entry, self._count)
        sync(self.staging / entry.path)
        journal.add(self.staging, found)
        self.say("verified", path=entry.path, size=entry.size)
        return found

    def _count(self, size: int) -> None:
        with self.lock:
            self.hashed += size

    @contextmanager
    def _heartbeat(self) -> Iterator[None]:
        """Say how much was hashed every second: hashing a large file is progress, not a stall."""
        ended = threading.Event()

        def beat() -> None:
            said = 0
            while not ended.wait(1.0):
                with self.lock:
                    hashed = self.hashed
                if hashed != said:
                    said = hashed
                    self.say("hashed", bytes=hashed)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def end_with(parent: TextIO) -> None:
    """End this process as soon as its standard input is closed: the pull that asked for it is gone."""
    while parent.read(4096):
        time.sleep(0)
    os._exit(1)


def main() -> int:
    """Run one job from standard input; return 0 when everything is verified, else 1."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with, args=(sys.stdin,), name="parent", daemon=True).start()
    # Events own the true standard output; whatever a client prints goes to standard error.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    staging = Path(job["staging"])
    (staging / FOLDER).mkdir(parents=True, exist_ok=True)
    source = Source.parse(job["source"])
    attempt = Attempt(
        open_source(source),
        staging,
        events,
        workers=int(job.get("workers", 8)),
        pause=float(job.get("pause", 1.0)),
    )
    return 0 if attempt.run(job["name"], source.as_dict()) else 1


if __name__ == "__main__":
    # Threads of a client may hang in a read after a failure: the result is known, so don't wait for them.
    STATUS: Final = main()
    sys.stderr.flush()
    os._exit(STATUS)

"""Bring a model to a host: sources in order, resumed after any interruption, visible only when verified.

The files are gathered in ``<path>.partial``; when the last one is verified the directory is flushed and
renamed to its final name. So the final name exists only with every byte verified, and what serves from it
meanwhile is untouched. A directory of ours that lost a file is repaired the same way: its good files are
linked into the staging directory, the rest is fetched, and the two change places.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import json
import os
import pwd
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from minimax_metal.artefacts.errors import transport_error
from minimax_metal.artefacts.manifest import FOLDER, Manifest, missing, sync
from minimax_metal.artefacts.request import Request, Source, is_commit
from minimax_metal.errors import UserError
from minimax_metal.service.notify import Notifier

SPARE_BYTES: Final = 1 << 30
"""Left free on the disk beyond the model itself (logs, the journal); choice of this project."""


class PullError(UserError):
    """No source could bring the model; the text is one line."""


class NoSpaceError(PullError):
    """The disk cannot hold the model."""


class RefusedError(PullError):
    """Every source refuses for good (no such repository, gated, damaged): pulling again won't help."""


@dataclass(frozen=True, slots=True)
class Options:
    """How patient a pull is; times in seconds."""

    workers: int = 8
    stall: float = 60.0
    """A connection without a byte for this long is dropped, and the file goes on over another one."""
    attempts: int = 3
    """Attempts at one source in a row that bring nothing, before the next source is tried."""
    backoff: float = 2.0
    """Pause after the first such attempt, doubled for each further one, a minute at most."""
    interval: float = 60.0
    """Between two lines of progress in the journal; the unit's status line follows every two seconds."""
    patience: float = 900.0
    """A source that answers "too many requests" and serves nothing is given up after this long."""
    rate: float = 0.0
    """Bytes a second at most; 0 is no limit."""
    spare: int = SPARE_BYTES
    """Bytes left free on the disk."""


@dataclass
class Reporter:
    """Says how a pull is doing: on standard output, to systemd, and in a file that ``await`` reads."""

    request: Request
    notifier: Notifier = field(default_factory=Notifier.from_environment)
    output: IO[str] = field(default_factory=lambda: sys.stdout)

    def say(self, text: str) -> None:
        """Print one line."""
        print(f"weights {self.request.name}: {text}", file=self.output, flush=True)

    def state(self, state: str, text: str, *, silent: bool = False, **fields: Any) -> None:
        """Print one line (unless silent), show it as the unit's status and keep it in the state file."""
        if not silent:
            self.say(text)
        self.notifier.status(text)
        content = {
            "schema": 1,
            "state": state,
            "text": text,
            "pid": os.getpid(),
            "time": time.time(),
            **fields,
        }
        temporary = self.request.state.with_name(f"{self.request.state.name}.new")
        with contextlib.suppress(OSError):  # on a full disk the line above has said it
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
            _give_like(temporary, temporary.parent)
            temporary.replace(self.request.state)


def complete(request: Request) -> bool:
    """Return whether the verified model is at its final path (sizes only; nothing is read in full)."""
    manifest = Manifest.read(request.path)
    return (
        manifest is not None and not other_revision(request, manifest) and not missing(request.path, manifest)
    )


def other_revision(request: Request, manifest: Manifest) -> bool:
    """Return whether a directory was made from a commit of a repository that asks for another one now."""
    wanted = {
        source.revision
        for source in request.sources
        if source.repository == manifest.source.get("repository")
        and source.kind == manifest.source.get("kind")
        and is_commit(source.revision)
    }
    return is_commit(manifest.revision) and bool(wanted) and manifest.revision not in wanted


def pull(
    request: Request,
    options: Options = Options(),
    reporter: Reporter | None = None,
    *,
    repair: bool = False,
) -> bool:
    """Bring the model to ``request.path``; return False when it was there already.

    ``repair``: read every byte of a directory that is there, and fetch again what is damaged.

    Raises:
        NoSpaceError: the disk cannot hold it.
        PullError: no source could serve it, or something that is not ours is in the way.
    """
    reporter = reporter or Reporter(request)
    if complete(request) and not repair:
        reporter.state("verified", "already verified")
        return False
    try:
        request.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(request, reporter):
            if complete(request) and not repair:
                reporter.state("verified", "verified by another pull")
                return False
            _pull(request, options, reporter)
    except PullError as error:
        reporter.state("failed", str(error), silent=True)  # whoever catches it prints it
        raise
    except OSError as error:
        failure = _os_error(request, error)
        reporter.state("failed", str(failure), silent=True)
        raise failure from error
    return True


def adopt_only(request: Request, options: Options, reporter: Reporter) -> None:
    """Take what is on the host already into the staging directory, and fetch nothing.

    For a caller that may read the users' directories, where the pull itself may not.

    Raises:
        PullError: the staging directory cannot be written.
    """
    if complete(request):
        return
    try:
        request.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(request, reporter):
            if not complete(request):
                _adopt(request, list(request.adopt), options, reporter)
    except OSError as error:
        raise _os_error(request, error) from error


def siblings(request: Request) -> list[Path]:
    """Return our own directories of other revisions of the model: shards often stay the same."""
    try:
        found = sorted(request.path.parent.iterdir())
    except OSError:
        return []
    return [
        path
        for path in found
        if path != request.path and not path.name.endswith(".partial") and Manifest.read(path) is not None
    ]


def _adopt(request: Request, directories: list[Path], options: Options, reporter: Reporter) -> None:
    """Take files from ``directories`` and say what came of it."""
    if not directories:
        return
    # Not at the top: it brings the HTTP library, which this process needs for nothing else.
    from minimax_metal.artefacts import adopt

    reporter.state("pulling", f"looking at what is there: {', '.join(map(str, directories))}")
    adopted = adopt.adopt(request, reporter.say, directories, options.spare)
    if adopted.ways or adopted.rejected:
        rejected = f"; {adopted.rejected} files are not what they should be" if adopted.rejected else ""
        reporter.say(f"adopted {spell_bytes(adopted.bytes)}: {adopted}{rejected}")


def _os_error(request: Request, error: OSError) -> PullError:
    found = transport_error(request.sources[0], error)
    where = error.filename or request.path
    if found.space:
        return NoSpaceError(
            f"the disk of {request.path.parent} is full; free some space, the pull then goes on"
        )
    return PullError(f"{where}: {error.strerror or error}; check owner and mount of {request.path.parent}")


def _pull(request: Request, options: Options, reporter: Reporter) -> None:
    if request.path.exists() and Manifest.read(request.path) is None:
        raise RefusedError(
            f"{request.path} exists but metal did not make it; move it away (its new place can be a source "
            "of kind directory)"
        )
    staging = request.staging
    (staging / FOLDER).mkdir(parents=True, exist_ok=True)
    _reuse(request.path, staging)
    readable = [path for path in request.adopt if os.access(path, os.R_OK | os.X_OK)]
    _adopt(request, [*readable, *siblings(request)], options, reporter)
    if request.bytes is not None:
        check_space(request, max(0, request.bytes - staged_bytes(staging)), options.spare)
    reasons = []
    hopeless = True
    begun, fetched, peers = time.monotonic(), 0, 0
    for number, source in enumerate(request.sources):
        reason, permanent, came, passed_on = _try_source(request, source, options, reporter)
        fetched, peers = fetched + came, peers + passed_on
        hopeless = hopeless and permanent
        if reason is None:
            _publish(request)
            manifest = Manifest.read(request.path)
            size = "" if manifest is None else f", {len(manifest.files)} files, {spell_bytes(manifest.bytes)}"
            took = time.monotonic() - begun
            text = f"verified{size}, from {source}, {spell_bytes(fetched)} fetched in {spell_seconds(took)}"
            if request.share is not None:
                text += f": {spell_bytes(fetched - peers)} by itself, {spell_bytes(peers)} from other hosts"
            reporter.state(
                "verified",
                text,
                fetched=fetched,
                peers=peers,
                seconds=round(took, 1),
            )
            return
        reasons.append(reason)
        if number + 1 < len(request.sources):
            reporter.say(f"{reason}; trying {request.sources[number + 1]}")
    raise (RefusedError if hopeless else PullError)("; ".join(reasons))


def _try_source(
    request: Request, source: Source, options: Options, reporter: Reporter
) -> tuple[str | None, bool, int, int]:
    """Attempt one source until it has served or is given up.

    Returns the reason (None: served), whether that is for good, the bytes that were fetched, and how many of
    them other hosts sent.
    """
    fruitless = fetched = peers = 0
    while True:
        outcome = Watch(request, source, options, reporter).run()
        fetched, peers = fetched + outcome.fetched, peers + outcome.peers
        if outcome.done:
            return None, False, fetched, peers
        if outcome.space:
            raise NoSpaceError(
                f"the disk of {request.path.parent} is full; free some space, the pull then goes on"
            )
        if outcome.permanent:
            return outcome.reason, True, fetched, peers
        # Whatever came is kept, so an attempt that brought something does not count against the source.
        fruitless = 1 if outcome.verified or outcome.fetched else fruitless + 1
        if fruitless >= options.attempts:
            return f"{outcome.reason} ({fruitless} attempts)", False, fetched, peers
        pause = min(60.0, options.backoff * 2 ** (fruitless - 1))
        reporter.say(f"{outcome.reason}; again in {pause:.0f} s")
        time.sleep(pause)


@dataclass(slots=True)
class Outcome:
    """How one attempt ended."""

    done: bool = False
    reason: str = "the attempt ended without saying why"
    permanent: bool = False
    space: bool = False
    verified: int = 0
    fetched: int = 0
    peers: int = 0
    """Of the bytes fetched, those that other hosts of the fleet sent."""


class Watch:
    """Runs one attempt as a process, follows its events, ends it when it hangs."""

    def __init__(self, request: Request, source: Source, options: Options, reporter: Reporter) -> None:
        self.request = request
        self.source = source
        self.options = options
        self.reporter = reporter
        self.outcome = Outcome()
        self.total: int | None = None
        self.files = 0
        self.have = 0
        self.waiting = ""
        self.pause = 0.0
        self.silence = 3 * options.stall + 60
        """Seconds without an event after which the attempt hangs, whatever its own watch over connections."""
        self.samples: deque[tuple[float, int]] = deque(maxlen=256)

    def run(self) -> Outcome:
        """Run the attempt to its end."""
        job = {
            "name": self.request.name,
            "staging": str(self.request.staging),
            "source": self.source.as_dict(),
            "workers": self.options.workers,
            "pause": min(1.0, self.options.backoff),
            "stall": self.options.stall,
            "patience": self.options.patience,
            "rate": self.options.rate,
            "share": None if self.request.share is None else self.request.share.as_dict(),
        }
        child = subprocess.Popen(
            [sys.executable, "-m", "minimax_metal.artefacts.fetch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        try:
            if child.stdin is None or child.stdout is None:
                raise PullError("the attempt has no pipes")
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(json.dumps(job) + "\n")
                child.stdin.flush()
            events: queue.Queue[Mapping[str, Any] | None] = queue.Queue()
            reader = threading.Thread(target=_read_events, args=(child.stdout, events.put), daemon=True)
            reader.start()
            self._follow(events)
        finally:
            _end(child)
        return self.outcome

    def _follow(self, events: queue.Queue[Mapping[str, Any] | None]) -> None:
        """Take events until the attempt is over."""
        self.reporter.state("pulling", f"asking {self.source}")
        last_event = time.monotonic()
        next_line = next_status = time.monotonic() + min(1.0, self.options.interval)
        while True:
            try:
                event = events.get(timeout=min(1.0, self.options.interval))
            except queue.Empty:
                pass
            else:
                if event is None:
                    return
                last_event = time.monotonic()
                if self._take(event):
                    return
            now = time.monotonic()
            self.samples.append((now, self.have))
            if now - last_event >= max(self.silence, self.pause):
                self.outcome.reason = f"{self.source}: the attempt hung for {now - last_event:.0f} s"
                return
            if now >= next_status and self.total is not None:
                loud = now >= next_line
                self.reporter.state(
                    "pulling", self.describe(), silent=not loud, bytes=self.have, total=self.total
                )
                next_status = now + min(2.0, self.options.interval)
                if loud:
                    next_line = now + self.options.interval

    def _take(self, event: Mapping[str, Any]) -> bool:
        """Handle one event; return whether it was the last."""
        kind = event.get("event")
        if kind == "listed":
            self.total, self.files = int(event["bytes"]), int(event["files"])
            self.have = self.total - int(event["needed"])
            check_space(self.request, int(event["needed"]), self.options.spare)
        elif kind == "progress":
            self.have, self.outcome.fetched = int(event["have"]), int(event["fetched"])
            self.outcome.peers = int(event.get("peers", 0))
            self.waiting, self.pause = "", 0.0
        elif kind == "verified":
            self.outcome.verified += 1
        elif kind == "damaged":
            self.reporter.say(f"{event['reason']}; fetching it again")
        elif kind == "note":
            self.reporter.say(str(event["text"]))
        elif kind == "retry":
            self.reporter.say(f"{event['reason']}; going on with {event['path']} at byte {event['offset']}")
        elif kind == "waiting":
            self.pause = float(event["seconds"]) + self.silence
            waiting = f"{event['reason']}: waiting {spell_seconds(float(event['seconds']))}"
            if waiting != self.waiting:
                self.reporter.say(waiting)
            self.waiting = waiting
        elif kind == "failed":
            self.outcome.reason = str(event["reason"])
            self.outcome.permanent, self.outcome.space = bool(event["permanent"]), bool(event["space"])
            return True
        elif kind == "done":
            self.outcome.done, self.outcome.fetched = True, int(event["fetched"])
            self.outcome.peers = int(event.get("peers", 0))
            return True
        return False

    def describe(self) -> str:
        """Return the line of progress: percent, size, rate, time left."""
        total = self.total or 0
        have = max(0, min(self.have, total))
        if total and have >= total:
            return f"100 % of {spell_bytes(total)}, verifying {self.files} files"
        # Cut, not rounded: 100 % is said when it is true.
        share = int(1000 * have / total) / 10 if total else 100.0
        line = f"{share:.1f} % ({spell_bytes(have)} of {spell_bytes(total)})"
        if self.waiting:
            return f"{line}, {self.waiting}"
        since = self.samples[-1][0] - 30 if self.samples else 0.0
        recent = [sample for sample in self.samples if sample[0] >= since]
        if len(recent) > 1 and recent[-1][0] - recent[0][0] >= 2.0:  # less says little about a rate
            rate = (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])
            if rate > 0:
                line += f", {spell_bytes(rate)}/s, {spell_seconds((total - have) / rate)} left"
            else:
                line += ", waiting"
        if self.outcome.peers:
            line += f", {spell_bytes(self.outcome.peers)} so far from other hosts"
        return line


def _read_events(stream: IO[str], put: Callable[[Mapping[str, Any] | None], None]) -> None:
    """Pass the attempt's events on, None at its end."""
    for line in stream:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            put(event)
    put(None)


def _end(child: subprocess.Popen[str]) -> None:
    """End an attempt's process and whatever it started."""
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    try:
        child.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


@contextlib.contextmanager
def _locked(request: Request, reporter: Reporter) -> Iterator[None]:
    """Hold the lock of one model; a second pull waits here. The kernel releases it when its holder dies."""
    handle = os.open(request.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _give_like(request.lock, request.lock.parent)
        waited = 0.0
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waited % 30 == 0:
                    reporter.say(f"another pull is at work on {request.path}; waiting for it")
                time.sleep(0.5)
                waited += 0.5
        yield
    finally:
        os.close(handle)


def _reuse(final: Path, staging: Path) -> None:
    """Link the files of a damaged directory of ours into the staging directory; each is verified there."""
    manifest = Manifest.read(final)
    if manifest is None:
        return
    for entry in manifest.files:
        have, want = final / entry.path, staging / entry.path
        if not want.exists() and have.is_file() and have.stat().st_size == entry.size:
            want.parent.mkdir(parents=True, exist_ok=True)
            os.link(have, want)


def check_space(request: Request, needed: int, spare: int = SPARE_BYTES) -> None:
    """Refuse before the pull when the disk cannot hold what is missing.

    Args:
        request: names the disk.
        needed: bytes still to come: the plan's figure before the source was asked, the source's own after.
        spare: bytes to be left free.

    Raises:
        NoSpaceError: with the numbers.
    """
    free = shutil.disk_usage(request.path.parent).free
    if needed and free < needed + spare:
        raise NoSpaceError(
            f"the disk of {request.path.parent} has {spell_bytes(free)} free, the model needs another "
            f"{spell_bytes(needed)} and {spell_bytes(spare)} to spare; free some or change the path"
        )


def _publish(request: Request) -> None:
    """Give the verified staging directory its final name; everything in it is on the disk before."""
    staging, final = request.staging, request.path
    manifest = Manifest.read(staging)
    if manifest is None or missing(staging, manifest):
        raise PullError(f"{staging} changed while it was verified; pull again")
    _remove_strangers(staging, manifest)
    directories = [staging, *(path for path in staging.rglob("*") if path.is_dir())]
    if request.owner is not None:
        _give_to(request.owner, staging)
    for directory in directories:
        directory.chmod(0o755)
    for entry in manifest.files:
        file = staging / entry.path
        # A file that is shared with somebody by a hard link keeps its mode: it would change for them, too.
        if file.stat().st_nlink == 1 and file.stat().st_mode & 0o777 != 0o644:
            file.chmod(0o644)
        sync(file)
    for directory in reversed(directories):
        sync(directory)
    replaced = final.with_name(f".{final.name}.replaced")
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    staging.rename(final)
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _remove_strangers(staging: Path, manifest: Manifest) -> None:
    """Remove everything that is no file of the model: hub clients leave caches, locks and partial files."""
    wanted = {staging / entry.path for entry in manifest.files} | {staging / FOLDER / "manifest.json"}
    parents = {parent for path in wanted for parent in path.parents}
    for path in sorted(staging.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if path not in parents:
                shutil.rmtree(path, ignore_errors=True)
        elif path not in wanted:
            path.unlink(missing_ok=True)


def _give_like(path: Path, example: Path) -> None:
    """Give a file that root made to the owner of another: the next pull may run as that one."""
    if os.geteuid() == 0:
        status = example.stat()
        os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)


def _give_to(owner: str, directory: Path) -> None:
    """Change owner and group (``user`` or ``user:group``) of a directory and all in it."""
    user, _, group = owner.partition(":")
    try:
        account = pwd.getpwnam(user)
        group_id = grp.getgrnam(group).gr_gid if group else account.pw_gid
    except KeyError as error:
        raise RefusedError(
            f"owner {owner!r} is unknown on this host; create it or leave owner out"
        ) from error
    for path in [directory, *directory.rglob("*")]:
        status = path.lstat()
        shared = path.is_file() and status.st_nlink > 1
        if not shared and (status.st_uid, status.st_gid) != (account.pw_uid, group_id):
            os.chown(path, account.pw_uid, group_id, follow_symlinks=False)


def staged_bytes(directory: Path) -> int:
    """Return the bytes of all files below a directory, partial ones included."""
    total = 0
    stack = [directory]
    while stack:
        with contextlib.suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(Path(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
    return total


def spell_bytes(size: float) -> str:
    """Return a size for people, decimal units as in the models' published sizes."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def spell_seconds(duration: float) -> str:
    """Return a duration for people: ``34 s``, ``12 min``, ``3 h 07 min``."""
    if duration < 90:
        return f"{duration:.0f} s"
    minutes = round(duration / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"

"""Pull a model to a host: sources in order, resumed after any interruption, visible only when verified.

The files are collected in ``<path>.partial``; when the last one is verified the directory is flushed and
renamed to its final name. So the final name exists only with every byte verified, and what is served from it
meanwhile stays unchanged. One of our directories that lost a file is repaired the same way: its good files
are linked into the staging directory, the rest is downloaded, and the two are swapped.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from minimax_metal.common.sizes import spell_bytes
from minimax_metal.host.weights.errors import transport_error
from minimax_metal.host.weights.manifest import FOLDER, Entry, Manifest, git_id, missing
from minimax_metal.host.weights.progress import (
    DEFAULTS,
    NoSpaceError,
    Options,
    PullError,
    RefusedError,
    Reporter,
    owner_of,
    spell_seconds,
)
from minimax_metal.host.weights.proof import Proof, is_document
from minimax_metal.host.weights.publish import check_space, publish, reuse, staged_bytes
from minimax_metal.host.weights.request import Request, Source, is_commit
from minimax_metal.host.weights.watch import Watch

__all__ = [
    "NoSpaceError",
    "Options",
    "PullError",
    "RefusedError",
    "Reporter",
    "adopt_only",
    "complete",
    "differs",
    "pull",
    "siblings",
    "staged_bytes",
]


def complete(request: Request) -> bool:
    """Return whether the verified model is at its final path (sizes only; no large file is read)."""
    manifest = Manifest.read(request.path)
    return manifest is not None and differs(request, manifest) is None and not missing(request.path, manifest)


def differs(request: Request, manifest: Manifest) -> str | None:
    """Return why a directory with this manifest does not match the request; None if it does.

    Raises:
        UserError: the request's manifest file can't be read.
    """
    stated = request.stated()
    if stated is not None:
        return _unlike(request.path, manifest, stated)
    wanted = {
        source.revision
        for source in request.sources
        if source.repository == manifest.source.get("repository")
        and source.kind == manifest.source.get("kind")
        and is_commit(source.revision)
    }
    known = {manifest.revision, manifest.source.get("revision")}
    if is_commit(manifest.revision) and wanted and wanted.isdisjoint(known):
        return f"contains revision {manifest.revision}, another one is requested"
    return None


def _unlike(directory: Path, manifest: Manifest, stated: Proof) -> str | None:
    """Return the first difference between a manifest and the file list; texts for readers may be missing."""
    there = {entry.path: entry for entry in manifest.files}
    for wanted in stated.files:
        found = there.pop(wanted.path, None)
        if found is None:
            if is_document(wanted.path):
                continue
            return f"lacks {wanted.path}, listed by {stated}"
        if not _same(directory, found, wanted):
            return f"contains a different {wanted.path} than listed by {stated}"
    # Files that the engine may load, and no source listed.
    extra = [path for path in there if not is_document(path)]
    return f"contains {extra[0]}, a file that is not listed by {stated}" if extra else None


def _same(directory: Path, found: Entry, wanted: Entry) -> bool:
    if found.size != wanted.size:
        return False
    if wanted.sha256 is not None:
        return found.sha256 == wanted.sha256
    if wanted.git_oid is None:
        return True
    if found.git_oid is not None:
        return found.git_oid == wanted.git_oid
    # A manifest of an older version, or a file that another source had listed by its SHA-256.
    try:
        return git_id(directory / wanted.path) == wanted.git_oid
    except OSError:
        return False


def pull(
    request: Request,
    options: Options = DEFAULTS,
    reporter: Reporter | None = None,
    *,
    repair: bool = False,
) -> bool:
    """Pull the model to ``request.path``; return False if it was already there.

    ``repair``: read every byte of an existing directory, and download damaged parts again.

    Raises:
        NoSpaceError: the disk does not have enough space.
        PullError: no source could serve it, or a foreign file is in the way.
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
        reporter.state("failed", str(error), silent=True)  # the caller prints it
        raise
    except OSError as error:
        failure = _os_error(request, error)
        reporter.state("failed", str(failure), silent=True)
        raise failure from error
    return True


def adopt_only(request: Request, options: Options, reporter: Reporter) -> None:
    """Copy or link files on this host into the staging directory, without downloading.

    For a caller that may read the users' directories, while the pull itself may not.

    Raises:
        PullError: the staging directory can't be written.
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
    """Adopt files from ``directories`` and report the result."""
    if not directories:
        return
    # Imported here: it imports the HTTP library, which this process does not need otherwise.
    from minimax_metal.host.weights import adopt

    reporter.state("pulling", f"searching for files on this host: {', '.join(map(str, directories))}")
    adopted = adopt.adopt(request, reporter.say, directories, options.spare)
    if adopted.ways or adopted.rejected:
        rejected = f"; {adopted.rejected} files don't match" if adopted.rejected else ""
        reporter.say(f"adopted {spell_bytes(adopted.bytes)}: {adopted}{rejected}")


def _os_error(request: Request, error: OSError) -> PullError:
    found = transport_error(request.sources[0], error)
    where = error.filename or request.path
    if found.space:
        return NoSpaceError(
            f"the disk of {request.path.parent} is full; free some space, the pull then resumes"
        )
    return PullError(f"{where}: {error.strerror or error}; check owner and mount of {request.path.parent}")


def _pull(request: Request, options: Options, reporter: Reporter) -> None:
    if request.path.exists() and Manifest.read(request.path) is None:
        raise RefusedError(
            f"{request.path} exists but metal did not create it; move it away (its new place can be "
            "a source of kind directory)"
        )
    staging = request.staging
    (staging / FOLDER).mkdir(parents=True, exist_ok=True)
    reuse(request.path, staging)
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
            publish(request)
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

    Returns the reason (None: served), whether it is permanent, the downloaded bytes, and how many of them
    other hosts sent.
    """
    fruitless = fetched = peers = 0
    while True:
        outcome = Watch(request, source, options, reporter).run()
        fetched, peers = fetched + outcome.fetched, peers + outcome.peers
        if outcome.done:
            return None, False, fetched, peers
        if outcome.space:
            raise NoSpaceError(
                f"the disk of {request.path.parent} is full; free some space, the pull then resumes"
            )
        if outcome.permanent:
            return outcome.reason, True, fetched, peers
        # All received data is kept, so an attempt with new data does not count against the source. Only new
        # data counts: otherwise a source that sends the same bytes again and again would never be given up.
        fruitless = 1 if outcome.brought else fruitless + 1
        if fruitless >= options.attempts:
            return f"{outcome.reason} ({fruitless} attempts)", False, fetched, peers
        pause = min(60.0, options.backoff * 2 ** (fruitless - 1))
        reporter.say(f"{outcome.reason}; retrying in {pause:.0f} s")
        time.sleep(pause)


@contextlib.contextmanager
def _locked(request: Request, reporter: Reporter) -> Iterator[None]:
    """Hold the lock of one model; a second pull waits here. The kernel releases it when its holder dies."""
    handle = os.open(request.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        owner = owner_of(request.lock.parent)
        if owner is not None:
            os.fchown(handle, *owner)
        waited = 0.0
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waited % 30 == 0:
                    reporter.say(f"another pull of {request.path} is running; waiting for it")
                time.sleep(0.5)
                waited += 0.5
        yield
    finally:
        os.close(handle)

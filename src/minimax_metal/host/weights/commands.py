"""``metal weights pull|await|check|adopt|share-config|resolve|manifest|verify|own|list|remove|prune``.

Exit status:

=====  ======================================================================================
0      verified there (``check``: complete; ``list``, ``remove``, ``prune``, ``adopt``: done)
1      ``pull``: no source could bring it for now; ``await``: the pull failed;
       ``verify``: a file is not what it should be; ``resolve``: a source can't be asked
2      usage, a wrong request file, a directory that ``verify`` can't look at, or something that is used was
       to be removed
3      ``check``: not complete; a line for every file that is missing
4      ``pull``: the disk cannot hold it
5      ``pull``: every source refuses for good (no such repository or revision, gated, damaged)
6      ``await``: not verified in the time given, the pull goes on
=====  ======================================================================================
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

from minimax_metal.common.errors import UserError
from minimax_metal.common.privileges import files_as, untrusted_owner
from minimax_metal.common.sizes import spell_bytes
from minimax_metal.common.text import one_line
from minimax_metal.host.weights import follow, stock
from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.manifest import Manifest, missing
from minimax_metal.host.weights.part import flush
from minimax_metal.host.weights.pull import (
    NoSpaceError,
    Options,
    PullError,
    RefusedError,
    Reporter,
    adopt_only,
    differs,
    pull,
)
from minimax_metal.host.weights.request import DIRECTORY, HTTP, Request, is_commit

EXIT_FAILED: Final = 1
EXIT_INCOMPLETE: Final = 3
EXIT_NO_SPACE: Final = 4
EXIT_REFUSED: Final = 5
EXIT_NOT_YET: Final = 6


class StoppedError(BaseException):
    """SIGTERM arrived. Not an :class:`Exception`: no handler on the way may take it for a failed source."""


def main(argv: list[str]) -> int:
    """Run ``metal weights``; return its exit status."""
    arguments = _parser().parse_args(argv)
    verb: Callable[[argparse.Namespace], int] = arguments.run
    return verb(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="metal weights",
        description="Manage models' weights on this host.",
        epilog="Exit status: 0 verified; 1 failed or damaged; 2 usage, or in use; 3 not complete (check); "
        "pull: 4 disk too small, 5 permanently refused by every source (1 may pass with time).",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb_of(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text)
        verb.set_defaults(run=run)
        return verb

    def add(
        name: str, run: Callable[[Request, argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        verb = verb_of(name, lambda arguments: run(Request.read(arguments.request), arguments), text)
        verb.add_argument(
            "--request", required=True, type=Path, metavar="FILE", help="file with the request, as JSON"
        )
        return verb

    defaults = Options()
    puller = add("pull", _pull, "fetch, verify and publish; resumes an interrupted pull")
    knobs: tuple[tuple[str, type, str], ...] = (
        ("workers", int, "files fetched in parallel"),
        ("stall", float, "seconds without a byte before a connection is dropped"),
        ("attempts", int, "failed attempts per source"),
        ("backoff", float, "seconds before the next attempt"),
        ("patience", float, "longest wait for a source that answers 429 or 503, in seconds"),
        ("rate", float, "bytes per second at most, 0 for no limit"),
        ("spare", int, "bytes to leave free on the disk"),
        ("interval", float, "seconds between progress lines"),
    )
    for knob, kind, text in knobs:
        default = getattr(defaults, knob)
        puller.add_argument(f"--{knob}", type=kind, default=default, help=f"{text} (%(default)s)")
    waiter = add("await", _await, "wait for the pull that a unit runs")
    waiter.add_argument("--timeout", type=float, default=None, help="seconds at most (default: no limit)")
    waiter.add_argument(
        "--json", action="store_true", help="finish with a line of JSON that sums up the transfer"
    )
    waiter.add_argument(
        "--restarts",
        type=int,
        default=follow.RESTARTS,
        help="restarts of the unit to wait through (%(default)s)",
    )
    configurer = add(
        "share-config", _share_config, "write the configuration of the nginx that serves this host's pieces"
    )
    configurer.add_argument("--output", required=True, type=Path, metavar="FILE")
    add("check", _check, "check that the verified files are all there; reads sizes only, writes nothing")
    puller.add_argument(
        "--repair", action="store_true", help="read every byte on disk, fetch damaged parts again"
    )
    add("adopt", _adopt, "use verified files that are already on this host, by linking; fetches nothing")
    resolver = add(
        "resolve", _resolve, "print the request's sources as JSON, with branches resolved to commits"
    )
    resolver.add_argument(
        "--proof",
        action="store_true",
        help="print the publisher's list of all files; the request's name is the id there",
    )
    resolver.add_argument("--timeout", type=float, default=300.0, help="seconds at most (%(default)s)")
    writer = verb_of(
        "manifest",
        _manifest,
        "read every byte of a directory and print a manifest, for model_weights_manifest",
    )
    writer.add_argument("path", type=Path, help="directory with the model's files")
    writer.add_argument("--workers", type=int, help="files in parallel (default: one per core, 16 at most)")
    checker = verb_of(
        "verify",
        _verify,
        "check that a directory is a complete model: every byte against its manifest, or else by its "
        "headers and index",
    )
    checker.add_argument("path", nargs="+", type=Path, metavar="DIRECTORY", help="a directory with a model")
    checker.add_argument("--model", metavar="NAME", help="the expected model, by its catalogue name")
    checker.add_argument("--json", action="store_true", help="as JSON")
    checker.add_argument("--workers", type=int, help="files in parallel (default: one per core, 16 at most)")

    def store(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        verb = verb_of(name, run, text)
        verb.add_argument(
            "--root", type=Path, default=stock.ROOT, help="root directory of models (%(default)s)"
        )
        return verb

    lister = store("list", _list, "list models on disk, and what uses them")
    lister.add_argument("--json", action="store_true", help="as JSON")
    remover = store(
        "remove", _remove, "remove a model directory; refuses one that a unit or a kept release uses"
    )
    remover.add_argument("path", type=Path, help="the model directory")
    owning = store("own", _own, "make the pull's user own a model's directory, and root those above it")
    owning.add_argument("path", type=Path, help="directory with the model's revisions")
    owning.add_argument("--user", required=True, help="user of the pull")
    owning.add_argument(
        "--before", action="append", default=[], metavar="USER", help="owner in earlier versions"
    )
    pruner = store("prune", _prune, "remove unused models")
    pruner.add_argument(
        "--keep", type=int, default=0, metavar="N", help="unused revisions to keep per model (%(default)s)"
    )
    pruner.add_argument(
        "--spare",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="a directory to keep in any case",
    )
    pruner.add_argument("--dry-run", action="store_true", help="only list what would be removed")
    return parser


def become_owner(request: Request) -> None:
    """As root, continue as the owner of the directory that contains the model, like its unit.

    So nothing is left there that the unit could not continue, and foreign data is not processed as root.
    """
    if os.geteuid() != 0 or request.owner is not None:
        return
    owner = untrusted_owner(request.path.parent)
    if owner is not None:
        os.setgroups([])
        os.setgid(owner[1])
        os.setuid(owner[0])


def _pull(request: Request, arguments: argparse.Namespace) -> int:
    options = Options(
        workers=max(1, arguments.workers),
        stall=arguments.stall,
        attempts=max(1, arguments.attempts),
        backoff=arguments.backoff,
        interval=arguments.interval,
        patience=arguments.patience,
        rate=arguments.rate,
        spare=arguments.spare,
    )
    become_owner(request)
    reporter = Reporter(request)

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise StoppedError

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        pull(request, options, reporter, repair=arguments.repair)
    except NoSpaceError as error:
        print(f"metal weights: {error}", file=sys.stderr)
        return EXIT_NO_SPACE
    except RefusedError as error:
        print(f"metal weights: {error}", file=sys.stderr)
        return EXIT_REFUSED
    except PullError as error:
        print(f"metal weights: {error}", file=sys.stderr)
        return EXIT_FAILED
    except StoppedError:
        flush(request.staging)
        reporter.state("stopped", "stopped; the next pull resumes from here")
        # systemd treats an end by SIGTERM, not an exit status, as a requested stop.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _await(request: Request, arguments: argparse.Namespace) -> int:
    become_owner(request)
    try:
        follow.wait(
            request,
            arguments.timeout,
            lambda text: print(f"weights {request.name}: {text}", flush=True),
            restarts=arguments.restarts,
        )
    except follow.NotYetError as error:
        print(f"metal weights: {error}", file=sys.stderr)
        return EXIT_NOT_YET
    except follow.AwaitError as error:
        print(f"metal weights: {error}", file=sys.stderr)
        return EXIT_FAILED
    state = follow.read_state(request)
    if request.unit is not None and os.geteuid() == 0 and follow.forget_failure(request.unit):
        print(f"weights {request.name}: reset the earlier failure of {request.unit}")
    print(f"weights {request.name}: {state.get('text') or 'verified'} at {request.path}")
    if arguments.json:
        print(json.dumps({key: state[key] for key in ("fetched", "peers", "seconds") if key in state}))
    return 0


def _check(request: Request, _arguments: argparse.Namespace) -> int:
    become_owner(request)
    manifest = Manifest.read(request.path)
    if manifest is None:
        print(f"{request.path}: not there, or not verified by metal")
        return EXIT_INCOMPLETE
    if (why := differs(request, manifest)) is not None:
        print(f"{request.path}: {why}")
        return EXIT_INCOMPLETE
    absent = missing(request.path, manifest)
    for line in absent:
        print(line)
    if absent:
        return EXIT_INCOMPLETE
    print(f"complete: {len(manifest.files)} files, {spell_bytes(manifest.bytes)}")
    return 0


def _adopt(request: Request, _arguments: argparse.Namespace) -> int:
    # Loaded before this process gives up the right to read this program.
    from minimax_metal.host.weights import adopt as _loaded  # noqa: F401

    # Root's rights are for reading only: its owner writes to the model's directory.
    owner = untrusted_owner(request.path.parent) or (os.geteuid(), os.getegid())
    if os.geteuid() == 0:
        os.setgroups([])
    try:
        with files_as(*owner):
            adopt_only(request, Options(), Reporter(request))
    except PullError as error:
        print(f"metal weights: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _share_config(request: Request, arguments: argparse.Namespace) -> int:
    from minimax_metal.host.weights.share import server

    for name in server.write(request, arguments.output):
        print(
            f"metal weights: no address is known for {name}; it can't fetch pieces from this host",
            file=sys.stderr,
        )
    return 0


def _manifest(arguments: argparse.Namespace) -> int:
    from minimax_metal.host.weights.asking import of_directory

    print(json.dumps(of_directory(arguments.path, arguments.workers), indent=1))
    return 0


def _resolve(request: Request, arguments: argparse.Namespace) -> int:
    if arguments.proof:
        from minimax_metal.host.weights.asking import for_fleet

        print(json.dumps(for_fleet(request, request.name)))
        return 0
    from minimax_metal.host.weights.unprivileged import resolve

    resolved = []
    deadline = time.monotonic() + arguments.timeout
    for source in request.sources:
        pause = 1.0
        while True:
            try:
                resolved.append(resolve(source))
                break
            except SourceError as error:
                after = error.after if error.after is not None else pause
                if error.permanent or time.monotonic() + after > deadline:
                    # Another source may have it: this one keeps its branch, and reports it when it is pulled.
                    print(f"metal weights: {error}", file=sys.stderr)
                    resolved.append(source)
                    break
                time.sleep(after)
                pause = min(30.0, pause * 2)
    print(json.dumps([source.as_dict() for source in resolved]))
    hubs = [source for source in resolved if source.kind not in {DIRECTORY, HTTP}]
    return EXIT_FAILED if hubs and not any(is_commit(source.revision) for source in hubs) else 0


def _verify(arguments: argparse.Namespace) -> int:
    from minimax_metal.host.weights import verifying

    return verifying.run(arguments)


def _list(arguments: argparse.Namespace) -> int:
    found = stock.stored(arguments.root, stock.System())
    if arguments.json:
        rows = [
            {
                "path": str(one.path),
                "name": one.name,
                "revision": one.manifest.revision if one.manifest else None,
                "complete": one.manifest is not None,
                "bytes": one.bytes,
                "users": list(one.users),
            }
            for one in found
        ]
        print(json.dumps(rows, indent=1))
        return 0
    for one in found:
        kind = "" if one.manifest else ", not complete"
        # The owner of a model's directory controls the names below it.
        used = "used" if one.users else "unused"
        print(one_line(f"{one.path}: {spell_bytes(one.bytes)}{kind}, {used}"))
        for user in one.users:
            print(f"  by {one_line(user)}")
    print(f"{len(found)} model directories, {spell_bytes(sum(one.bytes for one in found))}")
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    size = stock.remove(arguments.path, stock.System(), arguments.root)
    print(f"removed {arguments.path}, {spell_bytes(size)}")
    return 0


def _own(arguments: argparse.Namespace) -> int:
    from minimax_metal.host.weights.ownership import settle

    known = {one.pw_name: one for one in pwd.getpwall()}
    owner = known.get(arguments.user)
    if owner is None:
        raise UserError(f"found no user {arguments.user}, expected one of this host; run site.yml")
    before = frozenset(known[name].pw_uid for name in arguments.before if name in known)
    try:
        given = settle(arguments.path, arguments.root, (owner.pw_uid, owner.pw_gid), before)
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(
            f"found {arguments.path}: {words}; expected directories below {arguments.root} owned by "
            f"root or {arguments.user}, and no links; fix the owner, or set metal_weights_directory"
        ) from error
    print(f"given {given} to {arguments.user} and root" if given else "owners unchanged")
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    system = stock.System()
    found = stock.superfluous(arguments.root, system, max(0, arguments.keep), arguments.spare)
    for one in found:
        if not arguments.dry_run:
            stock.remove(one.path, system, arguments.root)
        done = "would remove" if arguments.dry_run else "removed"
        print(one_line(f"{done} {one.path}, {spell_bytes(one.bytes)}"))
    if not found:
        print("nothing to remove")
    return 0

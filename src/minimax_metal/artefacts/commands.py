"""``metal weights pull|await|check``.

Exit status:

=====  ======================================================================================
0      verified there (``check``: complete)
1      ``pull``: no source could bring it for now; ``await``: the pull failed or the time is over
2      usage, or the request file is wrong
3      ``check``: not complete; a line for every file that is missing
4      ``pull``: the disk cannot hold it
5      ``pull``: every source refuses for good (no such repository or revision, gated, damaged)
=====  ======================================================================================
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

from minimax_metal.artefacts import follow
from minimax_metal.artefacts.manifest import Manifest, missing
from minimax_metal.artefacts.pull import (
    NoSpaceError,
    Options,
    PullError,
    RefusedError,
    Reporter,
    pull,
    spell_bytes,
)
from minimax_metal.artefacts.request import Request

EXIT_FAILED: Final = 1
EXIT_INCOMPLETE: Final = 3
EXIT_NO_SPACE: Final = 4
EXIT_REFUSED: Final = 5


class StoppedError(BaseException):
    """SIGTERM arrived. Not an :class:`Exception`: nothing on the way out may take it for a failed source."""


def main(argv: list[str]) -> int:
    """Run ``metal weights``; return its exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    request = Request.read(arguments.request)
    verb: Callable[[Request, argparse.Namespace], int] = arguments.run
    return verb(request, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="metal weights",
        description="A model's weights on this host.",
        epilog="Exit status: 0 verified; 1 failed; 2 usage; 3 not complete (check); pull: 4 disk too small, "
        "5 refused by every source for good (1 may pass with time).",
    )
    verbs = parser.add_subparsers(required=True, metavar="pull|await|check")

    def add(
        name: str, run: Callable[[Request, argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text)
        verb.add_argument("--request", required=True, type=Path, metavar="FILE", help="what to pull, as JSON")
        verb.set_defaults(run=run)
        return verb

    defaults = Options()
    puller = add("pull", _pull, "fetch, verify and make visible; goes on where an earlier pull stopped")
    knobs: tuple[tuple[str, type, str], ...] = (
        ("workers", int, "files at once"),
        ("stall", float, "seconds without a byte before a connection is dropped"),
        ("attempts", int, "fruitless attempts at a source"),
        ("backoff", float, "seconds before the next attempt"),
        ("patience", float, "seconds that a source which answers 429 or 503 is waited for"),
        ("rate", float, "bytes a second at most, 0 for no limit"),
        ("spare", int, "bytes left free on the disk"),
        ("interval", float, "seconds between lines"),
    )
    for knob, kind, text in knobs:
        default = getattr(defaults, knob)
        puller.add_argument(f"--{knob}", type=kind, default=default, help=f"{text} (%(default)s)")
    waiter = add("await", _await, "wait for the pull that a unit runs")
    waiter.add_argument("--timeout", type=float, default=None, help="seconds at most (default: no limit)")
    waiter.add_argument(
        "--restarts",
        type=int,
        default=follow.RESTARTS,
        help="restarts of the unit to sit through (%(default)s)",
    )
    add("check", _check, "say whether the verified files are all there; reads sizes only, writes nothing")
    return parser


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
    reporter = Reporter(request)

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise StoppedError

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        pull(request, options, reporter)
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
        reporter.state("stopped", "stopped; the next pull goes on from here")
        # systemd takes an end by SIGTERM, not an exit status, for a stop that was asked for.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _await(request: Request, arguments: argparse.Namespace) -> int:
    try:
        follow.wait(
            request,
            arguments.timeout,
            lambda text: print(f"weights {request.name}: {text}", flush=True),
            restarts=arguments.restarts,
        )
    except follow.AwaitError as error:
        print(f"metal weights: {error}", file=sys.stderr)
        return EXIT_FAILED
    print(f"weights {request.name}: verified at {request.path}")
    return 0


def _check(request: Request, _arguments: argparse.Namespace) -> int:
    manifest = Manifest.read(request.path)
    if manifest is None:
        print(f"{request.path}: not there, or not verified by metal")
        return EXIT_INCOMPLETE
    absent = missing(request.path, manifest)
    for line in absent:
        print(line)
    if absent:
        return EXIT_INCOMPLETE
    print(f"complete: {len(manifest.files)} files, {spell_bytes(manifest.bytes)}")
    return 0

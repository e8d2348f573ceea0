# Copied from src/minimax_metal/host/lock.py by tools/module_utils.py. Change that file, not this one.
"""The fleet lock: one operator at a time. A file on each host, so that it works for any controller.

``/var/lib/minimax-metal/lock.json`` has its holder and start time. It is broken only explicitly: a run on
another controller may still be alive, which can't be known from here. A controller knows its own runs, and
takes over the lock of one that has ended (action plugin ``metal_lock``). An unreadable file counts as held.

``metal lock show|release|break`` is for users on the host; plays use module ``metal_lock``, which ships this
file to hosts that have nothing yet. So it needs only the standard library of Python 3.9 and newer.

Exit status of ``metal lock``: 0 free, or done; 1 held by another run; 2 usage, or the file can't be written.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

PATH = Path("/var/lib/minimax-metal/lock.json")
FIELDS = ("run", "user", "controller", "pid", "command", "time", "process")
"""Contents of a lock: the run's name, the user, the controller, the process there, the playbook, the start
time (ISO, UTC), and an identifier of exactly that process (``controller/run/holder.py``)."""

_TRIES = 5

Holder = dict[str, Any]


def now() -> str:
    """Return the time in UTC, as ISO 8601 to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())


def read(path: Path = PATH) -> Optional[Holder]:  # noqa: UP045 - also read by a host's own Python
    """Return the holder of the lock, or None.

    An invalid file counts as held by somebody unknown.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        text = ""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        found = {}
    return {name: found.get(name, "?") for name in FIELDS}


def described(holder: Mapping[str, Any]) -> str:
    """Return a short description of a holder."""
    who = f"{holder.get('user', '?')}@{holder.get('controller', '?')}"
    words = (
        f"{who} since {holder.get('time', '?')} ({holder.get('command', '?')}, "
        f"run {holder.get('run', '?')}, process {holder.get('pid', '?')})"
    )
    # The file is a host's: terminal controls are removed.
    return "".join(one for one in words[:2000] if one.isprintable())


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Prevent others from reading or writing meanwhile."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        os.fsync(handle)
    finally:
        os.close(handle)


def take(holder: Mapping[str, Any], path: Path = PATH) -> Optional[Holder]:  # noqa: UP045 - as above
    """Take the lock; return None if it is ours now, else its holder.

    A run that already holds it keeps it.

    Raises:
        OSError: the file can't be written.
    """
    for _ in range(_TRIES):
        # Whoever gave the lock back in the same moment has removed the directory that was empty then.
        with contextlib.suppress(FileNotFoundError):
            return _take(holder, path)
    return _take(holder, path)


def _take(holder: Mapping[str, Any], path: Path) -> Optional[Holder]:  # noqa: UP045 - as above
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        other = read(path)
        if other is not None:
            return None if other["run"] == holder["run"] else other
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".lock.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({name: holder.get(name, "?") for name in FIELDS}, file, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            # An existing name is an error here, whoever created it.
            os.link(name, path)
        except FileExistsError:
            return read(path)
        finally:
            Path(name).unlink(missing_ok=True)
    return None


def release(run: str, path: Path = PATH) -> bool:
    """Release the lock; return whether this run held it. Another run's lock stays.

    A directory that is empty then is removed: it was made for the lock, or the product was removed.

    Raises:
        OSError: the file can't be removed.
    """
    if not path.parent.is_dir():
        return False
    with _alone(path.parent):
        holder = read(path)
        if holder is None or holder["run"] != run:
            return False
        path.unlink()
        with contextlib.suppress(OSError):
            path.parent.rmdir()
    return True


def break_lock(path: Path = PATH, run: Optional[str] = None) -> Optional[Holder]:  # noqa: UP045 - as above
    """Break the lock, or only one that a given run holds; return its former holder.

    Raises:
        OSError: the file can't be removed.
    """
    if not path.parent.is_dir():
        return None
    with _alone(path.parent):
        holder = read(path)
        if holder is None or run not in (None, holder["run"]):
            return None
        path.unlink()
    return holder


def main(argv: list[str]) -> int:
    """Run ``metal lock``; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="metal lock", description="Show, take or release the fleet lock on this host."
    )
    parser.add_argument("--file", type=Path, default=PATH, help="default: %(default)s")
    verbs = parser.add_subparsers(dest="verb", required=True)
    show = verbs.add_parser("show", help="print the holder")
    show.add_argument("--json", action="store_true", help="as JSON; null when it is free")
    taking = verbs.add_parser("take", help="take it")
    for name in FIELDS:
        if name != "time":
            taking.add_argument(f"--{name}", required=name != "process", default="?")
    releasing = verbs.add_parser("release", help="release the lock")
    releasing.add_argument("--run", required=True, help="name of the run that holds it")
    verbs.add_parser("break", help="release it, whoever holds it")
    arguments = parser.parse_args(argv)
    path: Path = arguments.file
    try:
        if arguments.verb == "show":
            holder = read(path)
            print(
                json.dumps(holder) if arguments.json else f"held by {described(holder)}" if holder else "free"
            )
            return 1 if holder else 0
        if arguments.verb == "take":
            words = {name: getattr(arguments, name) for name in FIELDS if name != "time"}
            other = take({**words, "time": now()}, path)
            print(f"held by {described(other)}" if other else "taken")
            return 1 if other else 0
        if arguments.verb == "release":
            if release(arguments.run, path):
                print("released")
                return 0
            holder = read(path)
            print(f"held by {described(holder)}" if holder else "free")
            return 1 if holder else 0
        holder = break_lock(path)
        print(f"broken: it was held by {described(holder)}" if holder else "free")
    except OSError as error:
        print(f"metal lock: can't change {path}: {error.strerror}; run it as root", file=sys.stderr)
        return 2
    return 0

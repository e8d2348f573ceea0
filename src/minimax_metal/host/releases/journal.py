"""``metal rollout-state``: a rollout's progress on this host, written before each step.

``/var/lib/minimax-metal/rollout.json`` outlives the controller: after any interruption, the next run reads
here from which release to which the host was moving, and how far it got. ``ended`` is null until a run has
finished.

A change prints one word, ``recorded``. Exit status: 0; 1 if a stage or an end is recorded by another run than
the one that began; 2 usage, or the file can't be written.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.host.releases.record import DIRECTORY, Records
from minimax_metal.plan.rollout.stage import CHANGE, Stage

PATH: Final = Path("/var/lib/minimax-metal/rollout.json")
SCHEMA: Final = 1
RESULTS: Final = ("done", "returned", "failed")
"""The host has the new release; it is back on the previous one; neither, and it stays out of service."""

State = dict[str, Any]


class OtherRunError(UserError):
    """The journal is another run's."""


def now() -> str:
    """Return the time in UTC, as ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read(path: Path = PATH) -> State | None:
    """Return the journal; None if there is none, or it is unreadable."""
    try:
        found = read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def begun(
    run: str, kind: str, to_release: str, current: str | None, before: Mapping[str, Any] | None
) -> State:
    """Return the journal of a run that begins on this host.

    Args:
        run: the run's name.
        kind: ``rollout`` or ``rollback``.
        to_release: digest of the plan to apply.
        current: name of the active release record, None on a host that never had one.
        before: the existing journal; one without an end is taken over, and named.
    """
    again = before is not None and before.get("ended") is None
    return {
        "schema": SCHEMA,
        "run": run,
        "kind": kind,
        "from_release": current,
        "to_release": to_release,
        "stage": "begin",
        "started": now(),
        "ended": None,
        "result": None,
        "message": None,
        "after": before.get("run") if again and before else None,
        "stages": [],
    }


def write(state: State, path: Path = PATH) -> None:
    """Replace the journal atomically.

    Raises:
        OSError: it can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".rollout.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(state, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def _of_run(path: Path, run: str) -> State:
    state = read(path)
    if state is None or state.get("run") != run:
        found = f"run {state.get('run')}" if state else "no journal"
        raise OtherRunError(
            f"found {found} in {path}, expected run {run}; another operator is changing this host"
        )
    return state


def main(argv: list[str]) -> int:
    """Run ``metal rollout-state``; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="metal rollout-state", description="Note a rollout's progress on this host."
    )
    parser.add_argument("--file", type=Path, default=PATH, help="default: %(default)s")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("show", help="print the journal as JSON, null if there is none")
    begin = verbs.add_parser("begin", help="note that a run begins on this host")
    begin.add_argument("--to", required=True, help="digest of the plan to apply")
    begin.add_argument("--kind", choices=("rollout", "rollback"), default="rollout")
    begin.add_argument("--releases", type=Path, default=DIRECTORY, help="default: %(default)s")
    stage = verbs.add_parser("stage", help="note that a stage begins")
    stage.add_argument("name", choices=[*CHANGE, Stage.ROLLBACK], metavar="STAGE")
    end = verbs.add_parser("end", help="note that the run has finished on this host")
    end.add_argument("result", choices=RESULTS)
    end.add_argument("--message", default=None, help="the reason, in one line")
    for verb in (begin, stage, end):
        verb.add_argument("--run", required=True, help="name of the run")
    arguments = parser.parse_args(argv)
    path: Path = arguments.file
    if arguments.verb == "show":
        print(json.dumps(read(path), indent=2, ensure_ascii=False))
        return 0
    try:
        if arguments.verb == "begin":
            current = Records(arguments.releases).current()
            name = current.path.stem if current else None
            state = begun(arguments.run, arguments.kind, arguments.to, name, read(path))
        else:
            state = _of_run(path, arguments.run)
            if arguments.verb == "stage":
                state["stage"] = arguments.name
                state["stages"] = [*state.get("stages", []), {"name": arguments.name, "time": now()}]
            else:
                state |= {"ended": now(), "result": arguments.result, "message": arguments.message}
        write(state, path)
    except OtherRunError as error:
        print(error)
        return 1
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror}; run it as root") from error
    print("recorded")
    return 0

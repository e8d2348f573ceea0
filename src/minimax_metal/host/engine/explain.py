"""``metal explain``: why an engine ended, from any journal or log, offline, as any user.

Reads a file, standard input (``-``) or a unit's journal; understands ``journalctl``'s output formats,
``dmesg``, prefixes of docker and kubectl, terminal colours and the engine's rank prefixes. The same rules
tell the supervisor whether to start an engine again.

Exit status:

==  ==========================================================================
0   a cause was found, and the next start may succeed by itself; or the unit runs and has not ended
1   nothing in it says why an engine ended
2   usage, or the file or journal can't be read
70  the operator acts: drain the host, then reset, reboot or repair
78  the user acts: a setting, a package, a disk, or the weights on this host
==  ==========================================================================
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from minimax_metal.common import program
from minimax_metal.common.documents import digits, read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.privileges import acting_as_owner_of
from minimax_metal.common.text import one_line
from minimax_metal.host.engine.diagnosis import (
    ACTS,
    EXIT_GPU,
    EXIT_NEVER,
    Line,
    Reason,
    Who,
    diagnose,
    find_events,
    find_xids,
    last_start,
    read_lines,
)
from minimax_metal.host.engine.diagnosis.kernel import concerns
from minimax_metal.host.engine.diagnosis.reading import ready_before_end

EXIT_NOTHING: Final = 1
BYTES: Final = 16 << 20
"""Bytes read from the end of a log: the last start is there."""
LINES: Final = 20_000
"""Newest lines to read; an engine that starts and crashes writes some thousands."""
SECONDS: Final = 60.0
JOURNAL_SECONDS: Final = 60.0


def read_file(name: str) -> str:
    """Return the end of a file, or of standard input.

    Raises:
        UserError: it can't be read, or it is a directory.
    """
    try:
        if name == "-":
            return _end_of(sys.stdin.buffer)
        # A log in the engine's directory is read as the engine, whatever link it is.
        with acting_as_owner_of(Path(name)), Path(name).open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            if stat.S_ISREG(mode):
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - BYTES))
            return _end_of(stream)
    except OSError as error:
        raise UserError(
            f"{name}: {error.strerror or error}; name a log file, or - for standard input"
        ) from None


def _end_of(stream: Any) -> str:
    kept = b""
    while block := stream.read(1 << 20):
        kept = (kept + block)[-BYTES:]
    return kept.decode("utf-8", "replace")


def read_unit(unit: str) -> str:
    """Return the newest lines of a unit's journal and of the kernel's since the unit's last start.

    Raises:
        UserError: journalctl does not answer, or this user may not read it.
    """
    if "@" not in unit and "." not in unit:
        unit = f"sglang@{unit}"
    limit = f"--lines={LINES}"
    common = ("--output=json", "--no-pager", "--quiet", limit)
    own = program.run(["journalctl", f"--unit={unit}", *common], seconds=JOURNAL_SECONDS, limit=BYTES * 4)
    if not own.ok or not own.out.strip():
        words = one_line(own.err or "no lines", 200)
        raise UserError(
            f"journal of {unit}: {words}; name a unit of this host, and use sudo or the group systemd-journal"
        )
    kernel = program.run(
        ["journalctl", "--dmesg", "--boot", *common], seconds=JOURNAL_SECONDS, limit=BYTES * 4
    )
    first = _first_time(own.out)
    lines = [line for line in kernel.out.splitlines() if _time(line) >= first]
    return "\n".join([*lines, own.out])


def is_active(unit: str) -> bool:
    """Return whether systemd reports the unit as running; false if it can't be asked."""
    if "@" not in unit and "." not in unit:
        unit = f"sglang@{unit}"
    return program.run(["systemctl", "is-active", "--quiet", unit], seconds=10.0).ok


def before_this_start(text: str) -> str:
    """Return a unit's journal up to the start of the running engine; empty if there was no earlier one.

    A running engine's warnings are not the reason of an end.
    """
    first = _first_time(text)
    return "\n".join(line for line in text.splitlines() if 0 < _time(line) < first)


def _time(line: str) -> int:
    try:
        return int(read_json(line)["__REALTIME_TIMESTAMP"])
    except (ValueError, KeyError, TypeError):
        return 0


def _first_time(text: str) -> int:
    """Return when the unit's last start began, in microseconds since 1970; else when the journal begins."""
    moment = 0
    for line in text.splitlines():
        if '"Starting ' in line or "server_args=" in line or not moment:
            moment = _time(line) or moment
    return moment


def explain(text: str, port: int | None = None) -> Reason | None:
    """Return why the engine with this log ended, or None if it does not tell."""
    lines = list(read_lines(text.splitlines()[-LINES:]))
    # One limit for all three readings, whatever the lines contain.
    share = SECONDS / 3
    until = time.monotonic() + share
    kernel = [
        line.text
        for line in lines
        if line.kernel or (not line.program and time.monotonic() < until and concerns(line.text))
    ]
    systemd = [line.text for line in lines if line.program in {"systemd", "systemd-oomd", "earlyoom"}]
    own = last_start([line for line in lines if not line.kernel])
    return diagnose(
        own,
        find_xids(kernel),
        ready=ready_before_end(own),
        events=find_events([*kernel, *systemd], seconds=share),
        port=port if port is not None else _port(own),
        seconds=share,
    )


def _port(lines: Sequence[Line]) -> int | None:
    """Return the endpoint's port from the arguments that the engine prints."""
    for line in lines:
        for sign in (
            "Uvicorn running on http://",
            "Uvicorn running on https://",
            "--port ",
            "--port=",
            " port=",
        ):
            at = line.text.find(sign)
            if at < 0 or (sign == " port=" and "server_args=" not in line.text):
                continue
            word = line.text[at + len(sign) : at + len(sign) + 60].split(" ")[0].split(",")[0]
            port = digits(word.rpartition(":")[2].strip("'\")"))
            if port is not None:
                return port
    return None


def status_of(reason: Reason | None) -> int:
    """Return the exit status: by who must act."""
    if reason is None:
        return EXIT_NOTHING
    return {Who.OPERATOR: EXIT_GPU, Who.USER: EXIT_NEVER, Who.WEIGHTS: EXIT_NEVER}.get(reason.who, 0)


def document(reason: Reason | None) -> dict[str, Any]:
    """Return the output for ``--json``."""
    if reason is None:
        return {"schema": 1, "code": None, "who": None, "cause": None, "remedy": None, "restart": None,
                "evidence": [], "exit_status": EXIT_NOTHING}  # fmt: skip
    return {
        "schema": 1,
        "code": reason.code,
        "who": str(reason.who),
        "cause": reason.cause or reason.text,
        "remedy": reason.remedy,
        "restart": reason.status is None,
        "supervisor_status": reason.status,
        "evidence": [one_line(line, 400) for line in reason.evidence],
        "exit_status": status_of(reason),
    }


def shown(reason: Reason | None) -> str:
    """Return the readable output."""
    if reason is None:
        return (
            "cause:    none found: no line explains why an engine ended\nremedy:   pass the whole "
            "log since the engine's start, and the kernel's (journalctl --dmesg)"
        )
    remedy = reason.remedy or "no rule matches these messages: check the evidence; a restart may help"
    lines = [f"cause:    {one_line(reason.cause or reason.text, 600)}  [{reason.code}]"]
    lines += [f"acts:     {ACTS[reason.who]}", f"remedy:   {remedy}"]
    for number, line in enumerate(reason.evidence):
        lines.append(f"{'evidence: ' if not number else '          '}{one_line(line, 240)}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Run ``metal explain``; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="metal explain",
        description="Explain why an engine ended, from a journal or log: cause, who acts, remedy, evidence.",
        epilog="Exit status: 0 the next start may succeed; 1 nothing found; 2 usage; 70 the operator acts; "
        "78 the user acts (settings, packages, weights).",
    )
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help="a log file; - for standard input (the default)"
    )
    parser.add_argument("--unit", metavar="UNIT", help="read this unit's journal: sglang@NAME, or NAME")
    parser.add_argument("--port", type=int, help="the endpoint's port, if the log does not show it")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    if arguments.unit and arguments.file:
        parser.error("give a file or --unit, not both")
    if not arguments.unit and not arguments.file and sys.stdin.isatty():
        parser.error("name a log file, - for standard input, or --unit UNIT")
    text = read_unit(arguments.unit) if arguments.unit else read_file(arguments.file or "-")
    if arguments.unit and is_active(arguments.unit):
        text = before_this_start(text)
        if not text:
            return _say_running(arguments.unit, as_json=arguments.json)
    reason = explain(text, arguments.port)
    print(json.dumps(document(reason), indent=2, ensure_ascii=False) if arguments.json else shown(reason))
    return status_of(reason)


def _say_running(unit: str, *, as_json: bool) -> int:
    """Report that a unit is running and that its journal contains no end; return the exit status."""
    if as_json:
        print(json.dumps({**document(None), "running": True, "exit_status": 0}, indent=2))
    else:
        print(f"cause:    none: {one_line(unit, 100)} is active, and its journal holds no earlier start")
    return 0

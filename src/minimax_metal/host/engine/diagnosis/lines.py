"""Log lines as the engine or the kernel wrote them, without prefixes of journals, containers and terminals.

All patterns are anchored, all repetitions are bounded: the work is linear in the length of a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.text import printable

HEAD: Final = 1_500
TAIL: Final = 480
"""Characters kept from the start and the end of a long line: the engine's ``server_args=`` line has 19,000,
and a compiler's command precedes its result.
"""
JSON_LONGEST: Final = 1 << 18

_TIME = r"\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"
# The journal names a process except for the kernel's lines: without one, the text follows the time.
_WHERE = r"(?P<host>[\w.-]{1,255}) (?P<program>kernel|[^\s\[:]{1,128}(?=\[))(?:\[\d{1,10}\])?: ?"
_PREFIXES: Final[tuple[re.Pattern[str], ...]] = tuple(
    re.compile(pattern)
    for pattern in (
        # docker compose: "sglang-1  | text"
        r"[A-Za-z0-9][\w.-]{0,63} {0,16}\| ?",
        # kubectl logs --prefix
        r"\[pod/[^\]\s]{1,300}\] ?",
        # CRI's files below /var/log/pods
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:?\d\d) (?:stdout|stderr) [FP] ?",
        # journalctl: short, short-precise; syslog
        rf"[A-Z][a-z]{{2}} [ \d]\d {_TIME} {_WHERE}",
        # journalctl: short-iso, short-iso-precise
        rf"\d{{4}}-\d\d-\d\d[T ]{_TIME} ?(?:Z|[+-]\d\d:?\d\d)? {_WHERE}",
        # journalctl: short-full
        rf"[A-Z][a-z]{{2}} \d{{4}}-\d\d-\d\d {_TIME} [A-Z+\d:-]{{1,6}} {_WHERE}",
        # journalctl: short-unix, short-monotonic, short-delta
        rf"\d{{10}}\.\d{{6}} {_WHERE}",
        rf"\[ {{0,8}}\d{{1,9}}\.\d{{6}}(?: <[^>]{{0,16}}>)? {{0,8}}\] {_WHERE}",
        # docker logs --timestamps, kubectl logs --timestamps
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:?\d\d) {1,4}",
        # syslog's priority
        r"<\d{1,3}>",
        # dmesg, dmesg -T
        r"(?P<dmesg>\[ {0,8}\d{1,9}\.\d{1,6}\]) ?",
        r"(?P<dmesg_t>\[[^\W\d]{2,9} [^\]\[]{1,16} \d{1,2} \d\d:\d\d:\d\d(?:\.\d{1,6})? \d{4}\]) ?",
        # SGLang: "[2026-05-17 10:31:02 DP0 TP3] "
        rf"\[(?:\d{{4}}-)?\d\d-\d\d {_TIME}(?P<rank>(?: [A-Z]{{2,6}}\d{{1,4}}){{0,6}})[^\]]{{0,60}}\] ?",
        # torch: "[rank3]:[E1016 03:31:38.919 ProcessGroupNCCL.cpp:607] "
        r"\[(?P<torch>rank\d{1,4})\]: ?",
        r"\[[EWIF]\d{3,4} [^\]]{1,120}\] ?",
        # Ray, vLLM's workers
        r"\([A-Za-z_][\w. ]{0,40} ?pid=\d{1,10}[^)]{0,80}\) ?",
        # logging: "2025-03-07 23:50:27,531 - __main__ - INFO - ", "ERROR 03-02 19:49:00 [file.py:78] "
        rf"\d{{4}}-\d\d-\d\d {_TIME}(?: - [\w.]{{1,80}}){{0,2}} - ",
        rf"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d {_TIME} \[?[\w./]{{1,80}}:\d{{1,6}}\] ?",
    )
)
_ENDS_PREFIX: Final = re.compile(r"[|\]:>)]")
"""Each prefix contains one of these; half a million short lines without any take less than a second."""
_JOURNAL_FIELD: Final = re.compile(r"\s{0,8}([A-Z_][A-Z0-9_]{1,63})=(.*)")
_MOST_PREFIXES: Final = 6


@dataclass(frozen=True, slots=True)
class Line:
    """One line."""

    text: str
    rank: str = ""
    """The writer, by the engine's own prefix: ``TP3``, ``DP0 TP0``."""
    program: str = ""
    """The journal's identifier: ``kernel``, ``systemd``, ``metal``."""
    shown: str = ""
    """The line with its prefixes, as evidence."""
    headed: bool = False
    """Whether it begins with the engine's own time and rank."""

    @property
    def kernel(self) -> bool:
        """Whether the log marks it as the kernel's."""
        return self.program == "kernel"


_BLANK: Final = Line("")


def cut(text: str) -> str:
    """Return at most some 2,000 characters: the start and the end."""
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]} … {text[-TAIL:]}"


def _entry(text: str) -> tuple[str, str] | None:
    """Return message and program of a line that is a JSON object of journalctl, docker or a log collector."""
    try:
        fields = read_json(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    for key in ("MESSAGE", "log", "message", "msg"):
        if key in fields:
            program = fields.get("SYSLOG_IDENTIFIER") or fields.get("_COMM") or ""
            if fields.get("_TRANSPORT") == "kernel":
                program = "kernel"
            return _message(fields[key]), str(program)
    return None


def _message(value: Any) -> str:
    if isinstance(value, list):  # bytes that are not UTF-8, as journalctl writes them
        return bytes(byte for byte in value if isinstance(byte, int) and 0 <= byte < 256).decode(
            "utf-8", "replace"
        )
    return value if isinstance(value, str) else ""


def read_line(raw: str) -> Line:
    """Parse one line."""
    if not raw or raw.isspace():
        return _BLANK
    program = rank = ""
    headed = False
    text = raw
    if raw.lstrip().startswith("{") and len(raw) <= JSON_LONGEST and (found := _entry(raw)):
        text, program = found
    text = printable(cut(text.rstrip("\r\n"))).rstrip()
    shown = text
    for _ in range(_MOST_PREFIXES):
        if _ENDS_PREFIX.search(text) is None:
            break
        for pattern in _PREFIXES:
            match = pattern.match(text)
            if match is None or not match.end():
                continue
            names = match.groupdict()
            program = names.get("program") or program
            if names.get("dmesg") or names.get("dmesg_t"):
                program = program or "kernel"
            headed = headed or names.get("rank") is not None
            rank = (names.get("rank") or "").strip() or names.get("torch") or rank
            text = text[match.end() :]
            break
        else:
            break
    return Line(text, rank, program, shown, headed)


def read_lines(raws: Iterable[str]) -> Iterator[Line]:
    """Parse lines; a message of several lines in one JSON entry becomes several."""
    rank = ""
    for raw in raws:
        field = _JOURNAL_FIELD.match(raw[:128]) if "=" in raw[:72] else None
        if field and field[1] != "MESSAGE" and (raw[:1] == " " or field[1][:1] == "_"):
            continue  # journalctl's verbose and export formats
        line = read_line(raw.partition("=")[2] if field and field[1] == "MESSAGE" else raw)
        if "\n" not in line.text:
            if line.headed:
                rank = line.rank
            elif not line.kernel and not line.rank and rank:
                # The lines of a traceback belong to the rank that its first line names.
                line = replace(line, rank=rank)
            yield line
            continue
        for part in line.text.split("\n"):
            one = read_line(part)
            yield Line(one.text, one.rank or line.rank, one.program or line.program, one.shown, one.headed)

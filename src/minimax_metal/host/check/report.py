"""The result of a post-check: a table for people, JSON for programs, JUnit for test collectors.

``docs/check.md`` describes the JSON (schema 2) field by field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeVar, get_args
from urllib.parse import quote
from xml.etree import ElementTree

from minimax_metal import __version__
from minimax_metal.common.files import write_atomic
from minimax_metal.common.text import printable
from minimax_metal.host.check.table import Row, print_table

SCHEMA: Final = 2
HIDDEN: Final = "[key]"

Status = Literal["passed", "failed", "limited", "skipped"]
STATUSES: Final[tuple[Status, ...]] = get_args(Status)


Held = TypeVar("Held", "Result", "Report")


@dataclass(frozen=True, slots=True)
class Result:
    """One check: its finding, or the expected and the actual result.

    ``detail`` is the finding (passed), the limitation (limited) or the reason (skipped); ``setting`` avoids
    the limitation.
    """

    name: str
    status: Status
    seconds: float
    detail: str = ""
    expected: str | None = None
    got: str | None = None
    look: str | None = None
    setting: str | None = None

    def row(self) -> Row:
        """Its line in the table."""
        seen = self.detail or (f"expected {self.expected}" if self.expected else "")
        lines: tuple[tuple[str, str | None], ...]
        if self.status == "limited":
            lines = (("limit", self.detail), ("avoid by", self.setting))
        else:
            lines = (("expected", self.expected), ("got", self.got), ("look", self.look))
        return Row(self.name, self.status, self.seconds, seen, lines)


@dataclass(frozen=True, slots=True)
class Report:
    """All checks against one endpoint, and its own information (None if not reported)."""

    url: str
    model: str
    time: str
    results: tuple[Result, ...]
    reasoning_parser: str | None = None
    tool_call_parser: str | None = None
    limit_tokens: int | None = None
    engine_version: str | None = None
    levels: tuple[dict[str, Any], ...] = ()
    bench: dict[str, Any] | None = None

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not any(result.status == "failed" for result in self.results)

    def count(self, status: Status) -> int:
        """Return how many checks ended with ``status``."""
        return sum(result.status == status for result in self.results)

    @property
    def seconds(self) -> float:
        """Time of all checks."""
        return sum(result.seconds for result in self.results)

    @property
    def summary(self) -> str:
        """One line for people."""
        counts = ", ".join(f"{self.count(status)} {status}" for status in STATUSES)
        return f"{self.model} at {self.url}: {counts} in {self.seconds:.1f} s"

    def without(self, secret: str | None) -> Report:
        """Return the report without ``secret`` in any text: an endpoint may send back what it received."""
        if not secret:
            return self
        results = tuple(_hide(result, secret) for result in self.results)
        return replace(_hide(self, secret), results=results)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form (schema 2, ``docs/check.md``)."""
        return {
            "schema": SCHEMA,
            "url": self.url,
            "model": self.model,
            "time": self.time,
            "seconds": round(self.seconds, 3),
            "metal": __version__,
            "engine": {
                "version": self.engine_version,
                "reasoning_parser": self.reasoning_parser,
                "tool_call_parser": self.tool_call_parser,
                "limit_tokens": self.limit_tokens,
            },
            "passed": self.passed,
            "counts": {status: self.count(status) for status in STATUSES},
            "checks": [{**asdict(result), "seconds": round(result.seconds, 3)} for result in self.results],
            "figures": list(self.levels),
            "bench": self.bench,
        }

    def as_json(self) -> str:
        """Return the JSON text."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n"

    def as_junit(self) -> str:
        """Return JUnit XML: one suite, one case per check.

        JUnit has no state for a known limitation: it is a skipped case whose message begins with "limited".
        """
        suite = ElementTree.Element(
            "testsuite",
            name=f"metal check {self.model}",
            tests=str(len(self.results)),
            failures=str(self.count("failed")),
            errors="0",
            skipped=str(self.count("skipped") + self.count("limited")),
            time=f"{self.seconds:.3f}",
            timestamp=self.time.partition("+")[0],
            hostname=_printable(self.url),
        )
        for result in self.results:
            case = ElementTree.SubElement(
                suite, "testcase", classname="metal.check", name=result.name, time=f"{result.seconds:.3f}"
            )
            if result.status == "failed":
                message = f"expected {result.expected}, got {result.got}"
                failure = ElementTree.SubElement(case, "failure", message=_printable(message))
                failure.text = _printable(f"look: {result.look}")
            elif result.status == "limited":
                message = f"limited: {result.detail}; avoided by {result.setting}"
                ElementTree.SubElement(case, "skipped", message=_printable(message))
            elif result.status == "skipped":
                ElementTree.SubElement(case, "skipped", message=_printable(result.detail))
            else:
                ElementTree.SubElement(case, "system-out").text = _printable(result.detail)
        root = ElementTree.Element("testsuites")
        root.append(suite)
        ElementTree.indent(root)
        return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"

    def write(self, file: Path, form: Callable[[Report], str] | None = None) -> None:
        """Write the report, by default as JSON; a reader sees the old or the new one, never a part.

        Raises:
            OSError: the file can't be written.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, (form or Report.as_json)(self))

    def print(self, output: IO[str]) -> None:
        """Print the table, then full details of every limitation and failure."""
        print_table(output, "finding", [result.row() for result in self.results], self.summary)


def _hide(holder: Held, secret: str) -> Held:
    """Return a copy without the secret in any text, however it is encoded."""
    forms = dict.fromkeys((secret, quote(secret, safe=""), json.dumps(secret)[1:-1]))
    changed: dict[str, Any] = {}
    for field in fields(holder):
        value = getattr(holder, field.name)
        if isinstance(value, str) and field.name not in {"name", "status", "time"}:
            for form in forms:
                value = value.replace(form, HIDDEN)
            changed[field.name] = value
    return replace(holder, **changed)


def _printable(text: str) -> str:
    """Return ``text`` without characters that XML 1.0 forbids: control characters and lone surrogates."""
    return _NOT_XML.sub("?", text)


_NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def shorten(text: str, limit: int = 300) -> str:
    """Return ``text`` on one line, cut in the middle to ``limit`` characters: both ends matter."""
    line = " ".join(printable(text).split())
    if len(line) <= limit:
        return line
    half = (limit - 3) // 2
    return f"{line[:half]} … {line[-half:]}"


def join(words: Sequence[str]) -> str:
    """Return ``a, b and c``."""
    return ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else "".join(words)

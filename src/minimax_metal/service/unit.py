"""Text for systemd unit files: arguments quoted as systemd reads them, one flag to a line."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./-]+")


def quote(argument: str) -> str:
    """Return one word of a unit file's command or environment line.

    Specifiers (%) and variables ($) are escaped, so the word reaches the program as it is
    (systemd.unit(5) "Specifiers", systemd.service(5) "Command lines").

    Raises:
        ValueError: the argument holds a line break or a NUL, which a unit file cannot carry in one line.
    """
    if re.search(r"[\n\r\0]", argument):
        raise ValueError(f"an argument of a unit holds a line break or NUL: {argument!r}")
    escaped = argument.replace("%", "%%")
    if _PLAIN.fullmatch(argument):
        return escaped
    escaped = escaped.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{escaped}"'


def quote_assignment(assignment: str) -> str:
    """Return one NAME=value for an Environment= line; there `$` is not special, `%` and quotes are.

    Raises:
        ValueError: as `quote`.
    """
    return quote(assignment).replace("$$", "$")


def command_lines(argv: Sequence[str]) -> list[str]:
    """Return a command as lines of a unit file: the program with its module, then a flag and its values each.

    Lines hold no continuation marks; the template adds them.

    Raises:
        ValueError: as `quote`.
    """
    lines: list[list[str]] = [[]]
    for index, argument in enumerate(argv):
        if index and argument.startswith("--"):
            lines.append([])
        lines[-1].append(quote(argument))
    return [" ".join(line) for line in lines if line]

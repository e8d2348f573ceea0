"""Text for systemd unit files: arguments quoted for systemd, one flag per line."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./-]+")


def quote(argument: str) -> str:
    """Return one word of a unit file's command or environment line.

    Specifiers (%) and variables ($) are escaped, so the program receives the word unchanged (systemd.unit(5)
    "Specifiers", systemd.service(5) "Command lines").

    Raises:
        ValueError: the argument contains a line break or a NUL, which a unit file cannot have in one line.
    """
    line(argument)
    escaped = argument.replace("%", "%%")
    if _PLAIN.fullmatch(argument):
        return escaped
    escaped = escaped.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{escaped}"'


def line(text: str) -> str:
    """Return text for a unit file unchanged, including specifiers: for directives that users write
    themselves.

    Raises:
        ValueError: it contains a line break or a NUL. The message does not show it: it may be a secret.
    """
    value = str(text)
    if found := re.search(r"[\n\r\0]", value):
        raise ValueError(f"a value of a unit holds a line break or NUL at character {found.start() + 1}")
    return value


def text(value: str) -> str:
    """Return text for a directive that uses the rest of its line (Description, conditions, LoadCredential).

    Quotes are literal there, specifiers (%) are not; a backslash at the end would join the next line.

    Raises:
        ValueError: as `line`, and for a backslash at the end.
    """
    escaped = line(value).replace("%", "%%")
    if escaped.endswith("\\"):
        raise ValueError("a value of a unit ends with a backslash")
    return escaped


def quote_assignment(assignment: str) -> str:
    """Return one NAME=value for an Environment= line; there `$` is literal, `%` and quotes are not.

    Raises:
        ValueError: as `quote`.
    """
    return quote(assignment).replace("$$", "$")


def command_lines(argv: Sequence[str]) -> list[str]:
    """Return a command as lines of a unit file: the program with its module, then each flag with its values.

    Lines have no continuation marks; the template adds them.

    Raises:
        ValueError: as `quote`.
    """
    lines: list[list[str]] = [[]]
    for index, argument in enumerate(argv):
        if index and argument.startswith("--"):
            lines.append([])
        lines[-1].append(quote(argument))
    return [" ".join(line) for line in lines if line]

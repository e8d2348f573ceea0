"""Make text from outside (a host, a hub, an engine, a client) safe to print: pure."""

from __future__ import annotations

import re
from typing import Final

LINE: Final = 2_000
"""Maximum characters of a foreign line to read: the engine's ``server_args=`` line has 19,000."""
ELLIPSIS: Final = "…"

# C0 without tab and newline, DEL, C1, line and paragraph separators, and bidirectional controls: a terminal
# acts on the first, a reader is deceived by the last. Lone surrogates (from JSON or file names) can't be
# printed at all: print() raises for them.
_CONTROLS: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_ESCAPES: Final = re.compile(
    "\x1b(?:\\[[0-?]{0,64}[ -/]{0,8}[@-~]|\\][^\x07\x1b]{0,2000}(?:\x07|\x1b\\\\)|[@-_])"
)


def printable(text: str) -> str:
    """Return ``text`` without terminal escapes and control characters; tabs and newlines stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def one_line(text: str, limit: int = LINE) -> str:
    """Return ``text`` as one printable line of at most ``limit`` characters, cut at its end."""
    # Cut generously before cleaning, so that the cleaning never reads a gigabyte.
    line = " ".join(printable(text[: 8 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + ELLIPSIS


def has_controls(text: str) -> bool:
    """Return whether ``text`` contains a control character, including newline and tab."""
    return bool(_CONTROLS.search(text)) or "\n" in text or "\t" in text

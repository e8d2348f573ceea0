"""File names from a source: what may become a path on this host. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Final

from minimax_metal.common.errors import UserError
from minimax_metal.common.text import one_line
from minimax_metal.host.weights.manifest import FOLDER

MOST_CHARACTERS: Final = 1000
MOST_COMPONENT: Final = 255
"""Maximum bytes of one name, the file systems' own limit."""
_ADOPTING: Final = ".adopting"


def check(path: object) -> str:
    """Return a file's path below the model directory unchanged.

    Raises:
        UserError: it is not text, leads elsewhere, is not printable or too long, or is a reserved name.
    """
    if not isinstance(path, str):
        raise UserError(
            f"the source lists a file whose name is not text ({one_line(repr(path), 60)}); do not trust it"
        )
    said = one_line(repr(path), 120)
    parts = path.split("/")
    if not path or path.startswith("/") or "\\" in path or any(part in {"", ".", ".."} for part in parts):
        raise UserError(f"the source lists a file {said} outside the model directory; do not trust it")
    if not path.isprintable():
        raise UserError(f"the source lists a file {said} with control characters; do not trust it")
    try:
        longest = max(len(part.encode()) for part in parts)
    except UnicodeEncodeError as error:
        raise UserError(f"the source lists a file {said}, which is not a name; do not trust it") from error
    if len(path) > MOST_CHARACTERS or longest > MOST_COMPONENT:
        raise UserError(f"the source lists a file with a name of {len(path)} characters; do not trust it")
    if _folded(parts[0]) == FOLDER or any(
        part.startswith(".") and part.endswith(_ADOPTING) for part in parts
    ):
        raise UserError(f"the source lists {said}, a name reserved by this project; do not trust it")
    return path


def together(paths: Iterable[str]) -> None:
    """Check that files can exist side by side.

    Raises:
        UserError: two have the same name, or names that differ only in case or Unicode form, or one is a
            folder of the other.
    """
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        key = _folded(path)
        if key in seen:
            twice = (
                "twice"
                if seen[key] == path
                else f"and {one_line(repr(seen[key]), 120)}, which some file systems treat as one name"
            )
            raise UserError(f"the source lists {one_line(repr(path), 120)} {twice}; do not trust it")
        seen[key] = path
        while "/" in key:
            key = key.rpartition("/")[0]
            if folders.setdefault(key, path) is not path:
                break
    both = folders.keys() & seen.keys()
    if both:
        path = seen[min(both)]
        raise UserError(
            f"the source lists {one_line(repr(path), 120)} as a file and as a folder; do not trust it"
        )


def _folded(path: str) -> str:
    return unicodedata.normalize("NFKC", path).casefold()

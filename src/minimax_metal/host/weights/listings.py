"""Parse hubs' file lists into entries: pure, and strict about every type and number.

Each reader takes parsed JSON and raises :class:`UserError` or ``TypeError``/``ValueError``/``KeyError`` for
anything that does not match its hub's documentation; the caller reports it in one line.
"""

from __future__ import annotations

import html.parser
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from minimax_metal.common.errors import UserError
from minimax_metal.common.text import one_line
from minimax_metal.host.weights import names
from minimax_metal.host.weights.manifest import Entry

MOST_FILES: Final = 20_000
MOST_SIZE: Final = 1 << 46
"""Maximum bytes of one file, 70 TB: a larger number is a mistake or an attack."""

_SHA256: Final = re.compile("[0-9a-f]{64}")
_GIT: Final = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Listing:
    """Every file of the model at the revision that the source resolved."""

    files: tuple[Entry, ...]
    revision: str | None


def listing(files: Iterable[Entry], revision: str | None) -> Listing:
    """Return a listing whose files can exist side by side.

    Raises:
        UserError: they can't.
    """
    found = tuple(files)
    names.together(entry.path for entry in found)
    return Listing(found, revision)


def size_of(value: Any, path: str) -> int:
    """Return a size in bytes; some hubs send it as text.

    Raises:
        UserError: it is not a size.
    """
    if isinstance(value, str) and re.fullmatch("[0-9]{1,15}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_SIZE:
        raise UserError(
            f"the source lists {one_line(path, 120)} with {one_line(repr(value), 40)} bytes; do not trust it"
        )
    return value


def _hash(value: Any, form: re.Pattern[str], path: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and form.fullmatch(value.lower()):
        return value.lower()
    raise UserError(
        f"the source gives {one_line(repr(value), 60)} as a hash of {one_line(path, 120)}; expected "
        "hexadecimal digits"
    )


def _list(raw: Any) -> list[Any]:
    if not isinstance(raw, list):
        raise TypeError("its files are not a list")
    if len(raw) > MOST_FILES:
        raise UserError(f"the source lists {len(raw)} files; a model has {MOST_FILES} at most")
    return raw


def commit_of(value: Any) -> str | None:
    """Return a commit id from a hub; None if it sends none.

    Raises:
        ValueError: it is something else.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", value):
        return value
    raise ValueError(f"{one_line(repr(value), 60)} is not a commit")


def hugging_face(raw: Any, path_key: str) -> tuple[dict[str, Entry], list[str]]:
    """Parse files as Hugging Face's API lists them.

    Args:
        raw: ``siblings`` of a model's description, or a tree listing.
        path_key: ``rfilename`` or ``path``.

    Returns:
        the files with a size, and the paths of those without one, which some mirrors list by name only.
    """
    found: dict[str, Entry] = {}
    unsized: list[str] = []
    for file in _list(raw):
        if file.get("type") == "directory":
            continue
        path = names.check(file[path_key])
        if path in found or path in unsized:
            raise UserError(f"the source lists {one_line(repr(path), 120)} twice; do not trust it")
        lfs = file.get("lfs")
        if lfs is not None and not isinstance(lfs, Mapping):
            raise TypeError(f"lfs of {one_line(path, 80)} is not an object")
        size = lfs.get("size") if lfs else file.get("size")
        if size is None:
            unsized.append(path)
            continue
        sha256 = _hash(lfs.get("sha256") or lfs.get("oid"), _SHA256, path) if lfs else None
        git_oid = None if lfs else _hash(file.get("blobId") or file.get("oid"), _GIT, path)
        found[path] = Entry(path, size_of(size, path), sha256, stated=sha256 is not None, git_oid=git_oid)
    return found, unsized


def headed(path: str, size: int, etag: str | None) -> Entry:
    """Return a file from the headers of its answer: an ETag that is a hash is the hub's hash."""
    sha256 = etag if etag and _SHA256.fullmatch(etag) else None
    git_oid = etag if etag and _GIT.fullmatch(etag) else None
    return Entry(path, size_of(size, path), sha256, stated=sha256 is not None, git_oid=git_oid)


def model_scope(raw: Any) -> tuple[list[Entry], list[str]]:
    """Parse files as ModelScope's API lists them; return them, and the folders."""
    found, folders = [], []
    for file in _list(raw):
        path = names.check(file["Path"])
        if file.get("Type") == "tree":
            folders.append(path)
            continue
        sha256 = _hash(file.get("Sha256"), _SHA256, path)
        found.append(Entry(path, size_of(file["Size"], path), sha256, stated=sha256 is not None))
    return found, folders


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Keep the target of a link."""
        if tag == "a" and len(self.found) < MOST_FILES:
            self.found += [value for name, value in attributes if name == "href" and value]


def folder_of(content: bytes, parsed: Any) -> tuple[list[str], list[str]]:
    """Parse a web server's directory listing; return the names of files, and of folders.

    Args:
        content: an HTML page of links (nginx ``autoindex``, Apache ``mod_autoindex``, ``python -m
            http.server``), one name each, folders with a slash at the end.
        parsed: the same as JSON if it is that (nginx ``autoindex_format json``), else None.
    """
    if isinstance(parsed, list):
        wanted = [(one["name"], one.get("type") == "directory") for one in _list(parsed)]
    else:
        links = _Links()
        links.feed(content.decode("utf-8", "replace"))
        links.close()
        wanted = [
            (unquote(link.removeprefix("./")).rstrip("/"), link.endswith("/"))
            for link in links.found
            if not link.startswith(("/", "?", "#", "..")) and ":" not in link and "?" not in link
        ]
    files: list[str] = []
    folders: list[str] = []
    for name, folder in dict.fromkeys(wanted):
        if isinstance(name, str) and "/" not in name and name not in {"", ".", ".."}:
            (folders if folder else files).append(names.check(name))
    return files, folders

"""The manifest of a bundle: what a foreign one may contain, and nothing else. Pure."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from minimax_metal import __version__
from minimax_metal.common.errors import UserError
from minimax_metal.common.text import has_controls, one_line

SCHEMA: Final = 1
LIMIT: Final = 64 << 20
"""Maximum bytes of a manifest: 300,000 entries. The bundle of one fleet has some thousand."""
FILES: Final = 300_000
LARGEST: Final = 1 << 44
"""Maximum bytes of one file: 16 TiB, the limit of ext4."""
ROOTS: Final = frozenset({"pypi", "python", "nvidia", "apt", "weights"})
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, order=True)
class File:
    """One file of a bundle: its path in it, its size in bytes, its SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Document:
    """The contents of a manifest."""

    created: str
    contents: dict[str, Any]
    files: tuple[File, ...]


def write(contents: dict[str, Any], files: tuple[File, ...], created: str) -> bytes:
    """Return a manifest's bytes."""
    document = {
        "schema": SCHEMA,
        "created": created,
        "version": __version__,
        "contents": contents,
        "files": [asdict(file) for file in files],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def _shown(value: Any) -> Any:
    """Return the value with all texts made printable."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, dict):
        return {one_line(key): _shown(one) for key, one in value.items()}
    return [_shown(one) for one in value] if isinstance(value, list) else value


def parse(content: bytes, name: str) -> Document:
    """Parse a manifest that anybody may have written.

    Args:
        content: its bytes, at most :data:`LIMIT`.
        name: its name in messages.

    Raises:
        UserError: it is not a manifest, or lists what no bundle contains.
    """
    try:
        document = json.loads(content, parse_constant=_refuse)
        contents = (
            _shown(document["contents"]) if isinstance(document, dict) and "contents" in document else None
        )
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"found {name} that can't be read ({one_line(str(error), 120)}), expected a manifest; copy it "
            f"again"
        ) from None
    if (
        not isinstance(document, dict)
        or type(document.get("schema")) is not int
        or document["schema"] != SCHEMA
    ):
        raise UserError(
            f"found {name} with another schema, expected schema {SCHEMA}; use the version of metal "
            "that wrote it"
        )
    created, entries = document.get("created"), document.get("files")
    if not isinstance(created, str) or not isinstance(contents, dict) or not isinstance(entries, list):
        raise UserError(f"found {name} without created, contents or files, expected all three; copy it again")
    if len(entries) > FILES:
        raise UserError(f"found {len(entries)} files in {name}, expected {FILES} at most; don't use it")
    files = tuple(_file(entry, name) for entry in entries)
    _apart(files, name)
    return Document(one_line(created, 60), contents, files)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _file(entry: Any, name: str) -> File:
    if not isinstance(entry, dict) or set(entry) != {"path", "size", "sha256"}:
        raise UserError(f"found {name} with malformed entries, expected path, size and sha256")
    path, size, sha256 = entry["path"], entry["size"], entry["sha256"]
    if not isinstance(path, str) or not is_inside(path):
        raise UserError(
            f"found {one_line(repr(path), 120)} in {name}, expected paths inside the bundle; don't use it"
        )
    if type(size) is not int or not 0 <= size <= LARGEST:
        raise UserError(
            f"found the size {one_line(repr(size), 40)} of {path} in {name}, expected bytes; don't use it"
        )
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise UserError(
            f"found the hash {one_line(repr(sha256), 80)} of {path} in {name}, expected 64 hex digits; "
            f"don't use it"
        )
    return File(path, size, sha256)


def is_inside(path: str) -> bool:
    """Return whether a path is below a bundle's own directories, in the only accepted spelling."""
    parts = path.split("/")
    return (
        len(parts) > 1
        and parts[0] in ROOTS
        and str(PurePosixPath(path)) == path
        and all(part not in {"", ".", ".."} and len(part.encode("utf-8", "replace")) <= 255 for part in parts)
        and len(path) <= 2000
        and not has_controls(path)
        and "\\" not in path
        and path.isprintable()
    )


def _apart(files: tuple[File, ...], name: str) -> None:
    """Refuse names that some file systems treat as one, and a file where an entry needs a directory."""
    seen: dict[str, str] = {}
    for file in files:
        folded = unicodedata.normalize("NFC", file.path).casefold()
        if folded in seen:
            raise UserError(
                f"found {file.path!r} and {seen[folded]!r} in {name}, expected names that stay "
                "distinct on every file system; don't use it"
            )
        seen[folded] = file.path
    for folded, path in seen.items():
        for parent in PurePosixPath(folded).parents:
            if str(parent) in seen:
                raise UserError(
                    f"found {seen[str(parent)]!r} in {name}, a file above {path!r}, expected a directory; "
                    f"don't use it"
                )

"""File names of unfinished downloads, and folders that tools keep beside a model: pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from typing import Final

TOOL_FOLDERS: Final = frozenset(
    {
        ".AppleDouble",
        ".DS_Store",
        ".cache",
        ".git",
        ".huggingface",
        ".lock",
        ".mdl",
        ".minimax-metal",
        ".msc",
        ".mv",
        "._____temp",
        ".____temp",
        "@eaDir",
        "__MACOSX",
        "__pycache__",
        "lost+found",
    }
)
"""Folders and files that hub clients, tools and file servers leave in a model directory; not part of a model.

``.AppleDouble`` is netatalk's, ``@eaDir`` Synology's, ``__MACOSX`` of a zip archive made by macOS.
"""

APPLE_DOUBLE: Final = bytes.fromhex("0005160700020000")
"""The start of such a file: magic and version (RFC 1740, appendix A)."""

_MODEL: Final = r"\.(?:safetensors|json|model|txt|py|bin|jinja|md|gguf)"
_UNFINISHED: Final = (
    # aria2 keeps its state beside the file, which has its full size from the beginning.
    (r"\.aria2(?:__temp)?$", "aria2"),
    (r"\.incomplete$", "a hub client"),
    (r"\.crdownload$", "Chrome"),
    (r"\.part(?:ial)?$", "a browser, rclone or another tool"),
    (r"\.filepart$", "WinSCP"),
    (
        r"\.(?:download|downloading|unfinished|unconfirmed|opdownload|ucas|xltd|td|!ut|!qb|bc!)$",
        "a downloader",
    ),
    (r"\.(?:tmp|temp)$", "another tool"),
    (r"\.st[0-9]?$", "axel"),
    (_MODEL + r"\.lock$", "another tool"),
    # rsync: .NAME.XXXXXX; aws s3, s5cmd and others: NAME.XXXXXXXX
    (r"^\." + r".+" + _MODEL + r"\.[A-Za-z0-9]{6}$", "rsync"),
    (r"\.safetensors\.[A-Za-z0-9]{6,10}$", "a copy"),
    (r"\.safetensors\.[0-9]{1,3}$", "wget (a second copy)"),
)
_COMPILED: Final = tuple((re.compile(pattern, re.IGNORECASE), tool) for pattern, tool in _UNFINISHED)
_BESIDE: Final = re.compile(
    r"\.(?:sha256|sha512|md5|sha1|sha256sum|md5sum|metadata|index\.json|gitattributes|gitignore|gitmodules"
    r"|config|txt|yaml|yml|jinja|minisig|asc|sig)$",
    re.IGNORECASE,
)


def is_companion(name: str, siblings: Collection[str], head: bytes = b"") -> bool:
    """Return whether a file only contains what macOS keeps beside another one (AppleDouble: ``._NAME``).

    macOS writes one beside each file on a disk that can't store its attributes (exFAT, SMB, NFS), and its tar
    and rsync copy them. The name ends like that of its file, including ``.safetensors``.

    Args:
        name: the file's name.
        siblings: names in the same folder.
        head: its first bytes, if known; they identify one without a matching file.
    """
    return name.startswith("._") and (name[2:] in siblings or head.startswith(APPLE_DOUBLE))


def companions(paths: Sequence[str], directory: str | None = None) -> str:
    """Return the message about such files; ``directory``: where to remove them, if it is on this host."""
    more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
    place = shlex.quote(directory) if directory is not None else "DIRECTORY"
    return (
        f"a file that macOS keeps beside another one (AppleDouble), not part of the model{more}; "
        f"remove them: find {place} -name '._*' -type f -delete"
    )


def unfinished(name: str) -> str | None:
    """Return the tool whose unfinished download has a file name like this; None for an ordinary name."""
    if _BESIDE.search(name):
        return None
    for pattern, tool in _COMPILED:
        if pattern.search(name):
            return tool
    return None


def unfinished_in_tool_folder(parts: tuple[str, ...], siblings: frozenset[str]) -> bool:
    """Return whether a file in a tool's own folder shows an unfinished download.

    Args:
        parts: path below the model directory, the tool's folder first.
        siblings: names in the same folder.
    """
    name = parts[-1]
    if parts[0] in {".cache", ".huggingface"}:
        if name.endswith(".incomplete"):
            return True
        # huggingface_hub leaves each file's lock, and writes its .metadata when the file is complete.
        return (
            name.endswith(".lock")
            and "download" in parts[:-1]
            and f"{name.removesuffix('.lock')}.metadata" not in siblings
        )
    # modelscope moves a file out of its folder when it is complete.
    return parts[0] in {"._____temp", ".____temp"} and not name.startswith(".")

"""Parse messages of apt, dpkg and Ansible's apt module: lines, URLs, packages and lock holders. Pure.

The formats are those of apt 2.2 to 3.1 ("E: …", since apt 3 "Error: …"), of dpkg 1.20 to 1.22, and of
Ansible's modules, which join the lines of apt with ", " ("Failed to update apt cache: W:…, E:…").
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from minimax_metal.common.text import printable

KEPT: Final = 200_000
"""Maximum characters read of one answer: its end, where programs give the reason."""
SHOWN: Final = 400
_MARK: Final = re.compile(r"^(?:[EWN]:|Error:|Warning:|Notice:)\s*")
_JOINED: Final = re.compile(r", (?=(?:[EWN]|Error|Warning|Notice):)")
_COMMAND: Final = re.compile(r"^'?/usr/bin/apt-get .{0,4000}?'? failed: ", re.MULTILINE)
# A medium's name is in brackets, with spaces: cdrom://[Debian GNU/Linux 12.5.0 _Bookworm_ - Official DVD]
_URL: Final = re.compile(
    r"\bcdrom:(?://)?\[[^\]\n]{1,200}\]|\bfile:/[^\s'\"<>,;]+|\b(?:https?|ftp|mirror)://[^\s'\"<>,;]+"
)
_NOISE: Final = re.compile(
    r"Some index files failed to download|Sub-process /usr/bin/dpkg returned an error code|"
    r"Errors were encountered while processing|^Reading (package lists|state information)|"
    r"^Building dependency tree|apt does not have a stable CLI|Sources disagree on hashes|"
    r"Unable to fetch some archives|See apt-secure|can't be done securely|^$|^Get:\d|^Hit:\d|^Ign:\d|"
    r"^Fetched |dpkg-deb: error: paste subprocess|subprocess paste was killed|^ /var/cache/apt/archives/"
)


def lines_of(failed: Mapping[str, Any]) -> list[str]:
    """Return the lines of a failed task in order, without repetitions; apt's marks are kept.

    Uses ``msg``, ``stdout`` and ``stderr``, also those of a loop's items.
    """
    parts: list[str] = []
    items = failed.get("results")
    items = [one for one in items if isinstance(one, Mapping)] if isinstance(items, list | tuple) else []
    for one in [failed, *([item for item in items if item.get("failed")] or items)]:
        parts += [str(one.get(key) or "")[-KEPT:] for key in ("msg", "stdout", "stderr")]
    text = printable("\n".join(parts).replace("\r", "\n"))
    text = _JOINED.sub("\n", _COMMAND.sub("", text))
    text = re.sub(r"Failed to update apt cache(?: after \d+ retries)?: (?=\S)", "", text)
    return list(dict.fromkeys(line.rstrip() for line in text.splitlines() if line.strip()))


def plain(line: str) -> str:
    """Return a line without apt's mark, with single spaces."""
    return " ".join(_MARK.sub("", line.strip()).split())


def urls_of(line: str) -> list[str]:
    """Return the URLs in a line, without sentence punctuation."""
    return [one if one.startswith("cdrom") else one.rstrip(".:)]") for one in _URL.findall(line)]


def url_near(lines: Sequence[str], number: int) -> str | None:
    """Return the URL that an error concerns: on its own line, else on the nearest line before ("Err:1 URL
    …").
    """
    for line in [lines[number], *reversed(lines[max(0, number - 3) : number])]:
        if found := urls_of(line):
            return found[0]
    return None


def same_place(url: str, base: str) -> bool:
    """Return whether a URL is below another one: ignoring the scheme, with the same host and port, and whole
    directories.
    """
    try:
        one, other = urlsplit(url), urlsplit(base)
    except ValueError:  # a medium's name, or an address in damaged brackets
        return False
    if not other.hostname or (one.hostname, _port(url)) != (other.hostname, _port(base)):
        return False
    above = [part for part in other.path.split("/") if part]
    return [part for part in one.path.split("/") if part][: len(above)] == above


def _port(url: str) -> int | None:
    try:
        parts = urlsplit(url)
        return parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    except ValueError:
        return None


def host_of(url: str) -> str:
    """Return the host of a URL, for messages."""
    try:
        return urlsplit(url).hostname or url
    except ValueError:
        return url


def end_of(lines: Sequence[str], limit: int = SHOWN) -> str:
    """Return the end of a program's output as one line: whole lines, errors if there are any."""
    telling = [line for line in lines if not _NOISE.search(plain(line))] or list(lines)
    loud = [
        one
        for one in telling
        if re.match(r"E:|Error|dpkg: error|dpkg: |.*\b(error|failed|fatal)\b", one, re.I)
    ]
    # dpkg prints a package's error on the line after its name.
    loud += [
        two for one, two in pairwise(telling) if one.startswith("dpkg: error processing") and two not in loud
    ]
    kept: list[str] = []
    for line in reversed((loud or telling)[-6:]):
        said = plain(line)
        if kept and len(said) + sum(map(len, kept)) > limit:
            break
        kept.insert(0, said)
    return shortened(("; " if loud else " ").join(kept), limit)


def shortened(text: str, limit: int = SHOWN) -> str:
    """Return a text of at most ``limit`` characters; a longer one loses its beginning, at a space."""
    if len(text) <= limit:
        return text
    return "… " + text[-limit:].partition(" ")[2]


def package_of(path: str) -> str:
    """Return name and version of a package file, as apt names it in its cache or in a directory for dpkg.

    ``/tmp/apt-dpkg-install-7YcN9P/57-nvidia-utils-450-server_450.80.02-0ubuntu0_amd64.deb`` is
    ``nvidia-utils-450-server 450.80.02-0ubuntu0``.
    """
    name = unquote(path.rpartition("/")[2]).removesuffix(".deb")
    if "/apt-dpkg-install-" in path:
        name = re.sub(r"^\d+-", "", name)
    words = name.split("_")
    return " ".join(words[:2])

"""Redirect the distribution's own package sources to a mirror or the fleet's cache, and back.

Only the addresses change, each with the former one in a comment above it. Suites, components and keys stay as
they were, apt verifies the same signatures, and no other record of the former state is needed. Third-party
sources are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from minimax_metal.common.errors import UserError
from minimax_metal.plan.mirrors import through
from minimax_metal.plan.model import MirrorsPlan, Plan, PlatformPlan

MARK: Final = "# minimax-metal: in place of "
POCKETS: Final = (
    "",
    "-updates",
    "-security",
    "-backports",
    "-proposed",
    "-proposed-updates",
    "-backports-sloppy",
)
_LINE = re.compile(
    r"(?P<head>\s*+deb\s++(?:\[[^\]]*+\]\s++)?)(?P<uri>\S++)(?P<tail>\s++(?P<suite>\S++)\s++\S.*)"
)
_FIELD = re.compile(r"(?P<name>[A-Za-z-]++):[ \t]*+(?P<value>.*)")
_STALE = "Check-Valid-Until: no"

Address = Callable[[str, str], str]
"""Former URI and suite to the new address."""


class UnknownArchiveError(ValueError):
    """A source whose archive can't be requested through a cache."""


def addresses(
    platform: PlatformPlan, mirrors: MirrorsPlan, lists: Mapping[str, str] | None = None
) -> Address | None:
    """Return how the plan redirects the distribution's archives; None: unchanged.

    ``lists`` are the files that ``mirror+file:`` sources name, by path.
    """
    distribution, base, cache = platform.distribution.casefold(), mirrors.distribution_url, mirrors.cache_url
    if base:

        def mirror(uri: str, suite: str) -> str:
            if uri.rstrip("/").endswith("-ports"):
                return f"{base}/ubuntu-ports"
            security = distribution == "debian" and suite.rstrip("/").endswith("-security")
            return f"{base}/{distribution}{'-security' if security else ''}"

        return mirror
    if cache:
        return lambda uri, suite: through(cache, _origin(uri, lists or {}))
    return None


def _origin(uri: str, lists: Mapping[str, str]) -> str:
    kind, _, path = uri.partition(":")
    if kind == "mirror+file":
        text = lists.get(path, "")
        named = [line.split()[0] for line in text.splitlines() if line.strip() and not line.startswith("#")]
        if named:
            uri = named[0]
    if not re.match(r"https?://[^\s@]+$", uri):
        raise UnknownArchiveError(uri)
    try:
        urlsplit(uri)
    except ValueError:
        raise UnknownArchiveError(uri) from None
    return uri


def restore(text: str) -> str:
    """Return the text as it was before :func:`redirect`; any other text is returned unchanged."""
    lines: list[str] = []
    former: str | None = None
    for line in text.splitlines(keepends=True):
        if line.startswith(MARK):
            former = line.removeprefix(MARK).rstrip("\n")
        elif former is not None:
            if former != "nothing":
                lines.append(former + line[len(line.rstrip("\n")) :])
            former = None
        else:
            lines.append(line)
    return "".join(lines)


def redirect(text: str, *, deb822: bool, codename: str, address: Address | None, stale: bool = False) -> str:
    """Return the text with the addresses of the distribution's own sources replaced.

    Args:
        text: a file of apt's sources, redirected before or not.
        deb822: whether it is a ``.sources`` file.
        codename: the distribution's release, such as ``bookworm``.
        address: returns the new address; None restores the former one.
        stale: whether expired lists are accepted.

    Raises:
        UnknownArchiveError: the former address can't be requested through a cache.
    """
    text = restore(text)
    if address is None:
        return text
    suites = {codename + pocket for pocket in POCKETS}
    if deb822:
        stanzas = re.split(r"(\n[ \t]*\n)", text)
        return "".join(
            stanza if index % 2 else _stanza(stanza, suites, address, stale)
            for index, stanza in enumerate(stanzas)
        )
    return "".join(_line(line, suites, address) for line in text.splitlines(keepends=True))


def _line(line: str, suites: set[str], address: Address) -> str:
    match = _LINE.fullmatch(line.rstrip("\n"))
    if not match or match["suite"].rstrip("/") not in suites:
        return line
    asked = address(match["uri"], match["suite"])
    return f"{MARK}{line.rstrip(chr(10))}\n{match['head']}{asked}{match['tail']}\n"


def _stanza(stanza: str, suites: set[str], address: Address, stale: bool) -> str:
    fields = {
        match["name"].casefold(): match["value"].strip()
        for line in stanza.splitlines()
        if (match := _FIELD.match(line))
    }
    named = [one.rstrip("/") for one in fields.get("suites", "").split()]
    uris = fields.get("uris", "").split()
    enabled = fields.get("enabled", "yes").casefold() not in {"no", "false", "0"}
    if not named or not set(named) <= suites or len(uris) != 1 or not enabled:
        return stanza
    lines = []
    for line in stanza.splitlines():
        match = _FIELD.match(line)
        if match and match["name"].casefold() == "uris":
            lines += [MARK + line, f"URIs: {address(uris[0], named[0])}"]
            if stale and "check-valid-until" not in fields:
                lines += [f"{MARK}nothing", _STALE]
        else:
            lines.append(line)
    return "\n".join(lines) + ("\n" if stanza.endswith("\n") else "")


def decide(files: Sequence[Mapping[str, str]], plan: Plan) -> dict[str, Any]:
    """Return the changes to a host's source files.

    Args:
        files: ``{path, content}`` of ``/etc/apt/sources.list``, of the files in ``sources.list.d``, and of
        the
            lists under ``/etc/apt/mirrors``.
        plan: the host's plan.

    Returns:
        ``files``: path and new content of those that change; ``origins``: the archives that a cache must
        know, as ``scheme://host/path``; ``problem``: the reason against it, or None.

    Raises:
        UserError: the plan has no mirrors, or not the host's distribution.
    """
    platform, mirrors = plan.platform, plan.mirrors
    if platform is None or mirrors is None:
        raise UserError(
            f"{plan.host}: found a plan without platform or mirrors, expected both; look at metal plan"
        )
    lists = {file["path"]: file["content"] for file in files if file["path"].startswith("/etc/apt/mirrors/")}
    address = addresses(platform, mirrors, lists)
    origins: set[str] = set()
    if mirrors.cache_url and mirrors.origins.distribution:
        origins.add(mirrors.origins.distribution)

    def noted(uri: str, suite: str) -> str:
        asked = address(uri, suite) if address else uri
        if mirrors.cache_url and not mirrors.distribution_url:
            origins.add(_origin(uri, lists).rstrip("/"))
        return asked

    changed: list[dict[str, str]] = []
    for file in files:
        path = file["path"]
        if path in lists:
            continue
        try:
            content = redirect(
                file["content"],
                deb822=path.endswith(".sources"),
                codename=platform.codename,
                address=noted if address else None,
                stale=mirrors.stale_lists,
            )
        except UnknownArchiveError as error:
            problem = (
                f"found the source {error} in {path}, expected an http(s) URL that the fleet's cache can "
                "ask; set metal_distribution_mirror_url"
            )
            return {"files": [], "origins": [], "problem": problem}
        if content != file["content"]:
            changed.append({"path": path, "content": content})
    return {"files": changed, "origins": sorted(origins), "problem": None}


def own_archives(distribution: str, etc: Path = Path("/etc")) -> tuple[str, str] | None:
    """Return this machine's distribution archive and security archive; None for another distribution.

    One distribution's releases are side by side, so its other releases are found there too.
    """
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', (etc / "os-release").read_text(encoding="utf-8"), re.M))
    codename = release.get("VERSION_CODENAME", "")
    if release.get("ID") != distribution or not codename:
        return None
    named: dict[str, str] = {}

    def note(uri: str, suite: str) -> str:
        if re.match(r"https?://[^\s@]+$", uri):
            named.setdefault(suite.rstrip("/"), uri.rstrip("/"))
        return uri

    for path in [etc / "apt/sources.list", *sorted((etc / "apt/sources.list.d").glob("*"))]:
        if path.is_file() and path.suffix in {".list", ".sources"}:
            deb822 = path.suffix == ".sources"
            redirect(path.read_text(errors="replace"), deb822=deb822, codename=codename, address=note)
    main = named.get(codename)
    return (main, named.get(f"{codename}-security", main)) if main else None

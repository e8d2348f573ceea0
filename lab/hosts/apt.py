"""This machine's apt configuration for the lab's hosts: sources, and how they are fetched.

Only Debian's own sources are passed on; a machine's third-party sources are irrelevant for a bare GPU host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.hosts.errors import LabError
from lab.hosts.processes import run

POCKETS: Final = ("", "-updates", "-security", "-backports")
SETTINGS: Final = (
    # How packages are fetched, not which ones the machine prefers.
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::Max-FutureTime",
    "Acquire::Retries",
    "Acquire::ForceIPv4",
    "Acquire::ForceIPv6",
    "Acquire::Languages",
    "Acquire::http::",
    "Acquire::https::",
)
LOOPBACK: Final = re.compile(r"//(localhost|127\.|\[::1\])")


@dataclass(frozen=True)
class Source:
    """One deb822 stanza, or one line of the old format."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""
    trusted: bool = False

    def render(self) -> str:
        """Return the stanza."""
        lines = [
            "Types: deb",
            f"URIs: {' '.join(self.uris)}",
            f"Suites: {' '.join(self.suites)}",
            f"Components: {' '.join(self.components)}",
            f"Signed-By: {self.signed_by}" if self.signed_by else "",
            "Trusted: yes" if self.trusted else "",
        ]
        return "\n".join(line for line in lines if line) + "\n"


def parse_deb822(text: str) -> Iterator[Source]:
    """Yield the enabled binary sources of a ``.sources`` file."""
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')}\n{line.strip()}"
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
            continue
        yield Source(
            uris=tuple(fields.get("uris", "").split()),
            suites=tuple(fields.get("suites", "").split()),
            components=tuple(fields.get("components", "").split()),
            signed_by=fields.get("signed-by", "").strip(),
            trusted=fields.get("trusted", "no").lower() == "yes",
        )


def parse_list(text: str) -> Iterator[Source]:
    """Yield the binary sources of a ``.list`` file."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)([^#]*)", line)
        if match:
            options = dict(option.partition("=")[::2] for option in (match[1] or "").split() if "=" in option)
            yield Source(
                uris=(match[2],),
                suites=(match[3],),
                components=tuple(match[4].split()),
                signed_by=options.get("signed-by", ""),
                trusted=options.get("trusted", "no") == "yes",
            )


def read_sources(directory: Path = Path("/etc/apt")) -> list[Source]:
    """Return every enabled binary source of this machine."""
    parts = directory / "sources.list.d"
    found: list[Source] = []
    main = directory / "sources.list"
    if main.is_file():
        found += parse_list(main.read_text())
    for path in sorted(parts.glob("*")) if parts.is_dir() else []:
        if path.suffix == ".list":
            found += parse_list(path.read_text())
        elif path.suffix == ".sources":
            found += parse_deb822(path.read_text())
    return found


def debian_sources(sources: Iterable[Source], machine: str, wanted: str) -> str:
    """Return the machine's own Debian sources for another release, as deb822 text.

    A source is Debian's own when its suites are this release's (third parties use other suites, or sign
    with keys of their own) and it has the component ``main``.

    Args:
        sources: What :func:`read_sources` found.
        machine: The machine's release, e.g. ``bookworm``.
        wanted: The host's release, e.g. ``trixie``.

    Raises:
        LabError: nothing is left, so the hosts would have no packages.
    """
    suites = {machine + pocket: wanted + pocket for pocket in POCKETS}
    stanzas: list[str] = []
    for source in sources:
        ours = tuple(suites[suite.rstrip("/")] for suite in source.suites if suite.rstrip("/") in suites)
        uris = tuple(uri for uri in source.uris if re.match(r"https?://", uri) and not LOOPBACK.search(uri))
        archive_key = not source.signed_by or "debian-archive" in source.signed_by
        if ours and uris and "main" in source.components and archive_key:
            stanza = Source(uris, ours, ("main",), source.signed_by, source.trusted).render()
            if stanza not in stanzas:
                stanzas.append(stanza)
    if not any(f" {wanted}" in stanza for stanza in stanzas):
        raise LabError(
            f"no source of Debian {machine} with http(s) and component main under /etc/apt: "
            "the lab's hosts use this machine's package sources"
        )
    return "\n".join(stanzas)


def settings(dump: str) -> list[str]:
    """Return the lines of ``apt-config dump`` about fetching, for the hosts' apt.

    Proxies on this machine's loopback, scripts and key files exist here only and are left out.
    """
    chosen = []
    for line in dump.splitlines():
        match = re.match(r'(\S+) "(.*)";', line)
        if not match or not match[2] or not match[1].startswith(SETTINGS):
            continue
        if LOOPBACK.search(match[2]) or match[2].startswith("/") or "ProxyAutoDetect" in match[1]:
            continue
        if "Proxy-Auto-Detect" in match[1]:
            continue
        chosen.append(line)
    return chosen


def machine_settings() -> list[str]:
    """Return :func:`settings` of this machine."""
    return settings(run(["apt-config", "dump"]))


def machine_release() -> str:
    """Return this machine's Debian code name.

    Raises:
        LabError: it is not Debian.
    """
    release = os_release()
    if release.get("ID") != "debian":
        raise LabError(
            f"this machine is {release.get('PRETTY_NAME', 'unknown')}: the lab needs Debian 12 or 13"
        )
    return release.get("VERSION_CODENAME", "")


def os_release(path: Path = Path("/etc/os-release")) -> dict[str, str]:
    """Return the fields of an os-release file."""
    fields = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        name, _, value = line.partition("=")
        fields[name] = value.strip().strip('"')
    return fields

"""One failed installation, as input for the rules. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from minimax_metal.plan.driver.apt_words import host_of, same_place, url_near

AGAIN: Final = "run the playbook again"
_ARCHIVE: Final = re.compile(
    r"(/apt/https?/[^/]+|/apt)?/(debian(-security)?|ubuntu(-ports)?)(/(?!pve|pbs|ceph)|$)"
)
"""The directory of a distribution on a mirror, a fleet's cache or a bundle; a PPA has others before it."""


@dataclass(frozen=True)
class Failure:
    """One failure: its lines, NVIDIA's repository, collected facts, and the driver in words."""

    lines: Sequence[str]
    url: str
    collected: Mapping[str, Any]
    module: str

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(self.lines)

    def first(self, pattern: str) -> tuple[int, re.Match[str]] | None:
        """Return the first matching line, with its number."""
        for number, line in enumerate(self.lines):
            if found := re.search(pattern, line):
                return number, found
        return None

    def urls(self, pattern: str) -> list[str]:
        """Return the URLs of all matching lines, each once."""
        found = [
            url
            for number, line in enumerate(self.lines)
            if re.search(pattern, line) and (url := url_near(self.lines, number))
        ]
        return list(dict.fromkeys(found))

    def ours(self, url: str) -> bool:
        """Return whether a URL belongs to NVIDIA's configured repository."""
        return same_place(url, self.url)


def where(failure: Failure, urls: Sequence[str]) -> tuple[str, str]:
    """Return who owns the URLs, and where they are configured."""
    if not urls:
        return "a source of apt", "apt-get update on the host names it"
    ours = [one for one in urls if failure.ours(one)]
    if len(ours) == len(urls):
        return "NVIDIA's repository", "nvidia_driver_repository_url (or metal_vendor_repository_url)"
    hosts = ", ".join(dict.fromkeys(host_of(one) for one in urls))
    files = f"the files below /etc/apt on the host that name {hosts}"
    distribution = all(
        re.search(r"(^|\.)(debian\.org|ubuntu\.com)$", host_of(one))
        or (host_of(one) != one and _ARCHIVE.match(urlsplit(one).path))
        for one in urls
    )
    if all(re.search(r"(^|\.)nvidia\.(com|cn)$", host_of(one)) for one in urls):
        return (
            "another NVIDIA repository than the one in use here",
            f"{files} (the repository in use is nvidia_driver_repository_url)",
        )
    if distribution:
        return "the distribution's archive, not NVIDIA's", f"{files}, or metal_distribution_mirror_url"
    if ours:
        return "several sources of apt", f"{files}, and nvidia_driver_repository_url"
    return "another source of apt, not NVIDIA's", files


def shown(urls: Sequence[str]) -> str:
    """Return at most two URLs, in words."""
    return " and ".join(urls[:2]) + (f" and {len(urls) - 2} more" if len(urls) > 2 else "")

"""What apt may install from NVIDIA's repository: one key, and packages with the vendor's own names. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from minimax_metal.common.text import one_line
from minimax_metal.plan.mirrors import is_proxy, is_url

NAMES: Final = (
    "*nvidia*", "cuda*", "nvlsm*", "nsight-*", "gds-tools*", "datacenter-gpu-manager*", "libcuda1*",
    "libcudadebugger1*", "libnvcuvid1*", "libnvoptix1*", "libnvsdm*", "libxnvctrl*", "libcublas*",
    "libcudnn*", "libcufft*", "libcufile*", "libcurand*", "libcusolver*", "libcusparse*",
    "libcutensor*", "libcudss*", "libnccl*", "libnpp*", "libnvfatbin*", "libnvjitlink*",
    "libnvjpeg*", "libnvptxcompiler*", "libnvrtc*", "libnvshmem*", "libnvvm*", "libnvinfer*",
    "libnvonnxparsers*", "tensorrt*",
)  # fmt: skip
"""The vendor's package names, as apt's patterns; a distribution's (libcurl, libcups, libnvme) don't match."""
TARGETS: Final = "$(REPO_URI)|$(ORIGIN)|$(LABEL)"
"""The format for ``apt-get indextargets --format``."""


@dataclass(frozen=True)
class SourcePin:
    """One entry of apt's preferences: packages, the pin, and its priority."""

    packages: str
    pin: str
    priority: int


def primary_fingerprints(listing: str | Iterable[str]) -> list[str]:
    """Return the fingerprints of the primary keys in the output of ``gpg --with-colons --show-keys``.

    Subkeys are ignored: somebody who adopts NVIDIA's key as a subkey signs with a key of their own. The
    format: GnuPG, doc/DETAILS, "pub" and the "fpr" record that follows it.
    """
    lines = listing.splitlines() if isinstance(listing, str) else listing
    found: list[str] = []
    primary = False
    for line in lines:
        fields = line.split(":")
        if fields[0] in {"pub", "sec", "sub", "ssb"}:
            primary = fields[0] == "pub"
        elif fields[0] == "fpr" and primary and len(fields) > 9:
            found.append(fields[9].upper())
            primary = False
    return found


def plain_fingerprint(text: str) -> str:
    """Return a fingerprint without spaces, in capitals; empty if it is incomplete (not 40 or 64 digits)."""
    plain = re.sub(r"\s", "", text).upper()
    return plain if re.fullmatch(r"[0-9A-F]{40}|[0-9A-F]{64}", plain) else ""


def has_key(listing: str | Iterable[str], fingerprint: str) -> bool:
    """Return whether a key file contains the key with this fingerprint, among others."""
    wanted = plain_fingerprint(fingerprint)
    return bool(wanted) and wanted in primary_fingerprints(listing)


def is_key(listing: str | Iterable[str], fingerprint: str) -> bool:
    """Return whether a keyring contains only the key with this fingerprint."""
    wanted = plain_fingerprint(fingerprint)
    return bool(wanted) and primary_fingerprints(listing) == [wanted]


def source_pins(targets: Iterable[str], url: str) -> dict[str, Any]:
    """Return preferences that keep everything but the vendor's own packages of a repository away from apt.

    Args:
        targets: lines of ``apt-get indextargets`` in the form of :data:`TARGETS`, for all sources of apt.
        url: the vendor's repository.

    Returns:
        ``pins``: entries for apt's preferences, as plain data. ``problem``: why there are none, as "found
        ..., expected ...; ...", or None.

    apt distinguishes repositories by the server's name, or by their signed lists' own description. A server
    that also has the distribution's packages (a cache, a mirror) is distinguished by the latter.
    """
    ours: list[list[str]] = []
    others: list[list[str]] = []
    for line in targets:
        fields = (line.rstrip("\n") + "||").split("|")[:3]
        (ours if _same(fields[0], url) else others).append(fields)
    if not ours:
        return {"pins": [], "problem": None}
    site = urlsplit(url).hostname
    chosen: list[str] = []
    if site and site not in {urlsplit(one[0]).hostname for one in others}:
        chosen.append(f'origin "{site}"')
    signed = {(one[1], one[2]) for one in ours}
    apart = not signed & {(one[1], one[2]) for one in others}
    for origin, label in sorted(signed) if apart else ():
        if re.fullmatch(r"[\w .-]+", origin) and re.fullmatch(r"[\w .-]*", label):
            chosen.append(f"release o={origin}" + (f",l={label}" if label else ""))
    if not chosen:
        said = ", ".join(f"origin {one or 'none'}, label {other or 'none'}" for one, other in sorted(signed))
        return {
            "pins": [],
            "problem": f"found {url} on a server that has other sources of apt too, and whose lists say "
            f"{said}, expected lists that say NVIDIA; nothing was installed from it: check the mirror, or "
            "give it its own host name",
        }
    names = " ".join(NAMES)
    pins = [*(SourcePin(names, pin, 500) for pin in chosen), *(SourcePin("*", pin, -1) for pin in chosen)]
    return {"pins": [asdict(pin) for pin in pins], "problem": None}


def preferences(pins: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of a file of apt's preferences."""
    return "\n".join(
        f"Package: {pin['packages']}\nPin: {pin['pin']}\nPin-Priority: {pin['priority']}\n" for pin in pins
    )


def settings_problem(url: str, proxy: str, key: str) -> str | None:
    """Return which repository setting is not allowed in apt's files, as "found ...; ...", or None."""
    if not is_url(url):
        return (
            f"found nvidia_driver_repository_url {one_line(url, 120)}, expected an http(s) URL without "
            f"credentials, "
            "quotes or spaces; fix it"
        )
    if proxy and not is_proxy(proxy):
        return (
            "found a nvidia_driver_repository_proxy with characters that a proxy's URL can't have, "
            "expected http://[USER:PASSWORD@]HOST:PORT; write special characters as %XX"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", key):
        return f"found nvidia_driver_repository_key {one_line(key, 60)}, expected the name of a file; fix it"
    return None


def _same(one: str, other: str) -> bool:
    return one.rstrip("/") == other.rstrip("/")

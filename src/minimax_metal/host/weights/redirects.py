"""Where a source may send a pull: a redirect is followed by these rules, for every hop.

* http and https only, never from https to http, no name or password in the address, eight hops at most.
* The token goes to scheme, host and port it was given for, and to nobody else. Over http it goes to this host
  and to private networks only. ``~/.netrc`` is never read.
* A redirect may lead to the public internet, and to addresses of the kind that the source itself has: a
  mirror in a private network may send to that network, a hub on the internet may not. A mirror on this host
  may send to private networks. Addresses of cloud metadata services are never followed.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from typing import Final
from urllib.parse import urljoin, urlsplit

import urllib3

from minimax_metal.common.text import has_controls, one_line
from minimax_metal.host.weights.errors import SourceError

HOPS: Final = 8
STATUSES: Final = frozenset({301, 302, 303, 307, 308})

PUBLIC, PRIVATE, LINK_LOCAL, LOOPBACK, RESERVED = "public", "private", "link-local", "loopback", "reserved"

_METADATA: Final = frozenset(
    {"169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254"}
)
"""AWS, Azure and GCP; Alibaba Cloud; Azure's host; Oracle Cloud; AWS over IPv6."""
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")

Origin = tuple[str, str, int]


def origin_of(url: str) -> Origin:
    """Return scheme, host and port of a URL.

    Raises:
        ValueError: the port is not a number.
    """
    parts = urlsplit(url)
    return (
        parts.scheme.lower(),
        (parts.hostname or "").lower(),
        parts.port or (443 if parts.scheme == "https" else 80),
    )


def kind_of(address: str) -> str:
    """Return the kind of an IP address: public, private, link-local, loopback or reserved."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        elif found in _NAT64:
            found = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        elif found.sixtofour is not None:
            found = found.sixtofour
    if str(found) in _METADATA or found.is_multicast:
        return RESERVED
    if found.is_loopback or found.is_unspecified:
        return LOOPBACK
    if found.is_link_local:
        return LINK_LOCAL
    return PUBLIC if found.is_global else PRIVATE


def may_go(home: Collection[str], kind: str) -> bool:
    """Return whether a source with addresses of kinds ``home`` may redirect to an address of a kind."""
    if kind == RESERVED:
        return False
    return kind == PUBLIC or kind in home or (kind == PRIVATE and LOOPBACK in home)


def following(name: str, url: str, location: str) -> str:
    """Return the target of a redirect.

    Args:
        name: the source, for errors.
        url: the request's.
        location: the answer's ``Location``.

    Raises:
        SourceError: it must not be followed.
    """
    said = one_line(location.partition("?")[0], 120)
    try:
        target = urljoin(url, location.strip())
        parts = urlsplit(target)
        scheme, host, port = origin_of(target)
        # The HTTP client parses URLs in its own way: both must find the same host.
        other = urllib3.util.parse_url(target)
        if (other.host or "").strip("[]").lower() != host or (other.port or port) != port:
            raise ValueError(target)
    except (ValueError, urllib3.exceptions.LocationParseError) as error:
        raise SourceError(f"{name} redirects to {said!r}, which is not a URL", permanent=True) from error
    if scheme not in {"http", "https"} or not host or has_controls(location) or len(location) > 16_384:
        raise SourceError(f"{name} redirects to {said!r}; expected a URL with http or https", permanent=True)
    if parts.username is not None or parts.password is not None:
        raise SourceError(
            f"{name} redirects to {host} with a name or a password in the URL: not followed", permanent=True
        )
    if urlsplit(url).scheme.lower() == "https" and scheme != "https":
        raise SourceError(
            f"{name} redirects from https to http ({one_line(host, 100)}): not followed, anyone on "
            "the way could read and change it; use an endpoint that stays on https",
            permanent=True,
        )
    return target


def refused(name: str, host: str, address: str, home: Collection[str]) -> SourceError:
    """Return the error for a redirect to an address that the source must not use."""
    kind = kind_of(address)
    what = "a reserved address" if kind == RESERVED else f"a {kind} address"
    own = ", ".join(sorted(home)) or "unknown"
    return SourceError(
        f"{name} redirects to {one_line(host, 100)} ({address}), {what}, but is itself at a {own} "
        "one: not followed; if that address is right, name it as the source's endpoint",
        permanent=True,
    )


def literal(host: str) -> str | None:
    """Return a URL's host as an IP address, None for a name that must be looked up."""
    try:
        return str(ipaddress.ip_address(host.strip("[]").partition("%")[0]))
    except ValueError:
        return "127.0.0.1" if host == "localhost" or host.endswith(".localhost") else None


def stays_inside(host: str, port: int) -> bool:
    """Return whether a host has only addresses on this host and in private networks."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return bool(found) and all(kind_of(str(one[4][0])) in {LOOPBACK, PRIVATE} for one in found)

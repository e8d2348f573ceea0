"""Download media from allowed domains, and only from there.

The engine would resolve the name itself, follow redirects and read without limit. Here each hop's name must
be allowed, and every address that it resolves to must be public. The connection goes to the checked address:
a second answer of the name server changes nothing. Size and time are limited. No proxy is used.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from urllib.parse import urljoin

from .errors import Refused

SECONDS = 10.0
REDIRECTS = 3
PIECE = 64 * 1024
LOOKUPS_AT_ONCE = 16
"""Maximum number of concurrent name lookups, including abandoned ones."""
URL = re.compile(
    r"(https?)://([A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)\.?(?::(\d{1,5}))?([/?][\x21\x23-\x5b\x5d\x5f\x61-\x7a\x7e]*)?"
)
"""A plain URL: no user, backslash, blank or control character, nothing that two parsers read differently."""
TYPE = re.compile(r"(?:image|video|audio)/[A-Za-z0-9.+-]{1,60}")
PORTS = frozenset({80, 443})
NAT64 = ipaddress.ip_network("64:ff9b::/96")
SPECIAL = tuple(map(ipaddress.ip_network, ("168.63.129.16/32", "192.0.0.0/24")))
"""Addresses that some Python versions count as public, but that are clouds' own services (Azure's wire
server, Oracle's metadata).
"""

Resolve = Callable[[str, int], list[str]]
Connect = Callable[[str, int, float], socket.socket]


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


_lookups = threading.BoundedSemaphore(LOOKUPS_AT_ONCE)


def resolved(resolve: Resolve, host: str, port: int, seconds: float) -> list[str]:
    """Return the addresses of a name, from a resolver that may hang.

    ``getaddrinfo`` takes no time limit and can't be interrupted; with silent name servers glibc waits for 5
    s, twice for each of them and for each search domain (resolv.conf(5)). So a thread waits instead. It ends
    when the resolver does, so the number of waiting threads is limited: a client must not be able to start an
    unlimited number.

    Raises:
        TimeoutError: no answer within ``seconds``, or too many lookups hang.
        OSError: the name is unknown.
    """
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()
    deadline = time.monotonic() + seconds

    def look_up() -> None:
        try:
            answers.put(resolve(host, port))
        except Exception as error:  # raised again by the caller
            answers.put(error)
        finally:
            _lookups.release()

    if not _lookups.acquire(timeout=seconds):
        raise TimeoutError
    try:
        threading.Thread(target=look_up, name=f"lookup {host}", daemon=True).start()
    except RuntimeError:
        _lookups.release()
        raise OSError("can't start a thread") from None
    try:
        answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def connect(address: str, port: int, seconds: float) -> socket.socket:
    """A connection to an address."""
    return socket.create_connection((address, port), timeout=seconds)


def is_public(text: str) -> bool:
    """Return whether an address is on the internet.

    Not private, loopback, link-local, shared, reserved, multicast, nor a cloud's own metadata service. An
    IPv4 address inside an IPv6 one (mapped, 6to4, Teredo, NAT64) counts as the IPv4 address.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if any(one is not None and not is_public(str(one)) for one in inner):
            return False
        if address.ipv4_mapped is not None:
            return True
    if any(address.version == network.version and address in network for network in SPECIAL):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def taken_apart(url: str, domains: frozenset[str]) -> tuple[str, str, int, str]:
    """Return scheme, host, port and target of a URL of an allowed domain.

    Raises:
        Refused: it is not one.
    """
    parts = URL.fullmatch(url)
    host = parts.group(2).lower() if parts else ""
    if parts is None or host not in domains:
        allowed = ", ".join(sorted(domains))
        raise Refused(
            400,
            f"media from a domain that is not allowed, or not a plain URL; expected {allowed} or data:",
        )
    scheme = parts.group(1)
    port = int(parts.group(3) or (443 if scheme == "https" else 80))
    if port not in PORTS:
        raise Refused(400, f"media from port {port} of {host}; expected 80 or 443")
    target = (parts.group(4) or "/").partition("#")[0]
    return scheme, host, port, target if target.startswith("/") else f"/{target}"


class Fetcher:
    """Downloads media from allowed domains."""

    def __init__(
        self,
        domains: frozenset[str],
        most_bytes: int,
        seconds: float = SECONDS,
        resolve: Resolve = resolve,
        connect: Connect = connect,
    ) -> None:
        self.domains = domains
        self.most_bytes = most_bytes
        self.seconds = seconds
        self.resolve = resolve
        self.connect = connect

    def fetch(self, url: str) -> tuple[str, bytes]:
        """Return the type and the bytes of a URL's content.

        Raises:
            Refused: the URL is not allowed, or the answer is invalid; the reason names the host only.
        """
        deadline = time.monotonic() + self.seconds
        for _ in range(REDIRECTS + 1):
            scheme, host, port, target = taken_apart(url, self.domains)
            try:
                kind, content = self.ask(scheme, host, port, target, deadline)
            except TimeoutError:
                raise Refused(400, f"media from {host} did not arrive within {self.seconds:g} s") from None
            except (OSError, UnicodeError, http.client.HTTPException) as error:
                raise Refused(400, f"media from {host} can't be fetched: {type(error).__name__}") from None
            if isinstance(content, bytes):
                return kind, content
            url = urljoin(url, content)
        raise Refused(400, f"media from {host} is behind more than {REDIRECTS} redirects")

    def ask(self, scheme: str, host: str, port: int, target: str, deadline: float) -> tuple[str, bytes | str]:
        """Do one hop: return the type and the bytes, or the redirect's target."""
        addresses = resolved(self.resolve, host, port, _rest(deadline))
        if not addresses or not all(is_public(address) for address in addresses):
            raise Refused(400, f"media from {host}: the name resolves to an address that is not public")
        sock = self.connect(addresses[0], port, _rest(deadline))
        open_now = [sock]
        # Whatever the server does with its headers or its body: at the deadline the connection is closed.
        ender = threading.Timer(_rest(deadline), _end, [open_now])
        ender.daemon = True
        ender.start()
        connection = http.client.HTTPConnection(host, port)
        try:
            if scheme == "https":
                sock = open_now[0] = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
            connection.sock = sock
            connection.putrequest("GET", target, skip_accept_encoding=True)
            connection.putheader("Accept", "image/*,video/*,audio/*")
            connection.putheader("Connection", "close")
            connection.endheaders()
            response = connection.getresponse()
            if response.status in {301, 302, 303, 307, 308}:
                return "", response.getheader("Location") or ""
            if response.status != 200:
                raise Refused(400, f"media from {host}: answered {response.status}")
            kind = (response.getheader("Content-Type") or "").partition(";")[0].strip().lower()
            if not TYPE.fullmatch(kind):
                raise Refused(400, f"media from {host}: its type is not image/…, video/… or audio/…")
            return kind, self.read(response, host, deadline)
        finally:
            ender.cancel()
            connection.close()
            sock.close()

    def read(self, response: http.client.HTTPResponse, host: str, deadline: float) -> bytes:
        """Return the body, with a size limit."""
        content = bytearray()
        while piece := response.read1(PIECE):
            content += piece
            if len(content) > self.most_bytes:
                raise Refused(400, f"media from {host} is larger than {self.most_bytes / 2**20:g} MiB")
        _rest(deadline)
        if response.length:
            raise Refused(400, f"media from {host}: the connection was lost")
        return bytes(content)


def _end(open_now: list[socket.socket]) -> None:
    """Close a connection that another thread reads from; below TLS, whose shutdown would wait for it."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(open_now[0], socket.SHUT_RDWR)


def _rest(deadline: float) -> float:
    """Return the seconds until the deadline.

    Raises:
        TimeoutError: none are left.
    """
    rest = deadline - time.monotonic()
    if rest <= 0:
        raise TimeoutError
    return rest


def as_data(kind: str, content: bytes) -> str:
    """Media as a ``data:`` URL."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"

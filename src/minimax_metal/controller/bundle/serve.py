"""Serve a bundle to a fleet: only files of its manifest, from an unprivileged process.

Every request is looked up in the manifest. The file is opened beneath the directory without following a link,
and only a regular file of the listed size is sent, with ``sendfile``. The process does not run as root.
"""

from __future__ import annotations

import os
import pwd
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedReader
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from socketserver import TCPServer
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from minimax_metal.common.errors import UserError
from minimax_metal.common.files import write_atomic
from minimax_metal.common.privileges import drop_to
from minimax_metal.common.web import Timed
from minimax_metal.controller.bundle_store.area import Area, area
from minimax_metal.controller.bundle_store.document import File
from minimax_metal.controller.bundle_store.store import MANIFEST, SIGNATURE, Bundle

VARIABLES: Final = """\
# Hosts fetch everything from the bundle that 'metal bundle serve' serves at this address.
metal_mirrors: {url}
"""
NOBODY: Final = "nobody"
SECONDS: Final = 60.0
"""Seconds that a client may neither read nor send a byte."""
CLIENTS: Final = 512
"""Maximum number of connections."""
OF_ONE: Final = 128
"""Per address: a host that holds its connections open does not lock out others. uv opens 50 at most."""
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
Network = IPv4Network | IPv6Network


def address(listen: str) -> tuple[str, int]:
    """Split ``ADDRESS:PORT``.

    Raises:
        UserError: it has another form.
    """
    host, _, port = listen.rpartition(":")
    host = host.strip("[]") or "0.0.0.0"  # noqa: S104  every address is what no address means
    try:
        ip_address(host)
        if not re.fullmatch(r"\d{1,5}", port) or not 1 <= int(port) <= 65535:
            raise ValueError
    except ValueError:
        raise UserError(f"found --listen {listen}, expected ADDRESS:PORT such as 0.0.0.0:8643") from None
    return host, int(port)


def own_url(host: str, port: int) -> str:
    """Return the URL under which hosts of the fleet reach this server, unless the user names another."""
    name = socket.getfqdn() if ip_address(host).is_unspecified else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def networks(allow: Sequence[str]) -> list[Network]:
    """Return the networks that may connect.

    Raises:
        UserError: one is not a network, or there is none.
    """
    if not allow:
        raise UserError(
            "found no --allow, expected the networks of the hosts that may connect, such as --allow "
            "10.0.0.0/24; 0.0.0.0/0 and ::/0 allow everybody"
        )
    found: list[Network] = []
    for one in allow:
        try:
            found.append(ip_network(one, strict=False))
        except ValueError:
            raise UserError(f"found --allow {one}, expected a network such as 10.0.0.0/24") from None
    return found


def become(user: str | None) -> None:
    """Permanently give up root; no change if this process is not root's.

    Raises:
        UserError: there is no such user, or it is root.
    """
    if os.geteuid() != 0:
        return
    name = user or NOBODY
    try:
        if pwd.getpwnam(name).pw_uid == 0:
            raise UserError(f"found --user {name}, expected a user who is not root; name another")
        drop_to(name)
    except KeyError:
        raise UserError(
            f"found no user {name}, expected a user to serve as; name another with --user"
        ) from None
    if 0 in os.getresuid() or 0 in os.getresgid():
        raise UserError(
            "found this process still running as root, expected it to have dropped its privileges; "
            "don't serve with it"
        )


def run(bundle: Bundle, host: str, port: int, allow: Sequence[str], user: str | None = None) -> int:
    """Serve until interrupted; return the exit status.

    Raises:
        UserError: the address is in use, or the user it runs as can't read the bundle.
    """
    with area(bundle.directory) as opened:
        try:
            server = Server(opened, bundle, (host, port), networks(allow))
        except OSError as error:
            raise UserError(
                f"found {host}:{port} not available ({error.strerror}), expected a free port"
            ) from None
        with server:
            become(user)
            _check_readable(opened, bundle)
            # End as with Ctrl-C, so that the port's descriptor is closed.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            server.serve_forever(poll_interval=0.5)
    return 0


def _check_readable(opened: Area, bundle: Bundle) -> None:
    for file in bundle.files:
        try:
            os.close(opened.open(file.path))
        except OSError as error:
            name = pwd.getpwuid(os.geteuid()).pw_name
            raise UserError(
                f"found {file.path} in {bundle.directory} that {name} can't read ({error.strerror}), "
                f"expected every "
                "file; give that user read access, name another with --user, or run 'metal bundle verify'"
            ) from None


class Server(ThreadingHTTPServer):
    """A bundle on a port."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(
        self, opened: Area, bundle: Bundle, where: tuple[str, int], allow: Sequence[Network]
    ) -> None:
        """Bind the port; serve nothing yet."""
        self.opened, self.allow = opened, allow
        self.files: Mapping[str, File] = {file.path: file for file in bundle.files}
        self.documents = {MANIFEST: bundle.manifest, SIGNATURE: bundle.signature}
        self.places = threading.BoundedSemaphore(CLIENTS)
        self.held: Counter[str] = Counter()
        self.holding = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
        super().__init__(where, Handler)

    def server_bind(self) -> None:
        """Bind the port without asking a name server for this machine's name as HTTPServer does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Return whether this client may connect; nothing is read from others."""
        client = ip_address(str(client_address[0]).partition("%")[0])
        client = getattr(client, "ipv4_mapped", None) or client
        return any(client in one for one in self.allow)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for the client, if there is a free slot."""
        if self._enter(str(client_address[0])):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def _enter(self, client: str) -> bool:
        with self.holding:
            if self.held[client] >= OF_ONE or not self.places.acquire(blocking=False):
                return False
            self.held[client] += 1
            return True

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one client."""
        client = str(client_address[0])
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.release()
            with self.holding:
                self.held[client] -= 1
                if not self.held[client]:
                    del self.held[client]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect: they are not worth a traceback."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"{client_address[0]}: {error!r}", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "minimax-metal"
    sys_version = ""
    timeout = SECONDS

    def setup(self) -> None:
        """Reads a request until a deadline, however slowly it arrives."""
        super().setup()
        self.raw = Timed(self.connection, 0.0)
        self.rfile = BufferedReader(self.raw)

    def handle_one_request(self) -> None:
        """Serve one request, which must arrive within :data:`SECONDS` of the previous answer."""
        self.raw.until = time.monotonic() + SECONDS
        super().handle_one_request()

    def send_response(self, code: int, message: str | None = None) -> None:
        """Begin an answer: each part of it has its own time limit."""
        self.connection.settimeout(SECONDS)
        super().send_response(code, message)

    def do_GET(self) -> None:
        """Send a listed file."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answer like GET, without the body."""
        self._answer(body=False)

    def do_PUT(self) -> None:
        """Refuse: nothing can be written here."""
        self.close_connection = True
        self._refuse(405)

    do_POST = do_DELETE = do_PATCH = do_OPTIONS = do_PUT  # noqa: N815  names of http.server

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a fleet sends some ten thousand requests."""

    def _answer(self, body: bool) -> None:
        if self.headers.get("Content-Length") or self.headers.get("Transfer-Encoding"):
            self.close_connection = True  # a body that is not read
        try:
            name = unquote(urlsplit(self.path).path, errors="strict").removeprefix("/")
        except ValueError:
            name = ""
        if content := self.server.documents.get(name):
            self._head(200, len(content), "application/json" if name == MANIFEST else "text/plain")
            if body:
                self.wfile.write(content)
            return
        page = f"{name.rstrip('/')}/index.html"
        file = self.server.files.get(name) or self.server.files.get(page)
        if file is None:
            self._refuse(404)
            return
        try:
            descriptor = self.server.opened.open(file.path)
        except OSError:
            self._refuse(404)
            return
        try:
            if os.fstat(descriptor).st_size != file.size:
                self._refuse(404)
                return
            self._send(descriptor, file, body)
        finally:
            os.close(descriptor)

    def _send(self, descriptor: int, file: File, body: bool) -> None:
        tag = f'"{file.sha256}"'
        kind = "text/html; charset=utf-8" if file.path.endswith(".html") else "application/octet-stream"
        first, last, status = 0, file.size - 1, 200
        asked = self.headers.get("Range")
        if asked and self.headers.get("If-Range", tag) == tag and (found := _RANGE.fullmatch(asked.strip())):
            wanted = _part(found[1], found[2], file.size)
            if wanted is None:
                self._head(416, 0, kind, {"Content-Range": f"bytes */{file.size}"})
                return
            (first, last), status = wanted, 206
        more = {"ETag": tag, "Accept-Ranges": "bytes"}
        if status == 206:
            more["Content-Range"] = f"bytes {first}-{last}/{file.size}"
        self._head(status, last - first + 1, kind, more)
        if not body:
            return
        self.wfile.flush()
        count = last - first + 1
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            if count and self.connection.sendfile(stream, first, count) < count:  # shorter than before
                self.close_connection = True

    def _refuse(self, status: int) -> None:
        self._head(status, 0, "text/plain")

    def _head(self, status: int, length: int, kind: str, more: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()


def _part(first: str, last: str, size: int) -> tuple[int, int] | None:
    """Return the first and last byte of a range, or None if the file does not contain it."""
    if not first:
        count = int(last or 0)
        return (max(0, size - count), size - 1) if count and size else None
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    return (start, end) if start < size and start <= end else None


def written(path: Path, url: str, frozen: bool = False) -> None:
    """Write the one variable that hosts need; with ``frozen``, also that its package lists never expire."""
    with suppress(FileExistsError):
        path.parent.mkdir(parents=True)
    text = VARIABLES.format(url=url) + ("metal_frozen_sources: true\n" if frozen else "")
    write_atomic(path, text)

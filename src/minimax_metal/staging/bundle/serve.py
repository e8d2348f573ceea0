"""Serve a bundle to a fleet: nginx where there is one, else a server of Python's; with ranges."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final

from minimax_metal.errors import UserError
from minimax_metal.staging.bundle.store import Bundle

VARIABLES: Final = """\
# Hosts fetch everything from the bundle that 'metal bundle serve' serves at this address.
metal_mirrors: {url}
"""


def address(listen: str) -> tuple[str, int]:
    """Split ``ADDRESS:PORT``.

    Raises:
        UserError: it is none.
    """
    host, _, port = listen.rpartition(":")
    host = host.strip("[]") or "0.0.0.0"  # noqa: S104  every address is what no address means
    try:
        ip_address(host)
        number = int(port)
        if not 1 <= number <= 65535:
            raise ValueError
    except ValueError:
        raise UserError(f"found --listen {listen}, expected ADDRESS:PORT such as 0.0.0.0:8643") from None
    return host, number


def own_url(host: str, port: int) -> str:
    """The URL by which hosts of the fleet ask, if nobody names another."""
    name = socket.getfqdn() if ip_address(host).is_unspecified else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def nginx_configuration(directory: Path, runtime: Path, host: str, port: int, allow: Sequence[str]) -> str:
    """The whole configuration of an nginx that serves a bundle as the user who starts it."""
    temporary = "\n".join(
        f"  {kind}_temp_path {runtime}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    rules = "".join(f"    allow {one};\n" for one in allow) + ("    deny all;\n" if allow else "")
    listen = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    # As root, workers would be nobody, who may not read a disk of root's.
    user = f"user {pwd.getpwuid(0).pw_name};\n" if os.geteuid() == 0 else ""
    return f"""\
{user}worker_processes auto;
pid {runtime}/nginx.pid;
error_log stderr warn;
daemon off;
events {{ worker_connections 4096; }}
http {{
{temporary}
  access_log off;
  default_type application/octet-stream;
  types {{ text/html html; application/json json; }}
  sendfile on;
  tcp_nopush on;
  server_tokens off;
  server {{
    listen {listen};
    root "{directory}";
{rules}    location ^~ /.partial/ {{ return 404; }}
    location / {{ limit_except GET {{ deny all; }} try_files $uri $uri/index.html =404; }}
  }}
}}
"""


def check_networks(allow: Sequence[str]) -> None:
    """Raise :class:`UserError` when one is no network."""
    for one in allow:
        try:
            ip_network(one, strict=False)
        except ValueError:
            raise UserError(f"found --allow {one}, expected a network such as 10.0.0.0/24") from None


def run(bundle: Bundle, host: str, port: int, allow: Sequence[str]) -> int:
    """Serve until ended; return the exit status."""
    _check_port(host, port)
    directory = bundle.directory.resolve()
    if set(str(directory)) & set('"\\$\n'):
        raise UserError(
            f"found a quote or a dollar sign in {directory}, expected a plain path; move the bundle"
        )
    nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if nginx:
        with tempfile.TemporaryDirectory(prefix="metal-bundle-") as temporary:
            runtime = Path(temporary)
            path = runtime / "nginx.conf"
            path.write_text(nginx_configuration(directory, runtime, host, port, allow), encoding="utf-8")
            # Ended as by Ctrl-C, so that the server ends with this program.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            process = subprocess.Popen([nginx, "-e", "stderr", "-c", str(path)])
            try:
                return process.wait()
            except BaseException:
                process.terminate()
                process.wait(timeout=30)
                raise
    return _run_in_python(directory, host, port, allow)


def _run_in_python(directory: Path, host: str, port: int, allow: Sequence[str]) -> int:
    import uvicorn

    print("no nginx here: Python serves, about 0.2 GB/s", file=sys.stderr)
    uvicorn.run(application(directory, allow), host=host, port=port, log_level="warning")
    return 0


def application(directory: Path, allow: Sequence[str]) -> Callable[..., Awaitable[None]]:
    """The bundle as an ASGI application, for machines without nginx."""
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount
    from starlette.staticfiles import StaticFiles
    from starlette.types import Receive, Scope, Send

    networks = [ip_network(one, strict=False) for one in allow]
    files = Starlette(routes=[Mount("/", StaticFiles(directory=directory, html=True))])

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            client = ip_address(scope["client"][0]) if scope.get("client") else None
            if networks and not any(client in one for one in networks if client):
                await PlainTextResponse("not allowed\n", 403)(scope, receive, send)
                return
            if scope["path"].startswith("/.partial"):
                await PlainTextResponse("not found\n", 404)(scope, receive, send)
                return
        await files(scope, receive, send)

    return guarded


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"found {host}:{port} not to be had ({error.strerror}), expected a free port"
            ) from None

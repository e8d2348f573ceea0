"""The servers beside the hosts, in their own network namespace: packages, package cache, model hub."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.hosts import network
from lab.hosts.errors import LabError
from lab.hosts.machine import NETNS
from lab.hosts.network import Node
from lab.hosts.paths import CHECKOUT, LabPaths, cache_root
from lab.hosts.processes import Process, spawn, wait_until, write_whole

VENDOR_PORT: Final = 80
HUB_PORT: Final = 8080
REUSED: Final = "runs"
PACKAGES_PORT: Final = 3142  # where Debian's own caching proxy listens


@dataclass(frozen=True)
class Service:
    """One server: its command, and its answer when it works."""

    name: str
    argv: tuple[str, ...]
    port: int
    health_path: str
    configuration: str = ""

    def digest(self) -> str:
        """Return the command and configuration of a running one."""
        text = json.dumps([self.argv, self.port, self.configuration])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def nginx_configuration(paths: LabPaths, address: str, name_servers: list[str]) -> str:
    """Return nginx's configuration: the vendor's files, and a forward proxy that caches packages.

    Package files and by-hash indexes never change under their name, so they are cached for all labs, and two
    hosts that need one at the same time cause one download; everything else is requested again.
    """
    own = paths.services / "web"
    servers = " ".join(f"[{server}]" if ":" in server else server for server in name_servers)
    temporary = "\n".join(
        f"  {kind}_temp_path {own}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""# Written by the lab.
user root;  # the caches lie in root's home
worker_processes 1;
pid {own}/nginx.pid;
error_log {own}/error.log warn;
events {{ worker_connections 512; }}
http {{
{temporary}
  access_log off;
  default_type application/octet-stream;
  sendfile on;
  proxy_cache_path {cache_root()}/apt levels=1:2 keys_zone=packages:4m max_size=8g inactive=365d
                   use_temp_path=off;
  server {{
    listen {address}:{VENDOR_PORT};
    root {paths.vendor};
    autoindex on;
  }}
  server {{
    listen {address}:{PACKAGES_PORT};
    resolver {servers} ipv6=off;
    proxy_http_version 1.1;
    proxy_set_header Host $http_host;
    proxy_set_header Connection "";
    proxy_cache_key $http_host$uri;
    proxy_ignore_headers Cache-Control Expires Set-Cookie Vary X-Accel-Expires;
    proxy_cache_lock on;
    proxy_cache_lock_age 300s;
    proxy_cache_lock_timeout 300s;
    location = /lab-health {{ return 204; }}
    location ~ (\\.deb$|/by-hash/) {{
      proxy_cache packages;
      add_header X-Package-Cache $upstream_cache_status;
      proxy_cache_valid 200 365d;
      proxy_pass http://$http_host$request_uri;
    }}
    location / {{ proxy_pass http://$http_host$request_uri; }}
  }}
}}
"""


def declared(paths: LabPaths, node: Node, name_servers: list[str], hub: bool) -> list[Service]:
    """Return the lab's services.

    Args:
        paths: The lab's state.
        node: Where they listen.
        name_servers: For the package cache.
        hub: Whether the lab publishes any model.
    """
    web = paths.services / "web"
    configuration = nginx_configuration(paths, node.address, name_servers)
    services = [
        Service(
            name="web",
            argv=("nginx", "-p", str(web), "-c", str(web / "nginx.conf"), "-g", "daemon off;"),
            port=PACKAGES_PORT,
            health_path="/lab-health",
            configuration=configuration,
        )
    ]
    if hub:
        services.append(
            Service(
                name="hub",
                argv=(
                    sys.executable,
                    "-m",
                    "lab.hub",
                    "--root",
                    str(paths.hub),
                    "--host",
                    node.address,
                    "--port",
                    str(HUB_PORT),
                    # Written by tests that make the hub fail: lab/hub/faults.py.
                    "--faults",
                    str(paths.services / "hub-faults.json"),
                ),
                port=HUB_PORT,
                health_path="/",
            )
        )
    return services


def record(paths: LabPaths, name: str) -> Path:
    """Return the process record of a service."""
    return paths.services / f"{name}.json"


def state(paths: LabPaths, name: str) -> Process | None:
    """Return the process of a service, if it runs."""
    process = Process.read(record(paths, name))
    return process if process and process.alive() else None


def healthy(address: str, service: Service) -> bool:
    """Return whether the service answers HTTP without an error of its own."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection(address, service.port, timeout=2)
        try:
            connection.request("GET", service.health_path)
            return connection.getresponse().status < 500
        finally:
            connection.close()
    return False


def start(paths: LabPaths, node: Node, service: Service) -> str:
    """Start a service unless it runs as declared; return what was done.

    Raises:
        LabError: it ends, or does not answer; the last line of its log is quoted.
    """
    running = state(paths, service.name)
    if running and running.digest == service.digest() and healthy(node.address, service):
        return REUSED
    if running:
        running.stop()
    end_strays(paths, node)
    log = paths.services / f"{service.name}.log"
    if service.configuration:
        write_whole(paths.services / service.name / "nginx.conf", service.configuration)
        (cache_root() / "apt").mkdir(parents=True, exist_ok=True)
    process = spawn(
        ["nsenter", f"--net={NETNS / node.namespace}", "--", *service.argv], log=log, cwd=CHECKOUT
    )
    Process.of(process.pid, service.digest()).write(record(paths, service.name))
    if not wait_until(lambda: process.poll() is not None or healthy(node.address, service), 30):
        process.kill()
        raise LabError(f"service {service.name} does not answer within 30 s ({_last_line(log)}; log: {log})")
    if process.poll() is not None:
        raise LabError(f"service {service.name} ended at once: {_last_line(log)} (log: {log})")
    return "restarted" if running else "started"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it printed nothing"


def end_strays(paths: LabPaths, node: Node) -> None:
    """End leftovers of a killed service in the services' namespace, e.g. a worker that holds its port.

    Each service leads its own session, so a process that belongs to none of them is a leftover.
    """
    sessions = {process.pid for name in ("web", "hub") if (process := state(paths, name))}
    for pid in network.processes_in(node.namespace):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) not in sessions:
                os.kill(pid, signal.SIGKILL)


def stop_all(paths: LabPaths, node: Node) -> None:
    """Stop every service, including those whose record is lost."""
    for path in sorted(paths.services.glob("*.json")):
        process = Process.read(path)
        if process is not None:
            process.stop()
        path.unlink()
    end_strays(paths, node)
    wait_until(lambda: not network.processes_in(node.namespace), 5)

"""Hosts that share a pull, as processes on this machine: each has its own directories, nginx and pull."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minimax_metal.host.weights.manifest import FOLDER
from minimax_metal.host.weights.request import Request

ADDRESS = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((ADDRESS, 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@dataclass
class Member:
    """One host; ``prefix``: the start of its commands, for instance to run in a network namespace."""

    name: str
    folder: Path
    prefix: Sequence[str] = ()
    pull: subprocess.Popen[str] | None = None
    nginx: subprocess.Popen[bytes] | None = None

    @property
    def file(self) -> Path:
        """Its request."""
        return self.folder / "request.json"

    @property
    def request(self) -> Request:
        """Its request, parsed."""
        return Request.read(self.file)

    @property
    def output(self) -> str:
        """The output of its pulls so far."""
        log = self.folder / "pull.log"
        return log.read_text() if log.exists() else ""

    def tree(self) -> dict[str, bytes]:
        """Return the files of its verified model."""
        root = self.request.path
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file() and FOLDER not in path.parts
        }

    def serve(self, change: Callable[[str], str] | None = None) -> None:
        """Start its nginx, like the unit; ``change``: an edit of its configuration."""
        run = self.folder / "run"
        run.mkdir(exist_ok=True)
        _metal("share-config", "--request", str(self.file), "--output", str(run / "nginx.conf"))
        if change is not None:
            (run / "nginx.conf").write_text(change((run / "nginx.conf").read_text()))
        with (self.folder / "nginx.log").open("ab") as log:
            self.nginx = subprocess.Popen(
                [
                    *self.prefix,
                    *("nginx", "-e", "stderr", "-p", str(run), "-c", str(run / "nginx.conf")),
                    *("-g", "daemon off;" + (" user root;" if os.geteuid() == 0 else "")),
                ],
                stdout=log,
                stderr=log,
            )

    def start(self, *knobs: str) -> None:
        """Start its pull, like the unit."""
        with (self.folder / "pull.log").open("a") as log:
            self.pull = subprocess.Popen(
                [
                    *self.prefix,
                    *(sys.executable, "-m", "minimax_metal.cli", "weights", "pull"),
                    *("--request", str(self.file), "--spare", "0", "--interval", "1", *knobs),
                ],
                stdout=log,
                stderr=log,
                text=True,
                env=clean(),
            )

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End its pull; the attempt under it ends by itself."""
        if self.pull is not None:
            with contextlib.suppress(ProcessLookupError):
                self.pull.send_signal(number)
            self.pull.wait()

    def silence(self) -> None:
        """End its nginx."""
        if self.nginx is not None:
            with contextlib.suppress(ProcessLookupError):
                self.nginx.terminate()
            self.nginx.wait()
            self.nginx = None

    def end(self) -> None:
        """End everything."""
        self.kill()
        self.silence()


@dataclass
class Fleet:
    """Some members that know each other."""

    members: list[Member] = field(default_factory=list)

    def __getitem__(self, number: int) -> Member:
        return self.members[number]

    def start(self, *knobs: str) -> None:
        """Start all pulls."""
        for member in self.members:
            member.start(*knobs)

    def wait(self, timeout: float = 120.0) -> list[int]:
        """Return the pulls' exit statuses, once all have ended."""
        deadline = time.monotonic() + timeout
        return [
            member.pull.wait(timeout=max(0.1, deadline - time.monotonic()))
            for member in self.members
            if member.pull is not None
        ]


def write_request(
    member: Member, sources: list[dict[str, Any]], where: Mapping[str, tuple[str, int]], **share: Any
) -> None:
    """Write a host's request.

    Args:
        member: the host.
        sources: where it may read the model.
        where: address and port of all hosts, by name.
        share: more of the field ``share``.
    """
    member.folder.mkdir(exist_ok=True)
    peers = [
        {"name": name, "address": address, "port": port}
        for name, (address, port) in where.items()
        if name != member.name
    ]
    port = where[member.name][1]
    request = {
        "path": str(member.folder / "srv" / "m" / "r"),
        "sources": sources,
        "share": {"me": member.name, "port": port, "peers": peers, **share},
    }
    member.file.write_text(json.dumps(request))


def clean() -> dict[str, str]:
    """The environment without variables that are not meant for a pull."""
    return {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}


def _metal(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "minimax_metal.cli", "weights", *arguments], check=True, env=clean()
    )


@contextlib.contextmanager
def fleet(
    folder: Path,
    count: int,
    sources: Callable[[int], list[dict[str, Any]]],
    *,
    serve: bool = True,
    **share: Any,
) -> Iterator[Fleet]:
    """Yield ``count`` hosts that serve already and pull as soon as they are started.

    Args:
        folder: for all their files.
        count: hosts.
        sources: the sources of a host, by its number.
        serve: start their nginx.
        share: more of the request's field ``share``.
    """
    secret = folder / "secret"
    secret.write_text(secrets.token_hex(32))
    secret.chmod(0o600)
    ports = free_ports(count)
    where = {f"gpu{number:02}": (ADDRESS, port) for number, port in enumerate(ports)}
    found = Fleet()
    settings = {"secret_file": str(secret), "piece_bytes": 1_000_000, "poll": 0.05, **share}
    for number, name in enumerate(where):
        member = Member(name, folder / name)
        write_request(member, sources(number), where, **settings)
        found.members.append(member)
    try:
        for member in found.members:
            if serve:
                member.serve()
        yield found
    finally:
        for member in found.members:
            member.end()

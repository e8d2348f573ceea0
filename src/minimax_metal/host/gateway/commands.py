"""``metal gateway``: the pool of a gateway, on the gateway's own host.

metal gateway list    --config FILE [--json]
    metal gateway sync    --config FILE [--no-wait] [--timeout S]
    metal gateway drain   --config FILE --worker URL [--no-wait] [--timeout S]
    metal gateway undrain --config FILE --worker URL [--timeout S]
    metal gateway workers --config FILE --host NAME --worker URL [--worker URL ...]

``sync``, ``drain`` and ``undrain`` print ``changed`` or ``unchanged`` as their last word, and can be repeated
at any time. Exit status: 0 done; 1 not done in time (requests still in flight, or workers not ready, are
reported); 2 a usage error, or a gateway that does not answer. The unit uses two more: ``launch`` starts smg
with its keys, ``ready`` waits for it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from minimax_metal.common.errors import UserError
from minimax_metal.common.text import one_line
from minimax_metal.host.gateway import launch as gateway_launch
from minimax_metal.host.gateway.client import Gateway, Registered, Web, in_flight
from minimax_metal.host.gateway.identity import Examiner, Judge, Seen
from minimax_metal.host.gateway.pool import (
    Configuration,
    only_one,
    published,
    read_configuration,
    read_drained,
    read_key,
    read_withheld,
    replace_workers,
    worker_url,
    write_drained,
    write_manifest,
    write_withheld,
)

CONFIGURATION: Final = Path("/etc/sglang-gateway/admin.json")
LOOK_SECONDS: Final = 0.25
WATCH_SECONDS: Final = 2.0
QUIET_LOOKS: Final = 3
"""Consecutive checks without a request in flight: one may be between the gateway and the engine."""
SYNC_SECONDS: Final = 30.0
DRAIN_SECONDS: Final = 600.0
UNDRAIN_SECONDS: Final = 120.0


class Pool:
    """One gateway's pool: its configuration and its actual state."""

    def __init__(self, configuration: Configuration, path: Path | None = None) -> None:
        """``path``: where the configuration was read; once it changes there, nothing more is written."""
        self.configuration = configuration
        self.path = path
        self.written = path.stat().st_mtime_ns if path else None
        admin = Web(read_key(configuration.admin_key_file), configuration.ca_file)
        self.gateway = Gateway(configuration.url, admin)
        key = read_key(configuration.api_key_file)
        self.engines = Web(key, configuration.engine_ca_file)
        self.proving = [worker.url for worker in configuration.workers if worker.proves] if key else []
        self.examiner = Examiner(key or "", Web(None, configuration.engine_ca_file))
        self.judge = Judge()

    def known(self, text: str) -> str:
        """Return a worker's URL.

        Raises:
            UserError: the configuration has no such worker.
        """
        url = worker_url(text)
        urls = sorted(worker.url for worker in self.configuration.workers)
        if url not in urls:
            raise UserError(f"{url} is not a worker of this gateway; known are {', '.join(urls) or 'none'}")
        return url

    def publish(self, drained: frozenset[str]) -> bool:
        """Write state and manifest, drained workers first; return whether a file changed."""
        remembered = write_drained(self.configuration.drained, drained)
        away = drained | (read_withheld(self.configuration) if self.proving else frozenset())
        return write_manifest(self.configuration, away) or remembered

    def look(self) -> frozenset[str]:
        """Ask the workers for their proof, and publish those that gave it; return the others."""
        if not self.proving:
            return frozenset()
        seen = self.examiner.ask_all(self.proving)
        with only_one(self.configuration):
            if self.path is not None and self.path.stat().st_mtime_ns != self.written:
                return read_withheld(self.configuration)
            withheld = self.judge.withheld(read_withheld(self.configuration), seen)
            changed = write_withheld(self.configuration, withheld)
            self.publish(read_drained(self.configuration.drained))
        if changed:
            for url, found in sorted(seen.items()):
                if url in withheld:
                    print(f"{url}: gets no requests: {UNPROVEN[found]}", flush=True)
        return withheld

    def registered(self) -> dict[str, Registered] | None:
        """Return the gateway's workers; empty if no gateway runs, so that nothing goes through it."""
        try:
            self.gateway.web.get(f"{self.configuration.url}/liveness")
        except ConnectionRefusedError:
            return None
        except OSError:
            pass  # the next request reports what is wrong
        return self.gateway.workers()


UNPROVEN: Final = {
    Seen.FOREIGN: "the server there is not the engine, or has another key; find it with ss -ltnp on its host",
    Seen.DOWN: "nothing listens there",
    Seen.SILENT: "it does not answer",
    Seen.PROVEN: "",
}


def wait_for(what: Callable[[], bool], seconds: float) -> bool:
    """Check until a condition holds; return whether it did in time. Checks at least once."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def list_workers(pool: Pool, arguments: argparse.Namespace) -> int:
    """Print every worker of the configuration, and any others in the gateway."""
    drained = read_drained(pool.configuration.drained)
    withheld = read_withheld(pool.configuration) if pool.proving else frozenset()
    registered = pool.registered()
    hosts = {worker.url: worker.host for worker in pool.configuration.workers}
    rows = []
    for url in [*hosts, *sorted(set(registered or {}) - set(hosts))]:
        held = (registered or {}).get(url)
        rows.append(
            {
                "url": url,
                "host": hosts.get(url),
                "model": held.model if held else None,
                "drained": url in drained,
                "status": held.status if held else _absent(url, withheld, registered),
                "load": held.load if held else 0,
            }
        )
    if arguments.json:
        print(
            json.dumps(
                {"gateway": pool.configuration.url, "running": registered is not None, "workers": rows}
            )
        )
    else:
        for row in rows:
            away = ", drained" if row["drained"] else ""
            # The status is text from the gateway, possibly a worker's.
            status = one_line(str(row["status"]))
            print(f"{row['url']}  {row['host'] or '-'}  {status}{away}  {row['load']} in flight")
    return 0


def _absent(url: str, withheld: frozenset[str], registered: Mapping[str, Registered] | None) -> str:
    """Return why a worker is not in the gateway."""
    if registered is None:
        return "gateway down"
    return "unproven" if url in withheld else "out"


def sync(pool: Pool, arguments: argparse.Namespace) -> int:
    """Make the pool match the configuration, without drained workers."""
    configuration = pool.configuration
    known = {worker.url for worker in configuration.workers}
    with only_one(configuration):
        drained = read_drained(configuration.drained) & known
        changed = pool.publish(drained)
    wanted = known - drained
    said = f"{len(wanted)} workers, {len(drained)} drained"
    late: list[str] = []
    if not arguments.no_wait:

        def settled() -> bool:
            pool.look()
            held = pool.registered()
            if held is None:
                raise UserError(
                    f"nothing listens at the gateway {configuration.url}; check systemctl status "
                    "sglang-gateway"
                )
            late[:] = sorted(url for url in wanted if url not in held or held[url].status != "ready")
            return not late and not set(held) - wanted

        # A worker that is down is not the pool's error: the gateway keeps trying, and this reports it.
        wait_for(settled, arguments.timeout)
        said += f", not ready: {', '.join(late)}" if late else ", all ready"
    print(f"{said}: {'changed' if changed else 'unchanged'}")
    return 0


def drain(pool: Pool, arguments: argparse.Namespace) -> int:
    """Take a worker out of the pool and wait until none of its requests is in flight."""
    url = pool.known(arguments.worker)
    deadline = time.monotonic() + arguments.timeout
    with only_one(pool.configuration):
        changed = pool.publish(read_drained(pool.configuration.drained) | {url})
    word = "changed" if changed else "unchanged"
    seen: dict[str, Registered] = {}

    def takes_nothing_new() -> bool:
        held = pool.registered()
        seen.clear()
        seen.update(held or {})
        return url not in seen or seen[url].status == "draining"

    if not wait_for(takes_nothing_new, arguments.timeout):
        print(f"{url}: the gateway still sends requests there after {arguments.timeout:g} s: {word}")
        return 1
    if arguments.no_wait:
        print(f"{url}: out of the pool: {word}")
        return 0
    quiet, count = 0, None

    def nothing_in_flight() -> bool:
        nonlocal quiet, count
        takes_nothing_new()
        here, there = (seen[url].load if url in seen else 0), in_flight(pool.engines, url)
        count = None if there is None else max(here, there)
        # smg forgets its own count some seconds after the worker is out: the engine's remains.
        quiet = quiet + 1 if count == 0 and url not in seen else 0
        return quiet >= QUIET_LOOKS

    if not wait_for(nothing_in_flight, deadline - time.monotonic()):
        left = "it does not report how many" if count is None else f"{count}"
        left += ", and the gateway has not released it yet" if url in seen else ""
        print(f"{url}: out of the pool, requests in flight after {arguments.timeout:g} s: {left}: {word}")
        return 1
    print(f"{url}: drained, nothing in flight: {word}")
    return 0


def undrain(pool: Pool, arguments: argparse.Namespace) -> int:
    """Put a worker back into the pool and wait until the gateway sends it requests."""
    url = pool.known(arguments.worker)
    with only_one(pool.configuration):
        changed = pool.publish(read_drained(pool.configuration.drained) - {url})
    word = "changed" if changed else "unchanged"
    status = "out"

    def ready() -> bool:
        nonlocal status
        withheld = pool.look()
        held = pool.registered()
        status = held[url].status if held and url in held else _absent(url, withheld, held)
        return status == "ready"

    if not wait_for(ready, arguments.timeout):
        print(f"{url}: in the pool, but {status} after {arguments.timeout:g} s: {word}")
        return 1
    print(f"{url}: in the pool and ready: {word}")
    return 0


def workers(pool: Pool, arguments: argparse.Namespace) -> int:
    """Replace a host's workers, before it returns to the pool with other URLs."""
    with only_one(pool.configuration):
        changed = replace_workers(arguments.config, arguments.host, arguments.worker)
    print(f"{arguments.host}: {', '.join(arguments.worker)}: {'changed' if changed else 'unchanged'}")
    return 0


def ready(pool: Pool, arguments: argparse.Namespace) -> int:
    """Wait until the gateway answers; give up immediately when its process has ended."""

    def up() -> bool:
        if arguments.pid and not Path(f"/proc/{arguments.pid}").exists():
            raise UserError(
                f"the gateway's process {arguments.pid} no longer exists; check journalctl -u sglang-gateway"
            )
        try:
            status, _ = pool.gateway.web.get(f"{pool.configuration.url}/liveness")
        except OSError:
            return False
        return status == 200

    if not wait_for(up, arguments.timeout):
        print(f"{pool.configuration.url} does not answer after {arguments.timeout:g} s")
        return 1
    held = len(published(pool.configuration.manifest))
    print(f"{pool.configuration.url} answers; {held} workers in its manifest")
    return 0


def watch(pool: Pool, arguments: argparse.Namespace) -> int:
    """Keep asking the workers for their proof; one without it is out of the pool within seconds."""
    paths = [path for path in (arguments.config, pool.configuration.api_key_file) if path]
    written = [path.stat().st_mtime_ns for path in paths]
    while True:
        pool.look()
        time.sleep(WATCH_SECONDS)
        if [path.stat().st_mtime_ns for path in paths] != written:
            print("the configuration has changed: restarting", flush=True)
            return 0


def healthy(pool: Pool, arguments: argparse.Namespace) -> int:
    """Report whether the gateway has a worker: this moves the shared address of two gateways."""
    try:
        status, _ = pool.gateway.web.get(f"{pool.configuration.url}/readiness")
    except OSError as error:
        print(f"{pool.configuration.url}: {error}")
        return 1
    print(f"{pool.configuration.url}: {'ready' if status == 200 else f'not ready ({status})'}")
    return 0 if status == 200 else 1


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = argparse.ArgumentParser(prog="metal gateway", description="Manage the pool of this host's gateway.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, line: str, seconds: float | None, *, worker: bool = False) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=line, description=line)
        one.add_argument("--config", type=Path, default=CONFIGURATION, help=f"default: {CONFIGURATION}")
        if worker:
            one.add_argument("--worker", required=True, help="URL of the worker, such as http://gpu01:8000")
        if seconds is not None:
            one.add_argument("--timeout", type=float, default=seconds, help=f"seconds (default: {seconds:g})")
        return one

    verb("list", "list workers, their state and requests in flight", None).add_argument(
        "--json", action="store_true"
    )
    named = verb("workers", "update a host's workers: other ports, addresses or count", None)
    named.add_argument("--host", required=True, help="its name in the inventory")
    named.add_argument("--worker", required=True, action="append", help="URL of a worker (repeatable)")
    now = {"action": "store_true", "help": "don't wait until the gateway has caught up"}
    verb("sync", "make the pool match the configuration", SYNC_SECONDS).add_argument("--no-wait", **now)  # type: ignore[arg-type]  # argparse's own keywords
    out = verb(
        "drain", "take a worker out of the pool and wait for requests in flight", DRAIN_SECONDS, worker=True
    )
    out.add_argument(
        "--no-wait", action="store_true", help="return as soon as no new requests are sent there"
    )
    verb(
        "undrain", "put a worker back into the pool and wait until it is ready", UNDRAIN_SECONDS, worker=True
    )
    verb("watch", "keep servers that aren't the engine out of the pool (for the unit)", None)
    verb("healthy", "check that the gateway has a worker (for keepalived)", None)
    verb("ready", "wait for the gateway (for the unit)", 60.0).add_argument("--pid", type=int)
    launch = verbs.add_parser("launch", help="start smg with its keys (for the unit)")
    launch.add_argument("--keys", type=Path, required=True, help="directory with api_key and admin_key")
    launch.add_argument("command", nargs=argparse.REMAINDER, help="-- PYTHON ARGUMENT ... of smg")
    return top


VERBS: Final[dict[str, Callable[[Pool, argparse.Namespace], int]]] = {
    "list": list_workers,
    "sync": sync,
    "drain": drain,
    "undrain": undrain,
    "workers": workers,
    "healthy": healthy,
    "watch": watch,
    "ready": ready,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    arguments = parser().parse_args(argv)
    if arguments.verb == "launch":
        command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
        gateway_launch.launch(arguments.keys, command, dict(os.environ))
    try:
        return VERBS[arguments.verb](Pool(read_configuration(arguments.config), arguments.config), arguments)
    except PermissionError as error:
        raise UserError(f"{error.filename}: {error.strerror}; run as root") from None

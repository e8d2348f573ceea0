"""A whole lab: up, down, and operations in between."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lab.hosts import (
    apt,
    cgroups,
    environment,
    inventory,
    machine,
    network,
    preparations,
    services,
    shaping,
    ssh,
    uplink,
)
from lab.hosts.description import Description, Host, check_name
from lab.hosts.errors import LabError
from lab.hosts.guest import SHARED_CACHE, Guest, end_group
from lab.hosts.mounts import is_mounted, unmount_below
from lab.hosts.network import Network
from lab.hosts.paths import LabPaths, lab_paths
from lab.hosts.processes import write_whole

BOOT_SECONDS: Final = 90.0
REBOOT_SECONDS: Final = 300.0


class Progress:
    """Prints what each step did and how long it took."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def line(self, what: str, outcome: str, seconds: float | None = None) -> None:
        """Print one finished step."""
        took = "" if seconds is None else f"{seconds:7.1f} s"
        print(f"  {what:<22} {outcome:<58} {took}".rstrip(), flush=True)

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[list[str]]:
        """Time a step; its outcome is put into the list."""
        start, outcome = time.monotonic(), [""]
        yield outcome
        self.line(what, outcome[-1], time.monotonic() - start)

    def total(self) -> float:
        """Return the seconds since the beginning."""
        return time.monotonic() - self.started


@dataclass(frozen=True)
class Lab:
    """One lab by name."""

    name: str
    paths: LabPaths

    @classmethod
    def named(cls, name: str) -> Lab:
        """Return the lab of that name, up or not."""
        return cls(name, lab_paths(check_name(name)))

    # -- state -------------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any] | None:
        """Return what ``up`` recorded: number and description; None if there is nothing readable."""
        try:
            record = json.loads(self.paths.record.read_text())
            return {
                "number": int(record["number"]),
                "description": Description.model_validate(record["description"]),
            }
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def guests(self) -> dict[str, Guest]:
        """Return the hosts of a lab that was brought up.

        Raises:
            LabError: it was not.
        """
        record = self.record()
        if record is None:
            raise LabError(f"lab {self.name} is not up: 'python -m lab --name {self.name} up'")
        return self._guests(record["description"], Network(record["number"]))

    def _guests(self, description: Description, net: Network) -> dict[str, Guest]:
        nodes = net.hosts(list(description.hosts))
        return {name: Guest(name, nodes[name], host, self.paths) for name, host in description.hosts.items()}

    def guest(self, name: str) -> Guest:
        """Return one host.

        Raises:
            LabError: the lab is not up, or has no such host.
        """
        guests = self.guests()
        if name not in guests:
            raise LabError(f"lab {self.name} has no host {name!r}: it has {', '.join(guests)}")
        return guests[name]

    # -- up ----------------------------------------------------------------------------------------------

    def up(self, description: Description) -> None:
        """Bring the lab up, or its missing parts.

        Raises:
            LabError: the machine lacks something, or a step failed; finished parts stay for the next ``up``.
        """
        machine.check()
        progress = Progress()
        with machine.locked(f"lab-{self.name}"):
            print(f"lab {self.name}: up ({self.paths.directory})", flush=True)
            net = self._claim(description)
            preparations.end_recorded(self.paths.preparations)
            with preparations.Preparations(self.paths.preparations) as jobs:
                did = self._up(description, net, progress, jobs)
            print(
                f"lab {self.name}: ready in {progress.total():.1f} s, {did or 'everything reused'}; "
                f"ssh -F {self.paths.ssh_config} HOST"
            )

    def _claim(self, description: Description) -> Network:
        record = self.record()
        if record and list(record["description"].hosts) != list(description.hosts):
            raise LabError(
                f"lab {self.name} is up with the hosts {', '.join(record['description'].hosts)}: "
                f"'python -m lab --name {self.name} down' first"
            )
        number = machine.claim_network(self.name, self.paths.directory, record["number"] if record else None)
        written = {"number": number, "description": description.model_dump()}
        self.paths.directory.mkdir(parents=True, exist_ok=True)
        write_whole(self.paths.record, json.dumps(written, indent=1) + "\n")
        return Network(number)

    def _up(
        self, description: Description, net: Network, progress: Progress, jobs: preparations.Preparations
    ) -> str:
        """Do the work of ``up``; return what had to be started, empty if all of it was running."""
        # The longest first; everything below runs beside it.
        systems = sorted({host.system for host in description.hosts.values()})
        roots = {system: jobs.start(f"root {system}", "root", system) for system in systems}
        repository = jobs.start("vendor repository", "repository", self.name)
        simulated = description.engine == "simulated"
        wheel = (
            jobs.start("simulated engine", "simulated", self.name)
            if simulated
            else jobs.start("engine plug-in", "wheel")
        )
        models = (
            jobs.start("models", "models", self.name, *description.models) if description.models else None
        )

        progress.line("preparing", f"side by side; logs: {self.paths.preparations}")
        resolv_conf, name_servers = environment.resolver()
        guests = self._guests(description, net)
        off = sum(guest.keeper() is None for guest in guests.values())
        machine.check_inotify(off, machine.inotify_in_use(), int(machine.INOTIFY_LIMIT.read_text()))
        nodes = {name: guest.node for name, guest in guests.items()}
        with progress.step("network") as outcome:
            net.up()
            made = [node.name for node in (net.services, *nodes.values()) if net.attach(node)]
            shaping.shape(net.services, description.links.uplink_mbit)
            for node in nodes.values():
                shaping.shape(node, description.links.host_mbit)
            outcome.append(f"{net.cidr} on {net.bridge}" + (f", attached {', '.join(made)}" if made else ""))
        with progress.step("keys"):
            ssh.prepare(self.paths, self.name, nodes)

        directories = {}
        for system, job in roots.items():
            result, seconds = job.wait()
            directories[system] = Path(result["directory"])
            progress.line(f"root {system}", result["did"], seconds)
        reached_directly = [net.services.address, *(node.address for node in nodes.values())]
        files = environment.host_files(reached_directly, resolv_conf) | self._lab_files(net, nodes)
        booting = [guest for guest in guests.values() if self._switch_on(guest, directories, files, progress)]

        started = [guest.name for guest in booting]
        result, seconds = repository.wait()
        vendor_path, fingerprint = result["url_path"], result["key_fingerprint"]
        progress.line("vendor repository", f"signed with {fingerprint[-16:]}", seconds)
        result, seconds = wheel.wait()
        plugin = result["path"]
        progress.line(wheel.title, Path(plugin).name, seconds)
        cancelled = threading.Event()
        with ThreadPoolExecutor(max_workers=8) as pool, contextlib.ExitStack() as stack:
            stack.callback(cancelled.set)  # after an error or Ctrl-C nobody waits for the hosts any longer
            waits = {
                guest.name: pool.submit(guest.wait_ready, BOOT_SECONDS, cancelled)
                for guest in guests.values()
            }
            if models is not None:
                _, seconds = models.wait()
                progress.line("models", ", ".join(description.models), seconds)
            address = net.services.address
            for service in services.declared(self.paths, net.services, name_servers, hub=models is not None):
                with progress.step(f"service {service.name}") as outcome:
                    did = services.start(self.paths, net.services, service)
                    outcome.append(f"{did}, {address}:{service.port}")
                if did != services.REUSED:
                    started.append(service.name)
            for name, wait in waits.items():
                seconds = wait.result()
                if guests[name] in booting:
                    progress.line(f"host {name}", f"answers ssh at {nodes[name].address}", seconds)
        hub = f"http://{address}:{services.HUB_PORT}"
        vendor = f"http://{address}:{services.VENDOR_PORT}".removesuffix(":80")
        inventory.write(
            self.paths,
            nodes,
            {
                "lab_vendor_url": f"{vendor}/{vendor_path.strip('/')}".rstrip("/"),
                "lab_vendor_key_fingerprint": fingerprint,
                "lab_hub_url": hub,
                "lab_modelscope_url": hub,
                "lab_engine_plugin_wheel": plugin,
                "lab_catalog_overlays": [
                    *([str(self.paths.catalog_overlay)] if description.models else []),
                    *([str(self.paths.engine_overlay)] if simulated else []),
                ],
                "lab_uv_cache": f"{SHARED_CACHE}/uv",
            },
        )
        return f"started {', '.join(started)}" if started else ""

    def _lab_files(self, net: Network, nodes: dict[str, network.Node]) -> dict[str, str]:
        """Return the hosts' additional configuration: names, and the package cache."""
        own = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
        names = "".join(f"{node.address} {name}\n" for name, node in nodes.items())
        address = net.services.address
        proxied = any("::Proxy" in line for line in apt.machine_settings())
        cache = (
            "// The lab keeps package files for all its hosts; a host asks it instead of the source.\n"
            f'Acquire::http::Proxy "http://{address}:{services.PACKAGES_PORT}";\n'
            'Acquire::https::Proxy "DIRECT";\n'
        )
        direct = f'Acquire::http::Proxy::{address} "DIRECT";\n'
        return {
            "etc/hosts": own + names,
            "etc/apt/apt.conf.d/95lab-packages": ("" if proxied else cache) + direct,
        }

    def _switch_on(
        self, guest: Guest, roots: dict[str, Path], files: dict[str, str], progress: Progress
    ) -> bool:
        """Start a host unless it already runs as described; True if it was started."""
        if guest.running() and guest.as_described() and is_mounted(guest.paths.root):
            return False
        with progress.step(f"host {guest.name}") as outcome:
            # A lost keeper can't be replaced under a running host: only its parent learns why nspawn ended.
            guest.destroy()
            fresh = guest.prepare_disk(roots[guest.host.system], files)
            guest.prepare_pci(write_pci_tree)
            guest.start()
            outcome.append(f"{guest.host.system}, {'a new disk' if fresh else 'its existing disk'}, boots")
        return True

    # -- down --------------------------------------------------------------------------------------------

    def down(self) -> None:
        """Take everything down, whatever its state; the caches stay.

        Raises:
            LabError: something can't be removed; it is named.
        """
        machine.check_root()
        progress = Progress()
        with machine.locked(f"lab-{self.name}"):
            number = machine.find_number(self.paths.directory)
            if number is None:
                record = self.record()
                number = record["number"] if record else None
                if number is not None and machine.owner(number) not in (None, self.paths.directory):
                    number = None  # lost to another lab since a reboot; nothing of ours is left there
            if number is None and not self.paths.directory.exists():
                print(f"lab {self.name}: not up")
                return
            print(f"lab {self.name}: down", flush=True)
            with progress.step("preparations"):
                preparations.end_recorded(self.paths.preparations)
            if number is not None:
                self._take_down(Network(number), progress)
            with progress.step("state") as outcome:
                unmount_below(self.paths.directory)
                if self.paths.directory.exists():
                    shutil.rmtree(self.paths.directory)
                outcome.append(f"{self.paths.directory} removed")
            if number is not None:
                restored = machine.release_network(number)
                progress.line(
                    "machine", ", ".join(restored) or "other labs are running, or nothing was changed"
                )
            print(f"lab {self.name}: down in {progress.total():.1f} s")

    def _take_down(self, net: Network, progress: Progress) -> None:
        prefix = f"mmlab{net.number}-"
        with progress.step("hosts") as outcome:
            hosts = self.paths.directory / "hosts"
            names = {path.name for path in hosts.glob("*")} if hosts.is_dir() else set()
            for name in sorted(names):
                # Names and numbers are enough to remove a host; the description may be lost.
                node = network.Node(net.number, name, network.FIRST_HOST)
                Guest(name, node, Host(system="any"), self.paths).destroy()
            for group in cgroups.existing(prefix):
                end_group(group)
            outcome.append(", ".join(sorted(names)) or "none")
        with progress.step("services"):
            services.stop_all(self.paths, net.services)
        with progress.step("network") as outcome:
            uplink.restore(net)
            net.remove()
            outcome.append(f"{net.bridge} removed")

    # -- in between --------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return the lab's state for JSON."""
        record = self.record()
        if record is None:
            return {"name": self.name, "up": False, "hosts": {}, "services": {}}
        net = Network(record["number"])
        guests = self.guests()
        with ThreadPoolExecutor(max_workers=8) as pool:
            hosts = dict(zip(guests, pool.map(self._host_status, guests.values()), strict=True))
        name_servers = ["127.0.0.1"]  # does not affect health
        listed = services.declared(
            self.paths, net.services, name_servers, hub=bool(record["description"].models)
        )
        shown = {}
        for service in listed:
            process = services.state(self.paths, service.name)
            works = process is not None and services.healthy(net.services.address, service)
            shown[service.name] = {
                "address": f"{net.services.address}:{service.port}",
                "pid": process.pid if process else None,
                "state": "works" if works else ("sick" if process else "stopped"),
            }
        healthy = all(host["state"] == "up" for host in hosts.values()) and all(
            service["state"] == "works" for service in shown.values()
        )
        return {
            "name": self.name,
            "up": healthy,
            "state": str(self.paths.directory),
            "network": net.cidr,
            "hosts": hosts,
            "services": shown,
        }

    def _host_status(self, guest: Guest) -> dict[str, Any]:
        gpus = guest.host.gpus
        link = network.link_state(guest.node)
        if not guest.running():
            state = "off" if is_mounted(guest.paths.root) else "stopped"
        elif link != "up":
            state = link
        else:
            state = "up" if ssh.answers(self.paths, guest.name, "true", seconds=5) else "no ssh"
        return {
            "system": guest.host.system,
            "gpus": f"{gpus.count} x {gpus.model}" if gpus else "none",
            "address": guest.node.address,
            "link": link,
            "state": state,
            "boot_id": guest.boot_id(),
        }

    def reboot(self, host: str) -> float:
        """Reboot a host and wait for it; return the seconds that took.

        Raises:
            LabError: no such host, or it does not come back.
        """
        return self.guest(host).reboot(REBOOT_SECONDS)

    def set_link(self, host: str, up: bool) -> None:
        """Connect a host's cable, or disconnect it.

        Raises:
            LabError: no such host.
        """
        machine.check_root()
        network.set_link(self.guest(host).node, up)

    def set_uplink(self, up: bool) -> None:
        """Give the hosts the uplink and the services, or leave them one another and this machine.

        Raises:
            LabError: the lab is not up.
        """
        machine.check_root()
        self.guests()
        record = self.record()
        if record is not None:
            (uplink.restore if up else uplink.cut)(Network(record["number"]))


def write_pci_tree(destination: Path, model: str, count: int) -> None:
    """Write the PCI devices that a host shows; by the GPU stand-in."""
    from lab.vendor import gpus

    try:
        gpus.write_pci_tree(destination, model, count)
    except gpus.UnknownGpuError as error:
        raise LabError(str(error)) from None

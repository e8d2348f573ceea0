"""One host: its files, its boot, its shutdown."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.hosts import cgroups, mounts, ssh
from lab.hosts.description import Host
from lab.hosts.errors import LabError
from lab.hosts.machine import NETNS
from lab.hosts.network import Node
from lab.hosts.paths import CHECKOUT, HostPaths, LabPaths, cache_root
from lab.hosts.processes import Process, boot_id, run, spawn, start_time, wait_until, write_whole

SHARED_CACHE: Final = "/var/cache/minimax-metal-lab"
"""Path of the lab's package caches on every host."""

SHARED_MEMORY: Final = "8g"
"""Size of a host's /dev/shm; nspawn's own is a tenth of the memory."""

PciTree = Callable[[Path, str, int], None]


@dataclass(frozen=True)
class Guest:
    """A host of a lab."""

    name: str
    node: Node
    host: Host
    lab: LabPaths

    @property
    def paths(self) -> HostPaths:
        """Its files on this machine."""
        return self.lab.host(self.name)

    @property
    def machine_name(self) -> str:
        """Its unique name among all labs: of the nspawn machine and of the control group."""
        return self.node.namespace

    # -- what runs ---------------------------------------------------------------------------------------

    def keeper(self) -> Process | None:
        """Return the keeper, if it runs."""
        process = Process.read(self.paths.keeper)
        return process if process and process.alive() else None

    def nspawn(self) -> Process | None:
        """Return systemd-nspawn, if it runs."""
        process = Process.read(self.paths.machine)
        return process if process and process.alive() else None

    def running(self) -> bool:
        """Tell whether the host is on and kept on."""
        return self.keeper() is not None and self.nspawn() is not None

    def init(self) -> int | None:
        """Return the id, on this machine, of the host's process 1."""
        nspawn = self.nspawn()
        if nspawn is None:
            return None
        children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
        try:
            found = [int(pid) for pid in children.read_text().split()]
        except OSError:
            return None
        return found[0] if found else None

    def boot_id(self) -> str | None:
        """Return the id of the host's current boot; None while it is off or about to be."""
        init = self.init()
        try:
            found = Path(f"/proc/{init}/root/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        return None if found == boot_id() else found  # nspawn has not covered this machine's own yet

    # -- creating it -------------------------------------------------------------------------------------

    def prepare_disk(self, root: Path, files: dict[str, str]) -> bool:
        """Mount the host's disk, laying it out first if it is new or half-made; True when it was laid out.

        Args:
            root: The root file system of its system.
            files: What every host of the lab gets: text by path on the host.

        Raises:
            LabError: the overlay cannot be mounted.
        """
        paths = self.paths
        mounts.unmount_below(paths.directory)
        lower = self._recorded_root()
        if lower is not None:
            mounts.mount_overlay(lower, paths.upper, paths.work, paths.root)
            return False
        for directory in (paths.upper, paths.work):
            if directory.exists():
                shutil.rmtree(directory)
        paths.created.unlink(missing_ok=True)
        mounts.mount_overlay(root, paths.upper, paths.work, paths.root)
        for name, text in (files | self._own_files()).items():
            self._place(name, text)
        self._place("etc/ssh/" + ssh.HOST_KEY, ssh.host_key(self.lab, self.name).read_text(), 0o600)
        (paths.root / "root/.ssh").chmod(0o700)
        (paths.root / SHARED_CACHE.lstrip("/") / "uv").mkdir(parents=True, exist_ok=True)
        write_whole(paths.created, json.dumps({"root": str(root), "system": self.host.system}) + "\n")
        return True

    def _recorded_root(self) -> Path | None:
        try:
            record = json.loads(self.paths.created.read_text())
            root = Path(record["root"])
        except (OSError, ValueError, KeyError):
            return None
        whole = root.is_dir() and self.paths.upper.is_dir() and record.get("system") == self.host.system
        return root if whole else None

    def _own_files(self) -> dict[str, str]:
        return {
            "etc/hostname": f"{self.name}\n",
            "etc/machine-id": f"{uuid.uuid4().hex}\n",
            "etc/ssh/ssh_host_ed25519_key.pub": f"{ssh.public_key(ssh.host_key(self.lab, self.name))}\n",
            "root/.ssh/authorized_keys": f"{ssh.public_key(self.lab.ssh_key)}\n",
        }

    def _place(self, name: str, text: str, mode: int = 0o644) -> None:
        path = self.paths.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a link would lead into this machine's own files
        path.touch(mode=mode)
        path.write_text(text)
        path.chmod(mode)

    def prepare_pci(self, write_pci_tree: PciTree) -> None:
        """Write the host's view of the PCI bus; only while it is off, or it would see the old one."""
        paths = self.paths
        gpus = self.host.gpus
        write_whole(paths.gpus, json.dumps(gpus.model_dump() if gpus else None) + "\n")
        if paths.pci_devices.exists():
            shutil.rmtree(paths.pci_devices)
        paths.pci_devices.parent.mkdir(parents=True, exist_ok=True)
        if gpus and gpus.count:
            write_pci_tree(paths.pci_devices, gpus.model, gpus.count)
        paths.pci_devices.mkdir(exist_ok=True)

    # -- on and off --------------------------------------------------------------------------------------

    def boot_record(self) -> dict[str, object]:
        """Return what the keeper starts."""
        paths = self.paths
        argv = [
            "systemd-nspawn",
            "--quiet",
            "--boot",
            f"--directory={paths.root}",
            f"--machine={self.machine_name}",
            f"--hostname={self.name}",
            # No systemd on this machine is needed, so it need not run one.
            "--register=no",
            "--keep-unit",
            f"--network-namespace-path={NETNS / self.node.namespace}",
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
            "--console=pipe",
            # A lab's disks are thrown away: waiting for them would only waste time.
            "--suppress-sync=yes",
            f"--tmpfs=/dev/shm:mode=1777,size={SHARED_MEMORY}",
            f"--bind={cache_root() / 'uv'}:{SHARED_CACHE}/uv",
            f"--bind-ro={paths.pci_devices}:/sys/bus/pci/devices",
            *(["--capability=CAP_NET_ADMIN"] if self.host.network_admin else []),
        ]
        environment = {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "SYSTEMD_NSPAWN_LOCK": "0",  # the keeper's record does that, and leaves no file behind
            "SYSTEMD_NSPAWN_TMPFS_TMP": "0",  # /tmp as the distribution has it
        }
        return {"argv": argv, "environment": environment, "cgroup": self.machine_name}

    def digest(self) -> str:
        """Return a digest that tells whether a host must be restarted to match its description."""
        gpus = self.host.gpus.model_dump() if self.host.gpus else None
        text = json.dumps([self.boot_record(), gpus, self.host.system], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def start(self) -> None:
        """Switch the host on; its disk is mounted and its PCI tree written."""
        paths = self.paths
        (cache_root() / "uv").mkdir(parents=True, exist_ok=True)
        write_whole(paths.boot, json.dumps(self.boot_record(), indent=1) + "\n")
        keeper = spawn(
            [sys.executable, "-m", "lab.hosts.keeper", str(paths.directory)],
            log=paths.directory / "keeper.log",
            cwd=CHECKOUT,
        )
        Process.of(keeper.pid, self.digest()).write(paths.keeper)

    def as_described(self) -> bool:
        """Return whether the running host was started with its current description."""
        keeper = self.keeper()
        return keeper is not None and keeper.digest == self.digest()

    def wait_ready(self, seconds: float, cancelled: threading.Event | None = None) -> float:
        """Wait until users can log in, or ``cancelled`` is set; return the seconds it took.

        Raises:
            LabError: it ended, or took longer.
        """
        start = time.monotonic()
        end = start + seconds
        while time.monotonic() < end:
            if cancelled is not None and cancelled.is_set():
                return time.monotonic() - start
            if self.keeper() is None:
                raise LabError(f"{self.name} did not boot: {self._last_words()}")
            if self._port_open() and ssh.answers(
                self.lab,
                self.name,
                "timeout 15 sh -c 'until systemctl is-active --quiet systemd-user-sessions.service; "
                "do sleep 0.1; done'",
            ):
                return time.monotonic() - start
            time.sleep(0.1)
        raise LabError(f"{self.name} does not answer ssh after {seconds:.0f} s: {self._last_words()}")

    def _port_open(self) -> bool:
        try:
            with socket.create_connection((self.node.address, 22), timeout=1):
                return True
        except OSError:
            return False

    def _last_words(self) -> str:
        try:
            lines = self.paths.console.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return f"its console ends with {lines[-1].strip() if lines else 'nothing'!r} ({self.paths.console})"

    def reboot(self, seconds: float) -> float:
        """Reboot cleanly, as Ctrl-Alt-Del would, and wait until users can log in again.

        Raises:
            LabError: the host is off, or does not come back.
        """
        start = time.monotonic()
        before, init = self.boot_id(), self.init()
        if init is None or before is None:
            raise LabError(f"{self.name} is off: switch it on with 'up'")
        os.kill(init, signal.SIGINT)
        if not wait_until(lambda: self.boot_id() not in (None, before) or self.keeper() is None, seconds):
            raise LabError(
                f"{self.name} is still shutting down after {seconds:.0f} s (console: {self.paths.console})"
            )
        self.wait_ready(seconds)
        return time.monotonic() - start

    def destroy(self) -> None:
        """Switch off immediately, whatever the records say, and unmount; the disk stays.

        Raises:
            LabError: a process or a mount can't be removed.
        """
        keeper, nspawn = self.keeper(), self.nspawn()
        for process in (keeper, nspawn):
            if process is not None:
                process.stop(grace=0)
        end_group(self.machine_name)
        mounts.unmount_below(self.paths.directory)
        self.paths.keeper.unlink(missing_ok=True)
        self.paths.machine.unlink(missing_ok=True)


def end_group(name: str) -> None:
    """End every process in a host's control group.

    Raises:
        LabError: one cannot be ended.
    """
    if not cgroups.kill(name):
        left = [pid for pid in cgroups.members(name) if start_time(pid)]
        if left:
            raise LabError(f"processes {left} of {name} do not end; kill them by hand and repeat")
    for directory in (Path("/run/systemd/nspawn/propagate") / name,):
        if directory.is_dir():
            run(["rmdir", str(directory)], check=False)

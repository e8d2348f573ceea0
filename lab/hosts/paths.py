"""Paths of a lab's files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.hosts.errors import LabError

CHECKOUT: Final = Path(__file__).parents[2]
"""The repository: the working directory of everything the lab starts."""

RUNTIME: Final = Path("/run/minimax-metal-lab")
"""Machine-wide state until the next reboot: networks in use, settings to restore."""


def labs_root() -> Path:
    """Return the directory that holds a directory per lab (``METAL_LAB_ROOT`` moves it)."""
    return Path(os.environ.get("METAL_LAB_ROOT", "/var/lib/minimax-metal-lab")).absolute()


def cache_root() -> Path:
    """Return the directory of the caches that labs and clones share; safe to delete while no lab runs.

    Raises:
        LabError: the path holds a character that overlay mounts or nspawn would take for a separator.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = (Path(base) / "minimax-metal").absolute()
    if set(str(path)) & set(":,\\ "):
        raise LabError(
            f"cache directory {path} contains a colon, comma, space or backslash: set XDG_CACHE_HOME"
        )
    return path


@dataclass(frozen=True)
class HostPaths:
    """The files of one host."""

    directory: Path

    @property
    def upper(self) -> Path:
        """Files that the host has written."""
        return self.directory / "upper"

    @property
    def work(self) -> Path:
        """Overlayfs's own."""
        return self.directory / "work"

    @property
    def root(self) -> Path:
        """Where the overlay is mounted."""
        return self.directory / "root"

    @property
    def created(self) -> Path:
        """Written last when the host's files are created: without it they are incomplete."""
        return self.directory / "created.json"

    @property
    def boot(self) -> Path:
        """The command that the keeper starts."""
        return self.directory / "boot.json"

    @property
    def keeper(self) -> Path:
        """The keeper's process record."""
        return self.directory / "keeper.json"

    @property
    def machine(self) -> Path:
        """The record of systemd-nspawn, written by the keeper."""
        return self.directory / "nspawn.json"

    @property
    def console(self) -> Path:
        """The host's console output, all boots."""
        return self.directory / "console.log"

    @property
    def gpus(self) -> Path:
        """The host's cards, as the lab description has them."""
        return self.directory / "gpus.json"

    @property
    def pci_devices(self) -> Path:
        """The host's /sys/bus/pci/devices."""
        return self.directory / "sysfs" / "pci-devices"


@dataclass(frozen=True)
class LabPaths:
    """The state of one lab; ``directory`` is all of it."""

    directory: Path

    @property
    def record(self) -> Path:
        """Network number and host addresses."""
        return self.directory / "lab.json"

    @property
    def ssh(self) -> Path:
        """The lab's key pair, host keys and known_hosts."""
        return self.directory / "ssh"

    @property
    def ssh_key(self) -> Path:
        """The key that opens every host of this lab."""
        return self.ssh / "key"

    @property
    def known_hosts(self) -> Path:
        """The host keys the lab made, for the addresses it gave."""
        return self.ssh / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        """For people: ``ssh -F``."""
        return self.directory / "ssh_config"

    @property
    def inventory(self) -> Path:
        """Connection variables and the addresses of the stand-ins, for Ansible."""
        return self.directory / "inventory" / "hosts.yml"

    @property
    def catalog_overlay(self) -> Path:
        """Sizes and revisions of the tiny models, for ``metal_catalog_overlay``."""
        return self.directory / "catalog-overlay.yml"

    @property
    def engine_overlay(self) -> Path:
        """The simulated engine's lock, for ``metal_catalog_overlay``."""
        return self.directory / "engine-overlay.yml"

    @property
    def services(self) -> Path:
        """Records, logs and configuration of the services."""
        return self.directory / "services"

    @property
    def hub(self) -> Path:
        """The model hub's published models."""
        return self.directory / "hub"

    @property
    def vendor(self) -> Path:
        """The vendor's package repository, as served."""
        return self.directory / "vendor"

    @property
    def vendor_keys(self) -> Path:
        """The key that signs it."""
        return self.directory / "vendor-keys"

    @property
    def preparations(self) -> Path:
        """Results and logs of what ``up`` prepares in parallel."""
        return self.directory / "preparations"

    def host(self, name: str) -> HostPaths:
        """Return the files of one host."""
        return HostPaths(self.directory / "hosts" / name)


def lab_paths(name: str) -> LabPaths:
    """Return the state paths of the lab of that name.

    Raises:
        LabError: the parent directory cannot be part of an overlay mount's options.
    """
    directory = labs_root() / name
    if set(str(directory)) & set(":,\\ "):
        raise LabError(f"{directory} contains a colon, comma, space or backslash: set METAL_LAB_ROOT")
    return LabPaths(directory)

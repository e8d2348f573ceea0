"""The packages of a driver: planned, installed and available ones. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_VERSION = re.compile(r"^(?:\d+:)?(\d{3}\.\d+(?:\.\d+)?)(?:-|$|[+~])")
"""The driver's version in a package version: three digits of branch. Pins (580-5) and tools (2025.10) don't
match.
"""
PREFERENCES = "src:*nvidia*:any src:cuda-drivers:any src:cuda-compat:any"
"""What NVIDIA's own pinning packages cover (driver installation guide, version locking)."""
BESIDE = "nvidia-fabricmanager* libnvidia-nscq* libnvsdm* nvidia-imex*"
"""What must have the driver's version and is not covered by the pinning packages."""


@dataclass(frozen=True)
class Pin:
    """One entry of apt's preferences: packages, and their version as apt's pattern."""

    packages: str
    version: str


def upstream(version: str) -> str | None:
    """Return the driver's version in a Debian version: 580.126.20 of 3:580.126.20-1, or None."""
    found = _VERSION.match(version)
    return found.group(1) if found else None


def branch_of(version: str) -> str:
    """Return the branch of a driver's version: 580 of 580.126.20."""
    return version.split(".")[0]


class DriverPackages:
    """Packages of a driver that the plan names, the host has installed and apt's lists offer.

    Attributes:
        versions: Debian versions in apt's lists, by name.
        headers: metapackages of kernel headers that the plan names; wanted: all others of the plan.
        same: those of the wanted that have the driver's own version.
        installed: the driver's version of each of its packages on the host, by name.
        states: dpkg's two letters, by name.
    """

    def __init__(self, collected: Mapping[str, Any], names: Sequence[Any]) -> None:
        """Sort the collected facts.

        Args:
            collected: facts from the module metal_driver_facts.
            names: the plan's packages, each with "=version" or without.
        """
        self.versions: Mapping[str, list[str]] = collected.get("versions") or {}
        names = [str(package).split("=")[0] for package in names]
        self.headers = [name for name in names if name.startswith("linux-headers")]
        self.wanted = [name for name in names if name not in self.headers]
        # Fabric manager, libraries and modules have the same version; a tool like nvlsm has its own.
        self.same = [name for name in self.wanted if name.startswith(("nvidia-", "libnv"))]
        packages: Mapping[str, Mapping[str, str]] = collected.get("packages") or {}
        self.installed = {
            name: version
            for name, package in packages.items()
            if package["state"][1:2] not in ("n", "c", "") and (version := upstream(package["version"]))
        }
        self.states = {name: package["state"] for name, package in packages.items()}

    @property
    def present(self) -> str | None:
        """Return the version of the installed driver packages: None if there are none, "mixed" if they
        differ.
        """
        found = {self.installed[name] for name in self.same if name in self.installed}
        found = found or set(self.installed.values())
        if not found:
            return None
        return found.pop() if len(found) == 1 else "mixed"

    def whole(self, version: str) -> bool:
        """Return whether all planned packages are installed, and all driver packages are configured and have
        one version.
        """
        return (
            all(name in self.installed for name in self.same)
            and all(name in self.states for name in self.wanted if name not in self.same)
            and set(self.installed.values()) == {version}
            and all(self.has(name) for name in self.installed)
        )

    @property
    def managers(self) -> set[str]:
        """Versions of the installed fabric managers."""
        return {version for name, version in self.installed.items() if "fabricmanager" in name}

    @property
    def unheld(self) -> tuple[str, ...]:
        """Installed packages that are not on hold."""
        return tuple(name for name in sorted(self.installed) if not self.states[name].startswith("h"))

    def offered(self, name: str) -> set[str]:
        """Return the driver versions of a package in apt's lists."""
        return {found for version in self.versions.get(name, ()) if (found := upstream(version))}

    @property
    def common(self) -> set[str]:
        """Return versions at which apt's lists have all packages that must share one."""
        return set.intersection(*map(self.offered, self.same)) if self.same else set()

    def specs(self, target: str) -> tuple[str, ...]:
        """Return apt's arguments to install a version, without headers."""
        # Packages installed beside the plan's move with them, or a newer one would stay.
        companions = [
            name
            for name, version in sorted(self.installed.items())
            if name not in self.wanted and version != target and target in self.offered(name)
        ]
        return tuple(self._spec(name, target) for name in [*self.wanted, *companions])

    def left_behind(self, target: str) -> tuple[str, ...]:
        """Return installed packages of another version that the plan does not name and that version lacks.

        Before 590 Ubuntu's have other names and the same files, so both can't be installed. apt removes these
        in the transaction that installs the others. CUDA's compatibility libraries belong to no driver.
        """
        return tuple(
            name
            for name, version in sorted(self.installed.items())
            if version != target
            and name not in self.wanted
            and target not in self.offered(name)
            and not name.startswith("cuda-compat")
        )

    def _spec(self, name: str, target: str) -> str:
        for version in self.versions.get(name, ()):
            if upstream(version) == target:
                return f"{name}={version}"
        return name

    def has(self, name: str) -> bool:
        """Return whether a package is completely installed."""
        return self.states.get(name, "")[1:2] == "i"

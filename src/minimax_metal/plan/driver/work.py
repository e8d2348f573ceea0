"""What to do about a host's driver: pure, from collected facts, the plan and the role's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from minimax_metal.plan.driver.facts import read_collected
from minimax_metal.plan.driver.kernel import headers_of, headers_problem, kernel_problem
from minimax_metal.plan.driver.packages import BESIDE, PREFERENCES, DriverPackages, Pin, branch_of
from minimax_metal.plan.driver.signing import secure_boot_problem
from minimax_metal.plan.driver.state import built_for, driver_state, wanted
from minimax_metal.plan.facts import HostFacts, parse_facts
from minimax_metal.plan.model import Plan
from minimax_metal.plan.versions import version_key

NODES_UNIT = "nvidia-device-nodes.service"
"""The unit that makes the device nodes at boot, with nvidia-modprobe (role nvidia_driver)."""


@dataclass(frozen=True)
class DriverWork:
    """What the role does on a host.

    Attributes:
        action: none, install, change, repair or replace (a driver from a .run installer).
        problem: why nothing can be done, as "found ..., expected ...; ..."; None otherwise.
        lists_stale: whether apt's lists lack what is needed, so that fetching them may help.
        present: version of the installed packages, None if there are none, "mixed" if they differ.
        target: version after the work; None while unknown.
        packages: apt's arguments, with versions.
        leaving: packages that the target lacks and that are removed, in apt's notation ("name-").
        pins: apt preferences that keep that version.
        held: installed packages that must be on hold; unheld: those of them that are not.
        stop_units: units that use the driver now and must stop first.
        summary: one line that describes the work.
        kept: whether the driver is from a .run installer and stays.
        services: units that must run: the device nodes and the plan's. For a kept driver the operator manages
            the plan's, and the device nodes are created only if its installer left nvidia-modprobe.
        unbuilt: why the kernel that boots next has no module, in one line; None if it has one.
    """

    action: str
    problem: str | None
    lists_stale: bool
    present: str | None
    target: str | None
    packages: tuple[str, ...]
    pins: tuple[Pin, ...]
    held: tuple[str, ...]
    unheld: tuple[str, ...]
    stop_units: tuple[str, ...]
    summary: str
    kept: bool = False
    services: tuple[str, ...] = ()
    unbuilt: str | None = None
    leaving: tuple[str, ...] = ()

    @property
    def pending(self) -> bool:
        """Whether any work is left: on packages, apt's lists, holds or modules."""
        return self.action != "none" or self.lists_stale or bool(self.unheld or self.unbuilt)

    def as_dict(self) -> dict[str, Any]:
        """Return the work as plain data."""
        return asdict(self) | {"pending": self.pending}


def driver_work(
    collected: Mapping[str, Any],
    raw_facts: Mapping[str, Any],
    plan: Plan,
    wishes: Mapping[str, Any] | None = None,
) -> DriverWork:
    """Decide what to do.

    Args:
        collected: facts from the module metal_driver_facts.
        raw_facts: facts from the module metal_facts.
        plan: the host's plan.
        wishes: the role's settings: ``version`` (an exact version, or empty), ``run_file`` (refuse, keep or
            replace), ``secure_boot`` (check or trust).
    """
    return _Decision(read_collected(collected), parse_facts(raw_facts), raw_facts, plan, wishes or {}).work()


class _Decision:
    def __init__(
        self,
        collected: Mapping[str, Any],
        facts: HostFacts,
        raw_facts: Mapping[str, Any],
        plan: Plan,
        wishes: Mapping[str, Any],
    ) -> None:
        self.collected, self.facts = collected, facts
        self.driver, self.gpus = wanted(plan)
        self.branch, self.minimum = self.driver.branch, self.driver.minimum
        self.wish = str(wishes.get("version") or "")
        self.run_file = str(wishes.get("run_file") or "refuse")
        self.trust = wishes.get("secure_boot") == "trust"
        self.state = driver_state(raw_facts, plan, collected)
        self.packages = DriverPackages(collected, self.driver.packages)

    # -- current state ----------------------------------------------------------------------------------

    def right(self, version: str) -> bool:
        """Whether a version satisfies the plan and the role's settings."""
        if self.wish and version != self.wish:
            return False
        return branch_of(version) == self.branch and version_key(version) >= version_key(self.minimum)

    @property
    def packages_right(self) -> bool:
        """Whether all packages are completely installed, with one suitable version.

        Of headers, those of the running kernel count, if DKMS still needs them: a running driver is not worse
        without them or the distribution's metapackage, which may install another kernel.
        """
        present = self.packages.present
        return (
            present is not None
            and self.right(present)
            and self.packages.whole(present)
            and (built_for(self.collected, self.kernel) or self._headers_problem(installed=True) is None)
        )

    @property
    def accepted(self) -> bool:
        """Whether another repository's packages, or a kept .run file, drive the GPUs as planned."""
        loaded = self.facts.loaded_driver
        installed = self.packages.installed
        if loaded is None or self.state.reboot or any(name in installed for name in self.packages.wanted):
            return False
        fabric = not self.driver.fabric_manager or self.packages.managers == {loaded} or not installed
        return self.right(loaded) and self.state.gpus == self.gpus and fabric

    @property
    def by_run_file(self) -> bool:
        """Whether the driver came from a .run installer: no package owns it."""
        runs = self.facts.loaded_driver is not None and self.facts.smi_present
        return not self.packages.installed and bool(runs or self.collected.get("uninstaller"))

    # -- available packages -----------------------------------------------------------------------------

    def _target(self) -> str | None:
        good = sorted(filter(self.right, self.packages.common), key=version_key)
        for version in (self.facts.loaded_driver, self.packages.present):
            # A running driver needs no reboot, and an installed one no download.
            if version in good:
                return version
        return good[-1] if good else None

    def _apt_packages(self, target: str) -> tuple[str, ...]:
        running = self._headers_package
        headers = [running] if self.builds and running else []
        return (*self._newest_headers, *headers, *self.packages.specs(target))

    @property
    def _headers_package(self) -> str | None:
        """The package in apt's lists with the running kernel's headers."""
        names = (
            headers_of(self.kernel).package,
            f"linux-headers-{self.kernel}",
            f"pve-headers-{self.kernel}",
        )
        return next((name for name in names if name in self.packages.versions), None)

    @property
    def _newest_headers(self) -> list[str]:
        """The metapackage that installs the headers of each later kernel of the running kind."""
        of_kind = [name for name in headers_of(self.kernel).newest if "headers" in name]
        held = [name for name in of_kind if self.packages.versions.get(name)]
        if held:
            return held
        # Debian's headers don't work with Proxmox's kernel.
        return [] if self.kernel.endswith("-pve") else self.packages.headers

    # -- problems ----------------------------------------------------------------------------------------

    @property
    def kernel(self) -> str:
        """The running kernel."""
        return str((self.collected.get("kernels") or {}).get("running") or self.facts.kernel)

    @property
    def builds(self) -> bool:
        """Whether modules are built here at all: a container has no kernel of its own."""
        return not self.collected.get("container")

    def _secure_boot_problem(self) -> str | None:
        return None if self.trust or not self.builds else secure_boot_problem(self.facts, self.collected)

    def _headers_problem(self, installed: bool = False) -> str | None:
        """Why DKMS can't build for the running kernel; ``installed``: available headers don't count."""
        kernels = self.collected.get("kernels") or {}
        if not self.builds or self.kernel in (kernels.get("headers") or ()):
            return None
        if self._headers_package and not installed:
            return None
        return headers_problem(self.kernel)

    def _missing_problem(self) -> str:
        if self.wish and branch_of(self.wish) != self.branch:
            return (
                f"found nvidia_driver_version {self.wish} and a plan of branch {self.branch}, expected one "
                f"branch; set metal_driver_branch to {branch_of(self.wish)} as well"
            )
        want = f"version {self.wish}" if self.wish else f"branch {self.branch}, {self.minimum} or newer"
        for name in self.packages.same:
            if not self.packages.versions.get(name):
                return (
                    f"found no package {name} in apt's lists, expected one of {want}; check that "
                    "nvidia_driver_repository_url has it for this distribution, or set "
                    "metal_driver_branch to a branch that it has"
                )
        for name in self.packages.same:
            if not any(self.right(version) for version in self.packages.offered(name)):
                offers = sorted(self.packages.offered(name), key=version_key)
                there = ", ".join(offers) or "none"
                found = f"found {name} {there} in apt's lists, expected {want}"
                held = list(dict.fromkeys(map(branch_of, offers)))
                if held and self.branch not in held:
                    # NVIDIA removes ended branches from a repository's index.
                    return (
                        f"{found}; the repository no longer has a driver of branch {self.branch}: "
                        f"set metal_driver_branch to {' or '.join(held)}, or use a mirror that has it"
                    )
                return (
                    f"{found}; set metal_driver_branch (or nvidia_driver_version) to one of these, "
                    "or use a mirror that has it"
                )
        offered = {name: sorted(self.packages.offered(name)) for name in self.packages.same}
        each = "; ".join(f"{name} {', '.join(versions)}" for name, versions in offered.items())
        return (
            f"found no version of {want} that all packages share ({each}), expected the same version "
            "of driver and fabric manager; synchronise the mirror, or set nvidia_driver_version"
        )

    # -- the decision ------------------------------------------------------------------------------------

    def work(self) -> DriverWork:
        """Return what to do."""
        if self.by_run_file and self.run_file != "replace":
            return self._run_file()
        if self.accepted and not self.by_run_file:
            return self._done(
                f"driver {self.facts.loaded_driver} is accepted as it is", self.facts.loaded_driver
            )
        if self.packages_right:
            present = self.packages.present
            return self._done(f"driver {present} is installed as the plan wants", present)
        target = self._target()
        action = self._action()
        problem, stale = self._secure_boot_problem(), False
        if problem is None:
            problem = self._headers_problem() if target else self._missing_problem()
            stale = problem is not None  # newer lists may have it
        if action == "replace" and not self.collected.get("uninstaller"):
            stale = False
            problem = (
                f"found driver {self.facts.loaded_driver} from a .run installer without "
                "nvidia-uninstall, expected its own uninstaller; run that .run file with --uninstall "
                "on the host"
            )
        was = self.packages.present or self.facts.loaded_driver
        words = {
            "install": f"driver {target or self.branch} will be installed",
            "change": f"driver {was} will be replaced by {target or self.branch}",
            "repair": f"the packages of driver {target or self.branch} will be completed (found {was})",
            "replace": f"driver {was} from a .run installer will be replaced by {target or self.branch}",
        }[action]
        return DriverWork(
            action=action,
            problem=problem,
            lists_stale=stale,
            present=self.packages.present,
            target=target,
            packages=self._apt_packages(target) if target else (),
            leaving=tuple(f"{one}-" for one in self.packages.left_behind(target)) if target else (),
            pins=self._pins(target),
            held=tuple(self.packages.same),
            unheld=(),
            stop_units=tuple(self.collected.get("active_units") or ()),
            summary=words,
            services=self.services,
            unbuilt=self._unbuilt(target),
        )

    def _unbuilt(self, version: str | None) -> str | None:
        # A driver with prebuilt modules does not use DKMS.
        ours = self.collected.get("dkms") or self.collected.get("dkms_logs")
        return kernel_problem(self.collected, f"driver {version or self.branch}") if ours else None

    @property
    def services(self) -> tuple[str, ...]:
        """Units that must run once the driver does."""
        return (NODES_UNIT, *self.driver.services)

    def _action(self) -> str:
        present = self.packages.present
        if self.by_run_file:
            return "replace"
        if present is None:
            return "install"
        return "repair" if present == "mixed" or self.right(present) else "change"

    def _run_file(self) -> DriverWork:
        loaded = self.facts.loaded_driver or "of unknown version"
        if self.run_file == "keep":
            words = f"driver {loaded} from a .run installer is kept"
            makes_nodes = bool(self.collected.get("modprobe"))
            lacks = None
            nodes = self.collected.get("nodes") or ()
            if self.facts.loaded_driver and not makes_nodes and "/dev/nvidia-uvm" not in nodes:
                lacks = (
                    f"found driver {loaded} from a .run installer without nvidia-modprobe and no "
                    "/dev/nvidia-uvm, expected the device nodes before the engine starts; run that "
                    ".run file again with its nvidia-modprobe, or create the nodes at boot yourself"
                )
            done = self._done(words, self.facts.loaded_driver, lacks)
            return replace(done, kept=True, services=(NODES_UNIT,) if makes_nodes else ())
        problem = (
            f"found driver {loaded} that no package owns (a .run installer put it there), expected "
            "none or one from packages; set metal_driver_run_file to replace (runs "
            "nvidia-uninstall), or to keep"
        )
        return self._done("nothing is done", None, problem)

    def _done(self, summary: str, version: str | None, problem: str | None = None) -> DriverWork:
        return DriverWork(
            action="none",
            problem=problem,
            lists_stale=False,
            present=self.packages.present,
            target=version,
            packages=(),
            pins=self._pins(version),
            held=tuple(sorted(self.packages.installed)),
            unheld=self.packages.unheld,
            stop_units=(),
            summary=summary,
            services=self.services,
            unbuilt=self._unbuilt(version),
        )

    def _pins(self, version: str | None) -> tuple[Pin, ...]:
        """Return preferences: for packages that follow the driver exactly, and for the driver itself if no
        package pins it.
        """
        if version is None:
            return ()
        pins = [Pin(BESIDE, f"{version}-*")]
        pinned = self.driver.pinning_package
        if self.wish:
            pins.append(Pin(PREFERENCES, f"{version}-*"))
        elif not pinned or not (self.packages.versions.get(pinned) or self.packages.has(pinned)):
            pins.append(Pin(PREFERENCES, f"{self.branch}.*"))
        return tuple(pins)

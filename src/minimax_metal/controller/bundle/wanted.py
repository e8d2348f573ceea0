"""What a fleet needs, from its plans: locks, packages, Pythons, weights. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from minimax_metal.common.errors import UserError
from minimax_metal.plan.model import Plan

ROLE_PACKAGES = (
    "ca-certificates",
    "gpg",
    "keepalived",
    "nftables",
    "nginx",
    "python3-venv",
    "systemd-timesyncd",
)
"""Distribution packages that roles install for every plan."""
EXTRA_PACKAGES = {"ubuntu2204": ("nginx-extras",)}
"""Additional ones on single platforms."""


@dataclass(frozen=True, order=True)
class Wheels:
    """A lock for one Python; ``lock`` is ``engine/FILE``, ``host-tools`` or ``uv``."""

    lock: str
    python: str
    architecture: str


@dataclass(frozen=True, order=True)
class Packages:
    """Packages of a distribution and of NVIDIA's repository for it."""

    platform: str
    distribution: str
    codename: str
    architecture: str
    """The kernel's name: ``x86_64`` or ``aarch64``."""
    names: tuple[str, ...]
    driver: tuple[str, ...]
    """Packages that must have the driver's version."""
    pinning: str | None
    branch: str
    vendor_key: str
    vendor_fingerprint: str


@dataclass(frozen=True, order=True)
class Weights:
    """A model's files at one commit; ``directory`` is ``ORG/NAME/REVISION``."""

    directory: str
    name: str
    revision: str
    bytes: int


@dataclass(frozen=True)
class Wanted:
    """Everything needed, each thing once."""

    wheels: tuple[Wheels, ...]
    packages: tuple[Packages, ...]
    pythons: tuple[tuple[str, str], ...]
    """Minor version and architecture of the Pythons that uv installs."""
    weights: tuple[Weights, ...]


def find_wanted(plans: Iterable[Plan]) -> Wanted:
    """Return what the hosts of these plans need together.

    Raises:
        UserError: a host's plan lacks its platform or engine, so its downloads are unknown.
    """
    wheels: set[Wheels] = set()
    packages: set[Packages] = set()
    pythons: set[tuple[str, str]] = set()
    weights: set[Weights] = set()
    for plan in plans:
        platform, engine, driver, tools = plan.platform, plan.engine, plan.driver, plan.host_tools
        if not (platform and engine and engine.lock_file and driver and plan.cuda and tools):
            reason = plan.refusals[0].line(plan.host) if plan.refusals else f"{plan.host}: its plan has gaps"
            raise UserError(f"{reason}; a bundle is made for hosts that can be planned")
        machine = platform.architecture
        wheels |= {
            Wheels(f"engine/{engine.lock_file}", engine.python, machine),
            Wheels("host-tools", tools.python, machine),
            Wheels("uv", platform.python, machine),
        }
        if engine.managed_python:
            pythons.add((engine.python, machine))
        if tools.python != platform.python:
            pythons.add((tools.python, machine))
        held = set(driver.held)
        drivers = tuple(sorted(name.split("=")[0] for name in driver.packages if name.split("=")[0] in held))
        names = {
            *ROLE_PACKAGES,
            *EXTRA_PACKAGES.get(platform.slug, ()),
            *plan.cuda.packages,
            *plan.cuda.build_packages,
            *(name.split("=")[0] for name in driver.packages),
        }
        packages.add(
            Packages(
                platform=platform.slug,
                distribution=platform.distribution.casefold(),
                codename=platform.codename,
                architecture=machine,
                names=tuple(sorted(names - set(drivers))),
                driver=drivers,
                pinning=driver.pinning_package,
                branch=driver.branch,
                vendor_key=driver.repository_key,
                vendor_fingerprint=driver.repository_key_fingerprint,
            )
        )
        if plan.model:
            repository = plan.model.repositories["huggingface"]
            weights.add(
                Weights(
                    directory=f"{repository}/{plan.model.revision}",
                    name=plan.model.served_name,
                    revision=plan.model.revision,
                    bytes=plan.model.bytes,
                )
            )
    return Wanted(
        tuple(sorted(wheels)), tuple(sorted(packages)), tuple(sorted(pythons)), tuple(sorted(weights))
    )

"""The settings of the roles that set a host up: ``artefact_cache_*`` to ``package_sources_*``."""

from collections.abc import Mapping
from typing import Final

from minimax_metal.plan.settings.declared import (
    CONTROLLER_CACHE,
    SECONDS,
    Bounds,
    group,
    other,
    path,
    switch,
    text,
    texts,
    whole,
)
from minimax_metal.plan.settings.host import DECLARED

MANY: Final = Bounds(0, 10_000)
MINUTES: Final = Bounds(0, 31 * 1_440)

RUN_FILE: Final = DECLARED["metal_driver_run_file"]


@group
class ArtefactCache:
    """Run a caching proxy through which a fleet downloads packages, wheels and Pythons once"""

    directory: str = path("/var/cache/minimax-metal/artefacts", "Directory on the host for cached files.")
    size_gigabytes: int = whole(
        60,
        "Largest size of that directory, in GB. The least recently used files are deleted first.",
        Bounds(0, 1 << 20),
    )
    slice_megabytes: int = whole(
        8,
        "Large files are fetched in parts of this size, in MB, so that hosts can read a file while "
        "it arrives.",
        Bounds(0, 1 << 30),
    )
    refresh_minutes: int = whole(
        10, "Time a page of the package index is used before the origin is asked again, in minutes.", MINUTES
    )
    file_days: int = whole(
        30,
        "Time a file is used before the origin is asked again, in days. Without an uplink it is used for "
        "longer. A wrong file is gone after this time at the latest.",
        Bounds(0, 3_650),
    )
    redirects: tuple[str, ...] = texts(
        (
            "https://objects.githubusercontent.com",
            "https://release-assets.githubusercontent.com",
            "https://cdn.npmmirror.com",
        ),
        "Servers an origin may redirect the cache to, in addition to the origins themselves. The defaults "
        "are where GitHub and npmmirror keep uv's Pythons.",
    )
    allowed_cidrs: tuple[str, ...] = texts(
        (), "Networks that may use the cache. Empty: the addresses of the hosts in the inventory."
    )
    resolvers: tuple[str, ...] = texts((), "Name servers the cache uses. Empty: the host's own.")
    index_url: str = text(
        "{{ __artefact_cache_table.index | default('', true) or '' | minimax.metal.metal_default_index }}",
        "Package index behind the cache. By default `metal_package_index_url`, or the one of "
        "`metal_mirrors`, or the one the controller's own uv uses.",
    )


@group
class CudaToolkit:
    """Install what the engine's just-in-time compilers need"""

    manage: bool = switch(True, "Install the CUDA toolkit. With false nothing is installed.")


@group
class HostTools:
    """Install this project's host-side package into an environment of its own"""

    packages: tuple[str, ...] = texts(
        ("ca-certificates", "python3-venv"), "Distribution packages the environment needs."
    )
    pip_environment: Mapping[str, str] = other(
        "mapping", {}, "Environment variables for pip, which installs uv, such as `PIP_INDEX_URL`."
    )
    uv_environment: Mapping[str, str] = other(
        "mapping", {}, "Environment variables for uv, which installs the rest, such as `UV_DEFAULT_INDEX`."
    )
    uv_requirements: str = path(
        "{{ lookup('minimax.metal.project_file', 'requirements/bootstrap.txt') }}",
        "Lock file of uv, on the controller. By default the project's.",
    )
    requirements: str = path(
        "{{ lookup('minimax.metal.project_file', 'requirements/host-tools.txt') }}",
        "Lock file of the environment, on the controller, with a hash for every package. By default the "
        "project's.",
    )
    wheel_cache: str = text(
        f"{CONTROLLER_CACHE}/wheels",
        "Directory on the controller for the wheel of the host-side package. By default in the user's cache.",
    )


@group
class HostTuning:
    """Tune kernel and system for serving one large model"""

    limits: bool = switch(
        True, "Let root and the group `sglang` lock memory and open files without limits in their sessions."
    )
    journal_max: str = text(
        "4G", "Largest size of the journal on disk, in journald's notation. Empty leaves journald alone."
    )
    time_sync: bool = switch(True, "Install systemd-timesyncd on a host without a time service.")
    transparent_hugepages: str = text(
        "madvise",
        "Transparent huge pages. Empty leaves the kernel's setting.",
        ("", "always", "madvise", "never"),
    )
    cpu_governor: str = text(
        "performance", "CPU frequency governor, where one can be chosen. Empty leaves the host's setting."
    )
    numa_balancing: bool = switch(False, "Allow the kernel to move memory between NUMA nodes.")
    swappiness: int = whole(
        1,
        "How readily the kernel swaps, 0 to 200. A negative number leaves the host's setting.",
        Bounds(-1_000, 200),
    )
    shm_size: str = text(
        "", "Size of `/dev/shm`, such as `64G`. Empty leaves the kernel's default, half of the memory."
    )


@group
class NvidiaDriver:
    """Install NVIDIA's driver from NVIDIA's repository, and Fabric Manager where there are NVSwitches"""

    manage: bool = switch(
        True, "Install and update the driver. With false it is only checked against the plan."
    )
    version: str = text(
        "",
        "Exact version of the plan's branch, such as `580.126.20`. Empty: the newest one when the driver is "
        "installed; it stays at that.",
    )
    run_file: str = text(
        f"{{{{ metal_driver_run_file | default('{RUN_FILE.default}', true) }}}}",
        "As `metal_driver_run_file`, which is the one to set: the plan reads it too.",
        RUN_FILE.choices,
    )
    secure_boot: str = text(
        "check",
        "`check`: under secure boot nothing is installed unless the firmware knows the key that signs "
        "modules on this host. `trust`: you take care of that.",
        ("check", "trust"),
    )
    hold_kernel: bool = switch(
        False, "Exclude the kernel from unattended upgrades as well. DKMS builds for a new kernel either way."
    )
    repository_url: str = text(
        "{{ metal_plan.driver.repository_url }}",
        "URL of the package repository. By default the plan's, from `metal_vendor_repository_url`, "
        "`metal_mirrors` and `metal_cache_url`.",
    )
    repository_key: str = text(
        "{{ metal_plan.driver.repository_key }}",
        "File name, in the repository, of the key that signs it. By default the plan's.",
    )
    repository_key_fingerprint: str = text(
        "{{ metal_plan.driver.repository_key_fingerprint }}",
        "Fingerprint of that key. By default the one NVIDIA publishes; a mirror that signs again has its "
        "own. A key with another fingerprint is refused before apt sees it.",
    )
    repository_proxy: str = text("", "URL of the HTTP proxy for this repository. Empty: none.")
    reboot: str = text(
        "auto",
        "`auto`: reboot the host when the driver needs it. `never`: you reboot it.",
        ("auto", "never"),
    )
    reboot_timeout_seconds: int = whole(
        1_800,
        "Time a reboot may take, in seconds. Hosts with eight GPUs and much memory take many minutes.",
        SECONDS,
    )
    reboot_at_once: int = whole(0, "Hosts of a run that reboot at the same time. 0: all.", MANY)
    fabric_timeout_seconds: int = whole(
        300, "Time the NVSwitch fabric may take after Fabric Manager starts, in seconds.", SECONDS
    )


@group
class PackageSources:
    """Point the distribution's package sources to the plan's mirror or cache"""

    manage: bool = switch(True, "Change the sources as planned. With false they stay as they are.")

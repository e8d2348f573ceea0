"""The software below the endpoint: engine environment, driver, CUDA, and their disk space."""

from __future__ import annotations

import hashlib
import re

from minimax_metal.catalog import Catalog, Checkpoint, EngineRelease, Platform
from minimax_metal.catalog.schema import Cuda
from minimax_metal.common.documents import digits
from minimax_metal.plan.driver.life import Branches, find_branch, package_names, plan_day
from minimax_metal.plan.facts import HostFacts
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.host import Board
from minimax_metal.plan.mirrors import pip_environment, uv_environment
from minimax_metal.plan.model import (
    CudaPlan,
    DriverPlan,
    EnginePlan,
    HostToolsPlan,
    MirrorsPlan,
)
from minimax_metal.plan.settings import Settings
from minimax_metal.plan.versions import version_key

HOST_TOOLS_DIRECTORY = "/opt/minimax-metal"
HOST_TOOLS_PYTHON = ("3.11", "3.12")
"""The oldest Python this package runs on, and the one that uv installs if the host's is older."""
DRIVER_PACKAGES = ("nvidia-driver", "nvidia-kernel", "nvidia-open", "libnvidia", "cuda-drivers")
"""Prefixes of a driver's package names."""


def find_release(settings: Settings, catalog: Catalog, found: Findings) -> EngineRelease | None:
    """Return the requested engine release, or the catalogue's newest."""
    wanted = settings.engine_release or catalog.default_engine
    release = catalog.engines.get(wanted)
    if release is None:
        found.refuse(
            "engine-unknown",
            f"metal_engine_release {wanted}",
            f"one of {', '.join(catalog.engines)}",
            "set one of them, or add it with metal_catalog_overlay",
        )
    return release


def check_engine(checkpoint: Checkpoint, release: EngineRelease, found: Findings) -> None:
    """Check that the release supports the model."""
    old = version_key(release.release) < version_key(checkpoint.minimum_engine)
    if old or not set(checkpoint.architectures) & set(release.architectures):
        found.refuse(
            "engine-old",
            f"SGLang {release.release}",
            f"{checkpoint.minimum_engine} or newer for {checkpoint.name} {checkpoint.format}",
            "remove metal_engine_release, or set a newer one",
        )


def engine_plan(
    settings: Settings,
    release: EngineRelease,
    platform: Platform | None,
    catalog: Catalog,
    mirrors: MirrorsPlan,
    found: Findings,
) -> EnginePlan:
    """Return the engine's environment: Python, lock, and a directory named by all its inputs."""
    distro = platform.python if platform else None
    python = settings.engine_python
    if python is None:
        # The distribution's own Python if the release runs on it and has a lock for it; else one of uv's.
        usable = [one for one in release.python if one in release.locks] or list(release.python)
        python = distro if distro in usable else usable[0]
    if python not in release.python:
        found.refuse(
            "engine-python",
            f"metal_engine_python {python}",
            f"one of {', '.join(release.python)} for SGLang {release.release}",
            "remove metal_engine_python",
        )
    lock_file = release.locks.get(python)
    lock_sha256 = catalog.lock_sha256.get(lock_file or "")
    if lock_sha256 is None and python in release.python:
        locked = [f"{name} ({', '.join(one.locks)})" for name, one in catalog.engines.items() if one.locks]
        found.refuse(
            "engine-lock",
            f"no lock for SGLang {release.release} on Python {python}",
            "a lock with hashes in the catalogue",
            f"use one of {', '.join(locked)}, or add a lock with make engine-bump",
        )
    # Packages are identified by content, not by path: the same wheel elsewhere is the same environment.
    content = "\n".join([lock_sha256 or "", *(extra.sha256 for extra in settings.engine_extra_packages)])
    digest = hashlib.sha256(f"{release.release} {python}\n{content}\n".encode()).hexdigest()[:12]
    return EnginePlan(
        release=release.release,
        python=python,
        managed_python=python != distro,
        lock_file=lock_file,
        lock_sha256=lock_sha256,
        digest=digest,
        environment=f"{settings.engine_directory}/{release.release}-{digest}",
        extra_packages=settings.engine_extra_packages,
        uv_environment=_uv_environment(mirrors, settings.engine_directory, managed=python != distro),
    )


def host_tools_plan(platform: Platform, mirrors: MirrorsPlan) -> HostToolsPlan:
    """Return the host tools' Python: the distribution's, or one that uv installs if that is too old."""
    old = version_key(platform.python) < version_key(HOST_TOOLS_PYTHON[0])
    return HostToolsPlan(
        python=HOST_TOOLS_PYTHON[1] if old else platform.python,
        uv_environment=_uv_environment(mirrors, HOST_TOOLS_DIRECTORY, managed=old),
        pip_environment=pip_environment(mirrors),
    )


def _uv_environment(mirrors: MirrorsPlan, directory: str, *, managed: bool) -> dict[str, str]:
    """Return uv's environment; nothing is built on a host, which has no compilers for it."""
    return {
        "UV_COMPILE_BYTECODE": "1",
        "UV_NO_BUILD": "1",
        "UV_PYTHON_DOWNLOADS": "automatic" if managed else "never",
        "UV_PYTHON_INSTALL_DIR": f"{directory}/python",
    } | uv_environment(mirrors)


def find_cuda(
    settings: Settings,
    release: EngineRelease,
    platform: Platform | None,
    catalog: Catalog,
    found: Findings,
) -> Cuda:
    """Return the toolkit: the engine's own CUDA or the next one of its major version in the repository."""
    exact = catalog.cuda[release.cuda]
    major = release.cuda.split(".")[0]
    wanted = settings.cuda_toolkit
    if wanted is not None:
        known = [one for one in (platform.toolkits if platform else catalog.cuda) if one in catalog.cuda]
        usable = [one for one in known if one.split(".")[0] == major]
        if wanted not in usable:
            lifted = found.refuse(
                "cuda-toolkit",
                f"metal_cuda_toolkit {wanted}",
                f"CUDA {major}.x for SGLang {release.release}: {', '.join(usable) or 'none here'}",
                "remove metal_cuda_toolkit, or set one of them",
            )
            return catalog.cuda.get(wanted, exact) if lifted else exact
        return catalog.cuda[wanted]
    if platform is None or release.cuda in platform.toolkits:
        return exact
    for version in platform.toolkits:
        newer = version_key(version) > version_key(release.cuda)
        if version.split(".")[0] == major and newer and version in catalog.cuda:
            return catalog.cuda[version]
    found.refuse(
        "cuda-toolkit",
        f"CUDA toolkits {', '.join(platform.toolkits)} for {platform.distribution} {platform.version}",
        f"{release.cuda} or a newer {major}.x, which SGLang {release.release} is built for",
        "use another distribution or a newer metal_engine_release",
    )
    return exact


def cuda_plan(cuda: Cuda, platform: Platform | None, compat: bool) -> CudaPlan:
    """The toolkit's part of the plan; ``compat`` adds the forward-compatibility libraries."""
    packages = cuda.packages
    if compat and cuda.compat_package:
        packages = (*packages, cuda.compat_package)
    return CudaPlan(
        version=cuda.version,
        home=cuda.home,
        packages=packages,
        build_packages=platform.build_packages if platform else (),
        compat_library_path=f"{cuda.home}/compat" if compat else None,
    )


def driver_plan(
    settings: Settings,
    facts: HostFacts,
    release: EngineRelease,
    cuda: Cuda,
    platform: Platform,
    board: Board,
    mirrors: MirrorsPlan,
    catalog: Catalog,
    found: Findings,
) -> tuple[DriverPlan, bool]:
    """Return the driver, and whether CUDA's forward-compatibility libraries bridge it to the engine."""
    packaged = any(package.startswith(DRIVER_PACKAGES) for package in facts.packages)
    unowned = facts.loaded_driver is not None and not packaged
    if unowned and not facts.smi_present and not facts.nvidia_installer:
        # An installer leaves programs. This is a driver that was removed, as playbooks/remove.yml does.
        found.warn(
            "driver-leftover",
            f"module {facts.loaded_driver} is loaded, but its packages and nvidia-smi are missing: a "
            "driver was removed and the host has not rebooted since; packages are installed, and the "
            "host reboots only if they are of another version (if a container brings the driver, set "
            "nvidia_driver_manage to false)",
        )
        unowned = False
    if (unowned or facts.nvidia_installer) and settings.driver_run_file == "refuse":
        version = f"driver {facts.loaded_driver}" if facts.loaded_driver else "a driver"
        trace = f", which left {facts.nvidia_installer}" if facts.nvidia_installer else ""
        found.refuse(
            "driver-foreign",
            f"{version} that no package owns (a .run installer{trace})",
            "no driver, or one from packages",
            "set metal_driver_run_file to replace (runs nvidia-uninstall, then installs packages) or to keep",
        )
    minimum = cuda.minimum_driver
    required = board.gpu.open_modules if board.gpu else "supported"
    open_modules = settings.open_modules if settings.open_modules is not None else required != "unsupported"
    branches = Branches(
        catalog.drivers, platform, plan_day(settings), minimum, "open" if open_modules else "proprietary"
    )
    branch = find_branch(settings, facts, branches, found)
    names = package_names(platform, branch)
    compat = False
    if not branches.is_new_enough(branch):
        compat = settings.cuda_compat and branch in cuda.compat_branches
        if compat:
            found.warn(
                "cuda-compat",
                f"driver branch {branch} is older than CUDA {cuda.version} needs ({minimum}): "
                f"bridged by {cuda.compat_package}, as metal_cuda_compat asks",
            )
        elif digits(branch) is None:
            found.refuse(
                "driver-too-old",
                f"metal_driver_branch {branch}",
                "the number of a branch, such as 580",
                "set the number alone; nvidia_driver_version takes one exact release",
            )
        else:
            listed = ", ".join(cuda.compat_branches)
            found.refuse(
                "driver-too-old",
                f"driver branch {branch}",
                f"{minimum} or newer: SGLang {release.release} is built for CUDA {release.cuda}",
                f"remove metal_driver_branch (or set metal_cuda_compat: true on branch {listed})",
            )
    if (required == "required" and not open_modules) or (required == "unsupported" and open_modules):
        found.refuse(
            "open-modules",
            f"metal_open_modules {str(open_modules).lower()} on {board.label}",
            f"open kernel modules are {required} there",
            "remove metal_open_modules",
        )
    elif not branches.has_modules(branch):
        other = next(iter(branches.alive()), None)
        set_branch = f', or set metal_driver_branch: "{other.branch}", which has them' if other else ""
        found.refuse(
            "open-modules",
            f"proprietary kernel modules of driver branch {branch}",
            "open ones: that branch has no others (NVIDIA removed them)",
            f"remove metal_open_modules{set_branch}",
        )
    packages = [*(names.open if open_modules else names.proprietary)]
    services = [*names.services]
    nvlink = board.gpu.nvlink if board.gpu else "none"
    if board.nvswitch:
        packages += names.fabric_manager
        services += names.fabric_manager_services
        if nvlink == "nvlink5-switch":
            packages += names.nvlink5
    if nvlink == "nvl72":
        packages += names.imex
        services += names.imex_services
    packages = [name.format(branch=branch) for name in packages]
    # NVIDIA calls its repository for arm64 servers sbsa (Driver Installation Guide).
    arm = facts.architecture == "aarch64"
    headers = tuple(re.sub("amd64$", "arm64", one) if arm else one for one in platform.kernel_headers)
    driver = DriverPlan(
        branch=branch,
        minimum=minimum if not compat else f"{branch}.0",
        open_modules=open_modules,
        fabric_manager=board.nvswitch,
        repository_slug=platform.repository_slug,
        repository_url=f"{mirrors.vendor_url}/{platform.repository_slug}/{'sbsa' if arm else 'x86_64'}",
        repository_key=platform.repository_key.file,
        repository_key_fingerprint=platform.repository_key.fingerprint,
        pinning_package=names.pinning.format(branch=branch) if names.pinning else None,
        # Kernel headers first: DKMS builds the modules while the driver is installed.
        packages=(*headers, *packages),
        services=tuple(services),
        held=tuple(name.split("=")[0] for name in packages),
    )
    return driver, compat

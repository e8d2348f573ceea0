"""What is taken off a host when the product leaves it: pure, from what is there and what was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

PRODUCT = (
    "/etc/systemd/system/sglang.target",
    "/etc/systemd/system/sglang@.service.d",
    "/etc/minimax-metal",
    "/etc/sglang",
    "/opt/minimax-metal",
    "/usr/local/bin/metal",
    "/var/lib/sglang",
    "/var/lib/minimax-metal-weights",
    # What role host_tuning wrote; the kernel keeps its values until the next boot.
    "/etc/systemd/system/minimax-metal-shm.service",
    "/etc/security/limits.d/90-minimax-metal.conf",
    "/etc/systemd/journald.conf.d/90-minimax-metal.conf",
    "/etc/sysctl.d/90-minimax-metal.conf",
    "/etc/tmpfiles.d/minimax-metal.conf",
)
RECORDS = "/var/lib/minimax-metal"
CACHES = ("/var/cache/sglang", "/var/cache/minimax-metal-weights", "/var/cache/minimax-metal")
DRIVER = (
    "/etc/apt/sources.list.d/minimax-metal-nvidia.sources",
    "/etc/apt/keyrings/minimax-metal-nvidia.asc",
    "/etc/apt/apt.conf.d/80minimax-metal-nvidia",
    "/etc/apt/apt.conf.d/52minimax-metal-nvidia",
    "/etc/apt/preferences.d/minimax-metal-nvidia.pref",
    "/etc/modprobe.d/minimax-metal-nouveau.conf",
    "/etc/modules-load.d/minimax-metal-nvidia.conf",
    "/etc/systemd/system/nvidia-device-nodes.service",
    "/etc/systemd/system/nvidia-persistenced.service.d/10-minimax-metal.conf",
)
_DRIVER_PACKAGE = re.compile(
    r"(lib)?nvidia-.*|libcuda(1|debugger1)|libnvcuvid1|libnvsdm|firmware-nvidia-.*|cuda-drivers.*|nvlsm"
)
_CUDA_PACKAGE = re.compile(
    r"(cuda|libcu|libnv)[a-z-]*-\d+(-\d+)?(-config-common)?|cuda-toolkit-config-common"
)


@dataclass(frozen=True)
class Removal:
    """What goes and what stays.

    Attributes:
        units: units that are stopped and disabled, then their files deleted.
        paths: files and directories that are deleted.
        packages: packages that are purged.
        user: whether the service's user and group go; they stay while files of theirs do.
        kept: one line for each thing that stays, with the variable that would remove it.
    """

    units: tuple[str, ...]
    paths: tuple[str, ...]
    packages: tuple[str, ...]
    user: bool
    kept: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the removal as plain data."""
        return asdict(self)


def removal(
    units: Iterable[str],
    weights: Iterable[str],
    packages: Iterable[str],
    wishes: Mapping[str, Any],
) -> Removal:
    """Decide what goes.

    Args:
        units: unit files on the host: sglang@*, sglang.target, metal-weights@*, and the driver's of ours.
        weights: directories ORGANISATION/NAME below the weights directory, absolute.
        packages: names of the installed packages.
        wishes: ``weights`` (names: MiniMax-M2.5 or MiniMaxAI/MiniMax-M2.5), ``caches``, ``records``,
            ``driver`` (true or false), ``engine_directory``.

    Weights go only by name, and a name that is not there is no error: it may have gone before.
    """
    asked = {str(name).strip("/") for name in wishes.get("weights") or ()}
    stored = sorted(weights)
    doomed = [path for path in stored if _named(path, asked)]
    driver = bool(wishes.get("driver"))
    ours = [unit for unit in sorted(units) if not unit.startswith("nvidia-") or driver]
    # The directory of engine environments is the user's to name: nothing but a path below / is believed.
    engines = str(wishes.get("engine_directory") or "/opt/sglang").rstrip("/")
    paths = [*PRODUCT, *(f"/etc/systemd/system/{unit}" for unit in ours if not unit.endswith(".target"))]
    if engines.count("/") >= 2:
        paths.append(engines)
    kept = [
        f"weights {path} (metal_remove_weights: [{_name(path)}])" for path in stored if path not in doomed
    ]
    for wish, places, words in (
        ("caches", CACHES, "compiled kernels and download caches"),
        ("records", (RECORDS,), "release records and check reports"),
        ("driver", DRIVER, "driver, CUDA and their settings"),
    ):
        if wishes.get(wish):
            paths += places
        else:
            kept.append(f"{words} (metal_remove_{wish}: true)")
    gone = tuple(
        name
        for name in sorted(packages)
        if driver and (_DRIVER_PACKAGE.fullmatch(name) or _CUDA_PACKAGE.fullmatch(name))
    )
    user = len(doomed) == len(stored) and bool(wishes.get("caches"))
    return Removal(tuple(ours), tuple(dict.fromkeys([*paths, *doomed])), gone, user, tuple(kept))


def _name(path: str) -> str:
    return "/".join(path.rstrip("/").split("/")[-2:])


def _named(path: str, asked: set[str]) -> bool:
    return _name(path) in asked or path.rstrip("/").split("/")[-1] in asked

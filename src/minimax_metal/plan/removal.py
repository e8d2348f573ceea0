"""What is taken off a host when the product leaves it: pure, from what is there and what was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from minimax_metal.plan.owned import Removable

# What roles own is in their lists (meta/owned.yml). Here is what is in none.
PRODUCT = (
    "/etc/systemd/system/sglang.target",
    "/etc/sglang",
    "/etc/sglang-tls",
    "/var/lib/sglang",
    "/var/lib/minimax-metal-weights",
    "/etc/minimax-metal/weights-brought-nginx",
)
GATEWAY_UNIT = "sglang-gateway.service"
GATEWAY_WATCH = "sglang-gateway-watch.service"
ADDRESS_UNIT = "keepalived.service"
"""The distribution's unit: stopped where its configuration is ours, its file never deleted."""
ADDRESS = ("/etc/keepalived/keepalived.conf", "/etc/keepalived/sglang-gateway.secret")
GATEWAY = (
    f"/etc/systemd/system/{GATEWAY_UNIT}",
    f"/etc/systemd/system/{GATEWAY_WATCH}",
    "/etc/sglang-gateway",
    "/opt/sglang-gateway",
    "/var/lib/minimax-metal/gateway",
)
CACHE_UNIT = "minimax-metal-artefacts.service"
"""The cache of the fleet, which other hosts ask."""
RECORDS = "/var/lib/minimax-metal"
ARTEFACTS = "/var/cache/minimax-metal/artefacts"
CACHES = (
    "/var/cache/sglang",
    "/var/cache/sglang-precompile",
    "/var/cache/minimax-metal-weights",
    "/var/cache/minimax-metal",
)
USERS = ("sglang", "sglang-weights", "sglang-share", "sglang-precompile")
"""Of the services, each with a group of the same name; they stay while files of theirs do."""
ENGINE_DROP_IN = "/etc/systemd/system/sglang@.service.d/10-nvidia-device-nodes.conf"
DRIVER_DROP_IN = "/etc/systemd/system/nvidia-persistenced.service.d/10-minimax-metal.conf"
"""Others' drop-ins may lie beside these."""
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
        unmasked: units that role model_weights masked; they may be started again, and stay off.
        users: users that go, with the group of the same name; they stay while files of theirs do.
        kept: one line for each thing that stays, with the variable that would remove it.
    """

    units: tuple[str, ...]
    paths: tuple[str, ...]
    packages: tuple[str, ...]
    unmasked: tuple[str, ...]
    users: tuple[str, ...]
    kept: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the removal as plain data."""
        return asdict(self)


def removal(
    units: Iterable[str],
    weights: Iterable[str],
    packages: Iterable[str],
    wishes: Mapping[str, Any],
    owned: Removable,
) -> Removal:
    """Decide what goes.

    Args:
        units: unit files on the host: sglang@*, sglang.target, metal-weights@*, the driver's of ours, the
            gateway's, the cache's, and keepalived's where it has the gateway's configuration.
        weights: directories ORGANISATION/NAME below the weights directory, absolute.
        packages: names of the installed packages.
        wishes: ``weights`` (names: MiniMax-M2.5 or MiniMaxAI/MiniMax-M2.5), ``caches``, ``records``,
            ``driver``, ``gateway``, ``artefact_cache`` (true or false), ``engine_directory``,
            ``artefact_directory``; whether nginx came with role model_weights (``brought_nginx``) or
            with the cache (``cache_brought_nginx``); and ``drop_ins``, the files in the directories of
            ENGINE_DROP_IN and DRIVER_DROP_IN.
        owned: what the roles' lists say.

    Weights go only by name, and a name that is not there is no error: it may have gone before.
    """
    asked = {str(name).strip("/") for name in wishes.get("weights") or ()}
    stored = sorted(weights)
    doomed = [path for path in stored if _named(path, asked)]
    driver, gateway = bool(wishes.get("driver")), bool(wishes.get("gateway"))
    there = frozenset(units)
    cache = bool(wishes.get("artefact_cache"))
    cache_stays = CACHE_UNIT in there and not cache
    gateway_stays = GATEWAY_UNIT in there and not gateway
    walled = any(owned.wish_of(unit) == "firewall" for unit in there)
    firewall_stays = walled and (gateway_stays or cache_stays)
    goes = {
        "always": True,
        "tools": not gateway_stays,
        "firewall": not firewall_stays,
        "gateway": gateway,
        "artefact_cache": cache,
        "driver": driver,
        "caches": bool(wishes.get("caches")),
        "records": bool(wishes.get("records")) and not gateway_stays,
    }
    ours = [
        unit
        for unit in sorted(there - {ADDRESS_UNIT, GATEWAY_UNIT, GATEWAY_WATCH})
        if goes[owned.wish_of(unit) or "always"]
    ]
    paths = [*PRODUCT, *(f"/etc/systemd/system/{unit}" for unit in ours if not unit.endswith(".target"))]
    # Sharing gives a pull its secret by a drop-in; what lies beside an instance's unit is the user's.
    paths += [f"/etc/systemd/system/{unit}.d" for unit in ours if unit.startswith("metal-weights@")]
    # The directory of engine environments is the user's to name: nothing but a path below / is believed.
    paths += _below_root(wishes.get("engine_directory"), "/opt/sglang")
    kept = [
        f"weights {path} (metal_remove_weights: [{_name(path)}])" for path in stored if path not in doomed
    ]
    if firewall_stays:
        kept.append("the firewall, for the ports of what stays")
    if gateway_stays:
        kept.append("the gateway, and the host tools that it runs with (metal_remove_gateway: true)")
    if cache_stays:
        kept.append("the cache of the fleet, which other hosts ask (metal_remove_artefact_cache: true)")
    elif cache:
        paths += _below_root(wishes.get("artefact_directory"), ARTEFACTS)
    if gateway:
        # The address leaves before the gateway does.
        ours = [unit for unit in (ADDRESS_UNIT, GATEWAY_WATCH, GATEWAY_UNIT) if unit in there] + ours
        paths += [*(ADDRESS if ADDRESS_UNIT in there else ()), *GATEWAY]
        if ADDRESS_UNIT in there:
            kept.append("package keepalived, without a configuration (apt purge keepalived)")
    listed = owned.paths_with(*(wish for wish, granted in goes.items() if granted))
    # What stays keeps the directories that it lies in.
    stays = [*owned.paths_with("artefact_cache"), ARTEFACTS] if cache_stays else []
    for wish, places, words in (
        ("caches", CACHES, "compiled kernels and download caches"),
        ("records", (RECORDS,), "release records and check reports"),
        ("driver", (), "driver, CUDA and their settings"),
    ):
        if wish == "records" and gateway_stays:
            kept.append(f"{words}: the gateway's pool is with them (metal_remove_gateway: true)")
        elif wishes.get(wish):
            listed += places
        else:
            kept.append(f"{words} (metal_remove_{wish}: true)")
    paths += [path for path in listed if not any(one.startswith(f"{path}/") for one in stays)]
    found = [str(path) for path in wishes.get("drop_ins") or ()]
    for drop_in in (ENGINE_DROP_IN, *((DRIVER_DROP_IN,) if driver else ())):
        directory = drop_in.rpartition("/")[0]
        others = sorted(path for path in found if path.startswith(f"{directory}/") and path != drop_in)
        paths.append(drop_in if others else directory)
        kept += [f"{path}, which is yours" for path in others]
    nginx = bool(wishes.get("brought_nginx"))
    if nginx or (cache and wishes.get("cache_brought_nginx")):
        kept.append("package nginx, its own instance off (apt purge nginx nginx-common)")
    return Removal(
        units=tuple(ours),
        paths=tuple(dict.fromkeys([*paths, *doomed])),
        packages=tuple(name for name in sorted(packages) if driver and _of_driver(name)),
        unmasked=("nginx.service",) if nginx else (),
        users=tuple(
            name
            for name, goes in (
                *((user, len(doomed) == len(stored) and bool(wishes.get("caches"))) for user in USERS),
                ("sglang-gateway", gateway),
            )
            if goes
        ),
        kept=tuple(kept),
    )


def _below_root(directory: Any, default: str) -> list[str]:
    """Return a directory that the user may have named; none that lies directly in the root."""
    path = str(directory or default).rstrip("/")
    return [path] if path.count("/") >= 2 else []


def _of_driver(package: str) -> bool:
    return bool(_DRIVER_PACKAGE.fullmatch(package) or _CUDA_PACKAGE.fullmatch(package))


def _name(path: str) -> str:
    return "/".join(path.rstrip("/").split("/")[-2:])


def _named(path: str, asked: set[str]) -> bool:
    return _name(path) in asked or path.rstrip("/").split("/")[-1] in asked

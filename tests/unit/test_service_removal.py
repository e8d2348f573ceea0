"""What is removed from a host and what stays."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from minimax_metal.controller.owned import removable_of
from minimax_metal.plan import removal as rules
from minimax_metal.plan.removal import DRIVER_DROP_IN, ENGINE_DROP_IN, USERS, Removal

OWNED = removable_of(Path(__file__).parents[2] / "roles")
removal = partial(rules.removal, owned=OWNED)

UNITS = (
    "sglang@minimax-m2.5.service",
    "sglang.target",
    "metal-weights@x.service",
    "nvidia-device-nodes.service",
)
WEIGHTS = ("/srv/models/MiniMaxAI/MiniMax-M2.5", "/srv/models/MiniMaxAI/MiniMax-M3")
PACKAGES = (
    "nvidia-driver-cuda", "libcuda1", "libnvidia-ml1", "firmware-nvidia-gsp", "nvidia-driver-pinning-580",
    "cuda-nvcc-13-0", "libcublas-13-0", "libcublas-dev-13-0", "cuda-toolkit-13-0-config-common",
    "cuda-toolkit-13-config-common", "cuda-toolkit-config-common",
    "libcurl4", "libcups2", "libnvme1", "linux-headers-amd64", "dkms", "g++",
)  # fmt: skip


def remove(**wishes: Any) -> Removal:
    return removal(UNITS, WEIGHTS, PACKAGES, wishes)


def test_without_wishes_the_product_goes_and_data_and_driver_stay() -> None:
    gone = remove()
    assert gone.packages == ()
    assert "nvidia-device-nodes.service" not in gone.units
    assert {"/opt/sglang", "/opt/minimax-metal", "/etc/systemd/system/sglang@minimax-m2.5.service"} <= set(
        gone.paths
    )
    assert "/etc/systemd/system/metal-weights@x.service.d" in gone.paths
    assert "/etc/apt/apt.conf.d/99minimax-metal-direct" in gone.paths
    assert "/etc/systemd/system/sglang@minimax-m2.5.service.d" not in gone.paths, (
        "drop-ins of the user's stay"
    )
    assert not any(path.startswith(("/srv", "/var/cache", "/var/lib/minimax-metal/")) for path in gone.paths)
    assert "/var/lib/minimax-metal" not in gone.paths
    assert gone.users == ()
    assert len(gone.kept) == len(WEIGHTS) + 3
    assert "metal_remove_weights: [MiniMaxAI/MiniMax-M3]" in gone.kept[1]


def test_weights_go_by_name_only() -> None:
    assert "/srv/models/MiniMaxAI/MiniMax-M2.5" in remove(weights=["MiniMax-M2.5"]).paths
    assert "/srv/models/MiniMaxAI/MiniMax-M3" not in remove(weights=["MiniMax-M2.5"]).paths
    assert "/srv/models/MiniMaxAI/MiniMax-M3" in remove(weights=["MiniMaxAI/MiniMax-M3"]).paths
    for wild in (["*"], ["MiniMaxAI"], ["MiniMax-M"], [""], ["/"], None):
        assert not any(path.startswith("/srv") for path in remove(weights=wild).paths)


def test_slashes_around_a_name_or_behind_a_path_make_no_difference() -> None:
    assert WEIGHTS[0] in remove(weights=["/MiniMax-M2.5/"]).paths
    for name in ("MiniMax-M2.5", "MiniMaxAI/MiniMax-M2.5"):
        assert f"{WEIGHTS[0]}/" in removal((), (f"{WEIGHTS[0]}/",), (), {"weights": [name]}).paths
    (kept, *_) = removal((), (f"{WEIGHTS[0]}/",), (), {}).kept
    assert kept == f"weights {WEIGHTS[0]}/ (metal_remove_weights: [MiniMaxAI/MiniMax-M2.5])"


def test_what_stays_is_listed_with_the_variable_that_takes_it() -> None:
    data = (
        "compiled kernels and download caches (metal_remove_caches: true)",
        "release records and check reports (metal_remove_records: true)",
        "driver, CUDA and their settings (metal_remove_driver: true)",
    )
    assert remove().kept[-3:] == data
    units = ("sglang-gateway.service", "minimax-metal-artefacts.service")
    kept = removal((*UNITS, *units), (), (), {"brought_nginx": True}).kept
    # Neither host has a firewall that could stay.
    assert kept == (
        "the gateway, and the host tools that it runs with (metal_remove_gateway: true)",
        "the cache of the fleet, which other hosts ask (metal_remove_artefact_cache: true)",
        data[0],
        "release records and check reports: the gateway's pool is with them (metal_remove_gateway: true)",
        data[2],
        "package nginx, its own instance off (apt purge nginx nginx-common)",
    )
    ours = removal(("sglang-gateway.service", "keepalived.service"), (), (), {"gateway": True}).kept
    assert ours[0] == "package keepalived, without a configuration (apt purge keepalived)"
    assert not any("keepalived" in line for line in removal(units[:1], (), (), {"gateway": True}).kept)


def test_the_cache_goes_with_its_directory_wherever_that_is() -> None:
    unit = ("minimax-metal-artefacts.service",)
    assert "/var/cache/minimax-metal/artefacts" in removal(unit, (), (), {"artefact_cache": True}).paths
    elsewhere = removal(unit, (), (), {"artefact_cache": True, "artefact_directory": "/data/cache"}).paths
    assert "/data/cache" in elsewhere
    assert "/var/cache/minimax-metal/artefacts" not in elsewhere


def test_no_directory_of_the_root_goes_however_it_is_written() -> None:
    for name in ("/data", "/data/", "/", ""):
        assert not {name, name.rstrip("/")} & set(remove(engine_directory=name or "/").paths)
    assert "/data/sglang" in remove(engine_directory="/data/sglang/").paths


def test_driver_and_cuda_go_only_when_asked_and_nothing_else_with_them() -> None:
    gone = remove(driver=True)
    assert set(PACKAGES) - set(gone.packages) == {
        "libcurl4", "libcups2", "libnvme1", "linux-headers-amd64", "dkms", "g++"
    }  # fmt: skip
    assert "nvidia-device-nodes.service" in gone.units
    assert "/etc/apt/sources.list.d/minimax-metal-nvidia.sources" in gone.paths


def test_user_goes_when_nothing_of_theirs_stays() -> None:
    assert remove(weights=["MiniMax-M2.5", "MiniMax-M3"]).users == ()
    assert remove(weights=["MiniMax-M2.5", "MiniMax-M3"], caches=True).users == USERS
    assert removal((), (), (), {"caches": True}).users == USERS


def test_directory_at_the_root_is_never_deleted() -> None:
    for directory in ("/", "/opt", "/opt/"):
        assert directory.rstrip("/") not in remove(engine_directory=directory).paths
    assert "/data/engines" in remove(engine_directory="/data/engines/").paths


GATEWAY_HOST = ("keepalived.service", "sglang-gateway-watch.service", "sglang-gateway.service")
GATEWAY_NEEDS = {"/opt/minimax-metal", "/usr/local/bin/metal", "/etc/minimax-metal"}


def test_a_gateway_stays_with_all_it_needs_unless_asked_for() -> None:
    gone = removal((*UNITS, *GATEWAY_HOST), WEIGHTS, (), {"records": True, "caches": True})
    assert not set(gone.units) & set(GATEWAY_HOST)
    assert "sglang@minimax-m2.5.service" in gone.units
    needed = GATEWAY_NEEDS | {"/var/lib/minimax-metal", "/opt/sglang-gateway", "/etc/sglang-gateway"}
    assert not needed & set(gone.paths)
    assert "sglang-gateway" not in gone.users
    assert sum("metal_remove_gateway: true" in line for line in gone.kept) == 2


def test_a_gateway_goes_with_its_address_first() -> None:
    gone = removal((*UNITS, *GATEWAY_HOST), (), (), {"gateway": True})
    assert gone.units[:3] == GATEWAY_HOST
    assert {
        "/etc/systemd/system/sglang-gateway.service", "/etc/systemd/system/sglang-gateway-watch.service",
        "/etc/sglang-gateway", "/opt/sglang-gateway",
        "/var/lib/minimax-metal/gateway", "/etc/keepalived/keepalived.conf", *GATEWAY_NEEDS,
    } <= set(gone.paths)  # fmt: skip
    assert "/etc/systemd/system/keepalived.service" not in gone.paths
    assert "/var/lib/minimax-metal" not in gone.paths
    assert gone.users == ("sglang-gateway",)


def test_a_keepalived_that_is_not_ours_is_left_alone() -> None:
    gone = removal(("sglang-gateway.service",), (), (), {"gateway": True})
    assert gone.units == ("sglang-gateway.service",)
    assert not any("keepalived" in path for path in gone.paths)


def test_nginx_is_unmasked_only_where_it_came_with_the_product() -> None:
    assert remove().unmasked == ()
    assert remove(brought_nginx=True).unmasked == ("nginx.service",)


CACHE_HOST = (*UNITS, "minimax-metal-artefacts.service")


def test_the_cache_of_the_fleet_stays_with_all_it_needs_unless_asked_for() -> None:
    gone = removal(CACHE_HOST, (), (), {"caches": True, "records": True, "cache_brought_nginx": True})
    assert "minimax-metal-artefacts.service" not in gone.units
    kept = ("/etc/minimax-metal/artefact-cache.conf", "/var/cache/minimax-metal/artefacts")
    assert not [path for path in gone.paths for one in kept if one == path or one.startswith(f"{path}/")]
    assert {"/opt/minimax-metal", "/var/cache/sglang", "/var/lib/minimax-metal"} <= set(gone.paths)
    assert sum("metal_remove_artefact_cache: true" in line for line in gone.kept) == 1
    assert not any("nginx" in line for line in gone.kept)


def test_the_cache_of_the_fleet_goes_when_asked_for() -> None:
    wishes = {"artefact_cache": True, "artefact_directory": "/data/cache/", "cache_brought_nginx": True}
    gone = removal(CACHE_HOST, (), (), wishes)
    assert "minimax-metal-artefacts.service" in gone.units
    assert {
        "/etc/systemd/system/minimax-metal-artefacts.service", "/etc/minimax-metal", "/data/cache",
        "/etc/minimax-metal/artefact-cache.conf", "/etc/minimax-metal/artefact-cache-brought-nginx",
    } <= set(gone.paths)  # fmt: skip
    assert "/var/cache/minimax-metal" not in gone.paths
    assert any("package nginx" in line for line in gone.kept)
    assert gone.unmasked == ()  # the cache switched it off, and masked nothing
    assert (
        "/data"
        not in removal(CACHE_HOST, (), (), {"artefact_cache": True, "artefact_directory": "/data"}).paths
    )


def test_drop_ins_of_the_users_stay_beside_those_of_the_product() -> None:
    alone = remove(driver=True, drop_ins=[ENGINE_DROP_IN, DRIVER_DROP_IN])
    directories = {drop_in.rpartition("/")[0] for drop_in in (ENGINE_DROP_IN, DRIVER_DROP_IN)}
    assert directories < set(alone.paths)
    beside = DRIVER_DROP_IN.replace("10-minimax-metal", "50-mine")
    shared = remove(driver=True, drop_ins=[ENGINE_DROP_IN, DRIVER_DROP_IN, beside])
    assert {DRIVER_DROP_IN, ENGINE_DROP_IN.rpartition("/")[0]} < set(shared.paths)
    assert DRIVER_DROP_IN.rpartition("/")[0] not in shared.paths
    assert f"{beside}, which is yours" in shared.kept
    without_driver = remove(drop_ins=[DRIVER_DROP_IN])
    assert not any("persistenced" in path for path in without_driver.paths)


def test_the_firewall_goes_with_the_last_that_it_covers() -> None:
    def gone(*more: str, **wishes: bool) -> Removal:
        there = ["minimax-metal-firewall.service", "minimax-metal-firewall-seen.socket", *more]
        return removal(there, [], [], wishes)

    whole = gone()
    assert set(whole.units) == {"minimax-metal-firewall.service", "minimax-metal-firewall-seen.socket"}
    assert "/etc/systemd/system/minimax-metal-firewall-seen@.service" in whole.paths
    assert "/etc/minimax-metal/firewall.nft" in whole.paths
    for stays, wish in (
        ("sglang-gateway.service", "gateway"),
        ("minimax-metal-artefacts.service", "artefact_cache"),
    ):
        part = gone(stays)
        assert not [unit for unit in part.units if "firewall" in unit]
        assert not [path for path in part.paths if "firewall" in path]
        assert "the firewall, for the ports of what stays" in part.kept
        assert "minimax-metal-firewall.service" in gone(stays, **{wish: True}).units

"""What goes from a host and what stays."""

from __future__ import annotations

from typing import Any

from minimax_metal.service.removal import Removal, removal

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
    assert not any(path.startswith(("/srv", "/var/cache", "/var/lib/minimax-metal/")) for path in gone.paths)
    assert "/var/lib/minimax-metal" not in gone.paths
    assert not gone.user
    assert len(gone.kept) == len(WEIGHTS) + 3
    assert "metal_remove_weights: [MiniMaxAI/MiniMax-M3]" in gone.kept[1]


def test_weights_go_by_name_only() -> None:
    assert "/srv/models/MiniMaxAI/MiniMax-M2.5" in remove(weights=["MiniMax-M2.5"]).paths
    assert "/srv/models/MiniMaxAI/MiniMax-M3" not in remove(weights=["MiniMax-M2.5"]).paths
    assert "/srv/models/MiniMaxAI/MiniMax-M3" in remove(weights=["MiniMaxAI/MiniMax-M3"]).paths
    for wild in (["*"], ["MiniMaxAI"], ["MiniMax-M"], [""], ["/"], None):
        assert not any(path.startswith("/srv") for path in remove(weights=wild).paths)


def test_driver_and_cuda_go_only_when_asked_and_nothing_else_with_them() -> None:
    gone = remove(driver=True)
    assert set(PACKAGES) - set(gone.packages) == {
        "libcurl4", "libcups2", "libnvme1", "linux-headers-amd64", "dkms", "g++"
    }  # fmt: skip
    assert "nvidia-device-nodes.service" in gone.units
    assert "/etc/apt/sources.list.d/minimax-metal-nvidia.sources" in gone.paths


def test_user_goes_when_nothing_of_theirs_stays() -> None:
    assert not remove(weights=["MiniMax-M2.5", "MiniMax-M3"]).user
    assert remove(weights=["MiniMax-M2.5", "MiniMax-M3"], caches=True).user
    assert removal((), (), (), {"caches": True}).user


def test_directory_at_the_root_is_never_deleted() -> None:
    for directory in ("/", "/opt", "/opt/"):
        assert directory.rstrip("/") not in remove(engine_directory=directory).paths
    assert "/data/engines" in remove(engine_directory="/data/engines/").paths

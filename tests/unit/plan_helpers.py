"""Hosts and settings for tests of the plan."""

from __future__ import annotations

from typing import Any, TypeVar

from minimax_metal.catalog import Catalog, packaged_catalog
from minimax_metal.plan import HostFacts, Plan, Settings, parse_facts, plan
from minimax_metal.plan.what_if import what_if_facts

MIB = 1024 * 1024
OS_RELEASE = {
    "debian12": 'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n',
    "debian13": 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\nVERSION_ID="13"\n',
    "ubuntu2204": 'ID=ubuntu\nVERSION_ID="22.04"\nVERSION_CODENAME=jammy\n',
    "ubuntu2404": 'ID=ubuntu\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n',
}


T = TypeVar("T")


def there(value: T | None) -> T:
    """Assert that a value exists: a planned part, or a known number."""
    assert value is not None
    return value


def decide(gpu: str, count: int, *, catalog: Catalog | None = None, **variables: Any) -> Plan:
    """The plan of a what-if host; variables without their prefix."""
    catalog = catalog or packaged_catalog()
    named = {f"metal_{name}": value for name, value in variables.items()}
    platform = catalog.platforms[named.pop("metal_platform", "debian12")]
    settings = Settings.from_variables("what-if", named)
    return plan(settings, what_if_facts(gpu, count, platform, catalog), catalog)


def raw_host(
    gpu: str = "H20",
    count: int = 4,
    *,
    platform: str = "debian12",
    driver: str | None = None,
    memory_mib: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Raw facts of a bare host, or of one whose driver runs."""
    entry = packaged_catalog().gpus[gpu]
    device = next(iter(entry.pci_ids))
    names = {"H20": "NVIDIA H20", "H200": "NVIDIA H200", "H100": "NVIDIA H100 80GB HBM3"}
    mib = memory_mib or (entry.memory_bytes.value // MIB if entry.memory_bytes else 0)
    rows = [
        f"{n}, {names.get(gpu, 'NVIDIA ' + gpu)}, GPU-{n}, {mib} MiB, {driver}, {entry.compute_capability}"
        for n in range(count)
    ]
    return {
        "reachable": True,
        "hostname": "gpu01",
        "os_release": OS_RELEASE[platform],
        "machine": "x86_64",
        "kernel": "6.1.0-40-amd64",
        "python": "3.11.2",
        "pci_devices": [
            {"address": f"0000:{n:02x}:00.0", "vendor": "0x10de", "device": device, "class": "0x030200"}
            for n in range(count)
        ],
        "nvidia_smi": (
            {"present": True, "returncode": 0, "stdout": "\n".join(rows) + "\n", "stderr": ""}
            if driver
            else {"present": False}
        ),
        "driver_version_file": (
            f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {driver}  Release Build\n"
            if driver
            else None
        ),
        "packages": {"nvidia-driver-cuda": f"{driver}-1"} if driver else {},
        "memory_total_bytes": 2 * 2**40,
        "cpu_count": 96,
        "disks": {"/srv/models": {"free_bytes": 4 * 10**12, "total_bytes": 4 * 10**12}},
        "secure_boot": False,
        "listening_ports": [22],
        "user_is_root": True,
    } | more


def facts(*arguments: Any, **options: Any) -> HostFacts:
    return parse_facts(raw_host(*arguments, **options))


def codes(result: Plan) -> set[str]:
    return {refusal.code for refusal in result.refusals}


def warned(result: Plan) -> set[str]:
    return {notice.code for notice in result.warnings}


def flag(result: Plan, name: str) -> str:
    assert result.service is not None
    argv = result.service.argv
    return argv[argv.index(name) + 1]

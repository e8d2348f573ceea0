"""How long a what-if takes as a whole process, and the plan of 500 hosts from cached facts.

    python benchmarks/plan_speed.py

Prints the best and the middle of several runs, and the processor time of the cheapest: other work on the
machine only ever adds to them, to the processor time least.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUNS = 7
HOSTS = 500
LIMITS = {"what-if": 0.5, "fleet": 3.0}
"""Seconds that each may take."""


def facts(number: int) -> dict[str, Any]:
    """Raw facts of one host of a mixed fleet: 4 x H20 and 8 x H200 in turn."""
    device, name, mib, count = (
        ("0x2329", "NVIDIA H20", 97871, 4) if number % 2 else ("0x2335", "NVIDIA H200", 143771, 8)
    )
    return {
        "reachable": True,
        "hostname": f"gpu{number:03}",
        "os_release": 'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n',
        "machine": "x86_64",
        "python": "3.11.2",
        "pci_devices": [
            {"address": f"0000:{n:02x}:00.0", "vendor": "0x10de", "device": device, "class": "0x030200"}
            for n in range(count)
        ],
        "nvidia_smi": {
            "present": True,
            "returncode": 0,
            "stdout": "".join(f"{n}, {name}, GPU-{n}, {mib} MiB, 580.126.20, 9.0\n" for n in range(count)),
        },
        "driver_version_file": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.126.20  R\n",
        "packages": {"nvidia-driver-cuda": "580.126.20-1"},
        "disks": {"/srv/models": {"free_bytes": 4 * 10**12, "total_bytes": 4 * 10**12}},
        "user_is_root": True,
    }


def seconds(command: list[str], environment: dict[str, str]) -> list[tuple[float, float]]:
    """Wall-clock and processor seconds of each run of a command that must succeed.

    A first run, not counted, warms the caches.
    """
    times = []
    for _ in range(RUNS + 1):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True, env=environment, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        times.append((time.perf_counter() - start, processor))
    return times[1:]


def main() -> int:
    """Measure both and say how they compare with their limits."""
    from minimax_metal.plan.inventory import cache_directory

    # Byte code is what an installed command runs from.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    metal = [
        sys.executable,
        "-c",
        "import sys; from minimax_metal.cli import main; sys.exit(main(sys.argv[1:]))",
    ]
    what_if = [*metal, "plan", "--model", "MiniMax-M2.5", "--gpu", "H20 96GB", "--count", "4", "--json"]
    measured = {"what-if": seconds(what_if, environment)}
    with tempfile.TemporaryDirectory() as directory:
        inventory = Path(directory, "hosts.yml")
        names = [f"gpu{number:03}" for number in range(HOSTS)]
        hosts: dict[str, dict[str, str]] = {name: {} for name in names}
        inventory.write_text(
            json.dumps({"gpu_hosts": {"hosts": hosts, "vars": {"metal_model": "MiniMax-M2.5"}}})
        )
        environment["XDG_CACHE_HOME"] = os.environ["XDG_CACHE_HOME"] = directory
        cache = cache_directory([inventory])
        cache.mkdir(parents=True)
        for number, name in enumerate(names):
            (cache / f"{name}.json").write_text(json.dumps(facts(number)))
        measured["fleet"] = seconds([*metal, "plan", "--inventory", str(inventory), "--json"], environment)
    texts = {
        "what-if": "metal plan, what-if, whole process",
        "fleet": f"metal plan, {HOSTS} hosts from cached facts, whole process with ansible-inventory",
    }
    good = True
    for name, times in measured.items():
        walls = [wall for wall, _ in times]
        best, middle, processor = min(walls), statistics.median(walls), min(cpu for _, cpu in times)
        good &= best <= LIMITS[name]
        print(
            f"{texts[name]}: best {best:.2f} s, median {middle:.2f} s of {RUNS}, processor {processor:.2f} s "
            f"(limit {LIMITS[name]:g} s)"
        )
    load = os.getloadavg()[0]
    print(f"load of the machine meanwhile: {load:.1f} on {os.cpu_count()} cores")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

"""The cost of a what-if as a whole process, and of planning 500 hosts from cached facts: processor time.

python benchmarks/plan_speed.py

Prints the lowest of several runs (user and system time, including child processes), and the best wall clock:
other work on the machine adds much to the clock and little to the processor time, so the limits are for the
latter. A what-if is measured three times: with cached byte code and catalogue, as installed; without byte
code of the project; and as the very first run, with neither.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUNS = 7
HOSTS = 500
LIMITS = {"what-if": 0.25, "table": 0.25, "fleet": 2.0}
"""Limits in processor seconds."""


def facts(number: int) -> dict[str, Any]:
    """Return raw facts of one host of a mixed fleet: 4 x H20 and 8 x H200 in turn."""
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
    """Return wall-clock and processor seconds of each run of a command that must succeed.

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
    """Measure all and compare with the limits."""
    from minimax_metal.controller.inventory import cache_directory

    # Byte code is what an installed command runs from.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    metal = [
        sys.executable,
        "-c",
        "import sys; from minimax_metal.cli import main; sys.exit(main(sys.argv[1:]))",
    ]
    what_if = [*metal, "plan", "--model", "MiniMax-M2.5", "--gpu", "H20 96GB", "--count", "4", "--json"]
    measured = {"what-if": seconds(what_if, environment), "table": seconds(what_if[:-1], environment)}
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, "src")
        shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__"))
        bare = {**environment, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        measured["no byte code"] = seconds(what_if, {**bare, "XDG_CACHE_HOME": f"{directory}/kept"})
        # Nothing can be cached there: each run is a first one.
        measured["first"] = seconds(what_if, {**bare, "XDG_CACHE_HOME": "/proc/nowhere"})
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
        "what-if": "metal plan --json, what-if, whole process",
        "table": "the same, as text for a pipe",
        "no byte code": "the same as JSON, without byte code of the project, catalogue kept",
        "first": "the same as JSON, without byte code, nothing kept: the very first one",
        "fleet": f"metal plan --json, {HOSTS} hosts from cached facts, whole process with ansible-inventory",
    }
    good = True
    for name, times in measured.items():
        wall, processor = min(wall for wall, _ in times), min(cpu for _, cpu in times)
        limit = LIMITS.get(name)
        good &= limit is None or processor <= limit
        print(
            f"{texts[name]}: processor {processor:.3f} s of {RUNS} runs, best wall clock {wall:.2f} s"
            f"{f' (limit {limit:g} s of processor time)' if limit else ''}"
        )
    load = os.getloadavg()[0]
    print(f"load average:  {load:.1f} on {os.cpu_count()} cores")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

"""How long ``metal status`` takes for a fleet, compared with one bare command on each of its hosts.

python benchmarks/status.py INVENTORY [INVENTORY ...] [--hosts 50]

The hosts of the inventory are contacted under as many names as make the fleet, so each answers several times,
concurrently, over separate connections. Their answers cost their own processors: on lab hosts those are this
machine's, unlike in a real fleet. Prints seconds of both sides, their ratio, and the controller's processor
time per host.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.many_names import REPOSITORY, environment, inventory_of, program


def timed(command: list[str]) -> tuple[float, float, str]:
    """Return seconds, processor seconds of this side, and the output."""
    before, began = os.times(), time.monotonic()
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False, timeout=600
    )
    seconds, after = time.monotonic() - began, os.times()
    if done.returncode not in {0, 1}:
        what = " ".join(command[:2])
        raise SystemExit(f"status: {what} ended with {done.returncode}: {done.stderr[-500:]}")
    used = sum(after[2:4]) - sum(before[2:4])
    return seconds, used, done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description="Time metal status against bare questions.")
    parser.add_argument("inventory", nargs="*", help="inventories of serving hosts")
    parser.add_argument("--hosts", type=int, default=50, help="names to ask (%(default)s)")
    arguments = parser.parse_args()
    if not arguments.inventory:
        print("status: no inventory was given: python benchmarks/status.py INVENTORY ...")
        return 0
    with tempfile.TemporaryDirectory() as directory:
        where = ["-i", str(inventory_of(arguments.inventory, arguments.hosts, Path(directory)))]
        asked = [program("ansible"), "gpu_hosts", *where, "-m", "ansible.builtin.raw", "--forks", "100"]
        timed([*asked, "-a", "true"])  # both sides have connections
        bare, _, _ = timed([*asked, "-a", "true"])
        seconds, used, printed = timed([program("metal"), "status", *where, "--json"])
    hosts = json.loads(printed)
    known = sum(host["state"] == "known" for host in hosts)
    print(f"{known} of {len(hosts)} hosts known: {seconds:.1f} s; bare questions {bare:.1f} s")
    print(f"status / bare: {seconds / bare:.2f}")
    print(f"controller: {used / len(hosts):.3f} s of CPU per host")
    return 0 if known == arguments.hosts else 1


if __name__ == "__main__":
    raise SystemExit(main())

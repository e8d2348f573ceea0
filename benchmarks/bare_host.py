"""From a bare host to a ready engine, compared with its longest part.

python benchmarks/bare_host.py [--pull-seconds 600]

Two bare lab hosts of one kind, the real engine, one after another. gpu01 runs ``site.yml`` with its pull
limited to a rate at which it takes about ``--pull-seconds``: as long as everything else, or longer, which is
what the overlap is for. gpu02 runs the same without a limit, and measures everything else. The ratio:

gpu01's time from the start of the playbook to the engine's readiness
    ÷ (the longer of gpu01's pull and gpu02's time until the engine's start, plus gpu01's start)

1.00 is a pull that neither waits nor is waited for. Floor 1.10, target 1.02. The steps before the pull
(facts, host tools) and between its end and the engine's start take the same half minute whatever the size, so
the ratio falls with the pull's length: ten minutes is about what the rest takes on a real host, with a driver
to build and 9 GB of wheels; weights of 220 GB take longer. Needs root, and about a quarter of an hour. Lab
hosts share this machine's clock, so times of systemd and of this program are comparable.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
LAB = "bare"
STATE = Path(os.environ.get("METAL_LAB_ROOT", "/var/lib/minimax-metal-lab")) / LAB
ENGINE = "sglang@minimax-m2.5.service"
PULL = "metal-weights@minimax-m2.5.service"


@dataclass(frozen=True)
class Times:
    """Times of one host in seconds."""

    until_start: float
    """From the start of the playbook to the start of the engine's unit."""
    start: float
    pull: float

    @property
    def ready(self) -> float:
        """From the start of the playbook to the engine's readiness."""
        return self.until_start + self.start


def lab(*words: str) -> None:
    """Run the lab's command, which must succeed."""
    subprocess.run([sys.executable, "-m", "lab", "--name", LAB, *words], cwd=ROOT, check=True)


def on(host: str, *words: str) -> str:
    """Run a command on a host, which must succeed; return what it printed."""
    command = ["ssh", "-F", str(STATE / "ssh_config"), host, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def moments(host: str, unit: str) -> tuple[float, float, float]:
    """Return when a unit was started, became active, and ended its start, on the monotonic clock."""
    names = [f"{name}TimestampMonotonic" for name in ("InactiveExit", "ActiveEnter", "ExecMainExit")]
    shown = on(host, "systemctl", "show", unit, f"--property={','.join(names)}")
    values = dict(line.split("=", 1) for line in shown.splitlines())
    began, active, ended = (int(values[name]) / 1e6 for name in names)
    return began, active, ended


def first_word(host: str, unit: str) -> float:
    """Return when the journal first mentions a unit, before any reboot, on the monotonic clock."""
    entries = on(host, "journalctl", "--unit", unit, "--output=json", "--no-pager")
    spoken = int(json.loads(entries.splitlines()[0])["__REALTIME_TIMESTAMP"]) / 1e6
    return spoken - time.time() + time.monotonic()


def provision(host: str, rate: int) -> Times:
    """Run site.yml on one bare host; return its times."""
    began = time.monotonic()
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "site.yml",
            *("--inventory", "inventories/lab", "--inventory", str(STATE / "inventory" / "hosts.yml")),
            *("--limit", host),
            *("--extra-vars", f"model_weights_rate_bytes_per_second={rate} model_weights_share=false"),
            # As the demo's first host; its second has another model, from another hub.
            *("--extra-vars", "@inventories/lab/host_vars/gpu01.yml"),
        ],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(
            f"{host}: site.yml: exit status {done.returncode}\n{done.stdout[-6000:]}{done.stderr}"
        )
    started, active, _ = moments(host, ENGINE)
    _, _, pulled = moments(host, PULL)
    pulling = first_word(host, PULL)
    # The next host gets the processor to itself.
    on(host, "systemctl", "stop", ENGINE)
    return Times(until_start=started - began, start=active - started, pull=pulled - pulling)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pull-seconds", type=int, default=600)
    options = parser.parse_args()
    lab("down")
    try:
        lab("up")
        overlay = yaml.safe_load((STATE / "catalog-overlay.yml").read_text())
        model = overlay["models"]["MiniMax-M2.5"]
        size = model["formats"][model["default_format"]]["bytes"]
        held = provision("gpu01", max(1, size // options.pull_seconds))
        free = provision("gpu02", 0)
    finally:
        lab("down")
    longer = max(held.pull, free.until_start)
    for host, times in (("gpu01", held), ("gpu02", free)):
        print(
            f"{host}: pull {times.pull:.0f} s, engine started after {times.until_start:.0f} s, "
            f"ready {times.start:.0f} s later"
        )
    ratio = held.ready / (longer + held.start)
    print(f"bare host to ready ÷ (longer of pull and the rest, + start)   {ratio:.3f}   floor 1.10")
    print(f"load average:  {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return 0


if __name__ == "__main__":
    sys.exit(main())

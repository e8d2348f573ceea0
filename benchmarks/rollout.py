"""What clients notice of a rollout: steady load through the gateways while four replicas change, and go
wrong.

    python benchmarks/rollout.py [--lab NAME] [--scenario NAME ...] [--requests 2000] [--rate 10]

A lab of four GPU hosts and two gateways with the simulated engine (lab/labs/fleet.yml) is brought up and
provisioned, or the running one of that name is used and left. Gateway retries are off, so a request that a
replica fails is a request that a client sees fail. For each scenario: load is sent (benchmarks/load.py,
streams longer than the drain's wait among them), playbooks/rollout.yml runs beside it, and afterwards the
client's log is reconciled, request by request, with the engines' own.

========== ============================================================================================
scenario    what the release is
========== ============================================================================================
good        another environment variable in the unit: every engine stops and starts
no_start    the engine ends at once
wrong       it starts, and answers the post-check wrongly
late        it passes the post-check and fails requests after its first hundred
cut-STAGE   a good one, and the first host's link is cut when its journal says STAGE: drain, stop,
            sglang_service, post_check, undrain, soak
rollback    playbooks/rollback.yml takes the first host back: out of service ÷ the engine's own start
========== ============================================================================================

Prints a table. Exit status 0 when nothing failed or was truncated, client and servers agree, and no host
behind the first was touched by a release that failed; else 1. The engine is a stand-in: nothing here says
how fast a real one is (lab/engine/README.md).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.site import Lab, Run  # noqa: E402  # the repository's own, not installed

HOSTS = ("gpu01", "gpu02", "gpu03", "gpu04")
STAGES = ("drain", "stop", "sglang_service", "post_check", "undrain", "soak")
SCENARIOS = ("good", "no_start", "wrong", "late", *(f"cut-{stage}" for stage in STAGES), "rollback")
FAULTS = {"no_start": "no_start", "wrong": "wrong_answer", "late": "late_errors:100"}
# A link that is cut is noticed by ssh after this long, not after the two minutes of ansible.cfg.
ANSIBLE = {
    "ANSIBLE_SSH_RETRIES": "0",
    "ANSIBLE_TIMEOUT": "10",
    "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=300s "
    "-o ServerAliveInterval=5 -o ServerAliveCountMax=3",
}


@dataclass
class Row:
    """What became of one scenario."""

    scenario: str
    returncode: int
    seconds: float
    load: dict[str, Any] = field(default_factory=dict)
    disagreements: list[str] = field(default_factory=list)
    results: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def upper(lab: Lab, host: str, path: str) -> Path:
    """A file that a lab host has written, on this machine."""
    return lab.state / "hosts" / host / "upper" / path


def journal(lab: Lab, host: str) -> dict[str, Any]:
    """A host's rollout journal; empty without one."""
    try:
        found = json.loads(upper(lab, host, "var/lib/minimax-metal/rollout.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def play(lab: Lab, playbook: str, arguments: argparse.Namespace, *words: str, **release: Any) -> Run:
    """Run a playbook with the settings of the benchmark, and a release by the engine's environment."""
    settings = {
        "sglang_gateway_retries": 0,
        "metal_rollout_drain_seconds": arguments.drain_seconds,
        "metal_rollout_soak_seconds": arguments.soak_seconds,
        "post_check_figures": [],
        "metal_lock_break": True,
        "metal_engine_extra_environment": {"SIMULATED_TOKEN_SECONDS": "0.02"} | release,
    }
    return lab.play(playbook, "-e", json.dumps(settings), *words, environment=ANSIBLE)


def cut_at(lab: Lab, host: str, stage: str, over: threading.Event) -> None:
    """Cut a host's link as soon as its journal says a stage of a run that has not ended."""
    before = journal(lab, host).get("run")
    while not over.wait(0.2):
        now = journal(lab, host)
        if now.get("run") != before and now.get("stage") == stage:
            lab.lab("cut", host)
            return


def gateway(lab: Lab) -> str:
    """The URL of the first gateway."""
    return f"http://{lab.ssh('gw01', 'hostname -I').split()[0]}:30000"


def scenario(lab: Lab, name: str, number: int, arguments: argparse.Namespace, folder: Path) -> Row:
    """Run one scenario under load and judge it."""
    log = folder / f"{name}.jsonl"
    load = subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "load.py"), "run", "--url", gateway(lab)),
            *("--model", "MiniMaxAI/MiniMax-M2.5", "--key-file", str(lab.state / "secrets" / "api_key")),
            *("--requests", str(arguments.requests), "--rate", str(arguments.rate), "--log", str(log)),
            *("--tokens", "20", "--long-tokens", str(int(arguments.drain_seconds * 1.5 / 0.02))),
            *("--long-share", "0.02", "--name", f"{name}-{number}"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    began, over = time.time(), threading.Event()
    release = {"SIMULATED_RELEASE": f"{name}-{number}"}
    if name in FAULTS:
        release["SIMULATED_FAULTS"] = FAULTS[name]
    stage = name.removeprefix("cut-")
    cutter = threading.Thread(target=cut_at, args=(lab, HOSTS[0], stage, over), daemon=True)
    if name.startswith("cut-"):
        cutter.start()
    try:
        time.sleep(5)
        run = play(lab, "playbooks/rollout.yml", arguments, "--tags", "rollout", **release)
        seconds = time.time() - began
        said = load.communicate(timeout=3600)[0]
    finally:
        over.set()
        if load.poll() is None:
            load.terminate()
        if name.startswith("cut-"):
            cutter.join(30)
            lab.lab("restore", HOSTS[0])
    (folder / f"{name}.log").write_text(run.output, encoding="utf-8")
    row = Row(name, run.returncode, seconds, json.loads(said))
    servers = []
    for host in HOSTS:
        copy = folder / f"{name}-{host}.jsonl"
        copy.write_text(lab.ssh(host, "cat /var/lib/sglang/requests-8000.jsonl"), encoding="utf-8")
        servers.append(str(copy))
        found = journal(lab, host)
        if datetime.fromisoformat(found.get("started", "1970-01-01T00:00:00+00:00")).timestamp() >= began - 1:
            row.results[host] = str(found.get("result") or f"open at {found.get('stage')}")
    compared = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "load.py"), "reconcile", "--log", str(log), *servers],
        check=False,
        capture_output=True,
        text=True,
    )
    row.disagreements = compared.stdout.splitlines() if compared.returncode else []
    judge(row)
    return row


def judge(row: Row) -> None:
    """Write down what a scenario should not have done."""
    for fate in ("failed", "truncated", "refused"):
        if row.load.get(fate):
            row.wrong.append(f"{row.load[fate]} {fate}")
    if row.disagreements:
        row.wrong.append(f"{len(row.disagreements)} disagreements, such as {row.disagreements[0]}")
    if row.scenario == "good":
        if row.returncode or set(row.results.values()) != {"done"} or len(row.results) != len(HOSTS):
            row.wrong.append("not every host got the release")
        return
    if row.returncode == 0:
        row.wrong.append("the run ended with 0")
    if set(row.results) - {HOSTS[0]}:
        row.wrong.append("a later host was touched")
    if row.scenario in FAULTS and row.results.get(HOSTS[0]) != "returned":
        row.wrong.append("the host did not return to its release before")


def rollback(lab: Lab, arguments: argparse.Namespace) -> str:
    """Take the first host back; return the line that says how long that took."""
    began = time.time()
    run = play(lab, "playbooks/rollback.yml", arguments, "--limit", HOSTS[0])
    wall = time.time() - began
    if run.returncode:
        return f"rollback: exit status {run.returncode}: {run.output[-400:]}"
    stages = journal(lab, HOSTS[0])["stages"]
    times = {one["name"]: datetime.fromisoformat(one["time"]).timestamp() for one in stages}
    properties = "-P ActiveEnterTimestampMonotonic -P InactiveExitTimestampMonotonic"
    shown = lab.ssh(HOSTS[0], f"systemctl show sglang@minimax-m2.5 {properties}")
    first, last = sorted(int(value) for value in shown.split())
    start = (last - first) / 1e6
    switch = times["post_check"] - times["stop"]
    return (
        f"rollback of one host: {switch:.0f} s from its stop to its ready endpoint, "
        f"{switch / start:.2f} x the engine's own start ({start:.1f} s); drained for "
        f"{times['undrain'] - times['drain']:.0f} s, "
        f"with the post-check; the whole playbook {wall:.0f} s"
    )


def main() -> int:
    """Run the scenarios; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lab", help="a running, provisioned lab of lab/labs/fleet.yml")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="default: all")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second")
    parser.add_argument("--drain-seconds", type=int, default=10)
    parser.add_argument("--soak-seconds", type=int, default=10)
    parser.add_argument(
        "--start-seconds", type=int, default=60, help="of the engine, for the rollback's ratio"
    )
    arguments = parser.parse_args()
    lab = Lab(arguments.lab or "bench-rollout", "inventories/lab-fleet")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench-rollout-") as folder:
        keep = Path(os.environ.get("METAL_BENCH_DIRECTORY", folder))
        keep.mkdir(parents=True, exist_ok=True)
        try:
            if not arguments.lab:
                lab.lab("up", "--file", "lab/labs/fleet.yml")
                for playbook in ("playbooks/rollout.yml", "playbooks/gateway.yml"):
                    done = play(lab, playbook, arguments)
                    if done.returncode:
                        print(done.output[-4000:])
                        return 1
            for number, name in enumerate(arguments.scenario or SCENARIOS):
                if name == "rollback":
                    slow = {"SIMULATED_START_SECONDS": str(arguments.start_seconds)}
                    for mark in ("before", "after"):
                        play(
                            lab, "playbooks/rollout.yml", arguments, "--tags", "rollout", "--limit", HOSTS[0],
                            SIMULATED_RELEASE=mark, **slow,
                        )  # fmt: skip
                    print(rollback(lab, arguments), flush=True)
                    continue
                row = scenario(lab, name, int(time.time()) + number, arguments, keep)
                rows.append(row)
                print(
                    f"{row.scenario:<20} exit {row.returncode}  {row.seconds:>5.0f} s  "
                    f"{row.load['requests']} requests in {row.load['seconds']} s: "
                    f"{row.load['failed']} failed, {row.load['truncated']} truncated, "
                    f"{row.load['refused']} refused; "
                    f"servers {'DISAGREE' if row.disagreements else 'agree'}; "
                    f"{', '.join(f'{host} {what}' for host, what in row.results.items())}"
                    f"{'; WRONG: ' + '; '.join(row.wrong) if row.wrong else ''}",
                    flush=True,
                )
        finally:
            if not arguments.lab:
                lab.lab("down")
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

"""What clients notice of a rollout: steady load through the gateways while four replicas change, and go
wrong.

    python benchmarks/rollout.py [--lab NAME] [--scenario NAME ...] [--requests 2000] [--rate 10]

A lab of four GPU hosts and two gateways with the simulated engine (lab/labs/fleet.yml) is brought up and
provisioned, or the running one of that name is used and left. Gateway retries are off, so a request that a
replica fails is a request that a client sees fail. For each scenario: load is sent (benchmarks/load.py,
streams longer than the drain's wait among them) from before the rollout until after it, --requests at least;
playbooks/rollout.yml runs beside it, and afterwards the client's log is reconciled, request by request, with
the engines' own.

============ ==========================================================================================
scenario     what the release is
============ ==========================================================================================
good         another environment variable in the unit: every engine stops and starts
no_start     the engine ends at once
wrong        it starts, and answers the post-check wrongly
late         it passes the post-check and fails requests after its first hundred: the trial finds it
slow         it is right, and five times as slow: the soak finds it, among clients' requests
errors       as late, and no trial is made: the soak finds it; gateway retries as shipped, for this one
revert       the third host's does not start, with metal_rollout_on_failure: revert
ssh-STAGE    a good one, and the first host's ssh is cut when its journal says STAGE: drain, stop,
             sglang_service, post_check, undrain, soak
cable-STAGE  the same with its whole cable: what is under way on the host then is lost with it; for soak, when
             clients are on it again, gateway retries as shipped: nothing else has them not sent to it
rollback     playbooks/rollback.yml takes the first host back: out of service ÷ the engine's own start
============ ==========================================================================================

Prints a table. Exit status 0 when nothing failed or was truncated (but what ran on a host whose cable was
cut), client and servers agree, every other host still serves the release it had and was not restarted, and
the first one too where it could be reached; else 1. The engine is a stand-in: nothing here says how fast a
real one is (lab/engine/README.md). With --real it is SGLang itself with tiny weights on two hosts
(lab/labs/pair.yml; small --rate and --requests), scenarios good and rollback, and the client's log alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.load import reconcile
from minimax_metal.plan.rollout.stage import CHANGE, Stage
from tests.support.links import Link, journal, upper
from tests.support.site import Lab, Run

ROOT = Path(__file__).resolve().parents[1]

HOSTS = ("gpu01", "gpu02", "gpu03", "gpu04")
REAL_HOSTS = HOSTS[:2]
UNIT = "sglang@minimax-m2.5.service"
REQUESTS = "var/lib/sglang/requests-8000.jsonl"
STAGES = tuple(stage.value for stage in CHANGE if stage is not Stage.RECORD)
FAULTS = {
    "no_start": {"SIMULATED_FAULTS": "no_start"},
    "wrong": {"SIMULATED_FAULTS": "wrong_answer"},
    "late": {"SIMULATED_FAULTS": "late_errors:100"},
    "slow": {"SIMULATED_TOKEN_SECONDS": "0.1"},
    "errors": {"SIMULATED_FAULTS": "late_errors:100"},
    "revert": {"SIMULATED_FAULTS": "{{ 'no_start' if inventory_hostname == 'gpu03' else '' }}"},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "slow": {"metal_rollout_soak_seconds": 60},
    "errors": {"metal_rollout_soak_seconds": 60, "metal_rollout_trial_requests": 0},
    "revert": {"metal_rollout_on_failure": "revert"},
}
LINKS = tuple(f"{link}-{stage}" for link in ("ssh", "cable") for stage in STAGES)
SCENARIOS = ("good", *FAULTS, *LINKS, "rollback")
SHIPPED_RETRIES = 3
RETRIED = ("errors", "cable-soak")
"""Where clients are on a host when it goes wrong: what a gateway is for then is part of the answer."""
# A link that is cut is noticed by ssh after this long, not after the two minutes of ansible.cfg.
ANSIBLE = {
    "ANSIBLE_SSH_RETRIES": "0",
    "ANSIBLE_TIMEOUT": "10",
    "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=300s "
    "-o ServerAliveInterval=5 -o ServerAliveCountMax=3",
}


@dataclass
class Row:
    """The result of one scenario."""

    scenario: str
    returncode: int
    seconds: float
    load: dict[str, Any] = field(default_factory=dict)
    servers: int = 0
    """How many servers' logs the client's was compared with."""
    disagreements: list[str] = field(default_factory=list)
    results: dict[str, str] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    """Hosts that serve, or have recorded, another release than before."""
    restarted: set[str] = field(default_factory=set)
    """Hosts whose engine was restarted."""
    lost: int = 0
    """Requests not whole that the first host had received: lost with its cable, or failed by its release."""
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Return the printed row."""
        load = self.load
        parts = [
            f"{self.scenario:<20} exit {self.returncode}  {self.seconds:>5.0f} s  "
            f"{load['requests']} requests in {load['seconds']} s: {load['whole']} whole, "
            f"{load['failed']} failed, {load['truncated']} truncated, {load['refused']} refused",
            "servers were not asked"
            if self.servers == 0
            else f"servers {'DISAGREE' if self.disagreements else 'agree'}",
            ", ".join(f"{host} {what}" for host, what in self.results.items()) or "no host started",
        ]
        if self.lost:
            parts.append(f"{self.lost} of them on gpu01")
        if self.wrong:
            parts.append(f"WRONG: {'; '.join(self.wrong)}")
        return "; ".join(parts)


def serves(lab: Lab, host: str) -> tuple[str, str, str]:
    """Return a host's recorded release, its unit's release, and its engine's start time."""
    record = json.loads(
        upper(lab, host, "var/lib/minimax-metal/releases/current").read_text(encoding="utf-8")
    )
    recorded = record["plan"]["service"]["environment"].get("SIMULATED_RELEASE", "")
    words = (
        upper(lab, host, f"etc/systemd/system/{UNIT}").read_text(encoding="utf-8").replace('"', "").split()
    )
    names = [word.rpartition("SIMULATED_RELEASE=")[2] for word in words if "SIMULATED_RELEASE=" in word]
    started = lab.ssh(host, f"systemctl show -P ExecMainStartTimestampMonotonic {UNIT}").strip()
    return recorded, names[0] if names else "", started


def play(
    lab: Lab,
    playbook: str,
    arguments: argparse.Namespace,
    *words: str,
    more: dict[str, Any] | None = None,
    **release: Any,
) -> Run:
    """Run a playbook with the settings of the benchmark, and a release by the engine's environment."""
    settings = {
        "sglang_gateway_retries": 0,
        "metal_rollout_drain_seconds": arguments.drain_seconds,
        "metal_rollout_soak_seconds": arguments.soak_seconds,
        "post_check_figures": [],
        "metal_lock_break": True,
        "metal_engine_extra_environment": {"SIMULATED_TOKEN_SECONDS": "0.02"} | release,
    }
    return lab.play(playbook, "-e", json.dumps(settings | (more or {})), *words, environment=ANSIBLE)


class Load:
    """Clients, from before a rollout until after it."""

    def __init__(self, lab: Lab, name: str, arguments: argparse.Namespace, log: Path) -> None:
        self.log = log
        usage = ["--usage"] if arguments.real else []
        address = lab.ssh("gw01", "hostname -I").split()[0]
        long_tokens = int(arguments.drain_seconds * 1.5 / arguments.token_seconds)
        self.process = subprocess.Popen(
            [
                *(sys.executable, str(ROOT / "benchmarks" / "load.py"), "run"),
                *("--url", f"http://{address}:30000", "--model", "MiniMaxAI/MiniMax-M2.5"),
                *("--key-file", str(lab.state / "secrets" / "api_key"), "--log", str(log), "--name", name),
                *("--requests", str(int(arguments.rate * 3600)), "--rate", str(arguments.rate)),
                *("--tokens", "20", "--long-tokens", str(long_tokens), "--long-share", "0.02", *usage),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )

    def ended(self) -> int:
        """How many requests have ended."""
        return len(self.log.read_bytes().splitlines()) if self.log.exists() else 0

    def stop(self, requests: int) -> dict[str, Any]:
        """Let it reach so many requests, end it, and return its summary."""
        while self.process.poll() is None and self.ended() < requests:
            time.sleep(1)
        self.process.send_signal(signal.SIGTERM)
        said = self.process.communicate(timeout=900)[0]
        return dict(json.loads(said))


def scenario(lab: Lab, name: str, run_name: str, arguments: argparse.Namespace, folder: Path) -> Row:
    """Run one scenario under load and judge it."""
    kind, _, stage = name.partition("-")
    before = {host: serves(lab, host) for host in arguments.hosts}
    link = Link(lab, HOSTS[0], kind, stage) if stage else None
    load = Load(lab, run_name, arguments, folder / f"{name}.jsonl")
    began = time.time()
    try:
        time.sleep(10)  # the soak compares with what this host did before
        release = {"SIMULATED_RELEASE": run_name} | FAULTS.get(name, {})
        run = play(
            lab, "playbooks/rollout.yml", arguments, "--tags", "rollout",
            more=SETTINGS.get(name), **release,
        )  # fmt: skip
        seconds = time.time() - began
        if link:
            link.mend()
        row = Row(name, run.returncode, seconds, load.stop(arguments.requests))
    finally:
        if link:
            link.mend()
        if load.process.poll() is None:
            load.process.kill()
            load.process.wait()
    (folder / f"{name}.log").write_text(run.output, encoding="utf-8")
    if link and not link.was_cut:
        row.wrong.append(f"stage {stage} did not occur")
    servers = {host: folder / f"{name}-{host}.jsonl" for host in arguments.hosts if not arguments.real}
    row.servers = len(servers)
    for _ in range(20):  # a host whose cable was cut finishes its requests a little later
        for host, copy in servers.items():
            shutil.copyfile(upper(lab, host, REQUESTS), copy)
        row.disagreements = reconcile(load.log, list(servers.values())) if servers else []
        if not row.disagreements:
            break
        time.sleep(3)
    on_first = {
        json.loads(line)["id"] for line in (servers[HOSTS[0]].read_text().splitlines() if servers else ())
    }
    fates = [json.loads(line) for line in load.log.read_text().splitlines()]
    row.lost = sum(one["fate"] != "whole" and one["id"] in on_first for one in fates)
    for host in arguments.hosts:
        found = journal(lab, host)
        if datetime.fromisoformat(found.get("started", "1970-01-01T00:00:00+00:00")).timestamp() >= began - 1:
            row.results[host] = str(found.get("result") or f"open at {found.get('stage')}")
        recorded, named, started = serves(lab, host)
        row.changed |= {host} if {recorded, named} != {before[host][0]} else set()
        row.restarted |= {host} if started != before[host][2] else set()
    judge(row, run, arguments.hosts)
    return row


def judge(row: Row, run: Run, hosts: Sequence[str]) -> None:
    """Record violations of a scenario."""
    bad = sum(row.load[fate] for fate in ("failed", "truncated", "refused"))
    if bad - (row.lost if row.scenario.startswith("cable-") else 0):
        row.wrong.append(f"{bad} requests were incomplete")
    if row.disagreements:
        row.wrong.append(f"{len(row.disagreements)} disagreements, such as {row.disagreements[0]}")
    if row.scenario == "good":
        if row.returncode or set(row.results.values()) != {"done"} or len(row.results) != len(hosts):
            row.wrong.append("not every host got the release")
        return
    if row.returncode == 0:
        row.wrong.append("the run ended with 0")
    lost = set() if row.scenario in FAULTS else {HOSTS[0]}
    if row.changed - lost:
        row.wrong.append(f"{', '.join(sorted(row.changed - lost))} did not return to the previous release")
    if row.scenario == "revert":
        if set(row.results.values()) != {"returned"}:
            row.wrong.append("not every started host returned")
        return
    if (set(row.results) | row.restarted) - {HOSTS[0]}:
        row.wrong.append("a later host was changed")
    if row.scenario in FAULTS and row.results.get(HOSTS[0]) != "returned":
        row.wrong.append("the host did not return to its previous release")
    if lost and "lost during its change" not in run.output:
        row.wrong.append("the run did not report the lost host")


def rollback(lab: Lab, arguments: argparse.Namespace) -> str:
    """Roll the first host back; return the line with its duration."""
    slow: dict[str, Any] = {"SIMULATED_START_SECONDS": str(arguments.start_seconds)}
    # The real engine takes its own time to start, and scenario good has left it a release for a rollback.
    for mark in () if arguments.real else ("before", "after"):
        run = play(
            lab, "playbooks/rollout.yml", arguments, "--tags", "rollout", "--limit", HOSTS[0],
            SIMULATED_RELEASE=f"{mark}-{time.time_ns()}", **slow,
        )  # fmt: skip
        if run.returncode:
            raise SystemExit(f"rollback: {mark}: exit status {run.returncode}: {run.output[-2000:]}")
    began = time.time()
    run = play(lab, "playbooks/rollback.yml", arguments, "--limit", HOSTS[0])
    wall = time.time() - began
    if run.returncode:
        raise SystemExit(f"rollback: exit status {run.returncode}: {run.output[-2000:]}")
    stages = journal(lab, HOSTS[0])["stages"]
    times = {one["name"]: datetime.fromisoformat(one["time"]).timestamp() for one in stages}
    properties = "-P ActiveEnterTimestampMonotonic -P InactiveExitTimestampMonotonic"
    shown = lab.ssh(HOSTS[0], f"systemctl show {UNIT} {properties}")
    first, last = sorted(int(value) for value in shown.split())
    start = (last - first) / 1e6
    switch = times["post_check"] - times["stop"]
    return (
        f"rollback of one host: {switch:.0f} s from its stop to its ready endpoint, "
        f"{switch / start:.2f} x the engine's own start ({start:.1f} s); drained for "
        f"{times['undrain'] - times['drain']:.0f} s with the post-check; "
        f"the whole playbook {wall:.0f} s, {wall / start:.2f} x"
    )


def main() -> int:
    """Run the scenarios; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lab", help="a running, provisioned lab of lab/labs/fleet.yml (--real: pair.yml)")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="default: all")
    parser.add_argument("--requests", type=int, default=2000, help="at least; default: %(default)s")
    parser.add_argument("--rate", type=float, default=10.0, help="requests per second; default: %(default)s")
    parser.add_argument("--drain-seconds", type=int, default=10)
    parser.add_argument("--soak-seconds", type=int, default=10)
    parser.add_argument("--real", action="store_true", help="the real engine, on two hosts")
    parser.add_argument("--start-seconds", type=int, default=120, help="of the engine, for the rollback")
    arguments = parser.parse_args()
    description = "pair" if arguments.real else "fleet"
    arguments.hosts = REAL_HOSTS if arguments.real else HOSTS
    arguments.token_seconds = 0.05 if arguments.real else 0.02
    scenarios = arguments.scenario or (("good", "rollback") if arguments.real else SCENARIOS)
    lab = Lab(arguments.lab or "bench-rollout", f"inventories/lab-{description}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench-rollout-") as folder:
        keep = Path(os.environ.get("METAL_BENCH_DIRECTORY", folder))
        keep.mkdir(parents=True, exist_ok=True)
        try:
            if not arguments.lab:
                lab.lab("up", "--file", f"lab/labs/{description}.yml")
                must(play(lab, "site.yml", arguments))
            retries: int | None = None
            for number, name in enumerate(scenarios):
                if name == "rollback":
                    print(rollback(lab, arguments), flush=True)
                    continue
                wanted = SHIPPED_RETRIES if name in RETRIED else 0
                if retries != wanted:
                    must(
                        play(lab, "playbooks/gateway.yml", arguments, more={"sglang_gateway_retries": wanted})
                    )
                    retries = wanted
                rows.append(scenario(lab, name, f"{name}-{int(time.time())}-{number}", arguments, keep))
                print(rows[-1].line(), flush=True)
        finally:
            if not arguments.lab:
                lab.lab("down")
    return 1 if any(row.wrong for row in rows) else 0


def must(run: Run) -> None:
    """End the benchmark if a preparing playbook failed."""
    if run.returncode:
        raise SystemExit(run.output[-4000:])


if __name__ == "__main__":
    sys.exit(main())

"""How often a run that changes nothing talks to a host, and what that costs beside the bare questions.

    python benchmarks/no_change.py INVENTORY [INVENTORY ...] [--hosts 1,8]

Runs ``metal site`` on hosts that are as the inventory says, and counts from its records what was asked of
each: **tasks** that ran on the host, and **questions**, which counts every item of a loop and the second
question of ``copy`` and ``template`` (they look first, then act). Then as many bare
``ansible.builtin.command: true``, on the same hosts, in the same minute. Prints ratios, and the seconds they
are made of. Exit status 1 when a run was not without changes: its figures would be those of another thing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
LOCAL = {
    "add_host", "assert", "debug", "fail", "group_by", "import_playbook", "import_role", "import_tasks",
    "include_role", "include_tasks", "include_vars", "meta", "pause", "set_fact", "set_stats",
    "validate_argument_spec",
}  # fmt: skip
"""Actions that ask no host anything."""
TWICE = {"copy", "template"}
"""Actions that ask a host twice where nothing differs: for the state of the file, then to set its mode."""


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def asked(run: Path) -> dict[str, tuple[int, int, Counter[str]]]:
    """Tasks and questions of each host, and the questions of each stage."""
    tasks: Counter[str] = Counter()
    questions: Counter[str] = Counter()
    stages: dict[str, Counter[str]] = {}
    for one in records(run):
        if one["kind"] not in {"ok", "changed", "failed"}:
            continue
        action = str(one.get("action") or "").rpartition(".")[2]
        if action in LOCAL or one["result"].get("delegated"):
            continue
        items = [item for item in one["result"].get("items", [{}]) if not item.get("skipped")]
        if not items:
            continue
        host = one["host"]
        times = len(items) * (2 if action in TWICE else 1)
        tasks[host] += 1
        questions[host] += times
        stages.setdefault(host, Counter())[str(one.get("stage"))] += times
    return {host: (tasks[host], questions[host], stages[host]) for host in tasks}


def program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """Seconds a command took, seconds of processor of all its processes, and its largest one in MiB."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=7200
    )
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        print(done.stdout[-4000:], done.stderr[-2000:], file=sys.stderr)
        raise SystemExit(f"no_change: {' '.join(command[:3])} ended with {done.returncode}")
    used = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return seconds, used, after.ru_maxrss / 1024


def bare(questions: int, directory: Path) -> Path:
    """A playbook that asks nothing but ``true``, so many times."""
    path = directory / "bare.yml"
    task = {"name": "Nothing is asked", "ansible.builtin.command": "true", "changed_when": False}
    play = {
        "name": "Bare",
        "hosts": "gpu_hosts",
        "become": True,
        "gather_facts": False,
        "tasks": [task] * questions,
    }
    path.write_text(json.dumps([play]))
    return path


def measure(inventories: list[str], hosts: list[str], directory: Path) -> tuple[float, float]:
    """Run both sides on some hosts; return the seconds of a run, and its ratio to bare questions."""
    environment = os.environ | {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "CI": "true"}
    where = [word for one in inventories for word in ("-i", one)] + ["--limit", ",".join(hosts)]
    runs = directory / f"runs-{len(hosts)}"
    seconds, used, largest = timed([program("metal"), "site", "--runs", str(runs), *where], environment)
    (run,) = (path for path in runs.iterdir() if path.is_dir())
    if any(one["kind"] == "changed" for one in records(run)):
        changed = sorted({one["task"] for one in records(run) if one["kind"] == "changed"})
        raise SystemExit(
            f"no_change: found changes ({'; '.join(changed)}), expected none; run the playbook once before"
        )
    counts = asked(run)
    most = max(counts, key=lambda host: counts[host][1])
    tasks, questions, stages = counts[most]
    checks = sum(
        one["seconds"]
        for one in json.loads((run / "report.json").read_text())["checks"]
        if one["host"] == most
    )
    plain, _, _ = timed([program("ansible-playbook"), str(bare(questions, directory)), *where], environment)
    who = f"{len(hosts)} host{'s' if len(hosts) > 1 else ''}"
    print(f"{who}: {tasks} remote tasks, {questions} questions a host")
    print("  by stage: " + ", ".join(f"{stage} {number}" for stage, number in stages.most_common()))
    print(f"  run {seconds:.1f} s, of which the post-check's own requests {checks:.1f} s; bare {plain:.1f} s")
    print(f"  run without the checks / bare: {(seconds - checks) / plain:.2f}")
    print(f"  controller: {used / len(hosts):.1f} s of processor a host, largest process {largest:.0f} MiB")
    return seconds - checks, (seconds - checks) / plain


def main() -> int:
    parser = argparse.ArgumentParser(description="Count and time a run that changes nothing.")
    parser.add_argument("inventory", nargs="*", help="inventories of hosts that are as they say")
    parser.add_argument("--hosts", default="1,8", help="numbers of hosts to run with (%(default)s)")
    arguments = parser.parse_args()
    if not arguments.inventory:
        print("no_change: no inventory was given: python benchmarks/no_change.py INVENTORY ...")
        return 0
    where = [word for one in arguments.inventory for word in ("-i", one)]
    done = subprocess.run(
        [program("ansible"), "gpu_hosts", *where, "--list-hosts"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    names = [line.strip() for line in done.stdout.splitlines()[1:]]
    seconds: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        for number in sorted({min(int(one), len(names)) for one in arguments.hosts.split(",")}):
            seconds[number], _ = measure(arguments.inventory, names[:number], Path(directory))
    few, many = min(seconds), max(seconds)
    if many > few:
        print(f"{many} hosts / {few} host: {seconds[many] / seconds[few]:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

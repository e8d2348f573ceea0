"""How often a run without changes contacts a host, and its cost compared with bare commands.

python benchmarks/no_change.py INVENTORY [INVENTORY ...] [--hosts 1,8]
    python benchmarks/no_change.py INVENTORY [INVENTORY ...] --names 60

Runs ``metal site`` on hosts that match the inventory, and counts from its records: **tasks** that ran on the
host, and **questions**, which counts every item of a loop and the second request of ``copy`` and ``template``
(they look first, then act). Then the same number of bare ``ansible.builtin.command: true``, on the same
hosts, in the same minute. Prints ratios, and the seconds behind them. Exit status 1 if a run changed
something: its numbers would measure something else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.many_names import REPOSITORY, environment, inventory_of, program

LONGEST_SECONDS = 7200
LOCAL = {
    "add_host", "assert", "debug", "fail", "group_by", "import_playbook", "import_role", "import_tasks",
    "include_role", "include_tasks", "include_vars", "meta", "pause", "set_fact", "set_stats",
    "validate_argument_spec",
}  # fmt: skip
"""Actions that contact no host."""
TWICE = {"copy", "template"}
"""Actions that contact a host twice if nothing differs: for the state of the file, then to set its mode."""


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


def descendants(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    with contextlib.suppress(OSError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in path.read_text().split():
                found += descendants(int(child))
    return found


def memory_of(pid: int) -> float:
    """Return MiB that a process and its descendants use, with shared memory counted once (PSS)."""
    total = 0
    for one in descendants(pid):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
            total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024


def timed(command: list[str]) -> tuple[float, float, float]:
    """Return a command's seconds, processor seconds of all its processes, and their maximum MiB."""
    before, began, most = os.times(), time.monotonic(), 0.0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment() | {"CI": "true"}, stdout=output, stderr=output
        )
        try:
            while process.poll() is None and time.monotonic() - began < LONGEST_SECONDS:
                most = max(most, memory_of(process.pid))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(2)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        seconds, after = time.monotonic() - began, os.times()
        if process.returncode != 0:
            output.seek(0)
            print(output.read()[-4000:], file=sys.stderr)
            raise SystemExit(f"no_change: {' '.join(command[:3])} exit status {process.returncode}")
    return seconds, sum(after[2:4]) - sum(before[2:4]), most


def bare(questions: int, directory: Path) -> Path:
    """Return a playbook that runs ``true`` a number of times."""
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


def run_once(where: list[str], directory: Path, name: str, *more: str) -> tuple[Path, float, float, float]:
    """Run ``metal site`` without changes; return its records, then the result of :func:`timed`."""
    runs = directory / f"runs-{name}"
    seconds, used, most = timed([program("metal"), "site", "--runs", str(runs), *where, *more])
    (run,) = (path for path in runs.iterdir() if path.is_dir())
    changed = sorted({one["task"] for one in records(run) if one["kind"] == "changed"})
    if changed:
        raise SystemExit(
            f"no_change: found changes ({'; '.join(changed)}), expected none; run the playbook once first"
        )
    return run, seconds, used, most


def measure(where: list[str], hosts: list[str], directory: Path) -> float:
    """Run both sides on some hosts; return the seconds of a run."""
    where = [*where, "--limit", ",".join(hosts)]
    run, seconds, used, most = run_once(where, directory, str(len(hosts)))
    counts = asked(run)
    busiest = max(counts, key=lambda host: counts[host][1])
    tasks, questions, stages = counts[busiest]
    checks: float = sum(
        one["seconds"]
        for one in json.loads((run / "report.json").read_text())["checks"]
        if one["host"] == busiest
    )
    plain, _, _ = timed([program("ansible-playbook"), str(bare(questions, directory)), *where])
    who = f"{len(hosts)} host{'s' if len(hosts) > 1 else ''}"
    print(f"{who}: {tasks} remote tasks, {questions} questions per host")
    print("  by stage: " + ", ".join(f"{stage} {number}" for stage, number in stages.most_common()))
    print(f"  run {seconds:.1f} s, of which the post-check's own requests {checks:.1f} s; bare {plain:.1f} s")
    print(f"  run without the checks / bare: {(seconds - checks) / plain:.2f}")
    print(f"  controller: {used / len(hosts):.1f} s of CPU per host, at most {most:.0f} MiB")
    return seconds - checks


def measure_names(inventories: list[str], names: int, directory: Path) -> None:
    """Run on few hosts under many names, without what is a host's own work: checks and records."""
    where = ["-i", str(inventory_of(inventories, names, directory))]
    _, seconds, used, most = run_once(where, directory, "names", "--skip-tags", "post_check,release_record")
    print(f"{names} names: run {seconds:.1f} s, without checks and records")
    each = f"{used / names:.1f} s of CPU and {most / names:.1f} MiB per host"
    print(f"  controller: {each}, at most {most:.0f} MiB")


def main() -> int:
    parser = argparse.ArgumentParser(description="Count and time a run that changes nothing.")
    parser.add_argument("inventory", nargs="*", help="inventories whose hosts are up to date")
    parser.add_argument("--hosts", default="1,8", help="numbers of hosts to run with (%(default)s)")
    parser.add_argument("--names", type=int, help="instead: run the same hosts under this many names")
    arguments = parser.parse_args()
    if not arguments.inventory:
        print("no_change: no inventory was given: python benchmarks/no_change.py INVENTORY ...")
        return 0
    where = [word for one in arguments.inventory for word in ("-i", one)]
    with tempfile.TemporaryDirectory() as directory:
        if arguments.names:
            measure_names(arguments.inventory, arguments.names, Path(directory))
            return 0
        done = subprocess.run(
            [program("ansible"), "gpu_hosts", *where, "--list-hosts"],
            cwd=REPOSITORY,
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        names = [line.strip() for line in done.stdout.splitlines()[1:]]
        seconds = {
            number: measure(where, names[:number], Path(directory))
            for number in sorted({min(int(one), len(names)) for one in arguments.hosts.split(",")})
        }
    few, many = min(seconds), max(seconds)
    if many > few:
        print(f"{many} hosts / {few} host: {seconds[many] / seconds[few]:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""``metal status``: what every host serves, how it is, and where it is not as the inventory says.

Every host is asked once, all at the same time, with one command that needs no root and disturbs nothing
(:mod:`minimax_metal.fleet.here`). On a host, without an inventory, it shows that host.

Exit status: 0 every host serves; 1 one does not; 2 wrong usage; 3 a host could not be reached.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from minimax_metal.errors import UserError
from minimax_metal.fleet.here import SCHEMA, STATE, look

EPILOG: Final = """\
examples:
  metal status -i inventories/my-fleet
  metal status -i inventories/my-fleet --limit gpu01 --json
  metal status                                  on a host: this host

Options that are none of these are ansible's own: -u, --private-key, --ssh-common-args ...
exit status: 0 every host serves, 1 one does not, 2 wrong usage, 3 a host could not be reached
"""
COMMAND: Final = "/usr/local/bin/metal status --here --json"
FORKS: Final = 100
SERVING: Final = ("ready",)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the verb."""
    made = argparse.ArgumentParser(
        prog="metal status",
        description="Show model, release, engine, driver, health, load, uptime and drift of every host.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "-i", "--inventory", metavar="PATH", type=Path, action="append", help="Ansible inventory (repeatable)"
    )
    made.add_argument("-l", "--limit", metavar="PATTERN", help="hosts of the inventory")
    made.add_argument("--here", action="store_true", help="this host, and no other")
    made.add_argument("--json", action="store_true", help="everything, for programs")
    made.add_argument(
        "--timeout", metavar="SECONDS", type=int, default=4, help="for a host to answer at all (%(default)s)"
    )
    made.add_argument("--no-drift", action="store_true", help="don't compare with the inventory")
    return made


def _program(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise UserError(f"found no {name}, expected ansible-core on this machine; run make setup")
    return found


def ask_hosts(
    inventories: Sequence[Path], limit: str | None, timeout: int, more: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Ask every host at once; return Ansible's answer of each.

    Raises:
        UserError: no host could be asked at all: Ansible's own reason.
    """
    words = [_program("ansible"), "gpu_hosts", *(w for one in inventories for w in ("-i", str(one)))]
    words += ["--limit", limit] if limit else []
    # Not through sudo: what is read may be read by all.
    words += ["-m", "ansible.builtin.raw", "-a", COMMAND, "--forks", str(FORKS), "--timeout", str(timeout)]
    with tempfile.TemporaryDirectory(prefix="minimax-metal-status-") as directory:
        done = subprocess.run(
            [*words, "--tree", directory, *more],
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "ANSIBLE_SSH_RETRIES": "0", "ANSIBLE_BECOME": "false"},
        )
        answers = {path.name: json.loads(path.read_bytes()) for path in Path(directory).iterdir()}
    if not answers:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise UserError(
            f"found that ansible asked no host ({said[-1] if said else 'it said nothing'}), "
            "expected hosts in group gpu_hosts; put the inventory or --limit right"
        )
    return answers


def answer_of(name: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of one host from Ansible's answer: ``state`` says whether it is known at all."""
    if answer.get("unreachable"):
        return {"host": name, "state": "unreachable", "why": _line(str(answer.get("msg", "")))}
    text = str(answer.get("stdout", ""))
    start = text.find("{")
    try:
        here = json.loads(text[start:]) if start >= 0 else None
    except ValueError:
        here = None
    if isinstance(here, dict) and here.get("schema") == SCHEMA:
        return {"host": name, "state": "known", **here}
    said = _line(f"{answer.get('stderr', '')}\n{text}") or _line(str(answer.get("msg", "")))
    if answer.get("rc") == 127 or "not found" in said or "No such file" in said:
        return {"host": name, "state": "bare", "why": "no host tools: run site.yml"}
    return {"host": name, "state": "unclear", "why": said or "no answer that can be read"}


def _natural(name: str) -> list[tuple[int, str]]:
    """Return what sorts gpu2 before gpu10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def gather(arguments: argparse.Namespace, more: Sequence[str]) -> list[dict[str, Any]]:
    """Return what is known of every host, drift among it."""
    inventories = arguments.inventory
    for inventory in inventories:
        if not inventory.exists() and "," not in str(inventory):
            raise UserError(f"found no inventory at {inventory}, expected a file or directory; put it right")
    with ThreadPoolExecutor(max_workers=2) as pool:
        asked = pool.submit(ask_hosts, inventories, arguments.limit, arguments.timeout, more)
        variables = None if arguments.no_drift else pool.submit(_variables, inventories, arguments.limit)
        answers = asked.result()
        hosts = [answer_of(name, answers[name]) for name in sorted(answers, key=_natural)]
        wanted: Mapping[str, Any] = variables.result() if variables else {}
    from minimax_metal.fleet.drift import drift_of, local_drift

    for host in hosts:
        if host["state"] == "known":
            host["drift"] = local_drift(host)
            if host["host"] in wanted:
                host["drift"] += drift_of(host["host"], wanted[host["host"]], host)
            # A plan is long, and of use to who compares only.
            host["applied"] = _brief(host["applied"])
    return hosts


def _variables(inventories: Sequence[Path], limit: str | None) -> Mapping[str, Any]:
    from minimax_metal.plan.inventory import read_variables

    return read_variables(inventories, limit=limit)


def _brief(applied: Mapping[str, Any]) -> dict[str, Any]:
    model, engine, gpus = (applied.get(key) or {} for key in ("model", "engine", "gpus"))
    return {
        "model": model.get("served_name"),
        "format": model.get("format"),
        "engine": engine.get("release"),
        "engine_digest": engine.get("digest"),
        "driver_branch": (applied.get("driver") or {}).get("branch"),
        "gpus": f"{gpus.get('count')} x {gpus.get('model')}" if gpus else None,
    }


def serves(host: Mapping[str, Any]) -> bool:
    """Return whether every instance of a host's release is ready."""
    instances = [one for one in host.get("instances") or [] if one.get("recorded")]
    return bool(instances) and not host.get("missing") and all(one["health"] in SERVING for one in instances)


def exit_status(hosts: Sequence[Mapping[str, Any]]) -> int:
    """Return the exit status for what was found."""
    if any(host["state"] == "unreachable" for host in hosts):
        return 3
    return 0 if all(serves(host) for host in hosts) else 1


def lines_of(answers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines that show a fleet, from each host's answer to :data:`COMMAND`."""
    from io import StringIO

    from rich.console import Console

    from minimax_metal.fleet.drift import local_drift
    from minimax_metal.fleet.status_table import PLAIN_WIDTH, show

    hosts = [answer_of(name, answer) for name, answer in answers.items()]
    for host in hosts:
        if host["state"] == "known":
            host["drift"] = local_drift(host)
            host["applied"] = _brief(host["applied"])
    output = StringIO()
    show(hosts, Console(file=output, width=PLAIN_WIDTH))
    return [line.rstrip() for line in output.getvalue().splitlines()]


def this_host() -> list[dict[str, Any]]:
    """Return what is known of the machine this runs on."""
    from minimax_metal.fleet.drift import local_drift

    host = {"host": os.uname().nodename, "state": "known", **look()}
    return [{**host, "drift": local_drift(host), "applied": _brief(host["applied"])}]


def main(argv: Sequence[str]) -> int:
    """Run ``metal status``."""
    arguments, more = parser().parse_known_args(list(argv))
    if arguments.here and arguments.json:
        # What a controller asks for: fast, whole, one line.
        print(json.dumps(look(), ensure_ascii=False, separators=(",", ":")))
        return 0
    if arguments.here or (not arguments.inventory and STATE.is_dir()):
        hosts = this_host()
    elif arguments.inventory:
        hosts = gather(arguments, more)
    else:
        raise UserError("found no inventory, expected -i PATH; on a host metal status needs none")
    if arguments.json:
        print(json.dumps(hosts, indent=2, ensure_ascii=False))
    else:
        from minimax_metal.fleet.status_table import show

        show(hosts)
    return exit_status(hosts)

"""``metal status``: what every host serves, its health, and its drift from the inventory.

All hosts are asked in parallel, once, with a command that needs no root and disturbs nothing
(:mod:`minimax_metal.host.status`). On a host, without an inventory, it shows that host.

Exit status: 0 every host serves; 1 at least one does not; 2 wrong usage; 3 a host could not be reached.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.documents import digits, read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.text import one_line, printable
from minimax_metal.controller import ansible_programs
from minimax_metal.controller.inventory import read_variables
from minimax_metal.controller.vault import masked
from minimax_metal.host.status import commands as this_host
from minimax_metal.host.status.answers import UnreadableError, checked
from minimax_metal.host.status.commands import exit_status, with_drift
from minimax_metal.host.status.look import SCHEMA, STATE
from minimax_metal.plan.connection import trouble_in, trouble_of

EPILOG: Final = """\
examples:
  metal status -i inventories/my-fleet
  metal status -i inventories/my-fleet --limit gpu01 --json
  metal status                                  on a host: this host

All other options are passed to ansible: --become-user, --ssh-extra-args ...
exit status: 0 every host serves, 1 at least one does not, 2 wrong usage, 3 a host could not be reached
"""
HERE: Final = "/usr/local/bin/metal status --here --json"
COMMAND: Final = f"timeout -k 5 20 {HERE} 2>&1 | head -c {2 << 20}"
"""On a host, a command that hangs is ended after 20 s, and its output is cut at 2 MiB."""
FORKS: Final = 100
HOST_SECONDS: Final = 30
"""Time limit for a host on the controller; after that the other hosts are shown."""


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
    made.add_argument("--here", action="store_true", help="show this host only")
    made.add_argument("--json", action="store_true", help="print everything as JSON")
    made.add_argument(
        "--timeout", metavar="SECONDS", type=int, default=4, help="seconds to wait for a host (%(default)s)"
    )
    made.add_argument("--no-drift", action="store_true", help="don't compare with the inventory")
    ansible_programs.add_options(made)
    return made


def ask_hosts(
    inventories: Sequence[Path], limit: str | None, timeout: int, more: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Ask all hosts in parallel; return Ansible's answer for each.

    Raises:
        UserError: no host could be asked: Ansible's own reason.
    """
    words = ["--limit", limit] if limit else []
    # Without sudo: everything it reads is readable by all.
    words += ["-m", "ansible.builtin.raw", "-a", COMMAND, "--forks", str(FORKS), "--timeout", str(timeout)]
    answers, done = ansible_programs.ask(
        "gpu_hosts",
        inventories,
        [*words, *more],
        host_seconds=HOST_SECONDS + timeout,
        more={"ANSIBLE_SSH_RETRIES": "0", "ANSIBLE_BECOME": "false"},
    )
    if not answers:
        trouble = trouble_in(done.err)
        if trouble.code == "vault-password" or trouble.code.startswith("controller-"):
            raise UserError(trouble.line())
        read_variables(inventories, limit=limit)  # it names the existing groups
        raise UserError(
            "found that ansible contacted no host "
            f"({one_line(ansible_programs.last_words(done), 300)}), expected hosts in group "
            "gpu_hosts; fix the inventory or --limit: nothing was done"
        )
    return answers


def answer_of(name: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return one host's state from Ansible's answer: ``state`` tells whether it is known at all.

    A host may answer anything, in any shape and size: an unreadable answer affects only that host.
    """
    if answer.get("unreadable"):
        return {"host": name, "state": "unreadable", "why": str(answer["unreadable"])}
    if answer.get("unreachable"):
        trouble = trouble_of(answer, name)
        return {"host": name, "state": "unreachable", "why": trouble.found, "remedy": trouble.remedy}
    text = answer.get("stdout")
    text = text if isinstance(text, str) else ""
    start = text.find("{")
    try:
        here = read_json(text[start:]) if start >= 0 else None
    except (ValueError, RecursionError):
        here = None
    if isinstance(here, dict) and here.get("schema") == SCHEMA:
        try:
            return {"host": name, "state": "known", **checked(here)}
        except UnreadableError as error:
            return {"host": name, "state": "unreadable", "why": str(error)}
    said = _line(f"{_text(answer.get('stderr'))}\n{text}") or _line(_text(answer.get("msg")))
    rc = answer.get("rc")
    if rc == 127 or ("metal" in said and ("not found" in said or "No such file" in said)):
        return {"host": name, "state": "bare", "why": "no host tools: run site.yml"}
    if rc == 124 or (not said and start < 0):
        return {"host": name, "state": "unreadable", "why": "no answer in time, or an empty one"}
    if start >= 0:
        return {"host": name, "state": "unreadable", "why": "an answer that is not JSON of this version"}
    trouble = trouble_of(answer, name)
    if trouble.code != "host-unread":
        return {"host": name, "state": "unclear", "why": trouble.found, "remedy": trouble.remedy}
    return {"host": name, "state": "unclear", "why": said or "an unreadable answer"}


def _text(value: Any) -> str:
    return value[-4000:] if isinstance(value, str) else ""


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts gpu2 before gpu10."""
    return [
        (-1, part) if (number := digits(part)) is None else (number, "")
        for part in re.split(r"([0-9]+)", name)
    ]


def _line(text: str) -> str:
    lines = [line.strip() for line in printable(text[-8000:]).splitlines() if line.strip()]
    return one_line(lines[-1], 300) if lines else ""


def gather(arguments: argparse.Namespace, more: Sequence[str]) -> list[dict[str, Any]]:
    """Return the state of every host, including drift."""
    from minimax_metal.controller.inventory import look_for

    inventories = arguments.inventory
    look_for(inventories)
    with (
        ansible_programs.options_of(arguments) as (inventory, reach),
        ThreadPoolExecutor(max_workers=2) as pool,
    ):
        asked = pool.submit(ask_hosts, inventories, arguments.limit, arguments.timeout, [*reach, *more])
        variables = (
            None if arguments.no_drift else pool.submit(_variables, inventories, arguments.limit, inventory)
        )
        answers = asked.result()
        wanted, secrets = variables.result() if variables else ({}, [])
    hosts = [answer_of(name, answers[name]) for name in sorted(answers, key=_natural)]
    for host in hosts:
        variables_of = wanted.get(host["host"])
        with_drift(host, partial(_drift, variables_of) if variables_of is not None else None)
    # Values encrypted in the inventory are compared, and never shown.
    shown: list[dict[str, Any]] = masked(hosts, secrets)
    return shown


def _drift(variables: Mapping[str, Any], host: Mapping[str, Any]) -> list[str]:
    from minimax_metal.controller.status.drift import drift_of

    return drift_of(host["host"], variables, host)


def _variables(
    inventories: Sequence[Path], limit: str | None, inventory: Sequence[str]
) -> tuple[Mapping[str, Any], list[str]]:
    from minimax_metal.controller.inventory import Reach, read_variables_and_secrets

    # ansible also reads the passwords of its vault.
    return read_variables_and_secrets(
        inventories, limit=limit, reach=Reach(tuple(inventory), tuple(inventory))
    )


def lines_of(answers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines that show a fleet, from each host's answer to :data:`COMMAND`."""
    from io import StringIO

    from rich.console import Console

    from minimax_metal.host.status.table import PLAIN_WIDTH, show

    hosts = [answer_of(name, answer) for name, answer in answers.items()]
    for host in hosts:
        with_drift(host)
    output = StringIO()
    show(hosts, Console(file=output, width=PLAIN_WIDTH))
    return [line.rstrip() for line in output.getvalue().splitlines()]


def main(argv: Sequence[str]) -> int:
    """Run ``metal status``."""
    arguments, more = parser().parse_known_args(list(argv))
    if not arguments.inventory and STATE.is_dir():
        return this_host.main([word for word in argv if word == "--json"])
    if not arguments.inventory:
        raise UserError("found no inventory, expected -i PATH; on a host metal status needs none")
    hosts = gather(arguments, more)
    if arguments.json:
        print(json.dumps(hosts, indent=2, ensure_ascii=False))
    else:
        from minimax_metal.host.status.table import show

        show(hosts)
    return exit_status(hosts)

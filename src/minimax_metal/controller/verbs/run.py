"""``metal site``, ``metal rollout``, ``metal rollback``: a playbook of the project, with a view and a report.

They do the same as ``ansible-playbook`` with the same options, all of which are allowed. Exit status:
:mod:`minimax_metal.controller.run.outcome`.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from minimax_metal import __version__
from minimax_metal.common.durations import spell
from minimax_metal.common.errors import UserError
from minimax_metal.common.redact import (
    Redactor,
    secrets_of_directories,
    secrets_of_environment,
    secrets_of_extra_variables,
)
from minimax_metal.common.text import one_line
from minimax_metal.controller.inventory import look_for, read_variables
from minimax_metal.controller.keys.rotation import secrets_of
from minimax_metal.controller.project import find_project
from minimax_metal.controller.report.make import keep_checks
from minimax_metal.controller.report.make import write as write_report
from minimax_metal.controller.run.events import Run
from minimax_metal.controller.run.history import History
from minimax_metal.controller.run.options import Words, own_parser, read_words
from minimax_metal.controller.run.outcome import exit_status, sentence
from minimax_metal.controller.run.plain import Ansible, Plain, Show
from minimax_metal.controller.run.store import Kept, Store, runs_directory
from minimax_metal.plan.rollout.stage import CHANGE, Stage

EPILOG: Final = """\
All options of ansible-playbook work as they do there: -i, --limit, --tags, --check,
--diff, -e, --vault-password-file ... Plain `ansible-playbook {playbook}` with the same options does the same.

Ctrl-C once: {once}. Twice: stop now; the next run reports the state it finds.
exit status: 0 done, 1 failed or reverted, 2 wrong usage or refused, 3 unreachable, 130 interrupted
"""


REFUSED: Final = "'metal_acting' failed: "
"""Text in Ansible's output before the reason why a run has nothing to do."""


@dataclass(frozen=True)
class Verb:
    """A playbook that has its own verb."""

    name: str
    playbook: str
    description: str
    expected: tuple[str, ...]
    """Stages of a complete run: the columns that are shown from the start."""
    stops_itself: bool
    """Whether the playbook checks ``metal_rollout_stop_file`` between two hosts."""


_BUILD: Final = (Stage.TOOLS, Stage.TUNING, Stage.WEIGHTS, Stage.DRIVER, Stage.CUDA, Stage.ENGINE)
SITE: Final = Verb(
    name="site",
    playbook="site.yml",
    description="From bare hosts to verified endpoints: site.yml, with a live view and a report.",
    expected=(Stage.PREFLIGHT, *_BUILD, Stage.SERVE, Stage.CHECK, Stage.RECORD),
    stops_itself=False,
)
ROLLOUT: Final = Verb(
    name="rollout",
    playbook="playbooks/rollout.yml",
    description="Change the fleet host by host behind its gateway: playbooks/rollout.yml, with a live view.",
    expected=(Stage.PREFLIGHT, *_BUILD, *CHANGE),
    stops_itself=True,
)
ROLLBACK: Final = Verb(
    name="rollback",
    playbook="playbooks/rollback.yml",
    description="Return hosts to a release they still have: playbooks/rollback.yml, with a live view.",
    expected=(Stage.PREFLIGHT, *(stage for stage in CHANGE if stage is not Stage.SOAK)),
    stops_itself=True,
)


def project() -> Path:
    """Return the project's directory; another project's ``site.yml`` here or above does not count.

    Raises:
        UserError: there is none.
    """
    place = find_project()
    if place is None:
        raise UserError(
            "found minimax-metal installed without its playbooks (pip installs the Python package "
            "alone), expected a checkout; clone the repository, run make setup there, and use its "
            ".venv/bin/metal"
        )
    return place


def view_for(
    words: Words, verb: Verb, history: History | None, environment: Mapping[str, str], terminal: bool
) -> Show:
    """Return the display of a run: the requested one, else the live view on a terminal."""
    wanted = words.own.view
    if wanted == "auto":
        plain = not terminal or environment.get("NO_COLOR") or environment.get("CI")
        wanted = "plain" if plain or environment.get("TERM", "dumb") == "dumb" else "live"
    if wanted == "live":
        from minimax_metal.controller.run.view import View

        expected = () if words.tags else verb.expected
        return View(f"metal {verb.name}", expected=expected, history=history, console=Console())
    return Ansible() if wanted == "ansible" else Plain()


def secrets_known(words: Words, passwords: Mapping[str, str]) -> Redactor:
    """Return an object that masks all secrets that the controller knows."""
    places = []
    for inventory in words.inventories:
        directory = inventory if inventory.is_dir() else inventory.parent
        places.append(directory / "secrets")
    return Redactor(
        [
            *passwords.values(),
            *secrets_of_environment(),
            *secrets_of_extra_variables(words.extra_variables),
            *secrets_of_directories(places),
            *secrets_of(places),
        ]
    )


def earlier(store: Store, same: Mapping[str, Any]) -> History | None:
    """Return the last successful run with the same request, if there is one."""
    run = store.latest(**same)
    if run is None:
        return None
    state = Run().take_all(record for record in run.records() if record["kind"] in {"play", "task", "stats"})
    return History(state.steps, state.latest)


def run_verb(verb: Verb, argv: Sequence[str]) -> int:
    """Run a verb with its arguments; return its exit status."""
    once = (
        "finish the hosts in progress, then stop"
        if verb.stops_itself
        else "stop before the next play or batch"
    )
    parser = own_parser(verb.name, verb.description, EPILOG.format(playbook=verb.playbook, once=once))
    words = read_words(parser, argv)
    # ansible-runner takes a second to import: not for --help.
    from minimax_metal.controller.run.runner import ask_passwords, execute, hidden, playbook_program

    root = project()
    playbook = root / verb.playbook
    if not playbook.is_file():
        raise UserError(f"found no {verb.playbook} in {root}, expected a complete checkout of minimax-metal")
    look_for(words.inventories)
    # Ansible would read another project's settings from the working directory; ours find our modules.
    os.environ["ANSIBLE_CONFIG"] = str(root / "ansible.cfg")
    command = [playbook_program(), *words.ansible, str(playbook)]
    if words.lists:
        os.execv(command[0], command)  # noqa: S606  # it runs nothing: Ansible's own answer is the answer
    passwords = ask_passwords(words.passwords)
    redactor = secrets_known(words, passwords)
    store = Store(runs_directory(words.own.runs))
    same: dict[str, Any] = {
        "verb": verb.name,
        "check": words.check,
        "limit": words.limit,
        "tags": list(words.tags),
        "inventories": [str(one.resolve()) for one in words.inventories],
    }
    history = earlier(store, same)
    kept = store.new(verb.name)
    if verb.stops_itself:
        # As JSON: NAME=VALUE ends at a space in the path.
        command[1:1] = ["-e", json.dumps({"metal_rollout_stop_file": str(kept.path.resolve() / "stop")})]
    show = view_for(words, verb, history, os.environ, sys.stdout.isatty())
    about: dict[str, Any] = {
        "schema": 1,
        "run": kept.name,
        **same,
        "command": hidden(["ansible-playbook", *words.ansible, verb.playbook], redactor),
        "who": f"{getpass.getuser()}@{socket.gethostname()}",
        "metal": __version__,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    kept.describe(about)
    returned, run, stopped = execute(
        command,
        kept,
        show,
        redactor,
        passwords,
        stop_file_is_read=verb.stops_itself,
        echo=isinstance(show, Ansible),
    )
    status = exit_status(returned, run, stopped=stopped)
    about |= {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "ansible": returned,
        "exit": int(status),
        "outcome": sentence(status, run),
    }
    kept.describe(about)
    keep_checks(kept, run, redactor)
    write_report(kept, store)
    _close(verb, kept, run, about, show)
    return int(status)


def _close(verb: Verb, kept: Kept, run: Run, about: Mapping[str, Any], show: Show) -> None:
    """Print the run's outcome, and where its details are."""
    if not isinstance(show, Plain | Ansible):
        for failure in run.failures[-3:]:
            show.note(f"{failure.host}: {failure.task}:")
            for line in failure.lines[:20]:
                show.note(f"  {line}")
    if not run.hosts:
        # Ansible stopped before it contacted a host: its message is the reason.
        said = (kept.path / "output.log").read_text(encoding="utf-8").splitlines()
        reasons = [line for line in said if "nothing was done" in line] or _no_such_hosts(about, said)
        for line in dict.fromkeys(reasons):
            show.note(f"  {one_line(line.partition(REFUSED)[2] or line)}")
    show.note(f"metal {verb.name}: {about['outcome']} in {spell(run.seconds)}")
    show.note(f"report: {kept.path / 'report.html'}")


def _no_such_hosts(about: Mapping[str, Any], said: Sequence[str]) -> list[str]:
    """Print the existing groups and hosts if a limit left none; otherwise Ansible's last lines."""
    if any("leaves us with no hosts to target" in line for line in said):
        try:
            read_variables([Path(one) for one in about["inventories"]], limit=about["limit"])
        except UserError as error:
            return [str(error)]
    return list(said[-12:])


def site(argv: Sequence[str]) -> int:
    """Run ``metal site``."""
    return run_verb(SITE, argv)


def rollout(argv: Sequence[str]) -> int:
    """Run ``metal rollout``."""
    return run_verb(ROLLOUT, argv)


def rollback(argv: Sequence[str]) -> int:
    """Run ``metal rollback``."""
    return run_verb(ROLLBACK, argv)

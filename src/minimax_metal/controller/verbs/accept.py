"""``metal accept HOST`` on the controller: run the playbook, and show the report it fetched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minimax_metal.common.errors import UserError
from minimax_metal.common.files import read_bounded
from minimax_metal.controller.inventory import read_variables
from minimax_metal.controller.project import find_project
from minimax_metal.host.accept import commands
from minimax_metal.host.accept.report import BYTES, parse

EXIT_FAILED: Final = 1
EXIT_UNREACHABLE: Final = 2
ANSIBLE_USAGE: Final = 1
"""ansible-playbook's exit status if it stops before the first play: no such host, an unreadable file."""
PLAYBOOK: Final = Path("playbooks/accept.yml")
DIRECTORY: Final = Path("accept")


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of ``metal accept HOST``."""

    host: str
    inventories: tuple[str, ...]
    directory: Path | None = None
    stop_engine: bool = False
    anonymise: bool = False
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    as_json: bool = False

    @property
    def place(self) -> Path:
        """Directory of the host's report and bundle."""
        return self.directory or Path.cwd() / DIRECTORY / self.host

    def command(self, root: Path, program: str) -> list[str]:
        """The ansible-playbook command; it can also be typed by hand."""
        variables = {
            "metal_acceptance_directory": str(self.place.resolve()),
            "metal_acceptance_stop_engine": self.stop_engine,
            "metal_acceptance_anonymise": self.anonymise,
            "metal_acceptance_only": list(self.only),
            "metal_acceptance_skip": list(self.skip),
        }
        return [
            program,
            str(root / PLAYBOOK),
            *(word for inventory in self.inventories for word in ("--inventory", inventory)),
            "--limit",
            self.host,
            "--extra-vars",
            json.dumps(variables),
            *self.more,
        ]


def main(argv: list[str]) -> int:
    """Run ``metal accept HOST``; return its exit status."""
    arguments = commands.parsed(argv)
    if not arguments.host or not arguments.inventory:
        raise UserError(
            "found no host or no inventory, expected metal accept HOST --inventory INVENTORY; on the host "
            "itself it is metal accept --local"
        )
    return accept(
        Request(
            host=arguments.host,
            inventories=tuple(arguments.inventory),
            directory=arguments.directory,
            stop_engine=arguments.stop_engine,
            anonymise=arguments.anonymise,
            only=tuple(arguments.only),
            skip=tuple(arguments.skip),
            more=tuple(arguments.ansible),
            as_json=arguments.json,
        )
    )


def accept(request: Request) -> int:
    """Run the playbook for one host, print the result, return the exit status."""
    root = find_project()
    if root is None:
        raise UserError(f"found no {PLAYBOOK} here, expected a checkout of minimax-metal; run it there")
    beside = Path(sys.executable).with_name("ansible-playbook")
    program = str(beside) if beside.is_file() else shutil.which("ansible-playbook")
    if program is None:
        raise UserError("found no ansible-playbook, expected Ansible beside this command; run make setup")
    report = request.place / "report.json"
    # An older report must never be taken for this run's.
    report.unlink(missing_ok=True)
    # Another project's settings would not find our modules.
    environment = {**os.environ, "ANSIBLE_CONFIG": str(root / "ansible.cfg")}
    done = subprocess.run(
        request.command(root, program),
        check=False,
        env=environment,
        stdout=sys.stderr if request.as_json else None,
    )
    if not report.is_file():
        if done.returncode == ANSIBLE_USAGE:
            # Ansible stopped before it contacted a host: we explain it if the inventory is the cause.
            read_variables([Path(one) for one in request.inventories], limit=request.host)
        print(
            f"metal accept: found no report of {request.host} (ansible-playbook: {done.returncode}), "
            "expected one; the lines above show why",
            file=sys.stderr,
        )
        return EXIT_UNREACHABLE
    try:
        text = read_bounded(report, BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise UserError(
            f"found {report}: {error.strerror}, expected a report; run metal accept again"
        ) from None
    found = parse(text, str(report))
    if request.as_json:
        print(found.as_json(), end="")
    else:
        found.print(sys.stdout)
        print(f"{request.place}: report.json, report.txt and bundle.tar.gz")
    return 0 if found.accepted else EXIT_FAILED

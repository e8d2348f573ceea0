"""``metal accept``: the acceptance test for the first GPU host of a kind.

On the controller ``metal accept HOST --inventory I`` runs ``playbooks/accept.yml``, which runs ``metal accept
--local`` on the host and fetches the report and the bundle.

Exit status: 0 accepted; 1 a check failed; 2 not reachable, not provisioned, or usage; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.files import write_atomic
from minimax_metal.common.privileges import trusted_directory
from minimax_metal.host.accept import bundle
from minimax_metal.host.accept.context import Context, Serving
from minimax_metal.host.accept.machine import Local, properties
from minimax_metal.host.accept.redaction import Redaction, secrets_of_host
from minimax_metal.host.accept.report import Report
from minimax_metal.host.accept.sandbox import Sandbox, is_root, sweep
from minimax_metal.host.accept.suite import CHECKS, Run, selected
from minimax_metal.host.releases.record import CURRENT, DIRECTORY, read_plan
from minimax_metal.plan.model import Plan

EXIT_FAILED: Final = 1
STATE: Final = Path("/var/lib/minimax-metal/accept")
LOCK: Final = Path("/run/metal-accept.lock")
REPORT: Final = "report.json"
TABLE: Final = "report.txt"
BUNDLE: Final = "bundle.tar.gz"


def main(argv: list[str]) -> int:
    """Run ``metal accept --local`` or ``--list``; return its exit status."""
    if "--list" in argv:
        for check in CHECKS:
            print(f"{check.name:<16}{check.about}")
        return 0
    return local(parsed(argv))


def parsed(argv: list[str]) -> argparse.Namespace:
    """Return the arguments of ``metal accept``, on the controller or on a host.

    Raises:
        UserError: a pattern that matches no check.
    """
    arguments = _parser().parse_args(argv)
    for pattern in (*arguments.only, *arguments.skip):
        if not any(selected(check.name, [pattern], []) for check in CHECKS):
            names = ", ".join(check.name for check in CHECKS)
            raise UserError(f"no check is named {pattern!r}; expected some of {names}")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="metal accept",
        description="Run the acceptance test for the first GPU host of a kind: checks that need real GPUs, "
        "reported as a table, JSON and a redacted bundle to attach to a bug report.",
        epilog="Exit status: 0 accepted; 1 a check failed; 2 not reachable, or usage. docs/accept.md "
        "describes each check, and the part of it that needs a real GPU.",
    )
    parser.add_argument("host", nargs="?", metavar="HOST", help="a host in the inventory")
    parser.add_argument(
        "-i", "--inventory", action="append", metavar="INVENTORY", help="Ansible inventory; repeatable"
    )
    parser.add_argument("--local", action="store_true", help="check this host, as root")
    parser.add_argument(
        "--stop-engine",
        action="store_true",
        help="stop the engine for the checks that need the GPUs' memory, and start it again in any case",
    )
    parser.add_argument(
        "--anonymise",
        action="store_true",
        help="also remove serial numbers, UUIDs, addresses and host names from the bundle",
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="run only these checks; * is a wildcard"
    )
    parser.add_argument("--skip", action="append", default=[], metavar="NAME", help="skip these checks")
    parser.add_argument("--list", action="store_true", help="list the checks")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")
    parser.add_argument(
        "--directory",
        type=Path,
        default=None,
        metavar="DIR",
        help="directory for report and bundle: ./accept/HOST, with --local " + str(STATE),
    )
    parser.add_argument(
        "--plan",
        metavar="FILE",
        help="with --local: file with the plan as JSON, - for standard input; default: the newest release "
        "record",
    )
    parser.add_argument(
        "--ansible",
        action="append",
        default=[],
        metavar="ARGUMENT",
        help="one more argument for ansible-playbook, such as --ansible=--ask-become-pass",
    )
    return parser


def local(arguments: argparse.Namespace) -> int:
    """Check this host."""
    if not is_root():
        raise UserError(
            "found a user who is not root, expected root: only root can run a program in a unit's sandbox"
        )
    plan = _plan(arguments.plan)
    machine = Local()
    context = Context(machine, Serving.of_plan(Plan.of_record(plan)))
    python = f"{context.plan.engine.environment}/bin/python"
    run = Run(
        context,
        lambda service: Sandbox(machine, service.unit, python),
        stop_engine=arguments.stop_engine,
        only=arguments.only,
        skip=arguments.skip,
    )
    with _alone(), _signals_as_interrupts():
        sweep(machine)
        report = run.report()
        _keep(report, context, plan, arguments.directory or STATE, anonymise=arguments.anonymise)
    if arguments.json:
        print(report.as_json(), end="")
    else:
        report.print(sys.stdout)
    return 0 if report.accepted else EXIT_FAILED


def _plan(source: str | None) -> Mapping[str, Any]:
    """Return the plan that the host is compared with, as recorded.

    Raises:
        UserError: there is none.
    """
    if source is None:
        record = DIRECTORY / CURRENT
        try:
            plan: Mapping[str, Any] = read_json(record.read_text(encoding="utf-8"))["plan"]
            return plan
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"found no release record at {record}, expected the plan of a host that site.yml has "
                "set up; run site.yml, or pass --plan"
            ) from None
    return read_plan(source)


def _keep(
    report: Report, context: Context, plan: Mapping[str, Any], directory: Path, *, anonymise: bool
) -> None:
    """Write the report, its table and the bundle, for which the host is queried only now."""
    machine = context.machine
    environments = [
        properties(machine, service.unit, ["Environment"]).get("Environment", "")
        for service in context.services
    ]
    names = {socket.gethostname(), socket.getfqdn(), context.plan.host}
    names |= {name.partition(".")[0] for name in names}
    redaction = Redaction(
        secrets_of_host(environments=environments), anonymise=anonymise, names=names - {"localhost"}
    )
    texts = {
        "report.json": _json(redaction.value(report.as_dict())),
        "report.txt": _table(report),
        "plan.json": _json(redaction.value(plan)),
    }
    texts |= dict(bundle.collect(context))
    try:
        place = trusted_directory(directory, create=0o700)
        # Outcomes quote programs: the report leaves the host as well, so it is masked like the bundle.
        write_atomic(place / REPORT, texts["report.json"], mode=0o600)
        write_atomic(place / TABLE, redaction.text(texts["report.txt"]), mode=0o600)
        bundle.write(place / BUNDLE, texts, redaction)
    except OSError as error:
        raise UserError(
            f"can't write to {directory}: {error.strerror}; name a --directory that only root can change"
        ) from None


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _table(report: Report) -> str:
    import io

    output = io.StringIO()
    report.print(output)
    return output.getvalue()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Allow one run at a time on a host: two would stop and start the same engine.

    Raises:
        UserError: another one is running.
    """
    with LOCK.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                "found another metal accept running on this host, expected none; wait until it has finished"
            ) from None
        yield


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a run like Ctrl-C, through every `finally`."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    kept = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)

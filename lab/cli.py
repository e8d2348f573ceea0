"""The lab's command line.

Exit status: 0 done; 2 something the user must fix, in one line; 3 (``status``) not everything works; 130
after Ctrl-C. ``ssh`` returns what the remote command returned.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from lab.hosts import description, ssh
from lab.hosts.lab import Lab
from minimax_metal.common.errors import UserError

EXIT_USER: Final = 2
EXIT_NOT_UP: Final = 3
EXIT_INTERRUPTED: Final = 130


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = argparse.ArgumentParser(prog="python -m lab", description="Virtual GPU hosts on this machine.")
    top.add_argument(
        "--name", default="demo", help="name of the lab; several may be up at once (default: demo)"
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    up = verbs.add_parser("up", help="start it, or the parts that are not up")
    up.add_argument("--file", type=Path, help="its description (default: lab/labs/NAME.yml)")
    verbs.add_parser("down", help="remove everything; caches stay")
    status = verbs.add_parser("status", help="hosts, links, services")
    status.add_argument("--json", action="store_true", help="for programs")
    remote = verbs.add_parser("ssh", help="log in, or run a command")
    remote.add_argument("host")
    remote.add_argument("command", nargs=argparse.REMAINDER)
    for verb, line in (
        ("reboot", "reboot a host and wait for it"),
        ("cut", "unplug a host's cable"),
        ("restore", "plug it in again"),
    ):
        verbs.add_parser(verb, help=line).add_argument("host")
    verbs.add_parser(
        "cut-uplink", help="cut the hosts off from the outside; they still reach each other and this machine"
    )
    verbs.add_parser("restore-uplink", help="restore the uplink and the services")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of the lab and return its exit status."""
    arguments = parser().parse_args(argv)

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)  # ends like Ctrl-C: parallel work is ended too
    try:
        return run(arguments)
    except UserError as error:
        print(f"lab {arguments.name}: {error}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        print(
            f"lab {arguments.name}: interrupted; 'up' continues from here, 'down' removes everything",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED


def run(arguments: argparse.Namespace) -> int:
    """Run the command of parsed arguments."""
    lab = Lab.named(arguments.name)
    match arguments.verb:
        case "up":
            lab.up(description.load(arguments.name, arguments.file))
        case "down":
            lab.down()
        case "status":
            status = lab.status()
            if arguments.json:
                print(json.dumps(status, indent=1))
            else:
                show(status)
            return 0 if status["up"] else EXIT_NOT_UP
        case "ssh":
            lab.guest(arguments.host)
            return subprocess.run(ssh.command(lab.paths, arguments.host, *arguments.command)).returncode
        case "reboot":
            print(f"{arguments.host}: back after {lab.reboot(arguments.host):.1f} s")
        case "cut" | "restore":
            lab.set_link(arguments.host, up=arguments.verb == "restore")
        case "cut-uplink" | "restore-uplink":
            lab.set_uplink(up=arguments.verb == "restore-uplink")
    return 0


def show(status: dict[str, Any]) -> None:
    """Print a lab's status for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not status["hosts"]:
        console.print(f"lab {status['name']}: not up")
        return
    table = Table("host", "system", "GPUs", "address", "link", "state", "boot")
    for name, host in status["hosts"].items():
        boot = (host["boot_id"] or "-")[:8]
        table.add_row(name, host["system"], host["gpus"], host["address"], host["link"], host["state"], boot)
    for name, service in status["services"].items():
        table.add_row(name, "service", "", service["address"], "", service["state"], "")
    console.print(table)
    console.print(f"state: {status['state']}", soft_wrap=True)

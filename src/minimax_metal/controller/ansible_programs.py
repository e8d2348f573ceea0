"""Ansible's own programs, run beside it: with a limit of time, and with the passwords that were asked for.

A password never stands in a command line: it lies in a private file in memory while the program runs.
"""

from __future__ import annotations

import argparse
import getpass
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.files import read_bounded, write_atomic
from minimax_metal.common.program import TIMED_OUT, Answer
from minimax_metal.common.program import run as run_program

ANSWER_BYTES: Final = 8 << 20
"""Most that is read of one host's answer; the facts of a host with 8 GPUs are about 200 KB."""
OUTPUT_BYTES: Final = 256 << 20
"""Most that is read of what a program prints; an inventory of a thousand hosts is about 50 MB."""
SECONDS: Final = 900.0
HOST_SECONDS: Final = 400
"""How long a host may take to be read while the others go on; what is asked there has limits of 30 s each."""

_VAULT: Final = ("vault_password_file", "vault_id")
_FILES: Final = {
    "ask_vault_password": ("--vault-password-file", "Vault password: "),
    "ask_become_pass": ("--become-password-file", "BECOME password: "),
    "ask_pass": ("--connection-password-file", "SSH password: "),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of Ansible's that say how hosts are reached and variables are decrypted."""
    group = parser.add_argument_group("how hosts are reached (as ansible-playbook has them)")
    group.add_argument(
        "--vault-password-file", metavar="FILE", action="append", help="password of ansible-vault"
    )
    group.add_argument("--vault-id", metavar="ID", action="append", help="ID@FILE of ansible-vault")
    group.add_argument(
        "-J", "--ask-vault-password", "--ask-vault-pass", action="store_true", help="ask for it"
    )
    group.add_argument("-K", "--ask-become-pass", action="store_true", help="ask for sudo's password")
    group.add_argument("-k", "--ask-pass", action="store_true", help="ask for the SSH password")
    group.add_argument("--become-password-file", metavar="FILE", help="sudo's password")
    group.add_argument("--connection-password-file", metavar="FILE", help="the SSH password")
    group.add_argument("-u", "--user", metavar="USER", help="user to log in as")
    group.add_argument("--private-key", metavar="FILE", help="key to log in with")
    group.add_argument("--ssh-common-args", metavar="ARGS", help="more options of ssh")


@contextmanager
def private_directory(purpose: str) -> Iterator[Path]:
    """Yield a directory that only this user can enter, in memory where there is some, gone afterwards."""
    places = (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm")  # noqa: S108  # a private directory is made in it
    base = next((place for place in places if place and os.access(place, os.W_OK | os.X_OK)), None)
    path = Path(tempfile.mkdtemp(prefix=f"minimax-metal-{purpose}-", dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def options_of(arguments: argparse.Namespace) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the options for ansible-inventory and those for ansible; passwords are asked for first."""
    vault: list[str] = []
    for name in _VAULT:
        option = f"--{name.replace('_', '-')}"
        vault += [word for value in getattr(arguments, name, None) or () for word in (option, value)]
    reach: list[str] = []
    for name in (
        "become_password_file",
        "connection_password_file",
        "user",
        "private_key",
        "ssh_common_args",
    ):
        value = getattr(arguments, name, None)
        reach += [f"--{name.replace('_', '-')}={value}"] if value else []
    with private_directory("passwords") as directory:
        for name, (option, question) in _FILES.items():
            if getattr(arguments, name, False):
                file = directory / name
                write_atomic(file, getpass.getpass(question) + "\n", mode=0o600)
                (vault if name == "ask_vault_password" else reach).extend((option, str(file)))
        yield vault, vault + reach


def program(name: str) -> str:
    """Return the path of one of Ansible's programs, the one beside this Python first.

    Raises:
        UserError: there is none.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise UserError(
            f"found no {name}, expected ansible-core on this machine; run make setup, or install "
            "minimax-metal[controller]"
        )
    return found


def run(name: str, *words: str, seconds: float = SECONDS, more: Mapping[str, str] | None = None) -> Answer:
    """Run one of Ansible's programs; ``more`` is added to the environment."""
    environment = {**os.environ, **project_environment(), **(more or {})}
    return run_program([program(name), *words], seconds=seconds, limit=OUTPUT_BYTES, environment=environment)


def project_environment() -> dict[str, str]:
    """Return what tells Ansible of this project's own settings, wherever it is called from."""
    from minimax_metal.controller.project import find_project

    root = find_project()
    return {"ANSIBLE_CONFIG": str(root / "ansible.cfg")} if root else {}


def ask(
    hosts: str, inventories: Sequence[Path], words: Sequence[str], *, seconds: float = SECONDS,
    host_seconds: int = HOST_SECONDS, more: Mapping[str, str] | None = None,
) -> tuple[dict[str, dict[str, Any]], Answer]:  # fmt: skip
    """Run one module on hosts; return each host's answer, and what the program itself said.

    An answer that can't be read (too large, not JSON, no mapping) is that host's alone: ``failed`` with a
    ``msg`` that says why. Hosts that gave no answer at all are not in it.
    """
    with private_directory("answers") as directory:
        where = [word for one in inventories for word in ("-i", str(one))]
        done = run(
            "ansible", hosts, *where, *words, "--task-timeout", str(host_seconds), "--tree", str(directory),
            seconds=seconds, more=more,
        )  # fmt: skip
        answers = {path.name: read_answer(path) for path in directory.iterdir()}
    return answers, done


def read_answer(path: Path) -> dict[str, Any]:
    """Return what a host answered, from the file that Ansible wrote."""
    try:
        found = read_json(read_bounded(path, ANSWER_BYTES))
    except OSError as error:
        return {"failed": True, "unreadable": f"an answer that can't be read ({error.strerror})"}
    except (ValueError, RecursionError):
        return {"failed": True, "unreadable": "an answer that is not JSON"}
    if not isinstance(found, dict):
        return {"failed": True, "unreadable": "an answer that is not a mapping"}
    return found


def last_words(done: Answer) -> str:
    """Return the last line a program said, without notes on old options."""
    lines = [line.strip() for line in f"{done.out}\n{done.err}".splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("[DEPRECATION", "[WARNING]: Deprecation"))]
    errors = [line for line in lines if line.startswith(("[ERROR]", "ERROR!"))]
    if done.status == TIMED_OUT and lines:
        return lines[-1]
    return (errors or lines or ["nothing on its standard error"])[-1]

"""Ansible's programs as subprocesses, with a time limit and with the passwords that the user entered.

A password is never in a command line: it is in a private file in memory while the program runs.
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
"""Maximum size of one host's answer; the facts of a host with 8 GPUs are about 200 KB."""
OUTPUT_BYTES: Final = 256 << 20
"""Maximum size of a program's output; an inventory of a thousand hosts is about 50 MB."""
SECONDS: Final = 900.0
HOST_SECONDS: Final = 400
"""Seconds that reading a host may take while the others go on; each program on it has a limit of 30 s."""

_VAULT: Final = ("vault_password_file", "vault_id")
_FILES: Final = {
    "ask_vault_password": ("--vault-password-file", "Vault password: "),
    "ask_become_pass": ("--become-password-file", "BECOME password: "),
    "ask_pass": ("--connection-password-file", "SSH password: "),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add Ansible's options for connecting to hosts and decrypting variables."""
    group = parser.add_argument_group("connecting to hosts (the same options as ansible-playbook)")
    group.add_argument(
        "--vault-password-file", metavar="FILE", action="append", help="file with the ansible-vault password"
    )
    group.add_argument(
        "--vault-id", metavar="ID", action="append", help="ID@FILE of an ansible-vault password"
    )
    group.add_argument(
        "-J",
        "--ask-vault-password",
        "--ask-vault-pass",
        action="store_true",
        help="ask for the ansible-vault password",
    )
    group.add_argument("-K", "--ask-become-pass", action="store_true", help="ask for the sudo password")
    group.add_argument("-k", "--ask-pass", action="store_true", help="ask for the SSH password")
    group.add_argument("--become-password-file", metavar="FILE", help="sudo's password")
    group.add_argument("--connection-password-file", metavar="FILE", help="the SSH password")
    group.add_argument("-u", "--user", metavar="USER", help="user to log in as")
    group.add_argument("--private-key", metavar="FILE", help="private key to log in with")
    group.add_argument("--ssh-common-args", metavar="ARGS", help="additional ssh options")


@contextmanager
def private_directory(purpose: str) -> Iterator[Path]:
    """Yield a directory that only this user can enter, in memory if possible, removed afterwards."""
    places = (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm")  # noqa: S108  # a private directory is made in it
    base = next((place for place in places if place and os.access(place, os.W_OK | os.X_OK)), None)
    path = Path(tempfile.mkdtemp(prefix=f"minimax-metal-{purpose}-", dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def options_of(arguments: argparse.Namespace) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the options for ansible-inventory and those for ansible, after asking for passwords."""
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
    """Return the path of one of Ansible's programs, preferably beside this Python.

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
    """Return the environment that selects this project's own settings, whatever the working directory."""
    from minimax_metal.controller.project import find_project

    root = find_project()
    return {"ANSIBLE_CONFIG": str(root / "ansible.cfg")} if root else {}


def ask(
    hosts: str, inventories: Sequence[Path], words: Sequence[str], *, seconds: float = SECONDS,
    host_seconds: int = HOST_SECONDS, more: Mapping[str, str] | None = None,
) -> tuple[dict[str, dict[str, Any]], Answer]:  # fmt: skip
    """Run one module on hosts; return each host's answer, and the program's own messages.

    An unreadable answer (too large, not JSON, not a mapping) affects only its host: ``failed`` with a ``msg``
    that gives the reason. Hosts without any answer are missing from the result.
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
    """Return a host's answer from the file that Ansible wrote."""
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
    """Return the last line of a program's output, without deprecation notes."""
    lines = [line.strip() for line in f"{done.out}\n{done.err}".splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("[DEPRECATION", "[WARNING]: Deprecation"))]
    errors = [line for line in lines if line.startswith(("[ERROR]", "ERROR!"))]
    if done.status == TIMED_OUT and lines:
        return lines[-1]
    return (errors or lines or ["nothing on its standard error"])[-1]

"""Start smg without its keys on a command line.

smg 1.13 accepts keys as arguments only (``--api-key``, ``--control-plane-api-keys``; no file, no variable),
and every user of the host can read a command line. Its entry point is a Python function, though: the
interpreter of smg's environment is started with the public arguments, reads the others from its standard
input, and calls that function with both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from minimax_metal.common.errors import UserError

BOOT: Final = "import json, sys; from smg.cli import main; main(sys.argv[1:] + json.load(sys.stdin))"
API_KEY, ADMIN_KEY = "api_key", "admin_key"


def key_arguments(directory: Path) -> list[str]:
    """Return smg's arguments for the keys in a directory of systemd credentials; either may be missing.

    A file has one key per line, the one in use first: two during a rotation. smg sends workers the one in
    use; the other becomes a tenant's (``--tenant-api-key``), which it accepts from clients and forwards.

    Raises:
        UserError: a file can't be read.
    """

    def keys(name: str) -> list[str]:
        path = directory / name
        try:
            return path.read_text(encoding="ascii").split() if path.exists() else []
        except OSError as error:
            raise UserError(f"{path}: found no key: {error.strerror}; run playbooks/gateway.yml") from None

    found: list[str] = []
    for place, client in enumerate(keys(API_KEY)):
        found += ["--tenant-api-key", f"metal-{place + 1}:{client}"] if place else ["--api-key", client]
    if admins := keys(ADMIN_KEY):
        names = [f"metal{place + 1 if place else ''}" for place in range(len(admins))]
        words = [f"{name}:{name}:admin:{admin}" for name, admin in zip(names, admins, strict=True)]
        found += ["--control-plane-api-keys", *words]
    return found


def launch(directory: Path, command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Become smg: ``command`` is the Python of its environment and the arguments after ``smg``.

    Raises:
        UserError: no key can be read, or there is no such Python.
    """
    if not command:
        raise UserError(
            "found no command; expected -- PYTHON launch ARGUMENT ...; check systemctl cat sglang-gateway"
        )
    secret = json.dumps(key_arguments(directory)).encode()
    python, *public = command
    read, write = os.pipe()
    os.write(write, secret)  # far below a pipe's buffer: this does not block
    os.close(write)
    os.dup2(read, 0)
    try:
        os.execve(python, [python, "-c", BOOT, *public], dict(environment))  # noqa: S606  # no shell wanted
    except OSError as error:
        raise UserError(f"{python}: {error.strerror}; run playbooks/gateway.yml") from None

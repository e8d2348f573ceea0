# Copied from src/minimax_metal/common/apart.py by tools/module_utils.py. Change that file, not this one.
"""Run a function in a separate process with a time limit, and return its result.

For work that can hang inside the kernel, where neither a signal nor a thread helps, such as any access to a
directory of a dead NFS server. A process that hangs is left behind, and the caller is told.

Standard library of Python 3.10 and newer only: Ansible modules take this file to the host.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any, NoReturn

BYTES = 128 << 20
"""Maximum size of an answer in bytes of JSON."""


def within(
    seconds: float, function: Callable[..., Any], *arguments: Any, user: tuple[int, int] | None = None
) -> tuple[Any, str | None]:
    """Return ``(result, None)``, or ``(None, reason)`` if the function failed or took too long.

    ``user``: uid and gid that the process permanently switches to before the function starts; root only.

    The result must be plain data (JSON). The process holds none of this process's standard files: a caller
    that waits until they are closed, as Ansible does, does not wait for a process that was left behind.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _answer(writer, function, arguments, user)
    os.close(writer)
    content, in_time = _read(reader, time.monotonic() + seconds)
    if not in_time:
        os.kill(child, signal.SIGKILL)
        time.sleep(0.1)
        os.waitpid(child, os.WNOHANG)
        return None, f"no answer within {seconds:g} s"
    os.waitpid(child, 0)
    try:
        value, problem = json.loads(content)
    except ValueError:
        return None, "it ended without an answer"
    return value, problem


def _answer(
    writer: int, function: Callable[..., Any], arguments: tuple[Any, ...], user: tuple[int, int] | None
) -> NoReturn:
    """Run the function, write its result, and exit without any of the parent's clean-up."""
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        if user is not None:
            os.setgroups([])
            os.setresgid(user[1], user[1], user[1])
            os.setresuid(user[0], user[0], user[0])
        try:
            answer = [function(*arguments), None]
        except Exception as error:  # the parent reports it, whatever it is
            answer = [None, f"{type(error).__name__}: {error}"]
        with os.fdopen(writer, "w", encoding="utf-8") as pipe:
            json.dump(answer, pipe)
    finally:
        os._exit(0)


def _read(reader: int, deadline: float) -> tuple[bytes, bool]:
    """Return the bytes of a pipe, and whether it was closed before the deadline."""
    content = bytearray()
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or len(content) > BYTES or not select.select([pipe], [], [], left)[0]:
                return bytes(content), False
            block = pipe.read(1 << 16)
            if not block:
                return bytes(content), True
            content += block

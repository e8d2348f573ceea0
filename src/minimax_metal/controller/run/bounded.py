"""Kernel limits for what a host may send to the controller.

A compromised host can claim that a file is small and then send without end. Limits that the host applies
itself (a size, ``head -c``) prove nothing. Here the receiving process has the limit: neither it nor a program
that it starts (``sftp``, ``scp``) can write a larger file, or use more memory.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

COPIES: Final = 16
"""How many times a file that comes as a module's answer is in memory: base64 in JSON, as bytes and text."""
SLACK: Final = 128 << 20
MEMORY: Final = 2 << 30
"""Minimum memory that each of Ansible's processes may use."""
SHARE: Final = 4
"""Or as large as this share of the machine's memory."""


@contextlib.contextmanager
def receiving(most: int) -> Iterator[None]:
    """Limit files written by this process, and by programs it starts meanwhile, to ``most`` bytes.

    Memory is limited as well: enough for a file of this size that comes as a module's answer. Above the limit
    a write fails with ``EFBIG`` (programs: ``SIGXFSZ``), and memory is refused (``MemoryError``). Both limits
    are lifted afterwards.
    """
    in_use = _data_in_use()
    with contextlib.ExitStack() as limits:
        limits.enter_context(_at_most(resource.RLIMIT_FSIZE, most))
        if in_use is not None:
            limits.enter_context(_at_most(resource.RLIMIT_DATA, in_use + SLACK + COPIES * most))
        yield


@contextlib.contextmanager
def _at_most(which: int, most: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(which)
    known = [one for one in (soft, hard, most) if one != resource.RLIM_INFINITY]
    resource.setrlimit(which, (min(known), hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (soft, hard))


def _data_in_use() -> int | None:
    """Return the amount that counts against RLIMIT_DATA; None on systems that don't report it."""
    try:
        found = re.search(r"^VmData:\s+(\d+) kB$", Path("/proc/self/status").read_text("ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) << 10 if found else None


def limit_memory(pid: int, machine: int | None = None) -> int | None:
    """Limit the memory of a process and of those it starts from now on; return the limit in bytes.

    For Ansible, which keeps everything that a host's module prints in memory, whatever its size. A process
    that needs more fails; the others continue. None if the system can't do this, or the process has ended.

    Args:
        pid: the process.
        machine: bytes of memory that this machine has; by default it is measured.
    """
    if not hasattr(resource, "prlimit"):
        return None
    if machine is None:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    most = max(MEMORY, machine // SHARE)
    try:
        soft, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
        most = min(one for one in (most, soft, hard) if one != resource.RLIM_INFINITY)
        resource.prlimit(pid, resource.RLIMIT_DATA, (most, hard))
    except (OSError, ValueError):
        return None
    return most

"""Information that only this machine has: addresses of names, and the package index in use."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path


def addresses_of(name: str) -> list[str]:
    """Return the addresses of a name as the controller resolves it; [] if it can't."""
    try:
        return [
            str(one[4][0]).partition("%")[0]
            for one in socket.getaddrinfo(name, None, proto=socket.IPPROTO_TCP)
        ]
    except (OSError, UnicodeError):
        return []


def default_index() -> str | None:
    """Return the package index that uv uses on this machine by default, or None if uv is not installed."""
    beside = Path(sys.executable).with_name("uv")
    program = str(beside) if beside.exists() else shutil.which("uv")
    if program is None:
        return None
    done = subprocess.run(
        [program, "pip", "compile", "--quiet", "--no-header", "--emit-index-url", "-"],
        input="",
        check=False,
        capture_output=True,
        text=True,
    )
    match = re.search(r"^--index-url (https?://\S+)$", done.stdout, re.MULTILINE)
    return match[1].rstrip("/") if match else None

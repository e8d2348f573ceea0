"""Keys that the controller creates once for a fleet and stores in files: complete, or not at all.

Anything less is never used as a key: not one that a crash cut off, that others can read, or that is weak.
Errors give the file's name, never any of its content.
"""

from __future__ import annotations

import os
import secrets
import stat
import string
from pathlib import Path
from typing import Final

from minimax_metal.common.errors import UserError
from minimax_metal.common.files import directory_beneath, new_file, read_bounded
from minimax_metal.plan.keys import DIFFERENT, FORM, SHORTEST

LENGTH: Final = 48
"""Length of a new key: about 285 bits."""
LARGEST: Final = 4096
_ALPHABET: Final = string.ascii_letters + string.digits


def make(length: int = LENGTH) -> str:
    """Return a new key of letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def kept(path: Path, length: int = LENGTH, *, keep: bool = True) -> str:
    """Return the key in a file; create it if there is none.

    Args:
        path: the file; its directory is created with mode 0700.
        length: of a new key; a shorter one (keepalived uses 8 characters) may also be read.
        keep: whether a new key is written.

    Raises:
        UserError: the file is not a complete, strong key for its owner alone, or can't be read or written.
    """
    try:
        try:
            return _read(path, length)
        except FileNotFoundError:
            if not keep:
                return make(length)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = make(length)
        try:
            with (
                directory_beneath(path.parent.resolve()) as directory,
                new_file(directory, path.name, 0o600) as descriptor,
            ):
                os.write(descriptor, f"{key}\n".encode())
        except FileExistsError:
            # Another process was faster: the fleet has one key.
            return _read(path, length)
        return key
    except OSError as error:
        raise UserError(
            f"found {path}: {error.strerror or error}; expected a key that this user can read; fix its "
            "owner, or name another directory of secrets"
        ) from None


def _read(path: Path, length: int) -> str:
    """Return the key in a file.

    Raises:
        UserError: it is not a key, or others can read it.
        OSError: it can't be read.
    """
    content = read_bounded(path, LARGEST)
    status = path.stat()

    def refuse(found: str, expected: str, remedy: str) -> UserError:
        return UserError(f"found {found} in {path}, expected {expected}; {remedy}")

    again = (
        "write it again, or remove the file so that a new key is generated (clients then need the new one)"
    )
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise refuse(
            f"a key with mode {stat.S_IMODE(status.st_mode):04o}",
            "a file that only its owner can read",
            f"run chmod 600 {path}, and replace the key if others could have read it",
        )
    text = content.decode("ascii", "replace")
    key = text.strip()
    shortest = min(SHORTEST, length)
    if not FORM.fullmatch(key):
        what = "nothing" if not key else "characters other than letters, digits and ._~+/=-"
        raise refuse(what, f"one key of {shortest} or more letters, digits and ._~+/=-", again)
    if len(key) < shortest or len(set(key)) < min(DIFFERENT, length // 2):
        raise refuse("a weak key", f"{shortest} or more characters, of which many differ", again)
    if len(key) < length and not text.endswith("\n"):
        raise refuse(
            "a key without a newline at its end, which a crash can leave incomplete", "a complete line", again
        )
    return key

"""Changing a fleet's keys step by step, with the old and the new one valid meanwhile.

The state is one file beside the keys on the controller (``.rotation.json``, mode 0600, written in one
step): the
old and the new value of each key, and between which two positions the fleet is.

=====  =======  ======================================  =====================
place  name     keys that hosts take                    key that is in use
=====  =======  ======================================  =====================
0      old      the old one                             the old one
1      both     the old one and the new one             the old one
2      new      the new one and the old one             the new one
3      done     the new one                             the new one
=====  =======  ======================================  =====================

Two neighbours go together: whatever a client or gateway of one place sends, a host of the other takes. So
a run
may end anywhere. The next one first brings every host to one of the two places that the file names, and only
then goes on, in either direction.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.files import read_bounded, write_atomic
from minimax_metal.controller.keys.kept import kept, make

FILE: Final = ".rotation.json"
"""Hidden: Ansible ignores hidden files in an inventory's directory."""
NAMES: Final = ("api_key", "admin_api_key", "gateway_admin_key")
"""Keys of which two can be valid at once, by their file on the controller."""
OLD, BOTH, NEW, DONE = range(4)
PLACES: Final = ("old", "both", "new", "done")
LARGEST: Final = 65536
START, FINISH, TAKE_BACK = "start", "finish", "take-back"
VERBS: Final = (START, FINISH, TAKE_BACK)


@dataclass(frozen=True)
class Rotation:
    """A key rotation in progress; values are secrets and not shown by ``repr``."""

    at: int
    """Stage at which every host was last seen."""
    to: int
    """Stage to which the hosts are being brought; equal to ``at`` once all have reached it."""
    began: str
    """UTC, ISO 8601."""
    keys: Mapping[str, tuple[str, str]] = field(repr=False)
    """Old and new value by name."""

    @property
    def place(self) -> int:
        """The stage whose keys a role now writes to hosts."""
        return self.to

    def accepted(self, name: str) -> tuple[str, ...]:
        """Return the keys that a host accepts now, the one in use first."""
        old, new = self.keys[name]
        return ((old,), (old, new), (new, old), (new,))[self.place]

    def at_gateways(self, name: str) -> tuple[str, ...]:
        """The same for a gateway, which restarts for another list: for it the middle stages are one.

        Hosts accept the new key before a gateway sends it: engines come first on the way forward, and last on
        the way back.
        """
        old, new = self.keys[name]
        return ((old,), (new, old), (new, old), (new,))[self.place]


def begin(directory: Path, names: Sequence[str]) -> Rotation:
    """Return a new rotation with new keys; nothing is written.

    Raises:
        UserError: a name is not that of a key that can be rotated, or a key can't be read.
    """
    for name in names:
        if name not in NAMES:
            raise UserError(_unknown(name))
    if not names:
        raise UserError(f"found no key to change, expected one or more of {', '.join(NAMES)}")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    keys = {name: (kept(directory / name), make()) for name in dict.fromkeys(names)}
    return Rotation(at=OLD, to=OLD, began=now, keys=keys)


def _unknown(name: str) -> str:
    if name == "gateway_virtual_auth":
        return (
            "gateway_virtual_auth: VRRP accepts one password at a time, so it can't be rotated with "
            "both valid; remove the file from the secrets directory and run playbooks/gateway.yml at "
            "a quiet time"
        )
    if name == "share":
        return (
            "share: the sharing secret is renewed automatically when a host leaves; to renew it now, "
            "run metal keys rotate --key share"
        )
    return f"found key {name!r}, expected one of {', '.join(NAMES)}"


def advance(state: Rotation, verb: str) -> Rotation | None:
    """Return the state on the way to the next stage, or None if the verb has nothing left to do.

    Raises:
        UserError: the verb is not allowed at the current stage.
    """
    low, high = sorted((state.at, state.to))
    if verb == START and high > NEW:
        raise UserError(
            "found a rotation that is already being finished, expected none, or an earlier stage; "
            "finish it with metal keys rotate --finish, or undo it with --take-back"
        )
    if verb == FINISH and high < NEW:
        raise UserError(
            f"found a rotation at place {PLACES[high]!r}, expected 'new': the new key is not in use "
            "yet; run metal keys rotate, give clients the new key, then finish"
        )
    if low != high:
        # Some hosts have reached it and some have not: bring all of them there first.
        at, to = (high, low) if verb == TAKE_BACK else (low, high)
        return replace(state, at=at, to=to)
    if verb == TAKE_BACK:
        return replace(state, to=low - 1) if low > OLD else None
    return replace(state, to=low + 1) if low < (NEW if verb == START else DONE) else None


def settle(state: Rotation) -> Rotation:
    """Return the state once every host has reached the stage."""
    return replace(state, at=state.to)


def secrets_of(directories: Iterable[Path]) -> list[str]:
    """Return the old and the new values of every rotation in progress; empty for a broken state."""
    found = []
    for directory in directories:
        with suppress(UserError):
            state = read(directory)
            found += [value for pair in (state.keys.values() if state else ()) for value in pair]
    return found


def read(directory: Path) -> Rotation | None:
    """Return the rotation in progress, or None.

    Raises:
        UserError: its file is broken, or readable by others: which key is valid must not be guessed.
    """
    path = directory / FILE
    try:
        status = path.stat()
        raw = read_json(read_bounded(path, LARGEST))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else "not JSON"
        raise UserError(f"found {path}: {why}; expected the state of a key rotation; {_REPAIR}") from None
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(
            f"found {path} with mode {stat.S_IMODE(status.st_mode):04o}, expected 0600; run chmod "
            f"600 {path}, and undo the rotation if others could have read it"
        )
    try:
        state = Rotation(
            at=int(raw["at"]),
            to=int(raw["to"]),
            began=str(raw["began"]),
            keys={str(name): (str(one["old"]), str(one["new"])) for name, one in raw["keys"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        state = None
    if state is None or not _sound(state):
        raise UserError(
            f"found {path} with unexpected content, expected the state of a key rotation; {_REPAIR}"
        )
    return state


_REPAIR: Final = (
    "restore the file; or remove it, if you know that every host has the keys of the secrets directory"
)


def _sound(state: Rotation) -> bool:
    values = [value for pair in state.keys.values() for value in pair]
    return (
        {state.at, state.to} <= set(range(4))
        and abs(state.at - state.to) <= 1
        and bool(state.keys)
        and set(state.keys) <= set(NAMES)
        and all(values)
        and len(set(values)) == len(values)
    )


def write(directory: Path, state: Rotation) -> None:
    """Write the state, then the keys' own files with the key in use; at either end the state is removed.

    In this order, so that the next call repairs what a crash leaves between two files.
    """
    ended = state.at == state.to and state.at in {OLD, DONE}
    if not ended:
        content = {
            "at": state.at,
            "to": state.to,
            "began": state.began,
            "keys": {name: {"old": old, "new": new} for name, (old, new) in state.keys.items()},
        }
        write_atomic(directory / FILE, json.dumps(content, indent=1) + "\n", mode=0o600)
    for name in state.keys:
        path, value = directory / name, f"{state.accepted(name)[0]}\n"
        if not path.exists() or path.read_text(encoding="ascii") != value:
            write_atomic(path, value, mode=0o600)
    if ended:
        (directory / FILE).unlink(missing_ok=True)


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Lock the directory against other rotations; the kernel releases it when this process ends."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(
            f"found {directory}: {error.strerror}; expected the fleet's secrets directory; fix its owner"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def step(
    directory: Path, verb: str, names: Sequence[str] = NAMES, *, further: bool = False
) -> dict[str, Any]:
    """Decide and store the next stage; return where hosts are to be brought, without any value.

    ``further``: an earlier step of the same run has finished, and may have been the last one.

    Returns:
        ``place``: its name; empty if nothing is left to do. ``keys``: names. ``forward``: the direction.

    Raises:
        UserError: the verb is not allowed here, or files can't be read.
    """
    with held(directory):
        state = read(directory)
        if state is None and further:
            return {"place": "", "keys": [], "forward": verb != TAKE_BACK}
        if state is None:
            if verb != START:
                raise UserError(
                    f"found no key rotation in {directory}, expected one in progress; metal keys "
                    "rotate begins one"
                )
            state = begin(directory, names)
        elif verb == START and not set(names) <= set(state.keys) and tuple(names) != NAMES:
            raise UserError(
                f"found a rotation of {', '.join(state.keys)} in progress, expected none of other "
                "keys; finish it (--finish) or undo it (--take-back) first"
            )
        onward = advance(state, verb)
        if onward is not None:
            write(directory, onward)
        return {
            "place": "" if onward is None else PLACES[onward.place],
            "keys": sorted(state.keys),
            "forward": verb != TAKE_BACK,
        }


def arrived(directory: Path) -> str:
    """Note that every host has reached the stage; return its name, empty without a rotation."""
    with held(directory):
        state = read(directory)
        if state is None:
            return ""
        write(directory, settle(state))
        return PLACES[state.place]


def accepted(path: Path, *, gateway: bool = False, length: int | None = None, keep: bool = True) -> list[str]:
    """Return the accepted keys for a key file of the secrets directory, the one in use first.

    Raises:
        UserError: the state or the key can't be read.
    """
    state = read(path.parent)
    if state is not None and path.name in state.keys:
        return list(state.at_gateways(path.name) if gateway else state.accepted(path.name))
    return [kept(path, keep=keep) if length is None else kept(path, length, keep=keep)]

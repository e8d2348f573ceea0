"""Models on a host's disk: list them, and remove them, but never one that is in use.

In use is a model directory that a unit ``sglang@….service`` (or a drop-in of one) or a running process names
as ``--model-path``, that a kept release record names, or that has a running pull.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.privileges import acting_as_owner_of
from minimax_metal.host.weights.manifest import FILE, FOLDER, Manifest, sync
from minimax_metal.host.weights.pull import staged_bytes

ROOT: Final = Path("/srv/models")
DEPTH: Final = 5
"""Levels below the root that are searched for model directories (the plan's own are three below)."""


@dataclass(frozen=True, slots=True)
class System:
    """Where a host stores what may name a model directory; replaced in tests."""

    units: Path = Path("/etc/systemd/system")
    releases: Path = Path("/var/lib/minimax-metal/releases")
    requests: Path = Path("/etc/minimax-metal/weights")
    processes: Path = Path("/proc")

    def users(self) -> dict[Path, list[str]]:
        """Return model directory -> everything that uses it, each with what to do about it."""
        found: dict[Path, list[str]] = {}

        def add(path: str, user: str) -> None:
            users = found.setdefault(Path(path).resolve(), [])
            if user not in users:
                users.append(user)

        for file in sorted(
            [*self.units.glob("sglang@*.service"), *self.units.glob("sglang@*.service.d/*.conf")]
        ):
            unit = file.parent.name.removesuffix(".d") if file.suffix == ".conf" else file.name
            for path in model_paths(_words(_read(file))):
                add(path, f"unit {unit} (stop, disable and remove it, or let it serve another model)")
        for file in sorted(self.releases.glob("*.json")):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                held = read_json(_read(file))["plan"]
                for part in (held["model"], held.get("draft")):
                    if part:
                        add(
                            part["path"],
                            f"release {file.stem} (needed for a rollback; remove {file} to give that up)",
                        )
        for folder in self.processes.glob("[0-9]*"):
            words = _read(folder / "cmdline").split("\0")
            for path in model_paths(words):
                add(path, f"process {folder.name} (stop it)")
        return found

    def requested(self) -> set[Path]:
        """Return the model directories that a request file asks for."""
        found = set()
        for file in self.requests.glob("*.json"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                found.add(Path(read_json(_read(file))["path"]).resolve())
        return found


def model_paths(words: Collection[str]) -> Iterator[str]:
    """Yield a command line's ``--model-path`` (or ``--model``), and its draft's."""
    following = False
    for word in words:
        if following and word.startswith("/"):
            yield word
        following = word in {"--model-path", "--model", "--speculative-draft-model-path"}
        if found := re.fullmatch(r"--(?:model|model-path|speculative-draft-model-path)=(/.+)", word):
            yield found[1]


UNIT_CHARACTERS = 64 << 10
"""Maximum bytes read of a unit file: the product's own have some thousands."""


def _words(text: str) -> list[str]:
    """Split a unit file into words, as far as needed here; lines may continue after a backslash."""
    words: list[str] = []
    for line in text[:UNIT_CHARACTERS].replace("\\\n", " ").splitlines():
        try:
            words += shlex.split(line.partition("=")[2] if line.startswith("Exec") else line)
        except ValueError:
            words += line.split()
    # Percent signs are doubled in unit files.
    return [word.replace("%%", "%") for word in words]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Stored:
    """A model directory: ``manifest`` None for one that is not complete; ``bytes`` are those on the disk."""

    path: Path
    manifest: Manifest | None
    bytes: int
    users: tuple[str, ...]
    time: float

    @property
    def name(self) -> str:
        """The model's readable name."""
        return self.manifest.name if self.manifest else self.path.name

    @property
    def final(self) -> Path:
        """The directory's name if it is complete."""
        return self.path if self.manifest else self.path.with_name(self.path.name.removesuffix(".partial"))


def stored(root: Path, system: System) -> list[Stored]:
    """Return every model directory below ``root``, complete and partial ones, sorted by path."""
    users = system.users()
    found = []
    for directory in _directories(root):
        names = users.get(directory.resolve(), [])
        with acting_as_owner_of(directory.parent), contextlib.suppress(FileNotFoundError):
            manifest = None if directory.name.endswith(".partial") else Manifest.read(directory)
            if _locked(directory):
                names = [*names, "a running pull (stop its unit metal-weights@…)"]
            file = directory / FOLDER / FILE
            time = file.stat().st_mtime if manifest else directory.stat().st_mtime
            found.append(Stored(directory, manifest, staged_bytes(directory), tuple(names), time))
    return found


def _directories(root: Path) -> Iterator[Path]:
    """Yield the directories with our folder, not searching inside those."""
    for folder, names, _files in os.walk(root):
        here = Path(folder)
        if FOLDER in names:
            names.clear()
            yield here
        elif len(here.parts) - len(root.parts) >= DEPTH:
            names.clear()
        names.sort()


def _lock_of(directory: Path) -> Path:
    return directory.with_name(f".{directory.name.removesuffix('.partial')}.lock")


def _locked(directory: Path) -> bool:
    """Return whether a pull of a directory is running."""
    try:
        handle = os.open(_lock_of(directory), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def remove(directory: Path, system: System, root: Path) -> int:
    """Remove an unused model directory; return its bytes.

    It is renamed first: after any interruption, no part of it looks complete.

    Raises:
        UserError: it is not one of our model directories, or is used, with everything that uses it.
    """
    directory = directory.absolute()
    if not (directory / FOLDER).is_dir():
        raise UserError(f"{directory} is not one of metal's model directories; see: metal weights list")
    users = list(system.users().get(directory.resolve(), []))
    if _locked(directory):
        users.append("a running pull (stop its unit metal-weights@…)")
    if users:
        raise UserError(f"{directory} is used by {'; by '.join(users)}")
    parent = directory.parent
    with acting_as_owner_of(parent):
        size = staged_bytes(directory)
        going = directory.with_name(f".{directory.name}.removed")
        if going.is_symlink() or (going.exists() and not going.is_dir()):
            going.unlink()
        shutil.rmtree(going, ignore_errors=True)
        directory.rename(going)
        sync(parent)
        shutil.rmtree(going)
        for leftover in (_lock_of(directory), directory.with_name(f".{directory.name}.state.json")):
            leftover.unlink(missing_ok=True)
    while root in parent.parents:
        try:
            # Whether an empty directory that its own user owns can be removed depends on the owner of the one
            # around it.
            with acting_as_owner_of(parent.parent):
                parent.rmdir()
        except OSError:
            break
        parent = parent.parent
    return size


def superfluous(root: Path, system: System, keep: int = 0, spared: Collection[Path] = ()) -> list[Stored]:
    """Return what ``prune`` removes: unused directories except the ``keep`` newest of each model.

    Args:
        root: root directory of models.
        system: to find users of them.
        keep: unused complete directories to keep per model.
        spared: directories to keep in any case, such as the one a play is about to use.

    Partial directories are removed when no request needs them any longer.
    """
    spared_paths = {path.resolve() for path in spared}
    requested = system.requested()
    kept: dict[str, int] = {}
    found = []
    for one in sorted(stored(root, system), key=lambda one: -one.time):
        if one.users or one.final.resolve() in spared_paths:
            continue
        if one.manifest is None:
            if one.final.resolve() not in requested:
                found.append(one)
            continue
        kept[one.name] = kept.get(one.name, 0) + 1
        if kept[one.name] > keep:
            found.append(one)
    return found

"""Stored runs on the controller: one directory each, readable by its owner only.

``run.json`` has what was run and its outcome, ``events.jsonl`` its records, ``output.log`` Ansible's output;
``report.html`` and ``report.json`` are made from them. None of them contains a secret
(:mod:`minimax_metal.common.redact`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.files import write_atomic
from minimax_metal.controller.run.records import Record, shaped

KEPT: Final = 50
"""Number of runs to keep; older ones are removed when a new one begins."""
_NAME: Final = re.compile(r"(?P<time>\d{8}T\d{6}Z)-[a-z]+(?:-(?P<number>\d+))?")


def runs_directory(given: Path | None = None) -> Path:
    """Return the directory of stored runs."""
    if given is not None:
        return given
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "minimax-metal" / "runs"


@dataclass(frozen=True)
class Kept:
    """One stored run."""

    path: Path

    @property
    def name(self) -> str:
        """Its name, which begins with its start time."""
        return self.path.name

    @property
    def age(self) -> tuple[str, int, str]:
        """Sort key: start time, then number within the same second."""
        found = _NAME.fullmatch(self.name)
        return (found["time"], int(found["number"] or 1), self.name) if found else ("", 0, self.name)

    @property
    def about(self) -> dict[str, Any]:
        """Return the contents of ``run.json``; empty if it can't be read."""
        with contextlib.suppress(OSError, ValueError):
            about = read_json((self.path / "run.json").read_bytes())
            if isinstance(about, dict):
                return about
        return {}

    def describe(self, about: Mapping[str, Any]) -> None:
        """Write ``run.json`` atomically."""
        self.write("run.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")

    def write(self, name: str, text: str) -> Path:
        """Write a file atomically, readable by its owner only; return its path."""
        write_atomic(self.path / name, text, mode=0o600)
        return self.path / name

    def open(self, name: str) -> IO[str]:
        """Open a file that grows while the run goes on."""
        handle = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return os.fdopen(handle, "a", encoding="utf-8", buffering=1)

    def records(self) -> Iterator[Record]:
        """Yield its records; a last line cut off by a loss of power is skipped."""
        try:
            with (self.path / "events.jsonl").open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    with contextlib.suppress(ValueError):
                        if (record := shaped(read_json(line))) is not None:
                            yield record
        except OSError as error:
            raise UserError(
                f"found no events of run {self.name} ({error.strerror}), "
                f"expected {self.path / 'events.jsonl'}; name another run: metal report --list"
            ) from None


class Store:
    """All runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def all(self) -> list[Kept]:
        """Return every run, oldest first."""
        try:
            paths = [path for path in self.directory.iterdir() if _NAME.fullmatch(path.name)]
        except OSError:
            return []
        return sorted((Kept(path) for path in paths), key=lambda run: run.age)

    def find(self, name: str | None) -> Kept:
        """Return a run by name, by the start of its name, or by path; without a name the newest.

        Raises:
            UserError: there is none, or there are several.
        """
        if name is not None and (Path(name) / "events.jsonl").is_file():
            return Kept(Path(name))
        runs = self.all()
        found = [run for run in runs if run.name.startswith(name)] if name else runs[-1:]
        found = [run for run in found if run.name == name] or found
        if len(found) != 1:
            what = f"{len(found)} runs named {name}" if name else "no run"
            raise UserError(f"found {what} in {self.directory}, expected one; metal report --list names them")
        return found[0]

    def latest(self, **same: Any) -> Kept | None:
        """Return the newest successful run of the same kind, or None.

        Args:
            same: required contents of its ``run.json``: verb, check mode, inventories, limit, tags.
        """
        for run in reversed(self.all()):
            about = run.about
            if about.get("exit") == 0 and all(about.get(key) == value for key, value in same.items()):
                return run
        return None

    def new(self, verb: str, now: datetime | None = None) -> Kept:
        """Create the directory of a new run, and remove runs older than the newest :data:`KEPT`.

        Raises:
            UserError: it can't be created.
        """
        stamp = f"{(now or datetime.now(UTC)).strftime('%Y%m%dT%H%M%SZ')}-{verb}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for number in range(1, 100):
                path = self.directory / (stamp if number == 1 else f"{stamp}-{number}")
                with contextlib.suppress(FileExistsError):
                    path.mkdir(mode=0o700)
                    break
        except OSError as error:
            raise UserError(
                f"can't store the run under {self.directory} ({error.strerror}); name another "
                "directory with --runs"
            ) from None
        for old in self.all()[:-KEPT]:
            shutil.rmtree(old.path, ignore_errors=True)
        return Kept(path)

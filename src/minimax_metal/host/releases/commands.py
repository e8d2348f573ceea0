"""``metal releases``: the releases a host keeps, and what each needs to run again without a download.

A release is a record (``host/releases/record.py``): the plan that was applied and verified. Its requirements
are on the host because environments and weights are stored by version. ``prune`` removes the oldest ones:
their records, and engine environments that only they use; `metal weights prune` removes the weights of
deleted records.

Exit status: 0; 1 if no such release is kept, or one of its requirements is missing; 2 usage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.host.releases import journal
from minimax_metal.host.releases.record import DIRECTORY, Records, Release
from minimax_metal.plan.model import Plan

PREVIOUS: Final = "previous"
BEGUN_FROM: Final = "begun-from"
"""The active release when the journal's run began."""
UNITS: Final = Path("/etc/systemd/system")


class NoReleaseError(UserError):
    """The requested release is not kept, or can't run again."""


@dataclass(frozen=True)
class Kept:
    """A record with its content."""

    release: Release
    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its name: ``0003-1a2b3c4d5e6f``."""
        return self.release.path.stem

    @cached_property
    def plan(self) -> Plan:
        """The plan that was applied."""
        return Plan.of_record(self.content.get("plan"))

    @property
    def environment(self) -> str:
        """The directory of the engine's environment; empty if the record names none."""
        return self.plan.engine.environment if self.plan.engine else ""

    def needs(self) -> list[tuple[str, Path]]:
        """Return its requirements: description and path."""
        found = []
        if self.environment:
            found.append(("the engine's environment", Path(self.environment, "bin", "python")))
        if self.plan.model and self.plan.model.path:
            found.append(("the weights", Path(self.plan.model.path)))
        return found

    def missing(self) -> list[str]:
        """Return its missing requirements, in words."""
        return [f"{what} {path}" for what, path in self.needs() if not _is_there(path)]


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False  # a name that no file can have: a damaged record


def kept(records: Records) -> list[Kept]:
    """Return every readable record, oldest first."""
    found = []
    for release in records.all():
        with contextlib.suppress(OSError, ValueError):
            content = read_json(release.path.read_text(encoding="utf-8"))
            if isinstance(content, dict):
                found.append(Kept(release, content))
    return found


def chosen(
    wish: str, releases: Sequence[Kept], current: str | None, state: Mapping[str, Any] | None = None
) -> Kept:
    """Return the release that ``wish`` means.

    Args:
        wish: ``previous``, ``begun-from``, a number (3, 0003), a digest or its beginning, or a record's
            whole name.
        releases: the kept ones, oldest first.
        current: name of the active record.
        state: the rollout's journal. For a rollout that never ended, the release it began from is the
            previous one.

    Raises:
        NoReleaseError: there is none.
    """
    known = ", ".join(one.name for one in releases) or "none"
    now = next((one for one in releases if one.name == current), None)
    unended = state is not None and state.get("ended") is None and state.get("kind") == "rollout"
    if wish == BEGUN_FROM or (wish == PREVIOUS and unended):
        name = (state or {}).get("from_release")
        if found := [one for one in releases if one.name == name]:
            return found[0]
        raise NoReleaseError(f"found no release that served before ({name or 'none did'}), kept: {known}")
    if wish == PREVIOUS:
        others = [
            one
            for one in releases
            if now is None
            or (one.release.number < now.release.number and one.release.digest != now.release.digest)
        ]
        if not others:
            raise NoReleaseError(f"found no release before {current or 'the first'}, kept: {known}")
        return others[-1]
    matching = [
        one
        for one in releases
        if wish == one.name
        or (re.fullmatch(r"\d{1,6}", wish) and int(wish) == one.release.number)
        or (re.fullmatch(r"[0-9a-f]{6,12}", wish) and one.release.digest.startswith(wish))
    ]
    if not matching:
        raise NoReleaseError(f"found no release {wish}, kept: {known}")
    return matching[-1]


def given_up(releases: Sequence[Kept], keep: int, current: str | None, wanted: Iterable[str]) -> list[Kept]:
    """Return the releases to remove: all but the ``keep`` newest distinct ones, the active one and the wanted
    one.
    """
    spared, digests, gone = {current, *wanted}, set(), []
    for one in reversed(releases):
        digests.add(one.release.digest)
        if len(digests) > keep and one.name not in spared:
            gone.append(one)
    return gone[::-1]


def unused_environments(gone: Sequence[Kept], left: Sequence[Kept], units: str, commands: str) -> list[Path]:
    """Return environments that only the removed releases use: no kept one, no unit and no process."""
    kept_paths = {one.environment for one in left}
    paths = dict.fromkeys(one.environment for one in gone)
    return [
        Path(path)
        for path in paths
        if path.count("/") >= 3 and path not in kept_paths and path not in units and path not in commands
    ]


def prune(records: Records, keep: int, state: Mapping[str, Any] | None, check: bool) -> list[str]:
    """Remove them; return one line for each.

    Raises:
        OSError: something can't be removed.
    """
    releases = kept(records)
    current = records.current()
    if current is None:
        return []
    wanted = [str(state["from_release"])] if state and state.get("from_release") else []
    gone = given_up(releases, keep, current.path.stem, wanted)
    left = [one for one in releases if one not in gone]
    units = "".join(_text(path) for path in sorted(UNITS.glob("sglang*.service")))
    commands = "\n".join(_text(path) for path in Path("/proc").glob("[0-9]*/cmdline"))
    lines = []
    for path in unused_environments(gone, left, units, commands):
        if path.is_dir():
            lines.append(f"environment {path}")
            if not check:
                # Rename first: a partly removed one must not look complete.
                going = path.with_name(f".{path.name}.removed")
                shutil.rmtree(going, ignore_errors=True)
                path.rename(going)
                shutil.rmtree(going)
    for one in gone:
        lines.append(f"release {one.name}")
        if not check:
            one.release.path.unlink()
    return lines


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").replace("\0", " ")
    except OSError:
        return ""


def table(releases: Sequence[Kept], current: str | None) -> list[str]:
    """Return one line for each release."""
    lines = []
    for one in releases:
        model, engine = one.plan.model, one.plan.engine
        what = f"{model.served_name if model else ''} on SGLang {engine.release if engine else ''}"
        missing = "; ".join(one.missing())
        state = "in force" if one.name == current else f"lacks {missing}" if missing else "ready"
        lines.append(f"{one.name}  {one.content.get('time', '?')}  {what}  {state}")
    return lines


def main(argv: list[str]) -> int:
    """Run ``metal releases``; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="metal releases", description="List the releases that this host keeps."
    )
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="default: %(default)s")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="one line per release")
    show = verbs.add_parser("show", help="print a record, if everything it needs is still on this host")
    show.add_argument("release", help="previous, a number, a digest or a name")
    show.add_argument("--journal", type=Path, default=journal.PATH, help="default: %(default)s")
    pruning = verbs.add_parser("prune", help="remove the oldest")
    pruning.add_argument("--keep", type=int, required=True, help="number of releases to keep, 1 or more")
    pruning.add_argument("--check", action="store_true", help="remove nothing, only list")
    pruning.add_argument("--journal", type=Path, default=journal.PATH, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    records = Records(arguments.directory)
    current = records.current()
    name = current.path.stem if current else None
    if arguments.verb == "list":
        print("\n".join(table(kept(records), name)) or "no release is kept")
        return 0
    state = journal.read(arguments.journal)
    if arguments.verb == "show":
        try:
            one = chosen(arguments.release, kept(records), name, state)
            if missing := one.missing():
                raise NoReleaseError(
                    f"found release {one.name} without {' and '.join(missing)}, expected both on "
                    "this host; roll out that release again, or name another"
                )
        except NoReleaseError as error:
            print(f"metal releases: {error}", file=sys.stderr)
            return 1
        print(json.dumps({"name": one.name, "current": name, **one.content}))
        return 0
    if arguments.keep < 1:
        raise UserError(f"found --keep {arguments.keep}, expected 1 or more")
    try:
        for line in prune(records, arguments.keep, state, arguments.check):
            print(f"{'would remove' if arguments.check else 'removed'} {line}")
    except OSError as error:
        raise UserError(f"can't remove: {error}; run it as root") from error
    return 0

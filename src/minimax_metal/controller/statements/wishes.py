"""What a play asks about a model's files, and the stored answers on the controller."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.files import read_bounded, write_atomic
from minimax_metal.common.text import one_line
from minimax_metal.host.weights.asking import asks_hub, candidates
from minimax_metal.host.weights.bound import authority
from minimax_metal.host.weights.manifest import MOST_BYTES
from minimax_metal.host.weights.proof import BUNDLE, HUB, MANIFEST, Proof
from minimax_metal.host.weights.request import Source, is_commit

SCHEMA: Final = 1
RECENT: Final = 300.0
"""Seconds for which a failure to reach any source is remembered."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What to resolve.

    ``repository`` and ``revision``: as on Hugging Face. ``manifest``: a file that the user names.
    ``accept_unhashed``: accept a list that lacks hashes. ``again``: ignore stored answers.
    """

    repository: str
    revision: str
    sources: tuple[Source, ...]
    manifest: Path | None = None
    accept_unhashed: bool = False
    again: bool = False

    @property
    def asks_hub(self) -> bool:
        """Whether to ask the publisher's own hub: not if the user configured only other sources."""
        return asks_hub(self.sources)

    def candidates(self) -> list[Source]:
        """Return the sources to ask, the publisher's hub first."""
        return candidates(self.repository, self.revision, self.sources)


def wish_of(arguments: Mapping[str, Any]) -> Wish:
    """Return the wish from a task's arguments.

    Raises:
        UserError: an argument is missing or wrong.
    """
    tokens = arguments.get("tokens") or {}
    sources = []
    for raw in arguments["sources"]:
        source = Source.parse({key: value for key, value in raw.items() if key != "token_file"})
        token = tokens.get(source.kind)
        sources.append(replace(source, token_file=Path(token).expanduser()) if token else source)
    manifest = arguments.get("manifest")
    return Wish(
        str(arguments["repository"]),
        str(arguments["revision"]),
        tuple(sources),
        Path(manifest) if manifest else None,
        bool(arguments.get("accept_unhashed")),
        bool(arguments.get("again")),
    )


def store_directory(inventory: str) -> Path:
    """Return where the controller stores answers for an inventory, beside the runs of the fleet.

    Args:
        inventory: directory of the inventory; fleets don't share answers.
    """
    base = os.environ.get("XDG_STATE_HOME")
    root = (Path(base) if base else Path.home() / ".local" / "state") / "minimax-metal" / "weights"
    digest = hashlib.sha256(inventory.encode()).hexdigest()[:12]
    return root / f"{re.sub(r'[^A-Za-z0-9]+', '-', Path(inventory).name).strip('-') or 'fleet'}-{digest}"


def file_of(store: Path, wish: Wish) -> Path:
    """Return the file that stores the answer for a wish."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{wish.repository}@{wish.revision}").strip("-.")
    return store / f"{name}.json"


def note_failure(store: Path, wish: Wish, reasons: Sequence[str], hosts: int) -> None:
    """Remember for some minutes that no source answered: of many hosts' tasks only one waits for them."""
    content = {"wish": _digest(wish), "time": time.time(), "reasons": list(reasons), "hosts": hosts}
    write_atomic(file_of(store, wish).with_suffix(".failed"), json.dumps(content) + "\n", mode=0o600)


def recent_failure(store: Path, wish: Wish) -> tuple[list[str], int] | None:
    """Return why no source answered some minutes ago, and how many hosts had tried; None if long ago."""
    try:
        raw: Any = read_json(read_bounded(file_of(store, wish).with_suffix(".failed"), 1 << 20))
        if raw["wish"] == _digest(wish) and 0 <= time.time() - raw["time"] < RECENT:
            return [str(reason) for reason in raw["reasons"]], int(raw["hosts"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        pass
    return None


def _digest(wish: Wish) -> str:
    return hashlib.sha256(repr(wish).encode()).hexdigest()


@contextmanager
def locked(store: Path, keep: bool) -> Iterator[None]:
    """One process at a time: of many hosts' tasks one asks, the others read its stored answer."""
    if not keep:
        yield
        return
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(store / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@dataclass(slots=True)
class Kept:
    """One file of the store: a proof, and the branches that were resolved with it."""

    proof: Proof
    settled: list[tuple[Source, str]]

    def good_for(self, wish: Wish) -> bool:
        """Return whether it still answers the wish: a mirror's only while the user still names it."""
        if self.proof.unhashed and not wish.accept_unhashed:
            return False
        origins = {authority(source)[1] for source in wish.candidates()}
        return self.proof.by in {HUB, BUNDLE, MANIFEST} or self.proof.origin in origins

    def write(self, store: Path, wish: Wish) -> None:
        """Write it."""
        content = {
            "schema": SCHEMA,
            "repository": wish.repository,
            "revision": wish.revision,
            "settled": [{"source": source.as_dict(), "commit": commit} for source, commit in self.settled],
            "proof": self.proof.as_dict(),
        }
        write_atomic(file_of(store, wish), json.dumps(content, indent=1) + "\n", mode=0o600)

    @classmethod
    def read(cls, store: Path, wish: Wish) -> Kept | None:
        """Return the stored answer for a wish.

        Raises:
            UserError: it is damaged; no other source has this information.
        """
        file = file_of(store, wish)
        try:
            raw: Any = read_json(read_bounded(file, MOST_BYTES))
            if (raw["repository"], raw["revision"]) != (wish.repository, wish.revision):
                return None  # another model that shares this file name
            known = [(Source.parse(one["source"]), one["commit"]) for one in raw["settled"]]
            if not all(isinstance(commit, str) and is_commit(commit) for _, commit in known):
                raise ValueError("a branch is not a commit")
            return cls(Proof.parse(raw["proof"]), known)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError) as error:
            raise UserError(
                f"found {file} that can't be read ({one_line(str(error), 200)}), expected the list "
                f"of files of {wish.repository}; remove it, and the hub is asked again"
            ) from error

"""Make a bundle: resolve what the fleet needs, report its size, download it, write the manifest."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from minimax_metal.catalog.load import HERE
from minimax_metal.common.errors import UserError
from minimax_metal.controller.bundle import debian, pythons, wheels
from minimax_metal.controller.bundle.download import Item, fetch_all
from minimax_metal.controller.bundle.wanted import Packages, Wanted, Weights, find_wanted
from minimax_metal.controller.bundle_store import store
from minimax_metal.controller.bundle_store.store import File
from minimax_metal.host.weights import manifest as weights_manifest
from minimax_metal.plan import archives
from minimax_metal.plan.model import Plan

PARTS: Final = ("wheels", "packages", "pythons", "weights")
KEYRINGS: Final = {
    "debian": Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    "ubuntu": Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg"),
}
Say = Callable[[str], None]
Pull = Callable[[Plan, Path], None]
"""Brings a plan's weights to a directory, verified, or raises ``UserError``."""


@dataclass
class Export:
    """One export in progress."""

    directory: Path
    plans: Sequence[Plan]
    requirements: Path
    say: Say
    pull: Pull
    without: frozenset[str] = frozenset()
    vendor_key: str | None = None
    sign_key: Path | None = None
    items: list[Item] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)
    files: list[File] = field(default_factory=list)

    def resolve(self) -> Wanted:
        """Determine what to fetch. Nothing in the directory changes."""
        wanted = find_wanted(self.plans)
        mirrors = next(plan.mirrors for plan in self.plans if plan.mirrors)
        if "wheels" not in self.without:
            self._wheels(wanted, mirrors.origins.package_index)
        if "packages" not in self.without:
            for one in wanted.packages:
                self.say(f"packages of {one.platform} {one.architecture}: apt decides which")
                found = self._archives(one, mirrors.origins.distribution)
                with scratch() as root:
                    items, contents = debian.collect(
                        one, found, mirrors.origins.vendor, Path(root), self.vendor_key
                    )
                self.items += items
                self.contents |= contents
        if "pythons" not in self.without:
            for version, machine in wanted.pythons:
                self.items.append(pythons.find(version, machine, mirrors.origins.python))
        self.items = list({item.path: item for item in self.items}.values())
        return wanted

    def _wheels(self, wanted: Wanted, index: str | None) -> None:
        found: list[wheels.Wheel] = []
        for one in wanted.wheels:
            kind, _, name = one.lock.partition("/")
            lock = {
                "engine": HERE / "locks" / name,
                "host-tools": self.requirements / "host-tools.txt",
                "uv": self.requirements / "bootstrap.txt",
            }[kind]
            these = wheels.resolve(lock, one, index)
            size = sum(max(0, wheel.size) for wheel in these)
            self.say(f"{one.lock} for Python {one.python}: {len(these)} wheels, {size / 1e9:.2f} GB")
            found += these
        self.items += [wheel.item for wheel in found]
        self.contents |= wheels.pages(found)

    def _archives(self, wanted: Packages, mirror: str | None) -> debian.Archives:
        keyring = KEYRINGS[wanted.distribution]
        if not keyring.is_file():
            raise UserError(
                f"found no {keyring}, expected the key of {wanted.distribution}'s archive to verify "
                f"its lists; install {keyring.stem}"
            )
        if mirror:
            main = f"{mirror}/{wanted.distribution}"
            return debian.Archives(
                main, f"{main}-security" if wanted.distribution == "debian" else main, keyring
            )
        own = archives.own_archives(wanted.distribution)
        if own is None:
            raise UserError(
                f"found no sources of {wanted.distribution} on this machine, expected the address of "
                "its archive; set metal_distribution_mirror_url to a mirror that has debian, "
                "debian-security and ubuntu"
            )
        return debian.Archives(own[0], own[1], keyring)

    def check_room(self) -> int:
        """Return the bytes to fetch.

        Raises:
            UserError: the disk does not have enough space.
        """
        need = sum(max(0, item.size) for item in self.items if not (self.directory / item.path).is_file())
        there = next(one for one in (self.directory, *self.directory.parents) if one.is_dir())
        room = shutil.disk_usage(there).free
        if room < need:
            raise UserError(
                f"found {room / 1000000000.0:.1f} GB free at {there}, expected "
                f"{need / 1000000000.0:.1f} GB; free some space there, or name another directory"
            )
        return need

    def fetch(self, wanted: Wanted) -> None:
        """Fetch missing files."""
        need = self.check_room()
        store.begin(self.directory)
        self.files += [store.place(self.directory, path, one) for path, one in self.contents.items()]
        counter = _Counter(need, self.say)
        self.files += fetch_all(self.items, self.directory, counter)
        counter.end()
        if "pythons" not in self.without:
            for version, machine in wanted.pythons:
                pythons.check(version, machine, self.directory)

    def fetch_weights(self, wanted: Wanted) -> list[Weights]:
        """Pull the weights into the bundle; return the ones it contains."""
        if "weights" in self.without:
            return []
        for one in wanted.weights:
            target = self.directory / "weights" / one.directory
            plan = next(p for p in self.plans if p.model and p.model.revision == one.revision)
            if not target.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
                self.say(f"weights of {one.name}, {one.bytes / 1e9:.1f} GB")
                self.pull(plan, target)
            self.files += weights_files(self.directory, one)
        return list(wanted.weights)

    def finish(self, wanted: Wanted, weights: Sequence[Weights]) -> store.Bundle:
        """Write the manifest."""
        contents = {
            "wheels": [asdict(one) for one in wanted.wheels if "wheels" not in self.without],
            "packages": [asdict(one) for one in wanted.packages if "packages" not in self.without],
            "pythons": [list(one) for one in wanted.pythons if "pythons" not in self.without],
            "weights": [asdict(one) for one in weights],
        }
        return store.finish(self.directory, contents, self.files, sign_key=self.sign_key)


def weights_files(directory: Path, weights: Weights) -> list[File]:
    """Return the entries of a verified directory of weights, from its own manifest.

    Raises:
        UserError: it has none.
    """
    base = f"weights/{weights.directory}"
    manifest = weights_manifest.Manifest.read(directory / base)
    if manifest is None:
        raise UserError(
            f"found no manifest in {directory / base}, expected verified weights; remove that directory and "
            "run again"
        )
    kept = f"{base}/{weights_manifest.FOLDER}/{weights_manifest.FILE}"
    named = [File(f"{base}/{one.path}", one.size, one.sha256 or "") for one in manifest.files]
    return [
        *(one if one.sha256 else store.described(directory, one.path) for one in named),
        store.described(directory, kept),
    ]


class _Counter:
    """Prints the progress of the download every few seconds."""

    def __init__(self, need: int, say: Say) -> None:
        self.need, self.say, self.done = need, say, 0
        self.lock, self.started = threading.Lock(), time.monotonic()
        self.said = self.started

    def __call__(self, count: int) -> None:
        with self.lock:
            self.done += count
            now = time.monotonic()
            if now - self.said < 10:
                return
            self.said = now
        rate = self.done / (now - self.started)
        self.say(f"{self.done / 1e9:.2f} of {self.need / 1e9:.2f} GB, {rate / 1e6:.1f} MB/s")

    def end(self) -> None:
        seconds = max(0.001, time.monotonic() - self.started)
        self.say(f"fetched {self.done / 1e9:.3f} GB in {seconds:.0f} s")


def scratch() -> tempfile.TemporaryDirectory[str]:
    """Yield a directory for requests, removed afterwards."""
    return tempfile.TemporaryDirectory(prefix="metal-bundle-")

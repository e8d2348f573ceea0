"""The wheels of a lock for one Python and machine, from uv's own resolution and the lock's hashes."""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from minimax_metal.common.errors import UserError
from minimax_metal.common.text import one_line
from minimax_metal.controller.bundle import programs
from minimax_metal.controller.bundle.download import Item
from minimax_metal.controller.bundle.wanted import Wheels

GLIBC: Final = (2, 34)
"""Requirement of the engine's own wheels (``catalog/locks/README.md``); every platform here is newer."""
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Wheel:
    """One wheel as listed by the index."""

    project: str
    filename: str
    url: str
    size: int
    sha256: str

    @property
    def path(self) -> str:
        """Its path in a bundle."""
        return f"pypi/files/{self.sha256[:2]}/{self.sha256}/{self.filename}"

    @property
    def item(self) -> Item:
        """The wheels to fetch."""
        return Item(self.url, self.path, self.size, self.sha256)


def resolve(lock: Path, wanted: Wheels, index: str | None) -> list[Wheel]:
    """Return the wheels of a lock that a host would install.

    Raises:
        UserError: the index does not answer, lacks a package, or lists other hashes than the lock.
    """
    command = [
        uv_program(), "pip", "compile", str(lock), "--no-deps", "--only-binary", ":all:", "--quiet",
        "--no-header", "--python-version", wanted.python,
        "--python-platform", f"{wanted.architecture}-manylinux_2_{GLIBC[1]}",
        "--format", "pylock.toml", *(["--default-index", index] if index else []),
    ]  # fmt: skip
    done = programs.run(command)
    if done.status:
        said = " ".join(done.err.split())[-300:]
        raise UserError(
            f"found that uv can't resolve {lock.name} for Python {wanted.python} ({said}), expected "
            "every package of the lock at the index; check metal_package_index_url"
        )
    hashes = set(_HASH.findall(lock.read_text(encoding="utf-8")))
    order = {tag: number for number, tag in enumerate(tags(wanted))}
    return [choose(package, hashes, order) for package in tomllib.loads(done.out).get("packages", [])]


def choose(package: dict[str, Any], hashes: set[str], order: dict[Tag, int]) -> Wheel:
    """Return the best matching wheel of a package that is in the lock.

    Args:
        package: an entry of ``pylock.toml``.
        hashes: those of the lock.
        order: tags of the wanted Python, the best with the lowest number.

    Raises:
        UserError: there is none.
    """
    found: list[tuple[int, str, dict[str, Any]]] = []
    wheels = package.get("wheels")
    for wheel in wheels if isinstance(wheels, list) else []:
        known = wheel.get("hashes") if isinstance(wheel, Mapping) else None
        if not isinstance(known, Mapping) or str(known.get("sha256")) not in hashes:
            continue
        url = str(wheel.get("url") or "")
        filename = str(wheel.get("name") or url.rpartition("/")[2].replace("%2B", "+"))
        try:
            fitting = parse_wheel_filename(filename)[3]
        except InvalidWheelFilename:
            continue
        if not url or "/" in filename or not filename.isprintable():
            continue
        found += [(order[tag], filename, wheel) for tag in fitting if tag in order]
    if not found:
        raise UserError(
            f"found no wheel of {_said(package, 'name')} {_said(package, 'version')} at the index "
            "with a hash of the lock, expected one; the index holds other files than the lock names: "
            "use another with metal_package_index_url"
        )
    _, filename, wheel = min(found, key=lambda one: one[:2])
    return Wheel(
        project=canonicalize_name(_said(package, "name")),
        filename=filename,
        url=str(wheel["url"]),
        size=size if type(size := wheel.get("size")) is int and 0 <= size < 1 << 44 else -1,
        sha256=str(wheel["hashes"]["sha256"]),
    )


def _said(package: Mapping[str, Any], key: str) -> str:
    return one_line(str(package.get(key) or "a package without one"), 120)


def tags(wanted: Wheels) -> list[Tag]:
    """Return the tags that match a Python on Linux, best first."""
    major, minor = (int(part) for part in wanted.python.split("."))
    machine = wanted.architecture
    platforms = [f"manylinux_2_{number}_{machine}" for number in range(GLIBC[1], 4, -1)]
    platforms += [f"{name}_{machine}" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
    python = (major, minor)
    return [
        *cpython_tags(python, platforms=platforms),
        *compatible_tags(python, interpreter=f"cp{major}{minor}", platforms=platforms),
    ]


def pages(wheels: Iterable[Wheel]) -> dict[str, bytes]:
    """Return the pages of a package index (PEP 503) with these wheels: path in the bundle to content."""
    projects: dict[str, dict[str, Wheel]] = {}
    for wheel in wheels:
        projects.setdefault(wheel.project, {})[wheel.filename] = wheel
    found = {"pypi/simple/index.html": _page("projects", [(f"{name}/", name) for name in sorted(projects)])}
    for name, files in projects.items():
        links = [
            (f"../../files/{one.sha256[:2]}/{one.sha256}/{one.filename}#sha256={one.sha256}", one.filename)
            for _, one in sorted(files.items())
        ]
        found[f"pypi/simple/{name}/index.html"] = _page(name, links)
    return found


def _page(title: str, links: Sequence[tuple[str, str]]) -> bytes:
    body = "".join(f'<a href="{escape(target)}">{escape(text)}</a><br>\n' for target, text in links)
    head = f"<!DOCTYPE html>\n<html><head><title>{escape(title)}</title></head><body>\n"
    return f"{head}{body}</body></html>\n".encode()


def uv_program() -> str:
    """Return uv: the one beside this program, else the one in PATH."""
    beside = Path(sys.executable).with_name("uv")
    program = str(beside) if beside.exists() else shutil.which("uv")
    if program is None:
        raise UserError(
            "found no uv, expected it beside metal (make setup brings it); install uv on this machine"
        )
    return program

"""Examine a directory as a model: every file that can't be verified is named.

Verified is: every file is a regular one (or a link to one), every ``.safetensors`` file is complete by its
own header, the index names the existing tensors, ``config.json`` is the expected model's and names no missing
code, the tokenizer exists, and there is no unfinished download. *Not* verified is that the numbers in the
tensors are right: only the hub's hashes can show that.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import re
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.files import read_head
from minimax_metal.common.text import has_controls, one_line
from minimax_metal.host.weights.examine.leftovers import (
    TOOL_FOLDERS,
    companions,
    is_companion,
    unfinished,
    unfinished_in_tool_folder,
)
from minimax_metal.host.weights.examine.safetensors import POINTER, Header, UnsoundError, read
from minimax_metal.host.weights.examine.walk import code_of, files_below, holes_of

INDEX: Final = "model.safetensors.index.json"
MOST_FILES: Final = 20_000
MOST_TEXT: Final = 64 << 20
"""Maximum bytes of an index or another JSON file; M3's index has about 10 MB."""
NEAR: Final = 0.03
"""Allowed relative difference from the catalogue's size: texts and images change."""
HOLE: Final = 16 << 20
TOKENIZERS: Final = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
"""Any of these sets of files is a tokenizer that the engine can load."""
SHARD: Final = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.safetensors")


@dataclass(frozen=True, slots=True)
class Problem:
    """An unverified part: the file's path below the directory ("." for all), and why."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


@dataclass(frozen=True, slots=True)
class Expected:
    """The catalogue's data on the model; empty or None if there is none."""

    architectures: tuple[str, ...] = ()
    bytes: int | None = None
    name: str | None = None


@dataclass(slots=True)
class Examination:
    """The result; ``files``: path -> size of everything that belongs to the model."""

    directory: Path
    problems: list[Problem] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    architectures: tuple[str, ...] = ()
    tensors: int = 0

    @property
    def ok(self) -> bool:
        """Whether everything that can be verified is."""
        return not self.problems

    @property
    def bytes(self) -> int:
        """Bytes of the model's files."""
        return sum(self.files.values())

    def line(self, most: int = 4) -> str:
        """Return the problems as one line: the first ones, and the number of the others."""
        shown = "; ".join(str(problem) for problem in self.problems[:most])
        more = len(self.problems) - most
        return shown + (f"; and {more} more" if more > 0 else "")


def examine(
    directory: Path, expected: Expected | None = None, only: Collection[str] | None = None
) -> Examination:
    """Examine a directory; reads headers, indexes and configurations, never the weights themselves.

    Args:
        directory: contains the files; links in it are followed, as hub caches consist of them.
        expected: the expected model.
        only: paths of the files that count; None: all.

    Raises:
        OSError: it is not a directory, or can't be read.
    """
    if not directory.is_dir():
        code = errno.ENOTDIR if directory.exists() else errno.ENOENT
        raise OSError(code, os.strerror(code), str(directory))
    return _Look(directory, expected or Expected(), only).all()


class _Look:
    """One examination in progress."""

    def __init__(self, directory: Path, expected: Expected, only: Collection[str] | None) -> None:
        self.root = directory
        self.only = only
        self.expected = expected
        self.found = Examination(directory)
        self.headers: dict[str, Header] = {}
        self.unsound: set[str] = set()

    def problem(self, path: str, text: str) -> None:
        # A name is shown, and may contain anything.
        self.found.problems.append(Problem(one_line(path, 300), one_line(text, 500)))

    def all(self) -> Examination:
        """Look at everything."""
        self._files()
        if self._is_a_model_at_all():
            self._weights()
            self._index()
            self._configuration()
            self._tokenizer()
            self._size()
        # A running download explains the rest: it comes first.
        self.found.problems.sort(
            key=lambda problem: (" download" not in problem.text, problem.path == ".", problem.path)
        )
        return self.found

    # Existing files -----------------------------------------------------------------------------------

    def _files(self) -> None:
        looked = 0
        beside: list[str] = []
        for parts, siblings in files_below(self.root):
            looked += 1
            path = "/".join(parts)
            if self.only is not None and path not in self.only:
                continue
            if looked > MOST_FILES:
                self.problem(".", f"holds more than {MOST_FILES} files; name the model's own directory")
                return
            if parts[0] in TOOL_FOLDERS:
                if unfinished_in_tool_folder(parts, siblings):
                    self.problem(path, "an unfinished download (let its tool finish it, or remove it)")
                continue
            if parts[-1].startswith("._") and is_companion(parts[-1], siblings, self._begins(path)):
                beside.append(path)
                continue
            self._file(path, parts[-1])
        if beside:
            self.problem(beside[0], companions(beside, str(self.root)))

    def _file(self, path: str, name: str) -> None:
        tool = unfinished(name)
        if tool is not None:
            self.problem(path, f"an unfinished download of {tool} (let it finish, or remove the file)")
            return
        try:
            status = (self.root / path).stat()
        except OSError as error:
            dangling = (self.root / path).is_symlink() and error.errno in {errno.ENOENT, errno.ELOOP}
            what = "a link to a file that is not there" if dangling else f"can't be read: {error.strerror}"
            self.problem(path, what)
            return
        if not stat.S_ISREG(status.st_mode):
            folder = stat.S_ISDIR(status.st_mode)
            self.problem(path, "a folder that can't be read" if folder else "not a regular file")
            return
        try:
            path.encode()
        except UnicodeEncodeError:
            self.problem(path, "a name that is not UTF-8")
            return
        if has_controls(path) or "\\" in path:
            self.problem(path, "a name with control characters or a backslash")
            return
        self.found.files[path] = status.st_size
        if name.endswith(".safetensors"):
            return
        if status.st_size <= 1024 and self._begins(path).startswith(POINTER):
            self.problem(path, "a git-LFS pointer, not the file itself: run 'git lfs pull' there")
            self.unsound.add(path)

    def _begins(self, path: str) -> bytes:
        with contextlib.suppress(OSError):
            return read_head(self.root / path, 1024)
        return b""

    def _is_a_model_at_all(self) -> bool:
        top = [path for path in self.found.files if "/" not in path]
        weights = [path for path in top if path.endswith(".safetensors")]
        if weights or INDEX in top:
            return True
        below = sorted(
            {
                path.rpartition("/")[0]
                for path in self.found.files
                if "/" in path and path.endswith((".safetensors", "/config.json"))
            }
        )
        below = [folder for folder in below if f"{folder}/config.json" in self.found.files] or below
        if below and "config.json" not in top:
            some = ", ".join(below[:4]) + (f" and {len(below) - 4} more" if len(below) > 4 else "")
            what = (
                "contains a model in a folder"
                if len(below) == 1
                else f"contains {len(below)} models in folders"
            )
            self.problem(".", f"{what}, {some}, and is not one itself: name one of them")
            return False
        if not self.found.files:
            if not self.found.problems:
                self.problem(".", "is empty")
            return False
        some = ", ".join(sorted(self.found.files)[:4]) + ("…" if len(self.found.files) > 4 else "")
        other = [path for path in top if path.endswith((".gguf", ".bin", ".pt", ".pth"))]
        hint = f" (weights as {other[0]} are in another format)" if other else ""
        self.problem(".", f"contains no .safetensors file{hint}, only {some}")
        return False

    # The weights --------------------------------------------------------------------------------------

    def _weights(self) -> None:
        for path in sorted(self.found.files):
            if not path.endswith(".safetensors"):
                continue
            try:
                with (self.root / path).open("rb") as file:
                    header = self.headers[path] = read(file.fileno())
                    holes = holes_of(file.fileno(), header.size)
            except UnsoundError as error:
                self.problem(path, str(error))
                self.unsound.add(path)
                continue
            except OSError as error:
                self.problem(path, f"can't be read: {error.strerror}")
                self.unsound.add(path)
                continue
            self.found.tensors += len(header.tensors)
            if holes >= HOLE or (holes > 1 << 16 and holes > header.size // 10):
                self.problem(
                    path,
                    f"{holes} of its {header.size} bytes were never written: an unfinished download",
                )

    def _index(self) -> None:
        shards = [path for path in self.headers.keys() | self.unsound if path.endswith(".safetensors")]
        top = sorted(path for path in shards if "/" not in path)
        if INDEX not in self.found.files:
            if len(top) > 1 or (len(top) == 1 and SHARD.fullmatch(top[0])):
                self.problem(
                    INDEX, f"missing; {len(top)} weight files exist, and it lists which there should be"
                )
            return
        if INDEX in self.unsound:
            return
        raw = self._json(INDEX)
        if raw is None:
            return
        weight_map = raw.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            self.problem(INDEX, "is not an index of weights: it has no weight_map")
            return
        wanted: dict[str, list[str]] = {}
        for tensor, shard in weight_map.items():
            if not isinstance(shard, str) or shard.startswith("/") or ".." in shard.split("/"):
                self.problem(INDEX, f"names {one_line(repr(shard), 80)} as the file of a tensor")
                return
            wanted.setdefault(shard, []).append(tensor)
        for shard, tensors in sorted(wanted.items()):
            if shard in self.unsound:
                continue
            header = self.headers.get(shard)
            if header is None:
                if not any(problem.path == shard for problem in self.found.problems):
                    self.problem(shard, f"missing; {INDEX} names it")
                continue
            absent = [tensor for tensor in tensors if tensor not in header.tensors]
            if absent:
                self.problem(
                    shard,
                    f"lacks {len(absent)} of the {len(tensors)} tensors that {INDEX} names in it, e.g. "
                    f"{one_line(absent[0], 100)}: a file of another model or revision",
                )

        for path in top:
            if path not in wanted and SHARD.fullmatch(path) and path not in self.unsound:
                self.problem(path, f"not named by {INDEX}: left over from another download; remove it")

    # Configuration and tokenizer ----------------------------------------------------------------------

    def _configuration(self) -> None:
        if "config.json" not in self.found.files:
            if not any(problem.path == "config.json" for problem in self.found.problems):
                self.problem("config.json", "missing; the engine can't load a model without it")
            return
        if "config.json" in self.unsound:
            return
        raw = self._json("config.json")
        if raw is None:
            return
        named = raw.get("architectures")
        if isinstance(named, list) and named and all(isinstance(one, str) for one in named):
            self.found.architectures = tuple(one_line(one, 80) for one in named)
        else:
            self.problem("config.json", "names no architectures; the engine can't load it")
        wanted = self.expected.architectures
        if wanted and self.found.architectures and not set(wanted) & set(self.found.architectures):
            name = f" ({self.expected.name})" if self.expected.name else ""
            is_of = ", ".join(self.found.architectures)
            self.problem("config.json", f"is of {is_of}, expected {' or '.join(wanted)}{name}: another model")
        for path in sorted(code_of(raw)):
            if path not in self.found.files:
                self.problem(path, "missing; config.json loads code from it (auto_map)")
        for path in ("generation_config.json", "tokenizer_config.json", "tokenizer.json"):
            if path in self.found.files and path not in self.unsound:
                self._json(path)

    def _tokenizer(self) -> None:
        if any(all(path in self.found.files for path in names) for names in TOKENIZERS):
            if "tokenizer_config.json" not in self.found.files:
                self.problem("tokenizer_config.json", "missing; the engine needs it to load the tokenizer")
            return
        self.problem("tokenizer.json", "missing, and there is no other tokenizer")

    def _size(self) -> None:
        wanted = self.expected.bytes
        if not wanted:
            return
        found = self.found.bytes
        if abs(found - wanted) > max(NEAR * wanted, 16 << 20):
            name = f" of {self.expected.name}" if self.expected.name else ""
            self.problem(
                ".",
                f"has {found} bytes, the catalogue's size{name} is {wanted}: not this model, or incomplete",
            )

    def _json(self, path: str) -> Mapping[str, Any] | None:
        """Return a JSON object of the model, and report the file if it is not one."""
        try:
            with (self.root / path).open("rb") as file:
                content = file.read(MOST_TEXT + 1)
            if len(content) > MOST_TEXT:
                raise ValueError("too long")
            if content.startswith(codecs.BOM_UTF8):
                self.problem(
                    path, "begins with a byte order mark, which the engine can't read: save it without"
                )
                content = content.removeprefix(codecs.BOM_UTF8)
            raw = read_json(content.decode("utf-8"))
            if not isinstance(raw, dict):
                raise TypeError
        except OSError as error:
            self.problem(path, f"can't be read: {error.strerror}")
        except (ValueError, TypeError, RecursionError):
            what = "is empty" if not self.found.files.get(path) else "is not a JSON object"
            self.problem(path, f"{what}: damaged, or an HTML page in its place")
        else:
            return raw
        return None

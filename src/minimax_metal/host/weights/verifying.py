"""``metal weights verify``: is this directory the complete model? On any host, without network.

With a manifest every byte is checked against its hashes. Without one the files must prove it themselves
(:mod:`.examine`): that finds missing, truncated, unfinished and foreign files, but not a changed weight.

Exit status: 0 complete; 1 a file is not as it should be (each is named); 2 a directory can't be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minimax_metal.common.errors import UserError
from minimax_metal.common.privileges import acting_as_owner_of
from minimax_metal.common.sizes import spell_bytes
from minimax_metal.common.text import one_line
from minimax_metal.host.weights.check import reread
from minimax_metal.host.weights.examine import Expected, examine
from minimax_metal.host.weights.manifest import FILE, FOLDER, Manifest

WHOLE, DAMAGED, NOT_LOOKED = 0, 1, 2
BY_HASHES, BY_FILES = "hashes of the manifest", "files themselves"


@dataclass(slots=True)
class Result:
    """The result for one directory."""

    path: Path
    status: int = WHOLE
    by: str = BY_FILES
    problems: list[dict[str, str]] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    seconds: float = 0.0
    architectures: tuple[str, ...] = ()
    reason: str = ""
    """Why it could not be read."""

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "path": str(self.path),
            "whole": self.status == WHOLE,
            "proved_by": self.by if self.status != NOT_LOOKED else None,
            "problems": self.problems,
            "not_in_manifest": self.strangers,
            "files": self.files,
            "bytes": self.bytes,
            "architectures": list(self.architectures),
            "error": self.reason or None,
        }

    def lines(self) -> list[str]:
        """Return the readable lines: one for each file, then one for the directory."""
        where = one_line(str(self.path), 400)
        if self.status == NOT_LOOKED:
            return [f"{where}: {self.reason}"]
        lines = [f"{problem['path']}: {problem['text']}" for problem in self.problems]
        lines += [f"{path}: not in the manifest" for path in self.strangers]
        if self.status == DAMAGED and self.by == BY_HASHES:
            return [
                *lines,
                f"{where}: {len(self.problems)} of {self.files} files damaged; fetch them again with: metal "
                "weights pull --repair --request FILE",
            ]
        if self.status == DAMAGED:
            return [*lines, f"{where}: not a complete model; {len(self.problems)} problem(s), listed above"]
        rate = f" ({spell_bytes(self.bytes / self.seconds)}/s)" if self.seconds else ""
        said = (
            f"all match the manifest{rate}"
            if self.by == BY_HASHES
            else "complete by headers and index; there is no manifest, so no hash was checked"
        )
        return [*lines, f"{where}: {self.files} files, {spell_bytes(self.bytes)}, {said}"]


def verify(
    path: Path,
    workers: int | None = None,
    expected: Expected | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Result:
    """Verify one directory.

    Args:
        path: the model directory.
        workers: files read in parallel, if there is a manifest.
        expected: the expected model; None: any.
        progress: called with bytes read and the total.
    """
    result = Result(path)
    try:
        with acting_as_owner_of(path):
            if not path.is_dir():
                result.status = NOT_LOOKED
                found = "is not a directory" if path.exists() else "does not exist"
                result.reason = f"{found}; expected a model's directory"
                return result
            manifest = Manifest.read(path)
            if manifest is not None:
                return _by_hashes(result, manifest, workers, progress)
            return _by_files(result, expected)
    except OSError as error:
        result.status = NOT_LOOKED
        result.reason = f"can't be read: {error.strerror or type(error).__name__}; check owner and mount"
        return result


def _by_hashes(
    result: Result, manifest: Manifest, workers: int | None, progress: Callable[[int, int], None]
) -> Result:
    found = reread(result.path, manifest, workers, progress)
    result.by, result.files, result.bytes = BY_HASHES, len(manifest.files), found.bytes
    result.seconds = found.seconds
    for line in found.damaged:
        # A line begins with the file's path, which may contain anything; a path here is one of the
        # manifest's.
        path = next((one.path for one in manifest.files if line.startswith(f"{one.path} ")), ".")
        result.problems.append({"path": path, "text": one_line(line.removeprefix(path).strip(), 500)})
    if not any(entry.size for entry in manifest.files):
        result.problems.append({"path": f"{FOLDER}/{FILE}", "text": "lists no file with any bytes in it"})
    result.strangers = [one_line(path, 300) for path in found.strangers]
    result.status = DAMAGED if result.problems else WHOLE
    return result


def _by_files(result: Result, expected: Expected | None) -> Result:
    found = examine(result.path, expected)
    result.problems = [{"path": problem.path, "text": problem.text} for problem in found.problems]
    if (result.path / FOLDER / FILE).exists():
        what = "can't be read as a manifest; the following is based on the files themselves"
        result.problems.insert(0, {"path": f"{FOLDER}/{FILE}", "text": what})
    result.files, result.bytes = len(found.files), found.bytes
    result.architectures = found.architectures
    result.status = DAMAGED if result.problems else WHOLE
    return result


def expected_of(name: str, path: Path) -> Expected:
    """Return the catalogue's data on a model; of its formats the one nearest in size to a directory.

    Raises:
        UserError: the catalogue does not have it.
    """
    from minimax_metal.catalog import load_catalog  # imported for this only; a pull works without it

    catalog = load_catalog()
    models = {known.casefold(): formats for known, formats in catalog.models.items()}
    formats = models.get(name.casefold())
    if formats is None:
        raise UserError(
            f"model {one_line(name, 80)!r} is not in the catalogue; expected one of "
            f"{', '.join(catalog.models)}"
        )
    size = examine(path).bytes if path.is_dir() else 0
    nearest = min(formats.values(), key=lambda one: abs(one.bytes.value - size))
    return Expected(nearest.architectures, nearest.bytes.value, f"{nearest.name} {nearest.format}")


def run(arguments: argparse.Namespace) -> int:
    """Run ``metal weights verify``; return its exit status."""
    results = []
    for path in arguments.path:
        expected = None if arguments.model is None else expected_of(arguments.model, path)
        one = verify(
            path,
            arguments.workers,
            expected,
            lambda done, total: print(f"{100 * done / max(1, total):.1f} % read", file=sys.stderr),
        )
        results.append(one)
        if not arguments.json:
            for line in one.lines():
                print(line, file=sys.stderr if one.status == NOT_LOOKED else sys.stdout)
    if arguments.json:
        print(json.dumps([one.as_dict() for one in results], indent=1))
    return max(one.status for one in results)

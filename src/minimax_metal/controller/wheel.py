"""Build the wheel for the hosts: ``python -m minimax_metal.controller.wheel --project DIR --output DIR``.

It contains exactly what hosts need and is written to ``<output>/<digest>/``. The digest covers exactly its
contents: a second call with unchanged sources builds nothing, a changed README or report gives no host a new
environment, and hosts can name the version they run. Prints one line of JSON: ``{"path": ..., "digest": ...,
"built": true}``. Exit status: 0; 2 if it cannot be built.

The bytes are the same for the same sources: hatchling builds reproducibly, with the time of every file set
from ``SOURCE_DATE_EPOCH``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from minimax_metal.common.errors import UserError
from minimax_metal.common.text import one_line

EPOCH: Final = "1577836800"
"""2020-01-01T00:00:00Z, the constant time of every file in the wheel (zip has no dates before 1980)."""

PACKAGE: Final = Path("src/minimax_metal")
PARTS: Final = ("__init__.py", "cli.py", "catalog", "common", "host", "plan")
"""The parts of the package that a host needs; the controller's modules are left out."""
LICENCE: Final = "LICENSE"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel on this machine; ``built`` is False if it already existed."""

    path: str
    digest: str
    built: bool


def sources(project: Path) -> dict[str, bytes]:
    """Return every file that the wheel is built from, by its name below the project, in a fixed order.

    Raises:
        UserError: ``project`` is not this project.
    """
    for name in ("pyproject.toml", LICENCE):
        if not (project / name).is_file():
            raise UserError(f"{project} has no {name}; pass the project's directory with --project")
    found = {
        "pyproject.toml": _metadata(project / "pyproject.toml").encode(),
        LICENCE: (project / LICENCE).read_bytes(),
    }
    for part in PARTS:
        root = project / PACKAGE / part
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file() and path.suffix != ".pyc" and "__pycache__" not in path.parts:
                found[path.relative_to(project).as_posix()] = path.read_bytes()
    return found


def _metadata(pyproject: Path) -> str:
    """Return the part of the project's metadata that concerns hosts: another linter rule gives no host a new
    environment.

    Raises:
        UserError: it can't be read.
    """
    try:
        whole = tomllib.loads(pyproject.read_text(encoding="utf-8"))
        project = whole["project"]
        kept = {
            name: project[name] for name in ("name", "version", "requires-python", "dependencies", "license")
        }
        tables = {
            "build-system": whole["build-system"],
            "project": {**kept, "license-files": [LICENCE]},
            "project.scripts": project["scripts"],
            "tool.hatch.build.targets.wheel": {"packages": [PACKAGE.as_posix()]},
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{pyproject} can't be read ({one_line(str(error), 120)}); fix it") from error
    # Texts and lists of texts are written the same in JSON and in TOML.
    return "".join(
        f"[{table}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in entries.items()) + "\n"
        for table, entries in tables.items()
    )


def digest_of(files: Mapping[str, bytes]) -> str:
    """Return the first 12 hex digits of the SHA-256 over names and contents of the sources."""
    whole = hashlib.sha256()
    for name, content in files.items():
        whole.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return whole.hexdigest()[:12]


def build(project: Path, output: Path) -> Wheel:
    """Build the wheel into ``output/<digest>`` unless it exists.

    Raises:
        UserError: hatchling is missing or fails.
    """
    files = sources(project)
    digest = digest_of(files)
    final = output / digest
    if found := sorted(final.glob("*.whl")):
        return Wheel(str(found[0]), digest, built=False)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".building-") as temporary:
        tree, wheels_in = Path(temporary, "source"), Path(temporary, "wheel")
        for name, content in files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(content)
        done = subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels_in)],
            cwd=tree,
            env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = sorted(wheels_in.glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            reason = (done.stderr.strip().splitlines() or ["the build produced no wheel"])[-1]
            raise UserError(
                f"hatchling could not build {project}: {reason}; install the project's extra 'controller'"
            )
        if not final.exists():
            staging = output / f".{digest}.{os.getpid()}"
            staging.mkdir()
            shutil.move(wheels[0], staging / wheels[0].name)
            try:
                staging.rename(final)
            except OSError:  # another build was faster with the same bytes
                shutil.rmtree(staging)
    return Wheel(str(next(final.glob("*.whl"))), digest, built=True)


def main(argv: list[str] | None = None) -> int:
    """Print the wheel as JSON; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m minimax_metal.controller.wheel", description="Build the hosts' wheel."
    )
    parser.add_argument("--project", type=Path, required=True, help="directory of pyproject.toml")
    parser.add_argument(
        "--output", type=Path, required=True, help="directory of built wheels, one subdirectory each"
    )
    arguments = parser.parse_args(argv)
    try:
        wheel = build(arguments.project.resolve(), arguments.output.expanduser().resolve())
    except (UserError, OSError) as error:
        print(f"minimax_metal.controller.wheel: {error}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(wheel)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Build the project's wheel for the hosts: ``python -m minimax_metal.controller.wheel --project DIR --output DIR``.

The wheel lands in ``<output>/<digest>/``; the digest covers every source that goes into it, so that a second
call with unchanged sources builds nothing and hosts can name the version they run. Prints one line of JSON:
``{"path": ..., "digest": ..., "built": true}``. Exit status: 0; 2 when it cannot be built.

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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from minimax_metal.common.errors import UserError

EPOCH: Final = "1577836800"
"""2020-01-01T00:00:00Z, the constant time of every file in the wheel (zip knows no date before 1980)."""

PACKAGE: Final = Path("src/minimax_metal")
FILES: Final = ("pyproject.toml", "README.md", "LICENSE")


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel on this machine; ``built`` is False when it was there already."""

    path: str
    digest: str
    built: bool


def sources(project: Path) -> Iterator[Path]:
    """Yield every file that goes into the wheel or decides what does, in a fixed order.

    Raises:
        UserError: ``project`` is not this project.
    """
    for name in FILES:
        if not (project / name).is_file():
            raise UserError(f"{project} has no {name}; pass the project's directory with --project")
        yield project / name
    for path in sorted((project / PACKAGE).rglob("*")):
        if path.is_file() and path.suffix != ".pyc" and "__pycache__" not in path.parts:
            yield path


def digest_of(project: Path) -> str:
    """Return the first 12 hex digits of the SHA-256 over names and contents of the sources."""
    whole = hashlib.sha256()
    for path in sources(project):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        whole.update(f"{path.relative_to(project).as_posix()}\0{content}\n".encode())
    return whole.hexdigest()[:12]


def build(project: Path, output: Path) -> Wheel:
    """Build the wheel into ``output/<digest>`` unless it is there.

    Raises:
        UserError: hatchling is missing or refuses.
    """
    digest = digest_of(project)
    final = output / digest
    if found := sorted(final.glob("*.whl")):
        return Wheel(str(found[0]), digest, built=False)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".building-") as temporary:
        done = subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", temporary],
            cwd=project,
            env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = sorted(Path(temporary).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            reason = (done.stderr.strip().splitlines() or ["it left no wheel"])[-1]
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
        "--output", type=Path, required=True, help="where wheels are kept, one directory each"
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

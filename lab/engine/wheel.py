"""Build the engine's stand-ins; same sources, same bytes, or a host's plan would change by itself."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

SOURCES = Path(__file__).parent / "plugin"
"""The real engine's CPU plug-in."""
SIMULATED = Path(__file__).parent / "simulated"
"""The simulated engine, under the real one's name."""

EPOCH = "1767225600"
"""2026-01-01T00:00:00Z, the time stamp of every file in the wheel (reproducible-builds.org,
SOURCE_DATE_EPOCH).
"""


def build_wheel(destination: Path, sources: Path = SOURCES) -> Path:
    """Build a wheel, by default the plug-in's, into the folder ``destination`` and return its path.

    File name and bytes depend on the sources and on hatchling's version (locked) only. An equal file that is
    already there is left alone, time stamp and all.
    """
    from hatchling.builders.wheel import WheelBuilder

    destination.mkdir(parents=True, exist_ok=True)
    scratch = destination / f".building-{os.getpid()}"
    with mock.patch.dict(os.environ, {"SOURCE_DATE_EPOCH": EPOCH}):
        built = Path(
            next(iter(WheelBuilder(str(sources)).build(directory=str(scratch), versions=["standard"])))
        )
    wheel = destination / built.name
    if not (wheel.is_file() and wheel.read_bytes() == built.read_bytes()):
        built.replace(wheel)
    built.unlink(missing_ok=True)
    scratch.rmdir()
    return wheel

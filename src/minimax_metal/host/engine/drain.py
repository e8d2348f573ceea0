"""The supervisor's side of a clean stop: a file that tells the engine's plug-in to accept no new work.

``engine_plugin/README.md`` describes the other side.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Final

from minimax_metal.common.documents import digits
from minimax_metal.common.files import read_bounded

ANSWER_SECONDS: Final = 3.0
"""Seconds that the plug-in may take to answer; it checks ten times a second."""
QUIET_LOOKS: Final = 3
"""Consecutive checks without a request in flight, 0.1 s apart, before the engine is told to end: by then the
last answer's last bytes have been sent.
"""
PLUGIN: Final = Path(__file__).resolve().parents[1] / "engine_plugin"


class Drain:
    """One stop of one engine."""

    def __init__(self, directory: Path, *, own: bool = False) -> None:
        """Name the file in a directory; ``own``: created for this and removed with it."""
        self.file = directory / "drain"
        self._own = own

    @classmethod
    def of_environment(cls, environment: dict[str, str]) -> Drain:
        """In the unit's runtime directory, or outside systemd in a temporary one."""
        named = environment.get("RUNTIME_DIRECTORY", "").split(":")[0]
        if named:
            return cls(Path(named))
        return cls(Path(tempfile.mkdtemp(prefix="metal-supervise-")), own=True)

    def close(self) -> None:
        """Remove a directory created for this; systemd removes its own."""
        if self._own:
            shutil.rmtree(self.file.parent, ignore_errors=True)

    def environment(self, engine: dict[str, str], secrets: Path | None) -> dict[str, str]:
        """Return the engine's environment with the plug-in in it."""
        path = engine.get("PYTHONPATH")
        found = engine | {
            "METAL_DRAIN_FILE": str(self.file),
            "PYTHONPATH": f"{PLUGIN}:{path}" if path else str(PLUGIN),
        }
        return found | ({"METAL_SECRETS": str(secrets)} if secrets else {})

    def begin(self) -> None:
        """Tell the plug-in to refuse new work.

        Raises:
            OSError: the file can't be created.
        """
        self.file.touch()

    def clear(self) -> None:
        """Remove what an earlier stop left."""
        for path in self.file.parent.glob(f"{self.file.name}*"):
            with contextlib.suppress(OSError):
                path.unlink()

    def running(self) -> int | None:
        """Return requests in flight as counted by the plug-in; None while it has not answered."""
        counts: list[int] = []
        for path in self.file.parent.glob(f"{self.file.name}.*"):
            if path.suffix == ".new":
                continue
            try:
                # The engine can write here: never wait for a pipe, and never read without limit.
                count = digits(read_bounded(path, 64).decode("ascii").strip())
            except (OSError, ValueError):
                continue
            counts += [] if count is None else [count]
        return sum(counts) if counts else None

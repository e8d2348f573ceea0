"""The supervisor's side of a clean stop: a file that tells the engine's plug-in to take no new work.

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
"""How long the plug-in may take to answer; it looks ten times a second."""
QUIET_LOOKS: Final = 3
"""So many looks in a row without a request in flight, 0.1 s apart, before the engine is told to end: the last
answer's last bytes are on their way then."""
PLUGIN: Final = Path(__file__).resolve().parents[1] / "engine_plugin"


class Drain:
    """One stop of one engine."""

    def __init__(self, directory: Path, *, own: bool = False) -> None:
        """Name the file in a directory; ``own``: made for this and taken away with it."""
        self.file = directory / "drain"
        self._own = own

    @classmethod
    def of_environment(cls, environment: dict[str, str]) -> Drain:
        """In the unit's runtime directory, or in a directory of its own outside systemd."""
        named = environment.get("RUNTIME_DIRECTORY", "").split(":")[0]
        if named:
            return cls(Path(named))
        return cls(Path(tempfile.mkdtemp(prefix="metal-supervise-")), own=True)

    def close(self) -> None:
        """Take away a directory that was made for this; systemd takes away its own."""
        if self._own:
            shutil.rmtree(self.file.parent, ignore_errors=True)

    def environment(self, engine: dict[str, str], secrets: Path | None) -> dict[str, str]:
        """The engine's environment with the plug-in in it."""
        path = engine.get("PYTHONPATH")
        found = engine | {
            "METAL_DRAIN_FILE": str(self.file),
            "PYTHONPATH": f"{PLUGIN}:{path}" if path else str(PLUGIN),
        }
        return found | ({"METAL_SECRETS": str(secrets)} if secrets else {})

    def begin(self) -> None:
        """Ask the plug-in to refuse new work.

        Raises:
            OSError: the file can't be made.
        """
        self.file.touch()

    def clear(self) -> None:
        """Take away what an earlier stop left."""
        for path in self.file.parent.glob(f"{self.file.name}*"):
            with contextlib.suppress(OSError):
                path.unlink()

    def running(self) -> int | None:
        """Requests in flight as the plug-in counts them; none while it has not answered."""
        counts: list[int] = []
        for path in self.file.parent.glob(f"{self.file.name}.*"):
            if path.suffix == ".new":
                continue
            try:
                # The engine can write here: a pipe is not waited for, and nothing is read without end.
                count = digits(read_bounded(path, 64).decode("ascii").strip())
            except (OSError, ValueError):
                continue
            counts += [] if count is None else [count]
        return sum(counts) if counts else None

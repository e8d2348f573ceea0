"""The engine's side of a clean stop: while a file is there, new work is refused and the rest is counted."""

from __future__ import annotations

import os
import time
from pathlib import Path

TICK_SECONDS = 0.1


class Drain:
    """Requests in flight, and whether new ones are refused: while the file is there."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.account = file.with_name(f"{file.name}.{os.getpid()}")
        self.refusing = False
        self.running = 0

    def watch(self) -> None:
        """Look for the file for ever, and keep the account while it is there."""
        while True:
            self.tick()
            time.sleep(TICK_SECONDS)

    def tick(self) -> None:
        """Look once."""
        self.refusing = self.file.exists()
        try:
            if self.refusing:
                # Read by another process: never a half-written number.
                written = self.account.with_name(f"{self.account.name}.new")
                written.write_text(f"{self.running}\n", encoding="ascii")
                written.replace(self.account)
            else:
                self.account.unlink(missing_ok=True)
        except OSError:
            pass  # the directory goes with the unit

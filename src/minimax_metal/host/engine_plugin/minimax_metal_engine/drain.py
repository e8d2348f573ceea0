"""The engine's side of a clean stop: while a file exists, new work is refused and the rest is counted."""

from __future__ import annotations

import os
import time
from pathlib import Path

TICK_SECONDS = 0.1


class Drain:
    """Requests in flight, and whether new ones are refused: while the file exists."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.account = file.with_name(f"{file.name}.{os.getpid()}")
        self.refusing = False
        self.running = 0

    def watch(self) -> None:
        """Check for the file forever, and keep the count in it while it exists."""
        while True:
            self.tick()
            time.sleep(TICK_SECONDS)

    def tick(self) -> None:
        """Check once."""
        self.refusing = self.file.exists()
        try:
            if self.refusing:
                # Another process reads it: never write part of a number.
                written = self.account.with_name(f"{self.account.name}.new")
                written.write_text(f"{self.running}\n", encoding="ascii")
                written.replace(self.account)
            else:
                self.account.unlink(missing_ok=True)
        except OSError:
            pass  # the directory is removed with the unit

"""A layer around the engine's HTTP server: access control, limits, clean stops, no keys in answers.

Runs inside the engine's process, by its plug-in interface (entry point ``sglang.srt.plugins``); standard
library only, on whatever Python the engine uses. ``../README.md`` describes its purpose.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import threading
from pathlib import Path
from typing import Any

from .drain import Drain
from .guard import Guard
from .settings import Settings, read_settings

__all__ = ["Drain", "Guard", "Settings", "install", "read_settings"]


def install() -> None:
    """Put the layer around any application that uvicorn is about to serve (entry point
    ``sglang.srt.plugins``).

    Raises:
        SystemExit: the guard can't work. The engine would continue without a plug-in that merely fails.
    """
    if multiprocessing.parent_process() is not None:
        return  # a rank or another helper: it serves no HTTP
    import uvicorn

    try:
        settings = read_settings(os.environ, sys.argv[1:])
    except (OSError, ValueError) as error:
        raise SystemExit(f"minimax-metal's guard: {error}; run the playbook again") from None
    drain_file = os.environ.get("METAL_DRAIN_FILE")
    drain = Drain(Path(drain_file)) if drain_file else None
    if drain is not None:
        threading.Thread(target=drain.watch, name="metal-drain", daemon=True).start()
    load = uvicorn.Config.load

    @functools.wraps(load)
    def guarded(config: Any) -> None:
        load(config)
        config.loaded_app = Guard(config.loaded_app, drain, settings)

    setattr(uvicorn.Config, "load", guarded)  # noqa: B010  # as a type checker sees it, a method is not assigned to

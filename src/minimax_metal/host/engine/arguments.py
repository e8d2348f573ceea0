"""The command line of ``metal supervise``."""

from __future__ import annotations

import argparse
import math
import os
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minimax_metal.common.documents import digits

FREE_SECONDS: Final = 60.0
"""Seconds that port and GPU memory of an engine that has just ended may take to become free."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of ``metal supervise``; times in seconds."""

    instance: str
    ready_url: str
    start_timeout: float
    stop_timeout: float
    command: tuple[str, ...]
    gpus: tuple[int, ...] = ()
    secrets: Path | None = None
    state: Path = Path("/var/lib/sglang")
    status_interval: float = 30.0
    watch_interval: float = 30.0
    hang_timeout: float = 300.0
    free_timeout: float = FREE_SECONDS

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the health URL."""
        parts = urllib.parse.urlsplit(self.ready_url)
        return parts.hostname or "127.0.0.1", parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def unit(self) -> str:
        """Name of the unit."""
        return f"sglang@{self.instance}"


def seconds(text: str) -> float:
    """Parse a positive number of seconds (for argparse)."""
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def indices(text: str) -> tuple[int, ...]:
    """Parse GPU indices (for argparse)."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    numbers = tuple(number for part in parts if (number := digits(part)) is not None)
    if len(numbers) != len(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of GPU numbers")
    return numbers


def state_directory() -> Path:
    """The unit's state directory."""
    return Path(os.environ.get("STATE_DIRECTORY", "").split(":")[0] or "/var/lib/sglang")


def parse(argv: Sequence[str]) -> Settings:
    """Parse the command line after ``metal supervise``."""
    parser = argparse.ArgumentParser(
        prog="metal supervise",
        description="Run the engine under systemd (Type=notify): status line, readiness, stop.",
        epilog="Exit status: 0 stopped on request; the engine's own (128+N for signal N) if it ended "
        "itself; 70 a GPU error; 78 can never start; 123 hung; 124 not ready in time; 126/127 can't "
        "be started; 2 usage.",
    )
    parser.add_argument("--instance", required=True, help="instance name after the @ of the unit")
    parser.add_argument("--ready-url", required=True, help="health URL of the engine; 200 means ready")
    parser.add_argument("--start-timeout", required=True, type=seconds, help="maximum seconds until ready")
    parser.add_argument(
        "--stop-timeout",
        required=True,
        type=seconds,
        help="seconds that requests in flight may take during a stop",
    )
    parser.add_argument(
        "--gpus", type=indices, default=(), metavar="0,1,…", help="GPUs that must be free before a start"
    )
    parser.add_argument(
        "--secrets", type=Path, metavar="DIR", help="files of keys (*_key) to mask in all output"
    )
    parser.add_argument(
        "--state", type=Path, default=state_directory(), metavar="DIR", help="directory for incident reports"
    )
    parser.add_argument("--status-interval", type=seconds, default=30.0, help="seconds between status lines")
    parser.add_argument("--watch-interval", type=seconds, default=30.0, help="seconds between health checks")
    parser.add_argument(
        "--hang-timeout",
        type=seconds,
        default=300.0,
        help="seconds without progress before the engine counts as hung",
    )
    parser.add_argument(
        "--free-timeout",
        type=seconds,
        default=FREE_SECONDS,
        help="seconds until port and GPUs must be free",
    )
    parser.add_argument(
        "command", nargs="+", metavar="-- ENGINE [ARGUMENT ...]", help="the engine's command line"
    )
    own, separator, command = split_command(argv)
    if not separator and not {"-h", "--help"} & set(own):
        parser.error("the engine's command line is missing: put it after --")
    arguments = parser.parse_args([*own, *(["--", *command] if command else [])])
    return Settings(
        instance=arguments.instance,
        ready_url=arguments.ready_url,
        start_timeout=arguments.start_timeout,
        stop_timeout=arguments.stop_timeout,
        gpus=arguments.gpus,
        secrets=arguments.secrets,
        state=arguments.state,
        status_interval=arguments.status_interval,
        watch_interval=arguments.watch_interval,
        hang_timeout=arguments.hang_timeout,
        free_timeout=arguments.free_timeout,
        command=tuple(arguments.command),
    )


def split_command(argv: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    """Split at the first ``--``: our arguments, whether there was one, the engine's command."""
    if "--" not in argv:
        return list(argv), False, []
    at = list(argv).index("--")
    return list(argv[:at]), True, list(argv[at + 1 :])

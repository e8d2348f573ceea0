"""``metal kernel-lines``: give the engine's supervisor the kernel's messages about GPUs, memory, PCIe and
disks.

The engine runs foreign code and must not read the host's journal. A small unit that runs as root follows the
kernel's log and stores the lines that :func:`concerns` selects in ``/run/minimax-metal/kernel-lines``, which
the engine's group may read: ``<seconds since 1970> <text>`` per line, the newest last. It accepts no input
from the engine.

Exit status: 1 if journalctl ended or can't be run; systemd then restarts it.
"""

from __future__ import annotations

import argparse
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from minimax_metal.common.documents import read_json
from minimax_metal.common.files import read_bounded, write_atomic
from minimax_metal.common.text import one_line
from minimax_metal.host.engine.diagnosis.kernel import concerns

PLACE: Final = Path("/run/minimax-metal/kernel-lines")
KEPT: Final = 1_000
"""Number of lines; a failing GPU causes some tens, a flapping link some hundreds."""
LENGTH: Final = 600
"""Maximum characters of a line; the longest Xid lines have about 400."""
LARGEST: Final = KEPT * (LENGTH * 4 + 24)
SETTLE_SECONDS: Final = 0.1
"""Seconds to collect lines before they are written: a failing GPU logs several at once."""
JOURNAL: Final = (
    "journalctl", "--dmesg", "--boot", "--follow", "--no-tail", "--output=json", "--no-pager", "--quiet",
    "--output-fields=MESSAGE",
)  # fmt: skip


def of_journal(line: str) -> tuple[float, str] | None:
    """Return time (seconds since 1970) and text of a JSON line of journalctl; None for any other line."""
    if not line.startswith("{"):
        return None
    try:
        entry = read_json(line)
        message = entry["MESSAGE"]
        # A message that is not UTF-8 comes as a list of bytes.
        text = bytes(message).decode("utf-8", "replace") if isinstance(message, list) else str(message)
        moment = int(entry["__REALTIME_TIMESTAMP"]) / 1e6
    except (ValueError, KeyError, TypeError):
        return None
    text = one_line(text, LENGTH)
    return (moment, text) if concerns(text) else None


def parse(content: str, since: float) -> list[str]:
    """Return the texts in a :data:`PLACE` file that are not older than ``since`` (seconds since 1970)."""
    found = []
    for line in content.splitlines():
        moment, _, text = line.partition(" ")
        if not text:
            continue
        try:
            if float(moment) >= since:
                found.append(text)
        except ValueError:
            continue
    return found


def read(since: float, place: Path = PLACE) -> list[str]:
    """Return the kernel's lines since a time; empty if there is no file, or it may not be read."""
    try:
        return parse(read_bounded(place, LARGEST).decode("utf-8", "replace"), since)
    except OSError:
        return []


@dataclass
class Lines:
    """The newest lines, and the file that stores them."""

    place: Path
    kept: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))

    def add(self, lines: Iterable[str]) -> bool:
        """Process lines of journalctl; return whether any of them is stored."""
        found = [entry for line in lines if (entry := of_journal(line)) is not None]
        self.kept.extend(f"{moment:.6f} {text}" for moment, text in found)
        return bool(found)

    def write(self) -> None:
        """Write them atomically; readable only by this process's group."""
        write_atomic(self.place, "".join(f"{line}\n" for line in self.kept), mode=0o640)


def follow(place: Path, command: Sequence[str] = JOURNAL) -> int:
    """Keep ``place`` up to date until the program that follows the journal ends; return its exit status."""
    lines = Lines(place)
    # The file shows that the service runs, before there is anything to report.
    lines.write()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    if child.stdout is None:
        return 1
    pending = bytearray()
    changed, since = False, 0.0
    try:
        with selectors.DefaultSelector() as selector, child.stdout as pipe:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                ready = selector.select(SETTLE_SECONDS if changed else None)
                if changed and (not ready or time.monotonic() - since >= SETTLE_SECONDS):
                    lines.write()
                    changed = False
                if not ready:
                    continue
                block = pipe.read1(1 << 16)  # type: ignore[attr-defined]  # a buffered reader
                if not block:
                    break
                pending += block
                *whole, rest = bytes(pending).split(b"\n")
                # A line without an end is not one of the journal's.
                pending = bytearray(rest[: 1 << 20])
                if lines.add(line.decode("utf-8", "replace") for line in whole) and not changed:
                    changed, since = True, time.monotonic()
        if changed:
            lines.write()
        return child.wait()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def main(argv: Sequence[str]) -> int:
    """Follow the kernel's log until told to stop."""
    parser = argparse.ArgumentParser(
        prog="metal kernel-lines",
        description="Copy the kernel's messages about GPUs and lack of memory to where the engine's group "
        "can read them.",
    )
    parser.add_argument(
        "--output", type=Path, default=PLACE, metavar="FILE", help="file to write (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    try:
        status = follow(arguments.output)
    except OSError as error:
        print(f"metal kernel-lines: {error.filename or 'journalctl'}: {error.strerror}", file=sys.stderr)
        return 1
    print(
        f"metal kernel-lines: journalctl ended with {status}; systemd restarts this service", file=sys.stderr
    )
    return 1

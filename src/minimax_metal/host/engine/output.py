"""The engine's output: passed on line by line without its keys, its last lines kept, its phase detected.

The phases are matched by the engine's own messages (SGLang 0.5.23, read in its source and seen on a running
engine); with other messages the status line only shows less.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Final

from minimax_metal.host.engine.diagnosis.lines import cut
from minimax_metal.host.engine_plugin.minimax_metal_engine.keys import FILE as ACCEPTED
from minimax_metal.host.engine_plugin.minimax_metal_engine.keys import parse

LINES_KEPT: Final = 300
LONGEST_LINE: Final = 64 << 10
"""Bytes without a line end after which the data is passed on."""
JOIN_SECONDS: Final = 5.0
WAITING_BYTES: Final = 16 << 20
"""Data that waits for a blocked journal; more is dropped, and the number of dropped lines is reported."""
MASK: Final = "***"

PHASES: Final[tuple[tuple[re.Pattern[str], str], ...]] = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (r"Init (?:torch distributed|parallel) begin", "starting the ranks"),
        (r"Load weight begin", "loading weights"),
        (r"oading (?:safetensors checkpoint )?shards:\s+(\d+)%", "loading weights, {0} %"),
        (r"Load weight end", "weights are loaded"),
        (r"KV Cache is allocated|Memory pool end", "KV cache is allocated"),
        (r"DeepGEMM.*(?:JIT|warmup|pre-compile)", "compiling DeepGEMM kernels"),
        (r"Capture .*graph begin", "capturing CUDA graphs"),
        (r"Capturing .*?\s(\d+)%", "capturing CUDA graphs, {0} %"),
        (r"Application startup complete|Uvicorn running", "warming up"),
        (r"The server is fired up", "warmed up"),
    )
)
"""In the order of an engine's phases; a late rank never moves the line back."""

WORKING: Final = re.compile(r"(?:Prefill|Decode|Extend) batch|Engine forward")
"""Lines that an engine writes while it computes."""


class Secrets:
    """Texts that must never be printed."""

    def __init__(self, texts: Iterable[str]) -> None:
        # Longest first: one may be part of another.
        self.texts = sorted({text for text in texts if text}, key=len, reverse=True)

    @classmethod
    def of_directory(cls, directory: Path | None) -> Secrets:
        """Return the keys in ``<directory>/*_key``, one each, and all in ``accepted.json``.

        Raises:
            OSError: a key exists and can't be read.
        """
        if directory is None:
            return cls(())
        found = [path.read_text(encoding="utf-8").strip() for path in sorted(directory.glob("*_key"))]
        if (directory / ACCEPTED).exists():
            try:
                keys = parse((directory / ACCEPTED).read_bytes())
            except ValueError:
                return cls(found)  # the guard reports the error
            found += [*keys.user, *keys.admin]
        return cls(found)

    def out_of(self, text: str) -> str:
        """Return ``text`` without them."""
        for secret in self.texts:
            text = text.replace(secret, MASK)
        return text


class Journal(threading.Thread):
    """Writes lines to standard output and error without ever blocking the caller.

    Otherwise a stuck journal (its pipe is full) would stop the engine with the first line that it prints, and
    a dead one would end the supervisor.
    """

    def __init__(self) -> None:
        super().__init__(name="journal", daemon=True)
        self._lines: deque[tuple[int, bytes]] = deque()
        self._waiting = 0
        self._dropped = 0
        self._busy = False
        self._changed = threading.Condition()

    def say(self, text: str, descriptor: int = 2) -> None:
        """Write a line to a descriptor when it accepts data."""
        data = (text + "\n").encode("utf-8", "replace")
        with self._changed:
            if self._waiting + len(data) > WAITING_BYTES:
                self._dropped += 1
                return
            self._lines.append((descriptor, data))
            self._waiting += len(data)
            self._changed.notify_all()

    def run(self) -> None:
        """Write until the process ends."""
        while True:
            with self._changed:
                while not self._lines:
                    self._busy = False
                    self._changed.notify_all()
                    self._changed.wait()
                self._busy = True
                descriptor, data = self._lines.popleft()
                self._waiting -= len(data)
                dropped, self._dropped = self._dropped, 0
            if dropped:
                told = f"metal supervise: the journal blocked for a while: {dropped} lines were dropped\n"
                data = told.encode() + data
            self._write(descriptor, data)

    @staticmethod
    def _write(descriptor: int, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:
                return  # the journal has ended: the engine continues

    def finish(self, seconds: float) -> None:
        """Wait until all is written, up to a time limit."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while (self._lines or self._busy) and (rest := deadline - time.monotonic()) > 0:
                self._changed.wait(rest)


class Output(threading.Thread):
    """Reads the engine's output until its end."""

    def __init__(self, source: IO[bytes], secrets: Secrets, sink: Callable[[str], None]) -> None:
        """``sink`` gets each line; it must not block."""
        super().__init__(name="output", daemon=True)
        self.source = source
        self.secrets = secrets
        self.sink = sink
        self.lines: deque[str] = deque(maxlen=LINES_KEPT)
        self.phase = ""
        self.worked = 0
        """Number of lines that show that the engine computes."""
        self._step = -1

    def run(self) -> None:
        """Read until every process that holds the other end has ended."""
        rest = b""
        while chunk := self.source.read1(LONGEST_LINE):  # type: ignore[attr-defined]  # a buffered reader
            # Progress bars end their lines with a carriage return.
            *whole, rest = re.split(rb"[\r\n]+", rest + chunk)
            if len(rest) > LONGEST_LINE:
                whole, rest = [*whole, rest], b""
            self.take(line.decode("utf-8", "replace") for line in whole)
        self.take([rest.decode("utf-8", "replace")])

    def take(self, lines: Iterable[str]) -> None:
        """Pass lines on."""
        for line in lines:
            if not line.strip():
                continue
            shown = self.secrets.out_of(line)
            self.lines.append(shown)
            self.notice(cut(shown))
            self.sink(shown)

    def notice(self, line: str) -> None:
        """Detect phase and progress in a line."""
        if WORKING.search(line):
            self.worked += 1
            return
        for step, (pattern, text) in enumerate(PHASES):
            found = pattern.search(line)
            if found and step >= self._step:
                self._step = step
                self.phase = text.format(*found.groups())

    def last(self, count: int) -> Sequence[str]:
        """The last lines."""
        return list(self.lines)[-count:]

    def finish(self) -> None:
        """Wait for the rest of the pipe, after the engine's processes have ended."""
        self.join(JOIN_SECONDS)

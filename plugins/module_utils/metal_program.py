# Copied from src/minimax_metal/common/program.py by tools/module_utils.py. Change that file, not this one.
"""Run an external program with limits for time and output.

``subprocess.run(timeout=…)`` waits without limit for a program that it has killed. A program that hangs
inside the kernel (``nvidia-smi`` on a lost GPU, anything on a dead NFS server) does not die from a signal:
this function leaves such a child behind and tells the caller.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SECONDS: Final = 30.0
"""Default time limit; NVIDIA's tools answer within 10 s on hosts with 8 healthy GPUs."""
BYTES: Final = 4 << 20
"""Default limit of bytes for each of the two outputs; ``nvidia-smi -q`` of 8 GPUs prints about 130 KB."""
LEFT_BEHIND_SECONDS: Final = 2.0
"""Seconds that a killed program may take to end before it is left behind."""
QUIET_SECONDS: Final = 1.0
"""Seconds to keep reading after the program has ended while one of its children holds the pipes open."""

NO_PROGRAM: Final = 127
CANNOT_RUN: Final = 126
TIMED_OUT: Final = 124


@dataclass(frozen=True, slots=True)
class Answer:
    """A program's result; the status numbers are those of a shell and of ``timeout``."""

    status: int
    """Exit status, negative for a signal; 124: ran too long, 126: can't be run, 127: not found."""
    out: str
    err: str
    timed_out: bool = False
    left_behind: bool = False
    """Whether it did not end even when killed: it hangs inside the kernel."""
    cut: bool = False
    """Whether an output exceeded the limit; its beginning is kept."""

    @property
    def ok(self) -> bool:
        """Whether the program ended with 0, in time."""
        return self.status == 0


def run(
    words: Sequence[str | Path],
    *,
    seconds: float = SECONDS,
    limit: int = BYTES,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Answer:
    """Run a program without a shell and without standard input; return its result, even if it failed.

    Args:
        words: the program and its arguments.
        seconds: time limit, after which the program's whole process group is killed.
        limit: bytes kept of each output; the rest is read and dropped.
        environment: replaces this process's own.
        directory: working directory.
        stop: called ten times a second; true ends the program as if its time were over.
    """
    name = Path(words[0]).name
    try:
        child = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if environment is None else dict(environment),
            cwd=directory,
            start_new_session=True,
        )
    except FileNotFoundError:
        return Answer(NO_PROGRAM, "", f"no program {name}")
    except OSError as error:
        return Answer(CANNOT_RUN, "", f"{name} can't be run: {error.strerror}")
    out, err, in_time = _read(child, time.monotonic() + seconds, limit, stop)
    cut = len(out) > limit or len(err) > limit
    text_out, text_err = (bytes(one[:limit]).decode("utf-8", "replace") for one in (out, err))
    if in_time:
        return Answer(child.wait(), text_out, text_err, cut=cut)
    left_behind = not _end(child)
    told = f"{name} did not answer within {seconds:.0f} s"
    told += " and can't be ended: it hangs inside the kernel" if left_behind else ""
    return Answer(TIMED_OUT, text_out, f"{text_err}\n{told}".strip(), True, left_behind, cut)


def _read(
    child: subprocess.Popen[bytes], deadline: float, limit: int, stop: Callable[[], bool]
) -> tuple[bytearray, bytearray, bool]:
    """Read both outputs until the program has ended; the last value tells whether it met the deadline."""
    pipes = [pipe for pipe in (child.stdout, child.stderr) if pipe is not None]
    kept = {pipe.fileno(): bytearray() for pipe in pipes}
    ended_at: float | None = None
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for pipe in pipes:
            stack.enter_context(pipe)
        for stream in kept:
            selector.register(stream, selectors.EVENT_READ)
        while True:
            now = time.monotonic()
            if ended_at is None and child.poll() is not None:
                ended_at = now
            if not selector.get_map() and ended_at is not None:
                break
            if ended_at is not None and now - ended_at >= QUIET_SECONDS:
                break
            if ended_at is None and (now >= deadline or stop()):
                break
            for key, _ in selector.select(min(0.1, max(deadline - now, 0.0)) if ended_at is None else 0.05):
                block = os.read(key.fd, 1 << 16)
                if not block:
                    selector.unregister(key.fd)
                elif len(kept[key.fd]) <= limit:
                    kept[key.fd] += block
        out, err = kept.values()
    return out, err, ended_at is not None


def _end(child: subprocess.Popen[bytes]) -> bool:
    """Kill a program and everything it started; return whether it has ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    try:
        child.wait(LEFT_BEHIND_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True

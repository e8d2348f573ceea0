"""Who holds memory of the GPUs, asked of nvidia-smi: before a start and after a stop."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ANSWER_SECONDS: Final = 30.0
"""nvidia-smi hangs on a GPU that has fallen off the bus."""
FREE_MIB: Final = 2048
"""Less than this in use on a GPU counts as free: driver and display take some hundred MiB (choice of this
project; an engine takes tens of thousands)."""


class GpuError(Exception):
    """nvidia-smi did not answer; the text is one line."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds memory of a GPU."""

    gpu: int
    pid: int
    program: str
    mib: int

    @property
    def ghost(self) -> bool:
        """Whether the process is gone and its memory is not."""
        return not Path(f"/proc/{self.pid}").exists()

    def __str__(self) -> str:
        what = "a process that is gone" if self.ghost else self.program
        return f"GPU {self.gpu}: {self.mib} MiB held by {what} (pid {self.pid})"


@dataclass(frozen=True, slots=True)
class Memory:
    """What is in use on some GPUs."""

    used_mib: dict[int, int]
    holders: tuple[Holder, ...]

    @property
    def taken(self) -> list[str]:
        """One line for each GPU that is not free."""
        named = [str(holder) for holder in self.holders]
        known = {holder.gpu for holder in self.holders}
        return named + [
            f"GPU {gpu}: {mib} MiB in use and no process listed"
            for gpu, mib in sorted(self.used_mib.items())
            if mib >= FREE_MIB and gpu not in known
        ]


def _ask(program: str, *arguments: str) -> str:
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise GpuError(f"nvidia-smi did not answer within {ANSWER_SECONDS:.0f} s") from None
    except OSError as error:
        raise GpuError(f"nvidia-smi can't be run: {error.strerror}") from None
    if done.returncode:
        words = " ".join((done.stdout + done.stderr).split())[:200]
        raise GpuError(f"nvidia-smi ended with {done.returncode}: {words}")
    return done.stdout


def _cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]


def _mib(text: str) -> int:
    return int(text) if text.isdigit() else 0  # "[N/A]"


def read_memory(indices: Sequence[int]) -> Memory | None:
    """What is in use on the GPUs with these indices; none where there is no nvidia-smi.

    Raises:
        GpuError: nvidia-smi is there and does not answer.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    rows = _cells(_ask(program, "--query-gpu=index,uuid,memory.used", "--format=csv,noheader,nounits"))
    wanted = {row[1]: int(row[0]) for row in rows if row[0].isdigit() and int(row[0]) in indices}
    used = {wanted[row[1]]: _mib(row[2]) for row in rows if row[1] in wanted}
    apps = _ask(
        program, "--query-compute-apps=gpu_uuid,pid,process_name,used_memory", "--format=csv,noheader,nounits"
    )
    holders = tuple(
        Holder(wanted[row[0]], int(row[1]), ",".join(row[2:-1]), _mib(row[-1]))
        for row in _cells(apps)
        if len(row) >= 4 and row[0] in wanted and row[1].isdigit()
    )
    return Memory(used, holders)

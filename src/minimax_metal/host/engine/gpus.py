"""Which programs hold GPU memory, and whether the GPUs can be used at all, from nvidia-smi: before a start
and after a stop.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minimax_metal.common import nvidia_smi, program
from minimax_metal.common.documents import digits
from minimax_metal.common.text import one_line

ANSWER_SECONDS: Final = 30.0
"""nvidia-smi hangs on a GPU that has fallen off the bus."""
FREE_MIB: Final = nvidia_smi.FREE_MIB
TABLE: Final = "index,uuid,memory.used"
APPS: Final = "gpu_uuid,pid,process_name,used_memory"
FORMAT: Final = "--format=csv,noheader,nounits"


class GpuError(Exception):
    """A GPU, or nvidia-smi, does not answer as it should; the text is one line.

    ``remedy`` is what to do; ``operator`` whether the host must be drained.
    """

    def __init__(self, text: str, remedy: str = "", *, operator: bool = True) -> None:
        super().__init__(text)
        self.remedy = remedy or "check the GPUs, reset them or reboot the host"
        self.operator = operator


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds GPU memory."""

    gpu: int
    pid: int
    program: str
    mib: int | None
    """None if nvidia-smi does not report the amount (``[N/A]``), which is not 0."""

    @property
    def ghost(self) -> bool:
        """Whether the process has ended but its memory is still in use."""
        return not Path(f"/proc/{self.pid}").exists()

    @property
    def daemon(self) -> str | None:
        """The name of a known daemon."""
        return nvidia_smi.daemon(self.program)

    def __str__(self) -> str:
        what = "a process that no longer exists" if self.ghost else self.daemon or one_line(self.program, 200)
        amount = "an unknown amount of memory" if self.mib is None else f"{self.mib} MiB"
        return f"GPU {self.gpu}: {amount} used by {what} (pid {self.pid})"


@dataclass(frozen=True, slots=True)
class Memory:
    """Use of some GPUs."""

    used_mib: dict[int, int | None]
    holders: tuple[Holder, ...]
    mig: tuple[int, ...] = ()
    """GPUs with MIG on: an engine can't use them whole."""

    def _full(self, gpu: int) -> bool:
        """One threshold, whether or not processes are listed; daemons that keep a little don't matter."""
        used = self.used_mib.get(gpu)
        listed = [holder for holder in self.holders if holder.gpu == gpu]
        if used is not None:
            return used >= FREE_MIB
        if any(holder.mib is None and holder.daemon is None for holder in listed):
            return True
        return sum(holder.mib or 0 for holder in listed) >= FREE_MIB

    @property
    def taken(self) -> list[str]:
        """One line for each process on a GPU that is not free, or for the GPU if none is listed."""
        lines: list[str] = []
        for gpu, mib in sorted(self.used_mib.items()):
            if not self._full(gpu):
                continue
            listed = [str(holder) for holder in self.holders if holder.gpu == gpu]
            lines += listed or [f"GPU {gpu}: {mib} MiB in use and no process listed"]
        return lines


def _ask(path: str, *arguments: str, stop: Callable[[], bool]) -> program.Answer:
    return program.run([path, *arguments], seconds=ANSWER_SECONDS, stop=stop)


def _ours(
    path: str, indices: Sequence[int], warned: Sequence[tuple[str, str]], stop: Callable[[], bool]
) -> list[tuple[str, str]]:
    """Return which of these GPUs nvidia-smi warns about; all if their addresses are unknown."""
    if not warned:
        return []
    rows = nvidia_smi.rows(_ask(path, "--query-gpu=index,pci.bus_id", FORMAT, stop=stop).out)
    places = {cells[1].lower()[-12:]: cells[0] for cells in rows if len(cells) == 2 and cells[0].isdigit()}
    wanted = {str(index) for index in indices}
    return [one for one in warned if places.get(one[0].lower()[-12:], next(iter(wanted), "")) in wanted]


def _table(path: str, indices: Sequence[int], stop: Callable[[], bool]) -> str:
    """Return the table of all GPUs, with MIG if this nvidia-smi supports it.

    Raises:
        GpuError: there is none.
    """
    for fields in (f"{TABLE},mig.mode.current", TABLE):
        answer = _ask(path, f"--query-gpu={fields}", FORMAT, stop=stop)
        if answer.timed_out:
            told = answer.err.splitlines()[-1] if answer.err else "nvidia-smi did not answer"
            raise GpuError(one_line(told, 200))
        known = nvidia_smi.refusal(answer.out + answer.err)
        if known is not None and known.code == "field":
            continue
        warned = _ours(path, indices, nvidia_smi.warnings(f"{answer.out}\n{answer.err}"), stop)
        if warned:
            told = ", ".join(f"the GPU at {address}: {words}" for address, words in warned[:8])
            raise GpuError(
                f"nvidia-smi warns: {told}",
                "drain the host, reset that GPU (nvidia-smi --gpu-reset) or reboot; if the error "
                "stays, have it repaired",
            )
        if answer.ok or (answer.status == nvidia_smi.WARNED and known is None):
            # A lost GPU is missing from the table then, or has no values.
            return answer.out
        words = one_line(f"{answer.out} {answer.err}", 200)
        if known is None:
            raise GpuError(f"nvidia-smi ended with {answer.status}: {words}")
        raise GpuError(
            f"nvidia-smi ended with {answer.status}: {words}: {known.meaning}",
            known.remedy,
            operator=known.operator,
        )
    raise GpuError(
        "nvidia-smi knows none of the requested fields", "install the planned driver", operator=False
    )


def read_memory(indices: Sequence[int], stop: Callable[[], bool] = lambda: False) -> Memory | None:
    """Return the use of the GPUs with these indices; None if there is no nvidia-smi.

    Raises:
        GpuError: nvidia-smi exists but does not answer, or one of these GPUs is sick or missing.
    """
    path = shutil.which("nvidia-smi")
    if path is None:
        return None
    rows: dict[int, list[str]] = {}
    for cells in nvidia_smi.rows(_table(path, indices, stop)):
        if (index := digits(cells[0])) is not None and index in indices:
            rows[index] = cells
    for index, cells in sorted(rows.items()):
        if sick := nvidia_smi.row_sickness(cells):
            raise GpuError(
                f"GPU {index}: nvidia-smi reports {sick}",
                f"drain the host, reset GPU {index} (nvidia-smi --gpu-reset -i {index}) or reboot; "
                "if the error returns, have it repaired",
            )
    missing = sorted(set(indices) - set(rows))
    if missing:
        names = ", ".join(map(str, missing))
        raise GpuError(
            f"GPU {names}: not in nvidia-smi's list",
            "look for NVRM in dmesg and check nvidia-smi -L; reboot the host, or have the GPU repaired",
        )
    by_uuid = {cells[1]: index for index, cells in rows.items() if len(cells) > 1}
    used = {index: nvidia_smi.mib(cells[2]) if len(cells) > 2 else None for index, cells in rows.items()}
    mig = tuple(sorted(index for index, cells in rows.items() if nvidia_smi.mig_enabled(cells[-1])))
    apps = _ask(path, f"--query-compute-apps={APPS}", FORMAT, stop=stop)
    holders = tuple(
        Holder(by_uuid[cells[0]], pid, ",".join(cells[2:-1]), nvidia_smi.mib(cells[-1]))
        for cells in nvidia_smi.rows(apps.out if apps.ok else "")
        if len(cells) >= 4 and cells[0] in by_uuid and (pid := digits(cells[1])) is not None
    )
    return Memory(used, holders, mig)

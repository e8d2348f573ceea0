"""nvidia-smi's answers about a host's GPUs, as data: pure, and never raises on odd answers.

The answers are those of module metal_facts: ``nvidia_smi`` with ``present``, ``returncode``, ``stdout`` and
``stderr`` of the query for index, name, uuid, memory.total, driver_version and compute_cap; ``mig`` and
``recovery``, the output for index with mig.mode.current and with gpu_recovery_action; ``bus_ids``, that for
index with pci.bus_id; ``timed_out``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from minimax_metal.common import nvidia_smi
from minimax_metal.common.text import one_line

MOST_GPUS: Final = 64
"""Maximum rows read; no host has more than 16 GPUs."""
_LINES: Final = 400
_LINE: Final = 1_000
_VERSION: Final = re.compile(r"\d{1,4}\.\d{1,4}(?:\.\d{1,4})?(?![\d.])")
_CAPABILITY: Final = re.compile(r"\d{1,3}\.\d{1,2}")
_SOUND_ACTIONS: Final = frozenset({"none", "n/a", "not supported", ""})


@dataclass(frozen=True)
class SmiGpu:
    """One GPU as nvidia-smi prints it."""

    index: int
    name: str
    uuid: str
    memory_bytes: int | None
    driver: str
    compute_capability: str | None
    sick: str | None = None
    """Why this GPU can't be used, from its row; None for a healthy one."""
    memory_cell: str = ""
    """The memory cell if it is not a number (``[N/A]`` if it shares the host's)."""


@dataclass(frozen=True)
class LostGpu:
    """A GPU that the driver has no handle for."""

    index: int | None
    address: str | None
    why: str

    def __str__(self) -> str:
        which = f"GPU {self.index}" if self.index is not None else "a GPU"
        return f"{which} ({self.address})" if self.address else which


@dataclass(frozen=True)
class SmiAnswer:
    """All of nvidia-smi's answers."""

    present: bool = False
    gpus: tuple[SmiGpu, ...] = ()
    lost: tuple[LostGpu, ...] = ()
    warned: tuple[LostGpu, ...] = ()
    """GPUs that answer and that nvidia-smi warns about, by address: ``infoROM is corrupted at gpu …``."""
    mig: tuple[int, ...] = ()
    """Indices of GPUs with MIG on."""
    error: str | None = None
    """Why there is no table, in nvidia-smi's words."""
    code: str | None = None
    """Its kind, as in :class:`minimax_metal.common.nvidia_smi.Refusal`; ``hangs`` for no answer."""
    remedy: str = ""
    addresses: tuple[str, ...] = ()
    """PCI addresses of the GPUs that answer, if they were read."""


def lines(value: Any) -> list[str]:
    """Return the lines of a foreign text, limited in number and length."""
    text = value if isinstance(value, str) else ""
    return [line[:_LINE] for line in text[: _LINES * _LINE].splitlines()[:_LINES]]


def cells(line: str) -> list[str]:
    """Return the cells of a CSV line. Commas inside brackets don't separate: R610 adds prose to versions."""
    parts: list[str] = []
    depth = 0
    for piece in line.split(","):
        if depth > 0:
            parts[-1] += "," + piece
        else:
            parts.append(piece)
        depth = max(0, depth + piece.count("[") - piece.count("]"))
    return [one_line(part, 200) for part in parts]


def version(cell: str) -> str | None:
    """Return the version at the start of a cell: ``610.57.04 [Deprecated; …]`` is 610.57.04."""
    found = _VERSION.match(cell.strip())
    return found[0] if found else None


def read_smi(raw: Any) -> SmiAnswer:
    """Parse the nvidia-smi part of the facts."""
    if not isinstance(raw, Mapping) or not raw.get("present"):
        return SmiAnswer()
    out, err = lines(raw.get("stdout")), lines(raw.get("stderr"))
    words = one_line(" ".join((*err, *out)), 600)
    lost = _lost((*err, *out))
    if raw.get("timed_out") is True:
        return SmiAnswer(
            present=True,
            lost=lost,
            error=words or "no answer in time",
            code="hangs",
            remedy="look for a lost GPU (dmesg | grep -i -e xid -e nvrm) and reboot the host; if it stays "
            "lost, have it repaired",
        )
    gpus = tuple(sorted(_gpus(out, lines(raw.get("recovery"))), key=lambda gpu: gpu.index))
    status = _status(raw.get("returncode"))
    refusal = nvidia_smi.refusal("\n".join((*err, *out)))
    warned = tuple(
        LostGpu(None, _address(address), one_line(words, 100))
        for address, words in nvidia_smi.warnings("\n".join((*err, *out)))
    )
    if (status and not (status == nvidia_smi.WARNED and warned)) or not gpus:
        return SmiAnswer(
            present=True,
            gpus=gpus,
            lost=lost,
            error=words or f"nothing, with exit status {status}",
            code=refusal.code if refusal else "unknown",
            remedy=refusal.remedy if refusal else "",
        )
    return SmiAnswer(
        present=True,
        gpus=gpus,
        lost=lost,
        warned=warned[:MOST_GPUS],
        mig=tuple(
            sorted(
                int(row[0])
                for line in lines(raw.get("mig"))
                if len(row := cells(line)) >= 2 and row[0].isdecimal() and nvidia_smi.mig_enabled(row[1])
                and len(row[0]) < 4
            )
        ),
        addresses=tuple(
            _address(row[1])
            for line in lines(raw.get("bus_ids"))
            if len(row := cells(line)) == 2 and row[0].isdecimal()
        ),
    )  # fmt: skip


def _status(value: Any) -> int:
    try:
        return int(value or 0)
    except (TypeError, ValueError, OverflowError):
        return 1


def _address(text: str) -> str:
    """Return an address in sysfs notation: ``00000000:BA:00.0`` is ``0000:ba:00.0``."""
    domain, _, rest = text.strip().lower().partition(":")
    return f"{domain[-4:].rjust(4, '0')}:{rest}"


def _lost(text: tuple[str, ...]) -> tuple[LostGpu, ...]:
    found: list[LostGpu] = []
    for line in text:
        handle = nvidia_smi.handle(line)
        if handle is None:
            continue
        index, address, why = handle
        one = LostGpu(index, _address(address) if address else None, one_line(why, 200) or "no handle")
        if one not in found:
            found.append(one)
    return tuple(found[:MOST_GPUS])


def _gpus(out: list[str], recovery: list[str]) -> list[SmiGpu]:
    actions: dict[str, str] = {}
    for line in recovery:
        row = cells(line)
        if len(row) == 2:
            actions[row[0]] = row[1]
    gpus: list[SmiGpu] = []
    for line in out:
        row = cells(line)
        if len(row) < 2 or len(gpus) >= MOST_GPUS:
            continue
        # A GPU without even an index has the one of its place in the list.
        known = row[0].isdecimal() and len(row[0]) < 4
        if not known and nvidia_smi.sickness(row[0]) is None and not nvidia_smi.no_value(row[0]):
            continue
        if not known and len(row) < 6:
            continue
        index = int(row[0]) if known else len(gpus)
        gpus.append(_gpu(index, row, actions.get(row[0], "")))
    return gpus


def _gpu(index: int, row: list[str], action: str) -> SmiGpu:
    _, name, uuid, memory, driver, capability = [*row, "", "", "", "", ""][:6]
    if len(row) > 6:  # prose with commas for a version
        driver, capability = ", ".join(row[4:-1]), row[-1]
    mib = nvidia_smi.mib(memory)
    release = version(driver)
    # R610 and later: 'Deprecated, see "KMD version" instead'. The driver is fine, /proc has its version.
    prose = "deprecated" in driver.lower()
    sick = nvidia_smi.row_sickness([*row[:4], driver, capability])
    if sick is None and len(row) < 6:
        sick = f"{len(row)} of 6 cells: {one_line(', '.join(row), 100)}"
    if sick is None:
        for what, cell, sound in (
            ("name", name, not nvidia_smi.no_value(name)),
            ("driver version", driver, release is not None or prose),
            ("memory", memory, bool(mib) or nvidia_smi.no_value(memory)),
            ("compute capability", capability, _CAPABILITY.fullmatch(capability) is not None),
        ):
            if not sound:
                sick = f"{cell or 'nothing'} as its {what}"
                break
    if sick is None and action.strip("[] ").lower() not in _SOUND_ACTIONS:
        sick = nvidia_smi.row_sickness([action]) or f"the driver asks for a recovery: {action}"
    return SmiGpu(
        index=index,
        name=name,
        uuid=uuid,
        memory_bytes=mib * nvidia_smi.MIB if mib else None,
        driver=release or ("" if prose else driver),
        compute_capability=capability if _CAPABILITY.fullmatch(capability) else None,
        sick=sick,
        memory_cell="" if mib else memory,
    )

"""nvidia-smi's output as data: pure.

The text format is parsed because every release prints it and people publish it. Its keys were moved and
renamed between branches, so a reader asks by path and gets None for what a release lacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from minimax_metal.common import nvidia_smi
from minimax_metal.plan.gpu_facts import version

NOT_THERE: Final = frozenset({"N/A", "[N/A]", "None", "Unknown", "Not Supported", "Requested functionality"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of ``nvidia-smi -q`` with the indented lines below it."""

    value: str | None
    below: dict[str, Entry] = field(default_factory=dict)

    def at(self, *path: str) -> Entry | None:
        """Return the entry below, by its keys."""
        here: Entry | None = self
        for key in path:
            here = here.below.get(key) if here else None
        return here

    def get(self, *path: str) -> str | None:
        """Return the value there, None if there is none or the GPU has no such value (``N/A``)."""
        found = self.at(*path)
        if found is None or found.value is None or found.value in NOT_THERE:
            return None
        return found.value

    def number(self, *path: str) -> int | None:
        """Return the whole number at the start of a value, such as ``4096 MiB``."""
        match = re.match(r"\d+", self.get(*path) or "")
        return int(match[0]) if match else None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of the log, by its position."""

    index: int
    address: str
    log: Entry

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"GPU {self.index} ({self.address})"


@dataclass(frozen=True, slots=True)
class Log:
    """``nvidia-smi -q``."""

    driver: str | None
    attached: int | None
    gpus: tuple[Gpu, ...]


_GPU = re.compile(r"GPU ([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f])\s*$")


def parse_log(text: str) -> Log:
    """Parse ``nvidia-smi -q``, whatever sections it has."""
    head = Entry(None)
    gpus: list[Gpu] = []
    stack: list[tuple[int, Entry]] = [(-1, head)]
    for line in text.splitlines():
        if not line.strip() or line.startswith("="):
            continue
        if found := _GPU.match(line):
            gpus.append(Gpu(len(gpus), found[1], Entry(None)))
            stack = [(-1, gpus[-1].log)]
            continue
        depth = len(line) - len(line.lstrip(" \t"))
        key, colon, value = line.strip().partition(" :")
        entry = Entry(value.strip() if colon else None)
        while stack[-1][0] >= depth:
            stack.pop()
        # Processes repeat their keys: the first one is kept.
        stack[-1][1].below.setdefault(key.strip(), entry)
        stack.append((depth, entry))
    # The head's keys are never indented; 610 names the driver's version after the kernel module. Both may be
    # present, and followed by prose: "610.57.04 [Deprecated; …]".
    told = (version(head.get(key) or "") for key in ("Driver Version", "KMD Version"))
    driver = next((found for found in told if found), None)
    return Log(driver, head.number("Attached GPUs"), tuple(gpus))


def sick_values(entry: Entry, path: str = "") -> Iterator[str]:
    """Return every value below that is an NVML error (``Unknown Error``), with its key."""
    for key, one in entry.below.items():
        name = f"{path} {key}".strip()
        if one.value is not None and (meaning := nvidia_smi.sickness(one.value)):
            yield f"{name}: {one.value}, {meaning}"
        yield from sick_values(one, name)


def throttle_reasons(gpu: Gpu) -> Mapping[str, Entry] | None:
    """Return the clocks' slowdown reasons, by name with sub-entries; None if nvidia-smi lacks them.

    Not the counters of the same names, which are microseconds.
    """
    for name in ("Clocks Event Reasons", "Clocks Throttle Reasons"):
        if found := gpu.log.at(name):
            return found.below
    return None


def active(reasons: Mapping[str, Entry]) -> Iterator[str]:
    """Return names of active reasons, including sub-entries."""
    for name, entry in reasons.items():
        if entry.value == "Active":
            yield name
        yield from active(entry.below)


@dataclass(frozen=True, slots=True)
class Links:
    """NVLinks of one GPU: number to its state in ``nvidia-smi nvlink -s``."""

    index: int
    name: str
    states: Mapping[int, str]

    @property
    def down(self) -> list[int]:
        """Links that are down."""
        return [number for number, state in self.states.items() if not state.endswith("GB/s")]


_HEAD = re.compile(r"GPU (\d{1,4}): (.*)")
_LINK = re.compile(r"Link (\d{1,4}):\s*+(.*)")


def parse_links(text: str) -> tuple[Links, ...]:
    """Parse ``nvidia-smi nvlink -s``.

    Cards without NVLink are skipped, and so are those whose links are all down: NVML prints prose for both.
    """
    found: list[tuple[int, str, dict[int, str]]] = []
    for line in text.splitlines():
        if head := _HEAD.match(line.rstrip()):
            found.append((int(head[1]), head[2].partition(" (UUID: ")[0], {}))
        elif (link := _LINK.match(line.strip())) and found:
            found[-1][2][int(link[1])] = link[2]
    return tuple(Links(index, name, states) for index, name, states in found if states)

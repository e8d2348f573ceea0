"""What nvidia-smi prints, as data: pure.

The text form is read because it is what every release prints and people publish; its keys moved and were
renamed from branch to branch, so a reader asks by path and gets None for what a release does not have.
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
    """One line of ``nvidia-smi -q`` with what is indented below it."""

    value: str | None
    below: dict[str, Entry] = field(default_factory=dict)

    def at(self, *path: str) -> Entry | None:
        """The entry below, by its keys."""
        here: Entry | None = self
        for key in path:
            here = here.below.get(key) if here else None
        return here

    def get(self, *path: str) -> str | None:
        """The value there, None where there is none or the GPU has nothing to say (``N/A``)."""
        found = self.at(*path)
        if found is None or found.value is None or found.value in NOT_THERE:
            return None
        return found.value

    def number(self, *path: str) -> int | None:
        """The whole number at the head of a value, such as ``4096 MiB``."""
        match = re.match(r"\d+", self.get(*path) or "")
        return int(match[0]) if match else None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of the log, by its place in it."""

    index: int
    address: str
    log: Entry

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"GPU {self.index} ({self.address})"


@dataclass(frozen=True, slots=True)
class Log:
    """``nvidia-smi -q``."""

    driver: str | None
    attached: int | None
    gpus: tuple[Gpu, ...]


_GPU = re.compile(r"GPU ([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f])\s*$")


def parse_log(text: str) -> Log:
    """Read ``nvidia-smi -q``, whatever sections it holds."""
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
    # The head's keys are never indented; 610 names the driver's version after the kernel module.
    # Both may be there, and prose behind either: "610.57.04 [Deprecated; …]".
    told = (version(head.get(key) or "") for key in ("Driver Version", "KMD Version"))
    driver = next((found for found in told if found), None)
    return Log(driver, head.number("Attached GPUs"), tuple(gpus))


def sick_values(entry: Entry, path: str = "") -> Iterator[str]:
    """Every value below that is NVML's word for an error (``Unknown Error``), with its key."""
    for key, one in entry.below.items():
        name = f"{path} {key}".strip()
        if one.value is not None and (meaning := nvidia_smi.sickness(one.value)):
            yield f"{name}: {one.value}, {meaning}"
        yield from sick_values(one, name)


def throttle_reasons(gpu: Gpu) -> Mapping[str, Entry] | None:
    """What keeps the clocks down, by name with what is below; None where nvidia-smi does not say.

    Not the counters of the same names, which hold microseconds.
    """
    for name in ("Clocks Event Reasons", "Clocks Throttle Reasons"):
        if found := gpu.log.at(name):
            return found.below
    return None


def active(reasons: Mapping[str, Entry]) -> Iterator[str]:
    """Names of the reasons that are active, those below others included."""
    for name, entry in reasons.items():
        if entry.value == "Active":
            yield name
        yield from active(entry.below)


@dataclass(frozen=True, slots=True)
class Links:
    """NVLinks of one GPU: number to what ``nvidia-smi nvlink -s`` says of it."""

    index: int
    name: str
    states: Mapping[int, str]

    @property
    def down(self) -> list[int]:
        """Links that carry nothing."""
        return [number for number, state in self.states.items() if not state.endswith("GB/s")]


_HEAD = re.compile(r"GPU (\d{1,4}): (.*)")
_LINK = re.compile(r"Link (\d{1,4}):\s*+(.*)")


def parse_links(text: str) -> tuple[Links, ...]:
    """Read ``nvidia-smi nvlink -s``.

    Cards without NVLink are left out, and so are those whose links are all down: NVML tells both in words.
    """
    found: list[tuple[int, str, dict[int, str]]] = []
    for line in text.splitlines():
        if head := _HEAD.match(line.rstrip()):
            found.append((int(head[1]), head[2].partition(" (UUID: ")[0], {}))
        elif (link := _LINK.match(line.strip())) and found:
            found[-1][2][int(link[1])] = link[2]
    return tuple(Links(index, name, states) for index, name, states in found if states)

"""Events in the kernel's log about a host, apart from Xids: data, and a reader.

Each rule names a public report or its source. A ``grave`` event ends any engine on that GPU and takes
precedence over all of the engine's messages; a ``kill`` does if it hit a process of the engine; a ``backing``
event explains an end for which the engine has no explanation.
"""

from __future__ import annotations

import functools
import re
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from minimax_metal.common.text import printable
from minimax_metal.host.engine.diagnosis.reason import Who
from minimax_metal.host.engine.diagnosis.xids import Xid, find_xids

SECONDS: Final = 5.0
"""Time limit for reading the kernel's lines; 1,000 take some hundredths of a second."""


class Weight(IntEnum):
    """How decisive an event is."""

    NOTE = 0
    BACKING = 1
    KILL = 2
    GRAVE = 3


@dataclass(frozen=True, slots=True)
class KernelRule:
    """How to read one kind of line."""

    code: str
    needle: str
    """A word that such a line contains, in lower case."""
    pattern: re.Pattern[str]
    weight: Weight
    who: Who
    remedy: str
    source: str


@functools.cache
def rules() -> tuple[KernelRule, ...]:
    """The rules of ``kernel.toml``; the first that matches a line is used."""
    data = tomllib.loads((Path(__file__).parent / "kernel.toml").read_text(encoding="utf-8"))
    return tuple(
        KernelRule(
            entry["code"],
            entry["needle"],
            re.compile("|".join(entry["patterns"]), re.IGNORECASE),
            Weight[entry["weight"].upper()],
            Who(entry["who"]),
            entry["remedy"],
            entry["source"],
        )
        for entry in data["rule"]
    )


_OOM: Final = re.compile(
    r"(?P<cgroup>Memory cgroup )?[Oo]ut of memory(?: \(oom_kill_allocating_task\))?: "
    r"Kill(?:ed|ing)? process (?P<pid>\d{1,10}) \((?P<name>[^)]{1,64})\)"
    r"(?:.{0,120}?anon-rss:(?P<rss>\d{1,15})kB)?"
)
_OOM_KILL: Final = re.compile(
    r"oom-kill:.{0,400}?task_memcg=(?P<where>[^,]{1,200}),task=(?P<name>[^,]{1,64}),pid=(?P<pid>\d{1,10})"
)
_UNIT_OOM: Final = re.compile(
    r"sglang@\S{1,120}: (?:A process of this unit has been killed by the OOM killer|"
    r"Failed with result 'oom-kill').{0,40}"
)
_OOMD: Final = re.compile(r"Killed (?:/\S{0,200})?sglang@\S{1,160} due to memory (?:pressure|used).{0,160}")
_EARLYOOM: Final = re.compile(
    r"(?:earlyoom.{0,40})?sending SIG(?:TERM|KILL) to process (?P<pid>\d{1,10}) "
    r".{0,40}?[\"“'](?P<name>[^\"”']{1,64})[\"”'].{0,120}"
)
_ENGINE: Final = re.compile(
    r"sglang|python|pt_main_thread|ray::|nvcc|cicc|ptxas|cc1plus|cudafe|ninja|metal", re.IGNORECASE
)
"""Names of an engine's processes, including its compilers (the kernel cuts names at 15 characters)."""
HOST_MEMORY: Final = (
    "give the host more memory or stop other programs on it; lower metal_loader_threads and set "
    "metal_warm_weights: false to use less; a MemoryMax= of the unit may be too low"
)


@dataclass(frozen=True, slots=True)
class Event:
    """One event in the kernel's log."""

    code: str
    text: str
    line: str
    weight: Weight
    who: Who
    remedy: str
    device: str | None = None
    ours: bool = True
    """Whether it affected the engine; only a kill may not."""


_CONCERNS: Final = re.compile(
    r"NVRM|nvidia|nvswitch|nvlink|\boom[-_](?:kill|reaper)|Out of memory|invoked oom-killer", re.IGNORECASE
)


def concerns(text: str) -> bool:
    """Return whether a diagnosis uses a line of the kernel's log."""
    text = text[:2000]
    lower = text.lower()
    return _CONCERNS.search(text) is not None or any(
        rule.needle in lower and rule.pattern.search(text) is not None for rule in rules()
    )


def find_events(
    lines: Sequence[str], *, seconds: float = SECONDS, stop: Callable[[], bool] = lambda: False
) -> list[Event]:
    """Return the events in lines of the kernel's log (and systemd's about the OOM killer), without Xids,
    oldest first.

    Args:
        lines: of the log.
        seconds: time limit; malicious lines take some hundredths of a second each.
        stop: ends the reading early when it returns true.
    """
    found: list[Event] = []
    deadline = time.monotonic() + seconds
    for number, line in enumerate(lines):
        if time.monotonic() > deadline or stop():
            break
        text = printable(line[:2000])
        lower = text.lower()
        if "nvrm: the nvidia gpu" in lower:  # a message of three lines
            text = " ".join(
                printable(part[:300]) if not index else printable(part[:300]).rpartition("NVRM:")[2].strip()
                for index, part in enumerate(lines[number : number + 3])
            )
            lower = text.lower()
        if (killed := _killed(text, lower)) is not None:
            found.append(killed)
            continue
        if "nvrm: xid" in lower:
            continue
        for rule in rules():
            if rule.needle in lower and (match := rule.pattern.search(text)):
                device = match.groupdict().get("device") or _device(text)
                found.append(
                    Event(
                        rule.code,
                        " ".join(match[0].split()),
                        text.strip(),
                        rule.weight,
                        rule.who,
                        rule.remedy,
                        device,
                    )
                )
                break
    return found


_ANY_DEVICE: Final = re.compile(r"\b[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-9a-fA-F]\b")


def _device(text: str) -> str | None:
    found = _ANY_DEVICE.search(text)
    return found[0] if found else None


def _killed(text: str, lower: str) -> Event | None:
    if (
        "oom" not in lower
        and "out of memory" not in lower
        and "memory pressure" not in lower
        and "sending sig" not in lower
    ):
        return None
    code, remedy = "host-memory", HOST_MEMORY
    if match := _OOM.search(text):
        held = f", which held {int(match['rss']) / (1 << 20):.1f} GiB" if match["rss"] else ""
        where = "the memory limit of its unit or container" if match["cgroup"] else "the host's memory"
        told = (
            f"the kernel's OOM killer killed process {match['pid']} ({match['name']}){held}: {where} ran out"
        )
        return Event(
            code, told, text.strip(), Weight.KILL, Who.USER, remedy, None, bool(_ENGINE.search(match["name"]))
        )
    if match := _OOM_KILL.search(text):
        ours = "sglang@" in match["where"] or bool(_ENGINE.search(match["name"]))
        told = f"the kernel's OOM killer killed process {match['pid']} ({match['name']}) of {match['where']}"
        return Event(code, told, text.strip(), Weight.KILL, Who.USER, remedy, None, ours)
    if match := _UNIT_OOM.search(text) or _OOMD.search(text):
        return Event(code, match[0], text.strip(), Weight.KILL, Who.USER, remedy)
    if match := _EARLYOOM.search(text):
        told = f"earlyoom killed process {match['pid']} ({match['name']}): the host ran out of memory"
        return Event(
            code, told, text.strip(), Weight.KILL, Who.USER, remedy, None, bool(_ENGINE.search(match["name"]))
        )
    return None


def first_xids(xids: Sequence[Xid]) -> list[Xid]:
    """Return events that need an operator, without clean-up that follows others."""
    return [xid for xid in xids if xid.rule.operator and xid.previous is None]


__all__ = ["Event", "KernelRule", "Weight", "Xid", "concerns", "find_events", "find_xids", "first_xids"]

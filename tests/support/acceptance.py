"""A host made of recorded answers, for the checks of `metal accept`: output of real programs, and files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from minimax_metal.host.accept.context import Context, Serving
from minimax_metal.host.accept.machine import Answer, Node
from minimax_metal.plan.model import Plan
from tests.unit.plan_helpers import decide

DATA = Path(__file__).parents[1] / "unit" / "data" / "accept"
BOOT = 1_700_000_000


def published(name: str) -> str:
    """The output of a real program."""
    return (DATA / name).read_text(encoding="utf-8")


@dataclass
class FakeMachine:
    """Answers to commands by their prefix (the longest wins), files, device nodes, units."""

    answers: dict[str, Answer] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    units: dict[str, Mapping[str, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def run(self, *command: str, seconds: float = 60.0) -> Answer:
        words = " ".join(command)
        self.asked.append(words)
        asked = next((word for word in command if word.startswith("--property=")), None)
        if words.startswith("systemctl show") and "--" in command and asked:
            unit = self.units.get(command[-1], {"LoadState": "not-found", "ActiveState": "inactive"})
            names = asked.partition("=")[2].split(",")
            return Answer(0, "".join(f"{name}={unit[name]}\n" for name in names if name in unit))
        for start in sorted(self.answers, key=len, reverse=True):
            if words.startswith(start):
                return self.answers[start]
        return Answer(127, "", f"no program {command[0]}")

    def read(self, path: str) -> str | None:
        return self.files.get(path)

    def node(self, path: str) -> Node | None:
        return self.nodes.get(path)

    def list(self, pattern: str) -> Sequence[str]:
        known = [*self.files, *self.nodes, *self.times]
        return sorted({path for path in known if fnmatchcase(path, pattern)})

    def modified(self, path: str) -> float | None:
        return self.times.get(path)


@cache
def _planned(gpu: str, count: int, variables: tuple[tuple[str, Any], ...]) -> str:
    return json.dumps(decide(gpu, count, model="MiniMax-M2.5", **dict(variables)).as_dict())


def planned(gpu: str = "H100", count: int = 8, **variables: Any) -> dict[str, Any]:
    """The plan of a host with a running driver, as in JSON; variables without their prefix."""
    decided: dict[str, Any] = json.loads(_planned(gpu, count, tuple(sorted(variables.items()))))
    if gpu == "H100":
        decided["gpus"]["name"] = "NVIDIA H100 80GB HBM3"  # what nvidia-smi calls it
    return decided


def host(gpu: str = "H100", count: int = 8, **variables: Any) -> Context:
    """A healthy host except for the output of nvidia-smi, which the test provides."""
    decided = planned(gpu, count, **variables)
    machine = FakeMachine(
        answers={
            "systemctl show --timestamp=unix --property=UserspaceTimestamp --value": Answer(0, f"@{BOOT}\n"),
            "systemctl": Answer(0, ""),
        },
        times={"/var/lib/dpkg/info/libcuda1:amd64.list": BOOT - 1000.0},
    )
    nodes = [*(f"/dev/nvidia{number}" for number in range(count)), "/dev/nvidiactl", "/dev/nvidia-uvm"]
    nodes += ["/dev/nvidia-uvm-tools", "/dev/nvidia-nvswitchctl", "/dev/nvidia-nvswitch0"]
    machine.nodes = {path: Node(path, True, 0o666, BOOT + 20.0) for path in nodes}
    for service in decided["services"]:
        machine.units[service["unit"]] = {
            "LoadState": "loaded",
            "ActiveState": "active",
            "After": "network-online.target nvidia-device-nodes.service nvidia-persistenced.service",
            "ExecMainStartTimestamp": f"@{BOOT + 40}",
            "Slice": "system-sglang.slice",
        }
    return Context(machine, Serving.of_plan(Plan.from_dict(decided)))


def fake(context: Context) -> FakeMachine:
    """The host's machine, for changes."""
    assert isinstance(context.machine, FakeMachine)
    return context.machine

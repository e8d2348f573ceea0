"""The state of a run of the checks: the host, its plan, and the options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Final

from minimax_metal.common.errors import UserError
from minimax_metal.host.accept.machine import Answer, Machine, moment, properties
from minimax_metal.host.accept.smi import Gpu, Log, parse_log
from minimax_metal.plan.model import (
    CapacityPlan,
    CudaPlan,
    DriverPlan,
    EnginePlan,
    GpusPlan,
    ModelPlan,
    Plan,
    ServicePlan,
)

MODULE_NODES: Final = "nvidia-device-nodes.service"
"""The unit that creates the device nodes at boot (role nvidia_driver)."""


@dataclass(frozen=True, slots=True)
class Service:
    """One instance of the engine, as planned."""

    instance: str
    unit: str
    url: str
    indices: tuple[int, ...]
    argv: tuple[str, ...]
    keys: Path | None
    check_arguments: tuple[str, ...]
    stop_seconds: float
    start_seconds: float

    @classmethod
    def of_plan(cls, data: ServicePlan) -> Service:
        """Return the instance from its part of the plan."""
        return cls(
            instance=data.instance,
            unit=data.unit,
            url=data.url,
            indices=data.gpu_indices,
            argv=data.argv,
            keys=Path(data.keys_directory) if data.keys_directory else None,
            check_arguments=data.check_arguments,
            stop_seconds=float(data.stop_timeout_seconds),
            start_seconds=float(data.start_timeout_seconds),
        )


@dataclass(frozen=True, slots=True)
class Serving:
    """The parts of a serving host's plan, all present."""

    host: str
    gpus: GpusPlan
    driver: DriverPlan
    engine: EnginePlan
    model: ModelPlan
    capacity: CapacityPlan
    cuda: CudaPlan
    services: tuple[ServicePlan, ...]

    @classmethod
    def of_plan(cls, plan: Plan) -> Serving:
        """Return the parts of a plan.

        Raises:
            UserError: one of them is missing.
        """
        found = {part.name: getattr(plan, part.name) for part in fields(cls)}
        lacking = [name for name, part in found.items() if not part and name not in {"host", "services"}]
        if lacking or not plan.services:
            raise UserError(
                f"found a plan without {', '.join(lacking or ['services'])}, expected the plan of a host "
                "that serves; check it with metal plan"
            )
        return cls(**found)


@dataclass
class Context:
    """One run on a host."""

    machine: Machine
    plan: Serving
    answers: dict[str, Answer] = field(default_factory=dict)
    """Output of programs, by its name in the bundle."""

    def ask(self, name: str, *command: str, seconds: float = 60.0) -> Answer:
        """Run a program once per run, and keep its output for the bundle."""
        if name not in self.answers:
            self.answers[name] = self.machine.run(*command, seconds=seconds)
        return self.answers[name]

    @property
    def gpus(self) -> GpusPlan:
        """The plan's part on GPUs."""
        return self.plan.gpus

    @property
    def link(self) -> str | None:
        """The kind of interconnect between the GPUs; None if the catalogue does not know the GPU."""
        return self.gpus.interconnect.kind if self.gpus.interconnect else None

    @property
    def driver(self) -> DriverPlan:
        """The plan's part on the driver."""
        return self.plan.driver

    @cached_property
    def services(self) -> Sequence[Service]:
        """The instances, in the order of their ports."""
        return tuple(Service.of_plan(one) for one in self.plan.services)

    @cached_property
    def log(self) -> Log | None:
        """``nvidia-smi -q``; None if it does not answer."""
        answer = self.ask("nvidia-smi-q", "nvidia-smi", "-q", seconds=120.0)
        return parse_log(answer.out) if answer.status == 0 else None

    @property
    def logged(self) -> Sequence[Gpu]:
        """The GPUs of that log."""
        return self.log.gpus if self.log else ()

    @cached_property
    def booted(self) -> float | None:
        """When the system booted (seconds since 1970): systemd's own time, which a container has too."""
        answer = self.machine.run(
            "systemctl", "show", "--timestamp=unix", "--property=UserspaceTimestamp", "--value"
        )
        return moment(answer.out.strip())

    def properties(self, unit: str, *names: str) -> Mapping[str, str]:
        """Properties of a unit."""
        return properties(self.machine, unit, names)

    @property
    def running(self) -> Sequence[Service]:
        """Instances that run or are starting."""
        return [
            one
            for one in self.services
            if self.properties(one.unit, "ActiveState").get("ActiveState")
            in {"active", "activating", "reloading"}
        ]

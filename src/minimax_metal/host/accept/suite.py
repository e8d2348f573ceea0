"""The checks in order, and one run of them on a host."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Final

from minimax_metal.host.accept import boot, dcgm, driver, endpoint, fabric
from minimax_metal.host.accept.compute import BUSY, Compute
from minimax_metal.host.accept.context import Context, Service
from minimax_metal.host.accept.engine import await_start, stopped
from minimax_metal.host.accept.outcome import Outcome, failed, skipped
from minimax_metal.host.accept.report import Report
from minimax_metal.host.accept.sandbox import Sandbox

SandboxOf = Callable[[Service], Sandbox]


@dataclass(frozen=True, slots=True)
class Check:
    """A check by its name: what it shows, and the part that needs real GPUs."""

    name: str
    about: str


HOST: Final[tuple[tuple[Check, Callable[[Context], Outcome]], ...]] = (
    (Check("gpus", "the planned number of GPUs of the planned model"), boot.check_gpus),
    (Check("device_nodes", "device nodes of every GPU, for every user"), boot.check_nodes),
    (
        Check("cold_boot", "those device nodes were created at boot, before the engine's units"),
        boot.check_cold_boot,
    ),
    (Check("driver_version", "kernel module and libraries have the same version"), driver.check_versions),
    (Check("persistence", "persistence mode on every GPU"), driver.check_persistence),
    (Check("clocks", "no GPU is slowed down"), driver.check_clocks),
    (Check("pcie", "all PCIe lanes of every GPU"), driver.check_pcie),
    (Check("ecc", "no uncorrected memory error, no repair pending"), driver.check_ecc),
    (Check("xid", "no GPU error in the kernel's log since boot"), driver.check_xid),
    (Check("fabric", "fabric manager and fabric state, with NVSwitches"), fabric.check_fabric),
    (Check("nvlink", "every NVLink up"), fabric.check_nvlink),
    (Check("dcgm", "dcgmi diag -r 1, where DCGM is installed"), dcgm.check_dcgm),
)
CUDA: Final = Check("cuda", "torch.cuda computes on all cards inside the unit's sandbox")
NCCL: Final = Check("nccl", "NCCL's all-reduce bandwidth against the catalogue's value")
COMPILERS: Final[tuple[tuple[Check, str], ...]] = (
    (Check("triton", "Triton compiles a kernel in the sandbox"), "compile_triton"),
    (Check("flashinfer", "FlashInfer compiles a kernel in the sandbox"), "compile_flashinfer"),
    (Check("deep_gemm", "DeepGEMM compiles a kernel in the sandbox"), "compile_deep_gemm"),
)
ENDPOINT: Final[tuple[tuple[Check, Callable[[Context], Iterator[Outcome]]], ...]] = (
    (Check("kv_tokens", "KV tokens planned against logged, within 5 %"), endpoint.check_tokens),
    (Check("golden_answer", "the endpoint's answers to questions with known answers"), endpoint.check_answer),
)
CHECKS: Final = (
    *(check for check, _ in HOST),
    CUDA,
    NCCL,
    *(check for check, _ in COMPILERS),
    *(check for check, _ in ENDPOINT),
)


def selected(name: str, only: Iterable[str], skip: Iterable[str]) -> bool:
    """Return whether a check is selected."""
    chosen = list(only)
    wanted = not chosen or any(fnmatchcase(name, pattern) for pattern in chosen)
    return wanted and not any(fnmatchcase(name, pattern) for pattern in skip)


@dataclass
class Run:
    """One run on a host."""

    context: Context
    sandbox: SandboxOf
    stop_engine: bool = False
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    outcomes: list[Outcome] = field(default_factory=list)

    def wants(self, check: Check) -> bool:
        """Return whether a check is selected."""
        return selected(check.name, self.only, self.skip)

    def report(self) -> Report:
        """Run all selected checks, with the engine stopped meanwhile if requested."""
        began = datetime.now(UTC).isoformat(timespec="seconds")
        for check, function in HOST:
            self.take(check, lambda function=function: iter([function(self.context)]))  # type: ignore[misc]  # bound now
        self.compute()
        for check, several in ENDPOINT:
            self.take(check, lambda several=several: several(self.context))  # type: ignore[misc]  # bound now
        plan = self.context.plan
        return Report(
            host=plan.host,
            time=began,
            outcomes=tuple(self.outcomes),
            model=plan.model.served_name,
            gpus=f"{plan.gpus.count} x {plan.gpus.model}",
            engine=plan.engine.release,
            driver=self.context.log.driver if self.context.log else None,
        )

    def compute(self) -> None:
        """Run the checks on the GPUs, with the engine stopped if requested."""
        asked = [check for check in (CUDA, NCCL, *(one for one, _ in COMPILERS)) if self.wants(check)]
        if not asked:
            return
        running = list(self.context.running) if self.stop_engine else []
        with stopped(self.context.machine, running):
            self._compute()
        if running and not await_start(self.context.machine, running):
            units = " and ".join(service.unit for service in running)
            self.outcomes.append(
                failed(
                    "restart",
                    f"{units} did not start again",
                    "a ready endpoint",
                    "systemctl status 'sglang@*'",
                )
            )

    def _compute(self) -> None:
        compute = Compute(self.context, self.sandbox)
        self.take(CUDA, compute.cuda)
        blind = next(
            (
                one.check
                for one in self.outcomes
                if one.check.partition(":")[0] == "cuda" and one.state == "failed"
            ),
            None,
        )
        reason = f"no card to compute on: see check {blind}" if blind else compute.busy()
        remedy = "" if blind else BUSY
        if reason is not None:
            for check in (NCCL, *(one for one, _ in COMPILERS)):
                self.take(check, lambda check=check: iter([skipped(check.name, reason, remedy)]))  # type: ignore[misc]  # as above
            return
        self.take(NCCL, compute.all_reduce)
        for check, program in COMPILERS:
            self.take(
                check,
                lambda check=check, program=program: iter([compute.compile(check.name, program)]),  # type: ignore[misc]  # as above
            )

    def take(self, check: Check, function: Callable[[], Iterator[Outcome]]) -> None:
        """Run one check and keep its outcomes. An exception in it is an outcome, and does not end the run."""
        if not self.wants(check):
            return
        began = time.monotonic()
        try:
            for outcome in function():
                self.outcomes.append(outcome.timed(time.monotonic() - began))
                began = time.monotonic()
        except Exception as error:
            words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.outcomes.append(
                failed(check.name, words, "a check that can run", "report it with the bundle").timed(
                    time.monotonic() - began
                )
            )

"""Checks that compute on the GPUs: each a program in the sandbox of the engine's unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from minimax_metal.host.accept.context import Context, Service
from minimax_metal.host.accept.machine import Answer
from minimax_metal.host.accept.outcome import Outcome, failed, limited, passed, skipped
from minimax_metal.host.accept.sandbox import Ran, Sandbox
from minimax_metal.host.engine.gpus import GpuError, read_memory
from minimax_metal.plan.model import InterconnectPlan

GIGA: Final = 1e9
REPORTED_SHARE: Final = 0.85
"""Share of a published all-reduce bandwidth for such a board; less is a failure (choice of this project)."""
LINK_SHARE: Final = 0.6
"""Share of the links' capacity if nothing was published: a ring reaches about 0.8 of it (232 of 300 GB/s on 8
x A100, NVIDIA/nccl-tests issue 175); over PCIe it is a tenth (choice of this project).
"""
LEAST_DEEP_GEMM: Final = 9.0
"""Compute capability from which the engine uses DeepGEMM (deep_gemm_wrapper/configurer.py of 0.5.23)."""
CUDA_SECONDS, REDUCE_SECONDS, COMPILE_SECONDS = 300.0, 600.0, 900.0
BUSY: Final = "--stop-engine stops it for this check and starts it again"


@dataclass
class Compute:
    """A host's GPUs during these checks."""

    context: Context
    sandbox: Callable[[Service], Sandbox]
    ran: dict[str, Ran] = field(default_factory=dict)

    def busy(self) -> str | None:
        """Return why the GPUs are not free, or empty."""
        running = [service.unit for service in self.context.running]
        if running:
            return f"{' and '.join(running)} use{'s' if len(running) == 1 else ''} the GPUs"
        try:
            memory = read_memory(self.context.gpus.indices)
        except GpuError as error:
            return str(error)
        return "; ".join(memory.taken) if memory and memory.taken else None

    def run(self, name: str, service: Service, program: str, seconds: float) -> Ran:
        """Run a program in an instance's sandbox and keep its output for the bundle."""
        ran = self.sandbox(service).run(program, seconds, count=len(service.indices))
        self.ran[name] = ran
        self.context.answers[f"program-{name}"] = Answer(0 if ran.ok else 1, ran.output, ran.how)
        return ran

    def cuda(self) -> Iterator[Outcome]:
        """All cards of each instance compute in its sandbox; also beside a running engine, in half a GB."""
        for service in self.context.services:
            name = self.name("cuda", service)
            ran = self.run(name, service, "cuda_cards", CUDA_SECONDS)
            count = len(service.indices)
            expected = f"torch.cuda with {count} cards in the sandbox of {service.unit}"
            remedy = (
                "device_nodes, driver_version; docs/service.md describes which directive may be too strict"
            )
            if not ran.ok:
                yield failed(name, ran.words, expected, remedy, **dict(ran.answer))
                continue
            cards = ran.answer["cards"]
            kinds = sorted({card["capability"] for card in cards})
            wanted = self.context.gpus.compute_capability
            if kinds != [wanted]:
                yield failed(
                    name, f"compute capability {', '.join(kinds)}", wanted, "plan again", cards=cards
                )
                continue
            yield passed(
                name,
                f"{count} cards in the sandbox of {service.unit}: torch {ran.answer['torch']}, "
                f"CUDA {ran.answer['cuda']}",
                **dict(ran.answer),
            )

    def all_reduce(self) -> Iterator[Outcome]:
        """NCCL's all-reduce over the cards of each instance reaches the catalogue's value."""
        for service in self.context.services:
            name = self.name("nccl", service)
            if len(service.indices) < 2:
                yield skipped(name, "a single GPU has no peer to communicate with")
                continue
            ran = self.run(name, service, "all_reduce", REDUCE_SECONDS)
            if not ran.ok:
                yield failed(
                    name, ran.words, "an all-reduce over NCCL in the engine's sandbox", "fabric, nvlink, xid"
                )
                continue
            yield judge_bandwidth(ran.answer, len(service.indices), self.context.gpus.interconnect).named(
                name
            )

    def compile(self, check: str, program: str) -> Outcome:
        """One of the engine's compilers builds a kernel from scratch, and its result is right."""
        service = self.context.services[0]
        if check == "deep_gemm" and float(self.context.gpus.compute_capability) < LEAST_DEEP_GEMM:
            return skipped(check, f"not used on compute capability {self.context.gpus.compute_capability}")
        ran = self.run(check, service, program, COMPILE_SECONDS)
        if not ran.ok:
            return failed(
                check,
                ran.words,
                "a kernel compiled from scratch in the engine's sandbox",
                f"{self.context.plan.cuda.home}, a C++ compiler, Python.h, ninja: run site.yml",
            )
        version = ran.answer.get("version", "unknown")
        return passed(
            check,
            f"{version} compiled a kernel in {_number(ran.answer, 'seconds') or 0.0:.0f} s",
            **dict(ran.answer),
        )

    def name(self, check: str, service: Service) -> str:
        """Return the check's name, with the instance if there are several."""
        return check if len(self.context.services) == 1 else f"{check}:{service.instance}"


def _number(answer: Mapping[str, Any], key: str) -> float | None:
    """Return a number from a program's output; None if it is not one, or impossible for a machine."""
    value = answer.get(key)
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e18
    return float(value) if known and value is not None else None


def judge_bandwidth(answer: Mapping[str, Any], cards: int, links: InterconnectPlan | None) -> Outcome:
    """Compare a measured bus bandwidth (bytes per second) with the published one, else with the links."""
    measured = _number(answer, "bandwidth")
    if measured is None:
        return failed(
            "nccl", "no bandwidth in the program's output", "bytes per second", "fabric, nvlink, xid"
        )
    reported = links.all_reduce_bandwidth if links else {}
    sources = links.all_reduce_source if links else {}
    figures = dict(answer) | {"least": None}
    found = f"{measured / GIGA:.0f} GB/s over {cards} cards (NCCL {answer.get('nccl')})"
    if cards in reported:
        figures |= {"published": reported[cards], "least": reported[cards] * REPORTED_SHARE}
        basis = (
            f"{REPORTED_SHARE:.0%} of the published {reported[cards] / GIGA:.0f} GB/s ({sources.get(cards)})"
        )
    elif links and links.bandwidth and links.kind != "bridge":
        link, source = links.bandwidth, links.bandwidth_source
        figures |= {"links": link, "least": link * LINK_SHARE}
        basis = f"{LINK_SHARE:.0%} of the {link / GIGA:.0f} GB/s of a GPU's links ({source})"
    else:
        return limited(
            "nccl",
            found,
            "a reference value; the catalogue has none",
            "compare with an identical host",
            **figures,
        )
    if measured < float(figures["least"]):
        return failed(
            "nccl",
            found,
            f"{float(figures['least']) / GIGA:.0f} GB/s or more: {basis}",
            "nvlink, fabric, pcie; nvidia-smi topo -m",
            **figures,
        )
    return passed("nccl", f"{found}; expected {float(figures['least']) / GIGA:.0f}", **figures)

"""Why an engine ended, from its own words and the kernel's: pure.

Exit status of ``metal supervise`` for each kind, so that systemd starts again only what may succeed
(``RestartPreventExitStatus=70 78`` in the unit):

=====  ==============================================================================
78     a start that can never succeed as it is: arguments, model, memory, port
70     a GPU fault that needs an operator: a drained host, a reset, a repair
other  may succeed next time
=====  ==============================================================================
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

EXIT_NEVER: Final = 78
"""As sysexits' EX_CONFIG."""
EXIT_GPU: Final = 70
"""As sysexits' EX_SOFTWARE; here: the hardware."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an engine ended."""

    code: str
    text: str
    """The engine's own words, or what they mean, with what to do."""
    final: bool = False
    """Whether another start would end the same way."""
    gpu: bool = False
    """Whether the host needs an operator."""

    @property
    def status(self) -> int | None:
        """The exit status that keeps systemd from trying again; none where it may."""
        if self.gpu:
            return EXIT_GPU
        return EXIT_NEVER if self.final else None


@dataclass(frozen=True, slots=True)
class _Rule:
    code: str
    pattern: re.Pattern[str]
    remedy: str
    at_start: bool = False
    """Final only while the engine starts."""
    final: bool = False
    gpu: bool = False


RULES: Final[tuple[_Rule, ...]] = (
    _Rule(
        "gpu-ecc",
        re.compile(r"uncorrectable (?:NVLink|ECC) error|CUDA error: .*ECC", re.IGNORECASE),
        "drain the host and look at nvidia-smi -q -d ECC,ROW_REMAPPER",
        gpu=True,
    ),
    _Rule(
        "arguments",
        re.compile(r"error: (?:unrecognized arguments|argument |ambiguous option|the following arguments).*"),
        "put metal_engine_extra_args or the parser's variable right and run the playbook",
        final=True,
    ),
    _Rule(
        "architecture",
        re.compile(r"Model architectures .* are not supported.*"),
        "use a metal_engine_release that has the model",
        final=True,
    ),
    _Rule(
        "kernel-missing",
        # FlashInfer's words when a kernel is a download and downloads are off (jit/cubin_loader.py, 0.7.2).
        re.compile(r"Artifact not found locally: \S+"),
        "add the flashinfer-cubin wheel of FlashInfer's version to metal_engine_extra_packages, or let it "
        'fetch with metal_engine_extra_environment: {FLASHINFER_NO_DOWNLOAD: ""}',
        at_start=True,
    ),
    _Rule(
        "parallelism",
        re.compile(r"ValueError: .*(?:is not divisible by|must be divisible by).*"),
        "leave metal_tp_size, metal_ep_size and metal_layout out",
        final=True,
    ),
    _Rule(
        "memory",
        re.compile(
            r"(?:torch\.(?:cuda\.)?)?OutOfMemoryError.*|CUDA out of memory.*|Not enough memory.*|"
            r".*Capture cuda graph failed.*|MemoryError\b.*"
        ),
        "lower metal_mem_fraction_static, or use a smaller format or more GPUs",
        at_start=True,
    ),
    _Rule(
        "port",
        re.compile(r".*(?:address already in use|\[Errno 98\]).*", re.IGNORECASE),
        "stop the program that listens there (ss -ltnp), or set metal_port",
        final=True,
    ),
    _Rule(
        "disk-full",
        re.compile(r".*(?:No space left on device|\[Errno 28\]).*"),
        "free some space: df -h /var/cache/sglang /var/lib/sglang /tmp",
    ),
    _Rule(
        "fabric",
        re.compile(r".*(?:system not yet initialized|CUDA error.{0,20}802).*", re.IGNORECASE),
        "look at systemctl status nvidia-fabricmanager: its version must be the driver's",
    ),
    _Rule(
        "driver",
        re.compile(
            r"RuntimeError: (?:No CUDA GPUs are available|Found no NVIDIA driver).*|"
            r".*CUDA driver version is insufficient.*"
        ),
        "look at nvidia-smi on the host",
    ),
    _Rule(
        "nccl",
        re.compile(r".*(?:NCCL error|nccl(?:UnhandledCuda|System|Remote)Error).*"),
        "look at nvidia-smi topo -m and nvidia-smi nvlink -s",
    ),
)

EXCEPTION: Final = re.compile(
    r"^(?:\[[^\]]*\]\s*)?((?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Exit)\b:? .*)"
)


@dataclass(frozen=True, slots=True)
class XidRule:
    """What an Xid of the NVIDIA driver asks for."""

    meaning: str
    operator: bool
    """Whether the host has to be drained; else restarting the application is enough."""


# NVIDIA, "GPU Deployment and Management: XID Errors", catalogue and recommended actions (R: published, not
# reproduced; no GPU was at hand). "operator" where the action is a reset, a reboot or a repair.
XIDS: Final[dict[int, XidRule]] = {
    13: XidRule("graphics engine exception", False),
    31: XidRule("GPU memory page fault", False),
    43: XidRule("GPU stopped processing", False),
    45: XidRule("preemptive cleanup, after another error", False),
    48: XidRule("double-bit ECC error", True),
    63: XidRule("memory row remapped, takes effect at the next reset", False),
    64: XidRule("memory row could not be remapped", True),
    74: XidRule("NVLink error", True),
    79: XidRule("GPU has fallen off the bus", True),
    92: XidRule("high rate of single-bit ECC errors", False),
    94: XidRule("contained ECC error", False),
    95: XidRule("uncontained ECC error", True),
    109: XidRule("context switch timeout", False),
    110: XidRule("security fault", True),
    119: XidRule("GSP timeout", True),
    120: XidRule("GSP error", True),
    136: XidRule("link training failed", True),
    140: XidRule("unrecovered ECC error", True),
    143: XidRule("GPU initialisation error", True),
    154: XidRule("the driver asks for a recovery action", True),
    155: XidRule("NVLink software-defined error", True),
    156: XidRule("resource retirement event", True),
    158: XidRule("GPU fatal timeout", True),
}

_XID: Final = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)\): (\d+)")


@dataclass(frozen=True, slots=True)
class Xid:
    """One Xid line of the kernel."""

    number: int
    device: str
    line: str

    @property
    def rule(self) -> XidRule:
        """What it asks for; an unknown one asks for an operator's look, not for a drained host."""
        return XIDS.get(self.number, XidRule("unknown", False))

    def __str__(self) -> str:
        return f"Xid {self.number} on {self.device} ({self.rule.meaning})"


def find_xids(kernel_lines: Sequence[str]) -> list[Xid]:
    """The Xids in lines of the kernel's log."""
    found = ((_XID.search(line), line) for line in kernel_lines)
    return [Xid(int(match[2]), match[1], line.strip()) for match, line in found if match]


def diagnose(lines: Sequence[str], xids: Sequence[Xid] = (), *, ready: bool) -> Reason | None:
    """Why the engine ended, from its last lines, newest last; none when they do not say.

    ``ready`` is whether it had been ready: what runs out of memory under load may start again, what runs out
    of it while it starts will not start. A fault of a GPU comes before anything the engine says of it.
    """
    grave = [xid for xid in xids if xid.rule.operator]
    if grave:
        told = ", ".join(sorted({str(xid) for xid in grave}))
        return Reason("gpu-xid", f"{told}: drain the host, then reset the GPU or reboot", gpu=True)
    for line in reversed(lines):
        for rule in RULES:
            found = rule.pattern.search(line)
            if found:
                words = " ".join(found.group(0).split())[:300]
                final = rule.final or (rule.at_start and not ready)
                return Reason(rule.code, f"{words}; {rule.remedy}", final=final, gpu=rule.gpu)
    for line in reversed(lines):
        found = EXCEPTION.search(line)
        if found:
            return Reason("engine", " ".join(found.group(1).split())[:300])
    return None

"""The kernel that boots next, and whether the driver's modules were built for it: pure, from facts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from minimax_metal.plan.driver import built_for


def next_kernel(bootable: Iterable[str]) -> str | None:
    """The kernel that a boot loader starts by default: the newest, as ``linux-version sort`` orders them."""
    return max(bootable, key=_natural, default=None)


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.findall(r"\d+|[^\d]+", text)]


def kernel_problem(collected: Mapping[str, Any], module: str) -> str | None:
    """What is wrong with the modules of the kernel that runs and of the one that boots next, or None.

    A failed build comes with the end of its log.
    """
    kernels = collected.get("kernels") or {}
    running, upcoming = str(kernels.get("running")), next_kernel(kernels.get("bootable") or ())
    if collected.get("container"):
        return None
    for kernel in dict.fromkeys([upcoming or running]):
        if not built_for(collected, kernel):
            lines = [line for log in (collected.get("dkms_logs") or {}).values() for line in log]
            telling = [line.strip() for line in lines if re.search(r"\berror\b|\*\*\*", line, re.IGNORECASE)]
            end = " | ".join((telling or [line.strip() for line in lines if line.strip()])[-3:])
            where = ", ".join(collected.get("dkms_logs") or {}) or "/var/lib/dkms/nvidia"
            moved = "" if kernel == running else f" (it boots next; {running} runs now)"
            return (
                f"found no module of {module} for kernel {kernel}{moved}: DKMS failed: {end or 'no log'}; "
                f"expected one; read {where}, mend what it says (compiler, headers of {kernel}), run dkms "
                "autoinstall and the playbook again"
            )
    return None

"""What the driver of a host is, against what its plan needs: pure, from collected facts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_VERSION = re.compile(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b")


@dataclass(frozen=True)
class DriverState:
    """The driver of a host as it runs now.

    Attributes:
        loaded: version of the loaded kernel module, None when none is loaded.
        gpus: how many GPUs nvidia-smi lists.
        reboot: whether the installed driver does not run yet, or another one than installed does.
        found: what was found, in words.
        needed: what the plan needs, in words.
    """

    loaded: str | None
    gpus: int
    reboot: bool
    found: str
    needed: str

    def as_dict(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return asdict(self)


def loaded_version(text: str | None) -> str | None:
    """Return the driver version stated by the text of /proc/driver/nvidia/version."""
    for line in (text or "").splitlines():
        if line.startswith("NVRM version:") and (match := _VERSION.search(line)):
            return match.group(1)
    return None


def version_key(version: str) -> tuple[int, ...]:
    """Return a driver version as numbers that compare rightly: 580.9 is older than 580.65.06."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def driver_state(raw_facts: Mapping[str, Any], plan: Mapping[str, Any]) -> DriverState:
    """Judge the driver of a host.

    Args:
        raw_facts: what the module metal_facts collected.
        plan: the host's plan as plain data.

    A driver runs when its module is loaded and nvidia-smi, which comes with the installed libraries, can
    talk to it: it cannot with another version of the module ("Driver/library version mismatch").
    """
    smi = raw_facts.get("nvidia_smi") or {}
    loaded = loaded_version(raw_facts.get("driver_version_file"))
    answers = bool(smi.get("present")) and smi.get("returncode") == 0
    gpus = len(str(smi.get("stdout", "")).strip().splitlines()) if answers else 0
    minimum = str(plan["driver"]["minimum"])
    needed = f"a loaded driver of at least {minimum} that lists {plan['gpus']['count']} GPUs"
    if not smi.get("present"):
        found = "no NVIDIA driver is installed"
    elif loaded is None:
        found = "the NVIDIA driver is installed and its kernel module is not loaded"
    elif not answers:
        said = " ".join((str(smi.get("stdout", "")) + " " + str(smi.get("stderr", ""))).split())
        found = f"kernel module {loaded} is loaded and nvidia-smi says: {said[:200]}"
    else:
        found = f"driver {loaded} is loaded and lists {gpus} GPUs"
    old = loaded is not None and version_key(loaded) < version_key(minimum)
    return DriverState(
        loaded=loaded, gpus=gpus, reboot=loaded is None or not answers or old, found=found, needed=needed
    )

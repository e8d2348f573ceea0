"""What the driver of a host is, against what its plan needs: pure, from collected facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from minimax_metal.plan.facts import parse_facts
from minimax_metal.plan.versions import version_key


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


def driver_state(raw_facts: Mapping[str, Any], plan: Mapping[str, Any]) -> DriverState:
    """Judge the driver of a host.

    Args:
        raw_facts: what the module metal_facts collected.
        plan: the host's plan as plain data.

    A driver runs when its module is loaded and nvidia-smi, which comes with the installed libraries, can
    talk to it: it cannot with another version of the module ("Driver/library version mismatch").
    """
    facts = parse_facts(raw_facts)
    loaded, gpus = facts.loaded_driver, len(facts.smi_gpus)
    minimum = str(plan["driver"]["minimum"])
    needed = f"a loaded driver of at least {minimum} that lists {plan['gpus']['count']} GPUs"
    if not facts.smi_present:
        found = "no NVIDIA driver is installed"
    elif loaded is None:
        found = "the NVIDIA driver is installed and its kernel module is not loaded"
    elif facts.smi_error is not None:
        found = f"kernel module {loaded} is loaded and nvidia-smi says: {facts.smi_error[:200]}"
    else:
        found = f"driver {loaded} is loaded and lists {gpus} GPUs"
    old = loaded is not None and version_key(loaded) < version_key(minimum)
    reboot = loaded is None or facts.smi_error is not None or not facts.smi_present or old
    return DriverState(loaded=loaded, gpus=gpus, reboot=reboot, found=found, needed=needed)

"""The state of a host's driver, compared with its plan: pure, from collected facts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from minimax_metal.common.errors import UserError
from minimax_metal.plan.driver.facts import read_collected
from minimax_metal.plan.facts import HostFacts, parse_facts
from minimax_metal.plan.model import DriverPlan, Plan
from minimax_metal.plan.versions import version_key

MISMATCH = "Driver/library version mismatch"
"""NVML's message if the loaded module and the installed libraries have different versions."""


@dataclass(frozen=True)
class DriverState:
    """A host's driver as it runs now.

    Attributes:
        loaded: version of the loaded kernel module, None if none is loaded.
        gpus: number of GPUs that nvidia-smi lists.
        reboot: whether the installed driver does not run yet, or another one than the installed one runs.
        found: the state in words.
        needed: the plan's requirement in words.
        advice: what to do if a reboot does not fix it.
        fabric: whether the NVSwitch fabric is ready; true if the plan needs none.
        fabric_found: the fabric's state in words.
        manager: the fabric manager's package and version if it differs from the driver's; else empty.
    """

    loaded: str | None
    gpus: int
    reboot: bool
    found: str
    needed: str
    advice: str = ""
    fabric: bool = True
    fabric_found: str = ""
    manager: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return asdict(self)


def driver_state(
    raw_facts: Mapping[str, Any], plan: Plan, collected: Mapping[str, Any] | None = None
) -> DriverState:
    """Judge a host's driver.

    Args:
        raw_facts: facts from the module metal_facts.
        plan: the host's plan.
        collected: facts from the module metal_driver_facts, if it ran.

    A driver runs if its module is loaded and nvidia-smi, which comes with the installed libraries, can talk
    to it: with another version of the module it cannot ("Driver/library version mismatch").
    """
    facts = parse_facts(raw_facts)
    collected = read_collected(collected)
    loaded, gpus = facts.loaded_driver, len(facts.smi_gpus)
    driver, count = wanted(plan)
    needed = f"a loaded driver of at least {driver.minimum} that lists {count} GPUs"
    nouveau = bool(collected.get("nouveau"))
    if not facts.smi_present:
        found = "no NVIDIA driver is installed"
    elif loaded is None:
        found = "the NVIDIA driver is installed but its kernel module is not loaded"
        if nouveau:
            found = "nouveau is loaded and has claimed the GPUs, so the installed NVIDIA driver can't load"
    elif facts.smi_error is not None:
        found = f"kernel module {loaded} is loaded and nvidia-smi says: {facts.smi_error[:200]}"
    else:
        found = f"driver {loaded} is loaded and lists {gpus} GPUs"
    old = loaded is not None and version_key(loaded) < version_key(driver.minimum)
    reboot = loaded is None or facts.smi_error is not None or not facts.smi_present or old
    fabric, words = True, ""
    if driver.fabric_manager:
        fabric, words = fabric_state(collected.get("fabric"))
    return DriverState(
        loaded=loaded,
        gpus=gpus,
        reboot=reboot,
        found=found,
        needed=needed,
        advice=_advice(facts, collected, nouveau),
        fabric=fabric,
        fabric_found=words,
        manager=_other_manager(collected, loaded) if driver.fabric_manager else "",
    )


def wanted(plan: Plan) -> tuple[DriverPlan, int]:
    """Return a plan's driver part, and the number of GPUs that the driver must list.

    Raises:
        UserError: the plan has no driver or no GPUs.
    """
    if plan.driver is None or plan.gpus is None:
        raise UserError(
            f"{plan.host}: found a plan without driver or GPUs, expected both; check it with metal plan"
        )
    return plan.driver, plan.gpus.count


def _other_manager(collected: Mapping[str, Any], loaded: str | None) -> str:
    """Return name and version of an installed fabric manager that differs from the loaded driver's."""
    packages: Mapping[str, Mapping[str, str]] = collected.get("packages") or {}
    for name, package in packages.items():
        whole = package["state"][1:2] == "i"
        same = re.match(rf"(?:\d+:)?{re.escape(loaded)}(?:-|$)", package["version"]) if loaded else True
        if name.startswith("nvidia-fabricmanager") and whole and not same:
            return f"{name} {package['version']}"
    return ""


def _advice(facts: HostFacts, collected: Mapping[str, Any], nouveau: bool) -> str:
    """Return what to do about an installed driver that does not run although the host was rebooted since."""
    if nouveau:
        return (
            "blacklist nouveau in /etc/modprobe.d and in the kernel's command line "
            "(modprobe.blacklist=nouveau), run update-initramfs -u and reboot"
        )
    running = str((collected.get("kernels") or {}).get("running") or facts.kernel or "")
    missing = collected and not collected.get("container") and not built_for(collected, running)
    if facts.loaded_driver is None and missing:
        return (
            f"no nvidia module was built for the running kernel {running}: run dkms autoinstall on the host "
            "and read /var/lib/dkms/nvidia/*/build/make.log"
        )
    if facts.loaded_driver is None and facts.secure_boot:
        return (
            "secure boot is on and rejects the module: enroll DKMS's key with mokutil, as "
            "docs/driver.md describes"
        )
    if facts.smi_error and MISMATCH in facts.smi_error:
        return (
            "an upgrade replaced the driver's libraries while the old module stayed loaded: reboot "
            "the host into the installed driver, and run the playbook again so that its packages are "
            "held"
        )
    return "look at journalctl -k -b | grep -i -e nvrm -e nvidia, and at nvidia-smi, on the host"


def is_driver(name: str) -> bool:
    """Return whether DKMS's name of some modules is a driver's; nvidia-fs, for example, is not."""
    return (
        re.fullmatch(r"nvidia(-(current|open|srv|server|tesla|legacy|grid|\d{3})[\w.-]*)?", name) is not None
    )


def built_for(collected: Mapping[str, Any], kernel: str) -> bool:
    """Return whether DKMS has installed NVIDIA's modules for a kernel, by the lines of ``dkms status``.

    A line is ``nvidia/580.126.20, 6.1.0-40-amd64, x86_64: installed`` (dkms 3), with a comma instead of the
    slash in earlier versions.
    """
    for line in collected.get("dkms") or ():
        name, _, state = str(line).partition(":")
        parts = [part.strip() for part in re.split(r"[,/]", name)]
        if is_driver(parts[0]) and kernel in parts[1:] and re.match(r"\s*installed\b", state):
            return True
    return False


def fabric_state(answer: Sequence[Any] | None) -> tuple[bool, str]:
    """Return whether every GPU is registered with the NVSwitch fabric, and its ``nvidia-smi -q`` state in
    words.

    ``answer`` is [exit status, output]. GPUs before Hopper don't report a state ("N/A"); then only the fabric
    manager's service can be checked.
    """
    if not answer or int(answer[0]):
        return False, "nvidia-smi -q does not answer"
    states: list[str] = []
    in_fabric = False
    for line in str(answer[1]).splitlines():
        key, mark, value = line.partition(":")
        if not mark:
            in_fabric = key.strip() == "Fabric"
        elif in_fabric and key.strip() == "State":
            states.append(value.strip())
        elif in_fabric and key.strip() == "Status" and value.strip() not in ("Success", "N/A"):
            states[-1:] = [f"{states[-1] if states else 'unknown'} ({value.strip()})"]
    bad = sorted({state for state in states if state not in ("Completed", "N/A")})
    if bad:
        count = sum(state in bad for state in states)
        return False, f"fabric state {', '.join(bad)} on {count} of {len(states)} GPUs"
    return True, f"fabric state {', '.join(sorted(set(states))) or 'not reported'}"


def service_problem(collected: Mapping[str, Any], raw_facts: Mapping[str, Any], plan: Plan, said: str) -> str:
    """Return why the driver's services do not run, or the fabric is not ready: found, expected, what to do.

    ``said`` is systemd's answer. A fabric manager of another version than the driver's comes first: it is the
    usual reason, and CUDA returns 802 then.
    """
    collected = read_collected(collected)
    state = driver_state(raw_facts, plan, collected)
    if state.manager:
        return (
            f"found {state.manager} with driver {state.loaded} loaded, expected the same version; "
            "run the playbook with --tags nvidia_driver, which installs the driver's fabric manager"
        )
    if "device-nodes" in said:
        return (
            f"found {', '.join(collected.get('nodes') or []) or 'no device node'}, expected /dev/nvidiactl "
            "and /dev/nvidia-uvm; look at journalctl -u nvidia-device-nodes, modprobe nvidia-uvm on the host"
        )
    if wanted(plan)[0].fabric_manager and not state.fabric:
        return (
            f"found {state.fabric_found}, expected Completed on every GPU; look at journalctl -u "
            "nvidia-fabricmanager and nvidia-smi -q on the host (a failed NVLink or NVSwitch shows there)"
        )
    words = " ".join(said.split())[-300:]
    return (
        f"found driver services that don't run ({words}), expected all of them running; look at "
        "journalctl -u nvidia-persistenced -u nvidia-fabricmanager on the host"
    )

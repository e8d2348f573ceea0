"""The roles, and what each takes: for validation, argument specifications, defaults and documentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from minimax_metal.plan.settings import role_host, role_serving
from minimax_metal.plan.settings.declared import Setting, by_name, declared


@dataclass(frozen=True)
class Entry:
    """An entry point of a role that takes something else than the role as a whole."""

    does: str
    settings: tuple[Setting, ...] = ()
    plan: str = "The plan of the GPU host."


@dataclass(frozen=True)
class Role:
    """What a role takes."""

    name: str
    does: str
    settings: tuple[Setting, ...] = ()
    plan: str | None = "The plan of this host."
    """What it is given as ``metal_plan``."""
    plan_required: bool = True
    same: Mapping[str, str] = field(default_factory=dict)
    """Other entry points that take the same, with what they do."""
    entries: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of the variables that it reads."""
        parts = (one for entry in self.entries.values() for one in entry.settings)
        return tuple(sorted({one.name for one in (*self.settings, *parts)}))


def _role(name: str, group: type, plan: str | None = "The plan of this host.") -> Role:
    return Role(name, group.__doc__ or "", declared(group, f"{name}_", name), plan)


_GATEWAY: Final = _role("sglang_gateway", role_serving.SglangGateway, "The plan of the gateway's host.")
_DRAIN: Final = (
    by_name(_GATEWAY.settings)["sglang_gateway_drain_timeout_seconds"],
    Setting(
        name="sglang_gateway_workers",
        kind="list",
        default=None,
        meaning="URLs of the host's workers. By default those of its plan; a rollout passes those of the "
        "recorded release.",
        owner="sglang_gateway",
    ),
)

ROLES: Final = (
    _role("artefact_cache", role_host.ArtefactCache, plan=None),
    _role("cuda_toolkit", role_host.CudaToolkit),
    Role(
        "endpoint_firewall",
        "Open each of the product's ports to the hosts that need it, and to no others",
        plan="The plan of a GPU host. Gateway and cache hosts have none.",
        plan_required=False,
    ),
    Role(
        "fleet_lock",
        "Take the lock of the fleet for a run that stops engines, reboots or removes, and release it",
        plan=None,
    ),
    _role("host_tools", role_host.HostTools),
    replace(_role("host_tuning", role_host.HostTuning), plan_required=False),
    replace(
        _role("model_weights", role_serving.ModelWeights),
        same={"start": "Start the pull in the background", "await": "Wait until the pull is verified"},
    ),
    _role("nvidia_driver", role_host.NvidiaDriver),
    replace(
        _role("package_sources", role_host.PackageSources),
        same={"read": "Read the sources and decide what happens to them"},
    ),
    Role("page_cache", "Read weights into the page cache while the host is set up, where memory allows"),
    _role("post_check", role_serving.PostCheck),
    Role("release_record", "Keep the plan that was applied and verified, newest first"),
    replace(
        _GATEWAY,
        entries={
            "drain": Entry(
                "Take the workers of a GPU host out of every gateway's pool and wait for their requests",
                _DRAIN,
            ),
            "undrain": Entry("Put the workers of a GPU host back into every gateway's pool"),
        },
    ),
    _role("sglang_runtime", role_serving.SglangRuntime),
    _role("sglang_service", role_serving.SglangService),
)
ROLE_SETTINGS: Final = MappingProxyType(by_name(one for role in ROLES for one in role.settings))
ROLE_VARIABLES: Final = MappingProxyType({role.name: role.variables for role in ROLES})
"""The names of the variables that each role reads."""

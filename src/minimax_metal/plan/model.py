"""The plan's data: frozen dataclasses with every decision for one host.

Units: ``*_bytes`` are bytes, ``*_seconds`` seconds, ``kv_tokens`` tokens over all sequences together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from minimax_metal.common.errors import UserError
from minimax_metal.common.text import one_line
from minimax_metal.plan import reading
from minimax_metal.plan.host_parts import (
    CudaPlan,
    DraftPlan,
    DriverPlan,
    EnginePlan,
    ExtraPackage,
    GpusPlan,
    HostToolsPlan,
    InterconnectPlan,
    MirrorsPlan,
    ModelPlan,
    OriginsPlan,
    ParallelismPlan,
    PlatformPlan,
    WeightsPlan,
    WeightsSource,
)
from minimax_metal.plan.service_parts import (
    CapacityPlan,
    ChecksPlan,
    DiskPlan,
    FirewallPlan,
    KernelCachePlan,
    LayoutPlan,
    LimitsPlan,
    PageCachePlan,
    PrecompilePlan,
    ServicePlan,
    TlsPlan,
)

__all__ = [
    "SCHEMA",
    "CapacityPlan",
    "ChecksPlan",
    "CudaPlan",
    "Difference",
    "DiskPlan",
    "DraftPlan",
    "DriverPlan",
    "EnginePlan",
    "ExtraPackage",
    "FirewallPlan",
    "GpusPlan",
    "HostToolsPlan",
    "InterconnectPlan",
    "KernelCachePlan",
    "LayoutPlan",
    "LimitsPlan",
    "MirrorsPlan",
    "ModelPlan",
    "Notice",
    "OriginsPlan",
    "PageCachePlan",
    "ParallelismPlan",
    "Plan",
    "PlatformPlan",
    "PrecompilePlan",
    "Refusal",
    "ServicePlan",
    "TlsPlan",
    "WeightsPlan",
    "WeightsSource",
    "plain",
]

SCHEMA = 1


@dataclass(frozen=True)
class Refusal:
    """A reason why a host can't serve as requested; lifted only by naming its code."""

    code: str
    found: str
    needed: str
    remedy: str

    def line(self, host: str) -> str:
        """One readable line: host, code, found, needed, what to do."""
        return f"{host}: {self.code}: found {self.found}; needed {self.needed}; {self.remedy}"


@dataclass(frozen=True)
class Notice:
    """A warning: the plan continues, but on thin evidence or with something worth knowing."""

    code: str
    message: str


@dataclass(frozen=True)
class Difference:
    """A deviation from the vendor's guide, with its reason."""

    what: str
    guide: str
    here: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """All decisions for one host. Undecided parts are None, and a refusal gives the reason."""

    host: str
    profile: str
    refusals: tuple[Refusal, ...]
    accepted: tuple[Refusal, ...]
    """Refusals that ``metal_accept_refusals`` lifted; stored in the release record."""
    warnings: tuple[Notice, ...]
    differences: tuple[Difference, ...]
    platform: PlatformPlan | None
    model: ModelPlan | None
    weights: WeightsPlan | None
    draft: DraftPlan | None
    """None if no draft from its own repository is requested."""
    gpus: GpusPlan | None
    parallelism: ParallelismPlan | None
    mirrors: MirrorsPlan | None
    """Where the host downloads from."""
    host_tools: HostToolsPlan | None
    engine: EnginePlan | None
    driver: DriverPlan | None
    cuda: CudaPlan | None
    tls: TlsPlan | None
    """None if the fleet's own CA is not used."""
    services: tuple[ServicePlan, ...]
    """One unit per replica, ordered by port; ``service`` is the first of them."""
    firewall: FirewallPlan | None
    """None if the endpoints are open to every address."""
    kernel_cache: KernelCachePlan | None
    precompile: PrecompilePlan | None
    """None if DeepGEMM compiles nothing."""
    page_cache: PageCachePlan | None
    """None if the weights would take memory that the host needs."""
    capacity: CapacityPlan | None
    limits: LimitsPlan | None
    layouts: tuple[LayoutPlan, ...]
    """Every layout that the host's GPUs allow; the plan uses the one of ``metal_layout``."""
    disk: DiskPlan | None
    checks: ChecksPlan | None

    @property
    def service(self) -> ServicePlan | None:
        """The first (and usually only) unit."""
        return self.services[0] if self.services else None

    @property
    def fits(self) -> bool:
        """Whether there is no refusal."""
        return not self.refusals

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain data for JSON, with every key always present."""
        parts = {field.name: plain(getattr(self, field.name)) for field in fields(self)}
        return self._derived() | parts

    def _derived(self) -> dict[str, Any]:
        """The dictionary's keys besides the fields."""
        return {"schema": SCHEMA, "host": self.host, "fits": self.fits, "service": plain(self.service)}

    @classmethod
    def from_dict(cls, value: Any) -> Plan:
        """Return the plan that :meth:`as_dict` of this version wrote, or JSON of it.

        Raises:
            UserError: it is not such a plan: a key is unknown or missing, a value is of another type, or two
                places contradict each other. The error is one line that names the key.
        """
        advice = "pass a plan made by this version"
        if not isinstance(value, Mapping):
            raise UserError(f"plan: found {one_line(repr(value), 80)}, expected an object; {advice}")
        derived = {"schema", "fits", "service"}
        try:
            found = reading.strict(cls, {key: one for key, one in value.items() if key not in derived})
        except reading.ShapeError as error:
            raise UserError(f"plan: {error}; {advice}") from None
        for key, expected in found._derived().items():
            if key not in value or plain(value[key]) != expected:
                what = f"{key} that differs from the rest of it" if key in value else f"no key {key}"
                raise UserError(f"plan: found {what}, expected {one_line(repr(expected), 80)}; {advice}")
        return found

    @classmethod
    def of_record(cls, value: Any) -> Plan:
        """Return the plan in a release's record, which another version of this project may have written.

        Reading never fails: a key that is missing or of another type becomes None or empty (see
        :func:`minimax_metal.plan.reading.lenient`). A unit without a name is not one.
        """
        found = reading.lenient(cls, value if isinstance(value, Mapping) else {})
        return replace(found, services=tuple(one for one in found.services if one.unit))

    def summary(self) -> dict[str, Any]:
        """Return the flat view for ``metal plan --json``: one object of scalars and short lists."""
        model, gpus, spread = self.model, self.gpus, self.parallelism
        return {
            "host": self.host,
            "fits": self.fits,
            "model": model.name if model else None,
            "format": model.format if model else None,
            "gpu": gpus.model if gpus else None,
            "gpu_count": gpus.count if gpus else None,
            "refusals": plain(self.refusals),
            "accepted": plain(self.accepted),
            "warnings": plain(self.warnings),
            "differences": plain(self.differences),
            "profile": self.profile,
            "tp": spread.tp if spread else None,
            "ep": spread.ep if spread else None,
            "replicas": spread.replicas if spread else None,
            "layouts": plain(self.layouts),
            "max_running_requests": self.limits.max_running_requests if self.limits else None,
            "max_queued_requests": self.limits.max_queued_requests if self.limits else None,
            "weight": self.limits.weight if self.limits else None,
            "weights_bytes": self.capacity.weights_bytes if self.capacity else None,
            "kv_tokens": self.capacity.kv_tokens if self.capacity else None,
            "max_sequence": self.capacity.max_sequence if self.capacity else None,
            "download_bytes": model.bytes if model else None,
            "engine": self.engine.release if self.engine else None,
            "python": self.engine.python if self.engine else None,
            "driver_branch": self.driver.branch if self.driver else None,
            "cuda": self.cuda.version if self.cuda else None,
            "argv": list(self.service.argv) if self.service else [],
            "env": dict(self.service.environment) if self.service else {},
        }


def plain(value: Any) -> Any:
    """Return dataclasses, tuples and mappings as dictionaries and lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value

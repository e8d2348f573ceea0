"""What a plan is: frozen dataclasses that say everything that was decided for one host.

Units: ``*_bytes`` are bytes, ``*_seconds`` seconds, ``kv_tokens`` tokens over all sequences together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from minimax_metal.common.errors import UserError
from minimax_metal.common.text import one_line
from minimax_metal.plan import reading

SCHEMA = 1


@dataclass(frozen=True)
class Refusal:
    """A reason why a host can't serve what was asked; lifted only by naming its code."""

    code: str
    found: str
    needed: str
    remedy: str

    def line(self, host: str) -> str:
        """One line for people: host, code, found, needed, what to do."""
        return f"{host}: {self.code}: found {self.found}; needed {self.needed}; {self.remedy}"


@dataclass(frozen=True)
class Notice:
    """A warning: the plan goes on, on thin evidence or with something worth knowing."""

    code: str
    message: str


@dataclass(frozen=True)
class Difference:
    """Where the plan leaves the vendor's guide, and why."""

    what: str
    guide: str
    here: str
    reason: str


@dataclass(frozen=True)
class PlatformPlan:
    """The host's distribution."""

    slug: str
    distribution: str
    version: str
    codename: str
    python: str
    architecture: str


@dataclass(frozen=True)
class ModelPlan:
    """What is served."""

    name: str
    format: str
    served_name: str
    repositories: Mapping[str, str]
    revision: str
    path: str
    bytes: int
    files: int
    modalities: tuple[str, ...]
    max_sequence: int
    max_output: int | None
    trust_remote_code: bool
    licence: str
    sampling: Mapping[str, Any] | None
    architectures: tuple[str, ...] = ()
    """What ``config.json`` has to name, any of them."""


@dataclass(frozen=True)
class WeightsSource:
    """One place to pull from; tried in the order of the list."""

    kind: str
    endpoint: str | None
    repository: str
    revision: str
    path: str | None


@dataclass(frozen=True)
class WeightsPlan:
    """What is pulled, and from where."""

    bytes: int
    instance: str
    """Name of the pull's unit, ``metal-weights@<instance>``: one for all replicas."""
    sources: tuple[WeightsSource, ...]
    adopt: tuple[str, ...] = ()
    """Directories on the host that may hold the files already: verified and linked instead of fetched."""


@dataclass(frozen=True)
class DraftPlan:
    """A draft for speculative decoding that is a repository of its own, pulled beside the model."""

    name: str
    repositories: Mapping[str, str]
    revision: str
    path: str
    bytes: int
    licence: str
    instance: str
    """Name of its pull's unit, ``metal-weights@<instance>``."""
    sources: tuple[WeightsSource, ...]


@dataclass(frozen=True)
class InterconnectPlan:
    """What links the GPUs, as the catalogue knows it; bandwidths are bytes a second."""

    kind: str
    nvlinks: int | None
    """NVLinks of one GPU."""
    bandwidth: int | None
    """All of them together, one way."""
    bandwidth_source: str | None
    all_reduce_bandwidth: Mapping[int, int]
    """GPU count to the bus bandwidth of an all-reduce that was published for it."""
    all_reduce_source: Mapping[int, str]


@dataclass(frozen=True)
class GpusPlan:
    """The GPUs of the host that are used."""

    model: str
    name: str
    count: int
    memory_bytes: int
    nvswitch: bool
    indices: tuple[int, ...]
    compute_capability: str
    interconnect: InterconnectPlan | None
    """None for a GPU that the catalogue does not know."""


@dataclass(frozen=True)
class ParallelismPlan:
    """Spread of one replica, and how many there are."""

    tp: int
    ep: int
    replicas: int


@dataclass(frozen=True)
class ExtraPackage:
    """A wheel on the controller that is installed after the lock."""

    path: str
    sha256: str


@dataclass(frozen=True)
class OriginsPlan:
    """Where things come from in the end. None: from where the host, or who fetches for it, is set to."""

    package_index: str | None
    python: str
    vendor: str
    distribution: str | None
    weights: tuple[str, ...]
    """What ``metal_weights_source`` is by default, none for the setting's own."""


@dataclass(frozen=True)
class MirrorsPlan:
    """What the host asks: the origins, the fleet's cache in front of them, or a bundle that replaces them."""

    cache_url: str | None
    bundle_url: str | None
    package_index_url: str | None
    python_url: str | None
    vendor_url: str
    distribution_url: str | None
    """None: the archives of the host's own sources, through the cache where there is one."""
    direct_hosts: tuple[str, ...]
    """Hosts of the fleet's own, which are asked without a proxy."""
    stale_lists: bool
    """Whether package lists count that are past their time: a bundle is as old as it is."""
    origins: OriginsPlan


@dataclass(frozen=True)
class HostToolsPlan:
    """The environment of this package on the host."""

    python: str
    uv_environment: Mapping[str, str]
    pip_environment: Mapping[str, str]
    """What pip is told, which brings uv."""


@dataclass(frozen=True)
class EnginePlan:
    """The engine and its environment."""

    release: str
    python: str
    managed_python: bool
    """Whether uv brings that Python, because the distribution has another one."""
    lock_file: str | None
    lock_sha256: str | None
    digest: str
    environment: str
    extra_packages: tuple[ExtraPackage, ...]
    uv_environment: Mapping[str, str]
    """What uv is told: whether it may bring a Python, from where, and the package index."""


@dataclass(frozen=True)
class DriverPlan:
    """The NVIDIA driver."""

    branch: str
    minimum: str
    open_modules: bool
    fabric_manager: bool
    repository_slug: str
    repository_url: str
    repository_key: str
    """File name, in the repository, of the key that signs it."""
    repository_key_fingerprint: str
    pinning_package: str | None
    packages: tuple[str, ...]
    services: tuple[str, ...]
    held: tuple[str, ...]


@dataclass(frozen=True)
class CudaPlan:
    """The CUDA toolkit the engine compiles kernels with."""

    version: str
    home: str
    packages: tuple[str, ...]
    build_packages: tuple[str, ...]
    compat_library_path: str | None
    """Directory of CUDA's forward-compatibility libraries, where an older driver is bridged."""


@dataclass(frozen=True)
class LimitsPlan:
    """How many requests one replica takes at a time, and its weight among replicas of the same model."""

    max_running_requests: int | None
    max_queued_requests: int | None
    weight: int


@dataclass(frozen=True)
class LayoutPlan:
    """One way to share out the host's GPUs, and what it would hold."""

    name: str
    replicas: int
    tp: int | None
    ep: int | None
    fits: bool
    kv_tokens: int | None
    kv_tokens_per_replica: int | None


@dataclass(frozen=True)
class ServicePlan:
    """One unit on the host."""

    instance: str
    unit: str
    host: str
    port: int
    url: str
    """Where the host itself reaches the endpoint, as a client would: under TLS by the certificate's name."""
    worker_url: str
    """Where a gateway reaches the endpoint; also its name among the gateway's workers."""
    ready_url: str
    """Health URL at an address of the host; under TLS whoever asks it there doesn't check the certificate."""
    keys_directory: str | None
    """Directory of the key files, none where the endpoint wants no key."""
    credentials: Mapping[str, str]
    """Files of root's that systemd hands to the unit, by the name they get."""
    check_arguments: tuple[str, ...]
    """What ``metal check`` needs to be let in."""
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    gpu_indices: tuple[int, ...]
    start_timeout_seconds: int
    stop_timeout_seconds: int
    nofile: int
    user: str
    group: str
    limits: LimitsPlan
    ip_allow: tuple[str, ...] = ()
    ip_deny: tuple[str, ...] = ()
    """Networks that the unit may and may not exchange packets with; what is allowed wins."""
    proves: bool = False
    """Whether it proves to gateways that it is the engine (``/metal/identity``)."""
    memory_max_bytes: int | None = None
    """Memory that the unit may take; none where the host's is not known."""


@dataclass(frozen=True)
class TlsPlan:
    """A certificate of the fleet's own authority, which the controller makes (``metal_tls: fleet``)."""

    directory: str
    """Directory on the host: ``tls.crt``, ``tls.key`` and ``ca.crt``."""
    names: tuple[str, ...]
    """Names and addresses that the certificate is for."""


@dataclass(frozen=True)
class FirewallPlan:
    """Who may reach the endpoints' ports; everybody else is kept from these ports and from no other."""

    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]
    ports: tuple[int, ...]


@dataclass(frozen=True)
class KernelCachePlan:
    """Where compiled kernels are kept: one directory for each engine release, GPU and driver branch."""

    key: str
    path: str


@dataclass(frozen=True)
class PrecompilePlan:
    """A run of the engine's own DeepGEMM compiler before the first start."""

    unit: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    user: str
    group: str
    cache: str
    """Directory that it compiles into; the engine's kernel cache gets a copy."""
    marker: str
    """File in the engine's kernel cache that says it is done for this command."""
    timeout_seconds: int


@dataclass(frozen=True)
class PageCachePlan:
    """Weights that are read into the host's page cache before the engine asks for them."""

    unit: str
    path: str
    threads: int


@dataclass(frozen=True)
class CapacityPlan:
    """Memory of all replicas together; ``kv_tokens`` is none where KV bytes per token are not known."""

    kv_tokens: int | None
    kv_tokens_per_replica: int | None
    kv_bytes_per_token: int | None
    kv_dtype: str
    max_sequence: int
    weights_bytes: int
    total_bytes: int
    static_bytes: int
    mem_fraction_static: float


@dataclass(frozen=True)
class DiskPlan:
    """Room the weights want."""

    needed_bytes: int
    path: str


@dataclass(frozen=True)
class ChecksPlan:
    """What the post-check asks for."""

    model: str
    image: bool
    tool_calls: bool
    reasoning_parser: str
    tool_parser: str
    arguments: tuple[str, ...]
    """What ``metal check`` is told of the model."""


@dataclass(frozen=True)
class Plan:
    """Everything decided for one host. Parts that could not be decided are none, and a refusal says why."""

    host: str
    profile: str
    refusals: tuple[Refusal, ...]
    accepted: tuple[Refusal, ...]
    """Refusals that ``metal_accept_refusals`` lifted; kept for the release record."""
    warnings: tuple[Notice, ...]
    differences: tuple[Difference, ...]
    platform: PlatformPlan | None
    model: ModelPlan | None
    weights: WeightsPlan | None
    draft: DraftPlan | None
    """None where no draft of its own repository is asked for."""
    gpus: GpusPlan | None
    parallelism: ParallelismPlan | None
    mirrors: MirrorsPlan | None
    """Where the host fetches from."""
    host_tools: HostToolsPlan | None
    engine: EnginePlan | None
    driver: DriverPlan | None
    cuda: CudaPlan | None
    tls: TlsPlan | None
    """None where the fleet's own authority is not used."""
    services: tuple[ServicePlan, ...]
    """One unit per replica, in the order of their ports; ``service`` is the first of them."""
    firewall: FirewallPlan | None
    """None where the endpoints are open to every address."""
    kernel_cache: KernelCachePlan | None
    precompile: PrecompilePlan | None
    """None where nothing is compiled by DeepGEMM."""
    page_cache: PageCachePlan | None
    """None where the weights would push out what the host needs its memory for."""
    capacity: CapacityPlan | None
    limits: LimitsPlan | None
    layouts: tuple[LayoutPlan, ...]
    """Every layout the host's GPUs allow; the plan takes the one of ``metal_layout``."""
    disk: DiskPlan | None
    checks: ChecksPlan | None

    @property
    def service(self) -> ServicePlan | None:
        """The first (and mostly only) unit."""
        return self.services[0] if self.services else None

    @property
    def fits(self) -> bool:
        """Whether nothing stands against it."""
        return not self.refusals

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain JSON-able data, every key always there."""
        parts = {field.name: plain(getattr(self, field.name)) for field in fields(self)}
        return self._derived() | parts

    def _derived(self) -> dict[str, Any]:
        """What its dictionary says besides the fields."""
        return {"schema": SCHEMA, "host": self.host, "fits": self.fits, "service": plain(self.service)}

    @classmethod
    def from_dict(cls, value: Any) -> Plan:
        """Return the plan that :meth:`as_dict` of this version wrote, or JSON of it.

        Raises:
            UserError: it is not such a plan: a key is unknown or missing, a value is of another type, or what
                is said twice differs. One line that names the key.
        """
        advice = "pass a plan that this version made"
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

        Whatever it is, it is read: what it lacks or has in another type is none or empty here (see
        :func:`minimax_metal.plan.reading.lenient`). A unit without a name is not one.
        """
        found = reading.lenient(cls, value if isinstance(value, Mapping) else {})
        return replace(found, services=tuple(one for one in found.services if one.unit))

    def summary(self) -> dict[str, Any]:
        """The flat view of ``metal plan --json``: one object of scalars and short lists."""
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
    """Dataclasses, tuples and mappings as dictionaries and lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value

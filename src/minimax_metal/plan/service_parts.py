"""Parts of a plan: the engine's units, who reaches them, and what they hold and need. Sizes are bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class LimitsPlan:
    """How many requests one replica runs at a time, and its weight among replicas of the same model."""

    max_running_requests: int | None
    max_queued_requests: int | None
    weight: int


@dataclass(frozen=True)
class LayoutPlan:
    """One way to divide the host's GPUs, with its capacity."""

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
    """Where the host itself reaches the endpoint, like a client: under TLS by the certificate's name."""
    worker_url: str
    """Where a gateway reaches the endpoint; also its name among the gateway's workers."""
    ready_url: str
    """Health URL at an address of the host; under TLS, checks from the host don't verify the certificate."""
    keys_directory: str | None
    """Directory of the key files, None if the endpoint needs no key."""
    credentials: Mapping[str, str]
    """Files of root's that systemd passes to the unit, by credential name."""
    check_arguments: tuple[str, ...]
    """What ``metal check`` needs to connect."""
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
    """Networks that the unit may and may not communicate with; allowed ones take precedence."""
    proves: bool = False
    """Whether it proves to gateways that it is the engine (``/metal/identity``)."""
    memory_max_bytes: int | None = None
    """Maximum memory of the unit; None if the host's is unknown."""


@dataclass(frozen=True)
class TlsPlan:
    """A certificate from the fleet's own CA, which the controller creates (``metal_tls: fleet``)."""

    directory: str
    """Directory on the host: ``tls.crt``, ``tls.key`` and ``ca.crt``."""
    names: tuple[str, ...]
    """Names and addresses that the certificate is for."""


@dataclass(frozen=True)
class FirewallPlan:
    """Networks that may reach the endpoints' ports; others are kept from these ports only."""

    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]
    ports: tuple[int, ...]


@dataclass(frozen=True)
class KernelCachePlan:
    """Where compiled kernels are cached: one directory per engine release, GPU and driver branch."""

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
    """Directory that it compiles into; the results are copied to the engine's kernel cache."""
    marker: str
    """Marker file in the engine's kernel cache for this command."""
    timeout_seconds: int


@dataclass(frozen=True)
class PageCachePlan:
    """Weights to read into the host's page cache before the engine needs them."""

    unit: str
    path: str
    threads: int


@dataclass(frozen=True)
class CapacityPlan:
    """Memory of all replicas together; ``kv_tokens`` is None if KV bytes per token are unknown."""

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
    """Space that the weights need."""

    needed_bytes: int
    path: str


@dataclass(frozen=True)
class ChecksPlan:
    """What the post-check sends."""

    model: str
    image: bool
    tool_calls: bool
    reasoning_parser: str
    tool_parser: str
    arguments: tuple[str, ...]
    """Properties of the model for ``metal check``."""

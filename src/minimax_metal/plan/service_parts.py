"""Parts of a plan: the engine's units, who reaches them, and what they hold and need. Sizes are bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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

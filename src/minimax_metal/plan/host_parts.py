"""Parts of a plan: what the host is, what it is given, and where that comes from. Sizes are bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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

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
    """Names of which ``config.json`` must contain one."""


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
    """The weights to pull, and their sources."""

    bytes: int
    instance: str
    """Name of the pull's unit, ``metal-weights@<instance>``: one for all replicas."""
    sources: tuple[WeightsSource, ...]
    adopt: tuple[str, ...] = ()
    """Directories on the host that may already have the files: verified and linked instead of fetched."""


@dataclass(frozen=True)
class DraftPlan:
    """A draft for speculative decoding in its own repository, pulled beside the model."""

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
    """Links between the GPUs, by the catalogue; bandwidths are bytes per second."""

    kind: str
    nvlinks: int | None
    """NVLinks of one GPU."""
    bandwidth: int | None
    """All of them together, one direction."""
    bandwidth_source: str | None
    all_reduce_bandwidth: Mapping[int, int]
    """GPU count to the published bus bandwidth of an all-reduce."""
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
    """None for a GPU that is not in the catalogue."""


@dataclass(frozen=True)
class ParallelismPlan:
    """Spread of one replica, and the number of replicas."""

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
    """Origins of downloads. None: as configured on the host, or on the machine that fetches for it."""

    package_index: str | None
    python: str
    vendor: str
    distribution: str | None
    weights: tuple[str, ...]
    """Default of ``metal_weights_source``, None for the setting's own."""


@dataclass(frozen=True)
class MirrorsPlan:
    """Addresses that the host uses: the origins, the fleet's cache in front of them, or a bundle instead."""

    cache_url: str | None
    bundle_url: str | None
    package_index_url: str | None
    python_url: str | None
    vendor_url: str
    distribution_url: str | None
    """None: the archives in the host's own sources, through the cache if there is one."""
    direct_hosts: tuple[str, ...]
    """The fleet's own hosts, which are contacted without a proxy."""
    stale_lists: bool
    """Whether expired package lists are accepted: a bundle does not get newer."""
    origins: OriginsPlan


@dataclass(frozen=True)
class HostToolsPlan:
    """This package's environment on the host."""

    python: str
    uv_environment: Mapping[str, str]
    pip_environment: Mapping[str, str]
    """Settings for pip, which installs uv."""


@dataclass(frozen=True)
class EnginePlan:
    """The engine and its environment."""

    release: str
    python: str
    managed_python: bool
    """Whether uv installs that Python, because the distribution has another one."""
    lock_file: str | None
    lock_sha256: str | None
    digest: str
    environment: str
    extra_packages: tuple[ExtraPackage, ...]
    uv_environment: Mapping[str, str]
    """Settings for uv: whether it may install a Python, from where, and the package index."""


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
    """File name, in the repository, of its signing key."""
    repository_key_fingerprint: str
    pinning_package: str | None
    packages: tuple[str, ...]
    services: tuple[str, ...]
    held: tuple[str, ...]


@dataclass(frozen=True)
class CudaPlan:
    """The CUDA toolkit with which the engine compiles kernels."""

    version: str
    home: str
    packages: tuple[str, ...]
    build_packages: tuple[str, ...]
    compat_library_path: str | None
    """Directory of CUDA's forward-compatibility libraries, if they bridge an older driver."""

"""Schema of the catalogue's files: plain frozen dataclasses, so that planning does not need pydantic.

:mod:`minimax_metal.catalog.validate` lets pydantic check files and overlays against these annotations,
including their limits. Nothing here imports it: that takes longer than a whole plan.

Units: bytes are bytes, times are seconds, capabilities are strings such as ``"9.0"``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError, dataclass, field, fields
from datetime import date
from typing import Annotated, Any, ClassVar, Literal, TypeVar, dataclass_transform

T = TypeVar("T")

Confidence = Literal["V", "M", "R", "C", "U"]
"""V read in a source, wheel or guide; M measured; R reported, not reproduced; C computed; U the user's."""


class Limits:
    """Limits of a value, named as in pydantic: ``gt``, ``lt``, ``min_length``. Validation applies them."""

    def __init__(self, **limits: float) -> None:
        self.limits = limits

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Return the value's schema with the limits."""
        return {**handler(source), **self.limits}


NOT_EMPTY = Limits(min_length=1)
Positive = Annotated[int, Limits(gt=0)]


class Entry:
    """Base of all entries: read-only, compared by value, unknown keys are refused."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    written: frozenset[str] = frozenset()
    """Fields that the files or an overlay set, even to their defaults. Not a field, and not compared."""

    def __init__(self, **values: Any) -> None:
        for one in fields(self):  # type: ignore[arg-type]
            if one.name in values:
                continue
            if one.default is not MISSING:
                self.__dict__[one.name] = one.default
            elif one.default_factory is not MISSING:
                self.__dict__[one.name] = one.default_factory()
            else:
                raise TypeError(f"{type(self).__name__} needs {one.name}")
        if unknown := values.keys() - type(self).__dataclass_fields__.keys():  # type: ignore[attr-defined]
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        self.__dict__.update(values, written=frozenset(values))

    def __setattr__(self, name: str, value: Any) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def _values(self) -> tuple[Any, ...]:
        return tuple(self.__dict__[one.name] for one in fields(self))  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        inside = ", ".join(f"{one.name}={getattr(self, one.name)!r}" for one in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({inside})"


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=True, field_specifiers=(field,))
def entry(cls: type[T]) -> type[T]:
    """Make a class a dataclass with :class:`Entry`'s methods: compiling them for each class takes 20 ms."""
    return dataclass(init=False, repr=False, eq=False, match_args=False, kw_only=True)(cls)


@entry
class Figure(Entry):
    """A number with its source.

    In a file it is ``{value: 253952, confidence: C, source: "2 * 62 * ..."}``; a bare number, which only
    overlays use, is the user's own.
    """

    value: int
    confidence: Confidence
    source: Annotated[str, NOT_EMPTY]
    read: date | None = None
    """Date on which the source was read, if recorded."""


@entry
class Parsers(Entry):
    """Names of the engine's parsers for one model."""

    tool: str
    reasoning: str


@entry
class Parallelism(Entry):
    """How one replica is spread: tensor and expert parallel sizes."""

    tp: Positive
    ep: Positive


@entry
class Sampling(Entry):
    """Sampling the model's publisher recommends."""

    temperature: float
    top_p: float
    top_k: int
    source: str


@entry
class Generations(Entry):
    """GPU generations (compute capabilities) that can run a format."""

    proven: tuple[str, ...]
    unproven: dict[str, str] = field(default_factory=dict)
    """Capability to the reason why it is unproven."""
    needs: dict[str, str] = field(default_factory=dict)
    """Capability to a requirement of the engine that the plan can't install: refused as ``engine-kernels``.
    """


@entry
class Reasoning(Entry):
    """How a model reasons before it answers."""

    always: bool
    """Whether requests can't turn it off."""
    efforts: tuple[str, ...] = ()
    """Values of ``reasoning_effort`` that it supports, lowest first."""
    default_effort: str | None = None
    source: str


@entry
class Draft(Entry):
    """A draft for speculative decoding that is part of the checkpoint's own files."""

    directory: str
    """Its directory in the repository, where the engine looks for it."""
    bytes: Figure
    """Its share of the checkpoint's bytes."""
    generations: tuple[str, ...]
    """Compute capabilities on which the engine supports it."""
    arguments: tuple[str, ...]
    algorithms: tuple[str, ...]
    """Values of ``--speculative-algorithm`` that the engine accepts here, under the same conditions."""
    environment: dict[str, str] = field(default_factory=dict)
    constraints: str
    source: str


@entry
class SeparateDraft(Entry):
    """A draft for speculative decoding in a repository of its own."""

    name: str
    repositories: dict[Literal["huggingface", "modelscope"], str]
    revision: str | None = None
    """None if no source gives one: the user sets it."""
    revision_source: str | None = None
    licence: str
    bytes: Figure
    """Size of its files, and approximately of its weights in memory."""
    kv_bytes_per_token: Figure | None = None
    """KV cache per token at bfloat16, each head once."""
    models: Annotated[tuple[str, ...], NOT_EMPTY]
    generations: tuple[str, ...]
    """Compute capabilities on which the engine supports it."""
    minimum_engine: str
    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    constraints: Annotated[str, NOT_EMPTY]
    source: Annotated[str, NOT_EMPTY]


@entry
class Checkpoint(Entry):
    """One model in one checkpoint format: family, model and format entries merged in that order."""

    # Identity
    name: str
    format: str
    family: str
    aliases: tuple[str, ...] = ()
    default_format: str | None = None
    preference: int = 0
    repositories: dict[Literal["huggingface", "modelscope"], str]
    revision: str | None = None
    revision_source: str | None = None
    revisions: dict[Literal["huggingface", "modelscope"], str] = field(default_factory=dict)
    served_name: str | None = None
    licence: str
    trust_remote_code: bool
    modalities: tuple[Literal["text", "image"], ...]
    notes: tuple[str, ...] = ()
    # Size
    bytes: Figure
    files: Figure
    weight_memory_bytes: Figure
    # Shape
    architectures: Annotated[tuple[str, ...], NOT_EMPTY]
    layers: Figure
    attention_heads: Figure
    kv_heads: Figure
    experts: Figure
    moe_intermediate: Figure
    moe_block: Figure | None = None
    """Block size of quantised expert weights: ``moe_intermediate / (tp / ep)`` must be a multiple of it."""
    kv_bytes_per_token: Figure | None = None
    """KV cache per token over all layers at bfloat16, each head once; for models without ``head_dim``."""
    kv_dtypes: dict[str, float] = field(default_factory=lambda: {"auto": 1.0, "bfloat16": 1.0})
    """Engine's ``--kv-cache-dtype`` to its size relative to bfloat16."""
    head_dim: Figure | None = None
    sparse_layers: Figure | None = None
    """Layers with sparse attention: each stores index keys in addition to K and V."""
    index_dim: Figure | None = None
    """Width of one index key; there is one head of them, replicated on every GPU."""
    packed_kv_generations: tuple[str, ...] = ()
    """Compute capabilities on which the engine keeps the cache in a packed NVFP4 pool."""
    kv_page_size: Positive = 1
    """Tokens per page of the cache; the engine's own choice for the model."""
    max_sequence: Figure
    max_output: Figure | None = None
    reasoning: Reasoning | None = None
    draft: Draft | None = None
    # How to run it
    minimum_engine: str
    minimum_engine_source: str | None = None
    parsers: Parsers
    guide_parsers: Parsers
    parallelism: dict[int, Parallelism]
    """GPU count to the spread of the guides."""
    guide_flags: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """GPU count to the flags of the guide's command, in the guide's order."""
    generations: Generations
    mem_fraction_static: float = 0.85
    mem_fractions: dict[str, float] = field(default_factory=dict)
    """GPU model to the fraction reported to work there, if it is not ``mem_fraction_static``."""
    engine_args: tuple[str, ...] = ()
    """Flags this format needs in addition to the guide's."""
    sampling: Sampling | None = None
    start_timeout_seconds: Positive = 3600
    warnings: dict[str, str] = field(default_factory=dict)
    """Code to a sentence that is part of every plan for this checkpoint."""
    sources: dict[str, str] = field(default_factory=dict)
    """Key of this entry to its source, for keys without a source of their own."""

    @property
    def published_name(self) -> str:
        """The name clients use, the same for all formats: ``served_name``, which the loader fills in."""
        return self.served_name or self.repositories["huggingface"]


@entry
class Gpu(Entry):
    """One GPU model."""

    name: str
    aliases: tuple[str, ...] = ()
    smi_pattern: str
    """Regular expression that matches the whole name that nvidia-smi prints."""
    pci_ids: dict[str, str] = field(default_factory=dict)
    """PCI device id ("0x2329") to its source; two GPUs that differ in memory may share an id."""
    memory_bytes: Figure | None = None
    """None if no source states it: then a running driver must."""
    compute_capability: str
    capability_source: str
    nvlink: Literal["none", "bridge", "nvswitch", "nvlink5-switch", "nvl72", "unknown"]
    nvswitch_counts: tuple[int, ...] = ()
    """GPU counts per board on which NVSwitches sit."""
    nvlinks: Figure | None = None
    """NVLinks per GPU; None if it has none, or if cards are bridged in pairs."""
    nvlink_bandwidth: Figure | None = None
    """All NVLinks of one GPU together, one direction, in bytes per second."""
    all_reduce_bandwidth: dict[int, Figure] = field(default_factory=dict)
    """GPU count to the published bus bandwidth of NCCL's all-reduce (bytes/s, nccl-tests' busbw)."""
    open_modules: Literal["required", "supported", "unsupported"]
    architecture: Literal["x86_64", "aarch64"] = "x86_64"
    notes: tuple[str, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)
    """Key of this entry to its source, for keys without a source of their own."""


@entry
class EngineRelease(Entry):
    """One SGLang release."""

    release: str
    python: tuple[str, ...]
    """Python minor versions this release can run on, best first."""
    torch: str
    cuda: str
    entrypoints: tuple[Literal["sglang.launch_server", "sglang serve"], ...]
    tool_parsers: tuple[str, ...]
    reasoning_parsers: tuple[str, ...]
    architectures: tuple[str, ...]
    locks: dict[str, str] = field(default_factory=dict)
    """Python minor version to the lock file's name in ``locks/``; in an overlay, an absolute path."""
    plugins: bool = False
    """Whether it loads plug-ins (``sglang.srt.plugins``), with which the guard hides keys."""
    deep_gemm_precompile: bool = False
    """Whether it has ``sglang.compile_deep_gemm``."""
    flashinfer_cubins: bool = False
    """Whether its locks include ``flashinfer-cubin``: kernels that FlashInfer otherwise downloads."""
    source: str
    notes: tuple[str, ...] = ()


@entry
class Cuda(Entry):
    """One CUDA version: the driver it needs, its path, and its packages."""

    version: str
    minimum_driver: str
    home: str
    packages: tuple[str, ...]
    compat_package: str | None = None
    compat_branches: tuple[str, ...] = ()
    source: str


@entry
class DriverPackages(Entry):
    """Package names of the driver on one platform."""

    pinning: str | None
    """With ``{branch}``; installed before all others."""
    open: tuple[str, ...]
    proprietary: tuple[str, ...]
    fabric_manager: tuple[str, ...]
    nvlink5: tuple[str, ...] = ()
    """In addition to the fabric manager on boards with NVLink-5 switches."""
    imex: tuple[str, ...] = ()
    """On compute trays of an NVL72 rack."""
    services: tuple[str, ...]
    fabric_manager_services: tuple[str, ...]
    imex_services: tuple[str, ...] = ()
    source: str


@entry
class DriverPlace(Entry):
    """Evidence that a platform's repository carries a branch; C: inferred, not checked."""

    confidence: Confidence
    source: Annotated[str, NOT_EMPTY]


@entry
class DriverBranch(Entry):
    """One branch of NVIDIA's driver, and its support dates."""

    branch: str
    kind: Literal["production", "lts", "new-feature"]
    end: date | None = None
    """The last day of support; None if NVIDIA states none."""
    listed: bool = True
    """Whether NVIDIA's table lists it; a branch that is not listed and has no end date has ended."""
    modules: Annotated[tuple[Literal["open", "proprietary"], ...], NOT_EMPTY]
    """Flavours of kernel modules that it has."""
    platforms: dict[str, DriverPlace] = field(default_factory=dict)
    """Platforms whose repository carries it."""
    confidence: Confidence
    source: Annotated[str, NOT_EMPTY]
    read: date
    """Date on which the source was read."""


@entry
class RepositoryKey(Entry):
    """Key that signs a package repository."""

    file: str
    """Its file name in the repository."""
    fingerprint: str
    source: str


@entry
class Platform(Entry):
    """One distribution release."""

    slug: str
    distribution: str
    version: str
    codename: str
    python: str
    repository_slug: str
    repository_key: RepositoryKey
    build_packages: tuple[str, ...]
    kernel_headers: tuple[str, ...]
    """Packages from which DKMS builds the driver's modules; they follow the kernel, so they are never held.
    """
    driver: DriverPackages
    driver_before: dict[str, DriverPackages] = field(default_factory=dict)
    """A branch to the names used for earlier branches."""
    toolkits: tuple[str, ...]
    """CUDA toolkits in the repository, oldest first."""
    source: str


@entry
class Source(Entry):
    """Where weights may come from."""

    endpoint: str
    protocol: Literal["huggingface", "modelscope"]
    revision: str | None = None
    """Revision to request if the catalogue pins none."""


@entry
class Mirrors(Entry):
    """Mirrors for large downloads: a preset of ``metal_mirrors``. None: unchanged from the hosts' own."""

    package_index: str | None = None
    python: str | None = None
    """Like uv's ``UV_PYTHON_INSTALL_MIRROR``."""
    vendor: str | None = None
    """Directory of NVIDIA's package repositories, one per distribution."""
    distribution: str | None = None
    """Directory with ``debian``, ``debian-security`` and ``ubuntu``."""
    weights: tuple[str, ...] = ()
    """Default of ``metal_weights_source``."""
    source: str = "an overlay"


@entry
class GatewayRelease(Entry):
    """One release of smg."""

    release: str
    python: tuple[str, ...]
    """Python minor versions it runs on, best first."""
    locks: dict[str, str]
    """Like an engine's."""
    source: str


@entry
class RecipeWords(Entry):
    """One flag of a recipe, with the engine releases that have it."""

    words: Annotated[tuple[str, ...], NOT_EMPTY]
    since: str | None = None
    before: str | None = None
    """First release without it."""
    instead: str | None = None
    """The flag that replaces it in releases that don't have it."""
    source: Annotated[str, NOT_EMPTY]


@entry
class RecipeVariable(Entry):
    """One environment variable of a recipe, like :class:`RecipeWords`."""

    name: str
    text: str
    since: str | None = None
    before: str | None = None
    source: Annotated[str, NOT_EMPTY]


@entry
class Recipe(Entry):
    """A published recipe: what ``metal_profile: fast`` adds if all its conditions hold."""

    models: tuple[str, ...]
    formats: tuple[str, ...]
    gpus: tuple[str, ...]
    tp: tuple[Positive, ...]
    """GPUs per replica."""
    aims: tuple[Literal["latency", "throughput", "long-context"], ...]
    ep: Positive | None = None
    mem_fraction_static: Annotated[float, Limits(gt=0, lt=1)] | None = None
    kv_cache_dtype: str | None = None
    args: tuple[RecipeWords, ...] = ()
    environment: tuple[RecipeVariable, ...] = ()
    source: Annotated[str, NOT_EMPTY]
    read: date
    """Date on which the source was read."""


@entry
class Vendor(Entry):
    """A vendor of accelerators that this project does not support."""

    name: str
    pci_vendor: str
    pci_classes: Annotated[tuple[str, ...], NOT_EMPTY]
    """As sysfs prints them, by their first digits."""
    names: str
    """Regular expression for values of ``--gpu``, in lower case."""
    offers: Annotated[str, NOT_EMPTY]
    """What SGLang offers for it."""
    source: Annotated[str, NOT_EMPTY]


@entry
class Licence(Entry):
    """A licence of weights and a short summary of what it restricts; the licence text is binding."""

    name: str
    title: Annotated[str, NOT_EMPTY]
    restricts: str | None = None
    """None if there are no restrictions to report."""
    cards: tuple[str, ...] = ()
    """Names that model cards on a hub use for it, in addition to ``name``."""
    source: Annotated[str, NOT_EMPTY]


@entry
class FaultPlace(Entry):
    """Where a fault occurs; all given conditions must hold."""

    families: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    engine_from: str | None = None
    engine_before: str | None = None
    tp: tuple[int, ...] = ()
    ep: tuple[int, ...] = ()
    arguments: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Flag of the launch command to the affected values; ``default``: not set, ``any``: set to any value."""


@entry
class Fault(Entry):
    """A publicly reported bug."""

    name: str
    code: str | None = None
    """Code to show; ``fault-<name>`` if there is none."""
    what: Annotated[str, NOT_EMPTY]
    where: FaultPlace
    severity: Literal["warning", "refusal"]
    confidence: Confidence
    source: Annotated[str, NOT_EMPTY]
    instead: Annotated[str, NOT_EMPTY]


@entry
class Catalog(Entry):
    """Everything, validated. Keys are the names users write."""

    models: dict[str, dict[str, Checkpoint]]
    """Model name to format to checkpoint."""
    gpus: dict[str, Gpu]
    engines: dict[str, EngineRelease]
    default_engine: str
    gateways: dict[str, GatewayRelease]
    default_gateway: str
    cuda: dict[str, Cuda]
    platforms: dict[str, Platform]
    drivers: dict[str, DriverBranch]
    """Branch number to its entry."""
    sources: dict[str, Source]
    mirrors: dict[str, Mirrors]
    recipes: dict[str, Recipe] = field(default_factory=dict)
    """Recipe name to what ``metal_profile: fast`` adds."""
    vendors: dict[str, Vendor] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    drafts: dict[str, SeparateDraft] = field(default_factory=dict)
    licences: dict[str, Licence] = field(default_factory=dict)
    """Licence name as in checkpoints to its entry."""
    lock_sha256: dict[str, str]
    """Lock file name to the sha256 of its contents."""

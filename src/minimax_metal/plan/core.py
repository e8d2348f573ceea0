"""The one function that decides: ``plan(settings, facts)``.

Pure: it reads its arguments (and the packaged catalogue, once per process, when none is given), writes
nothing and asks nobody. Everything that stands against a host is collected, none of it is raised.

Capacity, as the guides compute it: ``(GPUs * memory * mem_fraction_static - weights) / KV bytes per token``.
With the guides' 220 GB of weights read as GiB, which is 6 GiB more than the files hold, this leaves the
CUDA context of each GPU covered.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from minimax_metal.catalog import Catalog, Checkpoint, EngineRelease, Gpu, Platform, packaged_catalog
from minimax_metal.catalog.schema import Parsers
from minimax_metal.plan.argv import launch_arguments, service_environment
from minimax_metal.plan.facts import HostFacts
from minimax_metal.plan.model import (
    CapacityPlan,
    ChecksPlan,
    CudaPlan,
    Difference,
    DiskPlan,
    DriverPlan,
    EnginePlan,
    GpusPlan,
    ModelPlan,
    Notice,
    ParallelismPlan,
    Plan,
    PlatformPlan,
    Refusal,
    ServicePlan,
    WeightsPlan,
    WeightsSource,
)
from minimax_metal.plan.settings import Settings
from minimax_metal.plan.versions import version_key

COUNTS = (4, 8)
"""GPU counts the guides launch on."""
LAYOUTS = {"tp8": (8, 1), "tp4": (4, 1), "2xtp4": (8, 2)}
"""Layout to GPU count and replicas."""
PROFILES = ("default", "guide")
LEAST_KV_TOKENS = 4096
"""Less KV cache than this serves nobody."""
ENGINE_BYTES = 12_000_000_000
"""Room an engine environment wants while it is installed: 9.5 GB measured, and the cache beside it."""
EVERY_ADDRESS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound
NOFILE = 65_536


@dataclass
class _Findings:
    """Collects what stands against the host and what is worth saying."""

    settings: Settings
    refusals: list[Refusal] = field(default_factory=list)
    accepted: list[Refusal] = field(default_factory=list)
    warnings: list[Notice] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)

    def refuse(self, code: str, found: str, needed: str, remedy: str) -> bool:
        """Record a refusal; true when the user accepts it, so that the plan may go on."""
        refusal = Refusal(code=code, found=found, needed=needed, remedy=remedy)
        if code in self.settings.accept_refusals:
            if refusal not in self.accepted:
                self.accepted.append(refusal)
                self.warn(f"accepted-{code}", f"refusal lifted by metal_accept_refusals: found {found}")
            return True
        if refusal not in self.refusals:
            self.refusals.append(refusal)
        return False

    def warn(self, code: str, message: str) -> None:
        notice = Notice(code=code, message=message)
        if notice not in self.warnings:
            self.warnings.append(notice)


@dataclass(frozen=True)
class _Board:
    """The GPUs of a host, known from nvidia-smi or from PCI."""

    gpu: Gpu | None
    name: str
    count: int
    memory_bytes: int
    capability: str
    indices: tuple[int, ...]
    nvswitch: bool

    @property
    def label(self) -> str:
        return self.gpu.name if self.gpu else self.name


@dataclass(frozen=True)
class _Fit:
    """How one checkpoint sits on a board."""

    spread: ParallelismPlan
    capacity: CapacityPlan


def plan(settings: Settings, facts: HostFacts, catalog: Catalog | None = None) -> Plan:
    """Everything that is decided for one host.

    ``settings`` is what the user wrote, ``facts`` what was found; ``catalog`` is the packaged catalogue
    unless an overlay made another. Never raises on facts or figures: reasons against are refusals.
    """
    catalog = catalog or packaged_catalog()
    found = _Findings(settings)
    _check_ranges(settings, found)
    if not facts.reachable:
        found.refuse(
            "unreachable",
            "no answer over SSH",
            "a host that Ansible can reach",
            "check its address, the SSH key and that Python 3 and sudo are there",
        )
    readable = facts.reachable and _check_host(facts, found)
    platform = _platform(facts, catalog, found) if readable else None
    board = _board(facts, catalog, found) if readable else None
    formats = _model(settings, catalog, found)
    release = _release(settings, catalog, found)
    checkpoint = _format(settings, formats, board, found) if formats else None
    fit = _fit(settings, checkpoint, board, found) if checkpoint and board else None
    if checkpoint and board:
        _check_generation(checkpoint, board, found)
    if checkpoint and release:
        _check_engine(checkpoint, release, found)
    model = _model_plan(settings, checkpoint, found) if checkpoint else None
    engine = _engine_plan(settings, release, platform, catalog, found) if release else None
    driver = _driver_plan(settings, facts, release, platform, board, catalog, found) if release else None
    cuda = _cuda_plan(release, platform, catalog) if release else None
    disk = _disk(settings, facts, model, engine, found) if model else None
    parsers = _parsers(settings, checkpoint, release, found) if checkpoint else None
    services: tuple[ServicePlan, ...] = ()
    if checkpoint and model and engine and cuda and parsers and board and fit and release:
        services = _services(settings, checkpoint, model, engine, cuda, parsers, board, fit, release, found)
    return Plan(
        host=settings.host,
        profile=settings.profile,
        refusals=tuple(found.refusals),
        accepted=tuple(found.accepted),
        warnings=tuple(found.warnings),
        differences=tuple(found.differences),
        platform=_platform_plan(platform, facts) if platform else None,
        model=model,
        weights=_weights_plan(settings, checkpoint, model, catalog, found) if checkpoint and model else None,
        gpus=_gpus_plan(board) if board else None,
        parallelism=fit.spread if fit else None,
        engine=engine,
        driver=driver,
        cuda=cuda,
        services=services,
        capacity=fit.capacity if fit else None,
        disk=disk,
        checks=(
            ChecksPlan(
                model=model.served_name,
                image="image" in model.modalities,
                tool_calls=True,
                reasoning_parser=parsers.reasoning,
                tool_parser=parsers.tool,
            )
            if model and parsers
            else None
        ),
    )


# --- what the user wrote ---------------------------------------------------------------------------


def _check_ranges(settings: Settings, found: _Findings) -> None:
    """Values that the engine's own parser lets through."""
    if not 1 <= settings.port <= 65535:
        found.refuse("port", f"metal_port {settings.port}", "1 to 65535", "set metal_port to a free port")
    fraction = settings.mem_fraction_static
    if fraction is not None and not 0.0 < fraction < 1.0:
        found.refuse(
            "mem-fraction",
            f"metal_mem_fraction_static {fraction:g}",
            "more than 0 and less than 1",
            "leave it out, or set what the guide sets: 0.85",
        )
    for name, value in (("metal_tp_size", settings.tp_size), ("metal_ep_size", settings.ep_size)):
        if value is not None and value < 1:
            found.refuse("parallelism", f"{name} {value}", "1 or more", f"leave {name} out")
    if settings.profile not in PROFILES:
        found.refuse(
            "profile",
            f"metal_profile {settings.profile}",
            " or ".join(PROFILES),
            "set one of them, or leave it out",
        )
    for name, seconds in (
        ("metal_start_timeout_seconds", settings.start_timeout_seconds),
        ("metal_stop_timeout_seconds", settings.stop_timeout_seconds),
    ):
        if seconds is not None and seconds < 1:
            found.refuse("timeout", f"{name} {seconds}", "1 second or more", f"leave {name} out")


def _near(word: str, words: Iterable[str]) -> str:
    known = list(words)
    folded = {name.casefold(): name for name in reversed(known)}
    close = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.4)
    if close:
        return f"did you mean {folded[close[0]]}?"
    return "known are " + ", ".join(known)


def _model(settings: Settings, catalog: Catalog, found: _Findings) -> dict[str, Checkpoint] | None:
    if not settings.model:
        found.refuse(
            "model-missing",
            "no metal_model",
            "a model from the catalogue",
            f"set metal_model to one of {', '.join(catalog.models)}",
        )
        return None
    wanted = settings.model.casefold()
    for name, formats in catalog.models.items():
        names = {name.casefold()}
        for checkpoint in formats.values():
            names.update(alias.casefold() for alias in checkpoint.aliases)
            names.update(repository.casefold() for repository in checkpoint.repositories.values())
        if wanted in names:
            return formats
    found.refuse(
        "model-unknown",
        f"metal_model {settings.model}",
        "a model from the catalogue",
        f"{_near(settings.model, catalog.models)} (or add it with metal_catalog_overlay)",
    )
    return None


def _format(
    settings: Settings, formats: dict[str, Checkpoint], board: _Board | None, found: _Findings
) -> Checkpoint | None:
    """The format asked for, or the one that fits the GPUs best."""
    if not formats:
        found.refuse(
            "format-unknown",
            f"model {settings.model} without a format",
            "one checkpoint format",
            "add one with metal_catalog_overlay",
        )
        return None
    if settings.model_format:
        wanted = settings.model_format.casefold()
        for name, checkpoint in formats.items():
            if name.casefold() == wanted:
                return checkpoint
        found.refuse(
            "format-unknown",
            f"metal_model_format {settings.model_format}",
            f"one of {', '.join(formats)}",
            f"{_near(settings.model_format, formats)}",
        )
        return None
    if board is None:
        first = next(iter(formats.values()))
        return formats.get(first.default_format or "", first)

    def rank(checkpoint: Checkpoint) -> tuple[int, int, int, int]:
        trial = _Findings(Settings(host=settings.host))
        fit = _fit(settings, checkpoint, board, trial)
        capability = board.capability
        generation = 2 * (capability in checkpoint.generations.proven) + (
            capability in checkpoint.generations.unproven
        )
        fits = int(fit is not None and not any(r.code == "memory" for r in trial.refusals))
        default = int(checkpoint.format == checkpoint.default_format)
        return fits * min(generation, 1), generation * fits, checkpoint.preference, default

    best = max(formats.values(), key=rank)
    if len(formats) > 1:
        found.warn(
            "format-chosen",
            f"format {best.format} taken of {', '.join(formats)}: it fits {board.count} x {board.label} "
            "best; set metal_model_format for another",
        )
    return best


# --- what was found --------------------------------------------------------------------------------


def _check_host(facts: HostFacts, found: _Findings) -> bool:
    """Whether the host could be read at all."""
    if facts.what_if:
        return True
    if facts.python is None:
        found.refuse("python-missing", "no Python 3", "Python 3 on the host", "install python3 there")
    if facts.sudo is False:
        found.refuse("sudo-missing", "no sudo", "sudo, or SSH as root", "install sudo on the host")
    if facts.python is None or facts.sudo is False:
        return False
    if facts.is_root is False:
        found.refuse(
            "not-root", "a user who is not root", "root", "let plays become root: sudo for the SSH user"
        )
    if facts.secure_boot:
        found.warn(
            "secure-boot",
            "secure boot is on: the driver's modules load only with a key enrolled in the firmware",
        )
    if facts.smi_error:
        found.warn("nvidia-smi", f"nvidia-smi is there but failed: {facts.smi_error}")
    return True


def _platform(facts: HostFacts, catalog: Catalog, found: _Findings) -> Platform | None:
    if facts.architecture not in (None, "x86_64", "aarch64"):
        found.refuse(
            "architecture", str(facts.architecture), "x86_64 (or aarch64 with Grace)", "use another host"
        )
    names = ", ".join(f"{p.distribution} {p.version}" for p in catalog.platforms.values())
    for platform in catalog.platforms.values():
        if (facts.distribution or "").casefold() == platform.distribution.casefold() and (
            (facts.version or "") == platform.version
        ):
            return platform
    found.refuse(
        "platform-unknown",
        f"{facts.distribution or 'an unknown distribution'} {facts.version or ''}".strip(),
        f"one of {names}",
        "install one of them on the host",
    )
    return None


def _gpu_by_smi(name: str, catalog: Catalog) -> Gpu | None:
    for gpu in catalog.gpus.values():
        if re.fullmatch(gpu.smi_pattern, name):
            return gpu
    return None


def _gpu_by_pci(device: str, catalog: Catalog) -> Gpu | None:
    for gpu in catalog.gpus.values():
        if device in gpu.pci_ids:
            return gpu
    return None


def _board(facts: HostFacts, catalog: Catalog, found: _Findings) -> _Board | None:
    smi = facts.smi_gpus
    if not smi and not facts.pci_gpus:
        found.refuse(
            "gpu-none", "no NVIDIA GPU", "4 or 8 GPUs of one model", "check the host's PCI devices (lspci)"
        )
        return None
    if smi:
        names = sorted({one.name for one in smi})
        kinds = [_gpu_by_smi(name, catalog) for name in names]
        count = len(smi)
        if facts.pci_gpus and len(facts.pci_gpus) != count:
            found.refuse(
                "gpu-missing",
                f"{count} GPUs in nvidia-smi, {len(facts.pci_gpus)} on the PCI bus",
                "the same number in both",
                "look for a failed GPU in dmesg (Xid) and reboot or repair the host",
            )
    else:
        names = sorted(set(facts.pci_gpus))
        kinds = [_gpu_by_pci(device, catalog) for device in names]
        count = len(facts.pci_gpus)
    labels = [kind.name if kind else name for kind, name in zip(kinds, names, strict=True)]
    if len(names) > 1 and len({*labels}) > 1:
        found.refuse(
            "gpu-mixed",
            f"different GPUs in one host: {', '.join(labels)}",
            "GPUs of one model",
            "take out the others",
        )
        return None
    gpu, name = kinds[0], names[0]
    if count not in COUNTS:
        found.refuse(
            "gpu-count",
            f"{count} GPU{'s' if count != 1 else ''}",
            "4 or 8 GPUs, as the guides launch",
            "use a host with 4 or 8 GPUs",
        )
    measured = [one.memory_bytes for one in smi if one.memory_bytes]
    memory = min(measured) if measured else (gpu.memory_bytes.value if gpu else 0)
    capability = (smi[0].compute_capability if smi and smi[0].compute_capability else None) or (
        gpu.compute_capability if gpu else ""
    )
    if gpu is None and not (
        found.refuse(
            "gpu-unknown",
            f"GPU {name}",
            "a GPU from the catalogue",
            f"{_near(name.removeprefix('NVIDIA '), catalog.gpus)} (or add it with metal_catalog_overlay)",
        )
        and memory
        and capability
    ):
        return None
    kind = gpu.nvlink if gpu else "none"
    nvswitch = facts.nvswitches > 0 or (
        gpu is not None and count in gpu.nvswitch_counts and (facts.what_if or kind != "nvswitch")
    )
    return _Board(
        gpu=gpu,
        name=name if smi else f"NVIDIA {gpu.name if gpu else name}",
        count=count,
        memory_bytes=memory,
        capability=capability,
        indices=tuple(one.index for one in smi) if smi else tuple(range(count)),
        nvswitch=nvswitch,
    )


# --- what fits -------------------------------------------------------------------------------------


def _check_generation(checkpoint: Checkpoint, board: _Board, found: _Findings) -> None:
    generations = checkpoint.generations
    if board.capability in generations.proven:
        return
    if board.capability in generations.unproven:
        found.warn(
            "gpu-unproven",
            f"{checkpoint.name} {checkpoint.format} on {board.label} is unproven: "
            f"{generations.unproven[board.capability]}",
        )
        return
    known = ", ".join((*generations.proven, *generations.unproven))
    found.refuse(
        "format-gpu",
        f"{board.label} (compute capability {board.capability or 'unknown'}) for format {checkpoint.format}",
        f"compute capability {known}",
        "choose another metal_model_format or other GPUs",
    )


def _spread(
    settings: Settings, checkpoint: Checkpoint, board: _Board, found: _Findings
) -> ParallelismPlan | None:
    replicas, per_replica = 1, board.count
    if settings.layout:
        layout = LAYOUTS.get(settings.layout.casefold())
        if layout is None or layout[0] != board.count:
            found.refuse(
                "layout",
                f"metal_layout {settings.layout} on {board.count} GPUs",
                "tp8 or 2xtp4 on 8 GPUs, tp4 on 4",
                "set one that matches the host, or leave metal_layout out",
            )
            return None
        replicas = layout[1]
        per_replica = board.count // replicas
    default = checkpoint.parallelism.get(per_replica)
    tp = settings.tp_size or (default.tp if default else per_replica)
    ep = settings.ep_size or (default.ep if default and default.tp == tp else 1)
    if tp * replicas > board.count:
        found.refuse(
            "parallelism",
            f"tp {tp} x {replicas} replica(s) on {board.count} GPUs",
            f"at most {board.count} GPUs",
            "lower metal_tp_size",
        )
        return None
    if not _divides(checkpoint, tp, ep, found):
        return None
    return ParallelismPlan(tp=tp, ep=ep, replicas=replicas)


def _divides(checkpoint: Checkpoint, tp: int, ep: int, found: _Findings) -> bool:
    """Whether the model's shape allows this spread (the engine says so only after it has loaded)."""
    problems: list[str] = []
    if tp < 1 or ep < 1:
        return False  # the range check said so already
    if tp % ep:
        problems.append(f"ep {ep} does not divide tp {tp}")
    heads, kv_heads = checkpoint.attention_heads.value, checkpoint.kv_heads.value
    if heads % tp:
        problems.append(f"tp {tp} does not divide {heads} attention heads")
    if kv_heads % tp and tp % kv_heads:
        problems.append(f"tp {tp} and {kv_heads} KV heads do not divide each other")
    if checkpoint.experts.value % ep:
        problems.append(f"ep {ep} does not divide {checkpoint.experts.value} experts")
    if checkpoint.moe_block and not tp % ep:
        width, block = checkpoint.moe_intermediate.value, checkpoint.moe_block.value
        share, rest = divmod(width * ep, tp)
        if rest or share % block:
            problems.append(f"{width} / (tp {tp} / ep {ep}) = {width * ep / tp:g} is no multiple of {block}")
    fits = True
    for problem in problems:
        fits &= found.refuse(
            "parallelism",
            problem,
            "a spread the model's shape allows",
            "leave metal_tp_size and metal_ep_size out",
        )
    return fits


def _fit(settings: Settings, checkpoint: Checkpoint, board: _Board, found: _Findings) -> _Fit | None:
    spread = _spread(settings, checkpoint, board, found)
    if spread is None:
        return None
    fraction = settings.mem_fraction_static
    if fraction is None or not 0.0 < fraction < 1.0:
        fraction = checkpoint.mem_fraction_static
    scale = checkpoint.kv_dtypes.get(settings.kv_cache_dtype)
    if scale is None:
        found.refuse(
            "kv-dtype",
            f"metal_kv_cache_dtype {settings.kv_cache_dtype}",
            f"one of {', '.join(checkpoint.kv_dtypes)}",
            "leave it out, or set one of them",
        )
        scale = 1.0
    weights = checkpoint.weight_memory_bytes.value
    static = int(board.memory_bytes * spread.tp * fraction)
    room = static - weights
    per_token: int | None = None
    tokens: int | None = None
    if checkpoint.kv_bytes_per_token is not None:
        # With more ranks than KV heads each head is kept on several ranks.
        copies = max(1, spread.tp // checkpoint.kv_heads.value)
        per_token = int(checkpoint.kv_bytes_per_token.value * scale) * copies
        tokens = max(0, room) // per_token
    else:
        found.warn(
            "capacity-unknown",
            f"KV cache of {checkpoint.name} {checkpoint.format} was never measured: no capacity is promised",
        )
    if room <= 0 or (tokens is not None and tokens < LEAST_KV_TOKENS):
        needed = weights if tokens is None else weights + LEAST_KV_TOKENS * (per_token or 0)
        found.refuse(
            "memory",
            f"{spread.tp} x {board.label} with {_gib(static)} of {_gib(board.memory_bytes * spread.tp)} "
            f"usable (mem-fraction {fraction:g})",
            f"more than {_gib(needed)} for {checkpoint.name} {checkpoint.format} weights and KV cache",
            "use GPUs with more memory, more GPUs, or a smaller checkpoint format",
        )
    longest = checkpoint.max_sequence.value
    if tokens is not None and LEAST_KV_TOKENS <= tokens < longest:
        found.warn(
            "short-sequence",
            f"KV cache holds {tokens} tokens, less than the model's longest sequence of {longest}",
        )
        longest = tokens
    return _Fit(
        spread=spread,
        capacity=CapacityPlan(
            kv_tokens=None if tokens is None else tokens * spread.replicas,
            kv_tokens_per_replica=tokens,
            kv_bytes_per_token=per_token,
            kv_dtype=settings.kv_cache_dtype,
            max_sequence=longest,
            weights_bytes=weights,
            total_bytes=board.memory_bytes * board.count,
            static_bytes=static * spread.replicas,
            mem_fraction_static=fraction,
        ),
    )


def _gib(number: int) -> str:
    return f"{number / 2**30:.0f} GiB"


# --- engine, driver, disk --------------------------------------------------------------------------


def _release(settings: Settings, catalog: Catalog, found: _Findings) -> EngineRelease | None:
    wanted = settings.engine_release or catalog.default_engine
    release = catalog.engines.get(wanted)
    if release is None:
        found.refuse(
            "engine-unknown",
            f"metal_engine_release {wanted}",
            f"one of {', '.join(catalog.engines)}",
            "set one of them, or add it with metal_catalog_overlay",
        )
    return release


def _check_engine(checkpoint: Checkpoint, release: EngineRelease, found: _Findings) -> None:
    if version_key(release.release) < version_key(checkpoint.minimum_engine) or not (
        set(checkpoint.architectures) & set(release.architectures)
    ):
        found.refuse(
            "engine-old",
            f"SGLang {release.release}",
            f"{checkpoint.minimum_engine} or newer for {checkpoint.name}",
            "leave metal_engine_release out, or set a newer one",
        )


def _engine_plan(
    settings: Settings,
    release: EngineRelease,
    platform: Platform | None,
    catalog: Catalog,
    found: _Findings,
) -> EnginePlan:
    distro = platform.python if platform else None
    python = settings.engine_python or (distro if distro in release.python else release.python[0])
    if python not in release.python:
        found.refuse(
            "engine-python",
            f"metal_engine_python {python}",
            f"one of {', '.join(release.python)} for SGLang {release.release}",
            "leave metal_engine_python out",
        )
    lock_file = release.locks.get(python)
    lock_sha256 = catalog.lock_sha256.get(lock_file or "")
    if lock_sha256 is None and python in release.python:
        found.refuse(
            "engine-lock",
            f"no lock for SGLang {release.release} on Python {python}",
            "a lock with hashes in the catalogue",
            f"use one of {', '.join(n for n, e in catalog.engines.items() if e.locks)}",
        )
    # Packages are named by content, not by path: the same wheel elsewhere is the same environment.
    content = "\n".join([lock_sha256 or "", *(extra.sha256 for extra in settings.engine_extra_packages)])
    digest = hashlib.sha256(f"{release.release} {python}\n{content}\n".encode()).hexdigest()[:12]
    return EnginePlan(
        release=release.release,
        python=python,
        managed_python=python != distro,
        lock_file=lock_file,
        lock_sha256=lock_sha256,
        digest=digest,
        environment=f"{settings.engine_directory}/{release.release}-{digest}",
        extra_packages=settings.engine_extra_packages,
        python_mirror=settings.python_mirror,
        package_index_url=settings.package_index_url,
    )


def _driver_plan(
    settings: Settings,
    facts: HostFacts,
    release: EngineRelease,
    platform: Platform | None,
    board: _Board | None,
    catalog: Catalog,
    found: _Findings,
) -> DriverPlan | None:
    if platform is None or board is None:
        return None
    minimum = catalog.cuda[release.cuda].minimum_driver
    least = int(minimum.split(".")[0])
    names = platform.driver
    packaged = any(
        package.startswith(("nvidia-driver", "nvidia-kernel", "nvidia-open", "libnvidia", "cuda-drivers"))
        for package in facts.packages
    )
    loaded = facts.loaded_driver
    if loaded and not packaged:
        found.refuse(
            "driver-foreign",
            f"driver {loaded} that no package owns (a .run installer)",
            "no driver, or one from packages",
            "remove it with nvidia-uninstall, reboot and run again",
        )
    branch = settings.driver_branch
    if branch is None:
        # A host that already runs a good branch keeps it: a plan is no reason to change a driver.
        present = loaded.split(".")[0] if loaded else ""
        keep = present in platform.driver_branches and version_key(loaded or "0") >= version_key(minimum)
        branch = present if keep else platform.default_driver_branch
        if loaded and not keep:
            found.warn("driver-change", f"driver {loaded} will be replaced by branch {branch}")
    if not branch.isdigit() or int(branch) < least:
        found.refuse(
            "driver-too-old",
            f"driver branch {branch}",
            f"{least} or newer: SGLang {release.release} is built for CUDA {release.cuda} "
            f"(driver {minimum} or newer)",
            "leave metal_driver_branch out",
        )
    elif branch not in platform.driver_branches:
        found.warn(
            "driver-branch",
            f"driver branch {branch} is not in the catalogue for {platform.slug}; known are "
            f"{', '.join(platform.driver_branches)}",
        )
    required = board.gpu.open_modules if board.gpu else "supported"
    open_modules = settings.open_modules if settings.open_modules is not None else required != "unsupported"
    if (required == "required" and not open_modules) or (required == "unsupported" and open_modules):
        found.refuse(
            "open-modules",
            f"metal_open_modules {str(open_modules).lower()} on {board.label}",
            f"open kernel modules are {required} there",
            "leave metal_open_modules out",
        )
    packages = [*(names.open if open_modules else names.proprietary)]
    services = [*names.services]
    if board.nvswitch:
        packages += names.fabric_manager
        services += names.fabric_manager_services
    packages = [name.format(branch=branch) for name in packages]
    return DriverPlan(
        branch=branch,
        minimum=minimum,
        open_modules=open_modules,
        fabric_manager=board.nvswitch,
        repository_slug=platform.repository_slug,
        pinning_package=names.pinning.format(branch=branch) if names.pinning else None,
        packages=tuple(packages),
        services=tuple(services),
        held=tuple(packages),
    )


def _cuda_plan(release: EngineRelease, platform: Platform | None, catalog: Catalog) -> CudaPlan:
    cuda = catalog.cuda[release.cuda]
    return CudaPlan(
        version=cuda.version,
        home=cuda.home,
        packages=cuda.packages,
        build_packages=platform.build_packages if platform else (),
    )


def _room(facts: HostFacts, path: str) -> int | None:
    """Free bytes where ``path`` will be: the measured directory that is nearest above it."""
    best: tuple[int, int] | None = None
    for place, disk in facts.disks.items():
        inside = path == place or path.startswith(place.rstrip("/") + "/")
        if inside and (best is None or len(place) > best[0]):
            best = (len(place), disk.free_bytes)
    return best[1] if best else None


def _disk(
    settings: Settings,
    facts: HostFacts,
    model: ModelPlan,
    engine: EnginePlan | None,
    found: _Findings,
) -> DiskPlan:
    present = 0
    for directory, size in (facts.stored_weights or {}).items():
        if directory == model.path or directory.startswith(model.path + "."):
            present = max(present, size)
    # One part in a hundred for the file system's own needs.
    needed = max(0, model.bytes - present) * 101 // 100
    free = _room(facts, settings.weights_directory)
    if free is not None and free < needed:
        found.refuse(
            "disk",
            f"{free / 1e9:.0f} GB free at {settings.weights_directory}",
            f"{needed / 1e9:.0f} GB for {model.name} {model.format}",
            "free some space, or set metal_weights_directory to a larger disk",
        )
    room = _room(facts, settings.engine_directory)
    if engine and room is not None and room < ENGINE_BYTES:
        found.warn(
            "disk-engine",
            f"{room / 1e9:.1f} GB free at {settings.engine_directory}; a new engine environment wants "
            f"{ENGINE_BYTES / 1e9:.0f} GB",
        )
    return DiskPlan(needed_bytes=needed, path=settings.weights_directory)


# --- the parts of the plan -------------------------------------------------------------------------


def _platform_plan(platform: Platform, facts: HostFacts) -> PlatformPlan:
    return PlatformPlan(
        slug=platform.slug,
        distribution=platform.distribution,
        version=platform.version,
        codename=platform.codename,
        python=platform.python,
        architecture=facts.architecture or "x86_64",
    )


def _gpus_plan(board: _Board) -> GpusPlan:
    return GpusPlan(
        model=board.label,
        name=board.name,
        count=board.count,
        memory_bytes=board.memory_bytes,
        nvswitch=board.nvswitch,
        indices=board.indices,
        compute_capability=board.capability,
    )


def _model_plan(settings: Settings, checkpoint: Checkpoint, found: _Findings) -> ModelPlan:
    revision = settings.model_revision or checkpoint.revision
    if revision is None:
        found.warn(
            "revision-unpinned",
            f"no pinned revision of {checkpoint.name} {checkpoint.format} is known: the newest is taken; "
            "set metal_model_revision",
        )
        revision = "main"
    for code, message in checkpoint.warnings.items():
        found.warn(code, message)
    repository = checkpoint.repositories["huggingface"]
    return ModelPlan(
        name=checkpoint.name,
        format=checkpoint.format,
        served_name=settings.served_model_name or checkpoint.published_name,
        repositories={str(key): value for key, value in checkpoint.repositories.items()},
        revision=revision,
        path=f"{settings.weights_directory}/{repository}/{revision}",
        bytes=checkpoint.bytes.value,
        files=checkpoint.files.value,
        modalities=checkpoint.modalities,
        max_sequence=checkpoint.max_sequence.value,
        max_output=checkpoint.max_output.value if checkpoint.max_output else None,
        trust_remote_code=checkpoint.trust_remote_code,
        licence=checkpoint.licence,
        sampling=checkpoint.sampling.model_dump() if checkpoint.sampling else None,
    )


def _weights_plan(
    settings: Settings, checkpoint: Checkpoint, model: ModelPlan, catalog: Catalog, found: _Findings
) -> WeightsPlan:
    endpoints = {
        "huggingface": settings.huggingface_endpoint,
        "hf-mirror": settings.hf_mirror_endpoint,
        "modelscope": settings.modelscope_endpoint,
    }
    sources: list[WeightsSource] = []
    for kind in settings.weights_source:
        if kind.startswith("/"):
            sources.append(
                WeightsSource("directory", None, model.repositories["huggingface"], model.revision, kind)
            )
            continue
        source = catalog.sources.get(kind)
        if source is None:
            found.refuse(
                "weights-source",
                f"metal_weights_source {kind}",
                f"{', '.join(catalog.sources)} or an absolute path",
                _near(kind, catalog.sources),
            )
            continue
        repository = model.repositories.get(source.protocol)
        if repository is None:
            found.refuse(
                "weights-source",
                f"{model.name} {model.format} is not published at {kind}",
                f"a source that has it: {', '.join(model.repositories)}",
                "set another metal_weights_source",
            )
            continue
        pinned = settings.model_revision or checkpoint.revisions.get(source.protocol)
        # A revision of Hugging Face means nothing to another source.
        same: str | None = model.revision if source.protocol == "huggingface" else source.revision
        revision = pinned or same or model.revision
        endpoint = (endpoints.get(kind) or source.endpoint).rstrip("/")
        sources.append(WeightsSource(kind, endpoint, repository, revision, None))
    if not settings.weights_source:
        found.refuse(
            "weights-source", "no metal_weights_source", "at least one", "leave it out for huggingface"
        )
    for kind, override in endpoints.items():
        if override and kind not in settings.weights_source:
            found.warn(
                "endpoint-unused",
                f"metal_{kind.replace('-', '_')}_endpoint is set, but {kind} is not in metal_weights_source",
            )
    return WeightsPlan(bytes=model.bytes, sources=tuple(sources))


def _parsers(
    settings: Settings, checkpoint: Checkpoint, release: EngineRelease | None, found: _Findings
) -> Parsers:
    own, guide = checkpoint.parsers, checkpoint.guide_parsers
    base = guide if settings.profile == "guide" else own
    parsers = Parsers(
        tool=settings.tool_call_parser or base.tool, reasoning=settings.reasoning_parser or base.reasoning
    )
    if settings.profile == "guide" and own != guide:
        found.warn(
            "guide-parsers",
            f"the guide's parsers can't read {checkpoint.name}'s output: "
            "tool calls and thinking stay as text",
        )
    if release:
        for name, parser, known in (
            ("tool-call", parsers.tool, release.tool_parsers),
            ("reasoning", parsers.reasoning, release.reasoning_parsers),
        ):
            if parser not in known:
                found.refuse(
                    "parser-unknown",
                    f"{name} parser {parser}",
                    f"one that SGLang {release.release} has: {', '.join(known)}",
                    f"leave metal_{name.replace('-', '_')}_parser out, or use a newer metal_engine_release",
                )
    return parsers


def _services(
    settings: Settings,
    checkpoint: Checkpoint,
    model: ModelPlan,
    engine: EnginePlan,
    cuda: CudaPlan,
    parsers: Parsers,
    board: _Board,
    fit: _Fit,
    release: EngineRelease,
    found: _Findings,
) -> tuple[ServicePlan, ...]:
    spread, capacity = fit.spread, fit.capacity
    base = settings.instance or model.name.casefold()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:-]*", base):
        found.refuse(
            "instance",
            f"metal_instance {base!r}",
            "letters, digits, dot, dash and underscore",
            "set metal_instance to such a name",
        )
        return ()
    services: list[ServicePlan] = []
    for number in range(spread.replicas):
        instance = base if spread.replicas == 1 else f"{base}-{number + 1}"
        indices = board.indices[number * spread.tp : (number + 1) * spread.tp]
        port = settings.port + number
        argv, differences = launch_arguments(
            settings=settings,
            checkpoint=checkpoint,
            model=model,
            engine=engine,
            parsers=parsers,
            spread=spread,
            port=port,
            mem_fraction_static=capacity.mem_fraction_static,
        )
        if number == 0:
            found.differences.extend(differences)
        services.append(
            ServicePlan(
                instance=instance,
                unit=f"sglang@{instance}.service",
                host=settings.listen_address,
                port=port,
                url=f"http://{'127.0.0.1' if settings.listen_address in EVERY_ADDRESS else settings.listen_address}:{port}",
                argv=argv,
                environment=service_environment(
                    settings, engine, cuda, indices if spread.tp < board.count else None
                ),
                gpu_indices=indices,
                start_timeout_seconds=settings.start_timeout_seconds or checkpoint.start_timeout_seconds,
                stop_timeout_seconds=settings.stop_timeout_seconds,
                nofile=NOFILE,
                user="sglang",
                group="sglang",
            )
        )
    return tuple(services)

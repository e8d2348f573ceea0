"""Fast starts: cached kernels, kernels compiled ahead, weights read ahead, by many threads."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from minimax_metal.catalog import Checkpoint, EngineRelease
from minimax_metal.plan.facts import HostFacts
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.host import Board
from minimax_metal.plan.model import (
    DriverPlan,
    EnginePlan,
    KernelCachePlan,
    ModelPlan,
    PageCachePlan,
    ParallelismPlan,
    PrecompilePlan,
    ServicePlan,
)
from minimax_metal.plan.settings import Settings
from minimax_metal.plan.versions import version_key

CACHE = "/var/cache/sglang"
PRECOMPILE_CACHE = "/var/cache/sglang-precompile"
"""The compiler's own cache, written by its own user; results are copied to the engine's."""
PRECOMPILE_USER = "sglang-precompile"
PRECOMPILE_UNIT = "sglang-precompile.service"
PRECOMPILE_SECONDS = 3600
"""The engine's own limit (compile_deep_gemm.py, CompileArgs.timeout); 10 to 20 minutes are reported."""
DEEP_GEMM_FORMATS = frozenset({"fp8", "mxfp8"})
"""Checkpoint formats whose matrix products DeepGEMM computes: scaled blocks of FP8."""
DEEP_GEMM_CAPABILITY = "9.0"
"""deep_gemm_wrapper/configurer.py: SM90 and newer (V)."""
CUBINS_CAPABILITY = "10.0"
"""Blackwell: from here on some of FlashInfer's attention and MoE kernels are downloads (docs/driver.md)."""
CUBINS_WHEEL = re.compile(r"(?:.*/)?flashinfer[_-]cubin-[^/]*")
LOADER_THREADS = 16
"""Maximum per rank: more would wait for the disk (choice of this project; the engine's default is 8)."""
WARM_SHARE = 0.5
"""Weights may use this share of a host's memory as page cache; ranks and pinned buffers need the rest."""
WARM_THREADS = 8
NOT_FOR_COMPILING = {"--config": 1, "--ssl-certfile": 1, "--ssl-keyfile": 1, "--enable-metrics": 0}
"""Flags that the compiler does not get, with their number of values: it sends requests to itself, without a
key.
"""


def kernel_cache_plan(engine: EnginePlan, board: Board, driver: DriverPlan | None) -> KernelCachePlan:
    """Return one directory per release, GPU and driver branch: compiled kernels can't be used by another.

    The branch and not the version: it is known before there is a driver, so that a second run finds the same
    directory, and a driver's patch release compiles nothing.
    """
    parts = (engine.release, board.label, driver.branch if driver else "no-driver")
    key = "-".join(re.sub(r"[^a-z0-9.]+", "_", part.lower()) for part in parts)
    return KernelCachePlan(key=key, path=f"{CACHE}/{key}")


def check_cubins(settings: Settings, release: EngineRelease, board: Board, found: Findings) -> None:
    """Return whether FlashInfer would lack kernels that it may not download at start."""
    needed = version_key(board.capability or "0") >= version_key(CUBINS_CAPABILITY)
    brought = release.flashinfer_cubins or any(
        CUBINS_WHEEL.fullmatch(package.path) for package in settings.engine_extra_packages
    )
    # Set but empty: the user allows FlashInfer's downloads.
    fetched = settings.engine_extra_environment.get("FLASHINFER_NO_DOWNLOAD", "1") == ""
    if needed and not brought and not fetched:
        found.warn(
            "flashinfer-cubins",
            f"some of FlashInfer's kernels for {board.label} must be downloaded: SGLang "
            f"{release.release} does not include them and the unit does not allow downloads. A start "
            "may end with 'Artifact not found locally'; add FlashInfer's flashinfer-cubin wheel of "
            "the same version to metal_engine_extra_packages, or allow the download with "
            'metal_engine_extra_environment: {FLASHINFER_NO_DOWNLOAD: ""}',
        )


def loader_threads(settings: Settings, facts: HostFacts, spread: ParallelismPlan) -> int | None:
    """Return threads per rank that read weights, so that all ranks together have one thread per CPU."""
    if settings.loader_threads is not None:
        return settings.loader_threads or None
    if settings.profile == "guide" or not facts.cpu_count:
        return None
    return max(1, min(LOADER_THREADS, facts.cpu_count // (spread.tp * spread.replicas)))


def page_cache_plan(
    settings: Settings, facts: HostFacts, model: ModelPlan, services: Sequence[ServicePlan]
) -> PageCachePlan | None:
    """Return how to read weights ahead, if they leave memory for other programs."""
    memory = facts.memory_total_bytes
    wanted = settings.warm_weights
    if wanted is None:
        wanted = memory is not None and model.bytes <= memory * WARM_SHARE
    if not wanted or not services:
        return None
    threads = max(1, min(WARM_THREADS, facts.cpu_count or WARM_THREADS))
    return PageCachePlan(unit="metal-page-cache.service", path=model.path, threads=threads)


def precompile_plan(
    settings: Settings,
    checkpoint: Checkpoint,
    release: EngineRelease,
    engine: EnginePlan,
    board: Board,
    cache: KernelCachePlan,
    services: Sequence[ServicePlan],
) -> PrecompilePlan | None:
    """Return the engine's DeepGEMM compiler with the first replica's arguments; all run the same kernels."""
    capable = version_key(board.capability or "0") >= version_key(DEEP_GEMM_CAPABILITY)
    wanted = settings.precompile and release.deep_gemm_precompile and capable
    if not wanted or checkpoint.format not in DEEP_GEMM_FORMATS or not services:
        return None
    service = services[0]
    own = f"{PRECOMPILE_CACHE}/{cache.key}"
    words = _compile_arguments(service.argv)
    program = (f"{engine.environment}/bin/python", "-m", "sglang.compile_deep_gemm")
    digest = hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]
    return PrecompilePlan(
        unit=PRECOMPILE_UNIT,
        argv=(*program, *words, "--timeout", str(PRECOMPILE_SECONDS)),
        environment={
            name: value.replace(cache.path, own) if value.startswith(cache.path) else value
            for name, value in service.environment.items()
        },
        user=PRECOMPILE_USER,
        group=PRECOMPILE_USER,
        cache=own,
        marker=f"{cache.path}/precompiled-{digest}",
        timeout_seconds=PRECOMPILE_SECONDS + 600,
    )


def _compile_arguments(argv: Sequence[str]) -> list[str]:
    """Return the launch flags, at the loopback address: the compiler serves without a key while it runs."""
    words = list(argv[next(place for place, word in enumerate(argv) if word.startswith("--")) :])
    kept: list[str] = []
    skip = 0
    for word in words:
        if skip:
            skip -= 1
        elif word.split("=")[0] in NOT_FOR_COMPILING:
            skip = 0 if "=" in word else NOT_FOR_COMPILING[word]
        else:
            kept.append(word)
    if "--host" in kept:
        kept[kept.index("--host") + 1] = "127.0.0.1"
    return kept

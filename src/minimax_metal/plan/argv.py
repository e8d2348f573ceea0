"""The engine's launch command and environment."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minimax_metal.catalog import Checkpoint
from minimax_metal.catalog.schema import Parsers
from minimax_metal.plan.access import config_arguments, tls_arguments
from minimax_metal.plan.flags import ALIASES
from minimax_metal.plan.kv_room import GUIDE_MEM_FRACTION
from minimax_metal.plan.model import (
    CudaPlan,
    Difference,
    EnginePlan,
    KernelCachePlan,
    ModelPlan,
    ParallelismPlan,
)
from minimax_metal.plan.settings import Settings
from minimax_metal.plan.speculative import draft_arguments

DEFAULT_FLAGS = (
    "--model-path",
    "--tp-size",
    "--ep-size",
    "--tool-call-parser",
    "--reasoning-parser",
    "--host",
    "--trust-remote-code",
    "--port",
    "--mem-fraction-static",
)
"""Order of flags if no guide has a command for the GPU count."""

VARIABLES = {
    "--model-path": "metal_model and metal_weights_directory",
    "--served-model-name": "metal_served_model_name",
    "--tp-size": "metal_tp_size",
    "--ep-size": "metal_ep_size",
    "--tool-call-parser": "metal_tool_call_parser",
    "--reasoning-parser": "metal_reasoning_parser",
    "--host": "metal_listen_address",
    "--port": "metal_port",
    "--mem-fraction-static": "metal_mem_fraction_static",
    "--kv-cache-dtype": "metal_kv_cache_dtype",
    "--speculative-algorithm": "metal_speculative_draft",
    "--speculative-draft-model-path": "metal_speculative_draft_model",
    "--max-running-requests": "metal_max_running_requests",
    "--max-queued-requests": "metal_max_queued_requests",
    "--ssl-certfile": "metal_tls_certificate",
    "--ssl-keyfile": "metal_tls_key",
    "--model-loader-extra-config": "metal_loader_threads: 0 (then you set the flag)",
    "--config": "metal_api_keys: false (then you provide the file, with all keys)",
}
"""The variable behind each flag the plan writes."""

SECRET_FLAGS = frozenset({"--api-key", "--admin-api-key"})

GUIDE_ENTRYPOINT = "sglang.launch_server"
GUIDE_PYTHON = ("3.9", "3.10", "3.11", "3.12")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Launch:
    """Everything a launch command is made of."""

    settings: Settings
    instance: str
    unit: str
    checkpoint: Checkpoint
    model: ModelPlan
    engine: EnginePlan
    parsers: Parsers
    spread: ParallelismPlan
    port: int
    mem_fraction_static: float
    loader_threads: int | None
    """Return the threads per rank that read weights; None leaves it to the engine."""
    entrypoint: str


def _flags(launch: Launch) -> list[str]:
    """Return the guide's flags in its order for the GPU count of one replica."""
    order = list(launch.checkpoint.guide_flags.get(launch.spread.tp, DEFAULT_FLAGS))
    if launch.spread.ep > 1 and "--ep-size" not in order:
        order.insert(order.index("--tp-size") + 1, "--ep-size")
    if launch.spread.ep == 1 and "--ep-size" in order:
        order.remove("--ep-size")
    if not launch.model.trust_remote_code and "--trust-remote-code" in order:
        order.remove("--trust-remote-code")
    return order


def _words(launch: Launch, model_path: Sequence[str]) -> list[str]:
    values: dict[str, Sequence[str]] = {
        "--model-path": model_path,
        "--tp-size": [str(launch.spread.tp)],
        "--ep-size": [str(launch.spread.ep)],
        "--tool-call-parser": [launch.parsers.tool],
        "--reasoning-parser": [launch.parsers.reasoning],
        "--host": [launch.settings.listen_address],
        "--trust-remote-code": [],
        "--port": [str(launch.port)],
        "--mem-fraction-static": [f"{launch.mem_fraction_static:g}"],
    }
    words: list[str] = []
    for flag in _flags(launch):
        words += [flag, *values[flag]]
    return words


def guide_arguments(launch: Launch) -> tuple[str, ...]:
    """Return the guide's command word for word: the engine downloads the weights by the model's id."""
    repository = launch.checkpoint.repositories["huggingface"]
    return ("python", "-m", "sglang.launch_server", *_words(launch, [repository]))


def launch_arguments(launch: Launch) -> tuple[str, ...]:
    """Return the launch command of one replica.

    The guide's flags come in the guide's order for the GPU count, then those for the checkpoint's format and
    the user's settings, then ``metal_engine_extra_args`` unchanged.
    """
    settings, environment = launch.settings, launch.engine.environment
    if launch.entrypoint == GUIDE_ENTRYPOINT:
        argv = [f"{environment}/bin/python", "-m", GUIDE_ENTRYPOINT]
    else:
        argv = [f"{environment}/bin/sglang", "serve"]
    argv += _words(launch, [launch.model.path, "--served-model-name", launch.model.served_name])
    if settings.kv_cache_dtype != "auto":
        argv += ["--kv-cache-dtype", settings.kv_cache_dtype]
    for flag, limit in (
        ("--max-running-requests", settings.max_running_requests),
        ("--max-queued-requests", settings.max_queued_requests),
    ):
        if limit is not None:
            argv += [flag, str(limit)]
    argv += _own_words(launch)
    argv += draft_arguments(settings, launch.checkpoint)
    if settings.wants_metrics and "--enable-metrics" not in settings.engine_extra_args:
        argv.append("--enable-metrics")
    argv += _loader_words(launch)
    argv += tls_arguments(settings, launch.unit)
    argv += config_arguments(settings, launch.instance)
    return (*argv, *settings.engine_extra_args)


def _own_words(launch: Launch) -> list[str]:
    """Return the flags that the checkpoint's format needs, then the recipe's; if both set a flag, the
    recipe's.
    """
    if launch.settings.profile == "guide":
        return []
    recipe = [words for words, _ in launch.settings.recipe.words] if launch.settings.recipe else []
    taken = {words[0] for words in recipe}
    argv: list[str] = []
    skipping = False
    for word in launch.checkpoint.engine_args:
        if word.startswith("--"):
            skipping = word in taken
        if not skipping:
            argv.append(word)
    return [*argv, *(word for words in recipe for word in words)]


def _recipe_differences(launch: Launch) -> list[Difference]:
    recipe = launch.settings.recipe
    if recipe is None:
        return []
    parts = [(words[0], " ".join(words[1:]) or "set", source) for words, source in recipe.words]
    parts += [(name, text, source) for name, text, source in recipe.environment]
    return [
        Difference(
            what=what, guide="not set", here=here, reason=f"metal_profile fast: {source}; {recipe.source}"
        )
        for what, here, source in parts
    ]


def _loader_words(launch: Launch) -> list[str]:
    if launch.loader_threads is None:
        return []
    # Reading by threads is on by default (model_loader/loader.py of 0.5.10 to 0.5.23), with 8 of them.
    return ["--model-loader-extra-config", json.dumps({"num_threads": launch.loader_threads})]


def duplicate_flags(argv: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return flags that occur more than once in a launch command, with the variable to use instead."""
    names = [word.split("=")[0] for word in argv if word.startswith("--") and len(word) > 2]
    counted = Counter(ALIASES.get(name, name) for name in names)
    return [(name, VARIABLES.get(name)) for name, times in counted.items() if times > 1]


def launch_differences(launch: Launch) -> list[Difference]:
    """Return where the launch command differs from the guide, and why."""
    checkpoint, model, parsers, spread = launch.checkpoint, launch.model, launch.parsers, launch.spread
    differences = [
        Difference(
            what="--model-path",
            guide=checkpoint.repositories["huggingface"],
            here=f"{model.path} (served as {model.served_name})",
            reason="the weights are pulled at a pinned revision and verified before the engine starts",
        )
    ]

    def differ(what: str, guide: str, here: str, reason: str) -> None:
        if guide != here:
            differences.append(Difference(what=what, guide=guide, here=here, reason=reason))

    own = "the engine's own parser for this model's output"
    differ("--tool-call-parser", checkpoint.guide_parsers.tool, parsers.tool, own)
    differ("--reasoning-parser", checkpoint.guide_parsers.reasoning, parsers.reasoning, own)
    differ(
        "--mem-fraction-static",
        f"{GUIDE_MEM_FRACTION:g}",
        f"{launch.mem_fraction_static:g}",
        f"metal_profile fast: {launch.settings.recipe.source}"
        if launch.settings.recipe and "mem_fraction_static" in launch.settings.recipe.settings
        else "set by metal_mem_fraction_static or by the checkpoint format",
    )
    differ("--host", "0.0.0.0", launch.settings.listen_address, "set by metal_listen_address")  # noqa: S104
    differ("--port", "8000", str(launch.port), "set by metal_port, or the next replica's")
    if launch.settings.wants_metrics:
        differ("--enable-metrics", "not set", "set", "exposes the engine's metrics at /metrics")
    if config := config_arguments(launch.settings, launch.instance):
        differ(
            "--config",
            "not set: no API key",
            config[1],
            "keys, kept out of the command line, which every user can read",
        )
    if tls_arguments(launch.settings, launch.unit):
        differ("--ssl-certfile", "not set: plain HTTP", "TLS", "set by metal_tls or metal_tls_certificate")
    if launch.loader_threads is not None:
        why = "gives all ranks together one thread per CPU (the engine's default is 8 each)"
        if launch.settings.loader_threads:
            why = "set by metal_loader_threads"
        differ("loader threads", "not set", f"{launch.loader_threads} per rank", why)
    if launch.settings.profile != "guide" and checkpoint.engine_args:
        differ("format", "not set", " ".join(checkpoint.engine_args), f"needed for {checkpoint.format}")
    differences += _recipe_differences(launch)
    if launch.entrypoint != GUIDE_ENTRYPOINT:
        why = f"recommended by SGLang {launch.engine.release}, which still accepts the other"
        if launch.settings.engine_entrypoint:
            why = "set by metal_engine_entrypoint"
        differ("entrypoint", f"python -m {GUIDE_ENTRYPOINT}", launch.entrypoint, why)
    if launch.engine.python not in GUIDE_PYTHON:
        differ(
            "Python",
            "3.9 - 3.12",
            launch.engine.python,
            "the distribution's default, which the engine runs on",
        )
    usual = checkpoint.parallelism.get(spread.tp)
    if spread.tp not in checkpoint.guide_flags or usual is None or usual.ep != spread.ep:
        differ(
            "GPU count",
            "tp 4, or tp 8 ep 8",
            f"tp {spread.tp} ep {spread.ep}",
            "set by metal_tp_size, metal_ep_size, a recipe or a lifted refusal",
        )
    return differences


def service_environment(
    settings: Settings,
    engine: EnginePlan,
    cuda: CudaPlan,
    cache: KernelCachePlan,
    gpu_indices: tuple[int, ...] | None,
    more: Mapping[str, str],
) -> dict[str, str]:
    """Return the unit's environment: where kernels are compiled and cached, and no secrets.

    ``gpu_indices`` is given if the replica uses only some of the host's GPUs; ``more`` is the guard's.
    """
    environment = {
        **more,
        "CUDA_HOME": cuda.home,
        # A kernel that is missing from the environment is an error, never a download at start
        # (docs/driver.md).
        "FLASHINFER_NO_DOWNLOAD": "1",
        "HF_HUB_OFFLINE": "1",
        "HOME": cache.path,
        "PATH": f"{engine.environment}/bin:{cuda.home}/bin:{SYSTEM_PATH}",
        "SGLANG_CACHE_DIR": cache.path,
        # 0.5.10 caches DeepGEMM's kernels elsewhere unless told (0.5.23: below the directory above anyway).
        "SGLANG_DG_CACHE_DIR": f"{cache.path}/deep_gemm",
        "XDG_CACHE_HOME": cache.path,
    }
    if settings.profile != "guide":
        # Each rank on the CPUs and memory of its GPU's NUMA node: the default from 0.5.23 on, set by this
        # before.
        environment["SGLANG_AUTO_NUMA_BIND"] = "1"
    if settings.recipe:
        environment |= {name: text for name, text, _ in settings.recipe.environment}
    if cuda.compat_library_path:
        environment["LD_LIBRARY_PATH"] = cuda.compat_library_path
    if gpu_indices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index in gpu_indices)
    return environment | dict(settings.engine_extra_environment)

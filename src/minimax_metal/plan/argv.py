"""The engine's launch line and environment."""

from __future__ import annotations

from minimax_metal.catalog import Checkpoint
from minimax_metal.catalog.schema import Parsers
from minimax_metal.plan.model import CudaPlan, Difference, EnginePlan, ModelPlan, ParallelismPlan
from minimax_metal.plan.settings import Settings

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
"""Order of flags where no guide has a command for the GPU count."""

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CACHE = "/var/cache/sglang"


def launch_arguments(
    *,
    settings: Settings,
    checkpoint: Checkpoint,
    model: ModelPlan,
    engine: EnginePlan,
    parsers: Parsers,
    spread: ParallelismPlan,
    port: int,
    mem_fraction_static: float,
) -> tuple[tuple[str, ...], tuple[Difference, ...]]:
    """The launch line of one replica, and where it leaves the guide.

    The guide's flags come in the guide's order for the GPU count, then what the checkpoint's format needs,
    then ``metal_engine_extra_args`` as they stand.
    """
    order = list(checkpoint.guide_flags.get(spread.tp, DEFAULT_FLAGS))
    if spread.ep > 1 and "--ep-size" not in order:
        order.insert(order.index("--tp-size") + 1, "--ep-size")
    if spread.ep == 1 and "--ep-size" in order:
        order.remove("--ep-size")
    if not model.trust_remote_code and "--trust-remote-code" in order:
        order.remove("--trust-remote-code")
    values = {
        "--model-path": [model.path, "--served-model-name", model.served_name],
        "--tp-size": [str(spread.tp)],
        "--ep-size": [str(spread.ep)],
        "--tool-call-parser": [parsers.tool],
        "--reasoning-parser": [parsers.reasoning],
        "--host": [settings.listen_address],
        "--trust-remote-code": [],
        "--port": [str(port)],
        "--mem-fraction-static": [f"{mem_fraction_static:g}"],
    }
    argv = [f"{engine.environment}/bin/python", "-m", "sglang.launch_server"]
    for flag in order:
        argv += [flag, *values[flag]]
    if settings.kv_cache_dtype != "auto":
        argv += ["--kv-cache-dtype", settings.kv_cache_dtype]
    argv += [*checkpoint.engine_args, *settings.engine_extra_args]
    return tuple(argv), _differences(checkpoint, model, parsers, spread, mem_fraction_static)


def _differences(
    checkpoint: Checkpoint,
    model: ModelPlan,
    parsers: Parsers,
    spread: ParallelismPlan,
    mem_fraction_static: float,
) -> tuple[Difference, ...]:
    differences = [
        Difference(
            what="--model-path",
            guide=checkpoint.repositories["huggingface"],
            here=f"{model.path} (served as {model.served_name})",
            reason="the weights are pulled at a pinned revision and verified before the engine starts",
        )
    ]
    guide = checkpoint.guide_parsers
    for flag, old, new, reason in (
        ("--tool-call-parser", guide.tool, parsers.tool, "the parser the engine has for this model"),
        (
            "--reasoning-parser",
            guide.reasoning,
            parsers.reasoning,
            "the parser the engine has for this model",
        ),
    ):
        if old != new:
            differences.append(Difference(what=flag, guide=old, here=new, reason=reason))
    if mem_fraction_static != 0.85:
        differences.append(
            Difference(
                what="--mem-fraction-static",
                guide="0.85",
                here=f"{mem_fraction_static:g}",
                reason="set by metal_mem_fraction_static or by the checkpoint format",
            )
        )
    if spread.tp not in checkpoint.guide_flags:
        differences.append(
            Difference(
                what="GPU count",
                guide="4 or 8",
                here=f"tp {spread.tp} ep {spread.ep}",
                reason="the guide has no command for it",
            )
        )
    return tuple(differences)


def service_environment(
    settings: Settings, engine: EnginePlan, cuda: CudaPlan, gpu_indices: tuple[int, ...] | None
) -> dict[str, str]:
    """Environment of the unit: where kernels are compiled and cached, and nothing secret.

    ``gpu_indices`` is given when the replica takes only some of the host's GPUs.
    """
    environment = {
        "CUDA_HOME": cuda.home,
        "HF_HUB_OFFLINE": "1",
        "HOME": CACHE,
        "PATH": f"{engine.environment}/bin:{cuda.home}/bin:{SYSTEM_PATH}",
        "SGLANG_CACHE_DIR": CACHE,
        "XDG_CACHE_HOME": CACHE,
    }
    if gpu_indices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index in gpu_indices)
    return environment | dict(settings.engine_extra_environment)

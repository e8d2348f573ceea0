"""The units: parsers, launch commands, one unit per replica."""

from __future__ import annotations

import re
from collections.abc import Mapping

from minimax_metal.catalog import Checkpoint, EngineRelease
from minimax_metal.catalog.schema import Parsers
from minimax_metal.plan.access import check_arguments, credentials, keys_directory, urls, worker_url
from minimax_metal.plan.argv import (
    GUIDE_ENTRYPOINT,
    SECRET_FLAGS,
    Launch,
    duplicate_flags,
    guide_arguments,
    launch_arguments,
    launch_differences,
    service_environment,
)
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.fit import Fit
from minimax_metal.plan.guard import Confinement, guard_environment
from minimax_metal.plan.host import Board
from minimax_metal.plan.model import CudaPlan, EnginePlan, KernelCachePlan, ModelPlan, ServicePlan
from minimax_metal.plan.settings import Settings
from minimax_metal.plan.speculative import draft_environment
from minimax_metal.plan.weights import instance_name

NOFILE = 65_536


def find_parsers(
    settings: Settings, checkpoint: Checkpoint, release: EngineRelease | None, found: Findings
) -> Parsers:
    """Return the parsers: the model's own, the guide's under that profile, or the user's."""
    own, guide = checkpoint.parsers, checkpoint.guide_parsers
    base = guide if settings.profile == "guide" else own
    parsers = Parsers(
        tool=settings.tool_call_parser or base.tool, reasoning=settings.reasoning_parser or base.reasoning
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
                    f"remove metal_{name.replace('-', '_')}_parser, or use a newer metal_engine_release",
                )
    return parsers


def parser_words(parsers: Parsers | None) -> tuple[str, ...]:
    """Return the parsers' flags for the launch command."""
    return ("--tool-call-parser", parsers.tool, "--reasoning-parser", parsers.reasoning) if parsers else ()


_SECRET_NAME = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PWD|PASS|CREDENTIALS?|AUTH|APIKEY|API_?KEY|ACCESS_KEY|SECRET_KEY|"
    r"PRIVATE_KEY|ADMIN_KEY|SECRET_ACCESS_KEY|ENCRYPTION_KEY|SIGNING_KEY)$|SECRET|PASSWORD",
    re.IGNORECASE,
)
"""Names of variables that hold secrets: HF_TOKEN, AWS_SECRET_ACCESS_KEY, OPENAI_API_KEY."""
_SECRET_VALUE = re.compile(r"://[^/\s:@]*:[^/\s@]+@|-----BEGIN [A-Z ]*PRIVATE KEY")
"""A password in a URL (of a proxy, for example), or a private key."""
_NO_SECRET = re.compile(r"(?i)-?[0-9.]{0,8}|true|false|yes|no|on|off|none|/[^\s]*")
"""Values that are not secrets, whatever their name: numbers, switches, file paths."""


def secret_names(environment: Mapping[str, str]) -> list[str]:
    """Return the names of variables that seem to hold a secret, by name and value."""
    return sorted(
        name
        for name, value in environment.items()
        if _SECRET_VALUE.search(str(value))
        or (_SECRET_NAME.search(name) and not _NO_SECRET.fullmatch(str(value)))
    )


def _check_arguments(settings: Settings, argv: tuple[str, ...], found: Findings) -> None:
    for flag, variable in duplicate_flags(argv):
        found.refuse(
            "duplicate-flag",
            f"{flag} in metal_engine_extra_args, which the plan sets already",
            "each flag once",
            f"set {variable} instead" if variable else f"remove {flag} from metal_engine_extra_args",
        )
    if "--" in settings.engine_extra_args:
        found.refuse(
            "end-of-options",
            "-- in metal_engine_extra_args",
            "flags of sglang serve and their values",
            "remove --: the engine's parser reads no flag after it",
        )
    for flag in sorted({word.split("=")[0] for word in settings.engine_extra_args} & SECRET_FLAGS):
        found.refuse(
            "secret-in-argv",
            f"{flag} in metal_engine_extra_args",
            "no secret in a command line, which every user of the host can read",
            "set sglang_service_api_key and sglang_service_admin_api_key, preferably from a vault",
        )
    for name in secret_names(settings.engine_extra_environment):
        found.refuse(
            "secret-in-environment",
            f"what looks like a secret in metal_engine_extra_environment: {name}",
            "no secret in a unit file, which every user of the host can read",
            f"remove {name}; keep it in a file on the hosts, owned by root with mode 0600, and load "
            "that with EnvironmentFile= in a drop-in of sglang@.service (docs/service.md)",
        )


def _entrypoint(settings: Settings, release: EngineRelease, found: Findings) -> str:
    """Return the user's entry point, else the guide's under its profile, else the recommended one."""
    usual = GUIDE_ENTRYPOINT if settings.profile == "guide" else release.entrypoints[0]
    wanted = settings.engine_entrypoint or usual
    if wanted not in release.entrypoints:
        found.refuse(
            "entrypoint",
            f"metal_engine_entrypoint {wanted}",
            f"one that SGLang {release.release} has: {', '.join(release.entrypoints)}",
            "remove metal_engine_entrypoint",
        )
    return wanted


def service_plans(
    settings: Settings,
    checkpoint: Checkpoint,
    model: ModelPlan,
    engine: EnginePlan,
    cuda: CudaPlan,
    cache: KernelCachePlan,
    parsers: Parsers,
    board: Board,
    fit: Fit,
    release: EngineRelease,
    loader_threads: int | None,
    confined: Confinement,
    verbatim: bool,
    found: Findings,
) -> tuple[ServicePlan, ...]:
    """Return one unit per replica. ``verbatim`` renders the guide's own command, for a host that does not
    exist.
    """
    spread = fit.spread
    base = instance_name(settings, model)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:-]*", base):
        found.refuse(
            "instance",
            f"metal_instance {base!r}",
            "letters, digits, dots, dashes and underscores",
            "set metal_instance to such a name",
        )
        return ()
    last = settings.port + spread.replicas - 1
    if settings.port <= 65535 < last:
        found.refuse("port", f"port {last} for the last replica", "1 to 65535", "lower metal_port")
    used = spread.tp * spread.replicas
    if used < board.count:
        found.warn("gpus-idle", f"{board.count - used} of {board.count} GPUs are unused")
    services: list[ServicePlan] = []
    for number in range(spread.replicas):
        instance = base if spread.replicas == 1 else f"{base}-{number + 1}"
        unit = f"sglang@{instance}.service"
        port = settings.port + number
        url, ready_url = urls(settings, port)
        identity = worker_url(settings, port)
        indices = board.indices[number * spread.tp : (number + 1) * spread.tp]
        launch = Launch(
            settings=settings,
            instance=instance,
            unit=unit,
            checkpoint=checkpoint,
            model=model,
            engine=engine,
            parsers=parsers,
            spread=spread,
            port=port,
            mem_fraction_static=fit.capacity.mem_fraction_static,
            loader_threads=loader_threads,
            entrypoint=_entrypoint(settings, release, found),
        )
        argv = guide_arguments(launch) if verbatim else launch_arguments(launch)
        if number == 0:
            _check_arguments(settings, argv, found)
            if not verbatim:
                found.differences.extend(launch_differences(launch))
        services.append(
            ServicePlan(
                instance=instance,
                unit=unit,
                host=settings.listen_address,
                port=port,
                url=url,
                worker_url=identity,
                ready_url=ready_url,
                keys_directory=keys_directory(settings, instance),
                credentials=credentials(settings),
                check_arguments=check_arguments(settings, instance, identity if release.plugins else None),
                argv=argv,
                environment=service_environment(
                    settings,
                    engine,
                    cuda,
                    cache,
                    indices if spread.tp < board.count else None,
                    {
                        **guard_environment(settings, identity if release.plugins else None),
                        **confined.environment,
                        **draft_environment(settings, checkpoint),
                    },
                ),
                gpu_indices=indices,
                start_timeout_seconds=settings.start_timeout_seconds or checkpoint.start_timeout_seconds,
                stop_timeout_seconds=settings.stop_timeout_seconds,
                nofile=NOFILE,
                user="sglang",
                group="sglang",
                limits=fit.limits,
                ip_allow=confined.ip_allow,
                ip_deny=confined.ip_deny,
                proves=release.plugins and settings.api_keys,
                memory_max_bytes=confined.memory_max_bytes,
            )
        )
    return tuple(services)

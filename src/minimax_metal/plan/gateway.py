"""Decisions for a gateway host: release of smg, its environment, workers, the complete launch command.

Pure, like the plan of a GPU host: from the host's facts, its ``metal_*`` settings, the role's options and the
plans of the GPU hosts. A GPU host that this run has not read (``--limit``, or it is down) keeps its workers
from the gateway's current configuration: a run over part of the fleet removes nobody from the pool.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from minimax_metal.catalog import Catalog, packaged_catalog
from minimax_metal.plan.access import LOCAL, check_mode, tls_plan
from minimax_metal.plan.facts import HostFacts
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.host import check_host, find_platform
from minimax_metal.plan.mirrors import with_mirrors
from minimax_metal.plan.model import HostToolsPlan, Plan, Refusal, plain
from minimax_metal.plan.reading import lenient
from minimax_metal.plan.settings import Settings
from minimax_metal.plan.settings.reading import refuse_value
from minimax_metal.plan.settings.roles import ROLE_SETTINGS
from minimax_metal.plan.stack import host_tools_plan

DIRECTORY: Final = "/opt/sglang-gateway"
CONFIGURATION: Final = "/etc/sglang-gateway"
STATE: Final = "/var/lib/minimax-metal/gateway"
MANIFEST: Final = f"{STATE}/workers.json"
CREDENTIALS: Final = "/run/credentials/sglang-gateway.service"
REREAD_SECONDS: Final = 2
"""How often smg reads the manifest if it can't watch it: a host may have no inotify instance left."""
STALL_SECONDS: Final = 30
"""Seconds after which a client that stops sending its request is refused (smg's default is 300)."""


def _default(name: str) -> Any:
    """The declared default of one of the role's settings; an empty text is as if it were not set."""
    default = ROLE_SETTINGS[f"sglang_gateway_{name}"].default
    return None if default == "" else default


@dataclass(frozen=True)
class Options:
    """The role's variables, without their prefix."""

    port: int = _default("port")
    listen_address: str = _default("listen_address")
    metrics_port: int = _default("metrics_port")
    metrics_address: str = _default("metrics_address")
    policy: str = _default("policy")
    retries: int = _default("retries")
    request_timeout_seconds: int = _default("request_timeout_seconds")
    stop_timeout_seconds: int = _default("stop_timeout_seconds")
    health_interval_seconds: int = _default("health_interval_seconds")
    health_timeout_seconds: int = _default("health_timeout_seconds")
    health_failures: int = _default("health_failures")
    queued_per_worker: int = _default("queued_per_worker")
    max_concurrent_requests: int = _default("max_concurrent_requests")
    max_request_mib: int = _default("max_request_mib")
    require_proof: bool = _default("require_proof")
    tls_certificate: str | None = _default("tls_certificate")
    tls_key: str | None = _default("tls_key")
    worker_ca_certificate: str | None = _default("worker_ca_certificate")
    extra_args: tuple[str, ...] = _default("extra_args")

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Options:
        """Return options from Ansible's validated values; empty texts count as not set."""
        whole = {field.name for field in fields(cls) if isinstance(field.default, int)}
        given: dict[str, Any] = {
            name: bool(value) if name == "require_proof" else int(value) if name in whole else value
            for name, value in raw.items()
            if value not in (None, "")
        }
        given["extra_args"] = tuple(str(word) for word in given.get("extra_args", ()))
        return cls(**given)


@dataclass(frozen=True)
class WorkerPlan:
    """One endpoint behind the gateway."""

    url: str
    host: str
    model: str
    weight: int
    """Its share of the load among the replicas of its model, by its own limits."""
    max_running_requests: int | None
    proves: bool = False
    """Whether it can prove to be the engine; only then it gets requests (``metal gateway watch``)."""


@dataclass(frozen=True)
class GatewayPlan:
    """All decisions for one gateway."""

    host: str
    refusals: tuple[Refusal, ...]
    warnings: tuple[str, ...]
    host_tools: HostToolsPlan | None
    release: str | None
    python: str | None
    lock_file: str | None
    environment: str | None
    uv_environment: Mapping[str, str]
    api_keys: bool
    workers: tuple[WorkerPlan, ...]
    url: str
    """Where the host itself reaches its gateway."""
    tls: Mapping[str, Any] | None
    """With ``metal_tls: fleet``: ``names`` of the certificate, and whether the gateway ``serves`` with it."""
    argv: tuple[str, ...]
    """The command that ``metal gateway launch`` adds the keys to."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {name: plain(value) for name, value in vars(self).items()}


def gateway_plan(
    settings: Settings,
    facts: HostFacts,
    options: Options,
    plans: Mapping[str, Plan],
    before: Sequence[Mapping[str, Any]] = (),
    catalog: Catalog | None = None,
) -> GatewayPlan:
    """Return all decisions for a gateway host.

    Args:
        settings: The host's ``metal_*`` variables.
        facts: The host's facts.
        options: The role's variables.
        plans: Plans of the GPU hosts, by host; an empty one for a host that was not read.
        before: ``workers`` of the configuration on the host.
        catalog: The packaged one unless an overlay made another.
    """
    catalog = catalog or packaged_catalog()
    found = Findings(accept=frozenset(settings.accept_refusals))
    settings, mirrors = with_mirrors(settings, catalog, found)
    platform = find_platform(facts, catalog, found) if check_host(facts, found) else None
    release = catalog.gateways[catalog.default_gateway]
    tools = host_tools_plan(platform, mirrors) if platform else None
    distro = platform.python if platform else None
    python = distro if distro and distro in release.python else release.python[0]
    lock_file = release.locks[python]
    sha256 = catalog.lock_sha256[lock_file]
    digest = hashlib.sha256(f"{release.release} {python}\n{sha256}\n".encode()).hexdigest()[:12]
    environment = f"{DIRECTORY}/{release.release}-{digest}"
    workers = _workers(plans, before, settings.api_keys and options.require_proof, found)
    check_mode(settings, found)
    _check(options, found)
    tls = _fleet_tls(settings, options, facts)
    if tls:
        options = replace(
            options,
            worker_ca_certificate=f"{CREDENTIALS}/ca.crt",
            tls_certificate=options.tls_certificate or f"{CONFIGURATION}/tls.crt",
            tls_key=options.tls_key or f"{CONFIGURATION}/tls.key",
        )
    if settings.api_keys:
        _warn_of_clear_text(options, workers, found)
    return GatewayPlan(
        host=settings.host,
        refusals=tuple(found.refusals),
        warnings=tuple(notice.message for notice in found.warnings),
        host_tools=tools,
        release=release.release,
        python=python,
        lock_file=lock_file,
        environment=environment,
        uv_environment=_uv_environment(tools, managed=python != distro),
        api_keys=settings.api_keys,
        workers=workers,
        url=_own_url(options, settings, local=bool(tls and tls["serves"])),
        tls=tls,
        argv=launch_arguments(f"{environment}/bin/python", options),
    )


def _uv_environment(tools: HostToolsPlan | None, *, managed: bool) -> dict[str, str]:
    """Return the environment: like the host tools', with its own directory of Pythons."""
    if tools is None:
        return {}
    return dict(tools.uv_environment) | {
        "UV_PYTHON_DOWNLOADS": "automatic" if managed else "never",
        "UV_PYTHON_INSTALL_DIR": f"{DIRECTORY}/python",
    }


def _workers(
    plans: Mapping[str, Plan],
    before: Sequence[Mapping[str, Any]],
    proof: bool,
    found: Findings,
) -> tuple[WorkerPlan, ...]:
    """Return the workers of every GPU host, in the order of the inventory."""
    workers: list[WorkerPlan] = []
    for host, plan in plans.items():
        if plan.services and plan.model:
            workers += [
                WorkerPlan(
                    url=service.worker_url,
                    host=host,
                    model=plan.model.served_name,
                    weight=service.limits.weight,
                    max_running_requests=service.limits.max_running_requests,
                    proves=service.proves and proof,
                )
                for service in plan.services
            ]
        else:
            # The host's own word, and perhaps of another version.
            known = [lenient(WorkerPlan, entry) for entry in before if isinstance(entry, Mapping)]
            kept = [
                replace(worker, weight=max(worker.weight, 1))
                for worker in known
                if worker.host == host and worker.url
            ]
            workers += kept
            found.warn(
                "worker-unread",
                f"{host} could not be read: "
                + (f"keeps {len(kept)} workers" if kept else "has no worker yet"),
            )
    urls = [worker.url for worker in workers]
    for url in sorted({url for url in urls if urls.count(url) > 1}):
        hosts = " and ".join(worker.host for worker in workers if worker.url == url)
        found.refuse(
            "worker-twice",
            f"{url} for {hosts}",
            "a distinct URL for each worker",
            "set metal_address for each",
        )
    return tuple(workers)


def _check(options: Options, found: Findings) -> None:
    """Check ranges and incomplete pairs that smg would report only at start."""
    if bool(options.tls_certificate) != bool(options.tls_key):
        missing = "key" if options.tls_certificate else "certificate"
        found.refuse(
            "tls",
            "half of the gateway's TLS settings",
            "both or neither",
            f"set sglang_gateway_tls_{missing}",
        )
    for field in fields(options):
        refusal = refuse_value(ROLE_SETTINGS[f"sglang_gateway_{field.name}"], getattr(options, field.name))
        if refusal:
            found.add(refusal)
    if options.port == options.metrics_port:
        found.refuse(
            "port", "the same port for requests and metrics", "two", "set sglang_gateway_metrics_port"
        )


def _warn_of_clear_text(options: Options, workers: Sequence[WorkerPlan], found: Findings) -> None:
    """Warn on which side of the gateway keys can be intercepted; each side has its own TLS."""
    if not options.tls_certificate and options.listen_address not in LOCAL:
        found.warn(
            "keys-in-clear",
            "clients' keys and prompts cross the network unencrypted on the gateway's port "
            f"{options.port}; set metal_tls: fleet for all hosts, or sglang_gateway_tls_certificate "
            "and sglang_gateway_tls_key",
        )
    plain_text = sorted({worker.host for worker in workers if worker.url.startswith("http://")})
    if plain_text:
        found.warn(
            "keys-in-clear",
            f"the gateway sends keys and prompts unencrypted to {', '.join(plain_text)}; set "
            "metal_tls: fleet for all hosts, or metal_tls_certificate there and "
            "sglang_gateway_worker_ca_certificate here",
        )


def _fleet_tls(settings: Settings, options: Options, facts: HostFacts) -> dict[str, Any] | None:
    """Return the fleet's certificate at a gateway; the user's own one for clients takes precedence."""
    planned = tls_plan(replace(settings, listen_address=options.listen_address), facts.address)
    if planned is None:
        return None
    return {"names": list(planned.names), "serves": not options.tls_certificate}


def _own_url(options: Options, settings: Settings, *, local: bool = False) -> str:
    """Return where the host reaches its own gateway; under TLS by the name in the certificate."""
    everywhere = options.listen_address in {"0.0.0.0", "::"}  # noqa: S104  # compared with, never bound
    near = "127.0.0.1" if everywhere else options.listen_address
    name = f"[{near}]" if ":" in near else near
    if local:
        return f"https://{name}:{options.port}"
    if options.tls_certificate:
        return f"https://{settings.tls_name or settings.host}:{options.port}"
    return f"http://{name}:{options.port}"


def launch_arguments(python: str, options: Options) -> tuple[str, ...]:
    """Return the command of smg, without its keys.

    ``--enable-igw`` serves several models by name, each with its own workers. Workers come from the manifest
    only. A worker with more than ``queued_per_worker`` waiting requests gets none until it has fewer, and a
    request that every worker would have to queue beyond that is refused with 503.
    """
    words = [
        *(python, "launch"),
        *("--host", options.listen_address, "--port", str(options.port)),
        *("--policy", options.policy, "--enable-igw"),
        *("--discovery-provider", "file", "--discovery-file", MANIFEST),
        *("--discovery-check-interval-secs", str(REREAD_SECONDS)),
        *("--health-check-endpoint", "/health"),
        *("--health-check-interval-secs", str(options.health_interval_seconds)),
        *("--health-check-timeout-secs", str(options.health_timeout_seconds)),
        *("--health-failure-threshold", str(options.health_failures), "--health-success-threshold", "1"),
        *("--worker-overload-waiting-requests", str(options.queued_per_worker), "--worker-overload-shed"),
        *("--load-monitor-interval", "1"),
        *("--request-timeout-secs", str(options.request_timeout_seconds)),
        *("--max-payload-size", str(options.max_request_mib * 2**20)),
        *("--stream-body-stall-timeout-secs", str(STALL_SECONDS)),
        *("--shutdown-grace-period-secs", str(options.stop_timeout_seconds)),
        *("--prometheus-host", options.metrics_address, "--prometheus-port", str(options.metrics_port)),
        *("--log-level", "warn"),
    ]
    if options.retries:
        words += ["--retry-max-retries", str(options.retries)]
    else:
        words += ["--disable-retries"]
    if options.max_concurrent_requests:
        words += ["--max-concurrent-requests", str(options.max_concurrent_requests), "--queue-size", "0"]
    if options.tls_certificate:
        words += ["--tls-cert-path", f"{CREDENTIALS}/tls.crt", "--tls-key-path", f"{CREDENTIALS}/tls.key"]
    if options.worker_ca_certificate:
        words += ["--ca-cert-paths", options.worker_ca_certificate]
    return (*words, *options.extra_args)


def configuration(plan: GatewayPlan, options: Options) -> dict[str, Any]:
    """Return the file that ``metal gateway`` reads on the host (``admin.json``): no keys, only paths."""
    tls = plan.tls
    return {
        "url": plan.url,
        "ca_file": f"{CONFIGURATION}/ca.crt" if tls and tls["serves"] else None,
        "admin_key_file": f"{CONFIGURATION}/admin_key",
        "api_key_file": f"{CONFIGURATION}/api_key" if plan.api_keys else None,
        "engine_ca_file": f"{CONFIGURATION}/ca.crt" if tls else options.worker_ca_certificate,
        "manifest": MANIFEST,
        "drained": f"{STATE}/drained.json",
        "workers": plain(plan.workers),
    }

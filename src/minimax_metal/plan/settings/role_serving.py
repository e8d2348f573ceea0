"""The settings of the roles that bring weights and serve: ``model_weights_*`` to ``sglang_service_*``."""

from collections.abc import Mapping
from typing import Any, Final

from minimax_metal.plan.settings.declared import (
    CONTROLLER_CACHE,
    PORT,
    SECONDS,
    SHARE,
    Bounds,
    group,
    number,
    other,
    path,
    switch,
    text,
    texts,
    whole,
)

MANY: Final = Bounds(0, 10_000)
SOME: Final = Bounds(1, 10_000)
BYTES: Final = Bounds(0, 1 << 50)
SECRETS: Final = "{{ metal_secrets_directory | default(inventory_dir ~ '/secrets') }}"
UV_CACHE: Final = "/var/cache/minimax-metal/uv"


@group
class ModelWeights:
    """Pull the weights of the plan and verify every byte"""

    await_timeout_seconds: int = whole(
        86_400, "Time the play waits for the pull, in seconds. The pull itself continues afterwards.", SECONDS
    )
    progress_seconds: int = whole(
        30, "Seconds between two progress lines of a host while the play waits for its pull.", SECONDS
    )
    environment: Mapping[str, str] = other(
        "mapping", {}, "Environment variables for the pull, such as `HTTPS_PROXY`."
    )
    token_files: Mapping[str, str] = other(
        "mapping",
        {},
        "Files on the controller that hold access tokens, by source: `huggingface`, `hf-mirror`, "
        "`modelscope`. A token is kept on the host for root only and is sent to its own source only.",
    )
    workers: int = whole(8, "Files fetched at the same time.", MANY)
    stall_seconds: int = whole(
        60, "A connection that delivers nothing for this long is replaced, in seconds.", SECONDS
    )
    rate_bytes_per_second: int = whole(
        0, "Bandwidth the pull of one host may use, in bytes per second. 0 means no limit.", BYTES
    )
    update_branches: bool = switch(
        False,
        "Ask the hub again which commit a branch is and which files it has, instead of using what an earlier "
        "run kept on the controller. Another answer about the same commit is refused.",
    )
    manifest: str = text(
        "",
        "File or bundle on the controller that states the model's files, for a controller that can't reach "
        "the hub: see docs/weights.md. It is binding for every source.",
    )
    accept_unhashed: bool = switch(
        False,
        "Accept files for which nobody states a hash, and let hosts share them. Anyone who controls a source "
        "or a host of the fleet can then change them.",
    )
    keep_unused: int = whole(
        -1,
        "Unused directories of each model to keep, newest first: those that neither a unit nor a kept "
        "release uses. The others are deleted after the pull. -1 deletes nothing.",
        Bounds(-1, 10_000),
    )
    accept_unproved: bool = switch(
        False,
        "Accept a directory without a manifest as a source although its files don't prove that it holds the "
        "whole model. The manifest then records it.",
    )
    share: bool = switch(
        True,
        "Share the pull among hosts of one run with the same model: each piece is read from the source once.",
    )
    share_port: int = whole(
        18_320, "TCP port on which a host serves its pieces to the others of the run during a pull.", PORT
    )
    share_piece_bytes: int = whole(
        67_108_864, "Size of the pieces that hosts claim and share, in bytes. The same on all hosts.", BYTES
    )
    share_uploads: int = whole(8, "Pieces a host serves at the same time. Further requests get 503.", MANY)
    share_rate_bytes_per_second: int = whole(
        0, "Bandwidth a host may use to serve others, in bytes per second. 0 means no limit.", BYTES
    )
    share_allow: tuple[str, ...] = texts(
        (),
        "Networks that may fetch pieces, in addition to the hosts' addresses in the inventory, such as "
        "`10.1.0.0/16`.",
    )
    origin_hosts: int = whole(
        8,
        "Hosts that read from the source at the same time. More help only if each has its own uplink.",
        SOME,
    )


@group
class PostCheck:
    """Test the endpoint as a client uses it, and fail the play on a wrong answer"""

    request_timeout_seconds: int = whole(300, "Time one request may take, in seconds.", SECONDS)
    long_prompt_share: float = number(
        0.5, "Length of the long prompt, as a share of the longest sequence. 0 skips that check.", SHARE
    )
    concurrency: int = whole(8, "Requests sent at the same time by the check for lost requests.", SOME)
    figures: tuple[int, ...] = other(
        "numbers", (1, 4), "Numbers of parallel streams to measure with. Empty: nothing is measured."
    )
    figure_tokens: int = whole(32, "Tokens of each measured stream.", Bounds(1, 100_000))
    skip: tuple[str, ...] = texts((), "Checks to leave out, by name. `*` stands for any characters.")
    api_key_file: str = text("", "File on the host with another key than the plan's. Empty: the plan's.")
    bench: bool = switch(False, "Also run SGLang's own `bench_serving`, from the engine's environment.")
    extra_arguments: tuple[str, ...] = texts((), "More arguments for `metal check`.")
    reports_directory: str = text(
        "{{ playbook_dir }}/../reports",
        "Directory on the controller for a JSON and a JUnit report of each host and instance. By default "
        "`reports` in the project.",
    )
    journal_lines: int = whole(
        40, "Lines of the unit's journal to print when a check fails.", Bounds(0, 100_000)
    )


@group
class SglangGateway:
    """Run SGLang's model gateway in front of the fleet's endpoints"""

    port: int = whole(30_000, "Port for clients.", PORT)
    listen_address: str = text("0.0.0.0", "Address for clients.")  # noqa: S104  # as the engine's own
    metrics_port: int = whole(29_000, "Port for Prometheus metrics.", PORT)
    metrics_address: str = text(
        "127.0.0.1",
        "Address for Prometheus metrics. They need no key, so by default only the host reads them.",
    )
    # Of smg 1.13 those that fit replicas which serve whole requests (`smg launch --help`).
    policy: str = text(
        "cache_aware",
        "How a worker is chosen among those of a model. `cache_aware` prefers one that has seen the prompt.",
        ("cache_aware", "least_load", "power_of_two", "round_robin", "random", "prefix_hash"),
        code="gateway-policy",
    )
    retries: int = whole(
        3,
        "How often a request is retried on another worker, as long as no answer has begun. 0: never.",
        Bounds(0, 1_000),
    )
    request_timeout_seconds: int = whole(3_600, "Time one request may take, in seconds.", SECONDS)
    stop_timeout_seconds: int = whole(
        600, "Time running requests get to finish when the gateway stops, in seconds.", SECONDS
    )
    drain_timeout_seconds: int = whole(
        600, "Time a worker's running requests get to finish when it is drained, in seconds.", SECONDS
    )
    health_interval_seconds: int = whole(
        10, "Time between two health checks of a worker, in seconds.", SECONDS
    )
    health_timeout_seconds: int = whole(
        20, "Time a health check may take, in seconds. The worker generates a token for it.", SECONDS
    )
    health_failures: int = whole(
        3, "Failed health checks in a row after which a worker gets no requests until one succeeds.",
        Bounds(1, 1_000),
    )  # fmt: skip
    queued_per_worker: int = whole(
        8,
        "A worker with this many waiting requests gets no more. When all have as many, clients get 503.",
        Bounds(0, 1_000_000),
    )
    max_concurrent_requests: int = whole(
        0,
        "Requests in progress above which clients get 429. 0 leaves it to smg: 1024 per core, at least 4096.",
        Bounds(0, 10_000_000),
    )
    max_request_mib: int = whole(
        64,
        "Largest request, in MiB. Larger ones get 413. The engines have a limit of their own, "
        "`metal_max_request_mib`.",
        Bounds(1, 4_096, remedy="leave it out, or set what the engines have (metal_max_request_mib)"),
    )
    require_proof: bool = switch(
        True, "Send requests only to workers that prove to be the engine. Without API keys none can."
    )
    tls_certificate: str = text(
        "", "Certificate chain on the host. With it, and its key, clients are served over TLS."
    )
    tls_key: str = text("", "Private key of that certificate, on the host.")
    worker_ca_certificate: str = text(
        "", "CA certificate on the host to check the workers' certificates against, where they use TLS."
    )
    extra_args: tuple[str, ...] = texts((), "Arguments appended to `smg launch`.")
    api_key: str = text(
        "",
        "API key for clients. It must be the engines' key, since the gateway passes it on. By default the "
        "fleet's.",
        secret=True,
    )
    accepted_api_keys: tuple[str, ...] = texts(
        (),
        "Keys accepted beside `sglang_gateway_api_key` during a key rotation. By default those of "
        "`sglang_service_accepted_api_keys`.",
        secret=True,
    )
    admin_key: str = text(
        "",
        "Key for the gateway's management endpoints. By default created once on the controller.",
        secret=True,
    )
    secrets_directory: str = path(
        SECRETS, "Directory on the controller for created keys. By default `metal_secrets_directory`."
    )
    uv_environment: Mapping[str, str] = other("mapping", {}, "Environment variables for uv.")
    uv_cache: str = path(UV_CACHE, "Directory on the host for uv's cache.")
    hardening: Mapping[str, Any] = other(
        "mapping",
        {},
        "Sandbox directives of the unit that replace the role's own, by name. null removes one, a list sets "
        "one several times.",
    )
    virtual_address: str = text(
        "",
        "Address, with its prefix length, that two gateways share, such as `10.0.0.100/24`. Empty: none.",
    )
    virtual_interface: str = text(
        "", "Network interface of that address. By default the one of the default route."
    )
    virtual_router_id: int = whole(
        51, "Number of the group of gateways on their network, 1 to 255.", Bounds(1, 255)
    )
    virtual_auth: str = text(
        "",
        "Secret of that group; its first eight characters count. By default created once on the controller.",
        secret=True,
    )


@group
class SglangRuntime:
    """Create the uv environment that holds the engine of the plan"""

    uv_environment: Mapping[str, str] = other(
        "mapping", {}, "Environment variables for uv, such as `UV_DEFAULT_INDEX` or `HTTPS_PROXY`."
    )
    uv_cache: str = path(
        UV_CACHE,
        "Directory on the host for uv's cache. On the same file system as the environments it takes no "
        "space twice.",
    )


@group
class SglangService:
    """Run the engine as a systemd unit that is active when the endpoint answers"""

    enabled: bool = switch(True, "Start the unit at boot.")
    api_key: str = text(
        "",
        "API key for clients, best kept in a vault: 16 or more letters, digits and `._~+/=-`. Empty: the key "
        "in the secrets directory, created once for the fleet.",
        secret=True,
    )
    admin_api_key: str = text(
        "",
        "API key for the engine's management endpoints, different from the clients' key. Empty: as above.",
        secret=True,
    )
    accepted_api_keys: tuple[str, ...] = texts(
        (),
        "Up to three keys accepted beside `sglang_service_api_key` during a key rotation (docs/service.md). "
        "Keys in the secrets directory are changed with `metal keys rotate` instead.",
        secret=True,
    )
    accepted_admin_api_keys: tuple[str, ...] = texts(
        (),
        "Up to three keys accepted beside `sglang_service_admin_api_key` during a key rotation.",
        secret=True,
    )
    secrets_directory: str = text(
        SECRETS,
        "Directory on the controller for created keys, mode 0700. Keep it out of version control. By default "
        "`metal_secrets_directory`.",
    )
    hardening: Mapping[str, Any] = other(
        "mapping",
        {},
        "Sandbox directives of the unit that replace the role's own, by name, such as "
        '`{RestrictNamespaces: "no"}` (docs/service.md). null removes one, a list sets one several times.',
    )
    cache_directory: str = text(
        f"{CONTROLLER_CACHE}/kernels",
        "Directory on the controller for the compiled kernels of the first ready host of each kind. By "
        "default in the user's cache.",
    )
    share_kernels_group: str = text(
        "",
        "Inventory group whose identical hosts share compiled kernels. Empty: none. Kernels are code the "
        "engine runs: a compromised host could compromise the others of the group.",
    )

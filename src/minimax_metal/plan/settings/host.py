"""The settings of one host: the ``metal_*`` variables that its plan is made from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Self

from minimax_metal.catalog.schema import SeparateDraft
from minimax_metal.plan.model import ExtraPackage, Refusal
from minimax_metal.plan.settings.declared import (
    PLAN,
    PORT,
    Bounds,
    by_name,
    declared,
    mode,
    number,
    other,
    path,
    switch,
    text,
    texts,
    whole,
)
from minimax_metal.plan.settings.playbook import PREFIX
from minimax_metal.plan.settings.reading import UnknownVariable, read_metal
from minimax_metal.plan.settings.values import SettingsError

DAY = 86_400
SIZE = Bounds(1, 1_024, "parallelism")
REQUESTS = Bounds(1, 1_000_000)


@dataclass(frozen=True)
class ChosenRecipe:
    """What a published recipe adds to the launch line and the environment, each part with its source."""

    source: str
    words: tuple[tuple[tuple[str, ...], str], ...] = ()
    environment: tuple[tuple[str, str, str], ...] = ()
    settings: tuple[str, ...] = ()
    """Settings that come from the recipe."""


@dataclass(frozen=True)
class Settings:
    """The settings of one host. Types are checked when they are read, bounds and choices by the plan."""

    host: str
    model: str | None = text(
        None, "Model to serve, by its name in the catalogue, such as `MiniMax-M2.5`. Required on GPU hosts."
    )
    model_format: str | None = text(
        None, "Checkpoint format, such as `fp8`. By default the one that fits the GPUs best."
    )
    model_revision: str | None = text(
        None, "Revision of the weights: a commit, tag or branch. By default the catalogue's."
    )
    weights_source: tuple[str, ...] = texts(
        ("huggingface",),
        "Sources of the weights, tried in this order: `huggingface`, `hf-mirror`, `modelscope`, an absolute "
        "path, or the URL of a verified directory that another host serves.",
    )
    huggingface_endpoint: str | None = text(None, "URL to use for the source `huggingface`.")
    hf_mirror_endpoint: str | None = text(None, "URL to use for the source `hf-mirror`.")
    modelscope_endpoint: str | None = text(None, "URL to use for the source `modelscope`.")
    trust_remote_code: bool | None = switch(
        None, "Allow code from the weights' repository to run. By default as the model needs it."
    )
    weights_adopt: tuple[str, ...] = texts(
        (), "Directories on the host that may already hold the weights. Verified files are linked from there."
    )
    weights_directory: str = path("/srv/models", "Directory on the host for weights.")
    instance: str | None = text(None, "Instance name of the systemd unit. By default the model's name.")
    served_model_name: str | None = text(
        None, "Model name that clients use. By default the name the vendor published."
    )
    engine_release: str | None = text(None, "SGLang release. By default the newest in the catalogue.")
    engine_python: str | None = text(
        None,
        "Python version of the engine's environment, such as `3.12`. By default the host's own if it fits.",
    )
    engine_directory: str = path("/opt/sglang", "Directory on the host for engine environments.")
    engine_entrypoint: str | None = text(
        None,
        "Start command: `sglang serve` or `sglang.launch_server`. By default what the release recommends.",
    )
    engine_extra_args: tuple[str, ...] = other(
        "words", (), "Arguments appended to the engine's command line."
    )
    engine_extra_environment: Mapping[str, str] = other(
        "mapping", {}, "Environment variables added to the engine's unit."
    )
    engine_extra_packages: tuple[ExtraPackage, ...] = other(
        "packages", (), "Wheels on the controller to install after the lock."
    )
    catalog_overlay: tuple[str, ...] = texts(
        (), "YAML files on the controller that add to the catalogue or replace parts of it."
    )
    accept_refusals: tuple[str, ...] = texts((), "Codes of refusals to lift. The release record keeps them.")
    listen_address: str = text("0.0.0.0", "Address the endpoint listens on.")  # noqa: S104  # as the guides
    port: int = whole(8000, "Port of the endpoint. A second replica on the host uses the next port.", PORT)
    address: str | None = text(
        None,
        "Address or name by which gateways reach the host. By default the one Ansible uses; with "
        "`metal_tls_certificate` the name in the certificate.",
    )
    api_keys: bool = switch(True, "Require an API key, and a separate admin key for management endpoints.")
    tls: str = mode(
        "off",
        "`fleet`: endpoints and gateways use TLS, with certificates from an authority kept on the "
        "controller. `off`: no TLS, or your own certificate (the settings below).",
        ("off", "fleet"),
        code="tls",
    )
    tls_certificate: str | None = path(
        None, "Certificate chain on the host. With it, and its key, the endpoint uses TLS."
    )
    tls_key: str | None = path(None, "Private key of that certificate, on the host.")
    tls_ca_certificate: str | None = path(
        None, "CA certificate on the host to check the endpoint's against. By default the system's."
    )
    tls_name: str | None = text(
        None, "Host name in the certificate. By default the host's name in the inventory."
    )
    allowed_cidrs: tuple[str, ...] = texts(
        (), "Networks whose clients may reach the endpoint. Empty: no firewall is set up."
    )
    fleet_networks: tuple[str, ...] = texts(
        (), "Networks the fleet's own hosts connect from, in addition to their addresses in the inventory."
    )
    gateway_addresses: tuple[str, ...] = texts(
        (), "Addresses of gateways and monitoring hosts, for the engine's unit. By default the inventory's."
    )
    allowed_media_domains: tuple[str, ...] = texts(
        (), "Domains from which the engine may fetch images and other media. Empty: `data:` URLs only."
    )
    max_request_mib: int = whole(64, "Largest request, in MiB.", Bounds(1, 4_096))
    request_seconds: int = whole(
        60, "Time within which a request's body must arrive, in seconds.", Bounds(1, 3_600)
    )
    max_image_megapixels: int = whole(
        128, "Most megapixels of all images in one request together, once decoded.", Bounds(1, 10_000)
    )
    precompile: bool = switch(True, "Compile DeepGEMM kernels before the first start.")
    loader_threads: int | None = whole(
        None,
        "Threads per rank that load weights. By default by the number of CPUs; 0 leaves it to the engine.",
        Bounds(0, 64),
    )
    warm_weights: bool | None = switch(
        None, "Read weights into the page cache ahead of the start. By default where memory allows."
    )
    mem_fraction_static: float | None = number(
        None,
        "Share of GPU memory for weights and KV cache. By default what the guide sets for the model.",
        Bounds(0, 1, "mem-fraction", "leave it out, or set what the guide sets: 0.85", inside=True),
    )
    kv_cache_dtype: str = text(
        "auto",
        "Data type of the KV cache: `auto`, `bfloat16`, `fp8_e4m3` or `fp8_e5m2`, as the model allows.",
    )
    speculative_draft: bool = switch(
        False, "Use the draft model that comes with the checkpoint for speculative decoding."
    )
    speculative_draft_model: str | None = text(
        None, "Separate draft model for speculative decoding, by its name in the catalogue."
    )
    speculative_draft_revision: str | None = text(
        None, "Revision of that draft model. By default the catalogue's."
    )
    tp_size: int | None = whole(
        None, "Tensor parallel size of one replica. By default as the GPUs allow.", SIZE
    )
    ep_size: int | None = whole(
        None, "Expert parallel size of one replica. By default as the guide sets it.", SIZE
    )
    max_running_requests: int | None = whole(
        None,
        "Requests a replica runs at the same time. By default what the KV cache holds, at most 256.",
        REQUESTS,
    )
    max_queued_requests: int | None = whole(
        None, "Requests queued per replica before it returns 503. By default as many as may run.", REQUESTS
    )
    tokens_per_request: int = whole(
        8192, "Tokens assumed per request when computing limits.", Bounds(1, 100_000_000)
    )
    metrics: bool | None = switch(
        None, "Expose Prometheus metrics at /metrics. By default true, except with `metal_profile: guide`."
    )
    layout: str | None = text(
        None, "How the GPUs are divided among replicas: `tp8` or `2xtp4` on 8 GPUs, `tp4` on 4."
    )
    profile: str = text(
        "default",
        "`default`; `fast`: a published performance recipe; `guide`: exactly the vendor's guide.",
        ("default", "fast", "guide"),
        code="profile",
    )
    aim: str = text(
        "throughput",
        "Goal of `metal_profile: fast`: `latency`, `throughput` or `long-context`.",
        ("latency", "throughput", "long-context"),
        code="aim",
    )
    tool_call_parser: str | None = text(None, "Tool-call parser. By default the model's.")
    reasoning_parser: str | None = text(None, "Reasoning parser. By default the model's.")
    driver_branch: str | None = text(
        None,
        "Branch of the NVIDIA driver, such as `580`. By default an LTS or production branch that NVIDIA "
        "still supports.",
    )
    plan_date: date | None = other(  # noqa: RUF009  # declares, and is the same each time
        "date", None, "Day for which driver branches are judged, such as `2026-12-31`. By default today."
    )
    cuda_toolkit: str | None = text(None, "Version of the CUDA toolkit. By default the engine's.")
    fabric_manager: bool | None = switch(
        None, "Install NVIDIA Fabric Manager. By default where there are NVSwitches."
    )
    cuda_compat: bool = switch(False, "Allow CUDA's compatibility packages to bridge an older driver branch.")
    open_modules: bool | None = switch(
        None, "Use the driver's open kernel modules. By default where the GPUs support them."
    )
    driver_run_file: str = text(
        "refuse",
        "Treatment of a driver installed from a `.run` file: `refuse` names it and stops, `keep` leaves "
        "it, `replace` uninstalls it and installs packages.",
        ("refuse", "keep", "replace"),
        code="driver-foreign",
    )
    start_timeout_seconds: int | None = whole(
        None,
        "Time within which the endpoint must be ready, in seconds. By default by the size of the weights.",
        Bounds(1, 7 * DAY, "timeout"),
    )
    stop_timeout_seconds: int = whole(
        600,
        "Time running requests get to finish when the engine stops, in seconds.",
        Bounds(1, DAY, "timeout"),
    )
    python_mirror: str | None = text(
        None, "URL from which uv downloads Python where the host's is too old. By default uv's own."
    )
    package_index_url: str | None = text(None, "Index of Python packages. By default uv's own.")
    vendor_repository_url: str | None = text(
        None, "URL of NVIDIA's package repositories, or of a mirror of them."
    )
    distribution_mirror_url: str | None = text(
        None,
        "URL of a mirror that holds `debian`, `debian-security` and `ubuntu`. By default the host's own "
        "sources.",
    )
    mirrors: str | None = text(
        None, "Mirrors for all downloads: a preset such as `china`, or the URL of a served bundle."
    )
    frozen_sources: bool = switch(
        False, "Accept expired package lists, for a bundle or a mirror that is a snapshot."
    )
    cache_url: str | None = text(
        None, "URL of the fleet's package cache: `http://HOST:PORT` of a host in group `cache_hosts`."
    )
    given: frozenset[str] = frozenset()
    """Attributes that the user set, for defaults that depend on each other."""
    recipe: ChosenRecipe | None = None
    """What ``metal_profile: fast`` found; the plan fills it in."""
    draft: SeparateDraft | None = None
    """The catalogue's entry of ``speculative_draft_model``; the plan looks it up."""
    unknown_role_variables: tuple[UnknownVariable, ...] = ()
    """Variables that begin like a role's and are none of it."""

    @property
    def wants_metrics(self) -> bool:
        """Whether ``--enable-metrics`` is set: as the user says, else as the profile does."""
        return self.profile != "guide" if self.metrics is None else self.metrics

    def with_layout(self, layout: str) -> Self:
        """The same settings with another layout, and the spread that goes with it."""
        return replace(self, layout=layout, tp_size=None, ep_size=None)

    @classmethod
    def from_variables(cls, host: str, variables: Mapping[str, Any]) -> Self:
        """Settings from a host's variables; names without the prefix ``metal_`` are passed over.

        Raises:
            SettingsError: a ``metal_*`` name that nobody knows (with the nearest right one), or a value of
                the wrong type. A variable set to null is as if it were not set.
        """
        settings, problems = cls.read(host, variables)
        if problems:
            raise SettingsError(*problems)
        return settings

    @classmethod
    def read(cls, host: str, variables: Mapping[str, Any]) -> tuple[Self, tuple[Refusal, ...]]:
        """As :meth:`from_variables`, with what is wrong beside the settings that the other values make.

        The playbooks' own settings are read as well, so that what is wrong with them is refused before
        anything changes.
        """
        values, problems = read_metal(variables, SETTINGS)
        return cls(host=host, given=frozenset(values), **values), problems


SETTINGS = declared(Settings, PREFIX, PLAN)
DECLARED = by_name(SETTINGS)

"""What users write: the ``metal_*`` variables, their types, defaults and meaning."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from operator import itemgetter
from typing import Any

from minimax_metal.catalog.schema import SeparateDraft
from minimax_metal.common.text import one_line
from minimax_metal.plan.model import ExtraPackage, Refusal
from minimax_metal.plan.setting_values import READERS
from minimax_metal.plan.setting_values import SettingsError as SettingsError

PREFIX = "metal_"


@dataclass(frozen=True)
class Setting:
    """One variable: what it is called, what it takes, what it is by default, what it means."""

    name: str
    kind: str
    default: Any
    meaning: str

    @property
    def attribute(self) -> str:
        """Its name in ``Settings``."""
        return self.name.removeprefix(PREFIX)


SETTINGS: tuple[Setting, ...] = (
    Setting("metal_model", "text", None, "Model to serve: a name from the catalogue, such as MiniMax-M2.5."),
    Setting("metal_model_format", "text", None, "Checkpoint format; by default the one that fits best."),
    Setting("metal_model_revision", "text", None, "Revision of the weights; by default the catalogue's."),
    Setting(
        "metal_weights_source",
        "list",
        ("huggingface",),
        "Where weights come from, in order: huggingface, hf-mirror, modelscope, an absolute path, or the URL "
        "of a verified directory that another host serves.",
    ),
    Setting("metal_huggingface_endpoint", "text", None, "URL asked as huggingface."),
    Setting("metal_hf_mirror_endpoint", "text", None, "URL asked as hf-mirror."),
    Setting("metal_modelscope_endpoint", "text", None, "URL asked as modelscope."),
    Setting(
        "metal_trust_remote_code",
        "bool",
        None,
        "Whether code of the weights' repository may run; the model's.",
    ),
    Setting("metal_weights_adopt", "list", (), "Directories on the host that may hold the weights already."),
    Setting("metal_weights_directory", "path", "/srv/models", "Directory on the host that holds weights."),
    Setting("metal_instance", "text", None, "Name of the unit's instance; by default the model's name."),
    Setting("metal_served_model_name", "text", None, "Name clients ask for; by default the published one."),
    Setting("metal_engine_release", "text", None, "SGLang release; by default the catalogue's newest."),
    Setting("metal_engine_python", "text", None, "Python minor version of the engine's environment."),
    Setting("metal_engine_directory", "path", "/opt/sglang", "Directory of engine environments."),
    Setting(
        "metal_engine_entrypoint",
        "text",
        None,
        "Start command: sglang serve or sglang.launch_server; by default what the release recommends.",
    ),
    Setting("metal_engine_extra_args", "words", (), "Arguments put behind the engine's own."),
    Setting("metal_engine_extra_environment", "mapping", {}, "Environment variables added to the unit."),
    Setting(
        "metal_engine_extra_packages", "packages", (), "Wheels on the controller, installed after the lock."
    ),
    Setting("metal_catalog_overlay", "list", (), "YAML files that add to or replace the catalogue."),
    Setting("metal_accept_refusals", "list", (), "Codes of refusals that are lifted, and recorded."),
    Setting("metal_listen_address", "text", "0.0.0.0", "Address the endpoint listens on."),  # noqa: S104
    Setting("metal_port", "int", 8000, "Port of the endpoint."),
    Setting(
        "metal_address",
        "text",
        None,
        "Address or name a gateway reaches the host by; default Ansible's, under TLS the certificate's.",
    ),
    Setting("metal_api_keys", "bool", True, "Whether clients need a key, and managers another one."),
    Setting(
        "metal_tls",
        "mode",
        "off",
        "fleet: endpoints and gateways speak TLS, by a CA that is made on the controller; off: as below.",
    ),
    Setting("metal_tls_certificate", "path", None, "Certificate chain on the host: the endpoint speaks TLS."),
    Setting("metal_tls_key", "path", None, "Private key of that certificate, on the host."),
    Setting(
        "metal_tls_ca_certificate",
        "path",
        None,
        "Certificate on the host that the endpoint's is checked against; by default the system's.",
    ),
    Setting("metal_tls_name", "text", None, "Name in the certificate; by default the inventory's."),
    Setting(
        "metal_allowed_cidrs",
        "list",
        (),
        "Networks that may reach the endpoint; with none, no firewall is set up.",
    ),
    Setting(
        "metal_fleet_networks",
        "list",
        (),
        "Networks that hosts of the fleet connect from, beside their addresses in the inventory.",
    ),
    Setting(
        "metal_gateway_addresses",
        "list",
        (),
        "Addresses of gateways and monitoring hosts for the engine's unit; by default the inventory's.",
    ),
    Setting(
        "metal_allowed_media_domains",
        "list",
        (),
        "Domains from which images and other media in requests may be fetched; by default none: data: only.",
    ),
    Setting("metal_max_request_mib", "int", 64, "Size of the largest request, in MiB."),
    Setting("metal_request_seconds", "int", 60, "Time in which a request's body has to arrive."),
    Setting(
        "metal_max_image_megapixels",
        "int",
        128,
        "Pixels of all images of a request together, in millions, once they are decoded.",
    ),
    Setting(
        "metal_precompile", "bool", True, "Whether DeepGEMM kernels are compiled before the first start."
    ),
    Setting(
        "metal_loader_threads",
        "int",
        None,
        "Threads of each rank that read weights; by default by CPU count, 0 leaves it to the engine.",
    ),
    Setting(
        "metal_warm_weights",
        "bool",
        None,
        "Whether weights are read into the page cache ahead; by default where memory allows.",
    ),
    Setting("metal_mem_fraction_static", "float", None, "Share of GPU memory for weights and KV cache."),
    Setting(
        "metal_kv_cache_dtype", "text", "auto", "Type of the KV cache: auto, bfloat16, fp8_e4m3, fp8_e5m2."
    ),
    Setting(
        "metal_speculative_draft", "bool", False, "Whether the draft that comes with the checkpoint is used."
    ),
    Setting(
        "metal_speculative_draft_model", "text", None, "Draft of a repository of its own, from the catalogue."
    ),
    Setting(
        "metal_speculative_draft_revision",
        "text",
        None,
        "Revision of that draft; by default the catalogue's.",
    ),
    Setting("metal_tp_size", "int", None, "Tensor parallel size of one replica."),
    Setting("metal_ep_size", "int", None, "Expert parallel size of one replica."),
    Setting("metal_max_running_requests", "int", None, "Requests a replica runs at a time."),
    Setting("metal_max_queued_requests", "int", None, "Requests a replica lets wait before it says 503."),
    Setting("metal_tokens_per_request", "int", 8192, "Tokens a request is reckoned with for the limits."),
    Setting("metal_metrics", "bool", None, "Whether the engine shows its figures at /metrics; default does."),
    Setting("metal_layout", "text", None, "How GPUs are shared out: tp8 or 2xtp4 on 8 GPUs, tp4 on 4."),
    Setting(
        "metal_profile",
        "text",
        "default",
        "default, fast for a published performance recipe, or guide for the vendor guide's own parsers.",
    ),
    Setting(
        "metal_aim",
        "text",
        "throughput",
        "What metal_profile: fast aims at: latency, throughput or long-context.",
    ),
    Setting("metal_tool_call_parser", "text", None, "Tool-call parser; by default the model's."),
    Setting("metal_reasoning_parser", "text", None, "Reasoning parser; by default the model's."),
    Setting(
        "metal_driver_branch",
        "text",
        None,
        "Branch of the NVIDIA driver, such as 580; by default an LTS or production branch that lives.",
    ),
    Setting(
        "metal_plan_date",
        "date",
        None,
        "Day for which driver branches are judged, as 2026-12-31; by default today.",
    ),
    Setting("metal_cuda_toolkit", "text", None, "Version of the CUDA toolkit; by default the engine's own."),
    Setting(
        "metal_fabric_manager",
        "bool",
        None,
        "Whether the fabric manager is installed; by default with NVSwitch.",
    ),
    Setting("metal_cuda_compat", "bool", False, "Whether CUDA may be bridged to an older driver branch."),
    Setting("metal_open_modules", "bool", None, "Whether the driver's open kernel modules are used."),
    Setting(
        "metal_driver_run_file", "text", "refuse", "A driver from a .run installer: refuse, keep or replace."
    ),
    Setting("metal_start_timeout_seconds", "int", None, "How long the endpoint may take to be ready."),
    Setting("metal_stop_timeout_seconds", "int", 600, "How long running requests may take at a stop."),
    Setting("metal_python_mirror", "text", None, "Where uv fetches its own Python, if one is needed."),
    Setting("metal_package_index_url", "text", None, "Index of Python packages; by default uv's own."),
    Setting(
        "metal_vendor_repository_url",
        "text",
        None,
        "Directory of NVIDIA's package repositories, or of a mirror of it.",
    ),
    Setting(
        "metal_distribution_mirror_url",
        "text",
        None,
        "Directory of a mirror with debian, debian-security, ubuntu; by default the host's own sources.",
    ),
    Setting(
        "metal_mirrors",
        "text",
        None,
        "Where big and remote things come from: a preset such as china, or the URL of a served bundle.",
    ),
    Setting(
        "metal_frozen_sources",
        "bool",
        False,
        "Accept package lists past their time: the bundle or mirror is a snapshot that nobody renews.",
    ),
    Setting(
        "metal_cache_url",
        "text",
        None,
        "URL of the fleet's cache, http://HOST:PORT of a host in cache_hosts.",
    ),
)

PLAYBOOK_VARIABLES: frozenset[str] = frozenset(
    {
        "metal_acceptance_anonymise",
        "metal_acceptance_directory",
        "metal_acceptance_only",
        "metal_acceptance_skip",
        "metal_acceptance_stop_engine",
        "metal_check",
        "metal_collected",
        "metal_facts",
        "metal_gateway_plan",
        "metal_host_timeout_seconds",
        "metal_keep_releases",
        "metal_keys_do",
        "metal_share_secret_do",
        "metal_keys_names",
        "metal_loaded",
        "metal_lock_break",
        "metal_plan",
        "metal_plans",
        "metal_playbook",
        "metal_raw_facts",
        "metal_refusals",
        "metal_remove",
        "metal_remove_artefact_cache",
        "metal_remove_caches",
        "metal_remove_driver",
        "metal_remove_gateway",
        "metal_remove_records",
        "metal_remove_weights",
        "metal_reports_directory",
        "metal_rollback_to",
        "metal_rollout_batches",
        "metal_rollout_drain_seconds",
        "metal_rollout_min_ready",
        "metal_rollout_on_failure",
        "metal_rollout_soak_errors",
        "metal_rollout_soak_latency",
        "metal_rollout_soak_requests",
        "metal_rollout_soak_seconds",
        "metal_rollout_stop_file",
        "metal_rollout_trial_requests",
        "metal_secrets_directory",
        "metal_secure_logging",
        "metal_serve_serial",
    }
)
"""Names with the prefix that playbooks use themselves; ``Settings`` passes over them."""


@dataclass(frozen=True)
class UnknownVariable:
    """A variable that begins with a role's name and that the role does not read."""

    name: str
    role: str
    known: tuple[str, ...]


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
    """The settings of one host. Ranges are judged by the plan, types here."""

    host: str
    model: str | None = None
    model_format: str | None = None
    model_revision: str | None = None
    weights_source: tuple[str, ...] = ("huggingface",)
    huggingface_endpoint: str | None = None
    hf_mirror_endpoint: str | None = None
    modelscope_endpoint: str | None = None
    trust_remote_code: bool | None = None
    weights_adopt: tuple[str, ...] = ()
    weights_directory: str = "/srv/models"
    instance: str | None = None
    served_model_name: str | None = None
    engine_release: str | None = None
    engine_python: str | None = None
    engine_directory: str = "/opt/sglang"
    engine_entrypoint: str | None = None
    engine_extra_args: tuple[str, ...] = ()
    engine_extra_environment: Mapping[str, str] = field(default_factory=dict)
    engine_extra_packages: tuple[ExtraPackage, ...] = ()
    catalog_overlay: tuple[str, ...] = ()
    accept_refusals: tuple[str, ...] = ()
    listen_address: str = "0.0.0.0"  # noqa: S104  # the guides' own default
    port: int = 8000
    address: str | None = None
    api_keys: bool = True
    tls: str = "off"
    tls_certificate: str | None = None
    tls_key: str | None = None
    tls_ca_certificate: str | None = None
    tls_name: str | None = None
    allowed_cidrs: tuple[str, ...] = ()
    fleet_networks: tuple[str, ...] = ()
    gateway_addresses: tuple[str, ...] = ()
    allowed_media_domains: tuple[str, ...] = ()
    max_request_mib: int = 64
    request_seconds: int = 60
    max_image_megapixels: int = 128
    precompile: bool = True
    loader_threads: int | None = None
    warm_weights: bool | None = None
    mem_fraction_static: float | None = None
    kv_cache_dtype: str = "auto"
    speculative_draft: bool = False
    speculative_draft_model: str | None = None
    speculative_draft_revision: str | None = None
    tp_size: int | None = None
    ep_size: int | None = None
    max_running_requests: int | None = None
    max_queued_requests: int | None = None
    tokens_per_request: int = 8192
    metrics: bool | None = None
    layout: str | None = None
    profile: str = "default"
    aim: str = "throughput"
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    driver_branch: str | None = None
    plan_date: date | None = None
    cuda_toolkit: str | None = None
    fabric_manager: bool | None = None
    cuda_compat: bool = False
    open_modules: bool | None = None
    driver_run_file: str = "refuse"
    start_timeout_seconds: int | None = None
    stop_timeout_seconds: int = 600
    python_mirror: str | None = None
    package_index_url: str | None = None
    vendor_repository_url: str | None = None
    distribution_mirror_url: str | None = None
    mirrors: str | None = None
    frozen_sources: bool = False
    cache_url: str | None = None
    given: frozenset[str] = frozenset()
    """Attributes that the user set, for defaults that hang on each other."""
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

    def with_layout(self, layout: str) -> Settings:
        """The same settings with another layout, and the spread that goes with it."""
        return replace(self, layout=layout, tp_size=None, ep_size=None)

    @classmethod
    def from_variables(cls, host: str, variables: Mapping[str, Any]) -> Settings:
        """Settings from a host's variables; names without the prefix ``metal_`` are passed over.

        Raises ``SettingsError`` for ``metal_*`` names nobody knows (with the nearest right one) and for
        values of the wrong type. A variable set to null is as if it were not set.
        """
        settings, problems = cls.read(host, variables)
        if problems:
            raise SettingsError(*problems)
        return settings

    @classmethod
    def read(cls, host: str, variables: Mapping[str, Any]) -> tuple[Settings, tuple[Refusal, ...]]:
        """As :meth:`from_variables`, with what is wrong beside the settings that the other values make."""
        known = {setting.name: setting for setting in SETTINGS}
        values: dict[str, Any] = {}
        problems: list[Refusal] = []
        for name, value in sorted(((str(key), value) for key, value in variables.items()), key=itemgetter(0)):
            if not name.startswith(PREFIX) or name in PLAYBOOK_VARIABLES:
                continue
            if name not in known:
                called = one_line(name, 200)
                problems.append(
                    Refusal(
                        "variable-unknown", f"variable {called}", "one of metal_*", _nearest(called, known)
                    )
                )
            elif value is not None:
                try:
                    values[known[name].attribute] = READERS[known[name].kind](name, value)
                except SettingsError as error:
                    problems += error.refusals
        return cls(host=host, given=frozenset(values), **values), tuple(problems)


def find_unknown(names: Iterable[str], roles: Mapping[str, Sequence[str]]) -> tuple[UnknownVariable, ...]:
    """The names that begin like a role's variables (``<role>_``) and are not among those it reads."""
    return tuple(
        UnknownVariable(name, role, tuple(options))
        for name in sorted(set(names))
        for role, options in roles.items()
        if name.startswith(f"{role}_") and name not in options
    )


def refuse_unknown(unknown: UnknownVariable) -> Refusal:
    """Why a variable of that kind stops a host."""
    return Refusal(
        code="variable-unknown",
        found=f"variable {unknown.name}",
        needed=f"one that role {unknown.role} reads",
        remedy=_nearest(unknown.name, unknown.known),
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    return f"known are {', '.join(names)}" if names else "there is none: take it out"

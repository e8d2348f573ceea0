"""The guard around the engine (``engine_plugin``), and the unit's own network and memory limits."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from minimax_metal.catalog import Checkpoint, EngineRelease
from minimax_metal.plan.facts import HostFacts
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.settings import Settings

DOMAIN: Final = re.compile(
    r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
)
UNGUARDED: Final = (
    "--enable-http2",
    "--encoder-only",
    "--grpc-mode",
    "--grpc-port",
    "--sidecar",
    "--smg-grpc-mode",
    "--tokenizer-worker-num",
    "--use-ray",
)
"""Flags of 0.5.23 that use another server than the single uvicorn process that contains the guard."""
PLUGIN: Final = "minimax-metal"
"""Name of the guard's entry point, which ``SGLANG_PLUGINS`` must contain if it is set."""
METADATA: Final = ("169.254.0.0/16", "168.63.129.16", "100.100.100.200", "fd00:ec2::254", "fe80::/10")
"""Link-local networks, and other addresses where clouds provide credentials (Azure, Alibaba, AWS by IPv6)."""
LOCAL: Final = frozenset({"127.0.0.1", "::1", "localhost"})
LEAST_RESERVE: Final = 4 * 2**30
MOST_RESERVE: Final = 32 * 2**30


@dataclass(frozen=True)
class Confinement:
    """The unit's limits of IP addresses and memory."""

    ip_allow: tuple[str, ...]
    ip_deny: tuple[str, ...]
    """Networks, or ``any``; allowed ones take precedence (systemd.resource-control)."""
    memory_max_bytes: int | None
    environment: Mapping[str, str]
    """Variables that go with it."""


def guard_environment(settings: Settings, identity: str | None) -> dict[str, str]:
    """Return the guard's settings as environment of the unit (``engine_plugin/.../settings.py``).

    ``identity`` is where gateways reach the engine: it proves to be the one behind that address, and the
    supervisor waits for that proof. None if there is no guard.
    """
    limits = {"METAL_IDENTITY": identity} if identity else {}
    limits |= {
        "METAL_MAX_REQUEST_BYTES": str(settings.max_request_mib * 2**20),
        "METAL_REQUEST_SECONDS": str(settings.request_seconds),
        "METAL_MAX_IMAGE_PIXELS": str(settings.max_image_megapixels * 1_000_000),
    }
    domains = ",".join(domain.lower() for domain in settings.allowed_media_domains)
    return limits | ({"METAL_MEDIA_DOMAINS": domains} if domains else {})


def check_guard(
    settings: Settings, checkpoint: Checkpoint | None, release: EngineRelease | None, found: Findings
) -> None:
    """Refuse settings that the guard can't enforce, or that would bypass it."""
    for domain in settings.allowed_media_domains:
        if not DOMAIN.fullmatch(domain.lower()):
            found.refuse(
                "media-domain",
                f"metal_allowed_media_domains {domain!r}",
                "host names such as images.example.net: no address, port, wildcard or path",
                "write each bare host name in its punycode form",
            )
    for flag in sorted(set(filter(None, map(_unguarded, settings.engine_extra_args)))):
        found.refuse(
            "guard-bypassed",
            f"{flag} in metal_engine_extra_args",
            "the engine's usual HTTP server, in which the guard for keys, routes and media runs",
            f"remove {flag} from metal_engine_extra_args",
        )
    listed = settings.engine_extra_environment.get("SGLANG_PLUGINS")
    if listed and PLUGIN not in {name.strip() for name in listed.split(",")}:
        found.refuse(
            "guard-bypassed",
            f"SGLANG_PLUGINS {listed} in metal_engine_extra_environment",
            f"a list with {PLUGIN} in it",
            f"add {PLUGIN} to it",
        )
    if release and not release.plugins:
        _without_plugins(settings, checkpoint, release, found)


def _unguarded(word: str) -> str | None:
    """Return the flag that a word stands for, abbreviated or not (argparse accepts both)."""
    flag = word.split("=")[0]
    return next((one for one in UNGUARDED if len(flag) > 5 and one.startswith(flag)), None)


def _without_plugins(
    settings: Settings, checkpoint: Checkpoint | None, release: EngineRelease, found: Findings
) -> None:
    sees = checkpoint is not None and set(checkpoint.modalities) - {"text"}
    if sees or settings.allowed_media_domains:
        found.refuse(
            "media-unguarded",
            f"SGLang {release.release}, which loads no plug-ins"
            + ("" if sees else " and metal_allowed_media_domains"),
            "0.5.16 or newer, where media is refused before the engine opens it",
            "set metal_engine_release to a newer one",
        )
    found.warn(
        "guard-missing",
        f"SGLang {release.release} loads no plug-ins, so the guard is missing: request size is "
        "unlimited, any model name is accepted, x-api-key is not accepted as a key, no route is "
        "closed beyond the engine's own check, a full queue returns 503 (which a gateway treats as a "
        "failure), and a stop drains as the engine does; 0.5.16 and newer have all of it",
    )


def confinement(settings: Settings, facts: HostFacts, replicas: int) -> Confinement:
    """Return the unit's network and memory limits.

    If the clients' networks are known (``metal_allowed_cidrs``, or a loopback address), only these, the
    fleet's gateways and monitoring hosts and the host itself can be reached; ranks then communicate on the
    loopback interface, which any host has. Otherwise clients may be anywhere, and only link-local addresses
    and those where clouds provide credentials are blocked. Allowed media domains may be anywhere too.

    A unit may use the host's memory less a tenth of it (4 GiB at least, 32 GiB at most), shared among its
    replicas.
    """
    memory = None
    if facts.memory_total_bytes:
        total = facts.memory_total_bytes
        reserve = min(max(total // 10, LEAST_RESERVE), MOST_RESERVE)
        memory = max(total - reserve, total // 2) // max(replicas, 1)
    local = settings.listen_address in LOCAL
    own = _own_addresses(settings, facts)
    known = local or (settings.allowed_cidrs and own)
    if not known or settings.allowed_media_domains:
        return Confinement((), METADATA, memory, {})
    named = (*settings.allowed_cidrs, *settings.fleet_networks, *settings.gateway_addresses)
    networks = () if local else tuple(filter(_is_network, named))
    return Confinement(
        ip_allow=("localhost", *dict.fromkeys((*own, *networks))),
        ip_deny=("any",),
        memory_max_bytes=memory,
        environment={"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"},
    )


def _own_addresses(settings: Settings, facts: HostFacts) -> tuple[str, ...]:
    """Return the host's known addresses: clients on the host itself use them."""
    named: Sequence[str | None] = (facts.address, settings.listen_address, settings.address)
    return tuple(dict.fromkeys(text for text in named if text and _is_address(text)))


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_loopback)


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True

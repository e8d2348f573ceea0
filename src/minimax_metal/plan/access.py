"""Access to the endpoint: keys, TLS, firewall."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from minimax_metal.catalog import EngineRelease
from minimax_metal.plan.findings import Findings
from minimax_metal.plan.model import FirewallPlan, ServicePlan, TlsPlan
from minimax_metal.plan.settings import DECLARED, Settings
from minimax_metal.plan.settings.reading import refuse_value

LOCAL = frozenset({"127.0.0.1", "::1", "localhost"})
EVERY_ADDRESS = frozenset({"0.0.0.0", "::"})  # noqa: S104  # compared with, never bound
KEYS_DIRECTORY = "/etc/sglang"
ENGINE_CONFIG = "engine.yaml"
"""The file that the engine reads with ``--config``: it holds the keys, which a command line would show to
every user.
"""
USER_KEY_FILE = "api_key"
CERTIFICATE, PRIVATE_KEY = "tls.crt", "tls.key"
"""Names of the credentials that systemd passes to the unit."""
CA_CERTIFICATE: Final = "ca.crt"
TLS_DIRECTORY: Final = "/etc/sglang-tls"
"""Not below the keys' directory: each name there is an instance's."""


def check_mode(settings: Settings, found: Findings) -> None:
    """Check that ``metal_tls`` has an allowed value, and that the user sets no certificate beside the
    fleet's.
    """
    if refusal := refuse_value(DECLARED["metal_tls"], settings.tls):
        found.add(refusal)
    elif settings.tls == "fleet":
        for name in ("tls_certificate", "tls_key", "tls_ca_certificate"):
            if getattr(settings, name):
                found.refuse(
                    "tls",
                    f"metal_tls: fleet and metal_{name}",
                    "either the fleet's certificates or your own",
                    f"remove metal_{name}, or set metal_tls: off",
                )


def with_fleet_tls(settings: Settings) -> Settings:
    """Return the settings with the files that the fleet's CA fills, if ``metal_tls`` asks for it."""
    if settings.tls != "fleet":
        return settings
    return replace(
        settings,
        tls_certificate=f"{TLS_DIRECTORY}/{CERTIFICATE}",
        tls_key=f"{TLS_DIRECTORY}/{PRIVATE_KEY}",
        tls_ca_certificate=f"{TLS_DIRECTORY}/{CA_CERTIFICATE}",
    )


def tls_plan(settings: Settings, address: str | None = None) -> TlsPlan | None:
    """Return what a host's certificate is for: every name and address that a client, a gateway or the host
    uses.
    """
    if settings.tls != "fleet":
        return None
    named = (settings.host, settings.tls_name, settings.address, address, settings.listen_address)
    others = [name for name in named if name and name not in EVERY_ADDRESS]
    return TlsPlan(TLS_DIRECTORY, tuple(dict.fromkeys((*others, "localhost", "127.0.0.1", "::1"))))


def keys_directory(settings: Settings, instance: str) -> str | None:
    """Return where an instance's keys are on the host."""
    return f"{KEYS_DIRECTORY}/{instance}" if settings.api_keys else None


def config_arguments(settings: Settings, instance: str) -> list[str]:
    """Return how the engine gets its keys. Its ``--config`` is merged before the command line, which wins."""
    directory = keys_directory(settings, instance)
    return ["--config", f"{directory}/{ENGINE_CONFIG}"] if directory else []


def credentials(settings: Settings) -> dict[str, str]:
    """Return certificate and key as credentials: files of root's that the service user need not be able to
    read.
    """
    if not (settings.tls_certificate and settings.tls_key):
        return {}
    return {CERTIFICATE: settings.tls_certificate, PRIVATE_KEY: settings.tls_key}


def tls_arguments(settings: Settings, unit: str) -> list[str]:
    """Return the engine's TLS flags. No ``--ssl-ca-certs``: with it the engine checks its certificate at
    127.0.0.1.
    """
    if not credentials(settings):
        return []
    directory = f"/run/credentials/{unit}"
    return ["--ssl-certfile", f"{directory}/{CERTIFICATE}", "--ssl-keyfile", f"{directory}/{PRIVATE_KEY}"]


def check_arguments(settings: Settings, instance: str, identity: str | None = None) -> tuple[str, ...]:
    """Return what the post-check needs to connect.

    ``identity``: the address for which the engine proves its identity before it is sent a key.
    """
    words: list[str] = []
    if directory := keys_directory(settings, instance):
        words += ["--api-key-file", f"{directory}/{USER_KEY_FILE}"]
        if identity:
            words += ["--identity", identity]
    if credentials(settings) and settings.tls_ca_certificate:
        words += ["--ca-file", settings.tls_ca_certificate]
    return tuple(words)


def _local(host: str) -> str:
    """Return where the host itself reaches a service listening on ``host``."""
    if host in EVERY_ADDRESS:
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def urls(settings: Settings, port: int) -> tuple[str, str]:
    """Return the endpoint's URL as used by a client on the host, and the health URL at the host's own
    address.
    """
    local = _local(settings.listen_address)
    if not credentials(settings):
        return f"http://{local}:{port}", f"http://{local}:{port}/health"
    if settings.tls == "fleet":
        return f"https://{local}:{port}", f"https://{local}:{port}/health"
    return f"https://{settings.tls_name or settings.host}:{port}", f"https://{local}:{port}/health"


def worker_url(settings: Settings, port: int) -> str:
    """Return where a gateway reaches the endpoint: under TLS by the certificate's name unless one is set."""
    tls = bool(credentials(settings))
    name = settings.address or (settings.tls_name if tls else None) or settings.host
    return f"{'https' if tls else 'http'}://{f'[{name}]' if ':' in name else name}:{port}"


def check_access(settings: Settings, release: EngineRelease | None, found: Findings) -> None:
    """Refuse half a TLS setting; warn about keys sent unencrypted, and about open access."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if bool(certificate) != bool(key):
        given, missing = ("certificate", "key") if certificate else ("key", "certificate")
        found.refuse(
            "tls",
            f"metal_tls_{given} without metal_tls_{missing}",
            "both or neither",
            f"set metal_tls_{missing}",
        )
    if (settings.tls_ca_certificate or settings.tls_name) and not (certificate or key):
        found.warn("tls-unused", "a name or CA certificate for TLS is set, but no metal_tls_certificate")
    if settings.api_keys:
        if not (certificate or key) and settings.listen_address not in LOCAL:
            found.warn(
                "keys-in-clear",
                f"keys and prompts cross the network unencrypted on port {settings.port}: anybody "
                "who can listen on that network can use them; set metal_tls: fleet, or keep the "
                "network to hosts you trust",
            )
        if release and not release.plugins:
            found.warn(
                "keys-readable",
                f"SGLang {release.release} loads no plug-ins: anybody with the user key can read the "
                "admin key at /server_info; from 0.5.16 on it is hidden",
            )
        return
    if settings.listen_address not in LOCAL and not settings.allowed_cidrs:
        found.warn(
            "endpoint-open",
            f"no key and no firewall: anybody who can reach port {settings.port} can use the engine, "
            "pause it and replace its weights",
        )


def firewall_plan(
    settings: Settings, services: Sequence[ServicePlan], found: Findings
) -> FirewallPlan | None:
    """Return networks that may reach the endpoints' ports; empty if the user names no network."""
    networks: Mapping[int, list[str]] = {4: [], 6: []}
    given = [("metal_allowed_cidrs", text) for text in settings.allowed_cidrs]
    given += [("metal_fleet_networks", text) for text in settings.fleet_networks]
    given += [("metal_gateway_addresses", text) for text in settings.gateway_addresses]
    for name, text in given:
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            found.refuse(
                "cidr",
                f"{name} {text}: {error}",
                "networks such as 10.0.0.0/8 or 2001:db8::/32, or addresses",
                _nearest_network(text),
            )
            continue
        # The firewall's own decision knows the fleet's hosts; this one is for the engine's unit.
        if name != "metal_gateway_addresses":
            networks[network.version].append(str(network))
    if not settings.allowed_cidrs:
        return None
    ports = [service.port for service in services] or [settings.port]
    return FirewallPlan(ipv4=tuple(networks[4]), ipv6=tuple(networks[6]), ports=tuple(ports))


def _nearest_network(text: str) -> str:
    """Return the likely correction: host bits are the common mistake."""
    try:
        return f"write {ipaddress.ip_network(text, strict=False)}"
    except ValueError:
        return "fix the network"

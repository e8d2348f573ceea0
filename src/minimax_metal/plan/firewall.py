"""Which networks may reach which port of a host, decided from the inventory for GPU, gateway and cache hosts.
Pure.

A host has a firewall only if ``metal_allowed_cidrs`` names its clients. The table covers only the ports that
the product opens: an error here can't lock anybody out of the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import Any, Final
from urllib.parse import urlsplit

from minimax_metal.common.text import one_line
from minimax_metal.plan.gateway import Options
from minimax_metal.plan.model import Plan
from minimax_metal.plan.settings.roles import ROLE_SETTINGS

SHARE_PORT: Final[int] = ROLE_SETTINGS["model_weights_share_port"].default
ROUTER_ID: Final[int] = ROLE_SETTINGS["sglang_gateway_virtual_router_id"].default
SSH_PORT: Final = 22
NETWORKS: Final = 256
GPU, GATEWAY, CACHE, MONITORING = "gpu_hosts", "gateway_hosts", "cache_hosts", "monitoring_hosts"
Resolver = Callable[[str], Iterable[str]]
Network = IPv4Network | IPv6Network


class FirewallError(Exception):
    """Why no table can be made: what was found, what was expected, what to do; one line."""


@dataclass(frozen=True)
class Rule:
    """Ports that some networks may reach; others are refused there.

    Attributes:
        name: of its chain and sets: letters and ``_``.
        ports: TCP ports; empty if ``router_id`` is matched instead.
        router_id: of VRRP, whose packets have no port.
        ipv4, ipv6: networks, merged and sorted; both empty: only the host itself.
    """

    name: str
    ports: tuple[int, ...]
    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]
    router_id: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "name": self.name,
            "ports": list(self.ports),
            "ipv4": list(self.ipv4),
            "ipv6": list(self.ipv6),
            "router_id": self.router_id,
        }


def decide(
    me: str,
    groups: Mapping[str, Sequence[str]],
    hosts: Mapping[str, Mapping[str, Any]],
    plan: Plan | None,
    resolver: Resolver,
) -> dict[str, Any]:
    """Return the rules of one host.

    Args:
        me: its name in the inventory.
        groups: of the inventory.
        hosts: variables of every host of the product's groups: ``metal_*``, those of the roles, and
            ``ansible_host`` and ``ansible_port``. For others only the addresses count.
        plan: the plan of a GPU host; None elsewhere.
        resolver: name to addresses.

    Returns:
        ``rules`` (empty: no firewall) and ``problem``, a line or None.
    """
    try:
        return {
            "rules": [rule.as_dict() for rule in _rules(me, groups, hosts, plan, resolver)],
            "problem": None,
        }
    except FirewallError as error:
        return {"rules": [], "problem": str(error)}


def client_addresses(hosts: Mapping[str, Mapping[str, Any]], resolver: Resolver) -> list[str]:
    """Return source addresses of gateways and monitoring hosts, for the engine's unit.

    A host with an address for data and one for management may use either. An unknown name has none: the
    firewall's own decision refuses that.

    Args:
        hosts: by name, the variables that contain their addresses.
        resolver: name to addresses.
    """
    found: list[str] = []
    for name, variables in hosts.items():
        reached = variables.get("ansible_host") or name
        for written in dict.fromkeys((variables.get("metal_address") or reached, reached)):
            networks = _addresses(name, {"metal_address": written}, resolver, known=True)
            # Name servers rotate addresses: another order is not another plan.
            ordered = sorted(networks, key=lambda one: (one.version, int(one.network_address)))
            found += [str(network.network_address) for network in ordered]
    return list(dict.fromkeys(found))


def _rules(
    me: str,
    groups: Mapping[str, Sequence[str]],
    hosts: Mapping[str, Mapping[str, Any]],
    plan: Plan | None,
    resolver: Resolver,
) -> list[Rule]:
    own = hosts.get(me) or {}
    clients = networks_of("metal_allowed_cidrs", own.get("metal_allowed_cidrs"))
    if not clients:
        return []
    fleet = networks_of("metal_fleet_networks", own.get("metal_fleet_networks"))

    def hosts_in(*names: str) -> list[Network]:
        found: list[Network] = []
        for name in dict.fromkeys(one for group in names for one in groups.get(group) or ()):
            if name != me:
                found += _addresses(name, hosts.get(name) or {}, resolver, known=bool(fleet))
        return [*found, *fleet]

    rules: list[Rule] = []
    if me in (groups.get(GPU) or ()):
        services = plan.services if plan else ()
        ports = [service.port for service in services] or [own.get("metal_port") or 8000]
        rules.append(_opened("endpoint", ports, [*clients, *hosts_in(GATEWAY, MONITORING)]))
        if _is_on(own.get("model_weights_share", True)) and len(groups[GPU]) > 1:
            port = own.get("model_weights_share_port") or SHARE_PORT
            allow = networks_of(
                "model_weights_share_allow", own.get("model_weights_share_allow"), strict=False
            )
            rules.append(_opened("share", [port], [*hosts_in(GPU), *allow]))
    if me in (groups.get(GATEWAY) or ()):
        port = own.get("sglang_gateway_port") or Options.port
        metrics = own.get("sglang_gateway_metrics_port") or Options.metrics_port
        rules.append(_opened("gateway", [port], [*clients, *hosts_in(MONITORING)]))
        rules.append(_opened("gateway_metrics", [metrics], hosts_in(MONITORING)))
        if own.get("sglang_gateway_virtual_address"):
            rules += _vrrp(me, groups[GATEWAY], hosts, own, fleet, resolver)
    if me in (groups.get(CACHE) or ()):
        allow = networks_of(
            "artefact_cache_allowed_cidrs", own.get("artefact_cache_allowed_cidrs"), strict=False
        )
        for port in _cache_ports(groups, hosts):
            rules.append(_opened("cache", [port], [*(allow or hosts_in(GPU, GATEWAY, CACHE)), *fleet]))
    _check_ports(rules, own)
    return rules


def networks_of(name: str, value: Any, *, strict: bool = True) -> list[Network]:
    """Return the networks of a setting.

    Raises:
        FirewallError: it is not a list of networks, or one of them has host bits set.
    """
    items = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(items, list | tuple) or len(items) > NETWORKS:
        raise FirewallError(
            f"found {name} {one_line(str(value), 80)}, expected a list of at most {NETWORKS} networks; fix it"
        )
    found: list[Network] = []
    for item in items:
        text = item if isinstance(item, str) else f"{item!r}"
        try:
            found.append(ip_network(text, strict=strict))
        except ValueError as error:
            raise FirewallError(
                f"found {name} {one_line(text, 80)}: {one_line(str(error), 80)}, expected networks such as "
                f"10.0.0.0/8 or 2001:db8::/32, or addresses; fix it"
            ) from None
    return found


def _addresses(name: str, variables: Mapping[str, Any], resolver: Resolver, *, known: bool) -> list[Network]:
    """Return a host's source addresses, by the inventory.

    Raises:
        FirewallError: its name has no address, and no network of the fleet is known either.
    """
    written = str(variables.get("metal_address") or variables.get("ansible_host") or name)
    try:
        texts: Iterable[str] = [str(ip_address(written.strip("[]")))]
    except ValueError:
        texts = resolver(written)
    found = [ip_address(text) for text in dict.fromkeys(texts)]
    usable = [ip_network(one) for one in found if not (one.is_loopback or one.is_unspecified)]
    if not usable and not known:
        raise FirewallError(
            f"found no address of {name} ({one_line(written, 80)}) that other hosts can reach, "
            "expected one for the firewall; set ansible_host or metal_address for it, or "
            "metal_fleet_networks"
        )
    return usable


def _vrrp(
    me: str,
    gateways: Sequence[str],
    hosts: Mapping[str, Mapping[str, Any]],
    own: Mapping[str, Any],
    fleet: Sequence[Network],
    resolver: Resolver,
) -> list[Rule]:
    """Return the rule for VRRP of our router id, from the other gateways.

    With multicast (role ``sglang_gateway``: an ``ansible_host`` that is not an IPv4 address) a gateway's
    source address need not be in the inventory. Two gateways that don't hear each other both take the shared
    address, so VRRP is not filtered unless ``metal_fleet_networks`` gives its source.
    """
    unicast = all(_is_ipv4((hosts.get(one) or {}).get("ansible_host")) for one in gateways)
    if not unicast and not fleet:
        return []
    router_id = _number(
        "sglang_gateway_virtual_router_id", own.get("sglang_gateway_virtual_router_id") or ROUTER_ID, 255
    )
    spoken: list[Network] = [
        ip_network(str(hosts[one]["ansible_host"])) for one in gateways if unicast and one != me
    ]
    rule = _opened("virtual_address", [], [*spoken, *fleet])
    return [Rule(rule.name, (), rule.ipv4, rule.ipv6, router_id)]


def _is_ipv4(text: Any) -> bool:
    try:
        return ip_address(str(text)).version == 4
    except ValueError:
        return False


def _cache_ports(groups: Mapping[str, Sequence[str]], hosts: Mapping[str, Mapping[str, Any]]) -> list[int]:
    ports = set()
    for name in groups.get(GPU) or ():
        try:
            port = urlsplit(str((hosts.get(name) or {}).get("metal_cache_url") or "")).port
        except ValueError:
            continue  # the plan of that host refuses it
        if port:
            ports.add(port)
    return sorted(ports)[:1]


def _opened(name: str, ports: Iterable[Any], networks: Iterable[Network]) -> Rule:
    numbers = tuple(sorted({_number(f"port of {name}", port, 65_535) for port in ports}))
    items = list(networks)
    four = collapse_addresses(one for one in items if isinstance(one, IPv4Network))
    six = collapse_addresses(one for one in items if isinstance(one, IPv6Network))
    return Rule(name, numbers, tuple(map(str, four)), tuple(map(str, six)))


def _number(what: str, value: Any, most: int) -> int:
    text = str(value).strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= most):
        raise FirewallError(
            f"found {one_line(text, 40)} as {what}, expected a number from 1 to {most}; fix the variable"
        )
    return int(text)


def _check_ports(rules: Sequence[Rule], own: Mapping[str, Any]) -> None:
    """Check that no rule affects Ansible's own port, and that no two rules conflict.

    Raises:
        FirewallError: one does.
    """
    seen = {SSH_PORT: "ssh", _number("ansible_port", own.get("ansible_port") or SSH_PORT, 65_535): "ssh"}
    for rule in rules:
        for port in rule.ports:
            if port in seen:
                raise FirewallError(
                    f"found port {port} for {rule.name} and for {seen[port]}, expected different "
                    "ports; change one of them"
                )
            seen[port] = rule.name


def _is_on(value: Any) -> bool:
    return str(value).strip().lower() not in {"false", "no", "off", "0", "none", ""}

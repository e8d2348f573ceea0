"""A lab's network: a bridge, a namespace and a link per node, and the uplink through this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.hosts.machine import NETNS, forward_packets
from lab.hosts.processes import run, succeeds

SERVICES: Final = "services"
FIRST_HOST: Final = 11
INTERFACE: Final = "eth0"
LOG_QUEUE: Final = "net.unix.max_dgram_qlen=512"
"""The value that systemd sets on a host with its own kernel (bump_unix_max_dgram_qlen, src/core/main.c), but
not in a container: with the kernel's 10 a burst of lines to /dev/log, such as nginx's, is lost.
"""


@dataclass(frozen=True)
class Node:
    """A place on the lab's network: a host, or the services."""

    number: int
    name: str
    octet: int

    @property
    def address(self) -> str:
        """Its IPv4 address."""
        return f"198.18.{self.number}.{self.octet}"

    @property
    def namespace(self) -> str:
        """Its network namespace, by the name ``ip netns`` knows."""
        return f"mmlab{self.number}-{self.name}"

    @property
    def link(self) -> str:
        """This machine's end of its cable; interface names have at most 15 characters."""
        return f"mm{self.number}n{self.octet}"

    @property
    def hardware_address(self) -> str:
        """Its MAC address: always the same, so that neighbours need not forget it after a repair."""
        return f"02:6d:6d:00:{self.number:02x}:{self.octet:02x}"


@dataclass(frozen=True)
class Network:
    """198.18.N.0/24, from the block that RFC 2544 sets aside for tests of network devices."""

    number: int

    @property
    def cidr(self) -> str:
        """The network."""
        return f"198.18.{self.number}.0/24"

    @property
    def gateway(self) -> str:
        """This machine's address in it."""
        return f"198.18.{self.number}.1"

    @property
    def bridge(self) -> str:
        """The bridge's interface; the nftables table has the same name."""
        return f"mmlab{self.number}"

    @property
    def services(self) -> Node:
        """Where the stand-ins' servers listen."""
        return Node(self.number, SERVICES, 2)

    def hosts(self, names: list[str]) -> dict[str, Node]:
        """Return the hosts' places, in the order of the lab description."""
        return {name: Node(self.number, name, FIRST_HOST + index) for index, name in enumerate(names)}

    def up(self) -> None:
        """Create the bridge, and the uplink; existing parts stay."""
        if not interface_exists(self.bridge):
            run(["ip", "link", "add", self.bridge, "type", "bridge"])
        run(["ip", "address", "replace", f"{self.gateway}/24", "dev", self.bridge])
        run(["ip", "link", "set", self.bridge, "up"])
        forward_packets()
        table = self.bridge
        # Deleted and created in one transaction; the first line lets the second succeed on a bare machine.
        # Nobody outside reaches a host or the hub through this machine: only answers get in.
        rules = f"""
            table ip {table} {{}}
            delete table ip {table}
            table ip {table} {{
              chain out {{
                type nat hook postrouting priority srcnat; policy accept;
                ip saddr {self.cidr} ip daddr != {self.cidr} masquerade
              }}
              chain in {{
                type filter hook forward priority filter; policy accept;
                oifname "{self.bridge}" iifname != "{self.bridge}" ct state new drop
              }}
            }}
        """
        run(["nft", "-f", "-"], stdin=rules)

    def attach(self, node: Node) -> bool:
        """Give a node its namespace, cable and address; True if anything had to be created."""
        made = False
        if not namespace_works(node.namespace):
            if (NETNS / node.namespace).exists():
                run(["ip", "netns", "delete", node.namespace], check=False)
                (NETNS / node.namespace).unlink(missing_ok=True)
            run(["ip", "netns", "add", node.namespace])
            run(["ip", "netns", "exec", node.namespace, "sysctl", "--quiet", "--write", LOG_QUEUE])
            made = True
        inside = ["ip", "-n", node.namespace]
        cable = interface_exists(node.link)
        if not cable or not succeeds([*inside, "link", "show", INTERFACE]):
            if cable:
                run(["ip", "link", "delete", node.link])
            peer = ["peer", "name", INTERFACE, "address", node.hardware_address, "netns", node.namespace]
            run(["ip", "link", "add", node.link, "type", "veth", *peer])
            made = True
        run(["ip", "link", "set", node.link, "master", self.bridge, "up"])
        run([*inside, "link", "set", "lo", "up"])
        run([*inside, "link", "set", INTERFACE, "up"])
        run([*inside, "address", "replace", f"{node.address}/24", "dev", INTERFACE])
        run([*inside, "route", "replace", "default", "via", self.gateway])
        return made

    def remove(self) -> None:
        """Remove everything with this network's number; missing parts are no error."""
        for link in Path("/sys/class/net").glob(f"mm{self.number}n*"):
            run(["ip", "link", "delete", link.name], check=False)
        for namespace in namespaces(self.number):
            run(["ip", "netns", "delete", namespace], check=False)
            (NETNS / namespace).unlink(missing_ok=True)
        if interface_exists(self.bridge):
            run(["ip", "link", "delete", self.bridge])
        if succeeds(["nft", "list", "table", "ip", self.bridge]):
            run(["nft", "delete", "table", "ip", self.bridge])


def interface_exists(name: str) -> bool:
    """Tell whether this machine has an interface of that name."""
    return Path(f"/sys/class/net/{name}").exists()


def namespace_works(name: str) -> bool:
    """Tell whether the named namespace can be entered; a crash may leave a plain file."""
    return (NETNS / name).exists() and succeeds(["nsenter", f"--net={NETNS / name}", "true"])


def namespaces(number: int) -> list[str]:
    """Return the lab's existing namespaces."""
    return sorted(path.name for path in NETNS.glob(f"mmlab{number}-*")) if NETNS.is_dir() else []


def processes_in(namespace: str) -> list[int]:
    """Return the ids of the processes in a namespace."""
    return [int(line) for line in run(["ip", "netns", "pids", namespace], check=False).split()]


def set_link(node: Node, up: bool) -> None:
    """Connect the node's cable, or disconnect it."""
    run(["ip", "link", "set", node.link, "up" if up else "down"])


def link_state(node: Node) -> str:
    """Return ``up``, ``cut`` or ``missing``."""
    if not interface_exists(node.link):
        return "missing"
    shown = json.loads(run(["ip", "-json", "link", "show", node.link]))
    return "up" if "UP" in shown[0]["flags"] else "cut"

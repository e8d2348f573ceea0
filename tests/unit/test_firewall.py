"""The rules of the endpoint's firewall, loaded by nft in a separate network namespace."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.common import nftables
from minimax_metal.controller.names import addresses_of
from minimax_metal.plan.firewall import decide
from minimax_metal.plan.model import Plan
from tests.support.templates import render

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("nft", "ip", "unshare"))),
    reason="needs root, nft and network namespaces",
)
HOST, CLIENT = f"mmfw{os.getpid()}h", f"mmfw{os.getpid()}c"
LISTENER = (
    "import socket, sys\n"
    "s = [socket.create_server(('::', int(p)), family=socket.AF_INET6, dualstack_ipv6=True)"
    " for p in sys.argv[1:]]\n"
    "print('listening', flush=True)\n"
    "sys.stdin.read()\n"
)
CONNECT = (
    "import socket, sys\n"
    "try:\n"
    "    socket.create_connection((sys.argv[1], int(sys.argv[2])), 5, (sys.argv[3], 0)).close()\n"
    "except OSError as e:\n"
    "    print(type(e).__name__)\n"
    "else:\n"
    "    print('open')\n"
)
PYTHON = "/usr/bin/python3"


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()


def inside(namespace: str, *command: str, check: bool = True) -> str:
    return run("ip", "netns", "exec", namespace, *command, check=check)


def reach(address: str, port: int, source: str, namespace: str = CLIENT) -> str:
    return inside(namespace, PYTHON, "-c", CONNECT, address, str(port), source)


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """A host with an endpoint on 8000 and something else on 9000, and a client with two addresses."""
    for name in (HOST, CLIENT):
        run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", "mmfw0", "netns", HOST, "type", "veth", "peer", "mmfw1", "netns", CLIENT)
        for name, link, addresses in (
            (HOST, "mmfw0", ("192.0.2.1/24", "198.51.100.1/24", "2001:db8:1::1/64", "2001:db8:2::1/64")),
            (CLIENT, "mmfw1", ("192.0.2.7/24", "198.51.100.7/24", "2001:db8:1::7/64", "2001:db8:2::7/64")),
        ):
            inside(name, "ip", "link", "set", "lo", "up")
            inside(name, "ip", "link", "set", link, "up")
            for address in addresses:
                options = ("nodad",) if ":" in address else ()
                inside(name, "ip", "address", "add", address, "dev", link, *options)
        listener = subprocess.Popen(
            ["ip", "netns", "exec", HOST, PYTHON, "-c", LISTENER, "8000", "8001", "9000"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert listener.stdout is not None
        assert listener.stdout.readline() == "listening\n"
        yield
        listener.communicate("", timeout=10)
    finally:
        for name in (HOST, CLIENT):
            run("ip", "netns", "delete", name, check=False)


def rule(
    name: str, ports: list[int], ipv4: list[str], ipv6: list[str], router_id: int | None = None
) -> dict[str, Any]:
    return {"name": name, "ports": ports, "ipv4": ipv4, "ipv6": ipv6, "router_id": router_id}


def write(folder: Path, *made: dict[str, Any]) -> str:
    path = folder / "firewall.nft"
    render(path, "firewall.nft.j2", {}, __endpoint_firewall_rules=made)
    return str(path)


def rules(folder: Path, ipv4: list[str], ipv6: list[str], ports: list[int]) -> str:
    return write(folder, rule("endpoint", ports, ipv4, ipv6))


def listed() -> str:
    """Return nft's output for the table, or that there is none, as a task and the status see it."""
    done = subprocess.run(
        ["ip", "netns", "exec", HOST, "nft", "--json", "list", "table", "inet", "minimax_metal"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout or done.stderr


def test_only_the_networks_named_reach_the_endpoint(network: None, tmp_path: Path) -> None:
    # Somebody's own rules, which are to stay.
    inside(
        HOST, "nft", "add table inet mine; add chain inet mine input { type filter hook input priority 0; }"
    )
    before = inside(HOST, "nft", "list", "table", "inet", "mine")
    assert reach("192.0.2.1", 8000, "192.0.2.7") == "open"

    inside(HOST, "nft", "--file", rules(tmp_path, ["192.0.2.0/25"], ["2001:db8:1::/64"], [8000, 8001]))
    assert reach("192.0.2.1", 8000, "192.0.2.7") == "open"
    assert reach("2001:db8:1::1", 8001, "2001:db8:1::7") == "open"
    assert reach("198.51.100.1", 8000, "198.51.100.7") == "ConnectionRefusedError"
    assert reach("198.51.100.1", 8001, "198.51.100.7") == "ConnectionRefusedError"
    assert reach("2001:db8:2::1", 8000, "2001:db8:2::7") == "ConnectionRefusedError"
    # Other ports are nobody's business here, and the host reaches its own endpoint by any address of its own.
    assert reach("198.51.100.1", 9000, "198.51.100.7") == "open"
    assert reach("127.0.0.1", 8000, "127.0.0.1", HOST) == "open"
    assert reach("198.51.100.1", 8000, "198.51.100.1", HOST) == "open"

    # Other rules take the old ones' place; nothing of them is left.
    inside(HOST, "nft", "--file", rules(tmp_path, ["198.51.100.7/32"], [], [8000]))
    assert reach("198.51.100.1", 8000, "198.51.100.7") == "open"
    assert reach("192.0.2.1", 8000, "192.0.2.7") == "ConnectionRefusedError"
    assert reach("2001:db8:1::1", 8000, "2001:db8:1::7") == "ConnectionRefusedError"
    assert reach("192.0.2.1", 8001, "192.0.2.7") == "open"

    # As the unit's stop does it.
    inside(HOST, "nft", "delete", "table", "inet", "minimax_metal")
    assert reach("192.0.2.1", 8000, "192.0.2.7") == "open"
    assert inside(HOST, "nft", "list", "table", "inet", "mine") == before


FLEET: dict[str, Any] = {
    "groups": {
        "gpu_hosts": ["gpu01", "gpu02"],
        "gateway_hosts": ["gw01"],
        "cache_hosts": ["cache01"],
        "monitoring_hosts": ["watch01"],
    },
    "hosts": {
        "gpu01": {"ansible_host": "192.0.2.1", "metal_cache_url": "http://cache01:8081"},
        "gpu02": {"ansible_host": "192.0.2.7"},
        "gw01": {"ansible_host": "198.51.100.7"},
        "cache01": {"ansible_host": "203.0.113.9"},
        "watch01": {"ansible_host": "2001:db8:9::1"},
    },
}


def of_fleet(me: str, **own: Any) -> list[dict[str, Any]]:
    hosts = {**FLEET["hosts"], me: {**FLEET["hosts"][me], **own}}
    services = [{"unit": f"sglang@m-{port}.service", "port": port} for port in (8000, 8001)]
    plan = Plan.of_record({"services": services}) if me.startswith("gpu") else None
    made = decide(me, FLEET["groups"], hosts, plan, addresses_of)
    assert made["problem"] is None
    return list(made["rules"])


def test_each_port_is_open_to_whom_needs_it(network: None, tmp_path: Path) -> None:
    # Clients come from 2001:db8:1::/64 only; 192.0.2.7 is another GPU host, 198.51.100.7 the gateway.
    clients = {"metal_allowed_cidrs": ["2001:db8:1::/64"]}
    made = of_fleet("gpu01", **clients, model_weights_share_port=9000)
    inside(HOST, "nft", "--file", write(tmp_path, *made))
    try:
        for source, endpoint, share in (
            ("2001:db8:1::7", "open", "ConnectionRefusedError"),
            ("198.51.100.7", "open", "ConnectionRefusedError"),
            ("192.0.2.7", "ConnectionRefusedError", "open"),
            ("2001:db8:2::7", "ConnectionRefusedError", "ConnectionRefusedError"),
        ):
            target = re.sub("7$", "1", source)
            assert reach(target, 8000, source) == endpoint, source
            assert reach(target, 8001, source) == endpoint, source
            assert reach(target, 9000, source) == share, source
        assert reach("127.0.0.1", 9000, "127.0.0.1", HOST) == "open"
    finally:
        inside(HOST, "nft", "delete", "table", "inet", "minimax_metal")


def test_rules_that_somebody_changed_are_seen(network: None, tmp_path: Path) -> None:
    file = write(
        tmp_path,
        rule("endpoint", [8000, 8001], ["192.0.2.0/25", "198.51.100.0/24"], ["2001:db8:1::/64"]),
        rule("share", [9000], ["192.0.2.7/32"], []),
        rule("virtual_address", [], ["192.0.2.7/32"], [], 51),
    )
    checksum = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    inside(HOST, "nft", "--file", file)
    noted = f"{checksum}  {file}\n{listed()}"

    def state() -> list[str]:
        return nftables.state(noted, checksum, listed())

    table = ("inet", "minimax_metal")
    assert state() == []
    # Loaded again, with counters that count: handles and figures differ, and nothing else.
    inside(HOST, "nft", "--file", file)
    assert reach("2001:db8:2::1", 8000, "2001:db8:2::7") == "ConnectionRefusedError"
    assert json.loads(listed()) != json.loads(noted.partition("\n")[2])
    assert state() == []
    for change, seen in (
        (("flush", "ruleset"), "the table is gone"),
        (("delete", "table", *table), "the table is gone"),
        (("flush", "table", *table), "rules of endpoint: "),
        (("flush", "chain", *table, "input"), "rules of input: 3 gone, 0 added"),
        (("flush", "chain", *table, "share"), "rules of share: 3 gone, 0 added"),
        (("flush", "set", *table, "endpoint_ipv6"), "set endpoint_ipv6 changed"),
        (("delete", "element", *table, "endpoint_ipv4", "{ 192.0.2.0/25 }"), "set endpoint_ipv4 changed"),
        (("add", "element", *table, "share_ipv4", "{ 203.0.113.0/24 }"), "set share_ipv4 changed"),
        (("insert", "rule", *table, "endpoint", "accept"), "rules of endpoint: 0 gone, 1 added"),
        (("insert", "rule", *table, "input", "counter accept"), "rules of input: 0 gone, 1 added"),
        (("add", "chain", *table, "more"), "chain more added"),
        (("add", "chain", *table, "input", "{ policy drop; }"), "chain input changed"),
    ):
        inside(HOST, "nft", "--file", file)
        inside(HOST, "nft", *change)
        assert any(one.startswith(seen) for one in state()), (change, state())
    # The table of an older version, and one whose load a crash prevented.
    inside(HOST, "nft", "--file", rules(tmp_path, ["192.0.2.0/25"], [], [8000]))
    assert state()
    assert nftables.state(noted, "0" * 64, listed()) == ["the table in force is not that of the rules' file"]
    assert nftables.state("", checksum, listed()) == ["no record that the table was loaded"]
    inside(HOST, "nft", "delete", "table", *table)


def test_rules_in_another_order_are_seen() -> None:
    def listing(*names: str) -> str:
        made = [{"rule": {"chain": "input", "handle": 1, "expr": [name]}} for name in names]
        return json.dumps({"nftables": [{"metainfo": {"version": "1.0.6"}}, *made]})

    assert nftables.differences(listing("a", "b"), listing("b", "a")) == ["rules of input: in another order"]
    assert nftables.differences(listing("a", "b"), listing("a", "b")) == []


@pytest.mark.parametrize(
    "said", ["", "Error: Operation not permitted", "{", "{}", '{"nftables": [1]}', "[" * 9999]
)
def test_an_answer_that_is_no_listing_is_said(said: str) -> None:
    (line,) = nftables.state('x\n{"nftables": []}', "x", said)
    assert line.startswith("can't be read: ")


def test_networks_that_overlap_are_one(network: None, tmp_path: Path) -> None:
    path = rules(
        tmp_path, ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32"], ["2001:db8::/32", "2001:db8:1::/48"], [8000]
    )
    inside(HOST, "nft", "--check", "--file", path)

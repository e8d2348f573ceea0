"""The rules of the endpoint's firewall, loaded by nft in a network namespace that the test makes itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.templates import REPOSITORY, evaluate, render

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


def rules(folder: Path, ipv4: list[str], ipv6: list[str], ports: list[int]) -> str:
    plan: dict[str, Any] = {"firewall": {"ipv4": ipv4, "ipv6": ipv6, "ports": ports}}
    path = folder / "firewall.nft"
    render(path, "firewall.nft.j2", plan)
    return str(path)


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

    # What the role reads to see whether somebody flushed the rules: their names are nft's own.
    listed = inside(HOST, "nft", "list", "table", "inet", "minimax_metal")
    assert "goto endpoints" in listed
    assert "reject with tcp reset" in listed

    # As the unit's stop does it.
    inside(HOST, "nft", "delete", "table", "inet", "minimax_metal")
    assert reach("192.0.2.1", 8000, "192.0.2.7") == "open"
    assert inside(HOST, "nft", "list", "table", "inet", "mine") == before


def test_rules_that_somebody_took_out_are_seen(network: None, tmp_path: Path) -> None:
    plan = {"firewall": {"ipv4": ["192.0.2.0/25"], "ipv6": ["2001:db8:1::/64"], "ports": [8000, 8001]}}
    tasks = yaml.safe_load((REPOSITORY / "roles/endpoint_firewall/tasks/present.yml").read_text())
    expression = tasks[-1]["vars"]
    file = rules(tmp_path, *plan["firewall"].values())

    def whole() -> bool:
        done = subprocess.run(
            ["ip", "netns", "exec", HOST, "nft", "list", "table", "inet", "minimax_metal"],
            capture_output=True,
            text=True,
            check=False,
        )
        loaded = {"rc": done.returncode, "stdout": done.stdout}
        given = {**expression, "metal_plan": plan, "__endpoint_firewall_loaded": loaded}
        return bool(evaluate(given, "__endpoint_firewall_whole"))

    table = ("inet", "minimax_metal")
    for taken in (
        ("flush", "ruleset"),
        ("delete", "table", *table),
        ("flush", "table", *table),
        ("flush", "chain", *table, "input"),
        ("flush", "chain", *table, "endpoints"),
        ("flush", "set", *table, "allowed_ipv6"),
    ):
        inside(HOST, "nft", "--file", file)
        assert whole()
        inside(HOST, "nft", *taken)
        assert not whole(), taken
    # Rules of fewer ports, as an older run had them.
    inside(HOST, "nft", "--file", rules(tmp_path, *list(plan["firewall"].values())[:2], [8000]))
    assert not whole()
    inside(HOST, "nft", "delete", "table", *table)


def test_networks_that_overlap_are_one(network: None, tmp_path: Path) -> None:
    path = rules(
        tmp_path, ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32"], ["2001:db8::/32", "2001:db8:1::/48"], [8000]
    )
    inside(HOST, "nft", "--check", "--file", path)

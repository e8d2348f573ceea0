"""Who may reach which port, as decided from the inventory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from minimax_metal.plan.firewall import ROUTER_ID, SHARE_PORT, client_addresses, decide
from minimax_metal.plan.model import Plan
from tests.support.templates import REPOSITORY

GROUPS = {
    "gpu_hosts": ["gpu01", "gpu02"],
    "gateway_hosts": ["gw01", "gw02"],
    "cache_hosts": ["cache01"],
}
HOSTS: dict[str, dict[str, Any]] = {
    "gpu01": {"ansible_host": "10.0.0.1", "metal_cache_url": "http://10.0.0.9:8081"},
    "gpu02": {"ansible_host": "gpu02.example.net"},
    "gw01": {"ansible_host": "10.0.1.1"},
    "gw02": {"ansible_host": "10.0.1.2"},
    "cache01": {"ansible_host": "10.0.0.9"},
}
NAMES = {"gpu02.example.net": ["10.0.0.2", "2001:db8::2"], "localhost": ["127.0.0.1", "::1"]}
CLIENTS = {"metal_allowed_cidrs": ["10.9.0.0/16"]}


def decided(me: str, own: dict[str, Any], groups: dict[str, list[str]] | None = None) -> dict[str, Any]:
    hosts = {**HOSTS, me: {**HOSTS[me], **own}}
    service = {"unit": "sglang@m.service", "port": 8000}
    plan = Plan.of_record({"services": [service]}) if me.startswith("gpu") else None
    return decide(me, groups or GROUPS, hosts, plan, lambda name: NAMES.get(name, []))


def rules(me: str, own: dict[str, Any]) -> dict[str, dict[str, Any]]:
    made = decided(me, own)
    assert made["problem"] is None
    return {rule["name"]: rule for rule in made["rules"]}


@pytest.mark.parametrize("me", HOSTS)
def test_nobody_gets_a_firewall_who_named_no_clients(me: str) -> None:
    owns: list[dict[str, Any]] = [{}, {"metal_allowed_cidrs": []}, {"metal_fleet_networks": ["10.0.0.0/8"]}]
    for own in owns:
        assert decided(me, own) == {"rules": [], "problem": None}


def test_a_gpu_host_admits_clients_and_gateways_to_the_endpoint_and_gpu_hosts_to_pieces() -> None:
    made = rules("gpu01", CLIENTS)
    assert set(made) == {"endpoint", "share"}
    assert made["endpoint"]["ports"] == [8000]
    assert made["endpoint"]["ipv4"] == ["10.0.1.1/32", "10.0.1.2/32", "10.9.0.0/16"]
    assert made["share"]["ports"] == [18320]
    assert made["share"]["ipv4"] == ["10.0.0.2/32"]
    assert made["share"]["ipv6"] == ["2001:db8::2/128"]
    more = {**CLIENTS, "metal_fleet_networks": "10.0.0.0/24", "model_weights_share_allow": ["10.0.7.1/24"]}
    made = rules("gpu01", more)
    assert made["share"]["ipv4"] == ["10.0.0.0/24", "10.0.7.0/24"]
    assert "10.0.0.0/24" in made["endpoint"]["ipv4"]
    assert set(rules("gpu01", {**CLIENTS, "model_weights_share": False})) == {"endpoint"}


def test_a_gateway_admits_clients_to_its_port_and_other_gateways_to_vrrp() -> None:
    assert set(rules("gw01", CLIENTS)) == {"gateway", "gateway_metrics"}
    made = rules("gw01", {**CLIENTS, "sglang_gateway_virtual_address": "10.9.0.100/24"})
    assert made["gateway"] | {"ipv6": []} == {
        "name": "gateway", "ports": [30000], "ipv4": ["10.9.0.0/16"], "ipv6": [], "router_id": None,
    }  # fmt: skip
    assert made["gateway_metrics"]["ports"] == [29000]
    assert made["gateway_metrics"]["ipv4"] == []
    assert made["virtual_address"]["router_id"] == 51
    assert made["virtual_address"]["ipv4"] == ["10.0.1.2/32"]


def test_vrrp_by_multicast_is_left_alone_unless_its_networks_are_known() -> None:
    own = {**CLIENTS, "sglang_gateway_virtual_address": "10.9.0.100/24", "ansible_host": "gw01.example.net"}
    assert "virtual_address" not in rules("gw01", own)
    made = rules("gw01", {**own, "metal_fleet_networks": ["10.0.1.0/24"]})
    assert made["virtual_address"]["ipv4"] == ["10.0.1.0/24"]


def test_a_cache_admits_the_fleet_or_whom_its_role_names() -> None:
    made = rules("cache01", CLIENTS)
    assert made["cache"]["ports"] == [8081]
    assert made["cache"]["ipv4"] == ["10.0.0.1/32", "10.0.0.2/32", "10.0.1.1/32", "10.0.1.2/32"]
    made = rules("cache01", {**CLIENTS, "artefact_cache_allowed_cidrs": ["10.5.0.0/16"]})
    assert made["cache"]["ipv4"] == ["10.5.0.0/16"]


def test_a_host_with_all_of_it_has_one_table() -> None:
    groups = {group: ["gpu01", *names] for group, names in GROUPS.items()}
    made = decided("gpu01", CLIENTS, groups)
    assert [rule["name"] for rule in made["rules"]] == [
        "endpoint", "share", "gateway", "gateway_metrics", "cache",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"metal_allowed_cidrs": ["10.0.0.1/8"]}, "10.0.0.1/8 has host bits set"),
        ({"metal_allowed_cidrs": ["0.0.0.0/0; drop"]}, "metal_allowed_cidrs 0.0.0.0/0; drop"),
        ({"metal_allowed_cidrs": {"a": 1}}, "expected a list"),
        ({"metal_allowed_cidrs": [10]}, "metal_allowed_cidrs 10"),
        ({"metal_allowed_cidrs": ["10.0.0.0/8"] * 300}, "at most 256"),
        ({**CLIENTS, "metal_fleet_networks": ["fleet"]}, "metal_fleet_networks fleet"),
        ({**CLIENTS, "metal_fleet_networks": ["10.0.0.0/8 }\n}"]}, "metal_fleet_networks 10.0.0.0/8 }"),
        ({**CLIENTS, "model_weights_share_allow": ["x"]}, "model_weights_share_allow x"),
        ({**CLIENTS, "model_weights_share_port": 22}, "port 22 for share and for ssh"),
        ({**CLIENTS, "model_weights_share_port": 2222, "ansible_port": 2222}, "2222 for share and for ssh"),
        ({**CLIENTS, "model_weights_share_port": 8000}, "8000 for share and for endpoint"),
        ({**CLIENTS, "model_weights_share_port": "1 }"}, "found 1 } as port of share"),
        ({**CLIENTS, "model_weights_share_port": 70000}, "1 to 65535"),
    ],
)
def test_what_can_not_be_a_rule_is_refused_in_a_line(own: dict[str, Any], said: str) -> None:
    made = decided("gpu01", own)
    assert made["rules"] == []
    assert said in made["problem"]
    assert "\n" not in made["problem"]
    assert "expected" in made["problem"]


@pytest.mark.parametrize("address", ["unknown.example.net", "localhost", "0.0.0.0", "::1"])  # noqa: S104
def test_a_host_without_an_address_is_named(address: str) -> None:
    hosts = {**HOSTS, "gpu01": {**HOSTS["gpu01"], **CLIENTS}, "gpu02": {"ansible_host": address}}
    made = decide("gpu01", GROUPS, hosts, None, lambda name: NAMES.get(name, []))
    assert "found no address of gpu02" in made["problem"]
    assert "metal_fleet_networks" in made["problem"]
    hosts["gpu01"]["metal_fleet_networks"] = ["10.0.0.0/24"]
    assert decide("gpu01", GROUPS, hosts, None, lambda name: NAMES.get(name, []))["problem"] is None


def test_engines_know_gateways_by_every_address_of_the_inventory() -> None:
    known = {"gw01": ["192.0.2.1", "2001:db8::1"], "gw04": ["127.0.1.1"], "data": ["10.9.0.3"]}
    hosts: dict[str, dict[str, Any]] = {
        "gw01": {},
        "gw02": {"ansible_host": "192.0.2.2"},
        "gw03": {"ansible_host": "[2001:db8::3]", "metal_address": "data"},
        "gw04": {},  # as Debian's /etc/hosts has a host's own name
        "gw05": {},  # unknown: the firewall's decision refuses it
        "prom": {"ansible_host": "192.0.2.2"},
    }
    for turned in (list, lambda found: found[::-1]):
        again = client_addresses(hosts, lambda name, turned=turned: turned(known.get(name, [])))  # type: ignore[misc]
        assert again == client_addresses(hosts, lambda name: known.get(name, []))
    found = client_addresses(hosts, lambda name: known.get(name, []))
    assert found == ["192.0.2.1", "2001:db8::1", "192.0.2.2", "10.9.0.3", "2001:db8::3"]


def test_the_plan_of_a_host_gets_them_from_the_inventory(tmp_path: Path) -> None:
    """With the expressions of playbooks/tasks/plan.yml itself, in Ansible."""
    tasks = yaml.safe_load((REPOSITORY / "playbooks/tasks/plan.yml").read_text())
    words = tasks[1]["block"][0]["vars"]
    play = {
        "hosts": "gpu_hosts",
        "gather_facts": False,
        "tasks": [
            {
                "name": "What is known",
                "ansible.builtin.copy": {
                    "content": "{{ __metal_address | combine(__metal_clients, {}) | to_json }}",
                    "dest": "{{ place }}/{{ inventory_hostname }}",
                    "mode": "0644",
                },
                "vars": {
                    name: words[name] for name in ("__metal_address", "__metal_addresses", "__metal_clients")
                },
            }
        ],
    }
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = {
        "gpu_hosts": {
            "hosts": {"gpu01": {"metal_allowed_cidrs": ["10.0.0.0/8"]}, "gpu02": {}},
            "vars": local,
        },
        "gateway_hosts": {"hosts": {"gw01": {"ansible_host": "192.0.2.1", "metal_address": "{{ data }}"}}},
        "monitoring_hosts": {"hosts": {"prom": {"ansible_host": "192.0.2.9"}}},
        "all": {"vars": {"data": "10.9.0.1", "place": str(tmp_path)}},
    }
    (tmp_path / "hosts.json").write_text(json.dumps(inventory))
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [program, "-i", tmp_path / "hosts.json", tmp_path / "play.yml"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = {name: json.loads((tmp_path / name).read_text()) for name in ("gpu01", "gpu02")}
    assert found["gpu01"]["metal_gateway_addresses"] == ["10.9.0.1", "192.0.2.1", "192.0.2.9"]
    assert "metal_gateway_addresses" not in found["gpu02"]


def test_defaults_are_those_of_the_roles() -> None:
    def default(role: str, name: str) -> Any:
        return yaml.safe_load((REPOSITORY / f"roles/{role}/defaults/main.yml").read_text())[name]

    assert default("model_weights", "model_weights_share_port") == SHARE_PORT
    assert default("sglang_gateway", "sglang_gateway_virtual_router_id") == ROUTER_ID

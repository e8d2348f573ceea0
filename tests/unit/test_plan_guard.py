"""The plan's decisions about the guard around the engine, and about the limits of a unit."""

from __future__ import annotations

import ipaddress
import subprocess
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.controller.adapter import plan_from_variables
from minimax_metal.host.engine_plugin.minimax_metal_engine.settings import Settings as Guarded
from minimax_metal.host.engine_plugin.minimax_metal_engine.settings import read_settings
from tests.support.plugins import load_plugin
from tests.unit.plan_helpers import raw_host
from tests.unit.test_service_template import planned, unit, values

GIB = 2**30


def plan(facts: dict[str, Any] | None = None, **variables: Any) -> dict[str, Any]:
    named = {f"metal_{name}": value for name, value in ({"model": "MiniMax-M2.5"} | variables).items()}
    return plan_from_variables("gpu01", named, raw_host("H200", 8) | (facts or {}))


def codes(found: dict[str, Any]) -> list[str]:
    return [refusal["code"] for refusal in found["refusals"]]


def test_the_guard_is_told_what_the_settings_say_and_has_the_same_defaults() -> None:
    service = plan()["service"]
    told = read_settings(service["environment"], service["argv"])
    assert told == Guarded(served_name="MiniMaxAI/MiniMax-M2.5", identity=service["worker_url"])
    assert service["proves"]
    assert not plan(api_keys=False)["service"]["proves"]
    old = plan(engine_release="0.5.10.post1")["service"]
    assert (old["proves"], "METAL_IDENTITY" in old["environment"]) == (False, False)
    service = plan(
        allowed_media_domains=["Images.example.net", "cdn.example"],
        max_request_mib=8,
        request_seconds=5,
        max_image_megapixels=16,
        served_model_name="ours",
    )["service"]
    told = read_settings(service["environment"], service["argv"])
    assert told.media_domains == {"images.example.net", "cdn.example"}
    assert (told.max_request_bytes, told.request_seconds) == (8 * 2**20, 5.0)
    assert (told.max_image_pixels, told.served_name) == (16_000_000, "ours")


@pytest.mark.parametrize(
    "domain",
    ["169.254.169.254", "[::1]", "*.example.net", "https://a.example", "a.example/x", "a.example:80", "",
     "a b", "a.example,b.example", "-a.example", "a..b", "a_b.example", "pic\u0131.example", "a.example\n",
     "%", "2130706433"],
)  # fmt: skip
def test_a_media_domain_that_is_not_a_name_is_refused(domain: str) -> None:
    found = plan(allowed_media_domains=[domain])
    # A text is stripped when it is read, as every setting is.
    assert codes(found) == ([] if domain == "a.example\n" else ["media-domain"])


@pytest.mark.parametrize("name", ["max_request_mib", "request_seconds", "max_image_megapixels"])
@pytest.mark.parametrize("value", [0, -1, 10**6])
def test_a_limit_has_limits(name: str, value: int) -> None:
    found = plan(None, **{name: value})
    assert codes(found) == ["limit"]
    assert f"metal_{name} {value}" in found["refusals"][0]["found"]


@pytest.mark.parametrize(
    "words",
    ["--enable-http2", "--tokenizer-worker-num 4", "--tokenizer-worker-num=4", "--tokenizer-w 4",
     "--grpc-mode", "--smg-grpc-mode", "--grpc-port 5000", "--use-ray", "--sidecar x", "--encoder-only"],
)  # fmt: skip
def test_what_would_serve_without_the_guard_is_refused(words: str) -> None:
    found = plan(engine_extra_args=words)
    assert codes(found) == ["guard-bypassed"]
    assert plan(engine_extra_args=words, accept_refusals=["guard-bypassed"])["fits"]


def test_a_list_of_plug_ins_has_the_guard_in_it() -> None:
    assert codes(plan(engine_extra_environment={"SGLANG_PLUGINS": "mine"})) == ["guard-bypassed"]
    assert plan(engine_extra_environment={"SGLANG_PLUGINS": "mine, minimax-metal"})["fits"]
    assert plan(engine_extra_args="--enable-metrics --tokenizer-path /x")["fits"]


def test_a_release_without_plug_ins_says_what_is_missing_and_opens_no_media() -> None:
    found = plan(engine_release="0.5.10.post1")
    assert found["fits"], found["refusals"]
    (line,) = [one["message"] for one in found["warnings"] if one["code"] == "guard-missing"]
    for word in ("request size", "model name", "x-api-key", "route", "queue", "drains"):
        assert word in line
    assert codes(plan(engine_release="0.5.10.post1", allowed_media_domains=["a.example"])) == [
        "media-unguarded"
    ]
    assert "media-unguarded" in codes(plan(engine_release="0.5.10.post1", model="MiniMax-M3"))
    assert not [one for one in plan()["warnings"] if "guard" in one["code"]]


def test_with_known_clients_nothing_else_is_reached() -> None:
    service = plan({"address": "10.20.0.5"}, allowed_cidrs=["10.20.0.0/16", "2001:db8::/32"])["service"]
    assert service["ip_deny"] == ["any"]
    assert service["ip_allow"] == ["localhost", "10.20.0.5", "10.20.0.0/16", "2001:db8::/32"]
    assert (
        service["environment"]["NCCL_SOCKET_IFNAME"] == service["environment"]["GLOO_SOCKET_IFNAME"] == "lo"
    )
    service = plan(listen_address="127.0.0.1")["service"]
    assert (service["ip_allow"], service["ip_deny"]) == (["localhost"], ["any"])
    named: dict[str, Any] = {
        "listen_address": "10.20.0.6",
        "address": "10.20.0.7",
        "allowed_cidrs": ["10.9.0.0/16"],
    }
    assert plan(**named)["service"]["ip_allow"] == ["localhost", "10.20.0.6", "10.20.0.7", "10.9.0.0/16"]


def test_gateways_outside_the_clients_networks_are_reached() -> None:
    named: dict[str, Any] = {
        "allowed_cidrs": ["10.20.0.0/16"],
        "gateway_addresses": ["192.0.2.7", "2001:db8:7::1"],
    }
    found = plan({"address": "10.20.0.5"}, **named)
    allowed = ["localhost", "10.20.0.5", "10.20.0.0/16", "192.0.2.7", "2001:db8:7::1"]
    assert found["service"]["ip_allow"] == allowed
    assert found["firewall"]["ipv4"] == ["10.20.0.0/16"], (
        "the firewall's own decision has them by the inventory"
    )
    assert plan(listen_address="127.0.0.1", **named)["service"]["ip_allow"] == ["localhost"]
    assert plan({"address": "10.20.0.5"}, gateway_addresses=["192.0.2.7"])["service"]["ip_allow"] == []
    assert codes(plan(**named | {"gateway_addresses": ["gw01"]})) == ["cidr"]


def test_with_clients_or_media_anywhere_credentials_of_clouds_stay_out_of_reach() -> None:
    everywhere: list[dict[str, Any]] = [
        {},
        {"allowed_cidrs": ["10.0.0.0/8"]},  # the host's own address is not known: it would lock itself out
        {"listen_address": "127.0.0.1", "allowed_media_domains": ["a.example"]},
    ]
    for variables in everywhere:
        service = plan(**variables)["service"]
        assert service["ip_allow"] == []
        denied = [ipaddress.ip_network(text) for text in service["ip_deny"]]
        for address in (
            "169.254.169.254",
            "169.254.170.2",
            "168.63.129.16",
            "100.100.100.200",
            "fd00:ec2::254",
        ):
            one = ipaddress.ip_address(address)
            assert any(one.version == network.version and one in network for network in denied)
        assert "NCCL_SOCKET_IFNAME" not in service["environment"]


@pytest.mark.parametrize(
    ("total", "layout", "expected"),
    [
        (2048 * GIB, "tp8", 2016 * GIB),
        (2048 * GIB, "2xtp4", 1008 * GIB),
        (100 * GIB, "tp8", 90 * GIB),
        (20 * GIB, "tp8", 16 * GIB),
        (6 * GIB, "tp8", 3 * GIB),
        (0, "tp8", None),
    ],
)
def test_memory_is_the_hosts_less_a_reserve_shared_among_replicas(
    total: int, layout: str, expected: int | None
) -> None:
    found = plan({"memory_total_bytes": total}, layout=layout)
    assert [service["memory_max_bytes"] for service in found["services"]] == [expected] * len(
        found["services"]
    )


def test_the_unit_has_it_and_hardening_replaces_it(tmp_path: Path) -> None:
    decided = planned(listen_address="127.0.0.1")
    decided["services"][0]["memory_max_bytes"] = 5 * GIB
    text = unit(tmp_path, decided)
    assert values(text, "IPAddressAllow") == ["localhost"]
    assert values(text, "IPAddressDeny") == ["any"]
    assert values(text, "MemoryMax") == [str(5 * GIB)]
    wishes = {"IPAddressDeny": None, "IPAddressAllow": ["localhost", "10.0.0.0/8"], "MemoryMax": "80%"}
    text = unit(tmp_path, decided, sglang_service_hardening=wishes)
    assert (values(text, "IPAddressDeny"), values(text, "MemoryMax")) == ([], ["80%"])
    assert values(text, "IPAddressAllow") == ["localhost", "10.0.0.0/8"]
    # A release that was recorded before there were such fields is applied as it is.
    for name in ("ip_allow", "ip_deny", "memory_max_bytes"):
        del decided["services"][0][name]
    text = unit(tmp_path, decided)
    assert not values(text, "IPAddressDeny") + values(text, "MemoryMax")


def test_the_address_of_the_host_is_that_of_its_default_route() -> None:
    found = load_plugin("modules/metal_facts").own_address()
    routed = subprocess.run(
        ["ip", "-4", "route", "get", "192.0.2.1"], capture_output=True, text=True, check=False
    )
    assert f" src {found} " in routed.stdout if routed.returncode == 0 else found == ""

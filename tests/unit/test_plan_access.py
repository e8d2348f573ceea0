"""The plan's decisions on who may reach an endpoint: keys, TLS, firewall."""

from __future__ import annotations

from typing import Any

import pytest

from minimax_metal.plan import Plan, Settings, parse_facts, plan
from tests.unit.plan_helpers import codes, decide, flag, raw_host, warned


def host(gpu: str = "H200", count: int = 8, **variables: object) -> Plan:
    named = {f"metal_{name}": value for name, value in ({"model": "MiniMax-M2.5"} | variables).items()}
    return plan(Settings.from_variables("gpu01.example.net", named), parse_facts(raw_host(gpu, count)))


def test_each_instance_has_keys_of_its_own_place_and_no_command_line_shows_one() -> None:
    services = host(layout="2xtp4").services
    assert [one.keys_directory for one in services] == [
        "/etc/sglang/minimax-m2.5-1",
        "/etc/sglang/minimax-m2.5-2",
    ]
    for one in services:
        assert one.argv[one.argv.index("--config") + 1] == f"{one.keys_directory}/engine.yaml"
        assert one.check_arguments == (
            *("--api-key-file", f"{one.keys_directory}/api_key"),
            *("--identity", one.worker_url),
        )
        assert not {"--api-key", "--admin-api-key"} & set(one.argv)


def test_without_keys_nothing_of_them_is_left_and_the_open_door_is_named() -> None:
    service = host(api_keys=False).services[0]
    assert service.keys_directory is None
    assert service.check_arguments == ()
    assert "--config" not in service.argv
    assert "endpoint-open" in warned(host(api_keys=False))
    assert "endpoint-open" not in warned(host(api_keys=False, listen_address="127.0.0.1"))
    assert "endpoint-open" not in warned(host(api_keys=False, allowed_cidrs="10.0.0.0/8"))
    assert "endpoint-open" not in warned(host())


def test_a_config_of_the_users_and_keys_of_ours_are_one_too_many() -> None:
    assert "duplicate-flag" in codes(host(engine_extra_args=["--config", "/etc/mine.yaml"]))
    assert host(engine_extra_args=["--config", "/etc/mine.yaml"], api_keys=False).fits


def test_what_an_old_release_cannot_keep_secret_is_said() -> None:
    assert "keys-readable" in warned(decide("H200", 8, model="M2.5", engine_release="0.5.10.post1"))
    assert "keys-readable" not in warned(decide("H200", 8, model="M2.5", engine_release="0.5.16"))


def test_tls_is_the_engines_own_with_files_that_only_root_need_read() -> None:
    given: dict[str, Any] = {"tls_certificate": "/etc/tls/chain.pem", "tls_key": "/etc/tls/private.pem"}
    service = host(**given).services[0]
    place = "/run/credentials/sglang@minimax-m2.5.service"
    assert service.credentials == {"tls.crt": "/etc/tls/chain.pem", "tls.key": "/etc/tls/private.pem"}
    assert flag(host(**given), "--ssl-certfile") == f"{place}/tls.crt"
    assert flag(host(**given), "--ssl-keyfile") == f"{place}/tls.key"
    # Checked by the name in the certificate; the supervisor asks its own child where it is.
    assert service.url == "https://gpu01.example.net:8000"
    assert service.ready_url == "https://127.0.0.1:8000/health"
    named = host(**given, tls_name="llm.example.net", tls_ca_certificate="/etc/tls/ca.pem").services[0]
    assert named.url == "https://llm.example.net:8000"
    assert named.check_arguments[-2:] == ("--ca-file", "/etc/tls/ca.pem")


def test_a_gateway_reaches_a_worker_by_its_address_and_under_tls_by_the_certificates_name() -> None:
    assert [one.worker_url for one in host(layout="2xtp4").services] == [
        "http://gpu01.example.net:8000",
        "http://gpu01.example.net:8001",
    ]
    assert host(address="10.0.0.7").services[0].worker_url == "http://10.0.0.7:8000"
    assert host(address="2001:db8::7").services[0].worker_url == "http://[2001:db8::7]:8000"
    tls: dict[str, Any] = {"tls_certificate": "/etc/tls/chain.pem", "tls_key": "/etc/tls/private.pem"}
    assert host(**tls).services[0].worker_url == "https://gpu01.example.net:8000"
    assert host(**tls, tls_name="a.example.net").services[0].worker_url == "https://a.example.net:8000"
    assert host(**tls, tls_name="a", address="b").services[0].worker_url == "https://b:8000"


@pytest.mark.parametrize("half", ["tls_certificate", "tls_key"])
def test_half_of_tls_is_refused(half: str) -> None:
    asked: dict[str, Any] = {half: "/etc/tls/file.pem"}
    assert codes(host(**asked)) == {"tls"}


def test_keys_in_clear_are_said() -> None:
    assert "keys-in-clear" in warned(host())
    assert "keys-in-clear" in warned(host(listen_address="192.0.2.7"))
    for quiet in (
        {"tls_certificate": "/etc/tls/file.pem", "tls_key": "/etc/tls/key.pem"},
        {"listen_address": "127.0.0.1"},
        {"api_keys": False},
    ):
        assert "keys-in-clear" not in warned(host(**quiet)), quiet


def test_one_setting_gives_the_endpoint_a_certificate_of_the_fleets_own() -> None:
    planned = host(tls="fleet", address="10.0.0.7")
    service = planned.services[0]
    assert planned.tls is not None
    assert planned.tls.names[:2] == ("gpu01.example.net", "10.0.0.7")
    assert {"localhost", "127.0.0.1", "::1"} < set(planned.tls.names)
    assert service.credentials == {"tls.crt": "/etc/sglang-tls/tls.crt", "tls.key": "/etc/sglang-tls/tls.key"}
    # By addresses that the certificate names: nobody has to resolve a name for it.
    assert service.url == "https://127.0.0.1:8000"
    assert service.worker_url == "https://10.0.0.7:8000"
    assert service.check_arguments[-2:] == ("--ca-file", "/etc/sglang-tls/ca.crt")
    assert flag(planned, "--ssl-certfile") == "/run/credentials/sglang@minimax-m2.5.service/tls.crt"
    assert not {"keys-in-clear", "tls-unused"} & set(warned(planned))
    told = next(one.message for one in host().warnings if one.code == "keys-in-clear")
    assert "set metal_tls: fleet" in told


def test_off_is_the_default_as_yaml_reads_it_too() -> None:
    for off in ({}, {"tls": "off"}, {"tls": False}):
        assert host(**off).tls is None
        assert host(**off).services[0].url.startswith("http://")


@pytest.mark.parametrize(
    ("value", "near"), [("fleat", "fleet"), ("Fleet", "fleet"), ("of", "off"), ("yes", "fleet")]
)
def test_another_word_is_refused_with_the_nearest(value: str, near: str) -> None:
    (refusal,) = host(tls=value).refusals
    assert refusal.code == "tls"
    assert refusal.remedy == f"did you mean {near}?"


def test_a_certificate_of_ones_own_beside_the_fleets_is_refused() -> None:
    assert codes(host(tls="fleet", tls_certificate="/c", tls_key="/k")) == {"tls"}


def test_a_name_without_tls_is_said() -> None:
    assert "tls-unused" in warned(host(tls_name="llm.example.net"))


def test_no_networks_no_firewall() -> None:
    assert host().firewall is None


def test_networks_are_sorted_by_kind_and_cover_every_replica() -> None:
    firewall = host(layout="2xtp4", allowed_cidrs=["10.0.0.0/8", "2001:db8::/32", "192.0.2.7"]).firewall
    assert firewall is not None
    assert firewall.ipv4 == ("10.0.0.0/8", "192.0.2.7/32")
    assert firewall.ipv6 == ("2001:db8::/32",)
    assert firewall.ports == (8000, 8001)


@pytest.mark.parametrize(
    ("network", "remedy"),
    [("10.0.0.1/8", "write 10.0.0.0/8"), ("10.0.0/8", "fix the network"), ("gpu01", "fix the")],
)
def test_what_is_no_network_is_refused_with_what_was_meant(network: str, remedy: str) -> None:
    (refusal,) = host(allowed_cidrs=[network]).refusals
    assert refusal.code == "cidr"
    assert refusal.remedy.startswith(remedy)

"""The plan's decisions for a gateway."""

from __future__ import annotations

from typing import Any

import pytest

from minimax_metal.plan import Settings, parse_facts
from minimax_metal.plan.gateway import GatewayPlan, Options, configuration, gateway_plan
from minimax_metal.plan.model import Plan
from tests.unit.plan_helpers import raw_host


def worker_plan(url: str, model: str = "M", weight: int = 1) -> dict[str, Any]:
    limits = {"weight": weight, "max_running_requests": 4 * weight, "max_queued_requests": 8}
    service = {"unit": "sglang@m.service", "worker_url": url, "limits": limits}
    return {"model": {"served_name": model}, "services": [service]}


PLANS = {"gpu01": worker_plan("http://gpu01:8000"), "gpu02": worker_plan("http://gpu02:8000", weight=3)}


def decide(
    plans: dict[str, dict[str, Any]] | None = None,
    before: list[dict[str, Any]] | None = None,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> GatewayPlan:
    facts = parse_facts(raw_host("H20", 4))
    return gateway_plan(
        Settings.from_variables("gw01", settings or {}),
        facts,
        Options.read(options),
        {name: Plan.of_record(one) for name, one in (PLANS if plans is None else plans).items()},
        before or [],
    )


def flag(plan: GatewayPlan, name: str) -> str:
    return plan.argv[plan.argv.index(name) + 1]


def test_a_host_without_gpus_and_model_has_a_plan() -> None:
    plan = decide()
    assert plan.refusals == ()
    assert plan.host_tools is not None
    assert plan.environment is not None
    assert plan.environment.startswith(f"/opt/sglang-gateway/{plan.release}-")
    assert plan.argv[:2] == (f"{plan.environment}/bin/python", "launch")
    assert plan.url == "http://127.0.0.1:30000"


def test_workers_are_those_of_the_plans_with_their_share() -> None:
    workers = decide().workers
    assert [(one.url, one.host, one.weight, one.max_running_requests) for one in workers] == [
        ("http://gpu01:8000", "gpu01", 1, 4),
        ("http://gpu02:8000", "gpu02", 3, 12),
    ]


def test_keys_in_clear_are_said_for_each_side_of_the_gateway() -> None:
    def said(url: str, **settings: bool) -> list[str]:
        plans = {"gpu01": worker_plan(url)}
        return [one for one in decide(plans, settings=settings).warnings if " unencrypted " in one]

    assert [one.split(" cross ")[0].split(" unencrypted")[0] for one in said("http://gpu01:8000")] == [
        "clients' keys and prompts",
        "the gateway sends keys and prompts",
    ]
    assert len(said("https://gpu01:8000")) == 1
    assert said("http://gpu01:8000", metal_api_keys=False) == []


def test_a_host_that_was_not_read_keeps_the_workers_it_had() -> None:
    before = decide().as_dict()["workers"]
    plan = decide({"gpu01": {}, "gpu02": worker_plan("http://gpu02:9000")}, before)
    assert [one.url for one in plan.workers] == ["http://gpu01:8000", "http://gpu02:9000"]
    # Behind it: that keys go in clear on both sides of a gateway without TLS.
    assert plan.warnings[0] == "gpu01 could not be read: keeps 1 workers"
    assert [" unencrypted " in one for one in plan.warnings] == [False, True, True]
    # A host that left the inventory leaves the pool.
    assert [one.url for one in decide({"gpu02": {}}, before).workers] == ["http://gpu02:8000"]


def test_workers_that_another_version_wrote_down_are_kept_as_far_as_they_are_understood() -> None:
    before: list[Any] = [
        {
            "host": "gpu01",
            "url": "http://gpu01:8000",
            "model": "M",
            "weight": 2,
            "orbit": 1,
        },  # of a newer one
        {"host": "gpu01", "url": "http://gpu01:8001"},  # an older one
        {"host": "gpu01"},
        {"host": "gpu01", "url": 7},
        "gpu01",
        None,
    ]
    workers = decide({"gpu01": {}}, before).workers
    assert [(one.url, one.weight, one.proves) for one in workers] == [
        ("http://gpu01:8000", 2, False),
        ("http://gpu01:8001", 1, False),
    ]


def test_one_url_for_two_hosts_is_refused() -> None:
    plan = decide({"a": worker_plan("http://x:8000"), "b": worker_plan("http://x:8000")})
    assert [one.line("gw01") for one in plan.refusals] == [
        "gw01: worker-twice: found http://x:8000 for a and b; needed a distinct URL for each worker; "
        "set metal_address for each"
    ]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"tls_certificate": "/x"}, "tls"),
        ({"tls_key": "/x"}, "tls"),
        ({"policy": "fairness"}, "gateway-policy"),
        ({"port": 70000}, "port"),
        ({"metrics_port": 30000}, "port"),
    ],
)
def test_what_smg_would_fail_on_is_refused_before(options: dict[str, Any], code: str) -> None:
    assert [one.code for one in decide(**options).refusals] == [code]


def test_options_become_the_command_and_no_key_does() -> None:
    plan = decide(retries=0, policy="least_load", queued_per_worker="4", tls_certificate="/c", tls_key="/k")
    assert flag(plan, "--policy") == "least_load"
    assert flag(plan, "--worker-overload-waiting-requests") == "4"
    assert "--disable-retries" in plan.argv
    assert flag(plan, "--tls-cert-path") == "/run/credentials/sglang-gateway.service/tls.crt"
    assert plan.url == "https://gw01:30000"
    assert not {"--api-key", "--control-plane-api-keys", "--worker-urls"} & set(plan.argv)
    assert flag(decide(), "--retry-max-retries") == "3"
    assert flag(decide(listen_address="2001:db8::1"), "--host") == "2001:db8::1"
    assert decide(listen_address="2001:db8::1").url == "http://[2001:db8::1]:30000"


def test_the_configuration_on_the_host_names_keys_and_holds_none() -> None:
    found = configuration(decide(), Options())
    assert found["admin_key_file"] == "/etc/sglang-gateway/admin_key"
    assert found["api_key_file"] == "/etc/sglang-gateway/api_key"
    assert [worker["url"] for worker in found["workers"]] == ["http://gpu01:8000", "http://gpu02:8000"]
    keyless = decide(settings={"metal_api_keys": False})
    assert configuration(keyless, Options())["api_key_file"] is None


def test_workers_that_can_prove_themselves_have_to_unless_they_are_taken_on_trust() -> None:
    plans = {"gpu01": worker_plan("http://gpu01:8000"), "gpu02": worker_plan("http://gpu02:8000")}
    plans["gpu01"]["services"][0]["proves"] = True
    assert [worker.proves for worker in decide(plans).workers] == [True, False]
    assert configuration(decide(plans), Options())["workers"][0]["proves"] is True
    assert not any(worker.proves for worker in decide(plans, require_proof=False).workers)
    assert not any(worker.proves for worker in decide(plans, settings={"metal_api_keys": False}).workers)


def test_the_largest_request_has_a_bound_and_the_bound_has_one() -> None:
    assert flag(decide(), "--max-payload-size") == str(64 * 2**20)
    assert flag(decide(max_request_mib=8), "--max-payload-size") == str(8 * 2**20)
    assert [one.code for one in decide(max_request_mib=0).refusals] == ["limit"]


def test_one_setting_gives_the_gateway_a_certificate_and_the_fleets_ca_for_its_workers() -> None:
    plan = decide(settings={"metal_tls": "fleet"})
    place = "/run/credentials/sglang-gateway.service"
    assert flag(plan, "--tls-cert-path") == f"{place}/tls.crt"
    assert flag(plan, "--tls-key-path") == f"{place}/tls.key"
    # As a credential: the gateway's user can't reach root's directory.
    assert flag(plan, "--ca-cert-paths") == f"{place}/ca.crt"
    assert plan.url == "https://127.0.0.1:30000"
    assert plan.tls is not None
    assert plan.tls["serves"]
    assert {"gw01", "127.0.0.1"} <= set(plan.tls["names"])
    found = configuration(plan, Options())
    assert found["ca_file"] == found["engine_ca_file"] == "/etc/sglang-gateway/ca.crt"


def test_a_gateway_keeps_a_certificate_of_the_users_own_before_the_fleets_workers() -> None:
    options: dict[str, Any] = {"tls_certificate": "/c", "tls_key": "/k"}
    plan = decide(settings={"metal_tls": "fleet"}, **options)
    assert plan.tls is not None
    assert not plan.tls["serves"]
    assert plan.url == "https://gw01:30000"
    found = configuration(plan, Options.read(options))
    assert (found["ca_file"], found["engine_ca_file"]) == (None, "/etc/sglang-gateway/ca.crt")


def test_a_word_that_metal_tls_does_not_have_is_refused_for_a_gateway_too() -> None:
    assert [one.code for one in decide(settings={"metal_tls": "fleat"}).refusals] == ["tls"]

"""Which files of keys and certificates a gateway has, and which are left over."""

from __future__ import annotations

from typing import Any

import pytest

from minimax_metal.plan.gateway_files import certificates, credentials, unused

HERE = "/etc/sglang-gateway"
KEYS = {"admin_key": f"{HERE}/admin_key", "api_key": f"{HERE}/api_key"}
OFF: dict[str, Any] = {"api_keys": True, "tls": None}
FLEET: dict[str, Any] = {"api_keys": True, "tls": {"serves": True, "names": []}}
USERS: dict[str, Any] = {"tls_certificate": "/etc/tls/chain.pem", "tls_key": "/etc/tls/key.pem"}


@pytest.mark.parametrize(
    ("plan", "options", "found"),
    [
        (OFF, {}, KEYS),
        ({"api_keys": False}, {}, {"admin_key": f"{HERE}/admin_key"}),
        (OFF, USERS, {"tls.crt": "/etc/tls/chain.pem", "tls.key": "/etc/tls/key.pem", **KEYS}),
        (FLEET, {}, {**{name: f"{HERE}/{name}" for name in ("tls.key", "tls.crt", "ca.crt")}, **KEYS}),
        (
            FLEET | {"tls": {"serves": False, "names": []}},
            USERS,
            {
                "tls.crt": "/etc/tls/chain.pem",
                "tls.key": "/etc/tls/key.pem",
                "ca.crt": f"{HERE}/ca.crt",
                **KEYS,
            },
        ),
    ],
)
def test_a_credential_is_the_fleets_or_the_users(
    plan: dict[str, Any], options: dict[str, Any], found: dict[str, str]
) -> None:
    assert credentials(plan, options) == found


def test_the_fleets_files_hold_a_part_of_its_certificate_each() -> None:
    assert certificates(FLEET) == {"tls.key": "key", "tls.crt": "certificate", "ca.crt": "ca"}
    assert certificates(OFF) == {}


@pytest.mark.parametrize(
    ("plan", "options", "names"),
    [
        (FLEET, {}, []),
        (FLEET | {"tls": {"serves": False}}, USERS, ["tls.key", "tls.crt"]),
        (OFF, {}, ["tls.key", "tls.crt", "ca.crt"]),
        (OFF, {"worker_ca_certificate": f"{HERE}/ca.crt"}, ["tls.key", "tls.crt"]),
        (OFF, {"tls_certificate": f"{HERE}/tls.crt", "tls_key": f"{HERE}/tls.key"}, ["ca.crt"]),
    ],
)
def test_what_an_earlier_run_left_goes_but_nothing_of_the_users(
    plan: dict[str, Any], options: dict[str, Any], names: list[str]
) -> None:
    assert unused(plan, options) == [f"{HERE}/{name}" for name in names]

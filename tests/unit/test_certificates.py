"""The end of certificates is read correctly and reported in time; unused ones are removed."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from minimax_metal.cli import main
from minimax_metal.common.certificates import FLEET_DAYS, OWN_DAYS, end_of, end_of_file, warning
from minimax_metal.controller.adapter import gateway_from_variables, plan_host
from minimax_metal.controller.keys.authority import CA_DAYS, HOST_DAYS, issued
from minimax_metal.controller.status.drift import differences
from minimax_metal.host.status.answers import UnreadableError, checked
from minimax_metal.host.status.drift import local_drift
from minimax_metal.host.status.look import certificates_of
from minimax_metal.plan import certificates
from minimax_metal.plan.model import Plan
from minimax_metal.plan.rollout.works import _bears_on_process
from tests.unit.plan_helpers import raw_host
from tests.unit.test_owned_roles import planned
from tests.unit.test_plan_contract import raw

REPOSITORY = Path(__file__).parents[2]
NOW = datetime.datetime(2026, 11, 29, 12, tzinfo=datetime.UTC)


def days(number: float) -> datetime.datetime:
    return NOW + datetime.timedelta(days=number)


def certificate(end: datetime.datetime, begin: datetime.datetime = NOW) -> bytes:
    """A user's own certificate, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "llm.example")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = builder.serial_number(7).not_valid_before(begin).not_valid_after(end).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)


# Reading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end", [days(1), days(365), datetime.datetime(2049, 12, 31, 23, 59, 59), days(36_500)]
)
def test_the_end_is_what_cryptography_says(end: datetime.datetime) -> None:
    """Before 2050 with a two-digit year, from then on with four digits (RFC 5280, 4.1.2.5)."""
    end = end.replace(tzinfo=datetime.UTC)
    pem = certificate(end)
    assert end_of(pem) == end == x509.load_pem_x509_certificate(pem).not_valid_after_utc
    assert end_of(b"Bag Attributes\n  friendlyName: x\n" + pem + certificate(days(9))) == end, (
        "the first of a chain"
    )


def test_of_the_fleets_own_both_are_read(tmp_path: Path) -> None:
    made = issued(tmp_path, "gpu01", ["gpu01"], now=NOW)
    assert end_of(made.certificate.encode()) == days(HOST_DAYS)
    assert end_of_file(tmp_path / "ca.crt") == days(CA_DAYS)
    assert end_of_file(tmp_path / "host-gpu01.key") is None, "a key is not a certificate"
    with pytest.raises(FileNotFoundError):
        end_of_file(tmp_path / "none")


GOOD = certificate(days(1)).rstrip()


@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=3))
@example(0, b"")
def test_any_bytes_have_an_end_or_none(place: int, other: bytes) -> None:
    found = end_of(GOOD[:place] + other + GOOD[place + len(other) :])
    assert found is None or found.tzinfo is datetime.UTC
    assert end_of(GOOD[:place]) is None


# What is said ---------------------------------------------------------------------------------------------


def test_a_certificate_is_warned_of_in_time_and_not_before() -> None:
    assert warning("x", days(OWN_DAYS), NOW, fleet=False) is None
    assert warning("x", days(OWN_DAYS - 1), NOW, fleet=False) == (
        "x ends on 2026-12-28, in 29 days; renew it, then restart what serves by it"
    )
    assert warning("x", days(FLEET_DAYS), NOW, fleet=True) is None
    late = warning("x", days(-1), NOW, fleet=True)
    assert late == "x ended on 2026-11-28; run site.yml, which renews it"
    assert "no certificate that can be read" in str(warning("x", None, NOW, fleet=False))


def plan_of(**variables: Any) -> Plan:
    return plan_host("gpu01", {"metal_model": "MiniMax-M2.5", **variables}, raw("H200", 8))


def test_a_host_says_when_what_it_serves_by_ends(tmp_path: Path) -> None:
    own = tmp_path / "own.pem"
    own.write_bytes(certificate(days(10)))
    service = {"unit": "sglang@m.service", "credentials": {"tls.crt": str(own), "tls.key": "/k"}}
    plan: dict[str, Any] = {"services": [service, service]}
    found = certificates_of(Plan.of_record(plan))
    assert found == [{"path": str(own), "ends": days(10).isoformat(), "fleet": False}]
    lost = {"unit": "x", "credentials": {"tls.crt": str(tmp_path / "tls" / "tls.crt")}}
    lost_plan = {"services": [lost], "tls": {"directory": str(tmp_path / "tls")}}
    found += certificates_of(Plan.of_record(lost_plan))
    assert found[1] == {"path": str(tmp_path / "tls" / "tls.crt"), "ends": None, "fleet": True}
    here = checked({"release": {"number": 1}, "certificates": found})
    said = [one for one in local_drift(here, NOW) if "tls" in one or "own.pem" in one]
    assert said == [
        f"{own} ends on 2026-12-09, in 10 days; renew it, then restart what serves by it",
        f"{tmp_path}/tls/tls.crt: found no certificate that can be read; run site.yml, which renews it",
    ]
    assert not [one for one in local_drift(here, days(-300)) if "own.pem" in one]
    for odd in ({}, {"services": 5}, {"services": [5, {"credentials": 5}, {"credentials": {"tls.crt": 5}}]}):
        assert certificates_of(Plan.of_record(odd)) == []


@pytest.mark.parametrize("value", [5, [5], [{"ends": "soon"}], [{"ends": 5}], [{"path": 5}]])
def test_a_hosts_word_of_its_certificates_spoils_its_own_row(value: Any) -> None:
    with pytest.raises(UnreadableError):
        checked({"certificates": value})


def test_drift_sees_the_fleets_tls_come_and_go() -> None:
    on, off = plan_of(metal_tls="fleet"), plan_of()
    assert "TLS of the fleet none -> /etc/sglang-tls" in differences(off, on)
    assert "TLS of the fleet /etc/sglang-tls -> none" in differences(on, off)
    assert differences(on, on) == []


def test_the_plan_says_when_the_fleets_certificates_end_and_warns_near_it(tmp_path: Path) -> None:
    plan = plan_of(metal_tls="fleet")
    tls = tmp_path / "secrets" / "tls"
    before = certificates.ends_of("gpu01", tmp_path / "secrets")
    assert certificates.with_notices(plan, before, NOW) == plan, "no run has made them yet"
    issued(tls, "gpu01", ["gpu01"], now=NOW)
    ends = certificates.ends_of("gpu01", tmp_path / "secrets")

    def said(now: datetime.datetime) -> dict[str, str]:
        found = certificates.with_notices(plan, ends, now).warnings[len(plan.warnings) :]
        return {one.code: one.message for one in found}

    assert said(NOW) == {
        "tls-until": "the certificate ends on 2027-11-29, the CA ends on 2036-11-26; "
        "site.yml renews the certificate before that"
    }
    assert said(days(HOST_DAYS - FLEET_DAYS + 1))["tls-ends"].startswith(
        "the host's certificate ends on 2027-11-29, in 89 days; run site.yml"
    )
    told = said(days(CA_DAYS - 400))["tls-ends"]
    assert "the fleet's CA ends on 2036-11-26 and issues no certificates after" in told


def test_metal_plan_shows_it_of_an_inventorys_own_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from minimax_metal.controller import inventory

    variables = {"metal_model": "MiniMax-M2.5", "metal_tls": "fleet"}
    host = inventory.InventoryHost("gpu01", variables, raw("H200", 8))
    monkeypatch.setattr(inventory, "read_inventory", lambda *_, **__: [host])
    (tmp_path / "hosts.yml").touch()
    assert main(["plan", "-i", str(tmp_path / "hosts.yml")]) == 0
    assert "tls-until" not in capsys.readouterr().out
    made = issued(tmp_path / "secrets" / "tls", "gpu01", ["gpu01"])
    assert main(["plan", "-i", str(tmp_path / "hosts.yml")]) == 0
    assert f"note     gpu01: tls-until: the certificate ends on {made.until}" in capsys.readouterr().out


def test_where_secrets_are_is_read_as_the_roles_have_it(tmp_path: Path) -> None:
    found = certificates.secrets_directory
    (tmp_path / "hosts.yml").touch()
    assert found([tmp_path / "hosts.yml"], {}) == found([tmp_path], {}) == tmp_path / "secrets"
    assert found([tmp_path], {"metal_secrets_directory": "/s"}) == Path("/s")
    both = {"metal_secrets_directory": "/s", "sglang_service_secrets_directory": "~/t"}
    assert found([tmp_path], both) == Path("~/t").expanduser()
    assert found([tmp_path], {"metal_secrets_directory": "{{ x }}/s"}) is None


# The roles ------------------------------------------------------------------------------------------------


def test_a_rollout_restarts_an_engine_for_another_certificate() -> None:
    assert _bears_on_process("/etc/sglang-tls/tls.crt")


def owned(role: str, **arguments: Any) -> dict[str, Any]:
    """The task that reads a role's list of what it owns."""
    return {"minimax.metal.metal_owned": {**arguments, "role": str(REPOSITORY / "roles" / role)}}


def play(
    place: Path, role: str, tasks: list[dict[str, Any]], plan: dict[str, Any], *words: str, **more: Any
) -> str:
    """Run tasks of a role with its own variables on this machine; return Ansible's output."""
    files = [str(REPOSITORY / "roles" / role / part / "main.yml") for part in ("defaults", "vars")]
    written = {"hosts": "all", "gather_facts": False, "vars_files": files, "tasks": tasks}
    (place / "play.yml").write_text(json.dumps([written]))
    extra = {
        "metal_plan": plan,
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        **more,
    }
    (place / "extra.json").write_text(json.dumps(extra))
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [program, "-i", "gpu01,", place / "play.yml", "-e", f"@{place / 'extra.json'}", *words],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_without_tls_the_fleets_certificate_goes_and_a_users_own_stays(tmp_path: Path) -> None:
    tls = tmp_path / "sglang-tls"
    tls.mkdir()
    (tls / "tls.key").write_text("a key")
    tasks = [owned("sglang_service", part="tls_left")]
    service: dict[str, Any] = {"unit": "sglang@m.service", "credentials": {}}
    off: dict[str, Any] = {"tls": None, "services": [service]}
    more = {"__sglang_service_tls_directory": str(tls)}
    kept: list[dict[str, Any]] = [
        {"tls": {"directory": str(tls), "names": []}, "services": [service]},
        {"services": [service | {"credentials": {"tls.crt": f"{tls}/mine.pem", "tls.key": "/k"}}]},
    ]
    for plan in kept:
        assert "changed=0" in play(tmp_path, "sglang_service", tasks, plan, **more)
    assert "changed=1" in play(tmp_path, "sglang_service", tasks, off, "--check", **more)
    assert (tls / "tls.key").exists(), "check mode writes nothing"
    assert "changed=1" in play(tmp_path, "sglang_service", tasks, off, **more)
    assert not tls.exists()
    assert "changed=0" in play(tmp_path, "sglang_service", tasks, off, **more)


def test_a_gateway_keeps_only_the_certificates_that_it_serves_by(tmp_path: Path) -> None:
    for name in ("tls.crt", "tls.key", "ca.crt", "admin_key"):
        (tmp_path / name).write_text(name)
    task = owned("sglang_gateway", part="unused")
    more = {
        "__sglang_gateway_directory": str(tmp_path),
        "sglang_gateway_worker_ca_certificate": f"{tmp_path}/ca.crt",
    }
    whole = gateway_from_variables("gpu01", {}, raw_host("H200", 8), {}, {"gpu01": planned()})
    on = whole | {"tls": {"names": [], "serves": True}}
    assert "changed=0" in play(tmp_path, "sglang_gateway", [task], on, **more)
    assert "changed=1" in play(tmp_path, "sglang_gateway", [task], whole, **more)
    left = sorted(
        path.name
        for path in tmp_path.iterdir()
        if path.suffix in {".crt", ".key"} or path.name == "admin_key"
    )
    assert left == ["admin_key", "ca.crt"], "the authority that the user names is the user's"
    assert "changed=0" in play(tmp_path, "sglang_gateway", [task], whole, **more)


def test_a_rollout_compares_the_certificate_with_what_it_should_be(tmp_path: Path) -> None:
    plan = planned(tls="fleet")
    tls = tmp_path / "sglang-tls"
    tls.mkdir()
    plan["tls"]["directory"] = str(tls)
    made = issued(tmp_path / "secrets" / "tls", "gpu01", plan["tls"]["names"])
    wanted = {"tls.crt": made.certificate, "tls.key": made.key, "ca.crt": made.ca}
    for name, text in wanted.items():
        (tls / name).write_text(text)
        (tls / name).chmod(0o600 if name == "tls.key" else 0o644)
    (tls / "tls.crt").write_text("another")
    compare = owned("sglang_service", write=False) | {"register": "compared"}
    keep = {"content": "{{ compared.content }}", "dest": str(tmp_path / "o"), "mode": "0600"}
    more = {"metal_secrets_directory": str(tmp_path / "secrets")}
    play(tmp_path, "sglang_service", [compare, {"ansible.builtin.copy": keep}], plan, **more)
    found = yaml.safe_load((tmp_path / "o").read_text())
    assert [path for path in found if path.startswith(str(tls))] == [f"{tls}/tls.crt"]

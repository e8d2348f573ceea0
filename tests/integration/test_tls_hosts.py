"""``metal_tls`` on lab hosts: the fleet's certificates are installed, renewed in time, and removed.

In order. ``METAL_LAB_NAME`` names a running lab that is used as it is, and left: one of ``lab/labs/tls.yml``,
or any with these two hosts.
"""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from minimax_metal.controller.keys.authority import issued
from tests.support.site import REPOSITORY, Lab, Run, booted

ENGINE, GATEWAY = "gpu01", "gw01"
UNIT = "sglang@minimax-m2.5.service"
MODEL = "MiniMaxAI/MiniMax-M2.5"
TLS = {ENGINE: "/etc/sglang-tls", GATEWAY: "/etc/sglang-gateway"}
TAGS = "host_tools,sglang_service,sglang_gateway,post_check"
LABELS = {ENGINE: ENGINE, GATEWAY: f"{GATEWAY}_gateway"}
"""The controller's names for the certificates."""


@dataclass
class Hosts:
    """Both hosts, and the controller's files for them."""

    lab: Lab
    doors: dict[str, str]
    """Address and port by host."""
    provisioned: bool

    @property
    def kept(self) -> Path:
        return self.lab.state / "secrets/tls"

    def site(self, mode: str) -> Run:
        """Run the parts that use certificates; all of it on a bare lab."""
        given = {"metal_tls": mode, "post_check_figures": []}
        part = ["--tags", TAGS] if self.provisioned else []
        run = self.lab.play("site.yml", "-e", json.dumps(given), *part)
        assert run.returncode == 0, run.output[-6000:]
        self.provisioned = True
        return run

    def chat(self, host: str, scheme: str = "https") -> int:
        """Return the status of a chat, with a client that trusts only the fleet's authority."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        request = urllib.request.Request(  # noqa: S310  # the lab's own network
            f"{scheme}://{self.doors[host]}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self.lab.api_key}"},
        )
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if scheme == "https":
            context = ssl.create_default_context(cafile=str(self.kept / "ca.crt"))
            handlers.append(urllib.request.HTTPSHandler(context=context))
        with urllib.request.build_opener(*handlers).open(request, timeout=60) as answer:
            return int(answer.status)

    def served(self, host: str) -> x509.Certificate:
        """The certificate that a client receives."""
        address, _, port = self.doors[host].partition(":")
        return x509.load_pem_x509_certificate(
            ssl.get_server_certificate((address, int(port)), timeout=20).encode()
        )

    def started(self) -> dict[str, str]:
        units = {ENGINE: UNIT, GATEWAY: "sglang-gateway.service"}
        show = "systemctl show -P ExecMainStartTimestampMonotonic"
        return {host: self.lab.ssh(host, f"{show} {unit}").strip() for host, unit in units.items()}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    place = tmp_path_factory.mktemp("inventory")
    groups = {"gpu_hosts": {"hosts": {ENGINE: None}}, "gateway_hosts": {"hosts": {GATEWAY: None}}}
    (place / "hosts.json").write_text(json.dumps(groups))
    (place / "group_vars").symlink_to(REPOSITORY / "inventories/lab-fleet/group_vars")
    with booted("tls", "tls", str(place)) as lab:
        words = (lab.state / "inventory/hosts.yml").read_text().split()
        ports = {ENGINE: 8000, GATEWAY: 30000}
        doors = {host: f"{words[words.index(f'{host}:') + 2]}:{port}" for host, port in ports.items()}
        yield Hosts(lab, doors, provisioned=not lab.fresh)


def test_the_fleets_certificates_are_served_and_nothing_in_clear(hosts: Hosts) -> None:
    hosts.site("fleet")
    for host in TLS:
        assert hosts.chat(host) == 200
        with pytest.raises((OSError, http.client.HTTPException)):
            hosts.chat(host, "http")
        assert hosts.lab.ssh(host, f"stat -c %a:%U {TLS[host]}/tls.key").strip() == "600:root"
    assert hosts.site("fleet").changed == {}


def test_a_certificate_near_its_end_is_renewed_and_served(hosts: Hosts) -> None:
    began = datetime.now(UTC) - timedelta(days=330)
    for host, label in LABELS.items():
        certificate = hosts.kept / f"host-{label}.crt"
        found = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions
        names = found.get_extension_for_class(x509.SubjectAlternativeName).value
        certificate.unlink()
        # As eleven months ago: 35 days are left of it, on the controller, on the host and for clients.
        old = issued(hosts.kept, label, [str(name.value) for name in names], now=began)
        files = {"tls.crt": old.certificate, "tls.key": old.key}
        for name, text in files.items():
            hosts.lab.ssh(host, f"cat > {TLS[host]}/{name} <<'END'\n{text}END\n")
    hosts.lab.ssh(ENGINE, f"systemctl restart {UNIT}")
    hosts.lab.ssh(GATEWAY, "systemctl restart sglang-gateway.service")
    soon = datetime.now(UTC) + timedelta(days=60)
    for host in TLS:
        assert hosts.served(host).not_valid_after_utc < soon, (
            "the host doesn't serve the certificate of before"
        )
    before = hosts.started()
    run = hosts.site("fleet")
    for host in TLS:
        assert hosts.served(host).not_valid_after_utc > datetime.now(UTC) + timedelta(days=360), host
        assert hosts.chat(host) == 200
    after = hosts.started()
    assert {host for host in before if before[host] != after[host]} == {*TLS}, run.changed
    assert "Write the units and certificates of the engine" in run.changed[ENGINE]
    assert hosts.site("fleet").changed == {}
    assert hosts.started() == after


def test_without_it_again_no_certificate_is_left(hosts: Hosts) -> None:
    hosts.site("off")
    for host in TLS:
        assert hosts.chat(host, "http") == 200
        found = hosts.lab.ssh(
            host, f"ls -d {TLS[ENGINE]} {TLS[GATEWAY]}/*.crt {TLS[GATEWAY]}/tls.key 2>&1 || true"
        )
        assert "No such file" in found
        assert {line for line in found.splitlines() if "No such file" not in line} == set(), found
        # Nothing of systemd names what is gone, either.
        assert (
            hosts.lab.ssh(host, "grep -rlE 'sglang-tls|/tls[.]key' /etc/systemd/system || true").strip() == ""
        )
    started = hosts.started()
    assert hosts.site("off").changed == {}
    assert hosts.started() == started

"""Gateways on lab hosts: the role, real smg and keepalived under systemd, replicas with the simulated engine.

`METAL_LAB_NAME` names a running lab of lab/labs/fleet.yml with two serving replicas; without it a new one is
made. The hosts are those of inventories/lab-fleet.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.gateway import words
from tests.support.site import Lab, Run, booted

REPLICAS = ("gpu01", "gpu02")
GATEWAYS = ("gw01", "gw02")
MODEL = "MiniMaxAI/MiniMax-M2.5"
MANIFEST = "/var/lib/minimax-metal/gateway/workers.json"
DROP_IN = "/etc/systemd/system/sglang@minimax-m2.5.service.d/50-pace.conf"


@dataclass
class Fleet:
    """Two replicas behind two gateways that share an address."""

    lab: Lab
    address: str

    def play(self, *arguments: str) -> Run:
        virtual = f"sglang_gateway_virtual_address={self.address}/24"
        limit = ":".join((*REPLICAS, *GATEWAYS))
        return self.lab.play("playbooks/gateway.yml", "--limit", limit, "--extra-vars", virtual, *arguments)

    def worker(self, host: str) -> str:
        workers = json.loads(self.lab.ssh("gw01", "cat /etc/sglang-gateway/admin.json"))["workers"]
        return next(str(one["url"]) for one in workers if one["host"] == host)

    def metal(self, gateway: str, verb: str, *arguments: str) -> str:
        return self.lab.ssh(gateway, f"metal gateway {verb} {' '.join(arguments)} 2>&1; echo rc=$?").strip()

    def requests(self, host: str, event: str) -> list[str]:
        text = self.lab.ssh(host, "cat /var/lib/sglang/requests-8000.jsonl")
        entries = [json.loads(line) for line in text.splitlines()]
        return [entry["id"] for entry in entries if entry["event"] == event and entry["id"]]

    def of(self, run: str, host: str, event: str) -> int:
        """Return the number of requests of a run, by the prefix of their ids, for which the replica logged
        this.
        """
        return sum(identity.startswith(run) for identity in self.requests(host, event))

    def curl(self, identity: str, tokens: int, at: str) -> list[str]:
        body = {"model": MODEL, "user": identity, "messages": [{"role": "user", "content": identity}],
                "stream": True, "ignore_eos": True, "max_tokens": tokens}  # fmt: skip
        url = f"http://{at}:30000/v1/chat/completions"
        headers = (f"Authorization: Bearer {self.lab.api_key}", "Content-Type: application/json")
        return ["curl", "--silent", "--no-buffer", "--max-time", "120", "--noproxy", "*", url,
                *("--header", headers[0]), *("--header", headers[1]), "--data", json.dumps(body)]  # fmt: skip

    def ask(self, identity: str, tokens: int = 5, at: str | None = None) -> str:
        done = subprocess.run(
            self.curl(identity, tokens, at or self.address), capture_output=True, text=True, check=False
        )
        return done.stdout

    def holder(self) -> list[str]:
        """Return the gateways that have the shared address."""
        return [one for one in GATEWAYS if self.address in self.lab.ssh(one, "ip -o -4 address")]


def wait(what: Callable[[], object], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with booted("gateway", "fleet", "inventories/lab-fleet") as lab:
        address = lab.ssh("gw01", "ip -o -4 address show scope global | grep -o '[0-9.]*/24'").split("/")[0]
        found = Fleet(lab, address.rpartition(".")[0] + ".250")
        if lab.fresh:
            served = lab.play("site.yml", "--limit", ":".join(REPLICAS))
            assert served.returncode == 0, served.output
        played = found.play()
        assert played.returncode == 0, played.output
        for host in REPLICAS:
            # Slow enough for a drain to be seen waiting.
            pace = "[Service]\\nEnvironment=SIMULATED_TOKEN_SECONDS=0.05\\n"
            lab.ssh(host, f"mkdir -p {Path(DROP_IN).parent} && printf '{pace}' > {DROP_IN} && "
                          "systemctl daemon-reload && systemctl restart sglang@minimax-m2.5")  # fmt: skip
        wait(lambda: all("0 drained, all ready" in found.metal(one, "sync") for one in GATEWAYS))
        yield found


def test_a_second_run_changes_nothing(fleet: Fleet) -> None:
    again = fleet.play()
    assert again.returncode == 0, again.output
    assert again.changed == {}


def test_what_was_changed_by_hand_is_put_back_and_nothing_else(fleet: Fleet) -> None:
    fleet.lab.ssh("gw02", "chmod 0644 /etc/sglang-gateway/admin_key; echo '{}' > " + MANIFEST)
    run = fleet.play()
    assert run.returncode == 0, run.output
    # The watch of the workers writes the manifest too, every two seconds, and may have been first.
    manifest = "Sync the pool with the plan, without drained workers"
    assert {host: [task for task in tasks if task != manifest] for host, tasks in run.changed.items()} == {
        "gw02": [
            "Write the gateway's keys",
            "Restart the gateway",  # for the key: whether others read it meanwhile, nobody knows
        ]
    }
    assert len(json.loads(fleet.lab.ssh("gw02", f"cat {MANIFEST}"))["workers"]) == len(REPLICAS)
    assert fleet.lab.ssh("gw02", "stat -c %a /etc/sglang-gateway/admin_key").strip() == "600"


def test_a_drain_on_both_gateways_loses_nothing(fleet: Fleet) -> None:
    run = f"long-{time.time_ns()}-"
    running = [
        subprocess.Popen(fleet.curl(f"{run}{number}", 400, fleet.address), stdout=subprocess.PIPE, text=True)
        for number in range(4)
    ]
    # One replica may have them all: their prompts begin alike, and the gateway goes by that.
    wait(lambda: sum(fleet.of(run, host, "first") for host in REPLICAS) == len(running))
    busy = max(REPLICAS, key=lambda host: fleet.of(run, host, "first"))
    url = fleet.worker(busy)
    for gateway in GATEWAYS:
        said = fleet.metal(gateway, "drain", "--no-wait", "--worker", url)
        assert said.endswith("out of the pool: changed\nrc=0"), said
    before = len(fleet.requests(busy, "received"))
    for number in range(4):
        assert "[DONE]" in fleet.ask(f"meanwhile-{number}")
    assert len(fleet.requests(busy, "received")) == before
    assert fleet.of(run, busy, "whole") < fleet.of(run, busy, "first"), "ended before the wait began"
    for gateway in GATEWAYS:
        said = fleet.metal(gateway, "drain", "--worker", url)
        assert said.endswith("drained, nothing in flight: unchanged\nrc=0"), said
        assert fleet.of(run, busy, "whole") == fleet.of(run, busy, "first")
    for process in running:
        out, _ = process.communicate(timeout=120)
        assert out.endswith("data: [DONE]\n\n")
        assert words(out) == 400
    # Neither a restart of the gateway nor a run of the playbook brings it back.
    fleet.lab.ssh("gw01", "systemctl restart sglang-gateway")
    assert fleet.play().returncode == 0
    assert "1 drained" in fleet.metal("gw01", "sync", "--no-wait")
    for gateway in GATEWAYS:
        assert fleet.metal(gateway, "undrain", "--worker", url).endswith(
            "in the pool and ready: changed\nrc=0"
        )


def test_keys_are_for_root_alone(fleet: Fleet) -> None:
    lab = fleet.lab
    secrets = [lab.api_key, (lab.state / "secrets/gateway_admin_key").read_text().strip()]
    shown = lab.ssh(
        "gw01",
        "ps -eo args=; systemctl show sglang-gateway; systemctl cat sglang-gateway; "
        "journalctl -u sglang-gateway --no-pager; cat /etc/sglang-gateway/admin.json",
    )
    places = "/etc /var/lib /run /opt/sglang-gateway"
    readable = lab.ssh(
        "gw01", f"runuser -u nobody -- grep -rIlE '{'|'.join(secrets)}' {places} 2>/dev/null || true"
    )
    assert not [secret for secret in secrets if secret in shown]
    assert readable.strip() == ""
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://{fleet.address}:30000/workers", timeout=20)  # the lab's own network
    assert refused.value.code == 401


def test_the_address_moves_when_a_gateway_is_gone_and_does_not_move_back(fleet: Fleet) -> None:
    wait(lambda: len(fleet.holder()) == 1)
    first = fleet.holder()[0]
    other = next(one for one in GATEWAYS if one != first)
    assert "[DONE]" in fleet.ask("before")
    fleet.lab.ssh(first, "systemctl stop sglang-gateway")
    wait(lambda: fleet.holder() == [other])
    wait(lambda: "[DONE]" in fleet.ask("after"))
    fleet.lab.ssh(first, "systemctl start sglang-gateway")
    wait(lambda: fleet.metal(first, "healthy").endswith("rc=0"))
    time.sleep(15)  # five looks of keepalived
    assert fleet.holder() == [other]
    # The host's cable, not only the unit.
    fleet.lab.lab("cut", other)
    try:
        wait(lambda: fleet.address in fleet.lab.ssh(first, "ip -o -4 address"))
        wait(lambda: "[DONE]" in fleet.ask("cut"))
    finally:
        fleet.lab.lab("restore", other)
    wait(lambda: len(fleet.holder()) == 1)

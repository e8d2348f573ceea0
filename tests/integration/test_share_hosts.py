"""Two lab hosts share a pull: the origin is read once, nobody else gets in, nothing is served afterwards.

Runs ``site.yml`` with the tags of the host tools and the weights; no engine. ``METAL_LAB_NAME`` uses a lab of
that name as it is; it must be of the kind of lab/labs/share.yml.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.support.site import Lab, Run, booted

pytestmark = [pytest.mark.lab, pytest.mark.timeout(2400)]

HOSTS = ("gpu01", "gpu02")
MODEL = "/srv/models/MiniMaxAI/MiniMax-M2.5"
UNIT = "metal-weights-share@minimax-m2.5.service"
PULL = "metal-weights@minimax-m2.5.service"
SECRET = "c0ffee" * 10 + "beef"
"""Put on one host beforehand: the run must use it, and show it nowhere."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with booted("share", "share") as lab:
        yield lab


def sent(lab: Lab) -> int:
    """Bytes of the model's large files that the hub has sent, on either site."""
    total = 0
    for line in (lab.state / "services" / "hub.log").read_text().splitlines():
        if line.startswith("{"):
            entry = json.loads(line)
            if "-cdn/" in entry["path"] or ".safetensors" in entry["query"]:
                total += entry["bytes"] if entry["status"] in {200, 206} else 0
    return total


def play(lab: Lab, *arguments: str, tags: str = "host_tools,model_weights") -> Run:
    variables = {
        "metal_model": "MiniMax-M2.5",
        "model_weights_share_piece_bytes": 100_000,
        "model_weights_progress_seconds": 2,
    }
    return lab.play("site.yml", "-vv", "--tags", tags, "--extra-vars", json.dumps(variables), *arguments)


def large(lab: Lab) -> int:
    found = lab.ssh("gpu01", f"stat -c %s {MODEL}/*/*.safetensors").split()
    return sum(map(int, found))


def test_the_origin_is_read_once_and_nothing_is_served_afterwards(lab: Lab) -> None:
    folder = "/etc/minimax-metal/share"
    for host in HOSTS:
        lab.ssh(
            host, "systemctl stop 'metal-weights*' 2>/dev/null; rm -rf /srv/models/MiniMaxAI", check=False
        )
    lab.ssh(
        "gpu02", f"mkdir -p -m 700 {folder} && echo {SECRET} > {folder}/secret && chmod 600 {folder}/secret"
    )
    lab.ssh("gpu01", f"rm -rf {folder}")
    before = sent(lab)
    run = play(lab)
    print(run.output)
    assert run.returncode == 0
    assert large(lab) <= sent(lab) - before <= 1.02 * large(lab)
    assert re.search(
        r"2 hosts: [\d.]+ MB from the source, 1\.0\d × the model, [\d.]+ MB from one another", run.output
    )
    for host in HOSTS:
        assert re.search(rf"^  {host}: .*by itself, .*from other hosts", run.output, re.MULTILINE)
        assert lab.ssh(host, f"systemctl is-active {UNIT}", check=False).strip() == "inactive"
        assert lab.ssh(host, f"systemctl is-enabled {UNIT}", check=False).strip() == "disabled"
        assert lab.ssh(host, "systemctl is-active nginx.service", check=False).strip() == "inactive"
        assert lab.ssh(host, "ss -Hltn 'sport = :80 or sport = :18320'").strip() == ""
        assert "all match the manifest" in lab.ssh(host, f"metal weights verify {MODEL}/*")
        assert lab.ssh(host, f"stat -c '%a %U' {folder} {folder}/secret").split() == [
            "700",
            "root",
            "600",
            "root",
        ]
        assert lab.ssh(host, f"cat {folder}/secret").strip() == SECRET, "what one host had is the fleet's"
        logs = lab.ssh(
            host, f"journalctl --no-pager -u {UNIT} -u {PULL}; cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
        )
        assert SECRET not in logs
        readable = lab.ssh(
            host, f"grep -rl {SECRET} /etc /run /srv /var/lib /var/log /tmp 2>/dev/null", check=False
        )
        assert readable.split() == [f"{folder}/secret"], "nowhere but where root alone reads it"
    assert SECRET not in run.output


def test_a_second_run_changes_nothing(lab: Lab) -> None:
    before = sent(lab)
    run = play(lab, tags="model_weights")
    assert run.returncode == 0, run.output
    assert run.changed == {}
    assert sent(lab) == before


def test_a_host_that_lost_its_weights_has_them_from_the_other(lab: Lab) -> None:
    lab.ssh("gpu02", "rm -rf /srv/models/MiniMaxAI")
    before = sent(lab)
    run = play(lab, tags="model_weights")
    assert run.returncode == 0, run.output
    assert sent(lab) == before, "not one byte from the hub"
    assert "2 hosts: 0 B from the source" in run.output
    assert lab.ssh("gpu01", f"systemctl is-active {UNIT}", check=False).strip() == "inactive"

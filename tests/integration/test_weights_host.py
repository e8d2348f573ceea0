"""The pull as a unit on a lab host: tokens, branches, live lines, a reboot halfway, adopting.

Runs ``site.yml`` with the tags of the host tools and the weights; no engine. ``METAL_LAB_NAME`` uses a lab of
that name as it is; it must be of the kind of lab/labs/weights.yml.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.hub import Store
from minimax_metal.common.sizes import spell_bytes
from tests.support.site import Lab, Run, booted

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]

HOST = "gpu01"
MODEL = "/srv/models/MiniMaxAI/MiniMax-M2.5"
UNIT = "metal-weights@minimax-m2.5.service"
REPOSITORY = "MiniMaxAI/MiniMax-M2.5"
TOKEN = "canary-of-the-token"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with booted("weights", "weights") as lab:
        yield lab


def slow(lab: Lab, rate: int | None) -> None:
    rules = [] if rate is None else [{"match": "-cdn/", "fault": "throttle", "rate": rate}]
    (lab.state / "services" / "hub-faults.json").write_text(json.dumps(rules))


def sent(lab: Lab, skip: int = 0) -> int:
    """Bytes of large files that the hub has sent, except those of the first ``skip`` requests."""
    return sum(line["bytes"] for line in requests(lab)[skip:] if "-cdn/" in line["path"])


def requests(lab: Lab) -> list[dict[str, Any]]:
    found = []
    for line in (lab.state / "services" / "hub.log").read_text().splitlines():
        if line.startswith("{"):
            found.append(json.loads(line))
    return found


def spelled(lab: Lab, directory: str = f"{MODEL}/main") -> str:
    """The model's size as shown to users."""
    command = f"find {directory} -type f -not -path '*/.minimax-metal/*' -printf '%s\\n'"
    return spell_bytes(sum(map(int, lab.ssh(HOST, command).split())))


def play(lab: Lab, tmp_path: Path, tags: str = "host_tools,model_weights", **variables: Any) -> Run:
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    more = {
        "metal_model_revision": "main",
        "model_weights_token_files": {"hf-mirror": str(token)},
        "model_weights_progress_seconds": 2,
        **variables,
    }
    return lab.play(
        "site.yml",
        *("--limit", HOST, "--tags", tags, "--extra-vars", json.dumps(more)),
    )


def test_a_pull_goes_on_across_a_reboot(lab: Lab, tmp_path: Path) -> None:
    Store(lab.state / "hub").gate("huggingface", REPOSITORY, TOKEN)
    slow(lab, 30_000)
    skip = len(requests(lab))
    runs: list[Run] = []
    thread = threading.Thread(target=lambda: runs.append(play(lab, tmp_path)))
    thread.start()
    rebooted = False
    deadline = time.monotonic() + 600
    while thread.is_alive() and time.monotonic() < deadline:
        status = lab.ssh(HOST, f"systemctl show {UNIT} -p StatusText --value || true", check=False)
        share = re.match(r"([\d.]+) %", status)
        if not rebooted and share and float(share[1]) > 20:
            lab.lab("reboot", HOST)
            rebooted = True
            slow(lab, 120_000)
        time.sleep(0.5)
    thread.join(timeout=60)
    assert rebooted, "the pull was over before it could be met"
    (run,) = runs
    print(run.output)
    assert run.returncode == 0
    size = re.escape(spelled(lab))
    assert re.search(rf"^  {HOST}: weights {REPOSITORY}: [\d.]+ % \(.* of {size}\)", run.output, re.MULTILINE)
    assert re.search(rf"'{HOST}: weights {REPOSITORY}: verified", run.output)
    assert TOKEN not in run.output
    assert TOKEN not in lab.ssh(
        HOST, f"journalctl --no-pager -u {UNIT}; cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
    )
    total = int(lab.ssh(HOST, f"du -sb --exclude=.minimax-metal {MODEL}/main").split()[0])
    # An orderly reboot flushes what came; beyond the size is what was in flight on eight connections.
    assert sent(lab, skip) <= total + 8 * 64_000
    commit = json.loads(lab.ssh(HOST, f"cat {MODEL}/main/.minimax-metal/manifest.json"))["revision"]
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert f'"revision": "{commit}"' in lab.ssh(HOST, "cat /etc/minimax-metal/weights/minimax-m2.5.json")


def test_a_second_run_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    skip = len(requests(lab))
    run = play(lab, tmp_path, "model_weights")
    assert run.returncode == 0, run.output
    assert run.changed == {}
    assert requests(lab)[skip:] == [], "nobody asks the hub for what is settled"


def test_what_an_older_version_gave_to_the_engine_is_the_pulls_and_stays(lab: Lab, tmp_path: Path) -> None:
    """One user did everything: commit 1e81a2b gave these directories to ``sglang``, seen on a lab host."""
    files = f"find {MODEL} -type f -printf '%i %s %T@ %p\\n' | sort"
    places = "/srv/models /var/lib/minimax-metal-weights /var/cache/minimax-metal-weights"
    lab.ssh(HOST, f"mkdir -p {places} && chown -R sglang:sglang {places}")
    lab.ssh(
        HOST, "mkdir /var/lib/minimax-metal-weights/kept && chown sglang: /var/lib/minimax-metal-weights/kept"
    )
    before, skip = lab.ssh(HOST, files), len(requests(lab))
    run = play(lab, tmp_path, "model_weights")
    assert run.returncode == 0, run.output
    assert "Give the directories of the weights to root and the pull's user" in run.changed[HOST]
    assert requests(lab)[skip:] == []
    assert lab.ssh(HOST, files) == before, "a file was written anew"
    assert lab.ssh(HOST, f"find {places} -user sglang -o -group sglang").strip() == ""
    owners = lab.ssh(
        HOST, f"stat -c %U /srv/models /srv/models/MiniMaxAI {MODEL} {MODEL}/main {places}"
    ).split()
    assert owners == ["root", "root", *["sglang-weights"] * 2, "root", *["sglang-weights"] * 2]
    assert play(lab, tmp_path, "model_weights").changed == {}


def test_what_is_there_is_adopted(lab: Lab, tmp_path: Path) -> None:
    # Root's own: a copy that kept the service as its owner could not be read below /root, which is said then.
    copy = f"mkdir -p /root/mine && cp -a --no-preserve=ownership {MODEL}/main/. /root/mine"
    lab.ssh(HOST, f"{copy} && rm -r /root/mine/.minimax-metal")
    lab.ssh(HOST, f"chmod 700 /root/mine && metal weights remove {MODEL}/main")
    before = lab.ssh(HOST, "find /root/mine -type f -printf '%p %m %u %T@ %s\\n' | sort")
    skip = len(requests(lab))
    run = play(lab, tmp_path, "model_weights", metal_weights_adopt=["/root/mine"])
    assert run.returncode == 0, run.output
    assert sent(lab, skip) == 0, lab.ssh(HOST, f"journalctl --no-pager -u {UNIT} | tail -n 40")
    assert lab.ssh(HOST, "find /root/mine -type f -printf '%p %m %u %T@ %s\\n' | sort") == before
    assert "all match the manifest" in lab.ssh(HOST, f"metal weights verify {MODEL}/main")
    assert f"adopted {spelled(lab)}" in lab.ssh(HOST, f"journalctl --no-pager -u {UNIT}")
    assert lab.ssh(
        HOST, f"sudo -u sglang cat {MODEL}/main/config.json || runuser -u sglang cat {MODEL}/main/config.json"
    )


def test_removal_refuses_what_is_served(lab: Lab) -> None:
    unit = "/etc/systemd/system/sglang@test.service"
    lab.ssh(HOST, f"printf '[Service]\\nExecStart=/bin/true --model-path {MODEL}/main\\n' > {unit}")
    said = lab.ssh(HOST, f"metal weights remove {MODEL}/main 2>&1 || true; metal weights list; rm {unit}")
    assert "is used by unit sglang@test.service" in said
    assert f"{MODEL}/main: {spelled(lab)}, used" in said


def test_a_draft_of_its_own_repository_is_pulled_beside_the_model(lab: Lab, tmp_path: Path) -> None:
    draft = "thoughtworks/MiniMax-M2.5-Eagle3"
    folder = tmp_path / "draft"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLMEagle3"]}')
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 4000)
    commit = Store(lab.state / "hub").publish("huggingface", draft, folder).commit
    asked: dict[str, Any] = {
        "metal_speculative_draft_model": draft,
        "metal_speculative_draft_revision": commit,
        "model_weights_keep_unused": 0,
    }
    run = play(lab, tmp_path, **asked)
    print(run.output)
    assert run.returncode == 0
    place = f"/srv/models/{draft}/{commit}"
    assert "all match the manifest" in lab.ssh(HOST, f"metal weights verify {place}")
    assert lab.ssh(HOST, f"stat -c %s {place}/model.safetensors").strip() == "1024000"
    assert lab.ssh(HOST, "systemctl is-enabled metal-weights@minimax-m2.5-draft.service").strip() == "enabled"
    assert lab.ssh(HOST, f"ls {MODEL}/main/config.json")
    assert play(lab, tmp_path, "model_weights", **asked).changed == {}

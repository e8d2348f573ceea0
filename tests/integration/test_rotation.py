"""playbooks/rotate.yml and rotate_share.yml on lab hosts: two simulated replicas, two gateways.

In order: each test begins where the one before ended, with no key rotation in progress. ``METAL_LAB_NAME``
names a running lab of ``lab/labs/rotation.yml`` that is used as it is, and left.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.host.weights.share_keys import name_of
from tests.support.site import REPOSITORY, Lab, Run, booted

REPLICAS, GATEWAYS = ("gpu01", "gpu02"), ("gw01", "gw02")
MODEL = "MiniMaxAI/MiniMax-M2.5"
UNIT = "sglang@minimax-m2.5.service"
PIECES = "metal-weights-share@minimax-m2.5.service"
QUICK: dict[str, Any] = {"post_check_figures": []}
OUTAGE_SECONDS = 45.0
"""Of one gateway without long requests; smg keeps listening for 5 s after it was told to stop."""


@dataclass
class Fleet:
    """The lab, and inventories of parts of its hosts."""

    lab: Lab
    directory: Path
    addresses: dict[str, str] = field(default_factory=dict)

    def inventory(self, name: str, gpus: Sequence[str], gateways: Sequence[str]) -> Lab:
        place = self.directory / name
        if not place.exists():
            place.mkdir()
            groups = {"gpu_hosts": gpus, "gateway_hosts": gateways}
            hosts = {group: {"hosts": dict.fromkeys(names)} for group, names in groups.items() if names}
            (place / "hosts.json").write_text(json.dumps(hosts))
            (place / "group_vars").symlink_to(REPOSITORY / "inventories/lab-fleet/group_vars")
        return Lab(self.lab.name, str(place))

    @property
    def whole(self) -> Lab:
        return self.inventory("whole", REPLICAS, GATEWAYS)

    @property
    def secrets(self) -> Path:
        return self.lab.state / "secrets"

    def key(self, name: str = "api_key") -> str:
        return (self.secrets / name).read_text(encoding="ascii").strip()

    def keys(self) -> dict[str, tuple[str, str]]:
        """Old and new value of each key of the rotation in progress."""
        kept = json.loads((self.secrets / ".rotation.json").read_text())["keys"]
        return {name: (pair["old"], pair["new"]) for name, pair in kept.items()}

    def doors(self) -> list[str]:
        """Every place that a client may ask."""
        return [
            *(f"http://{self.addresses[host]}:8000" for host in REPLICAS),
            *(f"http://{self.addresses[host]}:30000" for host in GATEWAYS),
        ]

    def started(self) -> dict[str, str]:
        show = f"systemctl show -P ExecMainStartTimestampMonotonic {UNIT}"
        return {host: self.lab.ssh(host, show).strip() for host in REPLICAS}


def rotate(lab: Lab, do: str = "start", *arguments: str) -> Run:
    return lab.play("playbooks/rotate.yml", "-e", json.dumps({**QUICK, "metal_keys_do": do}), *arguments)


def ask(door: str, key: str, timeout: float = 30.0) -> int:
    """Return the status of a chat; 0 if nobody listens, -1 if an answer broke off."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    request = urllib.request.Request(  # noqa: S310  # the lab's own network
        f"{door}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError as error:
        return 0 if isinstance(error.reason, ConnectionRefusedError) else -1
    except OSError:
        return -1


@dataclass
class Load:
    """Clients that ask all the time, one for each key and way, and their answers with the time."""

    ended: threading.Event = field(default_factory=threading.Event)
    told: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)

    def client(self, name: str, doors: Sequence[str], key: str) -> None:
        """Ask the first endpoint that lets a client in, as clients do that know several."""
        self.told[name] = []

        def run() -> None:
            while not self.ended.is_set():
                for door in doors:
                    status = ask(door, key)
                    # A gateway that ends says 503 until it has ended: another one is asked.
                    if status not in {0, 503} or door == doors[-1]:
                        break
                self.told[name].append((time.monotonic(), status))
                time.sleep(0.1)

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def codes(self, name: str) -> Counter[int]:
        return Counter(code for _, code in self.told[name])

    def outage(self, name: str) -> float:
        """Return the longest time in seconds without an answer of 200."""
        good = [when for when, code in self.told[name] if code == 200]
        return max(after - before for before, after in itertools.pairwise(good))


@contextmanager
def load(fleet: Fleet, *keys: str) -> Iterator[Load]:
    found = Load()
    engines, gateways = fleet.doors()[:2], fleet.doors()[2:]
    for number, key in enumerate(keys):
        for door in engines:
            found.client(f"{door} {number}", [door], key)
        found.client(f"gateways {number}", gateways, key)
    for door in gateways:
        found.client(door, [door], keys[0])
    time.sleep(2)
    try:
        yield found
    finally:
        time.sleep(2)
        found.ended.set()
        for thread in found.threads:
            thread.join(60)


def unharmed(found: Load) -> None:
    """No client that may ask another gateway failed, and one gateway was down only for a short time."""
    for name in found.told:
        if " " in name:
            assert len(found.told[name]) > 10, name
            assert set(found.codes(name)) == {200}, (name, found.codes(name))
        else:
            print(
                f"{name}: {found.outage(name):.1f} s without an answer, {dict(found.codes(name))}", flush=True
            )
            assert found.outage(name) < OUTAGE_SECONDS, name


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with booted("rotation", "rotation", "inventories/lab-fleet") as lab:
        found = Fleet(lab, tmp_path_factory.mktemp("inventories"))
        text = (lab.state / "inventory/hosts.yml").read_text()
        words = text.split()
        for host in (*REPLICAS, *GATEWAYS):
            found.addresses[host] = words[words.index(f"{host}:") + 2]
        if lab.fresh:
            run = found.whole.play("site.yml", "-e", json.dumps(QUICK))
            assert run.returncode == 0, run.output
        yield found


def test_a_fleet_under_load_changes_its_keys_and_loses_no_request(fleet: Fleet) -> None:
    old, started = {name: fleet.key(name) for name in ("api_key", "admin_api_key")}, fleet.started()
    with load(fleet, old["api_key"]) as found:
        run = rotate(fleet.whole)
        assert run.returncode == 0, run.output
    unharmed(found)
    new = {name: fleet.key(name) for name in old}
    assert fleet.keys()["api_key"] == (old["api_key"], new["api_key"])
    assert not {*old.values(), *new.values()} & {*run.output.replace('"', " ").split()}
    assert {ask(door, key) for door in fleet.doors() for key in (old["api_key"], new["api_key"])} == {200}
    # The post-check was made, with the key that is in use now.
    assert re.search(r"\d+ passed, 0 failed", run.output), run.output
    again = rotate(fleet.whole)
    assert (again.returncode, again.changed) == (0, {}), again.output
    assert " passed, 0 failed" not in again.output
    with load(fleet, new["api_key"]) as found:
        run = rotate(fleet.whole, "finish")
        assert run.returncode == 0, run.output
    unharmed(found)
    assert {door: ask(door, old["api_key"]) for door in fleet.doors()} == dict.fromkeys(fleet.doors(), 401)
    assert {ask(door, new["api_key"]) for door in fleet.doors()} == {200}
    assert fleet.started() == started, "an engine restarted"
    for host in REPLICAS:
        kept = fleet.lab.ssh(host, f"grep -rlE '{'|'.join(old.values())}' /etc /var/lib/sglang || true")
        assert kept.strip() == "", host
    done = rotate(fleet.whole, "finish")
    assert done.returncode == 2
    assert "found no key rotation" in done.output


@contextmanager
def running(lab: Lab, playbook: str, **variables: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a playbook; whatever is left of it at the end is killed with all its processes."""
    process = subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("ansible-playbook")), f"playbooks/{playbook}.yml"),
            *("--inventory", lab.inventory, "--inventory", str(lab.state / "inventory/hosts.yml")),
            *("-e", json.dumps({**QUICK, **variables})),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1",
             "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def begins(process: subprocess.Popen[str], task: str) -> bool:
    """Read until a task begins; return whether it did."""
    assert process.stdout is not None
    return any(line.startswith("TASK [") and task in line for line in process.stdout)


def killed(lab: Lab, do: str, task: str) -> bool:
    """Start a key rotation and kill it when a task begins; return whether the task began."""
    with running(lab, "rotate", metal_keys_do=do) as process:
        return begins(process, task)


def test_a_run_that_is_killed_at_any_step_is_continued(fleet: Fleet) -> None:
    old = fleet.key()
    steps = [
        ("start", "Write the keys of each instance"),
        ("start", "Ask every engine whether it accepts the written keys"),
        ("start", "Write the gateway's keys"),
        # The first gateway's keys are written, and it was not restarted for them.
        ("start", "Write the configuration of the gateway's commands"),
        ("start", "Sync the gateway's workers"),
    ]
    for do, task in steps:
        assert killed(fleet.whole, do, task), task
        # Engines take whatever is in use.
        in_use = {old, fleet.key()}
        told = {(door, key): ask(door, key) for door in fleet.doors()[:2] for key in in_use}
        assert set(told.values()) == {200}, (task, list(told.values()))
    run = rotate(fleet.whole)
    assert run.returncode == 0, run.output
    new = fleet.key()
    assert new != old
    assert {ask(door, key) for door in fleet.doors() for key in (old, new)} == {200}
    assert killed(fleet.whole, "finish", "Ask every engine whether it accepts the written keys")
    run = rotate(fleet.whole, "finish")
    assert run.returncode == 0, run.output
    assert {ask(door, old) for door in fleet.doors()} == {401}
    assert {ask(door, new) for door in fleet.doors()} == {200}


def test_a_host_that_is_away_stops_the_change_and_loses_nothing(fleet: Fleet) -> None:
    old = fleet.key()
    fleet.lab.lab("cut", "gpu02")
    try:
        run = rotate(fleet.whole)
        assert run.returncode != 0
        assert "gpu02" in run.output
        assert fleet.key() == old
        assert not (fleet.secrets / ".rotation.json").exists(), "a change began that can't be ended"
        assert ask(fleet.doors()[0], old) == 200
    finally:
        fleet.lab.lab("restore", "gpu02")
    # Away in the middle: it is named, what clients have is taken on, and the next run goes on from there.
    with running(fleet.whole, "rotate", metal_keys_do="start", metal_keys_names=["api_key"]) as process:
        assert begins(process, "Write the keys of each instance")
        fleet.lab.lab("cut", "gpu02")
        try:
            assert process.stdout is not None
            said = process.stdout.read()
            assert process.wait() != 0
            assert re.search(
                r"gpu02.*unreachable|unreachable.*gpu02|fatal: \[gpu02\]", said, re.IGNORECASE
            ), said
            assert fleet.key() == old
            assert ask(fleet.doors()[0], old) == 200
            assert {ask(door, old) for door in fleet.doors()[2:]} == {200}
        finally:
            fleet.lab.lab("restore", "gpu02")
    assert {ask(door, old) for door in fleet.doors()} == {200}
    told = subprocess.run(
        [sys.executable, "-m", "minimax_metal.cli", "keys", "status", "--secrets", str(fleet.secrets)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "between 'old' and 'both': the run did not finish; run it again" in told.stdout
    run = rotate(fleet.whole, "start", "-e", '{"metal_keys_names": ["api_key"]}')
    assert run.returncode == 0, run.output
    back = rotate(fleet.whole, "take-back")
    assert back.returncode == 0, back.output
    assert fleet.key() == old
    assert {ask(door, old) for door in fleet.doors()} == {200}


def test_hosts_without_a_gateway_change_their_keys(fleet: Fleet) -> None:
    alone = fleet.inventory("alone", REPLICAS, ())
    old = fleet.key()
    doors = fleet.doors()[:2]
    found = Load()
    for door in doors:
        found.client(f"{door} 0", [door], old)
    run = rotate(alone, "start", "-e", '{"metal_keys_names": ["api_key"]}')
    found.ended.set()
    assert run.returncode == 0, run.output
    unharmed(found)
    new = fleet.key()
    assert {ask(door, key) for door in doors for key in (old, new)} == {200}, "both keys are valid meanwhile"
    run = rotate(alone, "finish")
    assert run.returncode == 0, run.output
    assert [(ask(door, old), ask(door, new)) for door in doors] == [(401, 200)] * 2


def test_the_secret_of_sharing_is_renewed_when_asked_and_when_a_host_has_left(fleet: Fleet) -> None:
    def secrets() -> dict[str, list[str]]:
        return {host: fleet.lab.ssh(host, "cat /etc/minimax-metal/share/secret").split() for host in REPLICAS}

    def renew(lab: Lab, do: str) -> Run:
        run = lab.play("playbooks/rotate_share.yml", "-e", f"metal_share_secret_do={do}")
        assert run.returncode == 0, run.output
        return run

    def served() -> dict[str, set[str]]:
        """The names of the secrets that the piece servers accept."""
        show = "grep -ohE '^ +[0-9a-f]{16} [0-9a-f]{64};' /run/minimax-metal-share-*/nginx.conf"
        return {host: set(fleet.lab.ssh(host, show).split()[::2]) for host in REPLICAS}

    # They run while a host pulls.
    for host in REPLICAS:
        fleet.lab.ssh(host, f"systemctl start {PIECES}")
    before = secrets()
    assert len({tuple(one) for one in before.values()}) == 1
    renew(fleet.whole, "renew")
    after = secrets()["gpu01"]
    assert secrets()["gpu02"] == after
    assert after[1] == before["gpu01"][0] != after[0]
    renew(fleet.whole, "drop")
    assert set(map(tuple, secrets().values())) == {(after[0],)}
    again = renew(fleet.whole, "drop")
    assert again.changed == {}
    # Killed when the secret was written and no server restarted for it: the next run makes up for it.
    renew(fleet.whole, "renew")
    known = served()
    assert {len(one) for one in known.values()} == {2}, known
    with running(fleet.whole, "rotate_share", metal_share_secret_do="drop") as process:
        assert begins(process, "Note which hosts have the secret")
    (after,) = map(list, set(map(tuple, secrets().values())))
    assert len(after) == 1
    assert served() == known, "the run was not killed in time"
    run = renew(fleet.whole, "drop")
    # The note of who has it may have been written by the killed run, or not.
    changed = {
        host: [task for task in tasks if not task.startswith("Note")] for host, tasks in run.changed.items()
    }
    assert changed == {host: ["Restart servers of pieces with another secret"] for host in REPLICAS}
    assert served() == {host: {name_of(after[0])} for host in REPLICAS}
    assert renew(fleet.whole, "drop").changed == {}
    # gpu02 leaves the fleet: what it holds opens nothing any more.
    renew(fleet.inventory("left", ("gpu01",), ()), "drop")
    left: Any = secrets()
    assert left["gpu02"] == [after[0]]
    assert after[0] not in left["gpu01"]
    for host in REPLICAS:
        fleet.lab.ssh(host, f"systemctl stop {PIECES}")

"""site.yml on two new lab hosts: check mode, the path to a reply, idempotence, drift, reboot, stop.

Slow: it starts engines several times. `METAL_LAB_NAME` names a running lab that is used as it is, and left.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.site import REPOSITORY, Lab, booted

UNIT = {"gpu01": "sglang@minimax-m2.5.service", "gpu02": "sglang@minimax-m3.service"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with booted("integration", "demo") as lab:
        yield lab


def started(lab: Lab, host: str) -> str:
    return lab.ssh(host, f"systemctl show -P ExecMainStartTimestampMonotonic {UNIT[host]}")


def test_check_mode_on_a_bare_host_runs_through_and_writes_nothing(lab: Lab) -> None:
    if lab.ssh("gpu01", "test -e /opt/minimax-metal && echo there || true").strip():
        pytest.skip("the hosts are not bare: this lab was used before")
    before = {host: lab.written(host) for host in UNIT}
    # With a firewall, whose rules are checked by a program that is not there yet.
    assert "nft" not in lab.ssh("gpu01", "ls /usr/sbin")
    networks = '{"metal_allowed_cidrs": ["192.0.2.0/24"]}'
    run = lab.play("site.yml", "--check", "--diff", "--extra-vars", networks)
    assert run.returncode == 0, run.output
    assert "Write the rules and their units, or remove them" in run.changed["gpu01"]
    assert "elements = { 192.0.2.0/24 }" in run.output
    assert {host: lab.written(host) for host in UNIT} == before


def test_site_ends_in_a_verified_reply(lab: Lab) -> None:
    run = lab.play("site.yml")
    assert run.returncode == 0, run.output
    for host in UNIT:
        address = lab.ssh(host, "hostname -I").split()[0]
        request = urllib.request.Request(
            f"http://{address}:8000/v1/models", headers={"Authorization": f"Bearer {lab.api_key}"}
        )
        with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310 - as above
            assert json.load(reply)["data"][0]["id"].startswith("MiniMaxAI/MiniMax-M")


def test_a_second_run_changes_nothing_and_restarts_nothing(lab: Lab) -> None:
    before = {host: started(lab, host) for host in UNIT}
    run = lab.play("site.yml")
    assert run.returncode == 0, run.output
    assert {host: counts["changed"] for host, counts in run.recap.items()} == dict.fromkeys(UNIT, 0), (
        run.changed
    )
    assert {host: started(lab, host) for host in UNIT} == before


def test_check_mode_on_a_finished_host_writes_nothing(lab: Lab) -> None:
    before = {host: lab.written(host) for host in UNIT}
    run = lab.play("site.yml", "--check", "--diff")
    assert run.returncode == 0, run.output
    assert run.changed == {}
    assert {host: lab.written(host) for host in UNIT} == before


# A package whose script kills dpkg the first time, as a lost power does.
CUT_OFF = r"""
mkdir -p /run/cut-off/DEBIAN && cd /run/cut-off/DEBIAN
printf 'Package: cut-off\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: cut off\n' > control
printf '#!/bin/sh\ntest -e /run/cut || { touch /run/cut; kill -9 $PPID; }\n' > postinst && chmod 755 postinst
dpkg-deb --build /run/cut-off /run/cut-off.deb > /run/cut-off.log; ! dpkg --install /run/cut-off.deb >> /run/cut-off.log
apt-get --yes install apt 2>&1 | grep -q 'dpkg was interrupted'
"""

# What is damaged on which host, the role that repairs it, and exactly the tasks that must report a change.
DRIFT = [
    ("gpu01", CUT_OFF, "host_tools", {"End an installation of packages that was cut off"}),
    ("gpu01", "rm /usr/local/bin/metal", "host_tools", {"Put the environment in use"}),
    ("gpu01", "ln -sfn /nowhere /opt/minimax-metal/current", "host_tools", {"Put the environment in use"}),
    ("gpu01", "rm -r $(realpath /opt/minimax-metal/current)/lib/python3*/site-packages/rich*", "host_tools",
     {"Install the locked packages and the host-side package"}),
    ("gpu01", "chmod 0700 /etc/minimax-metal", "host_tools", {"Write the locks and the wheel of the host tools"}),
    ("gpu01", "usermod --shell /bin/sh sglang", "host_tools", {"Create the user of each service"}),
    ("gpu01", "echo x >> /etc/minimax-metal/weights/minimax-m2.5.json", "model_weights",
     {"Write the request and the unit of the pull"}),
    ("gpu01", "echo x >> /etc/systemd/system/metal-weights@minimax-m2.5.service", "model_weights",
     {"Write the request and the unit of the pull"}),
    ("gpu01", "systemctl --quiet disable metal-weights@minimax-m2.5.service", "model_weights",
     {"Enable the pull, so that it goes on after a reboot"}),
    ("gpu01", "rm /etc/apt/sources.list.d/minimax-metal-nvidia.sources", "nvidia_driver", {"Give apt the repository"}),
    ("gpu01", "rm /etc/apt/keyrings/minimax-metal-nvidia.asc", "nvidia_driver", {"Give apt the key of the repository"}),
    ("gpu01", "rm /etc/apt/apt.conf.d/80minimax-metal-nvidia", "nvidia_driver", {"Give apt the repository"}),
    ("gpu01", "apt-mark unhold $(apt-mark showhold | head -1)", "nvidia_driver", {"Hold the packages of the driver"}),
    ("gpu01", "systemctl --quiet disable nvidia-persistenced", "nvidia_driver", {"Start and enable the services of the driver"}),
    ("gpu02", "systemctl stop nvidia-fabricmanager", "nvidia_driver", {"Start and enable the services of the driver"}),
    ("gpu01", "dpkg --remove --force-depends ninja-build", "cuda_toolkit", {"Install the compilers and the CUDA toolkit of the plan"}),
    ("gpu01", "echo '# x' >> $(ls /opt/sglang/*/minimax-metal/*.txt)", "sglang_runtime",
     {"Copy the lock and the extra packages"}),
    ("gpu01", "rm -r $(ls -d /opt/sglang/*/lib/python3*/site-packages/tabulate*)", "sglang_runtime",
     {"Install the engine and its plug-ins, compiled to byte code"}),
    ("gpu01", "systemctl --quiet disable sglang@minimax-m2.5.service", "sglang_service",
     {"Start the instances and their target at boot"}),
    ("gpu01", "rm /etc/systemd/system/sglang.target", "sglang_service", {"Write the units and certificates of the engine"}),
    ("gpu01", "systemctl stop sglang@minimax-m2.5.service", "sglang_service", {"Start the instances and their target"}),
    ("gpu01", "echo '# x' >> /etc/systemd/system/sglang@minimax-m2.5.service", "sglang_service",
     {"Write the units and certificates of the engine", "Restart changed instances"}),
    # The engine's guard proves that it takes the keys in force, so nothing is restarted for them.
    ("gpu01", "echo x >> /etc/sglang/minimax-m2.5/engine.yaml", "sglang_service",
     {"Write the keys of each instance"}),
    ("gpu01", "chmod 0644 /etc/sglang/minimax-m2.5/api_key", "sglang_service",
     {"Write the keys of each instance"}),
    ("gpu01", "rm /etc/systemd/system/metal-page-cache.service", "page_cache",
     {"Write the unit that reads weights ahead"}),
    ("gpu01", "rm /var/lib/minimax-metal/releases/current", "release_record",
     {"Record the verified plan as the newest release"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("host", "damage", "role", "tasks"), DRIFT, ids=[case[1].strip()[:60] for case in DRIFT]
)
def test_drift_is_repaired_by_exactly_the_task_that_manages_it(
    lab: Lab, host: str, damage: str, role: str, tasks: set[str]
) -> None:
    lab.ssh(host, damage)
    repair = lab.play("site.yml", "--limit", host, "--tags", role)
    assert repair.returncode == 0, repair.output
    assert set(repair.changed.get(host, [])) == tasks, repair.output
    again = lab.play("site.yml", "--limit", host, "--tags", role)
    assert again.returncode == 0, again.output
    assert again.changed == {}


# Found by a pattern that does not find itself in the command line of whoever looks.
CANARY = {"sglang_service_api_key": "CANARYclients0000000000000000001", "sglang_service_admin_api_key": "CANARYmanagers000000000000000002"}  # fmt: skip
PATTERN = "CANAR[Y]"
KEY_FILES = {
    f"/etc/sglang/minimax-m2.5/{name}"
    for name in ("accepted.json", "admin_api_key", "api_key", "engine.yaml")
}


def ask(lab: Lab, path: str, key: str | None, method: str = "GET") -> tuple[int, str]:
    """Ask gpu01's endpoint and return status and text."""
    address = lab.ssh("gpu01", "hostname -I").split()[0]
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"http://{address}:8000{path}", headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310 - a lab host's address, http only
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_planted_keys_are_in_their_files_and_nowhere_else(lab: Lab, tmp_path: Path) -> None:
    given = tmp_path / "keys.json"
    given.write_text(json.dumps(CANARY))
    arguments = ("--limit", "gpu01", "--tags", "sglang_service,post_check,release_record")
    before = started(lab, "gpu01")
    run = lab.play("site.yml", *arguments, "-vvv", "--diff", "--extra-vars", f"@{given}")
    assert run.returncode == 0, run.output[-4000:]
    # The engine's guard read the new keys, and the check was let in by them: nothing was restarted.
    assert started(lab, "gpu01") == before
    assert not re.search(PATTERN, run.output)

    files = lab.ssh(
        "gpu01",
        f"grep -rlas --exclude-dir=upper --exclude-dir=.cache '{PATTERN}' "
        "/etc /home /opt/minimax-metal /root /run /srv /tmp /var/cache/sglang /var/lib /var/log /var/tmp; true",
    )
    assert set(files.split()) == KEY_FILES
    assert lab.ssh("gpu01", f"grep -las '{PATTERN}' /proc/[0-9]*/cmdline /proc/[0-9]*/environ; true") == ""
    assert lab.ssh("gpu01", f"journalctl --no-pager --output=export | grep -c '{PATTERN}'; true") == "0\n"
    modes = lab.ssh("gpu01", f"stat -c '%a %U:%G' /etc/sglang/minimax-m2.5 {' '.join(sorted(KEY_FILES))}")
    assert modes.splitlines() == ["750 root:sglang", *["640 root:sglang"] * len(KEY_FILES)]
    for place in (REPOSITORY / "reports", Path.home() / ".cache" / "minimax-metal" / "facts"):
        for path in place.rglob("*") if place.exists() else ():
            assert not path.is_file() or not re.search(PATTERN.encode(), path.read_bytes()), path

    user, admin = CANARY.values()
    assert ask(lab, "/v1/models", None)[0] == 401
    assert ask(lab, "/v1/models", user)[0] == 200
    assert ask(lab, "/flush_cache", user, "POST")[0] == 401
    assert ask(lab, "/flush_cache", admin, "POST")[0] == 200
    status, text = ask(lab, "/server_info", user)
    assert status == 200
    assert not re.search(PATTERN, text)

    # Back to the pair of the secrets directory, which was there all the time.
    back = lab.play("site.yml", *arguments)
    assert back.returncode == 0, back.output[-4000:]
    assert ask(lab, "/v1/models", user)[0] == 401
    assert ask(lab, "/v1/models", lab.api_key)[0] == 200


def test_a_drop_in_of_the_users_stays_and_the_sandbox_scores_as_it_should(lab: Lab) -> None:
    drop_in = f"/etc/systemd/system/{UNIT['gpu01']}.d/mine.conf"
    lab.ssh("gpu01", f"mkdir -p $(dirname {drop_in}) && printf '[Service]\nNice=1\n' > {drop_in}")
    lab.ssh("gpu01", "systemctl daemon-reload")
    run = lab.play("site.yml", "--limit", "gpu01", "--tags", "sglang_service")
    assert run.returncode == 0, run.output
    assert run.changed == {}
    assert lab.ssh("gpu01", f"systemctl show -P Nice {UNIT['gpu01']}") == "1\n"
    verdict = lab.ssh("gpu01", f"systemd-analyze security --no-pager {UNIT['gpu01']} | tail -1")
    found = re.search(r"exposure level for .*: ([\d.]+)", verdict)
    assert found is not None, verdict
    assert float(found.group(1)) <= 4.0
    lab.ssh("gpu01", f"rm -r $(dirname {drop_in}) && systemctl daemon-reload")


def test_a_changed_setting_shows_in_full_and_restarts_what_it_touches(lab: Lab) -> None:
    before = {host: started(lab, host) for host in UNIT}
    arguments = ("--tags", "sglang_service", "--diff", "--extra-vars", '{"metal_stop_timeout_seconds": 500}')
    shown = lab.play("site.yml", "--limit", "gpu01", "--check", *arguments)
    assert shown.returncode == 0, shown.output
    assert "-    --start-timeout 3600 --stop-timeout 600" in shown.output
    assert "+    --start-timeout 3600 --stop-timeout 500" in shown.output
    assert {host: started(lab, host) for host in UNIT} == before
    run = lab.play("site.yml", "--limit", "gpu01", *arguments)
    assert run.returncode == 0, run.output
    assert set(run.changed["gpu01"]) == {
        "Write the units and certificates of the engine",
        "Restart changed instances",
    }
    assert started(lab, "gpu01") != before["gpu01"]
    assert started(lab, "gpu02") == before["gpu02"]
    back = lab.play("site.yml", "--limit", "gpu01", "--tags", "sglang_service")
    assert back.returncode == 0, back.output


def test_a_reboot_brings_the_endpoint_back_by_itself(lab: Lab) -> None:
    before = lab.ssh("gpu01", "cat /proc/sys/kernel/random/boot_id")
    lab.lab("reboot", "gpu01")
    assert lab.ssh("gpu01", "cat /proc/sys/kernel/random/boot_id") != before
    # Starting a unit that is being started waits for it: this is what an operator would type.
    lab.ssh("gpu01", f"systemctl start {UNIT['gpu01']}")
    check = (
        "metal check http://127.0.0.1:8000 --model MiniMaxAI/MiniMax-M2.5"
        " --api-key-file /etc/sglang/minimax-m2.5/api_key"
    )
    assert lab.ssh("gpu01", f"{check} >&2; echo $?") == "0\n"


def test_status_names_the_release_and_stop_stops(lab: Lab) -> None:
    status = lab.play("playbooks/status.yml", "--limit", "gpu01")
    assert status.returncode == 0, status.output
    assert "MiniMaxAI/MiniMax-M2.5" in status.output
    assert "1 host: 1 ready" in status.output
    stop = lab.play("playbooks/stop.yml", "--limit", "gpu01")
    assert stop.returncode == 0, stop.output
    assert lab.ssh("gpu01", f"systemctl is-active {UNIT['gpu01']}", check=False) == "inactive\n"
    assert lab.ssh("gpu01", "pgrep -u sglang -c .", check=False) == "0\n"


def test_an_unknown_model_is_refused_before_anything_changes(lab: Lab) -> None:
    before = lab.written("gpu01")
    run = lab.play("site.yml", "--limit", "gpu01", "--extra-vars", "metal_model=MiniMax-M9")
    assert run.returncode != 0
    assert "MiniMax-M9" in run.output
    assert run.changed == {}
    assert lab.written("gpu01") == before

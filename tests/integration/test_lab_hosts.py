"""The lab's hosts, for real: boots, keys, reboots, cables, crashes, and nothing left behind.

Needs root on Debian with the packages of lab/system-packages.txt; starts its own labs, without models.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.hosts import machine
from lab.hosts.errors import LabError
from lab.hosts.processes import start_time

CHECKOUT = Path(__file__).parents[2]
NAME = "it-hosts"
OTHER = "it-other"
DESCRIPTION = {
    "hosts": {
        "gpu01": {"system": "debian-12", "gpus": {"model": "H20", "count": 4}},
        "gpu02": {"system": "debian-13", "gpus": {"model": "H200", "count": 8}},
    }
}

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


def missing() -> str | None:
    try:
        machine.check()
    except LabError as error:
        return str(error)
    return None


class LabCommand:
    """The lab as a user has it: its command line."""

    def __init__(self, name: str, root: Path, description: Path) -> None:
        self.name, self.root, self.description = name, root, description
        self.state = root / name

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "lab", "--name", self.name, *arguments],
            cwd=CHECKOUT,
            env=os.environ | {"METAL_LAB_ROOT": str(self.root)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(self, *arguments: str, expect: int = 0) -> str:
        process = self.popen(*arguments)
        output, _ = process.communicate(timeout=400)
        assert process.returncode == expect, output
        return output

    def up(self) -> str:
        return self("up", "--file", str(self.description))

    def status(self) -> dict[str, Any]:
        process = self.popen("status", "--json")
        return dict(json.loads(process.communicate(timeout=60)[0]))

    def ssh(self, host: str, command: str, expect: int = 0) -> str:
        return self("ssh", host, command, expect=expect).strip()

    def boot_ids(self) -> dict[str, str]:
        return {name: host["boot_id"] for name, host in self.status()["hosts"].items()}

    def pid(self, *record: str) -> int:
        return int(json.loads(self.state.joinpath(*record).read_text())["pid"])


Traces = dict[str, list[str]]


def traces() -> Traces:
    """Return everything on this machine that a lab could leave, as lines of text."""

    def lines(*argv: str) -> list[str]:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()

    processes = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            groups = (directory / "cgroup").read_text()
        except OSError:
            continue
        if start_time(int(directory.name)) is None:
            continue  # ended, and only waits to be reaped by whoever adopted it
        if "mmlab" in command + groups or f"/{NAME}" in command or f"/{OTHER}" in command:
            processes.append(f"{command} in {' '.join(groups.split())}")
    namespaces = Path("/run/netns")
    return {
        "processes": processes,
        "control groups": [str(path) for path in Path("/sys/fs/cgroup").glob("*/mmlab*")],
        "mounts": [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()],
        "namespaces": [path.name for path in namespaces.glob("*")],
        "links": [path.name for path in Path("/sys/class/net").iterdir()],
        "addresses": lines("ip", "-oneline", "-4", "address"),
        "routes": lines("ip", "-4", "route", "show", "table", "all"),
        "rules": lines("nft", "list", "tables"),
        "settings": ["ip_forward " + Path("/proc/sys/net/ipv4/ip_forward").read_text().strip()],
    }


def claims() -> dict[str, str]:
    """Return the networks in use: number and state directory."""
    return {path.name: path.read_text().strip() for path in Path("/run/minimax-metal-lab/networks").glob("*")}


def without(labs: dict[str, str], found: Traces) -> Traces:
    """Return the traces except those of other labs, and those shared while any lab is up."""
    patterns = [
        rf"mmlab{number}\b|mm{number}n|198\.18\.{number}\.|{re.escape(state)}(/|$)"
        for number, state in labs.items()
    ]
    if labs:
        patterns.append(r"^/run/netns|^ip_forward")
    return {
        kind: sorted(line for line in lines if not any(re.search(pattern, line) for pattern in patterns))
        for kind, lines in found.items()
    }


@pytest.fixture(scope="module")
def before() -> tuple[dict[str, str], Traces]:
    if reason := missing():
        pytest.skip(reason)
    return claims(), traces()


@pytest.fixture(scope="module")
def lab(
    before: tuple[dict[str, str], Traces], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LabCommand]:
    root = tmp_path_factory.mktemp("labs")
    description = root / "lab.yml"
    description.write_text(yaml.safe_dump(DESCRIPTION))
    command = LabCommand(NAME, root, description)
    try:
        command.up()
        yield command
    finally:
        command("down")


def test_hosts_are_whole_systems(lab: LabCommand) -> None:
    status = lab.status()
    assert status["up"], status
    for host, version in (("gpu01", "12"), ("gpu02", "13")):
        # Immediately after boot the last units may still be starting.
        assert lab.ssh(host, "systemctl is-system-running --wait") == "running"
        assert lab.ssh(host, '. /etc/os-release; echo "$VERSION_ID $(hostname)"') == f"{version} {host}"


def test_hosts_are_bare(lab: LabCommand) -> None:
    for host in ("gpu01", "gpu02"):
        for program in ("nvidia-smi", "gcc", "gpg", "uv", "curl"):
            lab.ssh(host, f"command -v {program}", expect=1)
        assert lab.ssh(host, "ls /var/lib/apt/lists | wc -l") in {"0", "1", "2", "3"}


def test_hosts_show_their_gpus(lab: LabCommand) -> None:
    for host, cards in (("gpu01", 4), ("gpu02", 8)):
        classes = "for d in /sys/bus/pci/devices/*; do echo $(cat $d/vendor) $(cat $d/class); done"
        shown = lab.ssh(host, classes).splitlines()
        assert sum(line.startswith("0x10de 0x0302") for line in shown) == cards, shown


def test_shared_kernel_settings_are_read_only(lab: LabCommand) -> None:
    for path in ("/proc/sys/vm/swappiness", "/sys/kernel/mm/transparent_hugepage/enabled"):
        refused = lab.ssh("gpu01", f"sh -c 'cat {path} > /tmp/value; cat /tmp/value > {path}' 2>&1", expect=2)
        assert "Read-only file system" in refused


def test_a_host_has_what_engines_need(lab: LabCommand) -> None:
    for host in ("gpu01", "gpu02"):
        size = int(lab.ssh(host, "df --output=size -B1M /dev/shm | tail -1"))
        assert size >= 4096
        lab.ssh(host, "mknod /dev/lab-null c 1 3 && rm /dev/lab-null")
        lab.ssh(host, "mount -t tmpfs none /proc/driver && umount /proc/driver")


def test_up_again_reuses_what_runs(lab: LabCommand) -> None:
    boots, start = lab.boot_ids(), time.monotonic()
    lab.up()
    assert time.monotonic() - start < 20
    assert lab.boot_ids() == boots


def test_another_host_key_is_refused(lab: LabCommand, tmp_path: Path) -> None:
    inventory = yaml.safe_load((lab.state / "inventory" / "hosts.yml").read_text())
    assert "StrictHostKeyChecking=yes" in inventory["all"]["hosts"]["gpu01"]["ansible_ssh_common_args"]
    known = (lab.state / "ssh" / "known_hosts").read_text().splitlines()
    swapped = [f"{known[0].split()[0]} {known[1].partition(' ')[2]}"]
    (tmp_path / "known_hosts").write_text("\n".join(swapped) + "\n")
    options = ["-o", f"UserKnownHostsFile={tmp_path / 'known_hosts'}", "-o", "BatchMode=yes"]
    done = subprocess.run(
        ["ssh", *options, "-F", str(lab.state / "ssh_config"), "gpu01", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr


def test_inventory_is_literal(lab: LabCommand) -> None:
    text = (lab.state / "inventory" / "hosts.yml").read_text()
    assert "{{" not in text
    variables = yaml.safe_load(text)["all"]["vars"]
    assert variables["lab_vendor_url"].startswith("http://198.18.")
    assert Path(variables["lab_engine_plugin_wheel"]).is_file()


def test_a_package_is_downloaded_once_for_all_hosts(lab: LabCommand) -> None:
    fetch = (
        "python3 -c 'import sys, urllib.request as u; "
        'o = u.build_opener(u.ProxyHandler({"http": sys.argv[1]})); '
        'r = o.open(sys.argv[2]); r.read(); print(r.headers["X-Package-Cache"])\''
    )
    for host in ("gpu01", "gpu02"):
        lab.ssh(host, "apt-get --quiet=2 update")
    proxy = lab.ssh("gpu01", "apt-config shell p Acquire::http::Proxy; apt-config dump Acquire::http::Proxy")
    address = re.findall(r'Acquire::http::Proxy "(\S+)"', proxy)[0]
    uri = re.findall(r"'(\S+)'", lab.ssh("gpu01", "apt-get download --print-uris hello"))[0]
    if not uri.startswith("http:"):
        pytest.skip("this machine's sources use https, which passes the cache by")
    assert lab.ssh("gpu01", f"{fetch} {address} {uri}") in {"MISS", "HIT"}
    assert lab.ssh("gpu02", f"{fetch} {address} {uri}") == "HIT"


def test_hosts_share_the_package_cache_directory(lab: LabCommand) -> None:
    place = "/var/cache/minimax-metal-lab/uv"
    lab.ssh("gpu01", f"echo shared > {place}/.it-hosts")
    assert lab.ssh("gpu02", f"cat {place}/.it-hosts; rm {place}/.it-hosts") == "shared"


def test_units_of_two_hosts_do_not_meet(lab: LabCommand) -> None:
    for host in ("gpu01", "gpu02"):
        lab.ssh(host, "systemd-run --quiet --unit=namesake sleep 1000")
    lab.ssh("gpu01", "systemctl kill --signal=KILL namesake; systemctl stop namesake || true")
    assert lab.ssh("gpu02", "systemctl is-active namesake") == "active"
    lab.ssh("gpu02", "systemctl stop namesake")


def test_a_host_reboots_itself(lab: LabCommand) -> None:
    before = lab.boot_ids()
    lab.ssh("gpu01", "echo kept > /root/kept")
    lab.popen("ssh", "gpu01", "systemctl reboot").wait(30)
    end = time.monotonic() + 60
    while time.monotonic() < end and lab.boot_ids()["gpu01"] in (None, before["gpu01"]):
        time.sleep(0.2)
    lab.up()  # waits for it
    after = lab.boot_ids()
    assert after["gpu01"] not in (None, before["gpu01"])
    assert after["gpu02"] == before["gpu02"]
    assert lab.ssh("gpu01", "cat /root/kept") == "kept"


def test_reboot_waits_for_the_host(lab: LabCommand) -> None:
    before = lab.boot_ids()["gpu02"]
    lab("reboot", "gpu02")
    assert lab.ssh("gpu02", "cat /proc/sys/kernel/random/boot_id") != before


def test_a_cable_is_cut_and_restored(lab: LabCommand) -> None:
    lab("cut", "gpu01")
    assert lab.status()["hosts"]["gpu01"]["state"] == "cut"
    assert lab.status()["hosts"]["gpu02"]["state"] == "up"
    lab("restore", "gpu01")
    assert lab.status()["hosts"]["gpu01"]["state"] == "up"


@pytest.mark.parametrize("victim", ["keeper", "nspawn"])
def test_up_heals_a_killed_host(lab: LabCommand, victim: str) -> None:
    lab.ssh("gpu02", f"echo {victim} > /root/kept")
    other = lab.boot_ids()["gpu01"]
    os.kill(lab.pid("hosts", "gpu02", f"{victim}.json"), signal.SIGKILL)
    time.sleep(1)
    assert lab.status()["hosts"]["gpu02"]["state"] == "off"
    lab.up()
    assert lab.ssh("gpu02", "cat /root/kept") == victim
    assert lab.boot_ids()["gpu01"] == other


def test_up_heals_a_killed_service(lab: LabCommand) -> None:
    os.kill(lab.pid("services", "web.json"), signal.SIGKILL)  # its workers stay and hold the port
    assert not lab.status()["up"]
    lab.up()
    assert lab.status()["up"]


def test_up_heals_a_half_made_host_and_lost_links(lab: LabCommand) -> None:
    number = lab.status()["network"].split(".")[2]
    os.kill(lab.pid("hosts", "gpu01", "nspawn.json"), signal.SIGKILL)
    time.sleep(1)
    (lab.state / "hosts" / "gpu01" / "created.json").unlink()
    subprocess.run(["ip", "netns", "delete", f"mmlab{number}-gpu01"], check=True)
    subprocess.run(["nft", "delete", "table", "ip", f"mmlab{number}"], check=True)
    lab.up()
    assert lab.status()["up"]
    lab.ssh("gpu01", "test -e /root/kept", expect=1)  # a new disk
    lab.ssh("gpu01", "apt-get --quiet=2 update")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_up_can_be_repeated(lab: LabCommand, number: signal.Signals) -> None:
    lab.up()
    os.kill(lab.pid("hosts", "gpu02", "nspawn.json"), signal.SIGKILL)
    process = lab.popen("up", "--file", str(lab.description))
    assert process.stdout is not None
    assert process.stdout.readline().startswith(f"lab {NAME}: up")
    time.sleep(0.2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    if number == signal.SIGINT and process.returncode:
        assert process.returncode == 130, output
        assert output.strip().splitlines()[-1] == (
            f"lab {NAME}: interrupted; 'up' continues from here, 'down' removes everything"
        )
    lab.up()
    assert lab.status()["up"]


def test_two_labs_side_by_side(lab: LabCommand) -> None:
    other = LabCommand(OTHER, lab.root, lab.root / "other.yml")
    other.description.write_text(yaml.safe_dump({"hosts": {"lone": {"system": "debian-12"}}}))
    try:
        other.up()
        addresses = [host["address"] for host in other.status()["hosts"].values()]
        assert addresses[0] != lab.status()["hosts"]["gpu01"]["address"]
        assert other.ssh("lone", "ls /sys/bus/pci/devices | wc -l") == "0"
        # The labs do not see each other.
        probe = f"timeout 2 python3 -c 'import socket; socket.create_connection((\"{addresses[0]}\", 22), 1)'"
        lab.ssh("gpu01", f"{probe} 2>/dev/null", expect=1)
    finally:
        other("down")
    assert not other.state.exists()
    assert lab.status()["up"]
    lab.ssh("gpu01", "apt-get --quiet=2 update")  # the machine still forwards


def test_other_hosts_under_the_same_name_are_refused(lab: LabCommand, tmp_path: Path) -> None:
    (tmp_path / "lab.yml").write_text(yaml.safe_dump({"hosts": {"gpu09": {"system": "debian-12"}}}))
    output = lab("up", "--file", str(tmp_path / "lab.yml"), expect=2)
    assert (
        output.strip()
        .splitlines()[-1]
        .startswith(f"lab {NAME}: lab {NAME} is up with the hosts gpu01, gpu02")
    )


def test_down_leaves_nothing_even_when_records_are_lost(
    lab: LabCommand, before: tuple[dict[str, str], Traces]
) -> None:
    (lab.state / "lab.json").unlink()
    (lab.state / "hosts" / "gpu01" / "keeper.json").unlink()
    (lab.state / "hosts" / "gpu02" / "nspawn.json").write_text("{")
    (lab.state / "services" / "web.json").unlink()
    lab("down")
    assert not lab.state.exists()
    others = before[0] | claims()  # labs of other people may be up, before or now
    assert str(lab.state) not in others.values()
    assert without(others, traces()) == without(others, before[1])
    assert "not up" in lab("down")

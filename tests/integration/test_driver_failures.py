"""Each failure to install the driver ends in one line, and the host can continue from there.

On the hosts of lab/labs/driver.yml. `METAL_LAB_NAME` names a running lab that is used as it is, and left.
What only a kernel can show (DKMS, nouveau, secure boot) is in test_kernel_host.py.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
import yaml

from tests.support.site import Lab, Run, booted

PLAYBOOK = "molecule/driver/converge.yml"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with booted("driver-failures", "driver", "inventories/lab-driver") as lab:
        yield lab


@pytest.fixture(scope="module")
def vendor(lab: Lab) -> tuple[Path, str]:
    """The directory served by the lab's web server, and its address."""
    everything = yaml.safe_load((lab.state / "inventory/hosts.yml").read_text())["all"]["vars"]
    url = str(everything["lab_vendor_url"])
    return lab.state / "vendor", re.sub(r"(http://[^/]+).*", r"\1", url)


def play(lab: Lab, host: str = "gpu01", **variables: Any) -> Run:
    return lab.play(
        PLAYBOOK, "--tags", "nvidia_driver", "--limit", host, "--extra-vars", json.dumps(variables)
    )


def said(run: Run, host: str = "gpu01") -> str:
    """Return the one line of a failed run: after the host's name, found, expected, and what to do."""
    assert run.returncode != 0, run.output
    text = " ".join(run.output.split()).replace("''", "'")  # quoted as YAML is
    line = re.search(rf"msg: .?.?{host}: (found .*?) PLAY RECAP", text)
    assert line, run.output
    assert "expected" in line.group(1)
    assert "Traceback" not in run.output
    return line.group(1)


def only_its_own_sources(lab: Lab, host: str = "gpu01") -> bool:
    """Whether apt has no failing source: the run's files are gone, and the lists can be fetched."""
    there = lab.ssh(host, "ls /etc/apt/sources.list.d")
    lab.ssh(host, "apt-get -qq update >&2")
    return there == "debian.sources\n"


def nothing_installed(lab: Lab, host: str = "gpu01") -> bool:
    return lab.ssh(host, "dpkg-query -W 'nvidia-driver-cuda' 2>/dev/null || true") == ""


def test_repository_that_does_not_answer(lab: Lab, vendor: tuple[Path, str]) -> None:
    run = play(lab, nvidia_driver_repository_url=f"{vendor[1]}:81/nowhere")
    line = said(run)
    assert "a package repository that does not answer" in line
    assert "nvidia_driver_repository_proxy" in line
    assert nothing_installed(lab)
    assert only_its_own_sources(lab)


@contextmanager
def proxy(lab_address: str, stands_for: str) -> Iterator[tuple[str, list[str]]]:
    """A proxy on the bridge that alone can reach ``stands_for``: its URL, and its requests."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            place = urlsplit(self.path)
            if place.hostname != stands_for:
                self.send_error(403)
                return
            try:
                with urlopen(lab_address + place.path, timeout=30) as answer:  # noqa: S310  the lab's own server
                    content = answer.read()
            except HTTPError as error:
                self.send_error(error.code)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    bridge = re.sub(r"\d+$", "1", str(urlsplit(lab_address).hostname))
    with ThreadingHTTPServer((bridge, 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://{bridge}:{listening.server_port}", asked
        listening.shutdown()


def test_proxy_is_for_this_repository_and_for_nothing_else(lab: Lab, vendor: tuple[Path, str]) -> None:
    with proxy(vendor[1], "packages.invalid") as (address, asked):
        settings = {
            "nvidia_driver_repository_url": "http://packages.invalid/compute/cuda/repos/debian12/x86_64",
            "nvidia_driver_repository_proxy": address,
        }
        run = play(lab, "gpu01", metal_driver_branch="620", **settings)
        assert "expected branch 620" in said(run)  # the lists came through it, and nothing was installed
        names = {path.rsplit("/", 1)[-1] for path in asked}
        assert {"InRelease"} < names
        assert any(name.endswith(".pub") for name in names)
        assert {urlsplit(path).hostname for path in asked} == {"packages.invalid"}
    line = said(play(lab, "gpu01", **settings))
    assert "a package repository that does not answer" in line
    lab.ssh(
        "gpu01",
        "rm /etc/apt/sources.list.d/minimax-metal-nvidia.sources /etc/apt/apt.conf.d/80minimax-metal-nvidia",
    )


def test_key_of_another_fingerprint(lab: Lab) -> None:
    run = play(lab, nvidia_driver_repository_key_fingerprint="EB693B3035CD5710E231E123A4B469963BF863CC")
    text = " ".join(run.output.split())
    assert run.returncode != 0
    assert "expected EB693B3035CD5710E231E123A4B469963BF863CC. Nothing was given to apt." in text
    assert lab.ssh("gpu01", "ls /etc/apt/sources.list.d") == "debian.sources\n"


def test_signature_that_does_not_fit(lab: Lab, vendor: tuple[Path, str]) -> None:
    tree, address = vendor
    forged = tree / "forged"
    shutil.copytree(tree / "compute/cuda/repos/debian12/x86_64", forged, dirs_exist_ok=True)
    release = (forged / "InRelease").read_text()
    (forged / "InRelease").write_text(release.replace("Origin: NVIDIA", "Origin: Somebody"))
    line = said(play(lab, nvidia_driver_repository_url=f"{address}/forged"))
    assert "a signature of the package repository that does not match its key" in line
    assert nothing_installed(lab)
    assert only_its_own_sources(lab)


def test_branch_that_the_repository_lacks(lab: Lab) -> None:
    line = said(play(lab, metal_driver_branch="620"))
    versions = "580.126.20, 580.159.04, 590.48.01, 595.71.05, 610.57.04"
    assert f"found nvidia-kernel-open-dkms {versions} in apt's lists" in line
    assert "expected branch 620" in line
    assert "no longer has a driver of branch 620" in line
    assert "set metal_driver_branch to 580 or 590 or 595 or 610" in line
    assert nothing_installed(lab)


def test_package_that_is_listed_and_not_there(lab: Lab, vendor: tuple[Path, str]) -> None:
    tree, address = vendor
    part = tree / "incomplete"
    shutil.copytree(tree / "compute/cuda/repos/debian12/x86_64", part, dirs_exist_ok=True)
    for package in part.glob("libnvidia-ml1_*.deb"):
        package.unlink()
    line = said(play(lab, nvidia_driver_repository_url=f"{address}/incomplete"))
    assert "404" in line
    assert "it resumes" in line
    assert nothing_installed(lab)


def test_reboot_that_does_not_return_and_the_run_that_goes_on(lab: Lab) -> None:
    late = "/etc/systemd/system/ssh.service.d/late.conf"
    lab.ssh(
        "gpu01",
        f"mkdir -p $(dirname {late}); printf '[Service]\\nExecStartPre=/usr/bin/sleep 40\\n' > {late}",
    )
    line = said(play(lab, nvidia_driver_reboot_timeout_seconds=5))
    assert "found no answer 5 s after a reboot into driver 580.159.04" in line
    assert "look at its console" in line
    # The host comes back after all; the next run finds the driver loaded and goes on.
    lab.lab("reboot", "gpu01")
    lab.ssh("gpu01", f"rm {late} && systemctl daemon-reload")
    run = play(lab)
    assert run.returncode == 0, run.output
    assert run.changed == {}  # units come up with the boot, and all else was done before it
    assert lab.ssh("gpu01", "systemctl is-active nvidia-device-nodes nvidia-persistenced") == "active\n" * 2
    assert "580.159.04" in lab.ssh("gpu01", "nvidia-smi --query-gpu=driver_version --format=csv,noheader")


def test_upgrade_that_slipped_in_on_a_driver_that_is_not_ours(lab: Lab) -> None:
    lab.ssh(
        "gpu01",
        "apt-mark -qq unhold $(apt-mark showhold)"
        " && apt-get -qq -y -o Dir::Etc::PreferencesParts=/nowhere -o Dir::Etc::Preferences=/nowhere"
        " --no-install-recommends install nvidia-driver-cuda >&2",
    )
    line = said(play(lab, nvidia_driver_manage=False))
    assert "Driver/library version mismatch" in line
    assert "nvidia_driver_manage is false" in line
    assert play(lab).returncode == 0


def test_driver_of_a_run_file_is_named_and_replaced_on_request(lab: Lab) -> None:
    first = play(lab)
    assert first.returncode == 0, first.output
    # As the installer leaves a host: programs and a loaded module, and no package that knows of them.
    uninstaller = (
        "#!/bin/sh\\nrm -r /usr/bin/nvidia-smi /usr/share/nvidia-standin /usr/bin/nvidia-uninstall\\n"
    )
    for command in (
        "mkdir /root/keep && cp -r /usr/bin/nvidia-smi /usr/share/nvidia-standin /root/keep",
        "apt-mark -qq unhold $(apt-mark showhold) && systemctl stop nvidia-persistenced",
        "dpkg --purge --force-all $(dpkg-query -W -f '${Package}\\n' '*nvidia*' 'libcuda*' libnvcuvid1) >&2",
        "cp /root/keep/nvidia-smi /usr/bin && cp -r /root/keep/nvidia-standin /usr/share",
        f"printf '{uninstaller}' > /usr/bin/nvidia-uninstall && chmod 755 /usr/bin/nvidia-uninstall",
    ):
        lab.ssh("gpu01", command)
    named = play(lab)
    assert named.returncode != 0
    assert "driver 580.159.04 that no package owns (a .run installer" in " ".join(named.output.split())
    assert "set metal_driver_run_file to replace" in " ".join(named.output.split())
    kept = play(lab, metal_driver_run_file="keep")
    assert kept.returncode == 0, kept.output
    assert "Install the driver's packages" not in kept.changed.get("gpu01", [])
    assert lab.ssh("gpu01", "test -e /usr/bin/nvidia-modprobe && echo there || true") == ""
    settled = play(lab, metal_driver_run_file="keep")
    assert settled.returncode == 0, settled.output
    assert settled.changed == {}
    assert lab.ssh("gpu01", "test -e /usr/bin/nvidia-uninstall && echo there") == "there\n"
    replaced = play(lab, metal_driver_run_file="replace")
    assert replaced.returncode == 0, replaced.output
    assert "The driver of the .run installer is removed" in replaced.changed["gpu01"]
    assert not lab.ssh("gpu01", "ls /usr/bin | grep uninstall || true")
    assert "580.159.04" in lab.ssh("gpu01", "nvidia-smi --query-gpu=driver_version --format=csv,noheader")


def test_compilers_that_no_repository_holds_are_named(lab: Lab) -> None:
    run = lab.play(PLAYBOOK, "--tags", "cuda_toolkit", "--limit", "gpu02")
    line = said(run, "gpu02")
    assert "cuda-nvcc-13-1" in line
    assert "check the repository that role nvidia_driver configures" in line
    assert "cuda_toolkit_manage" in line


def test_driver_that_was_there_before_is_accepted_as_it_is(lab: Lab, vendor: tuple[Path, str]) -> None:
    source = f"deb [trusted=yes] {vendor[1]}/compute/cuda/repos/debian13/x86_64 /"
    pin = "Package: *nvidia* libcuda* libnv*\\nPin: version 595.45.04-*\\nPin-Priority: 1001\\n"
    packages = "nvidia-kernel-open-dkms nvidia-driver-cuda nvidia-fabricmanager"
    for command in (
        f"echo '{source}' > /etc/apt/sources.list.d/by-hand.list && apt-get -qq update >&2",
        f"printf '{pin}' > /etc/apt/preferences.d/by-hand.pref",
        f"apt-get -qq -y --no-install-recommends install {packages} >&2",
        "systemctl enable --quiet nvidia-fabricmanager",
    ):
        lab.ssh("gpu02", command)
    lab.lab("reboot", "gpu02")
    boot = lab.ssh("gpu02", "cat /proc/sys/kernel/random/boot_id")
    before = lab.written("gpu02")
    left_alone = play(lab, "gpu02", nvidia_driver_manage=False)
    assert left_alone.returncode == 0, left_alone.output
    assert left_alone.changed == {}
    assert lab.written("gpu02") == before
    held = play(lab, "gpu02")
    assert held.returncode == 0, held.output
    assert "Hold the packages of the driver" in held.changed["gpu02"]
    assert "Install the driver's packages" not in held.changed["gpu02"]
    assert lab.ssh("gpu02", "nvidia-smi --query-gpu=driver_version --format=csv,noheader").split()[0] == (
        "595.45.04"
    )
    assert lab.ssh("gpu02", "cat /proc/sys/kernel/random/boot_id") == boot
    assert play(lab, "gpu02").changed == {}

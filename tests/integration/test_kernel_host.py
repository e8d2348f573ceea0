"""What only a kernel can show: modules that DKMS builds, nouveau, sysctl, a kernel that moves.

One host under QEMU without hardware virtualisation (lab/kernel): some twenty minutes. The tests run in order,
each on the host that the one before left.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.hosts.paths import labs_root
from lab.kernel.host import KernelHost
from tests.support.site import REPOSITORY, Run, changed_tasks, recap

SETTINGS = {"metal_model": "MiniMax-M2.5", "metal_accept_refusals": ["disk"]}
SYSCTL = "sysctl -n vm.swappiness"
PAGES = "cat /sys/kernel/mm/transparent_hugepage/enabled"


@pytest.fixture(scope="module")
def host() -> Iterator[KernelHost]:
    made = KernelHost(labs_root() / "kernel")
    try:
        made.prepare()
        made.boot()
        yield made
    finally:
        made.off()


def play(host: KernelHost, *arguments: str, **variables: Any) -> Run:
    inventory = host.inventory({**SETTINGS, **variables})
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "molecule/driver/converge.yml",
            *("--inventory", str(inventory), "--tags", "nvidia_driver,host_tuning", *arguments),
        ],
        cwd=REPOSITORY,
        check=False,
        text=True,
        capture_output=True,
        env={**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
    )
    return Run(done.returncode, done.stdout + done.stderr, changed_tasks(done.stdout), recap(done.stdout))


def said(run: Run) -> str:
    assert run.returncode != 0, run.output
    return " ".join(run.output.split())


def boot_id(host: KernelHost) -> str:
    return host.ssh("cat /proc/sys/kernel/random/boot_id").stdout.strip()


def test_nouveau_is_named_and_off_after_the_boot(host: KernelHost) -> None:
    host.ssh("modprobe nouveau && test -d /sys/module/nouveau")
    line = said(play(host, nvidia_driver_reboot="never"))
    assert "1 hosts wait for a reboot: kernel01" in line
    assert "kernel01: found nouveau is loaded and holds the GPUs" in line
    assert "reboot the host, then run the playbook again" in line
    assert "blacklist nouveau" in host.ssh("modprobe --showconfig | grep nouveau").stdout
    assert "minimax-metal-nouveau.conf" in host.ssh("lsinitramfs /boot/initrd.img-$(uname -r)").stdout


def test_module_that_dkms_built_is_loaded_at_boot_with_its_device_nodes(host: KernelHost) -> None:
    before = boot_id(host)
    host.ssh("systemctl reboot", check=False)
    host.wait()
    assert boot_id(host) != before
    assert "installed" in host.ssh("dkms status nvidia -k $(uname -r)").stdout
    assert "nvidia_uvm" in host.ssh("lsmod").stdout
    assert host.ssh(
        "test ! -d /sys/module/nouveau && ls /dev/nvidia0 /dev/nvidia3 /dev/nvidiactl /dev/nvidia-uvm"
    )
    run = play(host)
    assert run.returncode == 0, run.output
    assert "580.159.04" in host.ssh("nvidia-smi --query-gpu=driver_version --format=csv,noheader").stdout
    assert "The packages of the driver are installed" not in run.changed.get("kernel01", [])


def test_kernel_is_tuned_and_stays_so(host: KernelHost) -> None:
    assert host.ssh(SYSCTL).stdout == "1\n"
    assert host.ssh("sysctl -n kernel.numa_balancing", check=False).stdout in ("0\n", "")
    assert "[madvise]" in host.ssh(PAGES).stdout
    host.ssh("sysctl -q vm.swappiness=60 && echo always > /sys/kernel/mm/transparent_hugepage/enabled")
    run = play(host, "--skip-tags", "nvidia_driver")
    assert run.returncode == 0, run.output
    assert set(run.changed["kernel01"]) == {
        "The kernel's settings are applied",
        "Huge pages and the CPU's governor are applied",
    }
    assert host.ssh(SYSCTL).stdout == "1\n"
    assert "[madvise]" in host.ssh(PAGES).stdout


def test_failed_build_shows_the_end_of_its_log_and_the_next_run_goes_on(host: KernelHost) -> None:
    broken = "MAKE[0]=\"echo 'nvidia.c:7:1: error: planted by the test'; false\""
    host.ssh(f"cat > /etc/dkms/nvidia.conf <<'END'\n{broken}\nEND")
    line = said(play(host, metal_driver_branch="590"))
    kernel = host.ssh("uname -r").stdout.strip()
    assert re.search(rf"kernel01: found no module of driver 590\S* for kernel {re.escape(kernel)}", line), (
        line
    )
    assert "error: planted by the test" in line
    host.ssh("rm /etc/dkms/nvidia.conf")
    before = boot_id(host)
    run = play(host, metal_driver_branch="590")
    assert run.returncode == 0, run.output
    assert boot_id(host) != before
    assert "590.48.01" in host.ssh("nvidia-smi --query-gpu=driver_version --format=csv,noheader").stdout
    assert json.loads(json.dumps(run.recap))["kernel01"]["failed"] == 0


def test_kernel_that_moved_without_headers_is_named(host: KernelHost) -> None:
    host.ssh("apt-get -qq -y --no-install-recommends install linux-image-cloud-amd64 >&2")
    line = said(play(host, "--skip-tags", "host_tuning", metal_driver_branch="590"))
    assert re.search(r"for kernel \S+-cloud-amd64 \(it boots next; \S+ runs now\)", line), line

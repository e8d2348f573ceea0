"""What only a kernel can show: secure boot, DKMS modules, nouveau, sysctl, a kernel update.

One host under QEMU without hardware virtualisation (lab/kernel), started by a firmware with secure boot on:
half an hour and more. The tests run in order, each on the host as the one before left it. With
METAL_KERNEL_HOST=keep they continue with the disk of the last run, so that one test can be run again.
"""

from __future__ import annotations

import base64
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
SHM = "findmnt --noheadings --output OPTIONS /dev/shm"
VERSION = "nvidia-smi --query-gpu=driver_version --format=csv,noheader"
SECURE = "od --address-radix=n --format=u1 /sys/firmware/efi/efivars/SecureBoot-*"
INSTALLED = "dpkg-query --show --showformat '${Package} ' '*nvidia*' 2>/dev/null || true"


@pytest.fixture(scope="module")
def host() -> Iterator[KernelHost]:
    made = KernelHost(labs_root() / "kernel", secure_boot=True)
    try:
        made.prepare(fresh=os.environ.get("METAL_KERNEL_HOST") != "keep")
        made.boot()
        yield made
    finally:
        made.off()


def play(host: KernelHost, *arguments: str, tags: str = "nvidia_driver", **variables: Any) -> Run:
    inventory = host.inventory({**SETTINGS, **variables})
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "molecule/driver/converge.yml",
            *("--inventory", str(inventory), "--tags", tags, *arguments),
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
    assert "Traceback" not in run.output
    return " ".join(run.output.split()).replace("''", "'")  # quoted as YAML is


def test_secure_boot_is_read_off_the_firmware_and_stops_before_anything_is_written(host: KernelHost) -> None:
    assert host.ssh(SECURE).stdout.split()[-1] == "1"
    assert "[integrity]" in host.ssh("cat /sys/kernel/security/lockdown").stdout
    host.ssh("touch /root/before && sleep 1")
    line = said(play(host))
    assert "kernel01: found secure boot on and no key enrolled for modules built here, expected a key" in line
    assert host.ssh(INSTALLED).stdout == ""
    assert (
        host.ssh("find /etc /usr /boot /var/lib/dpkg /lib/modules -newer /root/before -type f").stdout == ""
    )
    # What the line says makes the key; that it is there and not enrolled is told apart.
    command = re.search(r"openssl req .*? -out /var/lib/dkms/mok\.pub", line)
    assert command, line
    host.ssh(command.group(0))
    again = said(play(host))
    assert "found secure boot on and the key /var/lib/dkms/mok.pub not enrolled" in again
    assert "mokutil --import /var/lib/dkms/mok.pub, reboot and confirm at the console" in again
    assert host.ssh(INSTALLED).stdout == ""


def test_nouveau_is_named_and_off_after_the_boot(host: KernelHost) -> None:
    certificate = host.directory / "mok.der"
    certificate.write_bytes(base64.b64decode(host.ssh("base64 /var/lib/dkms/mok.pub").stdout))
    host.power_off()
    host.enroll(certificate)
    host.boot()
    host.ssh("modprobe nouveau && test -d /sys/module/nouveau")
    line = said(play(host, nvidia_driver_reboot="never"))
    assert "1 hosts wait for a reboot: kernel01" in line
    assert "kernel01: found nouveau is loaded and has claimed the GPUs" in line
    assert "reboot the host, then run the playbook again" in line
    assert "blacklist nouveau" in host.ssh("modprobe --showconfig | grep nouveau").stdout
    assert "minimax-metal-nouveau.conf" in host.ssh("lsinitramfs /boot/initrd.img-$(uname -r)").stdout


def test_module_that_dkms_built_and_signed_is_loaded_at_boot_with_its_device_nodes(host: KernelHost) -> None:
    host.reboot()
    assert host.ssh(SECURE).stdout.split()[-1] == "1"
    assert "installed" in host.ssh("dkms status nvidia -k $(uname -r)").stdout
    assert "DKMS module signing key" in host.ssh("modinfo --field signer nvidia").stdout
    assert "nvidia_uvm" in host.ssh("lsmod").stdout
    assert host.ssh(
        "test ! -d /sys/module/nouveau && ls /dev/nvidia0 /dev/nvidia3 /dev/nvidiactl /dev/nvidia-uvm"
    )
    run = play(host)
    assert run.returncode == 0, run.output
    assert "580.159.04" in host.ssh(VERSION).stdout
    assert "Install the driver's packages" not in run.changed.get("kernel01", [])
    # Without the signature the same module is refused: that it loaded was the key's doing.
    stripped = (
        "cp $(modinfo --filename nvidia-uvm) /root/unsigned.ko && strip --strip-debug /root/unsigned.ko"
    )
    host.ssh(f"{stripped} && rmmod nvidia-uvm")
    refused = host.ssh("insmod /root/unsigned.ko", check=False)
    assert refused.returncode != 0, "an unsigned module was loaded under secure boot"
    host.ssh("modprobe nvidia-uvm")


def test_kernel_is_tuned_and_stays_so(host: KernelHost) -> None:
    first = play(host, tags="host_tuning", host_tuning_shm_size="300M")
    assert first.returncode == 0, first.output
    assert host.ssh(SYSCTL).stdout == "1\n"
    assert host.ssh("sysctl -n kernel.numa_balancing", check=False).stdout in ("0\n", "")
    assert "[madvise]" in host.ssh(PAGES).stdout
    assert "size=307200k" in host.ssh(SHM).stdout
    host.ssh("sysctl -q vm.swappiness=60 && echo always > /sys/kernel/mm/transparent_hugepage/enabled")
    run = play(host, tags="host_tuning", host_tuning_shm_size="300M", host_tuning_limits=False)
    assert run.returncode == 0, run.output
    assert set(run.changed["kernel01"]) == {
        "Write the limits, the journal's size and the kernel's settings",
        "Set the kernel's values",
        "Set huge pages and the CPU's governor",
    }
    assert host.ssh(SYSCTL).stdout == "1\n"
    assert "[madvise]" in host.ssh(PAGES).stdout


def test_failed_build_shows_the_end_of_its_log_and_the_next_run_goes_on(host: KernelHost) -> None:
    broken = "MAKE[0]=\"echo 'nvidia.c:7:1: error: planted by the test'; false\""
    host.ssh(f"cat > /etc/dkms/nvidia.conf <<'END'\n{broken}\nEND")
    line = said(play(host, metal_driver_branch="595"))
    kernel = host.ssh("uname -r").stdout.strip()
    assert re.search(rf"kernel01: found no module of driver 595\S* for kernel {re.escape(kernel)}", line), (
        line
    )
    assert "error: planted by the test" in line
    host.ssh("rm /etc/dkms/nvidia.conf")
    before = host.boot_id()
    run = play(host, metal_driver_branch="595")
    assert run.returncode == 0, run.output
    assert host.boot_id() != before
    assert "595.71.05" in host.ssh(VERSION).stdout


def test_kernel_that_moved_without_headers_is_named(host: KernelHost) -> None:
    # What was tuned has outlived the boots.
    assert host.ssh(SYSCTL).stdout == "1\n"
    assert "[madvise]" in host.ssh(PAGES).stdout
    assert "size=307200k" in host.ssh(SHM).stdout
    host.ssh("apt-get -qq -y --no-install-recommends install linux-image-cloud-amd64 >&2")
    line = said(play(host, metal_driver_branch="595"))
    assert re.search(r"for kernel \S+-cloud-amd64 \(which boots next; \S+ is running now\)", line), line

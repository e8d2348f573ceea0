"""The image of hosts with their own kernel: Debian 12 with packages that a test would otherwise wait for."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from lab.hosts import apt, environment
from lab.hosts.paths import cache_root
from lab.vendor.gpus import write_pci_tree

PACKAGES = (
    "ca-certificates", "dbus", "iproute2", "kmod", "openssh-server", "procps", "python3", "python3-apt",
    "sudo", "systemd", "systemd-sysv", "tzdata", "udev", "ifupdown", "isc-dhcp-client", "initramfs-tools",
    "linux-image-amd64", "linux-headers-amd64", "dkms", "gpg", "adduser", "systemd-timesyncd",
)  # fmt: skip
MODEL, COUNT = "H20", 4
BOOT_LOADER = ("shim-signed", "shim-helpers-amd64-signed", "grub-efi-amd64-signed")
"""Debian packages whose signed programs start the kernel under secure boot; the host has none installed."""
DISK = "6G"
RECIPE_VERSION = 4
KERNEL_ARGUMENTS = "console=ttyS0 root=/dev/vda rw net.ifnames=0"

_PCI_MOUNT = """[Unit]
Description=The lab's GPUs on the PCI bus
DefaultDependencies=no
Before=systemd-modules-load.service sysinit.target
After=local-fs.target
[Mount]
What=/usr/share/lab-pci
Where=/sys/bus/pci/devices
Type=none
Options=bind
[Install]
WantedBy=sysinit.target
"""


def image() -> Path:
    """Return the directory of the image: disk.raw, vmlinuz, initrd.img; created if it is not in the cache."""
    sources = apt.debian_sources(apt.read_sources(), apt.machine_release(), "bookworm")
    settings = apt.machine_settings()
    certificates = environment.ca_certificates()
    text = json.dumps(
        [
            RECIPE_VERSION,
            PACKAGES,
            BOOT_LOADER,
            KERNEL_ARGUMENTS,
            sources,
            list(settings),
            sorted(certificates.items()),
            MODEL,
        ]
    )
    directory = cache_root() / "kernel" / hashlib.sha256(text.encode()).hexdigest()[:12]
    if directory.is_dir():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    for leftover in directory.parent.glob(".making-*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=directory.parent) as scratch:
        draft = Path(scratch)
        draft.chmod(0o755)
        (draft / "debian.sources").write_text(sources)
        (draft / "certificates").mkdir()
        for name, content in certificates.items():
            (draft / "certificates" / name).write_text(content)
        root = draft / "root"
        hooks = [
            f"sync-in {draft / 'certificates'} /usr/local/share/ca-certificates",
            'chroot "$1" update-ca-certificates',
            'chroot "$1" systemctl --quiet disable apt-daily.timer apt-daily-upgrade.timer',
            # An initial file system with few modules: with all of them, rebuilding takes minutes here.
            'echo MODULES=list > "$1/etc/initramfs-tools/conf.d/lab"',
            'printf "virtio_pci\nvirtio_blk\next4\ncrc32c_generic\n" >> "$1/etc/initramfs-tools/modules"',
            'chroot "$1" update-initramfs -u',
            f'chroot "$1" sh -c "cd /var/cache && apt-get -qq download {" ".join(BOOT_LOADER)}"',
            f'for deb in "$1"/var/cache/*.deb; do dpkg-deb -x "$deb" {draft / "loader"}; rm "$deb"; done',
        ]
        subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}",
             *(f"--aptopt={line}" for line in settings), *(f"--customize-hook={hook}" for hook in hooks),
             "bookworm", str(root), str(draft / "debian.sources")],
            check=True,
        )  # fmt: skip
        for left in [*(root / "etc/apt/sources.list.d").glob("*"), root / "etc/apt/sources.list"]:
            left.unlink(missing_ok=True)
        _fill(root, sources)
        finished = draft / "finished"
        finished.mkdir()
        for name in ("vmlinuz", "initrd.img"):
            shutil.copy(next((root / "boot").glob(f"{name}-*")), finished / name)
        _lay_out_esp(finished, draft / "loader/usr/lib")
        disk = finished / "disk.raw"
        with disk.open("wb") as file:
            file.truncate(int(DISK.removesuffix("G")) << 30)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(disk)], check=True)
        finished.replace(directory)
    return directory


def _fill(root: Path, sources: str) -> None:
    """Write the files that make a root this host: name, network, sources, GPUs."""
    pci = root / "usr/share/lab-pci"
    write_pci_tree(pci, MODEL, COUNT)
    gpus = sorted(
        path.name
        for path in pci.iterdir()
        # The board's own VGA is of class 0x0300 too.
        if (path / "vendor").read_text().strip() == "0x10de"
        and (path / "class").read_text().startswith(("0x0302", "0x0300"))
    )
    unit = "sys-bus-pci-devices.mount"
    files = {
        "etc/hostname": "kernel01\n",
        "etc/network/interfaces": "auto lo eth0\niface lo inet loopback\niface eth0 inet dhcp\n",
        "etc/apt/sources.list.d/debian.sources": sources,
        "etc/apt/apt.conf.d/95lab": "".join(f"{line}\n" for line in apt.machine_settings()),
        f"etc/systemd/system/{unit}": _PCI_MOUNT,
        "etc/modprobe.d/lab-gpus.conf": f'options nvidia addresses={",".join(gpus)} model="NVIDIA {MODEL}"\n',
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    wants = root / "etc/systemd/system/sysinit.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (wants / unit).symlink_to(f"../{unit}")


def _lay_out_esp(directory: Path, loader: Path) -> None:
    """Create the directory of the EFI system partition: shim, GRUB as Debian signs it, kernel and initrd."""
    programs = {
        "BOOTX64.EFI": "shim/shimx64.efi.signed",
        "mmx64.efi": "shim/mmx64.efi.signed",
        "grubx64.efi": "grub/x86_64-efi-signed/grubx64.efi.signed",
    }
    place = directory / "esp/EFI/BOOT"
    place.mkdir(parents=True)
    for name, source in programs.items():
        shutil.copy(loader / source, place / name)
    for name in ("vmlinuz", "initrd.img"):
        shutil.copy(directory / name, directory / "esp" / name)
    settings = directory / "esp/EFI/debian"  # the path in which Debian's signed GRUB looks
    settings.mkdir()
    (settings / "grub.cfg").write_text(
        f"set timeout=0\nlinux /vmlinuz {KERNEL_ARGUMENTS}\ninitrd /initrd.img\nboot\n"
    )

"""A Debian 12 host with a kernel of its own, under QEMU without hardware virtualisation.

Slow (a boot takes half a minute to a minute, Python starts five times slower than on an nspawn host), so
one host serves one scenario. Packages that a test would otherwise wait for are in the image: kernel, headers,
DKMS and its compiler. The GPUs of the PCI bus are a directory mounted over /sys/bus/pci/devices, as on nspawn
hosts; the driver's module is real and stands in for NVIDIA's (lab/vendor/files/dkms).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

from lab.hosts import apt, environment
from lab.hosts.errors import LabError
from lab.hosts.paths import cache_root
from lab.vendor import repository
from lab.vendor.gpus import write_pci_tree

PACKAGES = (
    "ca-certificates", "dbus", "iproute2", "kmod", "openssh-server", "procps", "python3", "python3-apt",
    "sudo", "systemd", "systemd-sysv", "tzdata", "udev", "ifupdown", "isc-dhcp-client", "initramfs-tools",
    "linux-image-amd64", "linux-headers-amd64", "dkms", "gpg", "adduser", "systemd-timesyncd",
)  # fmt: skip
MODEL, COUNT = "H20", 4
DISK = "6G"
MEMORY_MIB = 2048
GATEWAY = "10.0.2.2"
"""Where a guest finds this machine's loopback: QEMU's user networking."""
RECIPE_VERSION = 2

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


@dataclass
class KernelHost:
    """One host: its disk and its console's log in ``directory``, ssh on a loopback port."""

    directory: Path

    def __post_init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self.server: ThreadingHTTPServer | None = None

    # -- making it ---------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Lay out the disk from the cached image, with a key of its own; serve the vendor's repository."""
        self.directory.mkdir(parents=True, exist_ok=True)
        key = self.directory / "key"
        if not key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        image = _image()
        subprocess.run(
            ["cp", "--sparse=always", str(image / "disk.raw"), str(self.directory / "disk.raw")], check=True
        )
        for name in ("vmlinuz", "initrd.img"):
            shutil.copy(image / name, self.directory / name)
        public = (self.directory / "key.pub").read_text()
        _write_into(self.directory / "disk.raw", {"/root/.ssh/authorized_keys": public})
        vendor = self.directory / "vendor"
        built = repository.build(vendor, self.directory / "keys", modules=True)
        handler = partial(_Quiet, directory=str(vendor))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.fingerprint = built.key_fingerprint
        self.vendor_url = f"http://{GATEWAY}:{self.server.server_port}/{built.url_path}"

    # -- on and off --------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start it and wait until it answers ssh.

        Raises:
            LabError: it does not within five minutes; the end of its console is in the message.
        """
        console = self.directory / "console.log"
        arguments = [
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-smp", "2", "-cpu", "max",
            "-m", str(MEMORY_MIB), "-display", "none", "-monitor", "none", "-serial", f"file:{console}",
            "-drive", f"file={self.directory / 'disk.raw'},if=virtio,format=raw,cache=unsafe",
            "-netdev", f"user,id=n,hostfwd=tcp:127.0.0.1:{self.port}-:22",
            "-device", "virtio-net-pci,netdev=n",
            "-kernel", str(self.directory / "vmlinuz"), "-initrd", str(self.directory / "initrd.img"),
            "-append", "console=ttyS0 root=/dev/vda rw net.ifnames=0",
        ]  # fmt: skip
        self.process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL)
        self.wait()

    def wait(self, seconds: float = 300) -> None:
        """Wait until it answers ssh."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                break
            if self.ssh("true", check=False, timeout=20).returncode == 0:
                return
            time.sleep(2)
        end = (self.directory / "console.log").read_text(errors="replace")[-1500:]
        raise LabError(f"kernel host {self.directory} does not answer ssh; its console ends with: {end}")

    def off(self) -> None:
        """End it; nothing but its directory is left."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()

    # -- talking to it -----------------------------------------------------------------------------------

    @property
    def ssh_options(self) -> list[str]:
        """Options for ssh. The key of a host that is thrown away is not checked: it has a loopback port."""
        known = self.directory / "known_hosts"
        options = {
            "IdentityFile": self.directory / "key",
            "UserKnownHostsFile": known,
            "StrictHostKeyChecking": "accept-new",
            "ConnectTimeout": 10,
        }
        return [part for name, value in options.items() for part in ("-o", f"{name}={value}")]

    def ssh(self, command: str, check: bool = True, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """Run a shell command as root."""
        argv = ["ssh", *self.ssh_options, "-p", str(self.port), "root@127.0.0.1", command]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(argv, 255, "", "no answer in time")
        if check and done.returncode:
            raise LabError(f"{command}: {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def inventory(self, variables: dict[str, object]) -> Path:
        """Write an Ansible inventory of this host and return its path."""
        host = {
            "ansible_host": "127.0.0.1",
            "ansible_port": self.port,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.directory / "key"),
            "ansible_ssh_common_args": " ".join(self.ssh_options[2:]),
            "nvidia_driver_repository_url": f"{self.vendor_url}/debian12/x86_64",
            "nvidia_driver_repository_key": f"{self.fingerprint[-8:].lower()}.pub",
            "nvidia_driver_repository_key_fingerprint": self.fingerprint,
        }
        path = self.directory / "hosts.yml"
        document = {"gpu_hosts": {"hosts": {"kernel01": {**host, **variables}}}}
        path.write_text(yaml.safe_dump(document, sort_keys=False, width=110))
        return path


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _image() -> Path:
    """Return the directory of the image: disk.raw, vmlinuz, initrd.img; made when it is not in the cache."""
    sources = apt.debian_sources(apt.read_sources(), apt.machine_release(), "bookworm")
    settings = apt.machine_settings()
    certificates = environment.ca_certificates()
    text = json.dumps(
        [RECIPE_VERSION, PACKAGES, sources, list(settings), sorted(certificates.items()), MODEL]
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
            # An initial file system of a few modules: with all of them making it anew takes minutes here.
            'echo MODULES=list > "$1/etc/initramfs-tools/conf.d/lab"',
            'printf "virtio_pci\nvirtio_blk\next4\ncrc32c_generic\n" >> "$1/etc/initramfs-tools/modules"',
            'chroot "$1" update-initramfs -u',
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
        disk = finished / "disk.raw"
        with disk.open("wb") as file:
            file.truncate(int(DISK.removesuffix("G")) << 30)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(disk)], check=True)
        finished.replace(directory)
    return directory


def _fill(root: Path, sources: str) -> None:
    """Write what makes a root this host: name, network, sources, GPUs."""
    pci = root / "usr/share/lab-pci"
    write_pci_tree(pci, MODEL, COUNT)
    gpus = sorted(
        path.name for path in pci.iterdir() if (path / "class").read_text().startswith(("0x0302", "0x0300"))
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


def _write_into(disk: Path, files: dict[str, str]) -> None:
    """Write files into an ext4 file system that is not mounted, readable by root only."""
    for name, content in files.items():
        with tempfile.NamedTemporaryFile("w") as local:
            local.write(content)
            local.flush()
            commands = (
                f"mkdir {Path(name).parent}\nrm {name}\nwrite {local.name} {name}\nsif {name} mode 0100600\n"
            )
            commands += f"sif {Path(name).parent} mode 040700\nsif {name} uid 0\nsif {name} gid 0\n"
            subprocess.run(
                ["debugfs", "-w", "-f", "-", str(disk)],
                input=commands,
                text=True,
                check=True,
                capture_output=True,
            )

"""A Debian 12 host with its own kernel, under QEMU without hardware virtualisation.

Slow (a boot takes half a minute to a minute, Python starts five times slower than on an nspawn host), so one
host serves one scenario. Packages that a test would otherwise wait for are in the image: kernel, headers,
DKMS and its compiler. The GPUs of the PCI bus are a directory mounted over /sys/bus/pci/devices, as on nspawn
hosts; the driver's module is a real module that stands in for NVIDIA's (lab/vendor/files/dkms).
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

from lab.hosts.errors import LabError
from lab.kernel.image import KERNEL_ARGUMENTS, image
from lab.vendor import repository

MEMORY_MIB = 2048
GATEWAY = "10.0.2.2"
"""The guest's address for this machine's loopback: QEMU's user networking."""
FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.ms.fd")
VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
"""OVMF and its variables with Microsoft's keys enrolled and secure boot on (Debian package ovmf)."""
_SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
"""Vendor's GUID of shim's variables (MokList, MokListRT)."""


@dataclass
class KernelHost:
    """One host: its disk and its console's log in ``directory``, ssh on a loopback port.

    With ``secure_boot`` it starts like a server: firmware (OVMF) that knows Microsoft's keys, Debian's signed
    shim and boot loader, Debian's signed kernel, which then accepts signed modules only. Otherwise QEMU
    starts the kernel itself.
    """

    directory: Path
    secure_boot: bool = False

    def __post_init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.keeper: threading.Thread | None = None
        self.stopping = threading.Event()
        self.port = _free_port()
        self.server: ThreadingHTTPServer | None = None

    # -- creating it -------------------------------------------------------------------------------------

    def prepare(self, fresh: bool = True) -> None:
        """Create the disk from the cached image, with its own key; serve the vendor's repository.

        ``fresh`` false continues with the previous disk and firmware variables.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if fresh or not (self.directory / "disk.raw").exists():
            self._lay_out()
        vendor = self.directory / "vendor"
        built = repository.build(vendor, self.directory / "keys", modules=True)
        handler = partial(_Quiet, directory=str(vendor))
        # A reused disk contains the repository's address.
        kept = self.directory / "vendor-port"
        port = int(kept.read_text()) if kept.exists() else 0
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        kept.write_text(str(self.server.server_port))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.fingerprint = built.key_fingerprint
        self.vendor_url = f"http://{GATEWAY}:{self.server.server_port}/{built.url_path}"

    def _lay_out(self) -> None:
        key = self.directory / "key"
        if not key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        made = image()
        subprocess.run(
            ["cp", "--sparse=always", str(made / "disk.raw"), str(self.directory / "disk.raw")], check=True
        )
        for name in ("vmlinuz", "initrd.img"):
            shutil.copy(made / name, self.directory / name)
        if self.secure_boot:
            shutil.rmtree(self.directory / "esp", ignore_errors=True)
            shutil.copytree(made / "esp", self.directory / "esp")
            shutil.copy(VARIABLES, self.directory / "variables.fd")
        public = (self.directory / "key.pub").read_text()
        _write_into(self.directory / "disk.raw", {"/root/.ssh/authorized_keys": public})

    # -- on and off --------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start it and wait until it answers ssh.

        Each reboot of the guest is a process of its own, started by a thread: OVMF was seen to hang in the
        reset that QEMU without hardware virtualisation does in place.

        Raises:
            LabError: it does not answer within half an hour; the end of its console is in the message.
        """
        self.stopping.clear()
        console = self.directory / "console.log"
        console.unlink(missing_ok=True)
        arguments = [
            "qemu-system-x86_64", "-no-reboot", "-accel", "tcg,thread=multi", "-smp", "2",
            "-m", str(MEMORY_MIB), "-display", "none", "-monitor", "none",
            "-chardev", f"file,id=console,path={console},append=on", "-serial", "chardev:console",
            # First on the bus, so that it is the kernel's vda.
            "-drive", f"file={self.directory / 'disk.raw'},if=none,id=root,format=raw,cache=unsafe",
            "-device", "virtio-blk-pci,drive=root",
            "-netdev", f"user,id=n,hostfwd=tcp:127.0.0.1:{self.port}-:22",
            "-device", "virtio-net-pci,netdev=n,romfile=",
            *(self._firmware() if self.secure_boot else self._kernel()),
        ]  # fmt: skip
        self.process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL)
        self.keeper = threading.Thread(target=self._keep, args=(self.process, arguments), daemon=True)
        self.keeper.start()
        self.wait()

    def _keep(self, process: subprocess.Popen[bytes], arguments: list[str]) -> None:
        """Restart it whenever it ends, like a machine that resets; a failing QEMU is not restarted."""
        while process.wait() == 0 and not self.stopping.is_set():
            process = self.process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL)

    def _kernel(self) -> list[str]:
        """QEMU starts the kernel."""
        return ["-cpu", "max", "-kernel", str(self.directory / "vmlinuz"),
                "-initrd", str(self.directory / "initrd.img"), "-append", KERNEL_ARGUMENTS]  # fmt: skip

    def _firmware(self) -> list[str]:
        """The firmware starts shim from a FAT file system that QEMU makes from a directory."""
        # OVMF of Debian 12 does not support five levels of page tables, which `max` has.
        return [
            "-machine", "q35,smm=on", "-cpu", "max,la57=off",
            "-global", "driver=cfi.pflash01,property=secure,value=on",
            "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE}",
            "-drive", f"if=pflash,unit=1,format=raw,file={self.directory / 'variables.fd'}",
            "-drive", f"if=none,id=esp,format=raw,readonly=on,file=fat:{self.directory / 'esp'}",
            "-device", "virtio-blk-pci,drive=esp,bootindex=0",
        ]  # fmt: skip

    def enroll(self, certificate: Path) -> None:
        """Add a key (MOK), in DER or PEM, to the firmware of a host that is off.

        Stands in for a person at the console who confirms `mokutil --import` in shim's MokManager; it can't
        show that dialogue.
        """
        subprocess.run(
            [sys.executable, "-m", "virt.firmware.vars", "--inplace", str(self.directory / "variables.fd"),
             "--add-mok", _SHIM, str(certificate)],
            check=True, capture_output=True,
        )  # fmt: skip

    def wait(self, seconds: float = 1800) -> None:
        """Wait until it answers ssh."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.keeper is None or not self.keeper.is_alive():
                break
            if self.ssh("true", check=False, timeout=20).returncode == 0:
                return
            time.sleep(2)
        end = (self.directory / "console.log").read_text(errors="replace")[-1500:]
        raise LabError(f"kernel host {self.directory} does not answer ssh; its console ends with: {end}")

    def boot_id(self) -> str:
        """Return the current boot id, empty if the host does not answer."""
        return self.ssh("cat /proc/sys/kernel/random/boot_id", check=False, timeout=20).stdout.strip()

    def reboot(self, seconds: float = 1800) -> None:
        """Reboot it and wait for the new boot: a host that shuts down still answers for a while.

        Raises:
            LabError: it does not come back in time.
        """
        before = self.boot_id()
        self.ssh("systemctl reboot", check=False)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.boot_id() not in ("", before):
                # sshd answers before everything is up
                self.ssh("systemctl is-system-running --wait", check=False)
                return
            time.sleep(2)
        raise LabError(f"kernel host {self.directory} did not come back within {seconds:.0f} s of a reboot")

    def power_off(self) -> None:
        """Shut it down like its power button; `boot` starts it again with the same disk."""
        self.stopping.set()
        self.ssh("systemctl poweroff", check=False)
        if self.keeper is not None:
            self.keeper.join(900)

    def off(self) -> None:
        """End it; nothing but its directory is left."""
        self.stopping.set()
        patience = time.monotonic() + 20
        while self.process is not None and self.keeper is not None and self.keeper.is_alive():
            self.process.terminate() if time.monotonic() < patience else self.process.kill()
            self.keeper.join(1)
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()

    # -- talking to it -----------------------------------------------------------------------------------

    @property
    def ssh_options(self) -> list[str]:
        """Return options for ssh. The key of a disposable host is not checked: it has a loopback port."""
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
            "metal_plan_date": "2026-11-29",  # the date of that repository: its branches end
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

#!/usr/bin/python
"""Collect what the plan needs to know of a host, and decide nothing."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
---
module: metal_facts
short_description: Collect facts about a GPU host for its plan
description:
  - Reads the platform, the PCI devices, the NVIDIA driver if there is one, memory, disks and packages, and
    which programs hold ports and GPU memory.
  - It only collects. The filter C(metal_plan) on the controller parses and decides.
  - It writes nothing and is the same in check mode.
  - Programs and file systems that don't answer in time are named in C(unanswered). The module itself ends.
options:
  paths:
    description: Directories whose file systems are measured. A missing directory is measured
      at its nearest existing parent.
    type: list
    elements: str
    default: [/srv/models, /opt, /var/cache]
  weights_directory:
    description: Directory of weights as ORGANISATION/NAME/REVISION; stored weights in it are measured.
    type: path
    default: /srv/models
  adopt_directories:
    description: Directories that may already have the weights; measures how much of each can be linked
      below I(weights_directory).
    type: list
    elements: str
    default: []
  engine_directory:
    description: Directory of engine environments, which are listed.
    type: path
    default: /opt/sglang
  seconds:
    description: Time limit for each program; each kind of directory has twice as long.
    type: int
    default: 30
author:
  - The minimax-metal authors
"""

EXAMPLES = r"""
- name: Collect facts about the host
  minimax.metal.metal_facts:
    paths: [/srv/models]
  register: collected
"""

RETURN = r"""
facts:
  description: The collected facts, unprocessed; sizes in bytes.
  returned: always
  type: dict
"""

import fcntl
import os
import platform
import shutil
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

# The first two are the package's own files, src/minimax_metal/common/{apart,program}.py, by a link.
from ansible_collections.minimax.metal.plugins.module_utils.metal_apart import within
from ansible_collections.minimax.metal.plugins.module_utils.metal_program import Answer, run
from ansible_collections.minimax.metal.plugins.module_utils.metal_storage import (
    adoptable,
    disks,
    engine_environments,
    stored_weights,
)

NVIDIA_SMI_FIELDS = "index,name,uuid,memory.total,driver_version,compute_cap"
COMPUTE_APP_FIELDS = "gpu_uuid,pid,process_name,used_memory"
ASKED = ("paths", "weights_directory", "adopt_directories", "engine_directory")
PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NVIDIA = "0x10de"
PCI_ATTRIBUTES = ("vendor", "device", "class", "subsystem_vendor", "subsystem_device")


def read_text(path: str | Path) -> str | None:
    """Return the text of a file, or None where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def pci_devices(root: str = "/sys/bus/pci/devices") -> list[dict[str, str]]:
    """Return one dictionary for each PCI device, identifiers as sysfs prints them (0x10de)."""
    devices: list[dict[str, str]] = []
    try:
        addresses = sorted(device.name for device in Path(root).iterdir())
    except OSError:
        return devices
    for address in addresses:
        device = {"address": address}
        for attribute in PCI_ATTRIBUTES:
            device[attribute] = (read_text(Path(root, address, attribute)) or "").strip()
        devices.append(device)
    return devices


def memory_total_bytes() -> int:
    """Return the memory of the host in bytes, 0 where the kernel does not say."""
    for line in (read_text("/proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def own_address() -> str:
    """Return the IPv4 address of the host on its default route, empty without one. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # from the documentation network: routed like any outside address
            return str(probe.getsockname()[0])
        except OSError:
            return ""


def secure_boot() -> bool | None:
    """Return whether the firmware enforces signatures; None where it does not say."""
    try:
        variables = sorted(Path("/sys/firmware/efi/efivars").glob("SecureBoot-*"))
        return bool(variables[0].read_bytes()[-1]) if variables else None
    except (OSError, IndexError):
        return None


def listening_sockets(proc: str = "/proc") -> dict[str, int]:
    """Return the TCP port of each listening socket, by the inode of the socket."""
    sockets = {}
    for table in ("net/tcp", "net/tcp6"):
        for line in (read_text(Path(proc, table)) or "").splitlines()[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == "0A":
                try:
                    sockets[fields[9]] = int(fields[1].rpartition(":")[2], 16)
                except ValueError:
                    continue  # not a line of the kernel
    return sockets


def occupant(pid: int | str, proc: str = "/proc") -> dict[str, str | None]:
    """Return the name of a process and the systemd unit it runs under (None: no unit), as its cgroup says."""
    names = [
        name
        for line in (read_text(Path(proc, str(pid), "cgroup")) or "").splitlines()
        for name in line.split(":", 2)[-1].split("/")
        if name.endswith((".service", ".scope"))
    ]
    program = (read_text(Path(proc, str(pid), "comm")) or "").strip()
    return {"program": program or f"process {pid}", "unit": names[-1] if names else None}


def port_owners(sockets: Mapping[str, int], proc: str = "/proc") -> dict[str, dict[str, str | None]]:
    """Return who listens on each port. A port whose socket no process holds (a kernel server) is left out."""
    owners: dict[str, dict[str, str | None]] = {}
    for descriptor in Path(proc).glob("[0-9]*/fd/*"):
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue  # it was closed meanwhile, or we have no permission
        port = sockets.get(target[len("socket:[") : -1]) if target.startswith("socket:[") else None
        if port is not None and str(port) not in owners:
            owners[str(port)] = occupant(descriptor.parent.parent.name, proc)
    return owners


def ask(program: str, arguments: Iterable[str], seconds: float) -> Answer:
    """Return what a program answers, in English."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "LANGUAGE": "C"}
    return run([program, *arguments], seconds=seconds, environment=environment)


def gpu_users(text: str) -> list[dict[str, Any]]:
    """Return who holds memory of a GPU, as nvidia-smi lists compute processes: GPU, process, memory.

    Its columns are gpu_uuid, pid, process_name, used_memory; a process name may hold commas.
    """
    users: list[dict[str, Any]] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) < 4:
            continue
        if not (cells[1].isascii() and cells[1].isdigit() and len(cells[1]) < 19):
            # "[N/A]", "[Insufficient Permissions]": in use, by a process in another PID namespace.
            users.append(
                {"program": "an unnamed process", "unit": None, "gpu_uuid": cells[0], "memory": cells[-1]}
            )
            continue
        user = occupant(cells[1])
        if user["program"] == f"process {cells[1]}":
            user["program"] = ",".join(cells[2:-1]).rpartition("/")[2] or user["program"]
        users.append({**user, "pid": int(cells[1]), "gpu_uuid": cells[0], "memory": cells[-1]})
    return users


def nvidia_installer() -> str | None:
    """Return the path of the uninstaller that NVIDIA's .run file leaves, None where there is none."""
    for path in ("/usr/bin/nvidia-uninstall", "/usr/bin/nvidia-installer"):
        if os.access(path, os.X_OK):
            return path
    return None


def nvidia_smi(seconds: float, gpus: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what nvidia-smi answers about every GPU and who uses it, or that there is no such program.

    ``gpus`` is how many the PCI bus has. Every further question is asked only when the one before was
    answered: on a host with a lost GPU each of them may hang.
    """
    program = shutil.which("nvidia-smi", path=PATH)
    if program is None:
        return {"present": False}, []
    answer = ask(program, ["--query-gpu=" + NVIDIA_SMI_FIELDS, "--format=csv,noheader"], seconds)
    found: dict[str, Any] = {
        "present": True,
        "returncode": answer.status,
        "stdout": answer.out,
        "stderr": answer.err,
        "timed_out": answer.timed_out,
    }
    if answer.timed_out:
        return found, []
    questions = {"mig": "mig.mode.current", "recovery": "gpu_recovery_action"}
    if len(answer.out.splitlines()) != gpus:
        questions["bus_ids"] = "pci.bus_id"  # which one is missing
    for name, field in questions.items():
        # Older drivers don't know the recovery state and exit with 2.
        more = ask(program, [f"--query-gpu=index,{field}", "--format=csv,noheader"], seconds)
        found[name] = more.out if more.status == 0 else ""
        if more.timed_out:
            return {**found, "timed_out": True}, []
    apps = ask(program, ["--query-compute-apps=" + COMPUTE_APP_FIELDS, "--format=csv,noheader"], seconds)
    found["timed_out"] = apps.timed_out
    return found, gpu_users(apps.out) if apps.status == 0 else []


def nvidia_packages(seconds: float) -> dict[str, str] | None:
    """Return the installed packages of NVIDIA's driver and toolkit, name to version; None: no answer."""
    program = shutil.which("dpkg-query", path=PATH)
    if program is None:
        return {}
    arguments = ["-W", "-f", "${db:Status-Abbrev}\t${Package}\t${Version}\n", "*nvidia*", "cuda-*"]
    answer = ask(program, arguments, seconds)
    if answer.timed_out:
        return None
    packages = {}
    # dpkg-query exits with 1 if one of the patterns matches nothing; its output is still right.
    if answer.status in (0, 1):
        for line in answer.out.splitlines():
            status, name, version = [*line.split("\t"), "", ""][:3]
            if status.startswith("ii") or status.startswith("hi"):
                packages[name] = version
    return packages


def dpkg_interrupted(directory: str = "/var/lib/dpkg") -> bool:
    """Return whether dpkg was cut off: what it wrote down of its work is there, and nobody is at work on it.

    apt looks for the same files (checkUpdates of apt-pkg/deb/debsystem.cc) and refuses all work with one.
    """
    try:
        left = any(path.name.isdigit() for path in Path(directory, "updates").iterdir())
        if not left:
            return False
        with Path(directory, "lock").open("rb") as lock:
            asked = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            (kind,) = struct.unpack_from("h", fcntl.fcntl(lock, fcntl.F_GETLK, asked))
    except OSError:
        return False
    return bool(kind == fcntl.F_UNLCK)


def main() -> None:
    """Collect and return."""
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "str", "default": ["/srv/models", "/opt", "/var/cache"]},
            "weights_directory": {"type": "path", "default": "/srv/models"},
            "adopt_directories": {"type": "list", "elements": "str", "default": []},
            "engine_directory": {"type": "path", "default": "/opt/sglang"},
            "seconds": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    seconds = wanted["seconds"]
    unanswered: dict[str, str] = {}

    def measured(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        value, problem = within(2 * seconds, function, *arguments)
        if problem:
            unanswered[name] = problem
        return value

    sockets = listening_sockets()
    devices = pci_devices()
    gpus = sum(one["vendor"] == NVIDIA and one["class"].startswith(("0x0300", "0x0302")) for one in devices)
    smi, users = nvidia_smi(seconds, gpus)
    if smi.get("timed_out"):
        unanswered["nvidia-smi"] = f"no answer within {seconds} s"
    packages = nvidia_packages(seconds)
    if packages is None:
        unanswered["dpkg-query"] = f"no answer within {seconds} s"
    facts = {
        "reachable": True,
        "hostname": socket.gethostname(),
        "os_release": read_text("/etc/os-release") or "",
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "pci_devices": devices,
        "nvidia_smi": smi,
        "driver_version_file": read_text("/proc/driver/nvidia/version"),
        "memory_total_bytes": memory_total_bytes(),
        "address": own_address(),
        "cpu_count": os.cpu_count() or 1,
        "disks": measured("disks", disks, wanted["paths"]),
        "stored_weights": measured("weights_directory", stored_weights, wanted["weights_directory"]),
        "adoptable": measured(
            "adopt_directories", adoptable, wanted["adopt_directories"], wanted["weights_directory"]
        ),
        "engine_environments": measured("engine_directory", engine_environments, wanted["engine_directory"]),
        "secure_boot": secure_boot(),
        "packages": packages or {},
        "dpkg_interrupted": dpkg_interrupted(),
        "listening_ports": sorted(set(sockets.values())),
        "port_owners": port_owners(sockets),
        "gpu_users": users,
        "nvidia_installer": nvidia_installer(),
        "boot_id": (read_text("/proc/sys/kernel/random/boot_id") or "").strip(),
        "user_is_root": os.geteuid() == 0,
        "unanswered": unanswered,
        # The requested measurements: cached facts only answer a question that was asked.
        "asked": {name: wanted[name] for name in ASKED},
    }
    module.exit_json(changed=False, facts=facts)


if __name__ == "__main__":
    main()

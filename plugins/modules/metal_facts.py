#!/usr/bin/python
"""Collect what the plan needs to know of a host, and decide nothing."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
---
module: metal_facts
short_description: Collects what the plan needs to know of a GPU host
description:
  - Reads the platform, the PCI devices, the NVIDIA driver if there is one, memory, disks and packages, and
    who holds ports and GPU memory.
  - It only collects. Parsing and deciding happen on the controller, in the filter C(metal_plan).
  - It writes nothing and is the same in check mode.
options:
  paths:
    description: Directories whose file systems are measured. A directory that is not there yet is measured
      at its nearest existing parent.
    type: list
    elements: str
    default: [/srv/models, /opt, /var/cache]
  weights_directory:
    description: Directory that holds weights as ORGANISATION/NAME/REVISION; what is stored there is measured.
    type: path
    default: /srv/models
  adopt_directories:
    description: Directories that may hold the weights already; it is measured how much of each a link can put
      below I(weights_directory).
    type: list
    elements: str
    default: []
  engine_directory:
    description: Directory that holds engine environments, which are listed.
    type: path
    default: /opt/sglang
author:
  - The minimax-metal authors
"""

EXAMPLES = r"""
- name: Facts of the host are collected
  metal_facts:
    paths: [/srv/models]
  register: metal_collected
"""

RETURN = r"""
facts:
  description: The collected facts, raw as the host states them; sizes in bytes.
  returned: always
  type: dict
"""

import fcntl
import os
import platform
import socket
import stat
import struct
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

NVIDIA_SMI_FIELDS = "index,name,uuid,memory.total,driver_version,compute_cap"
PCI_ATTRIBUTES = ("vendor", "device", "class", "subsystem_vendor", "subsystem_device")


def read_text(path):
    """Return the text of a file, or None where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def pci_devices(root="/sys/bus/pci/devices"):
    """Return one dictionary for each PCI device, identifiers as sysfs prints them (0x10de)."""
    devices = []
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


def memory_total_bytes():
    """Return the memory of the host in bytes, 0 where the kernel does not say."""
    for line in (read_text("/proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def disk(path):
    """Return total and free bytes of the file system that holds a path or its nearest existing parent."""
    place = Path(path)
    while not place.exists() and place != place.parent:
        place = place.parent
    status = os.statvfs(place)
    return {
        "path": str(place),
        "total_bytes": status.f_blocks * status.f_frsize,
        "free_bytes": status.f_bavail * status.f_frsize,
        "device": place.stat().st_dev,
    }


def stored_weights(directory):
    """Return the bytes stored under each ORGANISATION/NAME/REVISION, unfinished pulls among them."""
    sizes = {}
    for revision in sorted(Path(directory).glob("*/*/*")):
        if revision.is_dir():
            total = 0
            for parent, _directories, files in os.walk(revision):
                total += sum(Path(parent, name).lstat().st_size for name in files)
            sizes[str(revision)] = total
    return sizes


def adoptable(directories, weights_directory):
    """Return, by directory, the bytes of the files that a link can put below the weights directory.

    That takes the same file system, and a file that all may read and only its owner may write. One that has
    several names counts once.
    """
    device = disk(weights_directory)["device"]
    sizes = {}
    for directory in directories:
        seen = {}
        for parent, _directories, files in os.walk(directory):
            for name in files:
                try:
                    status = Path(parent, name).lstat()
                except OSError:
                    continue  # it went away meanwhile
                shared = status.st_mode & stat.S_IROTH and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
                if stat.S_ISREG(status.st_mode) and status.st_dev == device and shared:
                    seen[status.st_ino] = status.st_size
        sizes[directory] = sum(seen.values())
    return sizes


def secure_boot():
    """Return whether the firmware enforces signatures; None where it does not say."""
    try:
        variables = sorted(Path("/sys/firmware/efi/efivars").glob("SecureBoot-*"))
        return bool(variables[0].read_bytes()[-1]) if variables else None
    except (OSError, IndexError):
        return None


def listening_sockets(proc="/proc"):
    """Return the TCP port of each listening socket, by the inode of the socket."""
    sockets = {}
    for table in ("net/tcp", "net/tcp6"):
        for line in (read_text(Path(proc, table)) or "").splitlines()[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == "0A":
                sockets[fields[9]] = int(fields[1].rsplit(":", 1)[1], 16)
    return sockets


def occupant(pid, proc="/proc"):
    """Return the name of a process and the systemd unit it runs under (None: no unit), as its cgroup says."""
    names = [
        name
        for line in (read_text(Path(proc, str(pid), "cgroup")) or "").splitlines()
        for name in line.split(":", 2)[-1].split("/")
        if name.endswith((".service", ".scope"))
    ]
    program = (read_text(Path(proc, str(pid), "comm")) or "").strip()
    return {"program": program or f"process {pid}", "unit": names[-1] if names else None}


def port_owners(sockets, proc="/proc"):
    """Return who listens on each port. A port whose socket no process holds (a kernel server) is left out."""
    owners = {}
    for descriptor in Path(proc).glob("[0-9]*/fd/*"):
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue  # it was closed meanwhile, or is not ours to look into
        port = sockets.get(target[len("socket:[") : -1]) if target.startswith("socket:[") else None
        if port is not None and str(port) not in owners:
            owners[str(port)] = occupant(descriptor.parent.parent.name, proc)
    return owners


def gpu_users(module):
    """Return who holds memory of a GPU, each process once, as nvidia-smi lists compute processes."""
    program = module.get_bin_path("nvidia-smi")
    if program is None:
        return []
    returncode, stdout, _stderr = module.run_command(
        [program, "--query-compute-apps=pid", "--format=csv,noheader"], handle_exceptions=True
    )
    pids = {line.strip() for line in stdout.splitlines()} if returncode == 0 else set()
    return [occupant(pid) for pid in sorted(pids, key=lambda pid: (len(pid), pid)) if pid.isdigit()]


def nvidia_installer():
    """Return the path of the uninstaller that NVIDIA's .run file leaves, None where there is none."""
    for path in ("/usr/bin/nvidia-uninstall", "/usr/bin/nvidia-installer"):
        if os.access(path, os.X_OK):
            return path
    return None


def nvidia_smi(module):
    """Return what nvidia-smi answers about every GPU, or that there is no such program."""
    program = module.get_bin_path("nvidia-smi")
    if program is None:
        return {"present": False}
    returncode, stdout, stderr = module.run_command(
        [program, "--query-gpu=" + NVIDIA_SMI_FIELDS, "--format=csv,noheader"], handle_exceptions=True
    )
    return {"present": True, "returncode": returncode, "stdout": stdout, "stderr": stderr}


def nvidia_packages(module):
    """Return the installed packages of NVIDIA's driver and toolkit, name to version."""
    program = module.get_bin_path("dpkg-query")
    if program is None:
        return {}
    returncode, stdout, _stderr = module.run_command(
        [program, "-W", "-f", "${db:Status-Abbrev}\t${Package}\t${Version}\n", "*nvidia*", "cuda-*"]
    )
    packages = {}
    # dpkg-query answers 1 when one of the patterns matches nothing; what it printed is right all the same.
    if returncode in (0, 1):
        for line in stdout.splitlines():
            status, name, version = [*line.split("\t"), "", ""][:3]
            if status.startswith("ii") or status.startswith("hi"):
                packages[name] = version
    return packages


def dpkg_interrupted(directory="/var/lib/dpkg"):
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
    return kind == fcntl.F_UNLCK


def main():
    """Collect and return."""
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "str", "default": ["/srv/models", "/opt", "/var/cache"]},
            "weights_directory": {"type": "path", "default": "/srv/models"},
            "adopt_directories": {"type": "list", "elements": "str", "default": []},
            "engine_directory": {"type": "path", "default": "/opt/sglang"},
        },
        supports_check_mode=True,
    )
    sockets = listening_sockets()
    facts = {
        "reachable": True,
        "hostname": socket.gethostname(),
        "os_release": read_text("/etc/os-release") or "",
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "pci_devices": pci_devices(),
        "nvidia_smi": nvidia_smi(module),
        "driver_version_file": read_text("/proc/driver/nvidia/version"),
        "memory_total_bytes": memory_total_bytes(),
        "cpu_count": os.cpu_count() or 1,
        "disks": {path: disk(path) for path in module.params["paths"]},
        "stored_weights": stored_weights(module.params["weights_directory"]),
        "adoptable": adoptable(module.params["adopt_directories"], module.params["weights_directory"]),
        "engine_environments": [
            str(path.parent.parent) for path in Path(module.params["engine_directory"]).glob("*/bin/python")
        ],
        "secure_boot": secure_boot(),
        "packages": nvidia_packages(module),
        "dpkg_interrupted": dpkg_interrupted(),
        "listening_ports": sorted(set(sockets.values())),
        "port_owners": port_owners(sockets),
        "gpu_users": gpu_users(module),
        "nvidia_installer": nvidia_installer(),
        "boot_id": (read_text("/proc/sys/kernel/random/boot_id") or "").strip(),
        "user_is_root": os.geteuid() == 0,
    }
    module.exit_json(changed=False, facts=facts)


if __name__ == "__main__":
    main()

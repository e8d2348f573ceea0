#!/usr/bin/python
"""Collect what is known on a host about its NVIDIA driver, and decide nothing."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
---
module: metal_driver_facts
short_description: Collect facts about a host's NVIDIA driver
description:
  - Reads packages, apt's versions, DKMS, kernels, the fabric's state, secure boot's keys, and units.
  - It only collects. The filter C(metal_driver_work) on the controller decides.
  - It writes nothing and is the same in check mode.
options:
  packages:
    description: Packages whose versions in apt's lists are read, in addition to installed NVIDIA packages.
    type: list
    elements: str
    default: []
  units:
    description: Pattern of the units of which the active ones are listed.
    type: str
    default: sglang@*.service
  repository:
    description: URL of the package repository. Other files of apt's sources that name it are listed.
    type: str
    default: ""
  key:
    description: File of the key that apt has for it.
    type: path
    default: ""
author:
  - The minimax-metal authors
"""

EXAMPLES = r"""
- name: Read the host's driver
  minimax.metal.metal_driver_facts:
    packages: [nvidia-driver-cuda]
  register: driver_collected
"""

RETURN = r"""
facts:
  description: The collected facts, unprocessed.
  returned: always
  type: dict
"""

import base64
import os
import platform
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

# A copy of src/minimax_metal/common/program.py.
from ansible_collections.minimax.metal.plugins.module_utils.metal_program import run

PATTERNS = (
    "*nvidia*",
    "libcuda1*",
    "libcudadebugger1*",
    "libnvcuvid1*",
    "libnvsdm*",
    "cuda-drivers*",
    "cuda-compat*",
    "nvlsm",
    "linux-headers*",
)
HEADERS = "linux-headers-"
MOK_LIST = Path("/sys/firmware/efi/efivars/MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23")
MOK_KEYS = (Path("/var/lib/dkms/mok.pub"), Path("/var/lib/shim-signed/mok/MOK.der"))
LOG_LINES = 20
SECONDS = 60
LOG_BYTES = 16 << 20
TELLING = re.compile(r"\berror\b|\*\*\*|not found|No such file|check failed|GPL-only", re.IGNORECASE)
OUR_SOURCE = "minimax-metal-nvidia.sources"
STOPPED_UNITS = "/var/lib/minimax-metal/driver-stopped-units"


def read_text(path: str | Path) -> str | None:
    """Return the text of a file, or None where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def output_of(module: AnsibleModule, *command: str) -> tuple[int, str] | None:
    """Return exit status and output of a program, or None where there is no such program.

    One that does not answer within SECONDS has status 124, and its output ends with saying so.
    """
    program = module.get_bin_path(command[0], opt_dirs=["/usr/sbin", "/sbin"])
    if program is None:
        return None
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "LANGUAGE": "C"}
    answer = run([program, *command[1:]], seconds=SECONDS, environment=environment)
    return answer.status, answer.out + answer.err


def installed_packages(module: AnsibleModule) -> dict[str, dict[str, str]]:
    """Return NVIDIA's packages on the host: name to version, source and dpkg's own two letters of state."""
    form = "${db:Status-Abbrev}\t${Package}\t${Version}\t${source:Package}\n"
    answer = output_of(module, "dpkg-query", "-W", "-f", form, *PATTERNS)
    packages = {}
    for line in (answer[1] if answer else "").splitlines():
        fields = line.split("\t")
        if len(fields) == 4 and fields[2]:
            packages[fields[1]] = {"state": fields[0].strip(), "version": fields[2], "source": fields[3]}
    return packages


def available_versions(module: AnsibleModule, names: Collection[str]) -> dict[str, list[str]]:
    """Return the versions that apt's lists hold of each package, newest first as apt prints them."""
    versions: dict[str, list[str]] = {}
    # Run as root, apt would leave its package cache behind, in check mode too.
    unwritten = ("-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=")
    answer = output_of(module, "apt-cache", *unwritten, "madison", *sorted(names)) if names else None
    for line in (answer[1] if answer else "").splitlines():
        fields = [field.strip() for field in line.split("|")]
        if (
            len(fields) == 3
            and fields[2].endswith("Packages")
            and fields[1] not in versions.setdefault(fields[0], [])
        ):
            versions[fields[0]].append(fields[1])
    return versions


def other_sources(url: str, apt: str | Path = "/etc/apt") -> list[str]:
    """Return the files of apt's sources, ours left out, that name a repository."""
    named = re.compile(r"(^|\s)" + re.escape(url.rstrip("/")) + r"/?(\s|$)")
    listed = Path(apt, "sources.list.d")
    found = []
    for path in [
        Path(apt, "sources.list"),
        *sorted(listed.glob("*.list")),
        *sorted(listed.glob("*.sources")),
    ]:
        text = read_text(path) or ""
        parts = re.split(r"\n\s*\n", text) if path.suffix == ".sources" else text.splitlines()
        for part in parts:
            lines = [line for line in part.splitlines() if not line.lstrip().startswith("#")]
            off = any(re.match(r"Enabled:\s*no\b", line, re.IGNORECASE) for line in lines)
            if path.name != OUR_SOURCE and not off and any(named.search(line) for line in lines):
                found.append(str(path))
                break
    return found


def key_lines(module: AnsibleModule, path: str) -> list[str]:
    """Return what gpg says of the keys in a file (``--with-colons``); nothing where it is not one."""
    if not path or not Path(path).is_file():
        return []
    words = ("--batch", "--no-options", "--no-keyring", "--trust-model=always", "--homedir=/nonexistent")
    answer = output_of(module, "gpg", *words, "--with-colons", "--show-keys", path)
    return answer[1].splitlines() if answer and answer[0] == 0 else []


def index_targets(module: AnsibleModule) -> list[str]:
    """Return ``URI|origin|label`` of every list of packages that apt has."""
    form = ("--format", "$(REPO_URI)|$(ORIGIN)|$(LABEL)", "Created-By: Packages")
    answer = output_of(module, "apt-get", "indextargets", *form)
    return answer[1].splitlines() if answer and answer[0] == 0 else []


def kernels() -> dict[str, Any]:
    """Return the running kernel, those with modules, and those that a boot loader could start."""
    modules = Path("/lib/modules")
    return {
        "running": platform.release(),
        "modules": sorted(path.name for path in modules.glob("*") if path.is_dir()),
        "bootable": sorted(path.name.split("-", 1)[1] for path in Path("/boot").glob("vmlinuz-*")),
        "headers": sorted(path.parent.name for path in modules.glob("*/build") if path.exists()),
    }


def dkms_logs() -> dict[str, list[str]]:
    """Return, of the log of every build of NVIDIA's modules that failed, the first complaints and the end."""
    logs = {}
    for log in sorted(Path("/var/lib/dkms").glob("nvidia*/*/build/make.log")):
        try:
            with log.open(encoding="utf-8", errors="replace") as stream:
                lines = [line[:500] for line in stream.read(LOG_BYTES).splitlines()]
        except OSError:
            continue
        telling = [line for line in lines[:-LOG_LINES] if TELLING.search(line)]
        logs[str(log)] = telling[:LOG_LINES] + lines[-LOG_LINES:]
    return logs


def kernel_headers(release: str) -> list[str]:
    """Return the packages that may hold the headers of a kernel, and of the newest of its kind."""
    flavour = re.search(r"-([a-z][a-z0-9-]*)$", release)
    own = [stem + release for stem in (HEADERS, "proxmox-headers-", "pve-headers-")]
    return [*own, "proxmox-default-headers", "pve-headers"] + ([HEADERS + flavour[1]] if flavour else [])


def module_users() -> dict[str, Any]:
    """Return who holds NVIDIA's modules: other modules, and processes that have their devices open."""
    holders = {}
    for module in Path("/sys/module").glob("nvidia*"):
        names = sorted(path.name for path in module.glob("holders/*"))
        if names:
            holders[module.name] = names
    processes: list[dict[str, Any]] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            opened = [str(path.readlink()) for path in (process / "fd").iterdir()]
            if any(name.startswith("/dev/nvidia") for name in opened):
                name = (process / "comm").read_text(errors="replace").strip()
                processes.append({"pid": int(process.name), "name": name})
        except OSError:  # it ended meanwhile
            continue
    return {"holders": holders, "processes": sorted(processes, key=lambda one: one["pid"])[:50]}


def own_keys() -> dict[str, bool]:
    """Return, for each key that modules are signed with here, whether the firmware knows it."""
    try:
        enrolled = MOK_LIST.read_bytes()
    except OSError:
        enrolled = b""
    keys = {}
    for path in MOK_KEYS:
        try:
            key = path.read_bytes()
        except OSError:
            continue
        if b"-----BEGIN" in key:
            lines = [line for line in key.splitlines() if line and not line.startswith(b"-----")]
            try:
                key = base64.b64decode(b"".join(lines))
            except ValueError:
                key = b""  # a damaged file: the firmware does not know it
        keys[str(path)] = bool(key) and key in enrolled
    return keys


def main() -> None:
    """Collect and return."""
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "str", "default": []},
            "units": {"type": "str", "default": "sglang@*.service"},
            "repository": {"type": "str", "default": ""},
            "key": {"type": "path", "default": ""},
        },
        supports_check_mode=True,
    )
    installed = installed_packages(module)
    found = kernels()
    names = {*module.params["packages"], *installed, *kernel_headers(found["running"])}
    container = output_of(module, "systemd-detect-virt", "--container")
    active = output_of(
        module,
        "systemctl",
        "list-units",
        "--plain",
        "--no-legend",
        "--state=active,activating,reloading",
        module.params["units"],
    )
    uninstaller = module.get_bin_path("nvidia-uninstall")
    facts = {
        "packages": installed,
        "versions": available_versions(module, names),
        "sources": other_sources(module.params["repository"]) if module.params["repository"] else [],
        "key": key_lines(module, module.params["key"]),
        "targets": index_targets(module),
        "kernels": found,
        "container": bool(container and container[0] == 0),
        "dkms": (output_of(module, "dkms", "status") or (0, ""))[1].splitlines(),
        "dkms_logs": dkms_logs(),
        "module_users": module_users(),
        "nouveau": Path("/sys/module/nouveau").exists(),
        "uninstaller": uninstaller,
        "modprobe": module.get_bin_path("nvidia-modprobe"),
        "keys": own_keys(),
        "active_units": [
            line.split()[0] for line in (active[1] if active else "").splitlines() if line.split()
        ],
        "stopped_units": (read_text(STOPPED_UNITS) or "").split(),
        "fabric": output_of(module, "nvidia-smi", "-q"),
        "nodes": sorted(str(path) for path in Path("/dev").glob("nvidia*")),
    }
    module.exit_json(changed=False, facts=facts)


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Compare what a role left on a host with what is there, and remember what it left."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
---
module: metal_state
short_description: Compares what a role left on a host with what is there
description:
  - Reads the files, environments, packages, units and users that a role manages, all in one call, and says
    whether they are as the role left them when it last went through whole, and it was given the same then.
  - With O(remember) it writes down how they are now. That is for the end of a role that went through. It is
    the note of a read, in a cache. Removing it costs a run time and nothing else, so it changes no host.
  - What it does not read it does not know. A role lists everything it manages.
options:
  name:
    description: Name of the role.
    type: str
    required: true
  inputs:
    description: Digest of all that the role decides by; another one is another wish.
    type: str
    required: true
  files:
    description: Files, directories and links; also those that must not be there. A C(*) stands for many.
    type: list
    elements: path
    default: []
  environments:
    description: Python environments, of which the packages and programs are listed.
    type: list
    elements: path
    default: []
  packages:
    description: Packages of the distribution, read with their version and selection.
    type: list
    elements: str
    default: []
  units:
    description: Units of systemd, read with whether they start at boot and whether they run.
    type: list
    elements: str
    default: []
  users:
    description: Users, read with their group, directory and shell.
    type: list
    elements: str
    default: []
  remember:
    description: Whether to write down how everything is.
    type: bool
    default: false
  directory:
    description: Where it is written down.
    type: path
    default: /var/cache/minimax-metal/state
author:
  - The minimax-metal authors
"""

EXAMPLES = r"""
- name: What the role left is compared with what is there
  minimax.metal.metal_state:
    name: host_tools
    inputs: "{{ metal_plan | minimax.metal.metal_inputs(role_path) }}"
    files: [/usr/local/bin/metal]
  register: state
"""

RETURN = r"""
same:
  description: Whether everything is as the role left it, and it is given the same.
  returned: always
  type: bool
differs:
  description: What is not, one short text each.
  returned: always
  type: list
  elements: str
"""

import contextlib
import hashlib
import json
import os
import pwd
import stat
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

# A copy of src/minimax_metal/common/program.py.
from ansible_collections.minimax.metal.plugins.module_utils.metal_program import run

SCHEMA = 1
SECONDS = 60


def digest(path: str | Path) -> str:
    """Return the SHA-256 of a file."""
    with Path(path).open("rb") as file:
        total = hashlib.sha256()
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()


def file_state(path: str) -> str | None:
    """Return kind, owner, mode and content of what is at a path, in one text; None where nothing is.

    A file that goes away while it is read is nothing; one that can't be read says why.
    """
    try:
        return describe(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"unreadable: {error.strerror}"


def describe(path: str) -> str:
    """Return the text of file_state. Raises OSError."""
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        return "link " + str(Path(path).readlink())
    owner = f"{found.st_uid}:{found.st_gid} {stat.S_IMODE(found.st_mode):04o}"
    if stat.S_ISDIR(found.st_mode):
        return "directory " + owner
    return f"file {owner} {digest(path)}" if stat.S_ISREG(found.st_mode) else "other " + owner


def matches(pattern: str) -> list[str]:
    """Return the paths that an absolute pattern stands for."""
    return sorted(str(path) for path in Path("/").glob(pattern.lstrip("/")))


def environment_state(path: str) -> str | None:
    """Return a digest of the packages and programs of a Python environment; None where there is none.

    One that changes while it is read says so: it is not as a role left it.
    """
    try:
        return environment_digest(Path(path))
    except OSError as error:
        return f"unreadable: {error.strerror}"


def environment_digest(root: Path) -> str | None:
    """Return the text of environment_state. Raises OSError."""
    if not (root / "pyvenv.cfg").is_file():
        return None
    names = []
    for packages in sorted(root.glob("lib/python3*/site-packages")):
        for one in sorted(packages.iterdir()):
            # A package is unchanged if its list of files is; times differ.
            record = one / "RECORD"
            names.append(f"{one.name} {record.stat().st_size if record.is_file() else ''}")
    names += sorted(one.name for one in (root / "bin").iterdir()) if (root / "bin").is_dir() else []
    names.append(digest(root / "pyvenv.cfg"))
    # A removed interpreter leaves its link behind.
    names.append(str((root / "bin" / "python").exists()))
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()


def answer_of(module: AnsibleModule, program: str, *arguments: str) -> str:
    """Return what a program prints; one that does not answer in time ends the module with saying so."""
    answer = run([program, *arguments], seconds=SECONDS, environment={**os.environ, "LC_ALL": "C.UTF-8"})
    if answer.timed_out:
        module.fail_json(
            msg=f"{Path(program).name} did not answer within {SECONDS} s; expected an answer within seconds; "
            "look at the host (ps, dmesg), then run again"
        )
    return answer.out


def package_states(module: AnsibleModule, names: Iterable[str]) -> dict[str, str | None]:
    """Return selection, state and version of each package; None where it is not known."""
    if not names:
        return {}
    states: dict[str, str | None] = dict.fromkeys(names)
    program = module.get_bin_path("dpkg-query")
    if program is None:
        return states
    form = "${Package}\t${db:Status-Abbrev}\t${Version}\n"
    stdout = answer_of(module, program, "-W", "-f", form, *sorted(names))
    for line in stdout.splitlines():
        name, state, version = [*line.split("\t"), "", ""][:3]
        if name in states:
            states[name] = f"{state.strip()} {version}"
    return states


def unit_states(module: AnsibleModule, names: Iterable[str]) -> dict[str, str | None]:
    """Return whether each unit starts at boot, and whether it runs."""
    if not names:
        return {}
    program = module.get_bin_path("systemctl")
    if program is None:
        return dict.fromkeys(names)
    wanted = "--property=Id,UnitFileState,ActiveState,NeedDaemonReload"
    stdout = answer_of(module, program, "show", wanted, *sorted(names))
    states: dict[str, str | None] = dict.fromkeys(names)
    for block in stdout.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if values.get("Id") in states:
            states[values["Id"]] = " ".join(
                values.get(key, "") for key in ("UnitFileState", "ActiveState", "NeedDaemonReload")
            )
    return states


def user_state(name: str) -> str | None:
    """Return ids, directory and shell of a user; None where there is no such user."""
    with contextlib.suppress(KeyError):
        found = pwd.getpwnam(name)
        return f"{found.pw_uid}:{found.pw_gid} {found.pw_dir} {found.pw_shell}"
    return None


def collect(module: AnsibleModule, parameters: Mapping[str, Any]) -> dict[str, dict[str, str | None]]:
    """Return the state of everything that was asked for, by kind and name."""
    return {
        "files": {
            path: file_state(path)
            for pattern in parameters["files"]
            for path in (matches(pattern) if "*" in pattern else [pattern])
        },
        "environments": {path: environment_state(path) for path in parameters["environments"]},
        "packages": package_states(module, parameters["packages"]),
        "units": unit_states(module, parameters["units"]),
        "users": {name: user_state(name) for name in parameters["users"]},
    }


def read(path: Path) -> dict[str, Any] | None:
    """Return what was written down; None where nothing was, or nothing that can be understood."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get("schema") == SCHEMA else None


def differences(left: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """Return what differs between what was written down and what is there."""
    if left is None:
        return ["nothing is known of an earlier run"]
    found = ["it is asked for something else"] if left.get("inputs") != now["inputs"] else []
    for kind, things in now["state"].items():
        before = left.get("state", {}).get(kind, {})
        for name in sorted({*things, *before}):
            if name not in before or name not in things or before[name] != things[name]:
                found.append(f"{name}: was {before.get(name)}, is {things.get(name)}")
    return found


def write(path: Path, now: Mapping[str, Any]) -> None:
    """Write it down whole; a reader sees the old one or the new one."""
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    handle, name = tempfile.mkstemp(dir=place.parent, prefix="." + place.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(now, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(place)
    except BaseException:
        Path(name).unlink()
        raise


def main() -> None:
    """Read, compare, and write down where that is asked for."""
    lists = ("files", "environments", "packages", "units", "users")
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "inputs": {"type": "str", "required": True},
            "remember": {"type": "bool", "default": False},
            "directory": {"type": "path", "default": "/var/cache/minimax-metal/state"},
        }
        | {name: {"type": "list", "elements": "str", "default": []} for name in lists},
        supports_check_mode=True,
    )
    path = Path(module.params["directory"], module.params["name"] + ".json")
    now = {
        "schema": SCHEMA,
        "inputs": module.params["inputs"],
        "state": collect(module, module.params),
    }
    differs = differences(read(path), now)
    if module.params["remember"] and differs and not module.check_mode:
        write(path, now)
    module.exit_json(changed=False, same=not differs, differs=differs[:40])


if __name__ == "__main__":
    main()

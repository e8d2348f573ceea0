#!/usr/bin/python
"""Compare what a role owns on a host with its list, and write the files that differ."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
---
module: metal_owned
short_description: Compares what a role owns on a host with its list, and writes the files that differ
description:
  - The host's half of the action of the same name (plugins/action/metal_owned.py), which reads a role's
    C(meta/owned.yml), renders it and calls this once. Use the action in a role.
  - Files, links and directories are compared and written here. Packages, units, users and Python
    environments are only compared. The role changes them with Ansible's own modules, for what differs.
  - Files are replaced as a whole. A link is followed on the way to a file only where nobody but root could
    have put it.
options:
  entries:
    description: Files, links and directories, in the order in which they are written.
    type: list
    elements: dict
    default: []
  contents:
    description: Bytes of the files, base64, by path. They may be secret and are never returned.
    type: dict
    default: {}
  write:
    description: Whether to write what differs. With C(false) it is only compared.
    type: bool
    default: true
  units:
    description: Units with the files that they read at their start and when they are reloaded.
    type: list
    elements: dict
    default: []
  packages:
    description: >-
      Packages of the distribution that must be installed (C(name)), unless a path of C(unless) exists.
    type: list
    elements: dict
    default: []
  users:
    description: System users with C(name), C(home) and C(shell), each with a group of the same name.
    type: list
    elements: dict
    default: []
  environments:
    description: Python environments with C(path) and C(projects), the wanted version by name.
    type: list
    elements: dict
    default: []
  strays:
    description: Patterns of names in a directory, such as C(/etc/systemd/system/sglang@*.service).
    type: list
    elements: str
    default: []
author:
  - The minimax-metal authors
"""

EXAMPLES = r"""
- name: Write the unit that reads weights ahead
  minimax.metal.metal_owned:
  register: __page_cache_owned
"""

RETURN = r"""
changes:
  description: What differed, by path, in order, with the old content of files that are not secret.
  returned: always
  type: list
  elements: dict
wanted:
  description: Paths of files whose bytes have to be transferred first.
  returned: always
  type: list
  elements: str
units:
  description: What is to be done with units (C(name), C(enabled), C(state), C(why)).
  returned: always
  type: list
  elements: dict
daemon_reload:
  description: Whether systemd has to read its files again.
  returned: always
  type: bool
packages:
  description: Packages that are missing.
  returned: always
  type: list
  elements: str
packages_known:
  description: Whether apt has a candidate for all of them.
  returned: always
  type: bool
users:
  description: Users that are missing or differ.
  returned: always
  type: list
  elements: dict
strays:
  description: Paths that match the patterns and are in no entry.
  returned: always
  type: list
  elements: str
environments:
  description: By path, what each Python environment C(lacks) and what of it is C(damaged).
  returned: always
  type: dict
"""

import base64
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.minimax.metal.plugins.module_utils.metal_owned_files import Change, apply, strays
from ansible_collections.minimax.metal.plugins.module_utils.metal_owned_system import (
    HangError,
    known_packages,
    missing_packages,
    projects_to_install,
    units_work,
    users_to_make,
)

# A copy of src/minimax_metal/common/program.py.
from ansible_collections.minimax.metal.plugins.module_utils.metal_program import run

VALIDATE_SECONDS = 60
UNIT_DIRECTORY = "/etc/systemd/system/"


class RefusedError(OSError):
    """The command that must accept a new file did not."""


def validate(words: Sequence[str]) -> None:
    """Run a command that must accept a new file.

    Raises:
        RefusedError: it did not.
    """
    answer = run(words, seconds=VALIDATE_SECONDS)
    if not answer.ok:
        said = " ".join((answer.err or answer.out).split())[:400]
        name = words[0].rpartition("/")[2]
        raise RefusedError(22, f"{name} refuses the new file ({said or answer.status})")


def apply_all(
    entries: Sequence[Mapping[str, Any]], contents: Mapping[str, str], check: bool
) -> tuple[list[Change], list[str]]:
    """Compare every entry and write what differs; return that, and what has to be transferred first.

    Raises:
        OSError: with the path.
    """
    changes, wanted = [], []
    for entry in entries:
        path = str(entry["path"])
        # Files that are only compared, or must be transferred first, are not written now.
        later = bool(entry.get("later")) or (entry.get("sha256") is not None and not entry.get("source"))
        content = base64.b64decode(contents[path]) if path in contents else None
        try:
            change = apply(entry, content, check or later, validate)
        except OSError as error:
            # The name that was opened is only a part of it.
            error.filename = path
            raise
        if change is None:
            continue
        if later and not check and not entry.get("later"):
            wanted.append(path)
        changes.append(change)
    return changes, wanted


def main() -> None:
    """Compare, write, and say what is left to do."""
    lists = {
        name: {"type": "list", "elements": kind, "default": []}
        for name, kind in (
            ("entries", "dict"), ("units", "dict"), ("packages", "dict"), ("users", "dict"),
            ("environments", "dict"), ("strays", "str"),
        )
    }  # fmt: skip
    module = AnsibleModule(
        argument_spec={
            **lists,
            "contents": {"type": "dict", "default": {}, "no_log": True},
            "write": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    check = module.check_mode or not given["write"]
    later = {str(entry["path"]) for entry in given["entries"] if entry.get("later")}
    try:
        changes, wanted = apply_all(given["entries"], given["contents"], check)
        now = [change for change in changes if change.path not in later]
        content = {change.path for change in now if change.content}
        units, reload = units_work(given["units"], content, check)
        packages = missing_packages(given["packages"])
        known = known_packages(packages)
    except OSError as error:
        if isinstance(error, HangError):
            module.fail_json(msg=str(error.strerror))
        if isinstance(error, RefusedError):
            module.fail_json(
                msg=f"found that {error.strerror} for {error.filename}, expected it to accept it; the file "
                "that is there was left as it is"
            )
        module.fail_json(
            msg=f"found {error.strerror} at {error.filename}, expected to write there; look at what is there"
        )
    environments = {}
    for environment in given["environments"]:
        with contextlib.suppress(OSError):
            if work := projects_to_install(environment):
                environments[environment["path"]] = work
    module.exit_json(
        changed=bool(now),
        changes=[asdict(change) for change in changes],
        wanted=wanted,
        units=units,
        daemon_reload=reload or any(path.startswith(UNIT_DIRECTORY) for path in content),
        packages=packages,
        packages_known=known,
        users=users_to_make(given["users"]),
        environments=environments,
        strays=strays(given["strays"], {str(entry["path"]) for entry in given["entries"]}),
    )


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Delete files and directories, and follow no link that somebody else could have put in the way."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
---
module: metal_absent
short_description: Delete files and directories without following links
description:
  - Like M(ansible.builtin.file) with C(state=absent), for several paths in one call.
  - Below a directory that root does not own it works with the rights of that directory's owner. A link there
    can harm only that user's files.
options:
  paths:
    description: Absolute paths; missing ones are skipped.
    type: list
    elements: path
    required: true
author:
  - The minimax-metal authors
"""

EXAMPLES = r"""
- name: Delete the engine's directories
  minimax.metal.metal_absent:
    paths: [/var/lib/sglang, /var/cache/sglang]
"""

RETURN = r"""
removed:
  description: The paths that existed.
  returned: always
  type: list
  elements: str
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

LINKS = 40


def owner_on_the_way(path: str) -> tuple[int, int] | None:
    """Return uid and gid of the first directory on the way to a path, itself left out, that is not root's."""
    current = "/"
    pending = [part for part in reversed(Path(path).parent.parts) if part != "/"]
    links = 0
    while pending:
        part = pending.pop()
        following = str(Path(current).parent) if part == ".." else os.path.join(current, part)  # noqa: PTH118
        try:
            status = os.lstat(following)
        except OSError:
            return None
        if status.st_uid not in (0, os.geteuid()):
            return status.st_uid, status.st_gid
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > LINKS:
                return None
            target = Path(following).readlink()
            if target.is_absolute():
                current = "/"
            pending += [one for one in reversed(target.parts) if one != "/"]
            continue
        current = following
    return None


@contextlib.contextmanager
def acting_as(owner: tuple[int, int] | None) -> Iterator[None]:
    """Have the rights of a user meanwhile; as root only."""
    if owner is None or os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(owner[1])
    os.seteuid(owner[0])
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(os.getgid())
        os.setgroups(groups)


def remove(path: str, check: bool) -> bool:
    """Delete what is at a path; return whether there was anything.

    Raises:
        OSError: it can't be deleted.
    """
    with acting_as(owner_on_the_way(path)):
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        if not check:
            if stat.S_ISDIR(status.st_mode):
                # By descriptors: a directory that is swapped for a link meanwhile is not followed.
                shutil.rmtree(path)
            else:
                Path(path).unlink()
    return True


def main() -> None:
    """Delete."""
    module = AnsibleModule(
        argument_spec={"paths": {"type": "list", "elements": "path", "required": True}},
        supports_check_mode=True,
    )
    if not shutil.rmtree.avoids_symlink_attacks:
        module.fail_json(msg="this Python deletes directories by name; use one of a Linux distribution")
    removed = []
    for path in module.params["paths"]:
        if not path.startswith("/") or len(Path(path).parts) < 3:
            module.fail_json(msg=f"found {path}, expected an absolute path at least two levels deep; fix it")
        try:
            if remove(path, module.check_mode):
                removed.append(path)
        except OSError as error:
            module.fail_json(
                msg=f"found {error.filename or path}: {error.strerror}; expected to delete it; do it by hand",
                removed=removed,
            )
    module.exit_json(
        changed=bool(removed),
        removed=removed,
        diff={"before": "".join(f"{path}\n" for path in removed), "after": ""},
    )


if __name__ == "__main__":
    main()

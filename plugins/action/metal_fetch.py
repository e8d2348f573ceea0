"""Fetches a file from a host, up to a size limit that the controller enforces.

``ansible.builtin.fetch`` accepts any size, and a host may send without end, whatever it announced.
"""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import base64
import binascii
import errno
import filecmp
import secrets
import shutil
from pathlib import Path
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase

from minimax_metal.controller.run.bounded import receiving


class ActionModule(ActionBase):
    """Arguments: src on the host, dest here, max_bytes; a missing or irregular file is an error.

    As root (become) a file comes as a module's answer, through memory; otherwise by the connection's own
    transfer, directly to the disk. Nothing is fetched in check mode.
    """

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset({"src", "dest", "max_bytes"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return ``dest`` and whether the file changed."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        source, most = str(self._task.args["src"]), int(self._task.args["max_bytes"])
        dest = Path(self._loader.path_dwim(str(self._task.args["dest"])))
        if self._task.check_mode:
            return {**result, "changed": False, "skipped": True, "dest": str(dest)}
        name = str((task_vars or {}).get("inventory_hostname", "host"))
        dest.parent.mkdir(parents=True, exist_ok=True)
        # Whatever the limit, one host's file never fills the disk.
        most = min(most, shutil.disk_usage(dest.parent).free // 2)
        part = dest.with_name(f".{dest.name[:200]}.{secrets.token_hex(8)}")
        try:
            with receiving(most):
                self._bring(source, part, task_vars)
                # The transfer may have created a device or a link, or a limit may have cut the file off.
                if part.is_symlink() or not part.is_file():
                    raise AnsibleActionFail(f"{name}: found {source} is not a regular file")
                size = part.stat().st_size
            changed = not (dest.is_file() and filecmp.cmp(part, dest, shallow=False))
            if changed:
                part.replace(dest)
        except (AnsibleError, OSError, MemoryError) as error:
            came = part.stat().st_size if part.is_file() else 0
            if isinstance(error, MemoryError) or came >= most or getattr(error, "errno", None) == errno.EFBIG:
                raise AnsibleActionFail(
                    f"{name}: found more than {most} bytes at {source}, expected {most} at most "
                    f"(max_bytes, and half of the free space at {dest.parent}); nothing was kept; "
                    "check what that host is doing"
                ) from None
            if isinstance(error, AnsibleError):
                raise
            raise AnsibleActionFail(f"{name}: {source} can't be stored at {dest}: {error}") from error
        finally:
            part.unlink(missing_ok=True)
        return {**result, "changed": changed, "dest": str(dest), "size": size}

    def _bring(self, source: str, part: Path, task_vars: dict[str, Any] | None) -> None:
        if not self._connection.become:
            self._connection.fetch_file(source, str(part))
            return
        answer = self._execute_module("ansible.legacy.slurp", {"src": source}, task_vars=task_vars)
        if answer.get("failed"):
            said = next(
                (answer[key] for key in ("msg", "module_stderr", "module_stdout") if answer.get(key)), ""
            )
            reason = " ".join(str(said).split())[-400:] or "its module ended without an answer"
            raise AnsibleActionFail(f"{source} can't be read: {reason}")
        try:
            content = base64.b64decode(str(answer.get("content", "")), validate=True)
        except (binascii.Error, ValueError):
            raise AnsibleActionFail(
                f"found an answer that is not base64, expected that of {source}"
            ) from None
        part.write_bytes(content)

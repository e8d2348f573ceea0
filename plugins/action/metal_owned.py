"""Writes what a role owns on a host, from the role's one list, in one call; and says what is left to do.

The list is ``meta/owned.yml`` of the role that the task belongs to; its templates lie in ``templates/``.
The module of the same name does the host's half (plugins/modules/metal_owned.py).
"""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.template import generate_ansible_template_vars, trust_as_template

from minimax_metal.common.errors import UserError
from minimax_metal.controller.owned import LIST, Entry, Owned, Rendering, encoded

BEFORE_BYTES = 64 << 10
"""As the module has it; more is never unpacked."""


class ActionModule(ActionBase):
    """Arguments: part, write, role.

    part: writes this part of the list only; without it all that is in no part, and the parts are compared.
    write: with false nothing is written, as in check mode; ``differs`` says what would be.
    role: the role's directory, for a task outside of it.
    """

    TRANSFERS_FILES = True
    _VALID_ARGS = frozenset({"part", "write", "role"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what was written, what is pending, and what the module says is left to do.

        ``written``: paths; ``content``: paths whose content differed, those of later parts among them;
        ``pending``: paths by part; ``work``: whether anything was written or is left to do.
        """
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        self._host = str(variables.get("inventory_hostname", "host"))
        part = str(self._task.args.get("part") or "")
        write = bool(self._task.args.get("write", True))
        try:
            owned = self._owned(variables, part)
            files = [one for one in owned.files if not part or one.part == part]
            later = {one.path for one in files if one.part != part}
            answer = self._apply(owned, files, later, write, variables)
        except (UserError, OSError) as error:
            raise AnsibleActionFail(f"{self._host}: {error}") from None
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        if answer.get("failed"):
            return {**result, **answer, "msg": f"{self._host}: {answer.get('msg')}"}
        changes = [one for one in answer.pop("changes") if isinstance(one, dict)]
        now = [one for one in changes if one["path"] not in later]
        pending: dict[str, list[str]] = {}
        for entry in files:
            if entry.path in later and any(one["path"] == entry.path for one in changes):
                pending.setdefault(entry.part, []).append(entry.path)
        result |= {key: value for key, value in answer.items() if key not in {"invocation", "wanted"}}
        result |= {"changed": bool(now) and write, "written": [one["path"] for one in now if one["content"]]}
        result["differs"] = [
            f"{one['path']}: {one['was']}{', other content' * (one['was'] == one['now'])}, not {one['now']}"
            for one in now
        ]
        result["pending"] = pending
        result["content"] = [one["path"] for one in changes if one["content"]]
        left = ("units", "daemon_reload", "packages", "users", "environments", "strays")
        result["work"] = bool(changes) or any(result[name] for name in left)
        if result["changed"]:
            # What the live view and the report show beside the task's name.
            result["path"] = ", ".join(one["path"] for one in now)
        if self._task.diff and write:
            result["diff"] = [
                difference(one, entry) for one in now for entry in files if entry.path == one["path"]
            ]
        return result

    def _apply(
        self,
        owned: Owned,
        files: Sequence[Entry],
        later: set[str],
        write: bool,
        variables: dict[str, Any],
    ) -> dict[str, Any]:
        """Call the module; again with those files that it wants transferred."""
        given: dict[str, Any] = {
            "entries": [
                {**entry.module, **({"later": True} if entry.path in later else {})} for entry in files
            ],
            "contents": {entry.path: encoded(entry.content) for entry in files if entry.content is not None},
            "write": write,
            # Of later parts, too: a run may have been killed before the restart.
            "units": owned.units_of(files),
            "packages": list(owned.packages),
            "users": list(owned.users),
            "environments": list(owned.environments),
            # What a part does not list may be another part's.
            "strays": [] if self._task.args.get("part") else list(owned.strays),
        }
        answer: dict[str, Any] = self._call(given, variables)
        wanted = set(answer.get("wanted") or ())
        if answer.get("failed") or not wanted:
            return answer
        for number, entry in enumerate(files):
            if entry.path in wanted and entry.source is not None:
                remote = self._connection._shell.join_path(self._make_tmp_path(), f"owned-{number}")
                self._transfer_file(str(entry.source), remote)
                self._fixup_perms2((self._connection._shell.tmpdir, remote))
                given["entries"][number]["source"] = remote
        again = self._call(given, variables)
        if not again.get("failed"):
            # What the first call wrote no longer differs, but it was written.
            found = {one["path"]: one for one in [*answer["changes"], *again["changes"]]}
            again["changes"] = [found[entry.path] for entry in files if entry.path in found]
            again["daemon_reload"] = again["daemon_reload"] or answer["daemon_reload"]
        return again

    def _call(self, given: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module(
            module_name=self._task.action, module_args=given, task_vars=variables
        )
        return answer

    def _owned(self, variables: dict[str, Any], part: str) -> Owned:
        role = self._task.args.get("role") or (self._task._role._role_path if self._task._role else None)
        if role is None:
            raise UserError("found metal_owned in no role, expected it in one, or with `role`")
        directory = Path(self._loader.path_dwim(str(role)))
        raw = self._loader.load_from_file(str(directory / LIST), cache="none", trusted_as_template=True)
        rendering = Rendering(
            value=lambda value, more: self._value(value, {**variables, **more} if more else variables),
            template=lambda name, path, more: self._text(
                directory / "templates" / name, path, {**variables, **more}
            ),
            file=lambda name: self._file(directory, name),
            role=directory.name,
        )
        return rendering.owned(raw, part)

    def _value(self, value: Any, variables: dict[str, Any]) -> Any:
        return self._templar.copy_with_new_env(available_variables=variables).template(value)

    def _text(self, template: Path, path: str, variables: dict[str, Any]) -> str:
        text = trust_as_template(self._loader.get_text_file_contents(str(template)))
        known = generate_ansible_template_vars(path=template.name, fullpath=str(template), dest_path=path)
        templar = self._templar.copy_with_new_env(
            searchpath=[str(template.parent)], available_variables={**known, **variables}
        )
        overrides = {"trim_blocks": True, "lstrip_blocks": False}
        return str(templar.template(text, escape_backslashes=False, overrides=overrides))

    def _file(self, role: Path, name: str) -> Path:
        for path in (Path(name).expanduser(), role / "files" / name):
            if path.is_absolute() and path.is_file():
                return path
        raise AnsibleError(f"{self._host}: found no file {name} on the controller, expected one; make it")


def difference(change: Mapping[str, Any], entry: Entry) -> dict[str, str]:
    """Return one file's difference as Ansible shows it; never the content of a secret."""
    was, now = str(change["was"]), str(change["now"])
    shown = {"before_header": f"{entry.path} ({was})", "after_header": f"{entry.path} ({now})"}
    states = {**shown, "before": f"{was}\n", "after": f"{now}\n"}
    kind = entry.module["kind"]
    if not change["content"] or kind in {"link", "directory"}:
        return states
    before, after = unpacked(change.get("before")), "" if kind == "absent" else _text_of(entry)
    if before is None and not was.startswith(("absent", "link", "other")):
        after = None
    if entry.secret or after is None:
        return {**states, "after": f"{now}, other content\n"} if kind != "absent" else states
    return {**shown, "before": before or "", "after": after}


def _text_of(entry: Entry) -> str | None:
    """Return the text that an entry writes; None where it is too long, or not text."""
    if entry.source is None:
        return entry.content
    data = entry.source.read_bytes() if entry.source.stat().st_size <= BEFORE_BYTES else b"\0"
    return None if b"\0" in data else data.decode("utf-8", "replace")


def unpacked(before: Any) -> str | None:
    """Return an old file's text as the module sends it; None where there is none."""
    if not isinstance(before, str):
        return None
    try:
        data = zlib.decompressobj().decompress(base64.b64decode(before), BEFORE_BYTES)
    except (binascii.Error, zlib.error):
        return None
    return data.decode("utf-8", "replace")

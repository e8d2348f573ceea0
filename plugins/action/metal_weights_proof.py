"""Determines the expected files of a model for all hosts of a run, and stores the result on the controller.

If the controller can't reach the publisher's hub, one host asks it (``metal weights resolve --proof``).
"""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal
from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from minimax_metal.common.errors import UserError
from minimax_metal.controller.statements.resolving import resolve
from minimax_metal.controller.statements.wishes import store_directory, wish_of
from minimax_metal.host.weights.proof import HUB, Proof

METAL = "/usr/local/bin/metal"


class ActionModule(ActionBase):
    """Arguments: repository, revision, sources; manifest, accept_unhashed, again, tokens."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(
        {"repository", "revision", "sources", "manifest", "accept_unhashed", "again", "tokens"}
    )

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return ``proof`` (None if no source has one), ``sources`` at commits, and ``line`` for people."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        given = dict(self._task.args)
        given |= {name: boolean(given.get(name, False)) for name in ("accept_unhashed", "again")}
        name = str((task_vars or {}).get("inventory_hostname", "host"))

        def elsewhere() -> Proof | None:
            return None if self._task.check_mode else self._ask_host(given, name, task_vars)

        try:
            found = resolve(
                wish_of(given),
                store_directory(str((task_vars or {}).get("inventory_dir") or "")),
                elsewhere=elsewhere,
                keep=not self._task.check_mode,
            )
        except UserError as error:
            raise AnsibleActionFail(f"{name}: {error}") from error
        plain = [
            {key: value for key, value in source.as_dict().items() if key != "token_file"}
            for source in found.sources
        ]
        return {
            **result,
            "changed": False,
            "proof": None if found.proof is None else found.proof.as_dict(),
            "sources": plain,
            "line": "not proved by a source outside the fleet" if found.proof is None else str(found.proof),
            "warnings": found.warnings,
        }

    def _ask_host(self, given: dict[str, Any], name: str, task_vars: dict[str, Any] | None) -> Proof | None:
        """Let this host ask the publisher's hub; its answer is recorded as its own."""
        request = {
            "path": "/nonexistent/model",
            "name": given["repository"],
            "revision": given["revision"],
            "sources": given["sources"],
        }
        answer = self._execute_module(
            module_name="ansible.legacy.command",
            module_args={
                "argv": [METAL, "weights", "resolve", "--proof", "--request", "/dev/stdin"],
                "stdin": json.dumps(request),
            },
            task_vars=task_vars,
        )
        if answer.get("rc") != 0:
            return None
        try:
            raw = json.loads(str(answer.get("stdout", "")).splitlines()[-1])
            proof = Proof.parse({**raw, "resolver": name})
        except (IndexError, TypeError, ValueError, RecursionError, UserError):
            return None  # an invalid answer of a host is ignored; the next source is asked
        return proof if proof.by == HUB else None

"""Filters around mirrors and the fleet's cache; they call the package on the controller and hold no logic."""

# Copyright: the minimax-metal authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ansible_collections.minimax.metal.plugins.plugin_utils.package  # noqa: F401 - finds minimax_metal

from minimax_metal.controller import names
from minimax_metal.plan import archives, cache
from minimax_metal.plan.model import Plan


def metal_archives(slurped: Sequence[Mapping[str, Any]], plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes to a host's package sources, from the module slurp's answers."""
    files = [
        {"path": str(one["source"]), "content": base64.b64decode(one["content"]).decode(errors="replace")}
        for one in slurped
        if "content" in one
    ]
    return archives.decide(files, Plan.of_record(plan))


def metal_cache(
    members: Mapping[str, Mapping[str, Any]], allowed: Sequence[str], known: Sequence[str]
) -> dict[str, Any]:
    """Return the table of the fleet's cache, or the reason against it."""
    return cache.decide(members, allowed, known, names.addresses_of)


def metal_default_index(_ignored: object = None) -> str:
    """Return the package index of the controller's own uv; empty if there is none."""
    return names.default_index() or ""


class FilterModule:
    """The filters of mirrors and caches."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "metal_archives": metal_archives,
            "metal_cache": metal_cache,
            "metal_cache_archives": cache.archive_places,
            "metal_cache_files": cache.file_places,
            "metal_cache_member": cache.member,
            "metal_cache_problem": cache.settings_problem,
            "metal_default_index": metal_default_index,
            "metal_index_origins": cache.index_origins,
            "metal_name_servers": cache.name_servers,
        }

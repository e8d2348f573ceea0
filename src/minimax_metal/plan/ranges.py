"""Values that a type alone can't validate: numbers, and texts that become addresses and directory names."""

from __future__ import annotations

import re
from typing import Final

from minimax_metal.plan.findings import Findings
from minimax_metal.plan.settings import SETTINGS, Settings
from minimax_metal.plan.settings.reading import refuse_value

_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,4}")
_PROGRAMS: Final = re.compile(r"/[A-Za-z0-9_./@+-]+")
"""Directories of programs: systemd refuses quotes in a program's name, and a script's first line can't name a
path with a space.
"""
_ADDRESS: Final = re.compile(r"(?:[A-Za-z0-9_.:-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?:%[A-Za-z0-9_.-]{1,15})?")


def check_ranges(settings: Settings, found: Findings) -> None:
    """Check declared bounds and choices, and texts that the engine's own parser accepts."""
    for setting in SETTINGS:
        refusal = refuse_value(setting, getattr(settings, setting.attribute))
        if refusal:
            found.add(refusal)
    for name, revision in (
        ("metal_model_revision", settings.model_revision),
        ("metal_speculative_draft_revision", settings.speculative_draft_revision),
    ):
        if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
            found.refuse(
                "model-revision",
                f"{name} {revision}",
                "a commit, a tag or a branch: letters, digits, dots and dashes",
                "remove it to use the catalogue's",
            )
    for name, address in (
        ("metal_listen_address", settings.listen_address),
        ("metal_address", settings.address),
        ("metal_tls_name", settings.tls_name),
    ):
        if address is not None and not _ADDRESS.fullmatch(address):
            found.refuse("address", f"{name} {address}", "an IP address or a host name", f"fix {name}")
    if not _PROGRAMS.fullmatch(settings.engine_directory):
        found.refuse(
            "directory",
            f"metal_engine_directory {settings.engine_directory}",
            "a path of letters, digits and . _ / @ + -: programs are started from there",
            "remove it, or set such a path",
        )

"""Where the playbooks, roles and plugins of this project are."""

from __future__ import annotations

from pathlib import Path
from typing import Final

MARKS: Final = ("site.yml", "ansible.cfg", "roles/sglang_service", "plugins/modules/metal_facts.py")
"""What only this project's directory has, all of it."""


def is_project(directory: Path) -> bool:
    """Return whether a directory is this project's, and not just any with a ``site.yml``."""
    return all((directory / mark).exists() for mark in MARKS)


def find_project() -> Path | None:
    """Return the project that this package belongs to: its checkout; else the one we stand in; else None.

    Another project's ``site.yml`` in the working directory or above it is not ours.
    """
    checkout, here = Path(__file__).resolve().parents[3], Path.cwd()
    for place in (checkout, here, *here.parents):
        if is_project(place):
            return place
    return None

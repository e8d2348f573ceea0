"""Find the directory of this project's playbooks, roles and plugins."""

from __future__ import annotations

from pathlib import Path
from typing import Final

MARKS: Final = ("site.yml", "ansible.cfg", "roles/sglang_service", "plugins/modules/metal_facts.py")
"""Files that only this project's directory has, all of them."""


def is_project(directory: Path) -> bool:
    """Return whether a directory is this project's, and not just any with a ``site.yml``."""
    return all((directory / mark).exists() for mark in MARKS)


def find_project() -> Path | None:
    """Return the project that this package belongs to: its checkout, else the current directory's, else None.

    Another project's ``site.yml`` in the working directory or above it does not count.
    """
    checkout, here = Path(__file__).resolve().parents[3], Path.cwd()
    for place in (checkout, here, *here.parents):
        if is_project(place):
            return place
    return None

"""Where the playbooks, roles and plugins of this project are."""

from __future__ import annotations

from pathlib import Path
from typing import Final

PACKAGED: Final = Path(__file__).resolve().parents[1] / "ansible"
"""Where a wheel holds them."""
MARKS: Final = ("site.yml", "ansible.cfg", "roles/sglang_service", "plugins/modules/metal_facts.py")
"""What only this project's directory has, all of it."""


def is_project(directory: Path) -> bool:
    """Return whether a directory is this project's, and not just any with a ``site.yml``."""
    return all((directory / mark).exists() for mark in MARKS)


def find_project() -> Path | None:
    """Return the project that this package belongs to: its checkout, or what the wheel brought; else None.

    The working directory does not count: another project's ``site.yml`` there is not ours.
    """
    checkout = Path(__file__).resolve().parents[3]
    for place in (checkout, PACKAGED):
        if is_project(place):
            return place
    return None

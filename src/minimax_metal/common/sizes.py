"""Sizes in words."""

from __future__ import annotations


def spell_bytes(size: float) -> str:
    """Return a size for people, decimal units as in the models' published sizes."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"

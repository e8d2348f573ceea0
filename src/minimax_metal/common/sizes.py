"""Sizes in words."""

from __future__ import annotations


def spell_bytes(size: float) -> str:
    """Return a readable size in decimal units, like the published sizes of models."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"

"""Durations in words."""

from __future__ import annotations


def spell(seconds: float) -> str:
    """Return a readable duration: ``34 s``, ``5 min 02 s``, ``3 h 07 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

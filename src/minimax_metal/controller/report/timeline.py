"""The timeline of a run as SVG: a row per host, a bar per stage; pure.

With few hosts, rows are tall and bars have names; with sixty, rows are thin and the picture still fits on one
screen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from minimax_metal.common.durations import spell
from minimax_metal.plan.rollout.stage import colour_of, label_of

WIDTH: Final = 1160
LABEL: Final = 130
"""Width of the hosts' names; all sizes are in units of the picture."""
TALL: Final = 30
LOW: Final = 11
"""Heights of a row: with up to :data:`FEW` hosts, and with sixty."""
FEW: Final = 8
SCREEN: Final = 660
"""Total height of the rows if there are many."""
AXIS: Final = 26
BAD: Final = "#dc2626"
_STEPS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)


def ticks(seconds: float, most: int = 10) -> list[float]:
    """Return the times of the axis: round numbers, ten at most."""
    step = next((one for one in _STEPS if seconds / one <= most), _STEPS[-1])
    return [float(at) for at in range(0, int(seconds) + 1, step)]


def row_height(hosts: int) -> float:
    """Return the height of a row."""
    if hosts <= FEW:
        return TALL
    return max(LOW, min(TALL, SCREEN / hosts))


def timeline(hosts: Sequence[Mapping[str, Any]], began: float, seconds: float) -> str:
    """Return the picture as SVG text, safe to be put into a page.

    Args:
        hosts: hosts of the report, with ``host``, ``verdict`` and ``spans``.
        began: when the run began, seconds since the epoch.
        seconds: how long it took.
    """
    height = row_height(len(hosts))
    total = max(seconds, 1.0)
    scale = (WIDTH - LABEL - 10) / total
    bottom = AXIS + height * len(hosts)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {bottom + 6:.0f}" role="img" aria-label="Stages of each host over time" '
        'font-family="system-ui, sans-serif">'
    ]
    for at in ticks(total):
        x = LABEL + at * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{AXIS - 6}" x2="{x:.1f}" y2="{bottom:.1f}"/>')
        parts.append(f'<text class="axis" x="{x:.1f}" y="14" font-size="11">{escape(spell(at))}</text>')
    for number, host in enumerate(hosts):
        parts += _row(host, AXIS + number * height, height, began, scale)
    parts.append("</svg>")
    return "\n".join(parts)


def _row(host: Mapping[str, Any], top: float, height: float, began: float, scale: float) -> list[str]:
    size = min(13.0, height - 2.0)
    bad = host["verdict"] in {"failed", "refused", "unreachable", "reverted", "interrupted"}
    name = f"{host['host']}{' ✗' if bad else ''}"
    parts = [
        f'<text class="{"bad" if bad else "host"}" x="{LABEL - 8}" y="{top + height / 2 + size * 0.36:.1f}" '
        f'text-anchor="end" font-size="{size:.1f}">{escape(name)}</text>'
    ]
    inner = max(2.0, height - (8.0 if height >= 20 else 2.0))
    for span in host["spans"]:
        x = LABEL + max(0.0, span["began"] - began) * scale
        width = max(0.8, (span["ended"] - span["began"]) * scale)
        stage, seconds = span["stage"], span["ended"] - span["began"]
        edge = f' stroke="{BAD}" stroke-width="2"' if span["status"] in {"failed", "unreachable"} else ""
        weak = ' fill-opacity="0.35"' if span["status"] == "skipped" else ""
        y = top + (height - inner) / 2
        title = escape(f"{host['host']}: {stage}, {span['status']}, {spell(seconds)}")
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{inner:.1f}" '
            f'fill="{colour_of(stage)}"{edge}{weak}>'
            f"<title>{title}</title></rect>"
        )
        label = label_of(stage)
        if height >= 20 and width > 7.0 * len(label) + 6:
            middle = top + height / 2 + 4
            parts.append(f'<text class="name" x="{x + 4:.1f}" y="{middle:.1f}" font-size="11">{label}</text>')
    return parts

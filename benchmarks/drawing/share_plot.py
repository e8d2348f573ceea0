"""How much of the model each host had over time, as an SVG drawn from a benchmark's samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 46, 44
COLOURS = ("#1b6ca8", "#d1495b", "#66a182", "#edae49", "#6a4c93", "#2e4057", "#8d6a9f", "#00798c")


@dataclass(frozen=True)
class Sample:
    """Bytes on a host's disk at a number of seconds after the start."""

    host: str
    seconds: float
    have: int


def plot(samples: Sequence[Sample], size: int, alone: float, seconds: float) -> str:
    """Return the plot.

    Args:
        samples: of all hosts.
        size: bytes of the model.
        alone: seconds one host alone took.
        seconds: seconds until the last host had everything.
    """
    end = max(alone, seconds) * 1.05
    across, up = (WIDTH - LEFT - RIGHT) / end, (HEIGHT - TOP - BOTTOM) / size
    by_host: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_host[sample.host].append(sample)

    def x(time: float) -> float:
        return round(LEFT + time * across, 1)

    def y(have: float) -> float:
        return round(HEIGHT - BOTTOM - have * up, 1)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{len(by_host)} hosts share a pull of {size / 1e6:.0f} MB: '
        f"what each has on its disk (last: {seconds:.1f} s; one host alone: {alone:.1f} s)</text>",
    ]
    for part in range(0, 5):
        level = y(size * part / 4)
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{level}" y2="{level}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{level + 4}" text-anchor="end">{25 * part} %</text>')
    step = max(1, round(end / 8))
    for second in range(0, int(end) + 1, step):
        out.append(f'<text x="{x(second)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{second} s</text>')
    out.append(
        f'<line x1="{x(0)}" y1="{y(0)}" x2="{x(alone)}" y2="{y(size)}" stroke="#888" stroke-dasharray="5 4"/>'
    )
    out.append(
        f'<text x="{LEFT + 8}" y="{TOP - 8}" fill="#666">dashed: one host alone, at its average rate</text>'
    )
    for number, (host, found) in enumerate(sorted(by_host.items())):
        kept = found[:: max(1, len(found) // 150)]
        kept = [*kept, found[-1]] if kept[-1] is not found[-1] else kept
        points = " ".join(f"{x(sample.seconds)},{y(sample.have)}" for sample in kept)
        colour = COLOURS[number % len(COLOURS)]
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        row = TOP + 120 + 16 * number
        out.append(f'<rect x="{WIDTH - RIGHT - 90}" y="{row - 9}" width="10" height="10" fill="{colour}"/>')
        out.append(f'<text x="{WIDTH - RIGHT - 74}" y="{row}">{host}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"

"""What a cache read from its origins and gave to hosts, by its log: an object for each request and part."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Traffic:
    """One file: bytes read from its origin (headers included), its size as known, who asked for it."""

    origin_bytes: int = 0
    stated: int | None = None
    sent: int = 0
    clients: set[str] = field(default_factory=set)

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.sent if self.stated is None else self.stated


def read(lines: Iterable[str]) -> dict[str, Traffic]:
    """Traffic by path.

    The size of a file is what its origin states with its parts; of one that came whole, the most that one
    request was sent of it. Lines that are none of the log are passed over.
    """
    found: dict[str, Traffic] = defaultdict(Traffic)
    for line in lines:
        start = line.find('{"client"')
        if start < 0:
            continue
        try:
            entry = json.loads(line[start:])
        except ValueError:
            continue
        file = found[entry["path"]]
        file.clients.add(entry["client"])
        stated = str(entry.get("of", "")).rpartition("/")[2]
        if stated.isdigit():
            file.stated = int(stated)
        file.sent = max(file.sent, int(entry["sent"] or 0))
        file.origin_bytes += sum(int(one) for one in _numbers(entry["origin_bytes"]))
    return dict(found)


def _numbers(text: str) -> list[str]:
    """nginx joins the figures of several tries with commas and colons."""
    return [word for word in text.replace(":", ",").replace(" ", "").split(",") if word.isdigit()]


def ratio(traffic: dict[str, Traffic], *endings: str) -> tuple[int, int, int]:
    """Files with one of these endings: their number, bytes read from origins, and their sizes together."""
    chosen = [file for path, file in traffic.items() if path.endswith(endings)]
    return len(chosen), sum(file.origin_bytes for file in chosen), sum(file.size for file in chosen)

"""What a cache read from its origins and gave to hosts, by its log: an object for each request and part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from minimax_metal.common.documents import digits, read_json


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
            entry = read_json(line[start:])
        except ValueError:
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            continue
        file = found[entry["path"]]
        file.clients.add(str(entry.get("client")))
        if (stated := digits(str(entry.get("of", "")).rpartition("/")[2])) is not None:
            file.stated = stated
        file.sent = max(file.sent, digits(str(entry.get("sent"))) or 0)
        file.origin_bytes += sum(_numbers(str(entry.get("origin_bytes"))))
    return dict(found)


def _numbers(text: str) -> list[int]:
    """nginx joins the figures of several tries with commas and colons."""
    words = text.replace(":", ",").replace(" ", "").split(",")
    return [number for word in words if (number := digits(word)) is not None]


def ratio(traffic: dict[str, Traffic], *endings: str) -> tuple[int, int, int]:
    """Files with one of these endings: their number, bytes read from origins, and their sizes together."""
    chosen = [file for path, file in traffic.items() if path.endswith(endings)]
    return len(chosen), sum(file.origin_bytes for file in chosen), sum(file.size for file in chosen)

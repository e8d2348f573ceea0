"""Bytes that a cache read from origins and sent to hosts, from its log: one object per request and part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from minimax_metal.common.documents import digits, read_json


@dataclass
class Traffic:
    """One file: bytes read from its origin (including headers), its known size, and the clients."""

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

    The size of a file is the size that its origin states with partial answers; for a file sent whole, the
    largest amount sent for one request. Other lines are skipped.
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
    """nginx joins the values of several attempts with commas and colons."""
    words = text.replace(":", ",").replace(" ", "").split(",")
    return [number for word in words if (number := digits(word)) is not None]


def ratio(traffic: dict[str, Traffic], *endings: str) -> tuple[int, int, int]:
    """Return the number of files with one of these endings, bytes read from origins, and their total size."""
    chosen = [file for path, file in traffic.items() if path.endswith(endings)]
    return len(chosen), sum(file.origin_bytes for file in chosen), sum(file.size for file in chosen)

"""The source and age of every number, and numbers without one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import date
from typing import Any

from minimax_metal.catalog import Catalog, Figure
from minimax_metal.catalog.schema import Entry

IDENTITY = frozenset(
    {
        "name", "format", "family", "aliases", "release", "slug", "version", "default_format",
        "preference", "notes", "served_name", "locks", "distribution", "codename", "models", "formats",
        "gpus", "tp", "aims", "instead", "branch", "severity", "confidence", "code", "what", "title", "cards",
        "sources",
    }
)  # fmt: skip
"""Names and choices of the catalogue's own, which need no source."""


@dataclass(frozen=True)
class Source:
    """One number's source; ``age_days`` is None if no date is known."""

    where: str
    field: str
    source: str
    confidence: str | None
    age_days: int | None

    def line(self) -> str:
        """One line for people."""
        if not self.source:
            return f"no source     {self.where}: {self.field}"
        return f"source        {self.where}: {self.field}: {self.age_days} days old ({self.source})"


def _age(text: str, read: Any, today: date) -> int | None:
    if isinstance(read, date):
        return (today - read).days
    dates = []
    for year, month, day in re.findall(r"\b(20\d\d)-(\d\d)-(\d\d)\b", text):
        try:
            dates.append(date(int(year), int(month), int(day)))
        except ValueError:
            continue
    return (today - max(dates)).days if dates else None


def sources_of(catalog: Catalog, today: date) -> list[Source]:
    """Return every number of the catalogue: models, GPUs, engines and so on, recipes, faults, licences,
    drafts.
    """
    entries: list[tuple[str, Entry]] = [
        (f"{one.name} {one.format}", one) for formats in catalog.models.values() for one in formats.values()
    ]
    for kind, section in (
        ("GPU", catalog.gpus), ("engine", catalog.engines), ("CUDA", catalog.cuda),
        ("platform", catalog.platforms), ("driver", catalog.drivers), ("gateway", catalog.gateways),
        ("recipe", catalog.recipes), ("fault", catalog.faults), ("licence", catalog.licences),
        ("draft", catalog.drafts),
    ):  # fmt: skip
        entries += [(f"{kind} {name}", one) for name, one in section.items()]
    found = [source for where, one in entries for source in _entry(where, one, today)]
    for formats in catalog.models.values():
        for one in formats.values():
            said = getattr(catalog.licences.get(one.licence), "source", "")
            found = [
                replace(source, source=said, age_days=_age(said, None, today))
                if (source.where, source.field) == (f"{one.name} {one.format}", "licence")
                else source
                for source in found
            ]
    return found


def _entry(where: str, one: Entry, today: date) -> Iterator[Source]:
    whole = str(getattr(one, "source", "") or "")
    read = getattr(one, "read", None)
    for name in (field.name for field in fields(one)):  # type: ignore[arg-type]
        value = getattr(one, name)
        if name in IDENTITY or name == "read" or name.endswith("source") or name not in one.written:
            continue
        yield from _value(where, name, value, _beside(one, name) or whole, read, today)


def _beside(one: Entry, name: str) -> str:
    """Return another field's source: ``revision_source`` of ``revision``, or its entry in ``sources``."""
    if text := getattr(one, "sources", {}).get(name):
        return str(text)
    if name == "repositories" and (text := getattr(one, "revision_source", None)):
        return str(text)
    # A name printed by nvidia-smi is in the listing that the memory was read from.
    figure = getattr(one, "memory_bytes", None)
    if name == "smi_pattern" and figure and "nvidia-smi" in figure.source:
        return str(figure.source)
    for field in (f"{name}_source", f"{name.rpartition('_')[2]}_source"):
        if text := getattr(one, field, None):
            return str(text)
    return ""


def _value(where: str, name: str, value: Any, source: str, read: Any, today: date) -> Iterator[Source]:
    if isinstance(value, Figure):
        age = _age(value.source, getattr(value, "read", None), today)
        yield Source(where, name, value.source, value.confidence, age)
    elif isinstance(value, Mapping) and any(getattr(item, "source", None) for item in value.values()):
        for key, item in value.items():
            yield from _value(where, f"{name}.{key}", item, source, read, today)
    elif name == "pci_ids" and isinstance(value, Mapping):
        for key, text in value.items():
            yield Source(where, f"{name}.{key}", str(text), None, _age(str(text), None, today))
    elif isinstance(value, Entry) and getattr(value, "source", None):
        yield Source(where, name, str(value.source), None, _age(str(value.source), None, today))  # type: ignore[attr-defined]
    elif value is not None and value != () and value != {}:
        yield Source(where, name, source, None, _age(source, read, today))

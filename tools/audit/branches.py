"""Compare NVIDIA's list of driver branches, in any saved format, with the catalogue's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from html import unescape
from pathlib import Path
from typing import Any

from minimax_metal.catalog import Catalog
from minimax_metal.catalog.schema import DriverBranch
from minimax_metal.common.errors import UserError
from minimax_metal.plan.driver.life import Branches, is_over
from tools.audit.rows import Row, as_object, compared, read_text, skipped

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_BRANCH = re.compile(r"\bR(\d{3})\b")
_KINDS = {
    "lts": r"long[- ]term support|\bLTSB?\b",
    "production": r"\bproduction\b",
    "new-feature": r"\bnew[- ]feature\b|\bNFB\b",
}
_KIND = re.compile("|".join(f"({words})" for words in _KINDS.values()), re.IGNORECASE)
_DATE = re.compile(
    rf"\b(?P<name>{'|'.join(_MONTHS)})[a-z]*\.?\s+(?:(?P<day>\d{{1,2}}),\s+)?(?P<year>20\d\d)\b"
    r"|\b(?P<written>20\d\d-\d\d(?:-\d\d)?)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Listed:
    """A list's data on a branch; None if it has none.

    Attributes:
        kind: lts, production or new-feature.
        end: its last month (``2028-06``) or day (``2028-06-30``).
    """

    kind: str | None = None
    end: str | None = None


def read_branches(text: str, name: str) -> dict[str, Listed]:
    """Return the branches in a list by number.

    NVIDIA's releases.json (keyed by branch, with a type), its page as saved HTML or as copied text, whose
    table has a column for each branch, or a table with a row for each.
    """
    if text.lstrip().startswith("{"):
        return _from_json(as_object(text, name, "NVIDIA's branch list"))
    if "<tr" in text.lower():
        return _from_tables(text)
    lines = [line for line in text.splitlines() if _BRANCH.search(line)]
    by_row = {
        branch[0]: Listed(_kind(line), _end(line))
        for line in lines
        if len(branch := _BRANCH.findall(line)) == 1 and (_kind(line) or _end(line))
    }
    return by_row or _by_column(text)


def _from_json(found: dict[str, Any]) -> dict[str, Listed]:
    branches = {}
    for branch, entry in found.items():
        if not re.fullmatch(r"R?\d{3}", branch):
            continue
        fields = entry if isinstance(entry, dict) else {"eol": entry}
        # Releases have dates too, which are not end dates.
        ends = [
            str(value) for key, value in fields.items() if re.search(r"eol|end|life", str(key), re.IGNORECASE)
        ]
        kinds = [str(value) for key, value in fields.items() if key in {"type", "kind", "branch_type"}]
        branches[branch.removeprefix("R")] = Listed(_kind(" ".join(kinds)), _end(" ".join(ends)))
    return branches


def _from_tables(text: str) -> dict[str, Listed]:
    branches: dict[str, Listed] = {}
    for table in re.split(r"<table\b", text, flags=re.IGNORECASE):
        columns: list[str] = []
        for row in re.split(r"<tr\b[^>]*>", table, flags=re.IGNORECASE)[1:]:
            cells = re.findall(r"<t[hd]\b[^>]*>(.*?)(?=<t[hd]\b|</tr>|\Z)", row, re.IGNORECASE | re.DOTALL)
            plain = [unescape(re.sub(r"<[^>]+>", " ", cell)) for cell in cells]
            line = " ".join(plain)
            named = [found[0] for cell in plain if len(found := _BRANCH.findall(cell)) == 1]
            if len(named) == 1 and (_kind(line) or _end(line)):
                branches[named[0]] = Listed(_kind(line), _end(line))
            elif named:
                columns = named
                branches |= {branch: Listed() for branch in named if branch not in branches}
            elif len(plain) >= len(columns):
                for branch, cell in zip(columns, plain[len(plain) - len(columns) :], strict=True):
                    known = branches[branch]
                    branches[branch] = Listed(known.kind or _kind(cell), known.end or _end(cell))
    return branches


def _by_column(text: str) -> dict[str, Listed]:
    """Parse a table that was copied as text: the branches, then as many kinds, then as many ends."""
    first = _KIND.search(text)
    head = text[: first.start()] if first else text
    branches = list(dict.fromkeys(_BRANCH.findall(head)))
    rest = text[len(head) :]
    kinds = [_kind(found.group()) for found in _KIND.finditer(rest)][: len(branches)]
    ends = [_end(found.group()) for found in _DATE.finditer(rest)][: len(branches)]
    missing: list[str | None] = [None] * len(branches)
    return {
        branch: Listed(kind, end)
        for branch, kind, end in zip(
            branches,
            kinds if len(kinds) == len(branches) else missing,
            ends if len(ends) == len(branches) else missing,
            strict=True,
        )
    }


def _kind(text: str) -> str | None:
    found = _KIND.search(text)
    return list(_KINDS)[found.lastindex - 1] if found and found.lastindex else None


def _end(text: str) -> str | None:
    found = _DATE.search(text)
    if found is None:
        return None
    if found["written"]:
        return str(found["written"])
    month = f"{found['year']}-{_MONTHS.index(found['name'].casefold()) + 1:02d}"
    return f"{month}-{int(found['day']):02d}" if found["day"] else month


def compare_drivers(catalog: Catalog, path: Path, today: date) -> Iterator[Row]:
    """Compare kind and end of every branch, missing branches, and the hosts' default.

    Raises:
        UserError: the file can't be read, or names no branch.
    """
    listed = read_branches(read_text(path, "NVIDIA's branch list"), str(path))
    if not listed:
        raise UserError(
            f"found no driver branch in {path}, expected NVIDIA's list, such as a table with R580"
        )
    for branch in catalog.drivers.values():
        yield from _branch(branch, listed.get(branch.branch), path.name, today)
    newest = max(map(int, filter(str.isdigit, catalog.drivers)), default=0)
    for number, found in listed.items():
        lives = found.end[:7] >= f"{today:%Y-%m}" if found.end else int(number) > newest
        if number not in catalog.drivers and lives:
            said = ", ".join(filter(None, ("listed", found.kind, found.end and f"until {found.end}")))
            yield compared(f"driver {number}", "branch", "none", said, path.name, same=False)
    for slug, platform in catalog.platforms.items():
        lasting = Branches(catalog.drivers, platform, today, "0", "open").alive()
        ours = lasting[0].branch if lasting else "none"
        end = listed[ours].end if ours in listed else None
        state = "not listed" if ours not in listed else f"listed, end {end or 'not given'}"
        alive = ours in listed and (end is None or end >= f"{today.isoformat()[: len(end)]}")
        yield compared(f"platform {slug}", "default branch", ours, state, path.name, same=alive)


def _branch(branch: DriverBranch, found: Listed | None, against: str, today: date) -> Iterator[Row]:
    where = f"driver {branch.branch}"
    if found is None:
        # A list names supported branches; ended ones have left it, or will.
        gone = is_over(branch, today)
        ours = f"until {branch.end}" if branch.end else "listed" if branch.listed else "not listed"
        yield compared(where, "listed", ours, "not listed", against, same=gone)
        return
    if branch.end is None:
        yield compared(where, "listed", branch.listed, True, against)
    if found.kind is None:
        yield skipped(where, "kind", "not in the list", against)
    else:
        yield compared(where, "kind", branch.kind, found.kind, against)
    if found.end is None:
        yield skipped(where, "end", "not in the list", against)
    else:
        ours = branch.end.isoformat() if branch.end else "none"
        yield compared(where, "end", ours, found.end, against, same=_same_end(branch.end, found.end))


def _same_end(ours: date | None, theirs: str) -> bool:
    """Return whether a day is the listed one, or the last of the listed month."""
    if ours is None or len(theirs) > len("2028-06"):
        return ours is not None and ours.isoformat() == theirs
    last = date(ours.year + ours.month // 12, ours.month % 12 + 1, 1)
    return f"{ours:%Y-%m}" == theirs and (last - ours).days == 1

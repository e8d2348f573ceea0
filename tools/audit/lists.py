"""The catalogue against lists that others publish: driver branches, PCI ids, the package index."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from minimax_metal.catalog import Catalog
from minimax_metal.errors import UserError
from minimax_metal.plan.versions import version_key
from tools.audit.rows import Row, as_object, compared, read_text, skipped

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def read_branches(text: str, name: str) -> dict[str, str | None]:
    """Branch to the month of its end ("2028-06") or none: JSON keyed by branch, an HTML table or lines."""
    if text.lstrip().startswith("{"):
        found = as_object(text, name, "NVIDIA's branch list")
        return {
            branch: _month(str(entry)) for branch, entry in found.items() if re.fullmatch(r"R?\d{3}", branch)
        }
    rows = re.split(r"</tr>|\n(?!\s*<)" if "<tr" in text else r"\n", text)
    branches: dict[str, str | None] = {}
    for row in rows:
        plain = re.sub(r"<[^>]+>", " ", row)
        branch = re.search(r"\bR(\d{3})\b", plain)
        if branch:
            branches[branch.group(1)] = _month(plain) or branches.get(branch.group(1))
    return branches


def _month(text: str) -> str | None:
    found = re.search(r"\b([A-Z][a-z]{2})[a-z]*\.?\s+(20\d\d)\b", text)
    if found and found.group(1).casefold() in _MONTHS:
        return f"{found.group(2)}-{_MONTHS.index(found.group(1).casefold()) + 1:02d}"
    written = re.search(r"\b(20\d\d)-(\d\d)\b", text)
    return written.group(0) if written else None


def compare_drivers(catalog: Catalog, path: Path, today: date) -> Iterator[Row]:
    """Every branch of every platform: listed, and not at its end."""
    listed = read_branches(read_text(path, "NVIDIA's branch list"), str(path))
    if not listed:
        raise UserError(
            f"found no driver branch in {path}, expected NVIDIA's list, such as a table with R580"
        )
    now = f"{today:%Y-%m}"
    for slug, platform in catalog.platforms.items():
        for branch in platform.driver_branches:
            field = "default_driver_branch" if branch == platform.default_driver_branch else "driver_branches"
            end = listed.get(branch)
            state = "not listed" if branch not in listed else f"listed, end {end or 'not stated'}"
            alive = branch in listed and (end is None or end >= now)
            yield compared(f"platform {slug}", field, branch, state, path.name, same=alive)
        if platform.default_driver_branch not in platform.driver_branches:
            yield compared(
                f"platform {slug}", "default_driver_branch", platform.default_driver_branch,
                list(platform.driver_branches), "the catalogue itself", same=False,
            )  # fmt: skip


def compare_pci(catalog: Catalog, path: Path) -> Iterator[Row]:
    """PCI ids by the names that the PCI ID Repository has for them."""
    vendor = re.search(
        r"^10de\b.*?$(.*?)(?=^[0-9a-f]{4}\s|\Z)", read_text(path, "pci.ids"), re.MULTILINE | re.DOTALL
    )
    if vendor is None:
        raise UserError(f"found no vendor 10de in {path}, expected the PCI ID Repository's pci.ids")
    names = dict(re.findall(r"^\t([0-9a-f]{4})\s+(.+)$", vendor.group(1), re.MULTILINE))
    for gpu in catalog.gpus.values():
        for device in gpu.pci_ids:
            found = names.get(device.removeprefix("0x").casefold(), "no such device")
            family = re.match(r"RTX[- ]PRO[- ]\d+|[A-Z]+\d+[A-Z]?", gpu.name)
            word = re.sub(r"[- ]+", " ", family.group(0)) if family else gpu.name
            same = re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", found) is not None
            yield compared(f"GPU {gpu.name}", f"pci_ids {device}", word, found, path.name, same=same)


def compare_index(catalog: Catalog) -> Iterator[Row]:
    """Whether the package index has a newer engine or gateway."""
    for package, ours in (("sglang", catalog.engines), ("smg", catalog.gateways)):
        newest = max(ours, key=version_key)
        command = [sys.executable, "-m", "pip", "index", "versions", package, "--disable-pip-version-check"]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            raise UserError(f"found no answer of the package index for {package} within 120 s") from None
        found = re.search(r"^\S+ \(([\w.]+)\)", done.stdout, re.MULTILINE)
        if done.returncode or not found:
            why = " ".join(done.stderr.split())[-300:]
            yield skipped(package, "newest release", f"the index did not say ({why})", "package index")
        else:
            theirs = found.group(1)
            same = version_key(theirs) <= version_key(newest)
            yield compared(package, "newest release", newest, theirs, "package index", same=same)

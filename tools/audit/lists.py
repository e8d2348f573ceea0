"""Compare the catalogue with published lists: PCI ids, the package index."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from minimax_metal.catalog import Catalog
from minimax_metal.common.errors import UserError
from minimax_metal.plan.versions import version_key
from tools.audit.rows import Row, compared, read_text, skipped


def compare_pci(catalog: Catalog, path: Path) -> Iterator[Row]:
    """Compare PCI ids by their names in the PCI ID Repository."""
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
    """Check the package index for a newer engine or gateway."""
    for package, ours in (("sglang", catalog.engines), ("smg", catalog.gateways)):
        newest = max(ours, key=version_key)
        command = [sys.executable, "-m", "pip", "index", "versions", package, "--disable-pip-version-check"]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            raise UserError(f"found no answer from the package index for {package} within 120 s") from None
        found = re.search(r"^\S+ \(([\w.]+)\)", done.stdout, re.MULTILINE)
        if done.returncode or not found:
            why = " ".join(done.stderr.split())[-300:]
            yield skipped(package, "newest release", f"the index did not answer ({why})", "package index")
        else:
            theirs = found.group(1)
            same = version_key(theirs) <= version_key(newest)
            yield compared(package, "newest release", newest, theirs, "package index", same=same)

"""Compare the catalogue with its sources, and list numbers without one.

make catalog-audit                                        # the lab's engine, the index, the sources
    python tools/catalog_audit.py --engine SITE-PACKAGES      # an unpacked or installed wheel
    python tools/catalog_audit.py --model MiniMax-M2.5 --format fp8 --config DIRECTORY
    python tools/catalog_audit.py --hub URL                   # every checkpoint, or those of --model
    python tools/catalog_audit.py --drivers FILE --pci-ids FILE --index

Files and addresses are arguments; nothing else is contacted. --index asks the package index in this machine's
pip settings. Exit status: 0 nothing differs, 1 something differs, 2 wrong usage or unreadable input.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from minimax_metal.catalog import Catalog, load_catalog, read_overlay
from minimax_metal.common.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.audit.branches import compare_drivers
from tools.audit.checkpoints import from_directory, from_hub, on_modelscope
from tools.audit.engine import compare_engine, compare_locks, installed
from tools.audit.lists import compare_index, compare_pci
from tools.audit.rows import Row
from tools.audit.sources import sources_of


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="catalog_audit",
        description="Compare the catalogue with its sources.",
        epilog="exit status: 0 nothing differs, 1 something differs, 2 wrong usage or unreadable input",
    )
    parser.add_argument(
        "--engine", type=Path, metavar="DIR", help="unpacked wheel or site-packages with sglang"
    )
    parser.add_argument(
        "--lab-engine", action="store_true", help="the engine that the lab installed, if it did"
    )
    parser.add_argument("--config", type=Path, metavar="DIR", help="checkpoint; with --model and --format")
    parser.add_argument("--hub", metavar="URL", help="hub that speaks Hugging Face's API")
    parser.add_argument("--modelscope", metavar="URL", help="hub that speaks ModelScope's API")
    parser.add_argument("--model", metavar="NAME", help="model of --config, or the only one of --hub")
    parser.add_argument("--format", metavar="FORMAT", help="checkpoint format of --model")
    parser.add_argument(
        "--drivers", type=Path, metavar="FILE", help="NVIDIA's branch list: JSON, HTML or text"
    )
    parser.add_argument("--pci-ids", type=Path, metavar="FILE", help="the PCI ID Repository's pci.ids")
    parser.add_argument("--index", action="store_true", help="ask the package index for newer releases")
    parser.add_argument("--overlay", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--today", type=date.fromisoformat, default=date.today(), help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="one object: rows and sources")
    return parser


def _checkpoints(catalog: Catalog, model: str | None, form: str | None) -> list[Any]:
    found = [
        one
        for name, formats in catalog.models.items()
        for one in formats.values()
        if (model is None or model in (name, *one.aliases)) and (form is None or form == one.format)
    ]
    if not found:
        raise UserError(
            f"found --model {model or '-'} --format {form or '-'}, expected a checkpoint of the catalogue: "
            f"models are {', '.join(catalog.models)}"
        )
    return found


def audit(arguments: argparse.Namespace, catalog: Catalog) -> Iterator[Row]:
    """Return every comparison that the arguments name.

    Raises:
        UserError: an input can't be read, or has the wrong format.
    """
    yield from compare_locks(catalog)
    if arguments.lab_engine and not arguments.engine:
        arguments.engine = installed()
    if arguments.engine:
        yield from compare_engine(catalog, arguments.engine)
    if arguments.config:
        chosen = _checkpoints(catalog, arguments.model, arguments.format)
        if arguments.model is None or len(chosen) != 1:
            raise UserError("found --config without one checkpoint, expected --model and --format as well")
        yield from from_directory(chosen[0], arguments.config, catalog.licences)
    if arguments.hub:
        for one in _checkpoints(catalog, arguments.model, arguments.format):
            yield from from_hub(one, arguments.hub, catalog.licences)
    if arguments.modelscope:
        for one in _checkpoints(catalog, arguments.model, arguments.format):
            yield on_modelscope(one, arguments.modelscope)
    if arguments.drivers:
        yield from compare_drivers(catalog, arguments.drivers, arguments.today)
    if arguments.pci_ids:
        yield from compare_pci(catalog, arguments.pci_ids)
    if arguments.index:
        yield from compare_index(catalog)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    arguments = _parser().parse_args(argv)
    try:
        catalog = load_catalog([read_overlay(path) for path in arguments.overlay])
        rows = list(audit(arguments, catalog))
    except UserError as error:
        print(f"catalog-audit: {error}", file=sys.stderr)
        return 2
    sources = sources_of(catalog, arguments.today)
    if arguments.json:
        print(
            json.dumps({"rows": [asdict(one) for one in rows], "sources": [asdict(one) for one in sources]})
        )
    else:
        for row in sorted(rows, key=lambda one: one.verdict):
            print(row.line())
        for source in sources:
            if source.age_days is not None or not source.source:
                print(source.line())
        undated = sum(1 for one in sources if one.source and one.age_days is None)
        print(f"{undated} sources have no date, so their age is unknown (--json lists them)")
    counts = {
        name: sum(row.verdict == name for row in rows) for name in ("agrees", "differs", "not compared")
    }
    bare = sum(not one.source for one in sources)
    summary = ", ".join(f"{number} {name}" for name, number in counts.items())
    print(f"catalog-audit: {summary}, {bare} without a source", file=sys.stderr)
    return 1 if counts["differs"] else 0


if __name__ == "__main__":
    sys.exit(main())

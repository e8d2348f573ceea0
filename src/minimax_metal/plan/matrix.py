"""``metal plan --matrix``: every model and format on every GPU and count of the catalogue, in one table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date

from minimax_metal.catalog import Catalog, packaged_catalog
from minimax_metal.common.errors import UserError
from minimax_metal.plan.core import plan
from minimax_metal.plan.findings import near_of_all
from minimax_metal.plan.host import COUNTS
from minimax_metal.plan.settings import Settings
from minimax_metal.plan.weights import model_named
from minimax_metal.plan.what_if import what_if_facts

HEADS = ("model", "format", "GPUs", "fits", "KV tokens", "longest", "notes")


@dataclass(frozen=True)
class Row:
    """One combination: tokens are of all sequences together, ``longest`` of one; None if it is refused."""

    model: str
    format: str
    gpu: str
    count: int
    fits: bool
    kv_tokens: int | None
    longest: int | None
    refusals: tuple[str, ...]
    """Codes of its refusals."""
    warnings: tuple[str, ...]
    """Codes of its warnings."""


def find_models(wanted: Iterable[str], catalog: Catalog) -> list[str]:
    """Return the catalogue's names of the requested models (all if none is given); raises ``UserError``."""
    found = []
    for word in wanted:
        name = model_named(word, catalog)
        if name is None:
            raise UserError(
                f"found --model {word}, expected one of the catalogue; {near_of_all(word, catalog.models)}"
            )
        found.append(name)
    return list(dict.fromkeys(found)) or list(catalog.models)


def rows(models: Iterable[str], catalog: Catalog, day: date | str | None = None) -> Iterator[Row]:
    """Return a row for each combination, in the catalogue's order; ``day`` as ``metal_plan_date``."""
    platform = next(iter(catalog.platforms.values()))
    for model in models:
        for form in catalog.models[model]:
            named = {"metal_model": model, "metal_model_format": form, "metal_plan_date": day}
            settings = Settings.from_variables("matrix", named)
            for gpu in catalog.gpus:
                for count in COUNTS:
                    made = plan(settings, what_if_facts(gpu, count, platform, catalog), catalog)
                    held = made.capacity if made.fits else None
                    yield Row(
                        model=model,
                        format=form,
                        gpu=gpu,
                        count=count,
                        fits=made.fits,
                        kv_tokens=held.kv_tokens if held else None,
                        longest=held.max_sequence if held else None,
                        refusals=tuple(dict.fromkeys(one.code for one in made.refusals)),
                        warnings=tuple(dict.fromkeys(one.code for one in made.warnings)),
                    )


def _cells(made: Sequence[Row]) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return the table's cells, and the codes that the numbers in its last column stand for, from 1 on."""
    codes = list(dict.fromkeys(code for one in made for code in (*one.refusals, *one.warnings)))
    number = {code: str(place) for place, code in enumerate(codes, 1)}
    cells: list[tuple[str, ...]] = [
        (
            one.model.removeprefix("MiniMax-"),
            one.format,
            f"{one.count} x {one.gpu}",
            "yes" if one.fits else "no",
            f"{one.kv_tokens:,}" if one.kv_tokens is not None else "-",
            f"{one.longest:,}" if one.longest is not None else "-",
            " ".join(number[code] for code in ((*one.refusals, *one.warnings) if one.fits else one.refusals)),
        )
        for one in made
    ]
    return cells, codes


def text(made: Sequence[Row]) -> str:
    """Return columns for a terminal; the notes are last, so that a narrow one cuts nothing else."""
    cells, codes = _cells(made)
    widths = [max(len(row[place]) for row in (HEADS, *cells)) for place in range(len(HEADS))]
    right = {"KV tokens", "longest"}
    lines = [
        "  ".join(
            cell.rjust(width) if head in right else cell.ljust(width)
            for cell, width, head in zip(row, widths, HEADS, strict=True)
        ).rstrip()
        for row in (HEADS, *cells)
    ]
    return "\n".join([*lines, "", *(f"{place:>3}  {code}" for place, code in enumerate(codes, 1))]) + "\n"


def markdown(made: Sequence[Row]) -> str:
    """Return the same as a Markdown table."""
    cells, codes = _cells(made)
    lines = [f"| {' | '.join(row)} |" for row in (HEADS, ("---",) * len(HEADS), *cells)]
    return "\n".join([*lines, "", *(f"{place}. `{code}`" for place, code in enumerate(codes, 1))]) + "\n"


def main(argv: Sequence[str]) -> int:
    """Print the table; the exit status is 0 whatever fits."""
    parser = argparse.ArgumentParser(prog="metal plan --matrix", description=__doc__)
    parser.add_argument("--matrix", action="store_true", help="this table")
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME", help="repeatable; default: all"
    )
    parser.add_argument("--json", action="store_true", help="a list with one object per combination")
    parser.add_argument("--markdown", action="store_true", help="a Markdown table")
    parser.add_argument(
        "--date", metavar="YYYY-MM-DD", help="date on which driver branches are judged; default: today"
    )
    arguments = parser.parse_args(list(argv))
    catalog = packaged_catalog()
    made = list(rows(find_models(arguments.model, catalog), catalog, arguments.date))
    if arguments.json:
        sys.stdout.write(json.dumps([asdict(one) for one in made], indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(markdown(made) if arguments.markdown else text(made))
    return 0

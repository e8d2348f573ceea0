#!/usr/bin/env python3
"""Make the pictures of docs/fleet.md from a stored run: the live view at one moment, and the report.

python tools/screens.py [RUN] [--runs DIRECTORY] [--at 0.6]

The live view is replayed from the run's records and exported by rich as SVG; the report is opened in headless
Chromium, as a reader's browser would.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from minimax_metal.controller.report import make as report
from minimax_metal.controller.run.store import Kept, Store, runs_directory
from minimax_metal.controller.run.view import View

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
COLUMNS, LINES = 132, 32


def live(run: Kept, share: float, path: Path) -> None:
    """Write the live view at ``share`` of the run's time."""
    records = list(run.records())
    moment = records[0]["at"] + share * (records[-1]["at"] - records[0]["at"])
    with Path("/dev/null").open("w") as nowhere:
        console = Console(file=nowhere, record=True, force_terminal=True, width=COLUMNS, height=LINES)
        view = View(f"metal {run.about.get('verb', 'site')}", console=console, clock=lambda: moment)
        for record in records:
            if record["at"] > moment:
                break
            view.run.take(record)
        console.print(view.picture())
        picture = console.export_svg(title=f"metal {run.about.get('verb', 'site')}")
    # Rich would download its font; a reader's own will do.
    path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL), encoding="utf-8")


def page(run: Kept, store: Store, path: Path) -> None:
    """Write a picture of the report."""
    browser = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit("screens: found no Chromium, expected one on the path; install chromium")
    html = report.write(run, store)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1240,1000"]
    subprocess.run(
        [browser, *options, f"--screenshot={path}", html.resolve().as_uri()],
        check=True,
        capture_output=True,
        timeout=300,
    )


def main() -> None:
    """Make both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", help="name or directory of a run (default: the newest)")
    parser.add_argument("--runs", type=Path, help="directory of runs")
    parser.add_argument("--at", type=float, default=0.6, help="moment of the live view, a share of the run")
    arguments = parser.parse_args()
    store = Store(runs_directory(arguments.runs))
    run = store.find(arguments.run)
    IMAGES.mkdir(parents=True, exist_ok=True)
    live(run, arguments.at, IMAGES / "live.svg")
    page(run, store, IMAGES / "report.png")
    print(f"screens: {IMAGES / 'live.svg'} and {IMAGES / 'report.png'} of {run.name}")


if __name__ == "__main__":
    main()

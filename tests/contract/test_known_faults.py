"""Known errors in the catalogue that the installed engine still has; fixed ones need an ``engine_before``."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab.engine.environment import environment
from minimax_metal.catalog import packaged_catalog
from tools.audit.engine import compare_engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

CATALOG = packaged_catalog()


OLDER = [release for release in CATALOG.engines if release != CATALOG.default_engine]
CALLS: list[list[Any]] = [["weather", {"city": "Bonn"}], ["weather", {"city": "Linz", "unit": "K"}]]


def unpacked(release: str) -> Path:
    """A release's unpacked wheel, ``sglang-RELEASE`` in ``METAL_ENGINE_WHEELS``; skips without one."""
    place = os.environ.get("METAL_ENGINE_WHEELS", "")
    tree = Path(place) / f"sglang-{release}"
    if not place or not (tree / "sglang").is_dir():
        pytest.skip(f"no METAL_ENGINE_WHEELS with sglang-{release}, an unpacked wheel")
    return tree


def streamed(*questions: dict[str, Any], tree: Path | None = None) -> list[list[list[Any]]]:
    """The calls that a client assembles from each stream, with the parser of another wheel if given."""
    # The lab's platform is written for one release; parsers need none.
    other = {"PYTHONPATH": str(tree), "SGLANG_PLUGINS": "none", "SGLANG_USE_CPU_ENGINE": "1"} if tree else {}
    done = subprocess.run(
        [str(environment()), str(Path(__file__).with_name("streamed_calls_probe.py"))],
        input=json.dumps([{"parser": "minimax-m2"} | one for one in questions]),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **other},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answered: list[list[list[Any]]] = json.loads(done.stdout.splitlines()[-1])
    return answered


def test_streamed_calls_of_m2_come_whole_token_by_token_and_mixed_in_larger_pieces() -> None:
    # sgl-project/sglang issues 23071 and 35564
    check_streamed(None)


@pytest.mark.parametrize("release", OLDER)
def test_older_releases_stream_calls_of_m2_as_the_newest_does(release: str) -> None:
    check_streamed(unpacked(release))


@pytest.mark.parametrize("release", OLDER)
def test_the_catalogue_says_of_an_older_release_what_its_wheel_does(release: str) -> None:
    rows = list(compare_engine(CATALOG, unpacked(release)))
    engine = CATALOG.engines[release]
    # A release without a lock is looked at, never started: the plan's flags are newer than it.
    wrong = [
        row.line() for row in rows if row.verdict == "differs" and (engine.locks or "flags" not in row.field)
    ]
    assert not wrong
    assert any(row.field == "tool_parsers" for row in rows)


def check_streamed(tree: Path | None) -> None:
    small, large, bare = streamed(
        {"calls": CALLS, "pieces": 4},
        {"calls": CALLS, "pieces": 1000},
        {"calls": [["now", {}]], "pieces": 4},
        tree=tree,
    )
    assert [[name, json.loads(text)] for name, text in small] == CALLS
    fault = CATALOG.faults["m2-streamed-calls-mixed"]
    assert fault.where.engine_from is None
    assert fault.where.engine_before is None
    assert [[name, json.loads(text)] for name, text in large] != CALLS
    assert bare == [["now", ""]], "mended: take the remark about it out of faults.yml"

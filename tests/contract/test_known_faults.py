"""Faults of the catalogue that the installed engine still has; mended ones want an ``engine_before``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab.engine.environment import environment
from minimax_metal.catalog import packaged_catalog

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

CATALOG = packaged_catalog()


def streamed(*questions: dict[str, Any]) -> list[list[list[Any]]]:
    """The calls that a client puts together from each stream."""
    done = subprocess.run(
        [str(environment()), str(Path(__file__).with_name("streamed_calls_probe.py"))],
        input=json.dumps([{"parser": "minimax-m2"} | one for one in questions]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answered: list[list[list[Any]]] = json.loads(done.stdout.splitlines()[-1])
    return answered


def test_streamed_calls_of_m2_come_whole_token_by_token_and_mixed_in_larger_pieces() -> None:
    # sgl-project/sglang issues 23071 and 35564
    calls = [["weather", {"city": "Bonn"}], ["weather", {"city": "Linz", "unit": "K"}]]
    small, large, bare = streamed(
        {"calls": calls, "pieces": 4}, {"calls": calls, "pieces": 1000}, {"calls": [["now", {}]], "pieces": 4}
    )
    assert [[name, json.loads(text)] for name, text in small] == calls
    fault = CATALOG.faults["m2-streamed-calls-mixed"]
    assert fault.where.engine_before is None
    assert [[name, json.loads(text)] for name, text in large] != calls
    assert bare == [["now", ""]], "mended: take the remark about it out of faults.yml"

"""The installed engine has no messages on its start path that are missing in its release's listing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lab.engine.environment import environment

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PROJECT = Path(__file__).parents[2]


def test_no_message_is_without_a_rule_or_a_decision() -> None:
    """For a new release: read the output, add rules or decisions, list again (docs/development.md)."""
    python = environment()
    asked = "import sysconfig, sglang; print(sysconfig.get_path('purelib')); print(sglang.__version__)"
    done = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True, timeout=300)
    site, release = done.stdout.split()[-2:]
    listing = PROJECT / "tests" / "unit" / "data" / "messages" / f"sglang-{release}.tsv"
    assert listing.exists(), f"no listing of {release}: tools/engine_messages.py {site} > {listing}"
    compared = subprocess.run(
        [sys.executable, PROJECT / "tools" / "engine_messages.py", site, "--against", listing],
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert compared.returncode == 0, compared.stdout[-6000:] + compared.stderr[-2000:]

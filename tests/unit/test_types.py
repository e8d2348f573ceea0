"""`mypy` alone checks all of the tree, without exceptions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MYPY = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]


@pytest.fixture(scope="module")
def sources() -> list[str]:
    """Every Python file of the repository; generated ones are in hidden directories, dist and reports."""
    places = [one for one in ROOT.iterdir() if one.name[0] != "." and one.name not in {"dist", "reports"}]
    return sorted(
        str(path.relative_to(ROOT))
        for place in places
        for path in (place.rglob("*.py*") if place.is_dir() else [place])
        if path.suffix in {".py", ".pyi"}
    )


def test_every_file_is_checked_strictly(sources: list[str]) -> None:
    assert MYPY["strict"] is True
    assert "exclude" not in MYPY
    left_out = [path for path in sources if path.split("/")[0] not in MYPY["files"]]
    assert len(sources) > 600
    assert left_out == []


def test_no_setting_lets_a_kind_of_error_pass() -> None:
    loose = {
        "ignore_errors",
        "disable_error_code",
        "allow_untyped_defs",
        "follow_imports",
        "check_untyped_defs",
    }
    assert not loose & MYPY.keys()
    for override in MYPY["overrides"]:
        assert override.keys() == {"module", "ignore_missing_imports"}
        own = {"minimax_metal", "tests", "lab", "plugins", "benchmarks", "tools", "molecule"}
        assert not {name.split(".")[0] for name in override["module"]} & own


def test_a_line_that_is_left_out_names_the_kind_of_error(sources: list[str]) -> None:
    bare = [
        f"{path}:{number}"
        for path in sources
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"#\s*type:\s*ignore(?!\[[a-z, -]+\])|#\s*mypy:", line)
    ]
    own = str(Path(__file__).relative_to(ROOT))
    assert [place for place in bare if not place.startswith(own)] == []

"""The what-if table, and its copy in docs/, which must be up to date."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minimax_metal.catalog import packaged_catalog
from minimax_metal.common.errors import UserError
from minimax_metal.controller.verbs.plan import main
from minimax_metal.plan.matrix import find_models, markdown, rows

DOCUMENT = Path(__file__).parents[2] / "docs" / "matrix.md"


def test_the_documented_table_is_the_one_that_is_made() -> None:
    catalog = packaged_catalog()
    made = markdown(list(rows(find_models([], catalog), catalog, "2026-11-29")))
    assert DOCUMENT.read_text().endswith("\n\n" + made), (
        "run metal plan --matrix --markdown into docs/matrix.md"
    )


def test_rows_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--matrix", "--model", "m3", "--model", "M2.5", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert {one["model"] for one in made} == {"MiniMax-M3", "MiniMax-M2.5"}
    one = next(row for row in made if (row["format"], row["gpu"], row["count"]) == ("bf16", "H200", 8))
    assert one["fits"] and one["kv_tokens"] == one["longest"] == 136576  # noqa: PT018
    assert all(row["refusals"] for row in made if not row["fits"])


def test_a_table_for_a_terminal_names_its_notes(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--matrix", "--model", "M3"])
    said = capsys.readouterr().out
    assert "short-sequence" in said
    assert max(map(len, said.splitlines())) <= 110


def test_a_model_that_nobody_knows_is_one_line() -> None:
    with pytest.raises(UserError, match="--model M9"):
        find_models(["M9"], packaged_catalog())

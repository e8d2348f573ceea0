"""Every message on an engine's start path has one of our rules or a recorded decision."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent / "data" / "messages"
LISTINGS = sorted(HERE.glob("*.tsv"))


def tool() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "engine_messages.py"
    spec = importlib.util.spec_from_file_location("engine_messages", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["engine_messages"] = module
    spec.loader.exec_module(module)
    return module


TOOL = tool()
DECISIONS = [
    (re.compile(entry["files"]), entry["why"])
    for entry in tomllib.loads((HERE / "decisions.toml").read_text(encoding="utf-8"))["decision"]
]


def rows(listing: Path) -> list[list[str]]:
    return [line.split("\t") for line in listing.read_text(encoding="utf-8").splitlines()]


def test_there_is_a_listing() -> None:
    assert "sglang-0.5.23.tsv" in {path.name for path in LISTINGS}


@pytest.mark.parametrize("listing", LISTINGS, ids=[path.stem for path in LISTINGS])
def test_every_message_has_a_rule_or_a_decision(listing: Path) -> None:
    open_ = [
        "\t".join(row)
        for row in rows(listing)
        if row[4] == "generic" and not any(files.search(f"{row[0]}/{row[1]}") for files, _ in DECISIONS)
    ]
    assert open_ == [], f"{len(open_)} messages without a rule or a decision"
    assert all(len(why) > 40 for _, why in DECISIONS)


@pytest.mark.parametrize("listing", LISTINGS, ids=[path.stem for path in LISTINGS])
def test_the_listing_says_what_the_rules_make_of_it(listing: Path) -> None:
    """A changed rule changes this list: look at each entry, then list again."""
    wrong = [
        f"{row[3]}: listed {row[4]}, now {decision}"
        for row in rows(listing)
        if (decision := TOOL.Message(*row[:4]).decision) != row[4]
    ]
    assert wrong == []


def test_messages_are_read_off_sources(tmp_path: Path) -> None:
    source = """
import sys
def f(x):
    raise ValueError(f"bad {x} " "of two")
    raise RuntimeError("%s was %d" % (x, 1))
    raise KeyError("{0} is missing".format(x))
    assert x, "must be " + str(x)
    sys.exit("good bye")
    logger.error(f"died: {x!r}")
    raise
    raise OSError(x)
"""
    assert sorted(TOOL.of_source(source)) == [
        ("AssertionError", "must be {}"),
        ("KeyError", "{} is missing"),
        ("RuntimeError", "{} was {}"),
        ("ValueError", "bad {} of two"),
        ("exit", "good bye"),
        ("log", "died: {}"),
    ]
    place = tmp_path / "sglang" / "srt"
    place.mkdir(parents=True)
    (place / "server_args.py").write_text(source)
    listing = tmp_path / "listing.tsv"
    listing.write_text("sglang\tsrt/x.py\tValueError\tanother one\tgeneric\n")
    found = TOOL.collect(tmp_path)
    assert {message.decision for message in found} == {"arguments"}
    (place / "utils").mkdir()
    (place / "utils" / "new.py").write_text("def f():\n    raise KeyError('brand new words')\n")
    assert TOOL.main([str(tmp_path), "--against", str(listing)]) == 1
    listing.write_text("sglang\tsrt/utils/old.py\tKeyError\tbrand new words\tgeneric\n")
    assert TOOL.main([str(tmp_path), "--against", str(listing)]) == 0

"""Inputs that once broke a reader, given to it again; and tests of the judge of readers."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import cast

import pytest

from minimax_metal.common.documents import digits, read_json
from minimax_metal.common.errors import UserError
from minimax_metal.common.metrics import samples
from minimax_metal.common.text import one_line, printable
from tests.fuzz import run, target
from tests.fuzz.target import SEEDS, Form, Target, judge
from tests.fuzz.targets import TARGETS, fleet

ROOT = Path(__file__).parents[2]
OWN_JSON = {
    "common/documents.py",
    "common/apart.py",  # also in a module's archive, and its child's own answer
    "host/lock.py",  # also in a module's archive
    "host/weights/answers.py",
    "host/weights/fetch.py",  # the job from its own parent
    "host/weights/examine/safetensors.py",
    "controller/bundle_store/document.py",
}
"""JSON readers that handle depth themselves: they need a hook, or must not import."""


@pytest.mark.parametrize("one", TARGETS, ids=[one.name for one in TARGETS])
def test_every_seed_is_read_or_refused(one: Target) -> None:
    for content in (*one.seeds, *one.kept):
        failure = judge(one, content)
        assert failure is None, f"{failure.kind}: {failure.told}: {failure.content[:300]!r}"


def test_every_directory_of_seeds_has_its_target() -> None:
    assert {path.name for path in SEEDS.iterdir()} <= {one.name for one in TARGETS}
    assert len({one.name for one in TARGETS}) == len(TARGETS) >= 36


def test_a_reader_that_raises_hangs_or_shows_controls_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(_: bytes) -> None:
        while True:
            time.monotonic()

    monkeypatch.setattr(target, "CPU_SECONDS", 0.05)

    def kind(read: object, **more: bool) -> str | None:
        failure = judge(Target("a", read, (b"a",), **more), b"\x1b[31m1")  # type: ignore[arg-type]
        return failure.kind if failure else None

    def refuse(_: bytes) -> None:
        raise UserError("no")

    assert kind(refuse) is None
    assert kind(int) is not None
    assert "ValueError" in str(kind(int))
    assert "hang" in str(kind(hang))
    assert kind(lambda content: content.decode()) is None
    assert "controls" in str(kind(lambda content: {"a": [content.decode()]}, shown=True))
    assert "controls" in str(kind(lambda _: "\ud800", shown=True))


def test_a_round_gives_the_same_inputs_again_and_keeps_the_smallest_failure() -> None:
    def seen(number: int) -> list[bytes]:
        found: list[bytes] = []
        one = Target("a", found.append, (b'{"a": [1, {"b": null}]}',), Form.JSON)
        run._round(run.Ran(one), number, time.monotonic() + 60.0)
        return found

    first = seen(3)
    assert first == seen(3)
    assert first != seen(4)
    assert len(set(first)) > run.EXAMPLES // 2
    assert any(not _is_json(content) for content in first)
    assert any(_is_json(content) for content in first)
    failing = run.Ran(Target("a", lambda content: content[5], (b"abc",)))
    for content in (b"abc", b"a", b"abcdefgh", b"ab"):
        failing.take(content)
    (failure,) = failing.failures.values()
    assert (failure.content, failing.times[failure.kind], failing.count) == (b"a", 3, 4)


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5_000, "", "a[", b"\xff", b"\x00"])
def test_json_from_elsewhere_is_read_or_not_valid(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"nested|Expecting|digits|decode"):
        read_json(text)


def test_json_is_read_by_the_one_reader() -> None:
    """``json.loads`` raises RecursionError for an answer nested too deep, and 20 readers forgot it."""
    package = ROOT / "src" / "minimax_metal"
    names = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"\bjson\.loads?\(", path.read_text(encoding="utf-8"))
    }
    apart = {name for name in names if name.startswith(("host/engine_plugin/", "host/accept/programs/"))}
    others = {"host/soak.py", "host/gateway/launch.py"}  # in a request that is counted, and in a program
    assert names - apart - others <= OWN_JSON


def test_digits_are_ascii_and_few() -> None:
    assert [digits(text) for text in ("12", "0", "²", "\u0661", "-1", "1 ", "", "9" * 19)] == [
        12,
        0,
        *[None] * 6,
    ]


def test_samples_are_finite_counts() -> None:
    text = 'a{b="}"} 1\na 2 1700000000\na NaN\na 1e999\na -1\na 1-2\n#a 3\na{ 4\nab\n<html>\na{} x\nb 5\n'
    assert [(one.labels, one.value) for one in samples(text, "a")] == [('b="}"', 1.0), ("", 2.0)]
    began = time.process_time()
    assert not list(samples("a{" * 500_000 + "\na{" * 200_000, "a"))
    assert time.process_time() - began < 2.0


def test_halves_of_characters_are_not_shown() -> None:
    """``print`` raises UnicodeEncodeError for them; JSON and file names contain them."""
    assert printable("a\ud800b\udcff") == "ab"
    one_line(json.loads('"\\ud83d x"')).encode()


def test_the_sound_answer_of_a_host_is_compared_with_its_settings() -> None:
    """Otherwise a change in it would never reach the comparison."""
    _, told = cast("tuple[list[str], str]", fleet._status({"rc": 0, "stdout": json.dumps(fleet.ANSWER)}))
    assert json.loads(told)["state"] == "known"
    assert "tensor parallel 2 -> 4" in json.loads(told)["drift"]

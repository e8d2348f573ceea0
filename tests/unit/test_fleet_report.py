"""The report of a run: complete in one file, the same as data, legible for three hosts and for sixty."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from minimax_metal.common.errors import UserError
from minimax_metal.common.redact import Redactor
from minimax_metal.controller.report import make as report
from minimax_metal.controller.report.check_reports import host_of
from minimax_metal.controller.report.timeline import ticks, timeline
from minimax_metal.controller.run.events import Run
from minimax_metal.controller.run.store import KEPT, Kept, Store

CANARY = "canary-5up3r-53cr3t"
JOURNAL = ["expected a token, got none", "The last lines of sglang@m.service:", "<b>engine</b> died & left"]


def records(hosts: int, fetched: Path | None = None) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [{"kind": "play", "play": "One", "at": 0.5}]
    for number in range(hosts):
        host, at = f"gpu{number + 1:02d}", 1.0 + number * 10
        for stage in ("host_tools", "drain", "sglang_service", "post_check"):
            made.append({"kind": "begin", "host": host, "stage": stage, "task": "T", "at": at})
            at += 5
            bad = number == 1 and stage == "post_check"
            kind = "failed" if bad else "changed" if stage == "sglang_service" else "ok"
            result = {"failed": True, "msg": JOURNAL} if bad else {"dest": "/etc/x"}
            made.append({"kind": kind, "host": host, "stage": stage, "task": "T", "at": at, "result": result})
    if fetched:
        items = [{"dest": str(fetched)}, {"dest": str(fetched.with_suffix(".xml"))}]
        made.append(
            {
                "kind": "ok",
                "host": "gpu01",
                "stage": "post_check",
                "task": "Fetch the reports",
                "action": "ansible.builtin.fetch",
                "result": {"items": items},
                "at": 90.0,
            }
        )
    return made


def kept(store: Store, verb: str, hosts: int, fetched: Path | None = None, **about: Any) -> Kept:
    run = store.new(verb)
    with run.open("events.jsonl") as file:
        file.writelines(json.dumps(one) + "\n" for one in records(hosts, fetched))
    run.describe({"run": run.name, "verb": verb, "exit": 1, "outcome": "failed", "command": "x", **about})
    return run


def checked(path: Path, rate: float) -> Path:
    level = {"concurrency": 1, "tokens_per_second": rate, "first_token_seconds": {"median": 0.25, "max": 1.0}}
    check = {
        "name": "chat",
        "status": "failed",
        "expected": "a token",
        "got": f"Bearer {CANARY}",
        "detail": "",
    }
    whole = {"model": "M", "url": "http://a", "passed": False, "counts": {"failed": 1}, "checks": [check]}
    path.write_text(json.dumps(whole | {"figures": [level]}))
    return path


def test_the_page_needs_nothing_else_and_hides_nothing(tmp_path: Path) -> None:
    run = kept(Store(tmp_path), "rollout", 3)
    page = report.write(run).read_text()
    assert not re.findall(r"""(?:src|href)\s*=|@import|url\(|<script""", page)
    for text in ("gpu02", "failed", "expected a token, got none", "/etc/x", run.name):
        assert text in page
    # What a host said is shown as it said it, and is never markup.
    assert "&lt;b&gt;engine&lt;/b&gt; died &amp; left" in page
    assert (run.path / "report.html").stat().st_mode & 0o077 == 0
    assert json.loads((run.path / "report.json").read_text()) == json.loads(json.dumps(report.data_of(run)))


def test_what_failed_is_told_with_the_end_of_the_journal(tmp_path: Path) -> None:
    data = report.data_of(kept(Store(tmp_path), "site", 3))
    assert [(one["host"], one["stage"], one["lines"]) for one in data["failures"]] == [
        ("gpu02", "post_check", JOURNAL)
    ]
    assert data["changes"] == [
        {"stage": "sglang_service", "task": "T", "hosts": ["gpu01", "gpu02", "gpu03"], "what": ["/etc/x"]}
    ]
    assert [host["verdict"] for host in data["hosts"]] == ["changed", "failed", "changed"]


def test_checks_are_kept_with_the_run_and_compared_with_the_run_before(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    fetched = tmp_path / "minimax-m2.5.json"
    for rate in (100.0, 90.0):
        run = kept(store, "rollout", 1, checked(fetched, rate))
        report.keep_checks(run, Run().take_all(run.records()), Redactor())
    # The next play writes the same file anew: the run has its own.
    fetched.unlink()
    (one,) = report.data_of(run, store)["checks"]
    assert (one["name"], one["passed"]) == ("gpu01.minimax-m2.5", False)
    row = next(row for row in one["figures"] if row["name"].startswith("tokens/s,"))
    assert (row["before"], row["after"], row["change_percent"]) == (100.0, 90.0, -10.0)
    page = report.write(run, store).read_text()
    assert "-10.0 %" in page
    assert CANARY not in page + (run.path / "report.json").read_text()


@pytest.mark.parametrize("hosts", [1, 3, 60])
def test_a_timeline_has_a_row_for_each_host_and_fits_on_a_screen(tmp_path: Path, hosts: int) -> None:
    data = report.data_of(kept(Store(tmp_path), "rollout", hosts))
    svg = timeline(data["hosts"], data["began"], data["seconds"])
    picture = ElementTree.fromstring(svg)  # noqa: S314  # it is our own
    names = [text.text for text in picture.iter("text") if text.get("class") in {"host", "bad"}]
    assert [str(name).removesuffix(" ✗") for name in names] == [host["host"] for host in data["hosts"]]
    assert len(list(picture.iter("rect"))) == 4 * hosts
    width, height = (float(one) for one in str(picture.get("viewBox")).split()[2:])
    assert height < 800.0 < width
    assert all(
        float(str(rect.get("x"))) + float(str(rect.get("width"))) <= width for rect in picture.iter("rect")
    )


@pytest.mark.parametrize("seconds", [0.5, 9.0, 61.0, 3600.0, 90_000.0])
def test_an_axis_has_ten_round_times_at_most(seconds: float) -> None:
    assert 1 <= len(ticks(seconds)) <= 11


def test_a_run_that_was_killed_has_a_report_too(tmp_path: Path) -> None:
    run = Store(tmp_path).new("site")
    with run.open("events.jsonl") as file:
        file.write(
            json.dumps({"kind": "begin", "host": "a", "stage": "stop", "task": "T", "at": 1.0}) + '\n{"kin'
        )
    page = report.write(run).read_text()
    assert "still running, or killed" in page


def test_runs_are_found_by_name_and_the_oldest_go(tmp_path: Path) -> None:
    store = Store(tmp_path)
    day = datetime(2026, 11, 22, tzinfo=UTC)
    made = [store.new("site", day + timedelta(seconds=number // 2)) for number in range(KEPT + 2)]
    assert [run.name for run in store.all()] == [run.name for run in made[2:]]
    assert made[-1].name == "20261122T000025Z-site-2"
    assert store.find(None).name == made[-1].name
    assert store.find(made[-2].name).path == made[-2].path
    with pytest.raises(UserError, match="2 runs named 20261122T000025Z"):
        store.find("20261122T000025Z")


def test_a_report_of_a_check_of_any_shape_is_shown_or_left_out(tmp_path: Path) -> None:
    """They are fetched from hosts: before, a wrong type in one killed the report of all."""
    store = Store(tmp_path / "runs")
    shapes: list[Any] = [
        {"checks": 7, "figures": {"a": 1}, "counts": [1], "model": {"x": 1}, "passed": "yes", "seconds": "s"},
        {"checks": [1, {"status": ["x"], "name": None}, {"name": "\x1b[2Jn", "status": "failed"}],
         "figures": [{"concurrency": [1], "tokens_per_second": 10**400}, 3, {"concurrency": 4}],
         "counts": {"passed": "x", "failed": 10**30}},
        [1, 2], "text", None,
    ]  # fmt: skip
    for number, shape in enumerate(shapes):
        path = tmp_path / f"one{number}.json"
        path.write_text(json.dumps(shape))
        run = kept(store, "site", 1, path)
        report.keep_checks(run, Run().take_all(run.records()), Redactor())
        page = report.write(run, store).read_text()
        assert "\x1b" not in page
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(1 << 30)
    run = kept(store, "site", 1, huge)
    report.keep_checks(run, Run().take_all(run.records()), Redactor())
    assert report.write(run, store).is_file()


def test_a_host_with_dots_in_its_name_keeps_it() -> None:
    hosts = ["gpu01.rack1.example", "gpu01"]
    assert host_of("gpu01.rack1.example.minimax-m2.5", hosts) == "gpu01.rack1.example"
    assert host_of("gpu01.minimax-m2.5", hosts) == "gpu01"

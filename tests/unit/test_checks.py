"""The post-check against the simulated engine: every fault fails the check that it is for."""

from __future__ import annotations

import io
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.checks import commands, questions, suite
from minimax_metal.checks.report import PLAIN_WIDTH, Report, Result, shorten
from minimax_metal.errors import UserError
from tests.support.engine import FAULTS, NAMES, Engine, serve


def check(
    engine: Engine, timeout: float = 60, checks: tuple[suite.Check, ...] = suite.CHECKS, **options: Any
) -> Report:
    with serve(engine) as url:
        client, base = suite.connect(url, "EMPTY", timeout)
        try:
            options.setdefault("image", "accepted" if engine.family == "m3" else "skip")
            return suite.run(suite.Context(client, NAMES[engine.family], **options), base, checks)
        finally:
            client.close()


def failures(report: Report) -> list[str]:
    return [result.name for result in report.results if result.status == "failed"]


def result(report: Report, name: str) -> Result:
    return next(result for result in report.results if result.name == name)


def test_m25_with_the_guides_parsers_passes() -> None:
    report = check(Engine("m2"))
    assert report.passed, report.as_json()
    assert result(report, "image").status == "skipped"
    assert "text only" in result(report, "image").detail
    assert "minimax-append-think" in result(report, "markup").detail
    assert result(report, "tool_call").detail == "get_weather(location=Beijing, unit=celsius)"


def test_m25_with_the_splitting_parser_passes() -> None:
    report = check(Engine("m2", reasoning_parser="minimax"), image="refused")
    assert report.passed, report.as_json()
    assert "reasoning_content" in result(report, "markup").detail
    assert "refused with 400" in result(report, "image").detail


def test_m3_with_its_own_parsers_passes() -> None:
    report = check(Engine("m3"))
    assert report.passed, report.as_json()
    assert result(report, "image").detail == "named red, green and blue"


def test_m3_with_the_parsers_of_its_guide_is_caught() -> None:
    report = check(Engine("m3", tool_parser="minimax-m2", reasoning_parser="minimax-append-think"))
    assert failures(report) == ["tool_call", "tool_call_stream", "markup"]
    for name in failures(report):
        assert "minimax-m3" in str(result(report, name).look)
    assert "finish_reason stop" in str(result(report, "tool_call").got)
    assert "<mm:think>" in str(result(report, "markup").got)


CAUGHT = {
    # fault: (family, the checks that fail on it and no other)
    "wrong_name": ("m2", ["models"]),
    "models_empty": ("m2", ["models"]),
    "error_500": ("m2", ["chat", "chat_parts", "stream", "tool_call", "tool_call_stream"]),
    "empty_answer": ("m2", ["chat"]),
    "runs_on": ("m2", ["chat", "chat_parts", "stream"]),
    "no_usage": ("m2", ["chat"]),
    "no_choices": ("m2", ["chat", "chat_parts", "tool_call"]),
    "no_json": ("m2", ["chat", "chat_parts", "stream", "tool_call", "tool_call_stream"]),
    "wrong_answer": ("m2", ["chat_parts"]),
    "parts_ignored": ("m2", ["chat_parts"]),
    "one_chunk": ("m2", ["stream"]),
    "counts_wrong": ("m2", ["stream"]),
    "no_stream_usage": ("m2", ["stream"]),
    "stream_breaks": ("m2", ["stream", "tool_call_stream"]),
    "no_tool_parser": ("m2", ["tool_call", "tool_call_stream", "markup"]),
    "wrong_tool": ("m2", ["tool_call", "tool_call_stream"]),
    "wrong_unit": ("m2", ["tool_call", "tool_call_stream"]),
    "wrong_place": ("m2", ["tool_call", "tool_call_stream"]),
    "broken_arguments": ("m2", ["tool_call", "tool_call_stream"]),
    "call_ends_with_stop": ("m2", ["tool_call", "tool_call_stream"]),
    "stream_loses_arguments": ("m2", ["tool_call_stream"]),
    "colour_blind": ("m3", ["image"]),
    "image_error": ("m3", ["image"]),
    "no_reasoning_parser": ("m2", ["markup"]),
    "special_token": ("m2", ["markup"]),
}


@pytest.mark.parametrize("fault", sorted(CAUGHT))
def test_each_fault_fails_the_checks_it_is_for(fault: str) -> None:
    family, expected = CAUGHT[fault]
    report = check(Engine(family, faults=frozenset({fault})))
    assert failures(report) == expected, report.as_json()
    for name in expected:
        found = result(report, name)
        assert found.expected, "a failure says what was expected"
        assert found.got, "a failure says what came"
        assert found.look, "a failure says where to look"


def test_an_answer_that_does_not_come_in_time() -> None:
    report = check(Engine("m2", faults=frozenset({"slow"})), timeout=2, checks=suite.CHECKS[:2])
    assert failures(report) == ["chat"]
    assert "none after 2 s" in str(result(report, "chat").got)


def test_a_text_model_that_takes_pictures_is_noticed() -> None:
    report = check(Engine("m2", faults=frozenset({"image_ignored"})), image="refused")
    assert failures(report) == ["image"]


def test_every_fault_of_the_engine_is_planted_somewhere() -> None:
    assert set(CAUGHT) | {"image_ignored", "slow"} == FAULTS


def test_every_check_is_shown_failing() -> None:
    assert {name for _, names in CAUGHT.values() for name in names} == {check.name for check in suite.CHECKS}


@pytest.mark.parametrize("choice", ["required", "named"])
def test_forced_calls(choice: suite.ToolChoice) -> None:
    assert check(Engine("m2", reasoning_parser="minimax"), tool_choice=choice).passed
    report = check(Engine("m2"), tool_choice=choice)
    assert report.passed, "a known limit of the parser is no failure"
    assert "minimax-append-think's limit" in result(report, "tool_call").detail
    assert result(report, "tool_call").status == "skipped"


def test_key() -> None:
    report = check(Engine("m2", api_key="secret"))
    assert "401" in str(result(report, "chat").got)
    assert "METAL_API_KEY" in str(result(report, "chat").look)


# The command ---------------------------------------------------------------------------------------------


def test_command_table_report_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "reports" / "check.json"
    with serve(Engine("m3")) as url:
        arguments = [url + "/v1/", "--model", NAMES["m3"], "--image", "--report", str(file)]
        assert commands.main(arguments) == 0
        table = capsys.readouterr().out
        assert commands.main([*arguments, "--json"]) == 0
    raw = json.loads(capsys.readouterr().out)
    assert raw["url"] == url
    assert raw == json.loads(file.read_text())
    assert raw["schema"] == 1
    assert raw["counts"] == {"passed": 8, "failed": 0, "skipped": 0}
    assert [check["name"] for check in raw["checks"]] == [check.name for check in suite.CHECKS]
    assert [path.name for path in file.parent.iterdir()] == ["check.json"]
    assert "tool_call_stream" in table
    assert "\x1b" not in table
    framed = [line for line in table.splitlines() if line.startswith(("┌", "│", "├", "└"))]
    assert {len(line) for line in framed} == {PLAIN_WIDTH}


def test_command_fails_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with serve(Engine("m3", tool_parser="minimax-m2", reasoning_parser="minimax-append-think")) as url:
        assert commands.main([url, "--model", NAMES["m3"], "--image"]) == 1
    said = capsys.readouterr().out
    assert "tool_call failed" in said
    assert "look:" in said
    assert "3 failed" in said


def test_command_when_nobody_answers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    assert commands.main([url, "--model", "m", "--report", str(tmp_path / "r.json")]) == 2
    said = capsys.readouterr()
    assert "nothing answers" in said.err
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "r.json").exists()


def test_command_reads_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text("secret\n")
    with serve(Engine("m2", api_key="secret")) as url:
        assert commands.main([url, "--model", NAMES["m2"], "--api-key-file", str(file)]) == 0
        monkeypatch.setenv("METAL_API_KEY", "secret")
        assert commands.main([url, "--model", NAMES["m2"]]) == 0
        monkeypatch.setenv("METAL_API_KEY", "wrong")
        assert commands.main([url, "--model", NAMES["m2"]]) == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["gpu01:8000", "--model", "m"], "no URL"),
        (["http://h", "--model", "m", "--api-key-file", "/none"], "key file"),
    ],
)
def test_command_usage(argv: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        commands.main(argv)


def test_a_proxy_of_the_environment_is_not_used_for_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    assert check(Engine("m2")).passed


# Questions and report ------------------------------------------------------------------------------------


def test_the_picture_is_a_png_of_one_colour() -> None:
    data = questions.png((255, 0, 0))
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(data[16:20], "big") == questions.IMAGE_SIDE
    assert questions.image_url("blue").startswith("data:image/png;base64,")


def test_shorten_keeps_both_ends() -> None:
    assert shorten("a\n b") == "a b"
    cut = shorten("start " + "x" * 1000 + " end", 100)
    assert len(cut) <= 100
    assert cut.startswith("start")
    assert cut.endswith("end")


def test_table_on_a_terminal_is_coloured() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    output = Terminal()
    Report("http://h", "m", "now", (Result("chat", "passed", 1.0, "好"),)).print(output)
    assert "\x1b[" in output.getvalue()

"""The post-check against the simulated engine: every check fails on its fault, and no other does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from minimax_metal.host.check import leaving, questions, suite
from minimax_metal.host.check.context import Context, Options
from minimax_metal.host.check.endpoint import Endpoint
from minimax_metal.host.check.report import Report, Result, shorten
from tests.support.engine import FAULTS, GUIDES_MISTAKE, NAMES, Engine, serve

CANARY = "canary-4f1d9a7c"


def check(engine: Engine, timeout: float = 60, only: tuple[str, ...] = (), **options: Any) -> Report:
    options = {"figure_tokens": 8, **options}
    with serve(engine) as url:
        endpoint = Endpoint(url, NAMES[engine.family], engine.api_key, timeout)
        try:
            return suite.run(Context(endpoint, Options(**options)), only=only)
        finally:
            endpoint.close()


def names(report: Report, status: str = "failed") -> list[str]:
    return [result.name for result in report.results if result.status == status]


def result(report: Report, name: str) -> Result:
    return next(result for result in report.results if result.name == name)


# Sound endpoints ------------------------------------------------------------------------------------------


def test_m25_with_the_guides_parsers_passes_and_its_parsers_limits_are_told() -> None:
    report = check(Engine("m2"))
    assert report.passed, report.as_json()
    assert names(report, "limited") == ["tool_required", "tool_named", "messages_tool_any", "wrong_model"]
    assert names(report, "skipped") == ["image_marker", "wrong_key", "bench"]
    required = result(report, "tool_required")
    assert "minimax-append-think" in required.detail
    assert "--reasoning-parser minimax" in str(required.setting)
    assert "minimax-append-think" in result(report, "markup").detail
    assert "at the start" not in result(report, "reasoning").detail
    assert "in <think>" in result(report, "reasoning").detail
    assert "refused with 400" in result(report, "image").detail
    assert result(report, "tool_call").detail == "get_weather(location=Beijing, unit=celsius)"


def test_m25_with_the_splitting_parser_and_a_key_passes() -> None:
    report = check(Engine("m2", reasoning_parser="minimax", api_key=CANARY))
    assert report.passed, report.as_json()
    assert names(report, "limited") == ["wrong_model"]
    assert names(report, "skipped") == ["image_marker", "bench"]
    assert "reasoning_content" in result(report, "reasoning").detail


def test_m3_with_its_own_parsers_passes() -> None:
    engine = Engine("m3")
    report = check(engine)
    assert report.passed, report.as_json()
    assert names(report, "limited") == ["wrong_model"]
    assert result(report, "image").detail == "named red, green and blue"
    assert "red" in result(report, "messages_image").detail
    assert {"thinking": {"type": "enabled"}}.items() <= next(
        request for request in engine.requests if "thinking" in request
    ).items()


def test_behind_a_gateway_that_says_nothing_of_the_engine() -> None:
    report = check(Engine("m2", gateway=True, metrics=False))
    assert report.passed, report.as_json()
    assert names(report, "skipped") == [
        *("image", "image_marker", "messages_image", "wrong_key", "metrics", "abort", "abort_queued", "bench")
    ]
    assert "--image" in result(report, "image").detail
    assert "--enable-metrics" in result(report, "metrics").detail
    assert "--enable-metrics" in result(report, "abort").detail
    assert "tool_required" in names(report, "limited"), "the content shows the parser"
    split = check(Engine("m2", gateway=True, reasoning_parser="minimax"), only=("reasoning", "tool_*"))
    assert split.passed, split.as_json()


def test_slots_are_read_from_the_metrics_where_the_loads_are_not_there() -> None:
    engine = Engine("m3", gateway=True)
    report = check(engine, only=("abort",))
    assert names(report, "passed") == ["abort"], report.as_json()
    assert "/metrics" in engine.asked


# Faults ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A planted fault: its check, those that inevitably fail with it, and the engine's configuration."""

    check: str
    companions: tuple[str, ...] = ()
    family: str = "m2"
    setup: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    timeout: float = 60
    rest: str = ""
    """The reason why the checks after the last failure are skipped, if they are."""


SPLIT = {"reasoning_parser": "minimax"}
KEYED = {"api_key": CANARY}
CALLS = ("tool_call_stream", "tool_several", "tool_parallel", "messages_tool", "messages_tool_stream")
TURNS = ("turns", "messages_turns")
PARAMETERS = ("stop", "choices", "seed", "json_schema", "logprobs")
CHATS = ("chat_parts", "reasoning", "sampling", "tool_call", "tool_required", "tool_named", "tool_several")
ANSWERS = (
    *CHATS,
    *TURNS,
    *PARAMETERS,
    *("system_long", "unicode", "tool_parallel"),
    *("stream", "stream_guide", "tool_call_stream", "image", "messages", "messages_stream", "messages_tool"),
    *("messages_tool_stream", "messages_tool_any", "messages_image", "long_prompt", "over_limit"),
    *("concurrent", "abort", "figures"),
)
HANGS = "2 checks got no answer in time"
PLANTED = {
    "abort_ignored": Case("abort", options={"abort_seconds": 1.0}),
    "broken_arguments": Case("tool_call", CALLS),
    "choices_ignored": Case("choices"),
    "call_ends_with_stop": Case("tool_call", CALLS),
    "colour_blind": Case("image", family="m3"),
    "counts_wrong": Case("stream", ("messages_stream", "concurrent", *TURNS)),
    "drops_under_load": Case("concurrent", ("figures", "abort_queued")),
    "echoes_key": Case("chat", (*ANSWERS, "abort_queued"), setup=KEYED),
    "empty_answer": Case(
        "chat",
        (
            *("sampling", "image", "messages", "messages_image", "over_limit", "concurrent", *TURNS),
            *("system_long", "choices", "abort_queued"),
        ),
    ),
    "error_500": Case("chat", (*ANSWERS, "wrong_model", "abort_queued")),
    "hangs": Case("chat", ("chat_parts",), timeout=3, rest=HANGS),
    "ignore_eos_refused": Case("figures", ("abort", "abort_queued")),
    "image_error": Case("image", ("messages_image", "image_marker"), family="m3"),
    "image_ignored": Case("image", ("messages_image",)),
    "image_kills": Case("image", rest="the endpoint stopped answering during image"),
    "key_ignored": Case("wrong_key", setup=KEYED),
    "keyless_open": Case("wrong_key", setup=KEYED),
    "loads_stand_still": Case("abort", options={"abort_seconds": 1.0}),
    "logprobs_missing": Case("logprobs"),
    "marker_refused": Case("image_marker", family="m3"),
    "long_prompt_error": Case("long_prompt"),
    "messages_any_ignored": Case("messages_tool_any", setup=SPLIT),
    "messages_empty": Case(
        "messages",
        ("messages_stream", "messages_turns", "messages_tool", "messages_tool_stream", "messages_tool_any"),
    ),
    "messages_image_dropped": Case("messages_image", family="m3"),
    "messages_missing": Case(
        "messages",
        (
            *("messages_stream", "messages_turns", "messages_tool", "messages_tool_stream"),
            *("messages_tool_any", "messages_image"),
        ),
    ),
    "messages_no_stream_usage": Case("messages_stream"),
    "messages_no_usage": Case("messages"),
    "messages_one_event": Case("messages_stream"),
    "messages_open": Case("wrong_key", setup=KEYED),
    "messages_runs_on": Case(
        "messages", ("messages_stream", "messages_turns", "messages_tool", "messages_tool_stream")
    ),
    "messages_stream_breaks": Case("messages_stream", ("messages_tool_stream",)),
    "messages_stream_error": Case("messages_stream", ("messages_tool_stream",)),
    "messages_stream_loses_input": Case("messages_tool_stream"),
    "messages_tool_as_text": Case("messages_tool", ("messages_tool_stream", "markup")),
    "messages_turns_lost": Case("messages_turns"),
    "metrics_foreign": Case("metrics"),
    "mixes_answers": Case("concurrent"),
    "models_empty": Case("models"),
    "named_ignored": Case("tool_named", setup=SPLIT),
    "no_choices": Case(
        "chat",
        (
            *CHATS,
            *PARAMETERS,
            *("turns", "system_long", "unicode", "tool_parallel", "abort_queued"),
            *("image", "messages_image", "long_prompt", "over_limit", "wrong_model", "concurrent"),
        ),
    ),
    "no_defaults": Case("sampling"),
    "no_json": Case("chat", (*ANSWERS, "wrong_model"), options={"abort_seconds": 1.0}),
    "no_reasoning_parser": Case("reasoning", ("markup", "json_schema", *TURNS)),
    "no_stream_usage": Case("stream", ("figures",)),
    "no_tool_parser": Case(
        "tool_call", (*CALLS, "tool_required", "tool_named", "messages_tool_any", "markup")
    ),
    "no_usage": Case("chat", ("long_prompt", "over_limit", "system_long")),
    "one_call_only": Case("tool_several", ("tool_parallel",)),
    "one_chunk": Case("stream"),
    "over_limit_500": Case("over_limit"),
    "over_limit_kills": Case("over_limit", rest="the endpoint stopped answering during over_limit"),
    "parallel_same_id": Case("tool_parallel"),
    "parts_ignored": Case("chat_parts"),
    "prompt_uncounted": Case("long_prompt", ("over_limit", "system_long")),
    "queue_keeps_the_gone": Case("abort_queued", options={"abort_seconds": 1.0}),
    "required_ignored": Case("tool_required", ("messages_tool_any",), setup=SPLIT),
    "result_unread": Case("tool_round_trip", ("messages_tool",)),
    "runs_on": Case(
        "chat",
        (
            *("chat_parts", "stream", "sampling", "tool_round_trip"),
            *("messages", "messages_stream", "messages_tool", *TURNS, "tool_parallel"),
            *("stop", "choices", "json_schema", "system_long"),
        ),
    ),
    "sampling_openai": Case("sampling"),
    "schema_ignored": Case("json_schema"),
    "seed_refused": Case("seed"),
    "effort_refused": Case("reasoning_effort", family="m3", options={"efforts": ("low", "max")}),
    "slow": Case("chat", ("chat_parts",), timeout=3, rest=HANGS),
    "special_token": Case("markup", ("json_schema", *TURNS)),
    "stop_ignored": Case("stop"),
    "stream_breaks": Case(
        "stream", ("stream_guide", "tool_call_stream", "tool_parallel", "unicode", "abort", "figures")
    ),
    "stream_choiceless": Case("stream_guide"),
    "stream_loses_arguments": Case("tool_call_stream", ("tool_parallel",)),
    "system_cut": Case("system_long"),
    "thought_lost": Case("reasoning", setup=SPLIT),
    "truncates": Case("long_prompt", ("over_limit",)),
    "turns_leak": Case("turns", ("messages_turns", "markup"), setup=SPLIT),
    "turns_lost": Case("turns"),
    "unicode_cut": Case("unicode"),
    "wrong_answer": Case("chat_parts", ("concurrent",)),
    "wrong_model_500": Case("wrong_model"),
    "wrong_name": Case("models"),
    "wrong_place": Case("tool_call", CALLS),
    "wrong_tool": Case("tool_call", (*CALLS, "tool_required", "tool_named", "messages_tool_any")),
    "wrong_unit": Case("tool_call", CALLS),
}


@pytest.mark.parametrize("fault", sorted(PLANTED))
def test_each_fault_fails_its_check_and_no_other(fault: str) -> None:
    case = PLANTED[fault]
    engine = Engine(case.family, faults=frozenset({fault}), **case.setup)
    report = check(engine, timeout=case.timeout, **case.options)
    assert set(names(report)) == {case.check, *case.companions}, report.as_json()
    for name in names(report):
        found = result(report, name)
        assert found.expected, "a failure says what was expected"
        assert found.got, "a failure says what came"
        assert found.look, "a failure says where to look"
    last = [result.status for result in report.results].index("failed")
    if case.rest:
        after = report.results[last + 1 + len(case.companions) :]
        assert len(after) >= 3
        assert all(found.status == "skipped" and case.rest in found.detail for found in after)
    if CANARY in str(case.setup):
        assert CANARY not in report.as_json() + report.as_junit()


def test_every_fault_of_the_engine_is_planted() -> None:
    assert set(PLANTED) == FAULTS


def test_every_check_is_shown_failing_on_a_fault_of_its_own() -> None:
    # "bench" has its faults in test_checks_bench.py.
    assert {case.check for case in PLANTED.values()} == {check.name for check in suite.CHECKS} - {"bench"}


def test_m3_with_the_parsers_of_its_guide_is_caught() -> None:
    report = check(Engine("m3", tool_parser="minimax-m2", reasoning_parser="minimax-append-think"))
    assert names(report) == GUIDES_MISTAKE, report.as_json()
    for name in GUIDES_MISTAKE:
        assert "minimax-m3" in str(result(report, name).look)
    assert "finish_reason stop" in str(result(report, "tool_call").got)
    assert "<mm:think>" in str(result(report, "markup").got)
    assert "tool_call" in result(report, "tool_round_trip").detail


# Single rules ---------------------------------------------------------------------------------------------


def test_another_parser_than_expected_is_noticed() -> None:
    report = check(Engine("m2"), only=("reasoning",), reasoning_parser="minimax")
    assert names(report) == ["reasoning"]
    assert "minimax-append-think" in str(result(report, "reasoning").got)


def test_metrics_that_have_to_be_there() -> None:
    report = check(Engine("m2", metrics=False), only=("metrics",), metrics_required=True)
    assert names(report) == ["metrics"]
    assert "--enable-metrics" in str(result(report, "metrics").look)


def test_a_key_that_is_refused_is_said_once() -> None:
    engine = Engine("m2", api_key=CANARY)
    with serve(engine) as url:
        endpoint = Endpoint(url, NAMES["m2"], "another", 10)
        report = suite.run(Context(endpoint))
        endpoint.close()
    assert names(report) == ["models"]
    assert "METAL_API_KEY" in str(result(report, "models").look)
    assert all("key was rejected" in found.detail for found in report.results[1:])


def test_an_answer_too_short_to_judge_a_freed_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "GONE_MARGIN", 0.0)
    report = check(Engine("m2"), only=("abort",))
    assert "too soon" in result(report, "abort").detail


def test_figures_are_in_the_report() -> None:
    report = check(Engine("m2"), only=("figures",), figure_levels=(1, 3), figure_tokens=6)
    levels = report.as_dict()["figures"]
    assert [(level["concurrency"], level["tokens"]) for level in levels] == [(1, 6), (3, 18)]
    assert all(level["tokens_per_second"] > 0 for level in levels)
    assert all(level["first_token_seconds"]["max"] > 0 for level in levels)
    assert check(Engine("m2"), only=("figures",), figure_levels=()).as_dict()["figures"] == []


@pytest.mark.parametrize(("share", "tokens"), [(0.25, 1024), (0.9, 3686)])
def test_the_long_prompt_is_as_long_as_asked(share: float, tokens: int) -> None:
    report = check(Engine("m2"), only=("long_prompt",), long_prompt_share=share)
    # The simulated engine counts words: nine to a sentence.
    assert abs(int(result(report, "long_prompt").detail.split()[0]) - tokens) <= 12, report.as_json()
    assert "skipped by" in result(check(Engine("m2"), long_prompt_share=0), "long_prompt").detail


def test_other_providers_accounts_stay_away(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "OPENAI_ORG_ID"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", f"X-Other: {CANARY}")
    endpoint = Endpoint("http://127.0.0.1:9", "m", None, 1)
    for client in (endpoint.openai, endpoint.anthropic):
        headers = {**client.default_headers, **client.auth_headers}
        assert CANARY not in str({name: str(value) for name, value in headers.items()})
    endpoint.close()


def test_a_proxy_of_the_environment_is_not_used_for_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    assert check(Engine("m2"), only=("models", "chat", "messages")).passed


# Questions and words --------------------------------------------------------------------------------------


def test_the_picture_is_a_png_of_one_colour() -> None:
    data = questions.png((255, 0, 0))
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(data[16:20], "big") == questions.IMAGE_SIDE
    assert questions.image_url("blue").startswith("data:image/png;base64,")
    assert questions.image_url("blue").endswith(questions.image_block("blue")["source"]["data"])


def test_shorten_keeps_both_ends() -> None:
    assert shorten("a\n b") == "a b"
    cut = shorten("start " + "x" * 1000 + " end", 100)
    assert len(cut) <= 100
    assert cut.startswith("start")
    assert cut.endswith("end")

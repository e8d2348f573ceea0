"""The catalogue and the plan against the installed engine that they are written for.

Every launch line that the catalogue can produce for the newest release is parsed by that release's own
parser, and the catalogue's data about the release is compared with it: a release that renames a flag breaks a
test, not a fleet. Needs the engine environment (pytest -m engine), made from the production lock.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lab.engine.environment import environment
from minimax_metal.catalog import packaged_catalog
from minimax_metal.plan import Plan, Settings, plan
from minimax_metal.plan.what_if import what_if_facts

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

CATALOG = packaged_catalog()
ENGINE = CATALOG.engines[CATALOG.default_engine]
KEYS = {"api-key": "0key-for-clients", "admin-api-key": "0key-for-managers"}
EXTRAS: list[dict[str, Any]] = [
    {},
    {"metal_profile": "guide"},
    {"metal_profile": "fast"},
    {"metal_profile": "fast", "metal_aim": "latency"},
    {"metal_profile": "fast", "metal_aim": "long-context"},
    {"metal_kv_cache_dtype": "fp8_e4m3"},
    {"metal_kv_cache_dtype": "bfloat16", "metal_metrics": True},
    {"metal_max_running_requests": 8, "metal_max_queued_requests": 16},
    {"metal_tool_call_parser": "auto", "metal_reasoning_parser": "auto"},
    {"metal_loader_threads": 16, "metal_api_keys": False},
    {"metal_tls_certificate": "/etc/tls/chain.pem", "metal_tls_key": "/etc/tls/private.pem"},
    # The draft of M3.1, on Blackwell, where its kernels are of one's own making.
    {"metal_speculative_draft": True, "metal_accept_refusals": ["engine-kernels"]},
    {"metal_layout": "2xtp4", "metal_port": 9000, "metal_served_model_name": "minimax"},
]


@cache
def plans() -> list[Plan]:
    """Every plan that fits: all models and formats, all GPUs, both counts, and the users' settings."""
    platform = CATALOG.platforms["debian12"]
    made = []
    for formats, gpu, count, extra in itertools.product(
        CATALOG.models.values(), CATALOG.gpus, (4, 8), EXTRAS
    ):
        for one in formats.values():
            named = {"metal_model": one.name, "metal_model_format": one.format} | extra
            settings = Settings.from_variables("gpu01", named)
            result = plan(settings, what_if_facts(gpu, count, platform, CATALOG), CATALOG)
            if result.fits:
                made.append(result)
    return made


@cache
def command_lines() -> list[tuple[str, ...]]:
    """The arguments after the program's name, each line once, including the DeepGEMM compiler's."""
    lines = {_arguments(service.argv) for result in plans() for service in result.services}
    # The last flag is the compiler's own: its limit.
    lines |= {_arguments(result.precompile.argv)[:-2] for result in plans() if result.precompile}
    return sorted(lines)


def _arguments(argv: tuple[str, ...]) -> tuple[str, ...]:
    return argv[next(place for place, word in enumerate(argv) if word.startswith("--")) :]


@cache
def answer() -> dict[str, Any]:
    """The installed engine's answers, queried once; the key file exists where the lines name one."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "engine.yaml")
        config.write_text("".join(f'{name}: "{key}"\n' for name, key in KEYS.items()))
        lines = [
            [
                str(config) if before == "--config" else word
                for before, word in itertools.pairwise(("", *line))
            ]
            for line in command_lines()
        ]
        done = subprocess.run(
            [str(environment()), str(Path(__file__).with_name("engine_probe.py"))],
            input=json.dumps({"command_lines": lines}),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_there_is_something_to_parse() -> None:
    assert len(command_lines()) > 50
    assert {result.model.format for result in plans() if result.model} >= {"fp8", "bf16", "mxfp8", "nvfp4"}


def test_the_engine_is_the_one_the_catalogue_means() -> None:
    assert answer()["version"] == ENGINE.release
    least = answer()["requires_python"].removeprefix(">=")
    assert min(int(one.split(".")[1]) for one in ENGINE.python) == int(least.split(".")[1])
    assert answer()["torch"] == f"torch=={ENGINE.torch}"


def test_every_command_line_parses_to_what_was_meant() -> None:
    complaints = [
        (" ".join(words), outcome["error"])
        for words, outcome in zip(command_lines(), answer()["parsed"], strict=True)
        if "error" in outcome
    ]
    assert complaints == []
    for words, outcome in zip(command_lines(), answer()["parsed"], strict=True):
        values = outcome["values"]
        given = dict(itertools.pairwise(words))
        assert values["model_path"] == given["--model-path"]
        assert values["tp_size"] == int(given["--tp-size"])
        assert values["ep_size"] == int(given.get("--ep-size", 1))
        assert values["port"] == int(given["--port"])
        assert values["host"] == given["--host"]
        assert values["mem_fraction_static"] == float(given["--mem-fraction-static"])
        assert values["trust_remote_code"] is True
        assert values["tool_call_parser"] in {given["--tool-call-parser"], None} | set(ENGINE.tool_parsers)
        assert values["speculative_algorithm"] == given.get("--speculative-algorithm")
        keyed = "--config" in given
        assert values["api_key"] == (KEYS["api-key"] if keyed else None)
        assert values["admin_api_key"] == (KEYS["admin-api-key"] if keyed else None)
        assert values["ssl_certfile"] == given.get("--ssl-certfile")
        if "--model-loader-extra-config" in given:
            assert json.loads(values["model_loader_extra_config"]) == {"num_threads": 16}
        if "--served-model-name" in given:
            assert values["served_model_name"] == given["--served-model-name"]
        if "--max-running-requests" in given:
            assert values["max_running_requests"] == int(given["--max-running-requests"])


def test_the_draft_of_m31_is_among_the_lines() -> None:
    drafted = [words for words in command_lines() if "--speculative-algorithm" in words]
    assert {dict(itertools.pairwise(words))["--speculative-algorithm"] for words in drafted} == {"DSPARK"}
    environments = [
        service.environment
        for result in plans()
        for service in result.services
        if "--speculative-algorithm" in service.argv
    ]
    assert environments
    assert all(one["SGLANG_RAGGED_VERIFY_MODE"] == "static" for one in environments)


def test_parser_names_are_the_engines() -> None:
    for ours, theirs in (
        (ENGINE.tool_parsers, answer()["tool_parsers"]),
        (ENGINE.reasoning_parsers, answer()["reasoning_parsers"]),
    ):
        # `auto` is a choice of the command line, not a parser.
        assert set(ours) - {"auto"} == {name for name in theirs if name.startswith("minimax")}


def test_architectures_are_the_engines() -> None:
    assert set(ENGINE.architectures) == set(answer()["architectures"])


def test_the_engine_can_be_started_in_the_ways_the_catalogue_says() -> None:
    assert ("sglang" in answer()["commands"]) == ("sglang serve" in ENGINE.entrypoints)


def test_the_engine_still_refuses_what_the_plan_refuses_for_block_size() -> None:
    assert answer()["block_rule"]

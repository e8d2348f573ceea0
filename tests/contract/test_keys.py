"""What each key opens, decided by the installed engine's own code for every path it serves."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lab.engine.environment import environment

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

USER, ADMIN = "0key-for-clients", "0key-for-managers"
OPEN = ("/health", "/ready", "/metrics")
"""What the engine answers without a key: probes and figures, no prompts."""
MANAGEMENT = {
    "/abort_request",
    "/configure_logging",
    "/continue_generation",
    "/flush_cache",
    "/load_lora_adapter",
    "/pause_generation",
    "/release_memory_occupation",
    "/set_internal_state",
    "/slow_down",
    "/start_profile",
    "/update_weights_from_disk",
    "/update_weights_from_tensor",
}
UNGUARDED = {"/is_scaling_elastic_ep", "/scale_elastic_ep"}
"""Marked as the managers' too, but in a router that the middleware of 0.5.23 does not look into, so that they
count as ordinary. Without ``--elastic-ep-backend`` both say only that elastic EP is not enabled."""
CLIENTS = {
    "/",
    "/api/chat",
    "/api/generate",
    "/api/show",
    "/api/tags",
    "/classify",
    "/close_session",
    "/detokenize",
    "/encode",
    "/generate",
    "/get_hicache_l3_cache_layout",
    "/get_load",
    "/get_model_info",
    "/get_server_info",
    "/invocations",
    "/model_info",
    "/open_session",
    "/parse_function_call",
    "/ping",
    "/separate_reasoning",
    "/server_info",
    "/tokenize",
    "/v1/{any}",
    "/vertex_generate",
}
"""What the clients' key opens beside ``/v1``: a release that adds to it is to be looked at."""


@cache
def paths() -> list[dict[str, Any]]:
    """Every path and method of the engine, and who may call it; asked once."""
    done = subprocess.run(
        [str(environment()), str(Path(__file__).with_name("keys_probe.py"))],
        input=json.dumps(
            {
                "api_key": USER,
                "admin_api_key": ADMIN,
                "keys": {"user": USER, "admin": ADMIN, "wrong": "0key-of-nobody", "none": None},
            }
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: list[dict[str, Any]] = json.loads(done.stdout)
    return [one for one in answer if one["method"] != "OPTIONS"]


def opened(who: str) -> set[str]:
    """The paths that somebody may call, those that are open to all left out."""
    return {one["path"] for one in paths() if one["allowed"][who] and not one["path"].startswith(OPEN)}


def test_nobody_gets_in_without_a_key_or_with_a_wrong_one() -> None:
    assert opened("none") == opened("wrong") == set()


def test_management_is_out_of_reach_of_the_clients_key_and_within_the_managers() -> None:
    managed = {one["path"] for one in paths() if one["level"] != "normal"}
    assert managed >= MANAGEMENT
    assert not opened("user") & managed
    assert opened("admin") == managed


def test_the_clients_key_opens_what_clients_use_and_nothing_new() -> None:
    own = {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"}
    found = {"/v1/{any}" if path.startswith("/v1/") else path for path in opened("user")} - own
    assert "/v1/chat/completions" in opened("user")
    assert found - UNGUARDED <= CLIENTS

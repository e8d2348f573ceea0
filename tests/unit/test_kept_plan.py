"""The plan in a record returned by a host: it names no file of the controller's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from minimax_metal.common.errors import UserError
from minimax_metal.controller.kept_plan import LARGEST, kept_plan

PLAN: dict[str, Any] = {
    "schema": 1,
    "host": "gpu01",
    "engine": {"release": "0.5.23", "environment": "/opt/sglang/0.5.23-0123456789ab"},
    "services": [{"instance": "minimax-m2.5-1", "unit": "sglang@minimax-m2.5-1.service", "argv": ["a b"]}],
    "kernel_cache": {"key": "0123456789ab"},
    "gateway": None,
}


def record(**changed: Any) -> str:
    return json.dumps({"schema": 1, "plan": PLAN | changed})


def test_a_plan_of_ours_is_taken_as_it_is() -> None:
    assert kept_plan(record(), "gpu01") == PLAN
    assert kept_plan(record(kernel_cache=None, services=[]), "gpu01")["services"] == []


@pytest.mark.parametrize(
    "hostile",
    [
        # What roles make paths of on the controller: reports, archives of kernels.
        record(services=[{"instance": "../../../home/admin/.docker/config"}]),
        record(services=[{"instance": "/root/.config/x"}]),
        record(services=[{"instance": ".."}]),
        record(services=[{"instance": ["x"]}]),
        record(services=[{"instance": "m", "unit": "--root=/x"}]),
        record(kernel_cache={"key": "../../x"}),
        record(kernel_cache={"key": ""}),
        record(engine={"release": "0.5/../.."}),
        # What a terminal, a unit or a log takes for something else.
        record(model={"path": "/srv/m\n[Service]\nExecStart=/bin/sh"}),
        record(**{"x\x1b[2J": 1}),
        # Not records.
        record(services={"instance": "m"}),
        record(services=None),
        json.dumps({"plan": []}),
        json.dumps([PLAN]),
        "",
        "[" * 100_000,
        '{"plan": ' + " " * LARGEST + "{}}",
    ],
)
def test_what_no_plan_holds_is_refused_in_one_line(hostile: str) -> None:
    with pytest.raises(UserError, match=r"^gpu01: found .* expected .*; look at ") as caught:
        kept_plan(hostile, "gpu01")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400

"""Plans that are read back: strictly from this version's own data, leniently from a release's record."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimax_metal.common.errors import UserError
from minimax_metal.common.text import has_controls
from minimax_metal.plan.model import Plan, plain
from tests.unit.plan_helpers import decide

PLANS = {
    "M2.5": decide("H20", 4, model="M2.5"),
    "M3 with a draft": decide("B200", 8, model="M3", speculative_draft_model="MiniMax-M3-DSpark"),
    "M3.1": decide("H200", 8, model="M3.1", accept_refusals=["engine-kernels"]),
    "TLS, walls, two replicas": decide(
        "H200", 8, model="M2.5", layout="2xtp4", tls="fleet", allowed_cidrs=["10.0.0.0/8"], address="10.0.0.1"
    ),
    "refused": decide("H20", 1, model="M3"),
}
JSON = json.dumps(PLANS["TLS, walls, two replicas"].as_dict())


def written(plan: Plan) -> dict[str, Any]:
    """The plan as in JSON."""
    found: dict[str, Any] = json.loads(json.dumps(plan.as_dict()))
    return found


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_comes_back_as_it_was(name: str) -> None:
    plan = PLANS[name]
    for data in (plan.as_dict(), written(plan)):
        assert Plan.from_dict(data) == plan
        assert Plan.of_record(data) == plan
        assert written(Plan.from_dict(data)) == written(plan)


def edit(*path: str | int, value: Any = ...) -> Callable[[dict[str, Any]], None]:
    """Set a value in a plan, or remove its key."""

    def change(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        if value is ...:
            del data[path[-1]]
        else:
            data[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit("colour", value=1), "found the unknown key colour, expected only known ones"),
        (edit("engine", "colour", value=1), "found the unknown key engine.colour,"),
        (edit("services", 1, "limits", "x", value=None), "found the unknown key services[1].limits.x,"),
        (edit("cuda"), "found no key cuda, expected an object or null"),
        (edit("engine", "release"), "found no key engine.release, expected text"),
        # A key with a default is written like all others.
        (edit("services", 0, "ip_deny"), "found no key services[0].ip_deny, expected a list"),
        (edit("services", 0, "port", value="8000"), "found services[0].port '8000', expected a whole number"),
        (edit("services", 0, "port", value=8000.0), "found services[0].port 8000.0, expected a whole number"),
        (edit("gpus", "count", value=True), "found gpus.count True, expected a whole number"),
        (edit("gpus", "nvswitch", value=1), "found gpus.nvswitch 1, expected true or false"),
        (edit("gpus", "indices", value=[0, "1"]), "found gpus.indices[1] '1', expected a whole number"),
        (
            edit("capacity", "mem_fraction_static", value=float("nan")),
            "found capacity.mem_fraction_static nan,",
        ),
        (
            edit("services", 0, "environment", "A", value=1),
            "found services[0].environment.A 1, expected text",
        ),
        (edit("services", value={}), "found services {}, expected a list"),
        (edit("services", 0, "argv", value="--port"), "found services[0].argv '--port', expected a list"),
        (edit("model", value=[]), "found model [], expected an object or null"),
        (
            edit("model", "max_output", value="x"),
            "found model.max_output 'x', expected a whole number or null",
        ),
        (edit("platform", value="x\n\x1b[1m" * 90), "found platform 'x"),
        (
            edit("gpus", "interconnect", "all_reduce_source", "x", value="y"),
            "found the key 'x' in gpus.inter",
        ),
        (edit("schema"), "found no key schema, expected 1"),
        (edit("schema", value=2), "found schema that differs from the rest of it, expected 1"),
        (edit("fits", value=False), "found fits that differs from the rest of it, expected True"),
        (edit("service", "port", value=1), "found service that differs from the rest of it"),
    ],
)
def test_what_this_version_did_not_write_is_refused_in_one_line_that_names_the_key(
    change: Callable[[dict[str, Any]], None], words: str
) -> None:
    data = json.loads(JSON)
    change(data)
    with pytest.raises(UserError) as caught:
        Plan.from_dict(data)
    said = str(caught.value)
    assert said.startswith(f"plan: {words}")
    assert said.endswith("; pass a plan made by this version")
    assert not has_controls(said)
    assert len(said) < 300


@pytest.mark.parametrize("value", [None, [], "plan", 7])
def test_what_is_not_an_object_is_not_a_plan(value: object) -> None:
    with pytest.raises(UserError, match=r"^plan: found .*, expected an object;"):
        Plan.from_dict(value)
    assert Plan.of_record(value).services == ()


def test_a_record_of_an_older_version_lacks_keys_and_one_of_a_newer_has_more() -> None:
    data = json.loads(JSON)
    for part, keys in {"engine": ("uv_environment", "lock_sha256"), "model": ("max_output", "bytes")}.items():
        for key in keys:
            del data[part][key]
    for key in ("host_tools", "layouts", "limits"):
        del data[key]
    for service in data["services"]:
        del service["limits"], service["proves"], service["nofile"]
    data["orbit"] = data["model"]["orbit"] = {"x": [1]}
    found, whole = Plan.of_record(data), PLANS["TLS, walls, two replicas"]
    assert found.engine is not None
    assert found.model is not None
    assert whole.engine is not None
    assert (found.engine.environment, found.engine.uv_environment) == (whole.engine.environment, {})
    assert (found.model.max_output, found.model.bytes) == (None, 0)
    assert (found.host_tools, found.layouts, found.limits) == (None, (), None)
    assert [one.unit for one in found.services] == [one.unit for one in whole.services]
    assert [one.argv for one in found.services] == [one.argv for one in whole.services]
    assert not found.services[0].proves


def test_a_damaged_record_is_read_as_far_as_it_goes() -> None:
    data = json.loads(JSON)
    data["model"]["path"] = 7
    data["engine"] = []
    data["services"] = [
        None,
        {"port": 1},
        {"unit": 3},
        {**data["services"][0], "port": "x", "argv": ["a", 1]},
    ]
    found = Plan.of_record(data)
    assert found.model is not None
    assert (found.model.path, found.model.name) == ("", "MiniMax-M2.5")
    assert found.engine is None
    (service,) = found.services
    assert (service.port, service.argv) == (0, ("a",))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container of a document with each of its keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [one for key, item in items for one in [(value, key), *places(item)]]


@given(st.data(), VALUES)
def test_whatever_stands_anywhere_a_record_is_read_and_a_plan_is_the_same_or_refused(
    data: st.DataObject, value: Any
) -> None:
    document = copy.deepcopy(json.loads(JSON))
    container, key = data.draw(st.sampled_from(places(document)))
    container[key] = value
    assert isinstance(Plan.of_record(document), Plan)
    assert plain(Plan.from_dict(Plan.of_record(document).as_dict())) == plain(Plan.of_record(document))
    try:
        found: Plan | UserError = Plan.from_dict(document)
    except UserError as error:
        found = error
    if isinstance(found, Plan):
        assert found.as_dict() == document
    else:
        assert not has_controls(str(found))


def test_a_host_that_reads_plans_loads_no_decisions() -> None:
    code = (
        "import sys; import minimax_metal.host.status.commands, minimax_metal.host.releases.commands; "
        "print(sorted({'minimax_metal.plan.core', 'minimax_metal.catalog'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_of_the_room_is_loaded_when_it_is_used() -> None:
    from minimax_metal import plan as room

    assert room.__all__ == sorted(room._PLACES)
    assert all(getattr(room, name) for name in room.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = room.nothing

"""A host's own status, how a controller presents it, and its drift from the inventory."""

from __future__ import annotations

import hashlib
import json
import socket
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimax_metal.controller.adapter import plan_from_variables
from minimax_metal.controller.ansible_programs import read_answer
from minimax_metal.controller.status import commands as status
from minimax_metal.controller.status import drift
from minimax_metal.controller.status.drift import drift_of, facts_of, planned
from minimax_metal.host.releases.record import Records, digest_of
from minimax_metal.host.status import commands as on_host
from minimax_metal.host.status import look as here
from minimax_metal.host.status.drift import local_drift
from minimax_metal.plan.model import FirewallPlan, Plan
from tests.unit.plan_helpers import raw_host

SHOWN = """\
Id=sglang@minimax-m2.5.service
LoadState=loaded
ActiveState=active
SubState=running
StatusText=ready: engine running for 3 min, 2 requests running, 1 waiting
UnitFileState=enabled
NRestarts=2
ActiveEnterTimestampMonotonic=100000000

Id=sglang@old.service
LoadState=loaded
ActiveState=failed
StatusText=
UnitFileState=disabled
NRestarts=0
ActiveEnterTimestampMonotonic=0
"""
VARIABLES = {"metal_model": "MiniMax-M2.5"}
NO_ROUTE = "ssh: connect to host h port 22: No route to host"


def applied_plan(**more: Any) -> dict[str, Any]:
    plan = plan_from_variables("gpu01", {**VARIABLES, **more}, raw_host(driver="580.105.08"))
    assert plan["fits"], plan["refusals"]
    shown: dict[str, Any] = json.loads(json.dumps(plan))
    return shown


def looked(tmp_path: Path, plan: dict[str, Any] | None, shown: str = SHOWN, **figures: Any) -> dict[str, Any]:
    if plan is not None:
        Records(tmp_path / "releases").record(plan)
    load = {"answers": True, "running": 2, "waiting": 1, **figures}
    found = here.look(tmp_path, tmp_path / "releases", lambda *_: shown, lambda _: load)
    raw = raw_host()
    host = {"driver": "580.105.08", "environment_exists": True}
    host |= {name: raw.get(name) for name in ("cpu_count", "memory_total_bytes")}
    told: dict[str, Any] = json.loads(json.dumps(found | host))
    return told


def test_a_host_says_what_it_serves_and_under_what_load(tmp_path: Path) -> None:
    found = looked(tmp_path, applied_plan())
    ready, old = found["instances"]
    assert (ready["health"], ready["running"], ready["waiting"], ready["restarts"]) == ("ready", 2, 1, 2)
    assert ready["recorded"]
    assert ready["enabled"]
    assert (old["health"], old["recorded"]) == ("failed", False)
    assert found["release"]["number"] == 1
    assert local_drift(found) == ["old is not part of the release"]


def test_a_ready_engine_that_does_not_answer_is_silent(tmp_path: Path) -> None:
    found = looked(tmp_path, applied_plan(), answers=False, running=None)
    assert found["instances"][0]["health"] == "silent"
    assert not on_host.serves({"state": "known", **found})


@pytest.mark.parametrize(
    ("active", "text", "health"),
    [
        ("active", "ready: engine running for 1 s", "ready"),
        ("active", "troubled: no token", "troubled"),
        ("active", "", "ready"),
        ("activating", "starting: loading weights, 41 %", "starting"),
        ("deactivating", "stopping: requests may finish", "stopping"),
        ("failed", "failed: out of memory", "failed"),
        ("inactive", "", "stopped"),
    ],
)
def test_health_in_one_word(active: str, text: str, health: str) -> None:
    assert here.health_of(active, text) == health


@pytest.mark.parametrize("gpu", ["H20", "H200", "H100"])
@pytest.mark.parametrize("count", [4, 8])
def test_a_plan_made_again_from_its_own_record_is_the_same_release(gpu: str, count: int) -> None:
    raw = raw_host(gpu, count, driver="580.105.08")
    raw |= {"cpu_count": 96, "memory_total_bytes": 2 << 40, "packages": {"nvidia-open": "580.105.08-1"}}
    plan = plan_from_variables("gpu01", VARIABLES, raw)
    if not plan["fits"]:
        pytest.skip(f"{count} x {gpu} can't serve it: {plan['refusals'][0]['code']}")
    here_now = {"cpu_count": 96, "memory_total_bytes": 2 << 40, "driver": "580.105.08"}
    again = planned("gpu01", VARIABLES, facts_of(Plan.of_record(plan), here_now)).as_dict()
    assert digest_of(again) == digest_of(plan)


def test_no_drift_where_nothing_changed(tmp_path: Path) -> None:
    found = looked(tmp_path, applied_plan())
    assert drift_of("gpu01", VARIABLES, found) == []


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"metal_engine_release": "0.5.16"}, "engine 0.5.23 -> 0.5.16"),
        ({"metal_port": 9000}, "port of minimax-m2.5 8000 -> 9000"),
        ({"metal_engine_extra_args": ["--log-level", "debug"]}, "+[--log-level debug]"),
        ({"metal_model": "MiniMax-M2.1"}, "instance minimax-m2.1 will be added"),
        ({"metal_allowed_cidrs": ["10.0.0.0/8"]}, "firewall off -> on"),
        ({"metal_prot": 1}, "did you mean metal_port?"),
        ({"metal_model": "MiniMax-M3"}, "refused now"),
    ],
)
def test_drift_says_what_the_inventory_wants_now(
    tmp_path: Path, variables: dict[str, Any], words: str
) -> None:
    found = looked(tmp_path, applied_plan())
    assert words in "; ".join(drift_of("gpu01", {**VARIABLES, **variables}, found))


def test_a_host_without_a_release_says_so(tmp_path: Path) -> None:
    found = looked(tmp_path, None, shown="")
    assert local_drift(found) == ["no release is recorded"]
    assert not on_host.serves({"state": "known", **found})


def test_what_ansible_answers_is_told_apart(tmp_path: Path) -> None:
    whole = json.dumps(looked(tmp_path, applied_plan()))
    assert status.answer_of("a", {"rc": 0, "stdout": f"Last login: today\n{whole}\n"})["state"] == "known"
    away = status.answer_of("a", {"unreachable": True, "msg": NO_ROUTE})
    assert (away["state"], away["why"]) == ("unreachable", "no route to h (No route to host)")
    assert "ip route get h" in away["remedy"]
    missing = {"rc": 127, "stdout": "", "stderr": "bash: /usr/local/bin/metal: No such file or directory"}
    assert status.answer_of("a", missing)["state"] == "bare"
    older = {"rc": 2, "stdout": "", "stderr": "metal: unknown verb 'status'"}
    assert status.answer_of("a", older)["state"] == "unclear"


def test_lines_of_a_fleet_mark_who_does_not_answer(tmp_path: Path) -> None:
    whole = {"rc": 0, "stdout": json.dumps(looked(tmp_path, applied_plan()))}
    lines = status.lines_of({"gpu01": whole, "gpu02": {"unreachable": True, "msg": NO_ROUTE}})
    assert any(
        "gpu01" in line and "MiniMaxAI/MiniMax-M2.5 fp8" in line and "2 + 1 waiting" in line for line in lines
    )
    assert any("gpu02" in line and "unreachable" in line for line in lines)
    assert any(line.startswith("gpu02: ") and "ip route get h" in line for line in lines)
    assert lines[-1].startswith("2 hosts: 1 failed, 1 unreachable")


def test_the_exit_status_is_that_of_the_worst_host(tmp_path: Path) -> None:
    serving = {"state": "known", **looked(tmp_path, applied_plan(), shown=SHOWN.partition("\n\n")[0])}
    assert on_host.exit_status([serving]) == 0
    assert on_host.exit_status([serving, {"state": "bare"}]) == 1
    assert on_host.exit_status([serving, {"state": "bare"}, {"state": "unreachable"}]) == 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def changed(answer: dict[str, Any], path: list[int], value: Any) -> Any:
    """The answer with one part of it, found by its path, replaced."""
    if not path or not isinstance(answer, dict | list) or not answer:
        return value
    keys = sorted(answer) if isinstance(answer, dict) else list(range(len(answer)))
    key = keys[path[0] % len(keys)]
    copy: Any = dict(answer) if isinstance(answer, dict) else list(answer)
    copy[key] = changed(copy[key], path[1:], value)
    return copy


@settings(max_examples=400, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=5), JSON)
def test_no_answer_of_one_host_spoils_the_status_of_another(path: list[int], value: Any) -> None:
    """Wrong types anywhere in it: before, such an answer was a traceback for all."""
    spoiled = {"rc": 0, "stdout": json.dumps(changed(WHOLE, path, value))}
    lines = status.lines_of({"gpu01": {"rc": 0, "stdout": json.dumps(WHOLE)}, "gpu02": spoiled})
    assert any(line.startswith("gpu01") and "MiniMaxAI/MiniMax-M2.5" in line for line in lines)
    host = status.answer_of("gpu02", spoiled)
    on_host.with_drift(host, partial(status._drift, VARIABLES))
    json.dumps(host)
    on_host.exit_status([host])


@pytest.mark.parametrize(
    "answer",
    [
        {"stdout": 7}, {"stdout": "{" * 100_000}, {"stdout": "[" * 100_000 + "{"},
        {"stdout": None, "rc": None},
        {"stdout": '{"schema": 1, "instances": [' + "0," * 50_000 + "0]}"}, {"msg": ["x"], "stderr": {}},
        {"rc": 124, "stdout": ""}, {"failed": True, "unreadable": "an answer that is not JSON"},
        {"stdout": '{"schema": 1, "release": [1]}'},
        {"stdout": '{"schema": 1, "release": {"": null}}'},
        {"stdout": '{"schema": 1, "cpu_count": 1e999}'},
    ],
)  # fmt: skip
def test_such_an_answer_is_unreadable_and_nothing_more(answer: dict[str, Any]) -> None:
    host = status.answer_of("gpu01", answer)
    on_host.with_drift(host, partial(status._drift, VARIABLES))
    assert host["state"] in {"unreadable", "unclear", "known"}
    assert status.lines_of({"gpu01": answer})


def test_files_of_answers_are_read_within_bounds(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xff\xfe{")
    (tmp_path / "list").write_text("[1]")
    (tmp_path / "deep").write_text("[" * 200_000)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "directory").mkdir()
    for name in ("text", "list", "deep", "huge", "directory", "absent"):
        assert "unreadable" in read_answer(tmp_path / name), name


def test_terminal_escapes_of_a_host_never_reach_the_terminal() -> None:
    escapes = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"
    spoiled = json.loads(json.dumps(WHOLE))
    spoiled["instances"][0]["status"] = f"troubled: {escapes}"
    spoiled["instances"][0]["health"] = f"troubled{escapes}"
    spoiled["applied"]["model"]["served_name"] += escapes
    spoiled["lock"] = {"user": escapes, "controller": "c", "time": "t"}
    lines = status.lines_of(
        {"gpu01": {"stdout": json.dumps(spoiled)}, "gpu02": {"rc": 1, "stdout": escapes + "no"},
         "gpu03": {"unreachable": True, "msg": escapes + "ssh: dragons"}}
    )  # fmt: skip
    shown = "\n".join(lines)
    assert not any(mark in shown for mark in ("\x1b", "\x07", "\x9b", "\u202e")), shown
    assert "owned" not in shown


def _whole() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        return looked(Path(directory), applied_plan())


WHOLE = _whole()


def test_a_table_of_rules_that_was_flushed_is_drift(tmp_path: Path) -> None:
    """As sent by the unit on a host over its socket, for a user that may not query nft."""
    rules, loaded, path = tmp_path / "firewall.nft", tmp_path / "loaded", tmp_path / "seen"
    listing = '{"nftables": [{"rule": {"chain": "input", "handle": 3, "expr": []}}]}'
    rules.write_text("rules")
    said = listing.replace("3", "9")
    with socket.create_server(str(path), family=socket.AF_UNIX) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(said.encode())

        Thread(target=answer, daemon=True).start()

        def state() -> list[str]:
            return here.firewall_of(rules, loaded, str(path))

        assert state() == ["no record that the table was loaded"]
        loaded.write_text(f"{hashlib.sha256(b'rules').hexdigest()}  x\n{listing}\n")
        assert state() == []
        said = '{"nftables": []}'
        assert state() == ["rules of input: 1 gone, 0 added"]
        said = "Error: No such file or directory; did you mean ...?"
        assert state() == ["the table is gone"]
        rules.write_text("other rules")
        assert state() == ["the table in force is not that of the rules' file"]
        rules.write_text("rules")
        server.shutdown(socket.SHUT_RDWR)
    assert state()[0].startswith("can't be read: ")
    told = {"release": {"number": 1}, "firewall_differences": ["the table is gone"]}
    assert "firewall: the table is gone" in local_drift(told)


def test_only_a_host_with_a_firewall_is_asked_for_its_rules(tmp_path: Path) -> None:
    def asked(plan: dict[str, Any], folder: str) -> list[str]:
        looked(tmp_path / folder, plan)
        one = tmp_path / folder
        found = here.look(
            one, one / "releases", lambda *_: SHOWN, lambda _: {"answers": True}, lambda: ["gone"]
        )
        return list(found["firewall_differences"])

    assert asked(applied_plan(), "without") == []
    assert asked(applied_plan(metal_allowed_cidrs=["10.0.0.0/8"]), "with") == ["gone"]


def test_other_networks_of_the_firewall_are_drift() -> None:
    wall = Plan.of_record({"firewall": {"ipv4": ["10.0.0.0/8"], "ipv6": [], "ports": [8000]}})
    assert drift.differences(wall, replace(wall, firewall=FirewallPlan(("10.0.0.0/8",), (), (8000,)))) == []
    assert drift.differences(wall, replace(wall, firewall=None)) == ["firewall on -> off"]
    other = replace(wall, firewall=FirewallPlan(("10.9.0.0/16",), (), (8000, 8001)))
    assert drift.differences(wall, other) == [
        "networks of the firewall: -[10.0.0.0/8] +[10.9.0.0/16]",
        "ports of the firewall: +[8001]",
    ]


def test_what_a_host_says_is_not_read_as_markup_of_the_terminal() -> None:
    """Rich takes ``[/x]`` in a text for the end of a style: one host's driver ended the table of all."""
    said = {
        "schema": here.SCHEMA,
        "driver": "[/x]",
        "release": {"number": "[/a]", "digest": "[/b]"},
        "applied": {
            "model": {"served_name": "[bold]M[link=http://evil]x", "format": "[/f]"},
            "engine": {"release": "[/y]"},
        },
        "instances": [{"instance": "[/z]", "unit": "sglang@m.service", "health": "[/h]", "status": "[/s]"}]
        * 2,
    }
    answer = {"stdout": json.dumps(said)}
    lines = "\n".join(status.lines_of({"gpu[/01]": answer, "gpu02": answer}))
    for text in ("[/x]", "[/a]", "[bold]M[link=http://evil]x [/f]", "[/y]", "gpu[/01] [/z]", "gpu02"):
        assert text in lines


def test_a_record_of_an_older_version_is_compared_as_far_as_it_says(tmp_path: Path) -> None:
    """Missing parts are None or empty there, and nothing else differs."""
    applied = applied_plan()
    for part, key in (("parallelism", "replicas"), ("engine", "digest"), ("model", "max_output")):
        del applied[part][key]
    for service in applied["services"]:
        del service["start_timeout_seconds"], service["limits"]
    del applied["tls"]
    found = drift_of("gpu01", VARIABLES, looked(tmp_path, applied))
    assert [one.rpartition(" -> ")[0] for one in found] == [
        "engine packages none",
        "replicas none",
        "start timeout of minimax-m2.5 0",
    ]

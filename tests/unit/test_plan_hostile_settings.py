"""Settings that write directives, or that no machine can satisfy, are refused; secrets are never shown."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from minimax_metal.common.systemd import command_lines
from minimax_metal.controller.adapter import plan_from_variables
from minimax_metal.plan.settings import SETTINGS, Settings, SettingsError
from minimax_metal.plan.settings.role_values import role_problems
from minimax_metal.plan.settings.values import ITEMS, TEXT
from tests.unit.plan_helpers import codes, decide, raw_host

REPOSITORY = Path(__file__).parents[2]
CONTROLS = ["\n", "\r", "\0", "\x1b[31m", "\x7f", "\x85", "\u2028", "\u202e", "\v"]
HOSTILE = "x\nExecStartPre=/bin/sh -c id"


def value_of(kind: str, text: str) -> Any:
    return {
        "list": [text],
        "words": [text],
        "mapping": {"NAME": text},
        "path": "/srv/" + text,
        "packages": [{"path": text, "sha256": "0" * 64}],
    }.get(kind, text)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
@pytest.mark.parametrize("control", CONTROLS)
def test_no_setting_takes_a_control_character(setting: Any, control: str) -> None:
    # A newline in a text became a directive of the unit before.
    with pytest.raises(SettingsError) as caught:
        Settings.from_variables("gpu01", {setting.name: value_of(setting.kind, f"a{control}b")})
    text = str(caught.value)
    assert setting.name in text
    assert "\n" not in text
    assert control not in text


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_no_setting_takes_an_endless_value(setting: Any) -> None:
    for value in (
        value_of(setting.kind, "a" * 100_000),
        [f"a{n}" for n in range(10_000)],
        {f"A{n}": "x" for n in range(10_000)},
    ):
        with pytest.raises(SettingsError) as caught:
            Settings.from_variables("gpu01", {setting.name: value})
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", [one.name for one in SETTINGS if one.kind == "int"])
@pytest.mark.parametrize(
    "value", [-1, 10**14, "9" * 5000, float("inf"), float("nan"), 1e300, "1_0", "٣", "0x10"]
)
def test_every_number_has_bounds(name: str, value: Any) -> None:
    variables = {"metal_model": "M2.5", name: value}
    plan = plan_from_variables("gpu01", variables, raw_host("H200", 8, driver="580.126.20"))
    assert not plan["fits"]
    assert any(name in one["found"] for one in plan["refusals"])


@pytest.mark.parametrize("value", ["nan", float("inf"), "-inf", -0.1, 1, 1.5, "1e400"])
def test_a_share_is_between_none_and_all(value: Any) -> None:
    assert "mem-fraction" in codes(decide("H200", 8, model="M2.5", mem_fraction_static=value))


@pytest.mark.parametrize("path", ["/srv/../etc", "/..", "/./x", "//", "srv"])
def test_a_directory_is_where_it_says(path: str) -> None:
    with pytest.raises(SettingsError):
        Settings.from_variables("gpu01", {"metal_weights_directory": path})


def test_values_of_the_environment_are_never_shown() -> None:
    for value in ("hunter2\nX=Y", ["hunter2"], "hunter2" * 5000):
        with pytest.raises(SettingsError) as caught:
            Settings.from_variables("gpu01", {"metal_engine_extra_environment": {"TOKEN": value}})
        assert "hunter2" not in str(caught.value)
        assert "metal_engine_extra_environment.TOKEN" in str(caught.value)
    with pytest.raises(SettingsError):
        Settings.from_variables("gpu01", {"metal_engine_extra_environment": {"A B": "x"}})
    with pytest.raises(SettingsError) as caught:
        Settings.from_variables("gpu01", {"metal_engine_extra_environment": "TOKEN=hunter2"})
    assert "hunter2" not in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([one.name for one in SETTINGS]) | st.text(max_size=12), VALUES, max_size=5
    )
)
def test_any_variables_make_a_plan_or_a_refusal(variables: dict[str, Any]) -> None:
    variables.pop("metal_catalog_overlay", None)
    variables.pop("metal_engine_extra_packages", None)
    plan = plan_from_variables("gpu01", variables, None)
    assert not plan["fits"]
    assert all("\n" not in one["found"] for one in plan["refusals"])
    json.dumps(plan)


def test_variables_of_roles_are_held_to_the_same() -> None:
    values = {
        "a_key": "hunter2\nhunter2",
        "b_list": ["x", {"y": HOSTILE}],
        "c_number": float("nan"),
        "d_number": 10**30,
        "e_long": "x" * 100_000,
        "f_many": list(range(ITEMS + 1)),
        "g_fine": {"NoNewPrivileges": "yes", "n": 1, "f": 0.5, "t": "x" * TEXT, "none": None, "b": True},
    }
    problems = role_problems(values)
    assert [one.found.partition(":")[0] for one in problems] == [
        "a_key", "b_list", "c_number", "d_number", "e_long", "f_many",
    ]  # fmt: skip
    assert "hunter2" not in str(problems)
    assert "U+000A, character 8" in problems[0].found
    plan = plan_from_variables("gpu01", {"metal_model": "M2.5"}, None, role_values=values)
    assert [one["code"] for one in plan["refusals"]] == ["variable-type"] * 6


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sglang_gateway_port", 0),
        ("sglang_gateway_port", "70000"),
        ("sglang_gateway_metrics_port", -1),
        ("sglang_gateway_request_timeout_seconds", 10**12),
        ("model_weights_stall_seconds", -1),
        ("model_weights_workers", 10**6),
        ("model_weights_rate_bytes_per_second", -5),
        ("post_check_long_prompt_share", 1.5),
        ("sglang_gateway_virtual_router_id", 256),
        ("post_check_long_prompt_share", float("nan")),
    ],
)
def test_numbers_of_roles_have_bounds(name: str, value: Any) -> None:
    (problem,) = role_problems({name: value})
    assert problem.found.startswith(f"{name}: ")


def test_the_roles_own_defaults_are_within_them() -> None:
    defaults: dict[str, Any] = {}
    for path in REPOSITORY.glob("roles/*/defaults/main.yml"):
        defaults |= yaml.safe_load(path.read_text()) or {}
    numbers = {name: value for name, value in defaults.items() if isinstance(value, (int, float))}
    assert len(numbers) > 20
    assert role_problems(numbers) == []


def test_a_gateway_is_refused_as_a_gpu_host_is() -> None:
    from minimax_metal.controller.adapter import gateway_from_variables

    values = {"sglang_gateway_port": 70_000, "sglang_gateway_policy": HOSTILE}
    made = gateway_from_variables("gw01", {}, raw_host("H20", 4), {}, {}, (), values)
    assert [one["found"].partition(":")[0] for one in made["refusals"][:2]] == sorted(
        values, key=["sglang_gateway_policy", "sglang_gateway_port"].index
    )


def test_all_that_settings_alone_tell_is_said_at_once() -> None:
    # A typo hid an unknown variable of a role and a missing model before.
    variables = {"metal_prot": 1, "metal_tp_size": 0}
    plan = plan_from_variables("gpu01", variables, None, ["nvidia_driver_mange"])
    found = {one["found"]: one["remedy"] for one in plan["refusals"]}
    assert found["variable metal_prot"] == "did you mean metal_port?"
    assert found["variable nvidia_driver_mange"] == "did you mean nvidia_driver_manage?"
    assert "no metal_model" in found
    assert "metal_tp_size 0" in found


def test_the_preflight_refuses_hostile_variables_of_roles(tmp_path: Path) -> None:
    variables = {
        "metal_model": "MiniMax-M2.5",
        "host_tools_requirements": HOSTILE,
        "sglang_gateway_api_key": "{{ known_only_later }}",
        "sglang_service_api_key": "{{ 'hunter2\nhunter2' }}",
    }
    host = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
    }
    inventory = {"gpu_hosts": {"vars": variables, "hosts": {"gpu-a": host}}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "-i", str(tmp_path / "hosts.yml"), "playbooks/preflight.yml",
        ],
        cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2
    assert "host_tools_requirements: a control character (U+000A, character 2)" in said
    assert "sglang_service_api_key: a control character (U+000A, character 8)" in said
    assert "hunter2 " not in said.replace("hunter2\\n", "")
    assert "sglang_gateway_api_key:" not in said


SECRET = re.compile(r"(?:_key|_auth|_token|_secret|_password)$")


def test_every_secret_of_a_role_is_kept_out_of_logs() -> None:
    named = set()
    for path in REPOSITORY.glob("roles/*/meta/argument_specs.yml"):
        for entry in yaml.safe_load(path.read_text())["argument_specs"].values():
            for name, option in (entry.get("options") or {}).items():
                # Of a file or a path the name is no secret.
                about = str(option.get("description", ""))
                if SECRET.search(name) and option.get("type") == "str" and not about.startswith("File"):
                    if "Private key of" in about or "Certificate" in about:
                        continue
                    named.add(name)
                    assert option.get("no_log") is True, name
    assert {"sglang_gateway_api_key", "sglang_gateway_admin_key", "sglang_gateway_virtual_auth"} <= named
    assert {"sglang_service_api_key", "sglang_service_admin_api_key"} <= named


def test_one_switch_is_behind_every_no_log() -> None:
    """As in linux-system-roles, whose roles have SECURE_LOGGING: a user debugs without editing a role."""
    switch = "{{ metal_secure_logging | default(true) | bool }}"
    count = 0
    for path in [*REPOSITORY.glob("roles/*/tasks/**/*.yml"), *REPOSITORY.glob("playbooks/**/*.yml"),
                 *REPOSITORY.glob("roles/*/handlers/*.yml")]:  # fmt: skip
        for line in path.read_text().splitlines():
            if line.strip().startswith("no_log:"):
                count += 1
                assert line.split("no_log:")[1].strip().strip('"') == switch, path
    # Most secrets are entries of a role's list, which shows none (tests/unit/test_owned_action.py).
    assert count


WORDS = st.text(st.characters(blacklist_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=12)


@settings(deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=4))
def test_a_command_of_a_unit_has_one_line_for_its_words(words: list[str]) -> None:
    assert all("\n" not in line for line in command_lines(["/bin/x", *words]))

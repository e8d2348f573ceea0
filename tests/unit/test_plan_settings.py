"""Variables users write: known, typed, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from minimax_metal.controller.adapter import plan_from_variables
from minimax_metal.plan.settings import PLAYBOOK_SETTINGS, SETTINGS, Settings, SettingsError


def test_defaults_are_what_the_table_says() -> None:
    settings = Settings.from_variables("gpu01", {})
    for setting in SETTINGS:
        value = getattr(settings, setting.attribute)
        assert value == setting.default or value == (), setting.name
        assert setting.meaning.endswith(".")


def test_every_field_has_a_variable() -> None:
    from dataclasses import fields

    names = {field.name for field in fields(Settings)} - {
        "host", "given", "recipe", "draft", "unknown_role_variables",
    }  # fmt: skip
    assert names == {setting.attribute for setting in SETTINGS}
    assert len(names) == len(SETTINGS)


def test_only_the_prefix_counts() -> None:
    variables = {"metal": 1, "my_metal_model": 2, "ansible_host": 3, "metal_plan": {}, "metal_model": "M3"}
    assert Settings.from_variables("gpu01", variables).model == "M3"
    assert not {one.name for one in PLAYBOOK_SETTINGS} & {setting.name for setting in SETTINGS}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("metal_modle", "metal_model"),
        ("metal_prot", "metal_port"),
        ("metal_weight_source", "metal_weights_source"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_variables("gpu01", {name: 1})
    assert f"did you mean {nearest}?" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metal_port", "http"),
        ("metal_port", 80.5),
        ("metal_port", True),
        ("metal_mem_fraction_static", "most"),
        ("metal_model", ["a"]),
        ("metal_weights_directory", "models"),
        ("metal_weights_directory", "/"),
        ("metal_weights_source", {"a": 1}),
        ("metal_open_modules", "maybe"),
        ("metal_engine_extra_args", "--x 'y"),
        ("metal_engine_extra_environment", ["A=B"]),
        ("metal_engine_extra_packages", ["/not/hashed.whl"]),
        *(
            # uv and pip build a path that is not a wheel, --only-binary or not, with a backend of its own.
            ("metal_engine_extra_packages", [{"path": path, "sha256": "a" * 64}])
            for path in (
                "/a/x-1.tar.gz",
                "/a/x-1.zip",
                "/a/x",
                "/a/x.whl/setup.py",
                "/a/-r.whl",
                "/a/.whl",
                "/a/x.whl.tar.gz",
                "/a/x.WHL",
                "/a/x y.whl",
            )
        ),
    ],
)
def test_a_wrong_type_is_refused_with_what_was_found(name: str, value: object) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_variables("gpu01", {name: value})
    assert name in str(caught.value)
    assert "expected" in str(caught.value)


def test_ansible_writes_numbers_as_text() -> None:
    settings = Settings.from_variables(
        "gpu01",
        {
            "metal_port": "9000",
            "metal_mem_fraction_static": "0.8",
            "metal_open_modules": "yes",
            "metal_driver_branch": 590,
            "metal_weights_source": "modelscope",
            "metal_engine_extra_args": "--a 'b c'",
            "metal_weights_directory": "/data/models/",
            "metal_tp_size": None,
        },
    )
    assert (settings.port, settings.mem_fraction_static, settings.open_modules) == (9000, 0.8, True)
    assert settings.driver_branch == "590"
    assert settings.weights_source == ("modelscope",)
    assert settings.engine_extra_args == ("--a", "b c")
    assert settings.weights_directory == "/data/models"


def test_files_are_read_by_the_adapter(tmp_path: Path) -> None:
    wheel = tmp_path / "x-1-py3-none-any.whl"
    wheel.write_bytes(b"x")
    variables = {"metal_model": "M2.5", "metal_engine_extra_packages": [str(wheel)]}
    packages = plan_from_variables("gpu01", variables, None)["engine"]["extra_packages"]
    assert packages[0]["path"] == str(wheel)
    assert packages[0]["sha256"].startswith("2d711642b726b044")
    wheel.write_bytes(b"yy")
    again = plan_from_variables("gpu01", variables, None)["engine"]["extra_packages"]
    assert again[0]["sha256"] != packages[0]["sha256"]


@pytest.mark.parametrize("name", ["metal_engine_extra_packages", "metal_catalog_overlay"])
def test_files_that_are_not_there_are_one_line(name: str) -> None:
    (refusal,) = plan_from_variables("gpu01", {name: "/nowhere/x"}, None)["refusals"]
    assert refusal["code"] == "file"
    assert name in refusal["found"]
    assert "No such file" in refusal["found"]


def test_an_overlay_that_is_no_yaml_is_one_line(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yml"
    for text in ("{", "- a", "models: {MiniMax-M2.5: 3}"):
        overlay.write_text(text)
        variables = {"metal_catalog_overlay": [str(overlay)]}
        (refusal,) = plan_from_variables("gpu01", variables, None)["refusals"]
        assert refusal["code"] == "file"
        assert "\n" not in refusal["found"]


def test_every_wrong_variable_is_named_at_once() -> None:
    plan = plan_from_variables(
        "gpu01", {"metal_modle": "M3", "metal_port": "http", "metal_model": "M3"}, None
    )
    assert [one["code"] for one in plan["refusals"]] == ["variable-unknown", "variable-type"]
    assert not plan["fits"]
    assert "metal_modle" in plan["refusals"][0]["found"]
    assert plan["refusals"][0]["remedy"] == "did you mean metal_model?"


def test_a_variable_that_begins_like_a_roles_is_refused_with_the_nearest() -> None:
    names = ["nvidia_driver_mange", "nvidia_driver_manage", "nvidia_drivers", "host_tools", "ansible_host"]
    plan = plan_from_variables("gpu01", {"metal_model": "M2.5"}, None, names)
    unknown = [one for one in plan["refusals"] if one["code"] == "variable-unknown"]
    assert [one["found"] for one in unknown] == ["variable nvidia_driver_mange"]
    assert unknown[0]["remedy"] == "did you mean nvidia_driver_manage?"


def test_somebody_elses_variable_can_be_let_through() -> None:
    variables = {"metal_model": "M2.5", "metal_accept_refusals": ["variable-unknown"]}
    plan = plan_from_variables("gpu01", variables, None, ["nvidia_driver_branch"])
    assert "variable-unknown" not in [one["code"] for one in plan["refusals"]]
    assert [one["code"] for one in plan["accepted"]] == ["variable-unknown"]

"""Every setting is declared once; files generated from the declarations are up to date."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from minimax_metal.controller.adapter import plan_from_variables, setting_lines
from minimax_metal.plan.settings import PLAYBOOK_SETTINGS, SETTINGS, Settings
from minimax_metal.plan.settings.declared import Setting
from minimax_metal.plan.settings.lookup import setting_value
from minimax_metal.plan.settings.reading import read_value, refuse_value
from minimax_metal.plan.settings.role_values import role_problems
from minimax_metal.plan.settings.roles import ROLE_SETTINGS, ROLES
from tools import settings as written

REPOSITORY = Path(__file__).parents[2]
EVERY = (*SETTINGS, *PLAYBOOK_SETTINGS, *ROLE_SETTINGS.values())


def test_what_is_written_from_the_declarations_is_not_stale() -> None:
    assert written.stale(REPOSITORY) == [], "run make settings"


def test_a_changed_file_is_named_and_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(written, "ROOT", tmp_path)
    assert written.main([]) == 0
    changed = tmp_path / "roles/host_tuning/defaults/main.yml"
    changed.write_text(changed.read_text().replace("swappiness: 1", "swappiness: 60"))
    capsys.readouterr()
    assert written.main(["--check"]) == 1
    assert capsys.readouterr().err.startswith("roles/host_tuning/defaults/main.yml differs")
    assert "swappiness: 60" in changed.read_text()
    assert written.main([]) == 0
    assert written.main(["--check"]) == 0


def test_every_role_is_declared() -> None:
    assert {path.parent.name for path in REPOSITORY.glob("roles/*/tasks")} == {role.name for role in ROLES}


@pytest.mark.parametrize("setting", EVERY, ids=lambda setting: setting.name)
def test_a_meaning_is_a_line_that_people_read(setting: Setting) -> None:
    assert setting.meaning.endswith(".")
    assert not setting.meaning.startswith(("Whether", "What ", "Who "))
    assert not {"\n", "|", "  "} & set(setting.meaning)
    assert len(setting.meaning) <= 220
    assert setting.meaning.count("`") % 2 == 0


def test_a_name_stands_once() -> None:
    names = [setting.name for setting in EVERY]
    assert len(names) == len(set(names))
    assert len(PLAYBOOK_SETTINGS) >= 30


@pytest.mark.parametrize(
    "setting", [one for one in (*SETTINGS, *PLAYBOOK_SETTINGS) if one.default], ids=lambda one: one.name
)
def test_a_default_is_what_may_be_set(setting: Setting) -> None:
    default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
    read = read_value(setting, default)
    assert read == (setting.default if setting.kind != "batches" else read)
    assert refuse_value(setting, read) is None


def test_defaults_of_roles_are_what_may_be_set() -> None:
    given = {one.name: written.default(one) for one in ROLE_SETTINGS.values() if not one.computed}
    assert len(given) > 80
    assert role_problems(given) == []


OUT_OF_PLACE = [
    ("metal_rollout_on_failure", "rivert", "did you mean revert?"),
    ("metal_rollout_soak_errors", 1.5, "0 to 1"),
    ("metal_rollout_soak_latency", "fast", "a number"),
    ("metal_rollout_soak_latency", float("nan"), "0.1 to 1000"),
    ("metal_rollout_soak_seconds", -1, "0 to 2,678,400"),
    ("metal_rollout_soak_requests", 0, "1 to 1,000,000"),
    ("metal_rollout_drain_seconds", "5m", "a whole number"),
    ("metal_rollout_trial_requests", -1, "0 to 100,000"),
    ("metal_rollout_batches", ["1", "a quarter"], "numbers of hosts and shares such as 25%"),
    ("metal_rollout_batches", [0], "numbers of hosts and shares such as 25%"),
    ("metal_rollout_batches", [], "sizes such as [1, 25%, 100%]"),
    ("metal_rollout_batches", ["0%"], "numbers of hosts and shares such as 25%"),
    ("metal_rollout_min_ready", "half", "a number of replicas or a share such as 50%"),
    ("metal_rollout_min_ready", "101%", "a number of replicas or a share such as 50%"),
    ("metal_serve_serial", {"a": 1}, "a text"),
    ("metal_keep_releases", 0, "1 to 1000"),
    ("metal_remove", "certainly", "true or false"),
    ("metal_remove_driver", 2, "true or false"),
    ("metal_remove_weights", {"MiniMax-M2.5": True}, "a text or a list of texts"),
    ("metal_lock_break", "force", "true or false"),
    ("metal_keys_do", "Finish!", "did you mean finish?"),
    ("metal_keys_names", ["api_kee"], "did you mean api_key?"),
    ("metal_share_secret_do", "rotate", "renew or drop"),
    ("metal_host_timeout_seconds", 0, "1 to 86400"),
    ("metal_acceptance_stop_engine", "maybe", "true or false"),
    ("metal_acceptance_only", 3, "a text or a list of texts"),
]


@pytest.mark.parametrize(("name", "value", "words"), OUT_OF_PLACE)
def test_a_playbooks_setting_is_refused_with_the_plan(name: str, value: Any, words: str) -> None:
    # Passed over before; some failed in the middle of a rollout, others counted as unset.
    plan = plan_from_variables("gpu01", {"metal_model": "M2.5", name: value}, None)
    (refusal,) = [one for one in plan["refusals"] if name in one["found"]]
    assert words in f"{refusal['needed']} {refusal['remedy']}"
    assert not plan["fits"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("metal_rollout_btaches", "metal_rollout_batches"),
        ("metal_remove_wieghts", "metal_remove_weights"),
        ("metal_lock_brake", "metal_lock_break"),
        ("metal_Rollback_To", "metal_rollback_to"),
        ("metal_check", "metal_rollback_to|metal_metrics|metal_.*"),
    ],
)
def test_an_unknown_playbook_setting_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    _, problems = Settings.read("gpu01", {name: 1})
    assert [one.code for one in problems] == ["variable-unknown"]
    assert re.fullmatch(rf"did you mean (?:{nearest})\?", problems[0].remedy)


def test_an_empty_text_of_a_playbook_counts_as_not_set() -> None:
    variables = {"metal_rollback_to": "", "metal_rollout_min_ready": " ", "metal_rollout_stop_file": None}
    assert Settings.read("gpu01", variables)[1] == ()


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("post_check_concurrency", "many", "'many'; a whole number"),
        ("sglang_gateway_require_proof", "perhaps", "'perhaps'; true or false"),
        ("nvidia_driver_reboot", "later", "'later'; one of auto, never"),
        ("host_tuning_transparent_hugepages", "on", "'on'; one of an empty text, always, madvise, never"),
        ("sglang_gateway_policy", "roundrobin", "'roundrobin'; one of cache_aware, least_load"),
        ("post_check_skip", {"a": 1}, "{'a': 1}; a list of texts"),
        ("post_check_figures", ["one"], "['one']; a list of whole numbers"),
        ("model_weights_origin_hosts", 0, "0; 1 to 10000"),
        ("nvidia_driver_reboot_at_once", -1, "-1; 0 to 10000"),
        ("host_tuning_swappiness", 201, "201; -1000 to 200"),
        ("sglang_service_hardening", "hunter2", "a value of another type; a mapping of names to values"),
        ("sglang_service_api_key", ["hunter2"], "a value of another type; a text"),
    ],
)
def test_a_roles_setting_is_refused_before_the_role_runs(name: str, value: Any, problem: str) -> None:
    # Each was a failure of the role itself before, in the middle of a run, or was not noticed at all.
    (refusal,) = role_problems({name: value})
    assert f"{refusal.found}; {refusal.needed}".startswith(f"{name}: {problem}")
    assert "hunter2" not in str(refusal)
    plan = plan_from_variables("gpu01", {"metal_model": "M2.5"}, None, role_values={name: value})
    assert "variable-type" in [one["code"] for one in plan["refusals"]]


CONVERTED: list[Any] = [
    True, False, 0, 1, 2, -3, 1.0, 2.5, "", "yes", "No", "on", "T", "f", "1", " 7 ", "8.0", "1e2", "0.5",
    "x", "a,b", "1,2", [], ["a"], [1], ["1", 2], "~/x", "/x", {}, {"A": "b"}, "A=b",
    "A=b, C=d", '{"A": "b"}', "{'A': 'b'}",
]  # fmt: skip


@pytest.mark.parametrize("value", CONVERTED, ids=repr)
def test_what_ansible_takes_is_not_refused_for_its_type(value: Any) -> None:
    """The reference is Ansible's own check of arguments, ansible.module_utils.common.arg_spec."""
    taken = 0
    for role in ROLES:
        path = REPOSITORY / "roles" / role.name / "meta/argument_specs.yml"
        options = yaml.safe_load(path.read_text())["argument_specs"]["main"]["options"]
        for setting in role.settings:
            if written.TYPES[setting.kind] in {"str", "path"} and isinstance(value, (list, dict)):
                continue  # Ansible makes a text of these; nobody means that
            left_out = {"description", "default"}
            option = {key: one for key, one in options[setting.name].items() if key not in left_out}
            result = ArgumentSpecValidator({setting.name: option}).validate({setting.name: value})
            if result.error_messages:
                continue
            taken += 1
            for problem in role_problems({setting.name: value}):
                assert setting.bounds is not None, problem
                assert str(setting.bounds) == problem.needed
    assert taken >= 8


def test_a_play_reads_values_of_their_types_and_declared_defaults(tmp_path: Path) -> None:
    names = ", ".join(map(repr, READ))
    place = f"{tmp_path}/{{{{ inventory_hostname }}}}"
    play = {
        "hosts": "all",
        "gather_facts": False,
        "serial": "{{ lookup('minimax.metal.setting', 'metal_serve_serial') }}",
        "tasks": [
            {
                "ansible.builtin.copy": {"dest": place, "content": "{{ read }}"},
                "vars": {"read": f"{{{{ query('minimax.metal.setting', {names}) | to_json }}}}"},
                "when": "not lookup('minimax.metal.setting', 'metal_lock_break')",
                "timeout": "{{ lookup('minimax.metal.setting', 'metal_host_timeout_seconds') }}",
            }
        ],
    }  # fmt: skip
    hosts = {
        "a": {},
        "b": {
            "metal_rollout_soak_seconds": "5",
            "metal_rollout_batches": "{{ ['1', '50%'] }}",
            "metal_remove_weights": "MiniMax-M2.5",
            "metal_rollback_to": 3,
            "metal_weights_directory": "/data/",
            "nvidia_driver_manage": "no",
        },
        "c": {"metal_lock_break": "yes"},
        "d": {"metal_rollout_soak_errors": 7},
    }
    done = play_on(tmp_path, hosts, play)
    assert done.returncode == 2
    assert json.loads((tmp_path / "a").read_text()) == [
        60, [1, "25%", "100%"], [], "previous", None, 0.01, "/srv/models", True,
        "/var/cache/minimax-metal/artefacts",
    ]  # fmt: skip
    assert json.loads((tmp_path / "b").read_text()) == [
        5, [1, "50%"], ["MiniMax-M2.5"], "3", None, 0.01, "/data", False,
        "/var/cache/minimax-metal/artefacts",
    ]  # fmt: skip
    assert not (tmp_path / "c").exists()
    assert not (tmp_path / "d").exists()
    assert "d: found metal_rollout_soak_errors 7, expected 0 to 1" in " ".join(done.stdout.split())


READ = (
    "metal_rollout_soak_seconds", "metal_rollout_batches", "metal_remove_weights", "metal_rollback_to",
    "metal_rollout_stop_file", "metal_rollout_soak_errors", "metal_weights_directory", "nvidia_driver_manage",
    "artefact_cache_directory",
)  # fmt: skip


def play_on(place: Path, hosts: dict[str, Any], play: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = {"all": {"vars": local, "hosts": hosts}}
    (place / "hosts.yml").write_text(yaml.safe_dump(inventory))
    (place / "play.yml").write_text(yaml.safe_dump([play]))
    return run_playbook(place / "hosts.yml", place / "play.yml")


def run_playbook(inventory: Path, playbook: Path) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    return subprocess.run(
        [program, "-i", str(inventory), str(playbook)],
        cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=180,
    )  # fmt: skip


def test_a_default_that_is_computed_elsewhere_is_not_made_up() -> None:
    for name in ("nvidia_driver_repository_url", "metal_rollout_soak_secs"):
        with pytest.raises(LookupError, match="did you mean"):
            setting_value(name, None)


def test_settings_are_refused_where_no_plan_is_made() -> None:
    variables = {
        "metal_remove_wieghts": ["M2.5"],
        "metal_lock_break": "force",
        "metal_plan": {"x": 1},
        "metal_port": 0,
    }
    names = [*variables, "artefact_cache_dir", "ansible_host"]
    lines = setting_lines("gw01", variables, names, {"sglang_gateway_port": "http"}, planned=True)
    assert [line.partition(";")[0] for line in lines] == [
        "gw01: variable-type: found metal_lock_break: 'force'",
        "gw01: variable-unknown: found variable metal_remove_wieghts",
        "gw01: variable-type: found sglang_gateway_port: 'http'",
        "gw01: variable-unknown: found variable artefact_cache_dir",
        "gw01: port: found metal_port 0",
    ]
    assert lines[1].endswith("did you mean metal_remove_weights?")
    assert setting_lines("gw01", {"metal_engine_extra_args": "--x"}, ["ansible_host"], {}, planned=True) == []
    # Going back to a release, and removal, ask no plan.
    without = setting_lines("gw01", variables, names, {"sglang_gateway_port": "http"}, planned=False)
    assert without == [line for line in lines if "metal_port" not in line]


def test_programs_on_hosts_have_the_same_defaults() -> None:
    """They must not import the plan, which takes longer than their own work."""
    from minimax_metal.host.weights.share_settings import PORT
    from minimax_metal.host.weights.stock import ROOT
    from minimax_metal.plan.removal import ARTEFACTS

    assert setting_value("model_weights_share_port", None) == PORT
    assert str(ROOT) == setting_value("metal_weights_directory", None)
    assert setting_value("artefact_cache_directory", None) == ARTEFACTS


def test_a_playbook_without_a_plan_refuses_settings_before_its_first_task(tmp_path: Path) -> None:
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.import_tasks": f"{REPOSITORY}/playbooks/tasks/settings.yml"},
        {"ansible.builtin.copy": {"dest": f"{tmp_path}/{{{{ inventory_hostname }}}}", "content": "changed"}},
    ]
    hosts = {
        "good": {"metal_rollout_soak_seconds": "30", "sglang_gateway_port": "{{ later }}", "metal_port": 0},
        "typo": {"metal_remove_wieghts": ["MiniMax-M2.5"]},
        "role": {"artefact_cache_size_gigabyte": 5, "sglang_gateway_retries": "often"},
        "value": {"metal_keep_releases": 0},
    }
    done = play_on(tmp_path, hosts, {"hosts": "all", "gather_facts": False, "tasks": tasks})
    said = " ".join(done.stdout.split())
    assert done.returncode == 2
    assert [name for name in hosts if (tmp_path / name).exists()] == []  # one wrong host stops all
    assert "typo: variable-unknown: found variable metal_remove_wieghts" in said
    assert "did you mean metal_remove_weights?" in said
    assert "role: variable-unknown: found variable artefact_cache_size_gigabyte" in said
    assert "sglang_gateway_retries: 'often'; needed a whole number" in said.replace("''", "'")
    assert "found metal_keep_releases 0; needed 1 to 1000" in said
    play = {"hosts": "good", "gather_facts": False, "tasks": tasks}
    assert play_on(tmp_path, hosts, play).returncode == 0
    assert (tmp_path / "good").exists()
    tasks[0]["vars"] = {"__settings_planned": True}
    planned = play_on(tmp_path, hosts, play)
    assert planned.returncode == 2
    assert "good: port: found metal_port 0" in " ".join(planned.stdout.split())


def test_the_preflight_refuses_settings_of_gateways_and_caches_beside_hosts(tmp_path: Path) -> None:
    # A wrong one was found out about after the GPU hosts had been changed, one of a cache never.
    local = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
    }
    inventory = {
        "gpu_hosts": {"hosts": {"gpu-a": {**local, "metal_model": "MiniMax-M2.5"}}},
        "gateway_hosts": {"hosts": {"gw-a": {**local, "sglang_gateway_retrys": 3}}},
        "cache_hosts": {"hosts": {"cache-a": {**local, "artefact_cache_file_days": "many"}}},
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    done = run_playbook(tmp_path / "hosts.yml", REPOSITORY / "playbooks/preflight.yml")
    said = " ".join(done.stdout.split()).replace("''", "'")
    assert done.returncode == 2
    assert "gpu-a: gpu-none: found no NVIDIA GPU" in said
    assert "gw-a: variable-unknown: found variable sglang_gateway_retrys" in said
    assert "did you mean sglang_gateway_retries?" in said
    assert "cache-a: variable-type: found artefact_cache_file_days: 'many'; needed a whole number" in said


NO_CHECK = {"status.yml", "unlock.yml", "rotate_place.yml", "site.yml"}
"""One reads only, two are parts of runs that have begun with a check, one imports the other site.yml."""


@pytest.mark.parametrize(
    "path", [REPOSITORY / "site.yml", *sorted(REPOSITORY.glob("playbooks/*.yml"))], ids=lambda path: path.name
)
def test_a_playbook_checks_settings_before_it_does_anything(path: Path) -> None:
    first = next(
        step for play in yaml.safe_load(path.read_text()) for step in [play, *leaves(play)] if acts(step)
    )
    assert (path.name in NO_CHECK and path.parent != REPOSITORY) or re.search(
        r"preflight\.yml|tasks/(?:settings|planned|plan)\.yml", json.dumps(first)
    ), first


def leaves(node: dict[str, Any]) -> list[dict[str, Any]]:
    """The tasks of a play or block, in order."""
    found: list[dict[str, Any]] = []
    for part in ("pre_tasks", "tasks", "block"):
        for task in node.get(part, ()):
            found += leaves(task) if "block" in task else [task]
    return found


def acts(step: dict[str, Any]) -> bool:
    return "hosts" not in step and step.get("block") is None


@pytest.mark.parametrize("setting", [one for one in EVERY if one.bounds], ids=lambda one: one.name)
def test_bounds_are_kept_to_the_number(setting: Setting) -> None:
    assert setting.bounds is not None
    step = 0.5 if setting.bounds.inside else 1
    least, most = setting.bounds.least, setting.bounds.most
    inside = {least, most, (least + most) / 2} if not setting.bounds.inside else {least + 0.01, most - 0.01}
    for value in inside:
        assert refuse_value(setting, value) is None
    for value in (least - step, most + step, float("nan"), float("inf"), *({least, most} - inside)):
        refusal = refuse_value(setting, value)
        assert refusal is not None
        assert refusal.found.startswith(setting.name)
        assert "{" not in refusal.remedy
        if setting.owner not in {"plan", "playbook"} and value == value and abs(value) != float("inf"):
            assert role_problems({setting.name: value}) != []


def test_a_default_stands_in_one_place() -> None:
    """Roles and playbooks repeat none; the switch behind no_log can't be a lookup, which may fail."""
    known = {setting.name: setting for setting in EVERY}
    repeated = {}
    for path in [
        REPOSITORY / "site.yml",
        *REPOSITORY.glob("playbooks/**/*.yml"),
        *REPOSITORY.glob("roles/*/*/*.yml"),
    ]:
        for name, literal in re.findall(r"\b([a-z_]+) \| default\(([^()]*)\)", path.read_text()):
            setting = known.get(name)
            if setting is None or literal in {"none", "''"} or setting.default is None:
                continue  # asks whether it is set
            repeated[name] = literal
            if setting.owner == "playbook":
                assert yaml.safe_load(literal) == setting.default, path
    assert repeated.keys() == {"metal_secure_logging", "metal_driver_run_file"}

"""`metal plan`: arguments in, text or JSON out, exit status 0, 1 or 2."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from minimax_metal.catalog import packaged_catalog
from minimax_metal.cli import main
from minimax_metal.common.program import Answer
from minimax_metal.controller import inventory
from minimax_metal.controller.plan_table import show, tokens
from minimax_metal.controller.verbs.plan import _parser, make_plans
from minimax_metal.plan.what_if import find_gpu
from tests.unit.plan_helpers import raw_host

WANTED = {
    "host", "model", "format", "fits", "refusals", "warnings", "tp", "ep", "replicas", "weights_bytes",
    "kv_tokens", "max_sequence", "engine", "driver_branch", "cuda", "argv", "env",
}  # fmt: skip


def metal(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    try:
        status = main(["plan", *words])
    except SystemExit as error:
        status = int(error.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_json_of_a_what_if(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = metal(capsys, "--model", "MiniMax-M2.5", "--gpu", "H20 96GB", "--count", "4", "--json")
    (one,) = json.loads(out)
    assert status == 0
    assert set(one) >= WANTED
    assert (one["fits"], one["tp"], one["ep"], one["replicas"]) == (True, 4, 1, 1)
    assert round(one["kv_tokens"] / 1e6, 1) == 0.4
    assert one["argv"][0].endswith("/bin/sglang")
    assert one["argv"][1] == "serve"


def test_a_refused_what_if_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", "MiniMax-M3", "--gpu", "H20 96GB", "--count", "4")
    status, out, _ = metal(capsys, *words, "--json")
    (one,) = json.loads(out)
    assert status == 1
    assert not one["fits"]
    assert [refusal["code"] for refusal in one["refusals"]] == ["memory"]
    status, out, _ = metal(capsys, *words)
    assert status == 1
    assert "refused" in out
    assert "needed more than" in out


def test_the_table_of_a_what_if_shows_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = metal(capsys, "--model", "M2.5", "--gpu", "H200", "--count", "8")
    assert status == 0
    for words in ("sglang@minimax-m2.5.service", "--tp-size 8 --ep-size 8", "3.11 M", "2xtp4", "differs"):
        assert words in out


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--model", "M2.5"),
        ("--gpu", "H20"),
        ("--gpu", "H20", "--count", "four"),
        ("--gpu", "H20", "--count", "-1"),
        ("--gpu", "H20", "--count", "4", "--platform", "fedora"),
        ("--gpu", "H20", "--count", "4", "--set", "port=1"),
        ("--gpu", "H20", "--count", "4", "--set", "metal_prot=1"),
        ("--gpu", "H20", "--count", "4", "--set", "metal_port=x"),
        ("--gpu", "H20", "--count", "4", "--overlay", "/nowhere.yml"),
        ("--inventory", "/nowhere"),
        ("--inventory", "/nowhere", "--gpu", "H20"),
        ("--nonsense",),
    ],
)
def test_wrong_usage_is_two_and_no_traceback(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    status, out, err = metal(capsys, *words)
    assert status == 2
    assert not out
    assert "Traceback" not in err
    assert err.strip()


def test_an_unknown_gpu_or_model_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = metal(capsys, "--model", "MiniMax-M25", "--gpu", "H202", "--count", "8", "--json")
    assert status == 1
    remedies = {one["code"]: one["remedy"] for one in json.loads(out)[0]["refusals"]}
    assert "MiniMax-M2.5" in remedies["model-unknown"]
    assert "H20" in remedies["gpu-unknown"]


def test_any_variable_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", "M2.5", "--gpu", "H20", "--count", "2", "--accept", "gpu-count", "--json")
    status, out, _ = metal(capsys, *words, "--set", "metal_port=9000", "--set", "metal_metrics=true")
    (one,) = json.loads(out)
    assert (status, one["fits"]) == (1, False)  # 2 x 96 GB don't hold it
    assert [refusal["code"] for refusal in one["accepted"]] == ["gpu-count"]
    assert one["argv"][one["argv"].index("--port") + 1] == "9000"
    assert "--enable-metrics" in one["argv"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("H20", "H20"),
        ("h20 96gb", "H20"),
        ("H20 141GB", "H20-3e"),
        ("NVIDIA H20", "H20"),
        ("H200 144GB", "H200"),
        ("H200 140 GiB", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("A100", "A100-80GB"),
        ("A100 40G", "A100-40GB"),
        ("rtx-pro-6000", "RTX-PRO-6000"),
        ("B200 192GB", "B200"),
        ("GB300", "GB300"),
        ("H20 24GB", None),
        ("RTX 4090", None),
        ("", None),
    ],
)
def test_gpus_are_found_as_people_write_them(text: str, name: str | None) -> None:
    found = find_gpu(text, packaged_catalog())
    assert (found.name if found else None) == name


def test_numbers_of_tokens_read_well() -> None:
    assert [tokens(n) for n in (None, 5000, 443_794, 3_106_530)] == ["not known", "5000", "444 K", "3.11 M"]


# --- inventories -----------------------------------------------------------------------------------


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An inventory of three hosts, and programs in place of Ansible's that answer for them."""
    path = tmp_path / "hosts.yml"
    path.write_text("gpu_hosts: {hosts: {gpu01: , gpu02: , gpu03: }}\n")
    listing = {
        "_meta": {
            "hostvars": {
                "gpu01": {"metal_model": "MiniMax-M2.5", "ansible_host": "192.0.2.1"},
                "gpu02": {"metal_model": "{{ 'MiniMax-' + 'M3' }}"},
                "gpu03": {"metal_model": "MiniMax-M2.5", "nvidia_driver_manag": False, "my_own": 1},
            }
        },
        "gpu_hosts": {"children": ["small"], "hosts": ["gpu02", "gpu03"]},
        "small": {"hosts": ["gpu01"]},
    }
    answers: dict[str, dict[str, Any]] = {
        "minimax.metal.metal_facts": {
            "gpu01": {"facts": raw_host("H20", 4)},
            "gpu02": {"facts": raw_host("H200", 8)},
            "gpu03": {"unreachable": True},
        },
        "debug": {
            "gpu01": {"msg": {"metal_model": "MiniMax-M2.5"}},
            "gpu02": {"msg": {"metal_model": "MiniMax-M3"}},
            "gpu03": {"msg": {"metal_model": "MiniMax-M2.5"}},
        },
    }
    (tmp_path / "calls").write_text("")

    def run(program: str, *words: str) -> Answer:
        with (tmp_path / "calls").open("a") as calls:
            calls.write(f"{program} {words[words.index('-m') + 1] if '-m' in words else ''}\n")
        if program == "ansible-inventory":
            return Answer(0, json.dumps(listing), "")
        tree = Path(words[words.index("--tree") + 1])
        module = words[words.index("-m") + 1]
        if module == "debug":  # one host is asked for all
            together = {host: answer["msg"] for host, answer in answers["debug"].items()}
            (tree / words[0]).write_text(json.dumps({"msg": together}))
            return Answer(0, "", "")
        for host in words[0].split(","):
            (tree / host).write_text(json.dumps(answers[module][host]))
        return Answer(4, "", "")

    monkeypatch.setattr(inventory, "_run", run)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return path


def calls(fleet: Path) -> list[str]:
    path = fleet.parent / "calls"
    lines = path.read_text().split("\n")[:-1]
    path.write_text("")
    return [line.strip() for line in lines]


def test_an_inventory_is_planned_and_its_facts_are_kept(
    fleet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = metal(capsys, "--inventory", str(fleet), "--json")
    plans: dict[str, Any] = {one["host"]: one for one in json.loads(out)}
    assert status == 1
    assert (plans["gpu01"]["fits"], plans["gpu01"]["tp"]) == (True, 4)
    assert (plans["gpu02"]["model"], plans["gpu02"]["tp"]) == ("MiniMax-M3", 8)
    # A variable that is none of a role's is found here as in preflight.
    unknown, unreachable = plans["gpu03"]["refusals"]
    assert (unknown["code"], unreachable["code"]) == ("variable-unknown", "unreachable")
    assert unknown["found"] == "variable nvidia_driver_manag"
    assert unknown["remedy"] == "did you mean nvidia_driver_manage?"
    assert calls(fleet) == ["ansible-inventory", "ansible debug", "ansible minimax.metal.metal_facts"]
    # Facts of hosts that answered are kept; the one that did not is asked again.
    metal(capsys, "--inventory", str(fleet), "--json")
    assert calls(fleet) == ["ansible-inventory", "ansible debug", "ansible minimax.metal.metal_facts"]
    cached = {path.name for path in inventory.cache_directory([fleet]).iterdir()}
    assert cached == {"gpu01.json", "gpu02.json"}


@pytest.mark.parametrize("third", ["nowhere", "{{ named_nowhere }}"])
def test_ansible_fills_in_the_templates_of_each_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, third: str
) -> None:
    programs: list[str] = []
    run = inventory._run

    def noted(*words: str) -> Answer:
        programs.append(words[0])
        return run(*words)

    monkeypatch.setattr(inventory, "_run", noted)
    group = {"metal_model": "{{ mine }}", "metal_address": "198.18.0.{{ inventory_hostname[3:] | int }}"}
    hosts = {"gpu01": {"mine": "MiniMax-M2.5"}, "gpu02": {"mine": "MiniMax-M3"}, "gpu03": {"mine": third}}
    (tmp_path / "hosts.json").write_text(json.dumps({"gpu_hosts": {"hosts": hosts, "vars": group}}))
    found = inventory.read_variables([tmp_path / "hosts.json"], limit=None)
    # All hosts at once; each by itself only where one of them can't be filled in.
    assert programs == ["ansible-inventory", "ansible", "ansible"][: 2 if third == "nowhere" else 3]
    second = inventory.read_variables([tmp_path / "hosts.json"], limit="gpu02")
    assert second == {"gpu02": found["gpu02"]}
    assert found["gpu01"] == {"metal_model": "MiniMax-M2.5", "metal_address": "198.18.0.1"}
    assert found["gpu02"] == {"metal_model": "MiniMax-M3", "metal_address": "198.18.0.2"}
    # What can't be filled in for one host leaves the others alone.
    written = third if third == "nowhere" else "{{ mine }}"
    assert found["gpu03"]["metal_model"] == written


def test_a_fleet_is_a_table_with_every_reason_below(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = metal(capsys, "-i", str(fleet))
    assert status == 1
    row = next(line for line in out.splitlines() if line.startswith("gpu01"))
    assert "fits" in row
    assert "0.5.23" in row
    for words in ("gpu01", "gpu02", "gpu03", "refused", "unreachable"):
        assert words in out


def test_variables_on_the_command_line_win(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = metal(capsys, "-i", str(fleet), "--model", "M2.7", "--json")
    assert {one["model"] for one in json.loads(out)} == {"MiniMax-M2.7"}


def test_facts_are_collected_for_the_directories_that_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--set metal_weights_directory`` was planned with the free space of another directory, and "fits"."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ran: list[str] = []
    run = inventory._run

    def counted(program: str, *words: str) -> Answer:
        if "minimax.metal.metal_facts" in words:
            ran.append(program)
        return run(program, *words)

    monkeypatch.setattr(inventory, "_run", counted)
    host = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
    }
    listing = {"gpu_hosts": {"hosts": {"gpu-a": host}, "vars": {"metal_model": "MiniMax-M2.5"}}}
    (tmp_path / "hosts.json").write_text(json.dumps(listing))
    # Small enough for every disk, and the same file system throughout: what is measured is what counts.
    models = tmp_path / "other" / "models"
    words = ("-i", str(tmp_path / "hosts.json"), "--json")
    metal(capsys, *words)
    cache = next(inventory.cache_directory([tmp_path / "hosts.json"]).glob("*.json"))
    assert json.loads(cache.read_text())["asked"]["weights_directory"] == "/srv/models"
    metal(capsys, *words)
    assert len(ran) == 1
    metal(capsys, *words, "--set", f"metal_weights_directory={models}", "--set", "metal_weights_adopt=/data")
    facts = json.loads(cache.read_text())
    assert len(ran) == 2
    assert str(models) in facts["disks"]
    assert facts["adoptable"] == {"/data": 0}
    metal(
        capsys, *words, "--set", f"metal_weights_directory={models}/", "--set", "metal_weights_adopt=[/data]"
    )
    assert len(ran) == 2
    metal(capsys, *words)
    assert len(ran) == 3


def test_variables_of_roles_are_held_to_their_bounds_before_any_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    variables = {
        "metal_model": "MiniMax-M2.5",
        "sglang_gateway_port": 70_000,
        "host_tools_requirements": "x\nExecStart=/bin/sh",
        "sglang_service_api_key": "{{ lookup('env', 'NOWHERE') }}\n",
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
    }
    (tmp_path / "hosts.json").write_text(
        json.dumps({"gpu_hosts": {"hosts": {"gpu-a": {}}, "vars": variables}})
    )
    status, out, _ = metal(capsys, "-i", str(tmp_path / "hosts.json"), "--json")
    found = [one["found"].partition(":")[0] for one in json.loads(out)[0]["refusals"]]
    assert (status, found) == (1, ["host_tools_requirements", "sglang_gateway_port"])


def test_a_what_if_without_gpus_says_the_count(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = metal(capsys, "--model", "M2.5", "--gpu", "H200", "--count", "0", "--json")
    (refusal,) = json.loads(out)[0]["refusals"]
    assert (status, refusal["code"]) == (1, "gpu-count")
    assert "0 GPUs (--count 0)" in refusal["found"]


@pytest.mark.parametrize(
    ("name", "hint", "not_hinted"),
    [
        ("H2O", "did you mean H20?", ""),
        ("H300 141GB", "H200", "H100"),
        ("H200-141C", "that is a vGPU", "did you mean"),
        ("B200 12GB", "metal_catalog_overlay", "did you mean"),
    ],
)
def test_a_hint_is_never_a_card_of_another_size(
    capsys: pytest.CaptureFixture[str], name: str, hint: str, not_hinted: str
) -> None:
    _, out, _ = metal(capsys, "--model", "M2.5", "--gpu", name, "--count", "8", "--json")
    remedy = next(one["remedy"] for one in json.loads(out)[0]["refusals"] if one["code"] == "gpu-unknown")
    assert hint in remedy
    assert not not_hinted or not_hinted not in remedy


def test_a_broken_inventory_is_one_line(
    fleet: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(program: str, *words: str) -> Answer:
        return Answer(1, "", "ERROR! no\n")

    monkeypatch.setattr(inventory, "_run", run)
    status, _, err = metal(capsys, "-i", str(fleet))
    assert status == 2
    assert err.count("\n") == 1
    assert "ERROR! no" in err


def test_a_what_if_never_imports_ansible_or_the_clients() -> None:
    code = (
        "import sys; from minimax_metal.cli import main; "
        "status = main(['plan', '--model', 'M2.5', '--gpu', 'H20', '--count', '4', '--json']); "
        "heavy = {'ansible', 'openai', 'huggingface_hub', 'rich', 'jinja2'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_table_for_a_pipe_is_whole_lines_without_rich() -> None:
    program = (
        "import sys; from minimax_metal.cli import main; "
        "main(['plan', '--model', 'MiniMax-M2.5', '--gpu', 'H20 96GB', '--count', '4']); "
        "print(sorted({'rich', 'yaml', 'pydantic'} & set(sys.modules)), file=sys.stderr)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "FORCE_COLOR"}
    packaged_catalog()  # kept from here on
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "COLUMNS": "40"},
    )
    assert done.stderr == "[]\n"
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["verdict", "fits,", "with", "warnings"]
    model = next(line for line in lines if line.startswith("model  "))
    assert model.endswith("licence modified-mit")
    assert "\x1b" not in done.stdout


def test_a_terminal_gets_the_same_words_in_colours() -> None:
    plans = make_plans(_parser().parse_args(["--model", "M2.5", "--gpu", "H20", "--count", "4"]))
    plain, colour = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(plain):
        show(plans)
    show(plans, Console(file=colour, width=1000, force_terminal=True, highlight=False))
    without = re.sub(r"\x1b\[[0-9;]*m", "", colour.getvalue())
    assert [line.rstrip() for line in without.splitlines()] == plain.getvalue().splitlines()
    assert "\x1b[33mfits, with warnings" in colour.getvalue()


def test_several_hosts_are_one_aligned_table_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    one = make_plans(_parser().parse_args(["--model", "M2.5", "--gpu", "H20", "--count", "4"]))[0]
    show([replace(one, host="[red]a"), replace(one, host="b" * 70)])
    header, first, second = capsys.readouterr().out.splitlines()[:3]
    assert header.split("  ")[0] == "host"
    # A name with brackets is no markup, and a long one is not cut.
    assert first.startswith("[red]a ")
    assert second.startswith("b" * 70 + "  ")
    assert header.index("verdict") == first.index("fits (!)") == second.index("fits (!)")


@pytest.mark.parametrize(
    ("said", "name", "count"),
    [
        ("8xH100", "H100", 8),
        ("8 x H20 96GB", "H20", 8),
        ("h200 x 4", "H200", 4),
        ("H100x8", "H100", 8),
        ("8*a100-80g", "A100-80GB", 8),
        ("8×H800", "H800", 8),
        ("4x RTX PRO 6000", "RTX-PRO-6000", 4),
    ],
)
def test_gpus_are_counted_as_people_write_them(
    capsys: pytest.CaptureFixture[str], said: str, name: str, count: int
) -> None:
    _, out, _ = metal(capsys, "--model", "minimax m2.5", "--gpu", said, "--json")
    (one,) = json.loads(out)
    assert (one["model"], one["gpu"], one["gpu_count"]) == ("MiniMax-M2.5", name, count)


@pytest.mark.parametrize("said", ["RTX 6000", "H100", "H20-3e", "RTX PRO 6000"])
def test_a_name_with_an_x_or_a_number_is_no_count(capsys: pytest.CaptureFixture[str], said: str) -> None:
    status, _, err = metal(capsys, "--model", "M2.5", "--gpu", said)
    assert status == 2
    assert f"found --gpu {said} without a number" in err


def test_two_numbers_that_disagree_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = metal(capsys, "--model", "M2.5", "--gpu", "8xH100", "--count", "4")
    assert status == 2
    assert "found --gpu 8xH100 with --count 4; give one number" in err
    assert metal(capsys, "--model", "M2.5", "--gpu", "8xH100", "--count", "8")[0] == 0


@pytest.mark.parametrize("said", ["minimax m2.5", "MiniMax_M2.5", "m2.5", "MiniMaxAI/MiniMax-M2.5"])
def test_models_are_known_as_people_write_them(capsys: pytest.CaptureFixture[str], said: str) -> None:
    _, out, _ = metal(capsys, "--model", said, "--gpu", "8xH200", "--json")
    assert json.loads(out)[0]["model"] == "MiniMax-M2.5"


def test_an_unknown_model_or_gpu_is_told_all_that_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = metal(capsys, "--model", "MiniMax-M9", "--gpu", "8xRTX 4090", "--json")
    remedies = {one["code"]: one["remedy"] for one in json.loads(out)[0]["refusals"]}
    catalog = packaged_catalog()
    assert all(name in remedies["model-unknown"] for name in catalog.models)
    assert all(name in remedies["gpu-unknown"] for name in catalog.gpus)

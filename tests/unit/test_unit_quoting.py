"""Users' texts in unit files: every template with hostile values, parsed like systemd does."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimax_metal.common import systemd as units
from minimax_metal.controller.adapter import plan_from_variables
from tests.support.templates import evaluate, render, role_variables
from tests.unit.plan_helpers import raw_host

REPOSITORY = Path(__file__).parents[2]
HOSTILE = (
    "%H",
    "$HOME",
    "${PATH}",
    'a "b" c',
    "it's",
    "back\\slash",
    "; #x",
    "%%",
    "100%",
    "\\x41",
    "%n %i",
    "ü€",
)
UNITS = (
    "sglang@.service.j2", "sglang-precompile.service.j2", "metal-page-cache.service.j2",
    "metal-weights@.service.j2", "metal-weights-share@.service.j2", "sglang-gateway.service.j2",
    "artefact-cache.service.j2", "tuning-shm.service.j2",
)  # fmt: skip


def words(line: str, *, command: bool) -> list[str]:
    """Words of a line as systemd's extract_first_word splits them (unquote, C escapes), specifiers resolved.

    Raises:
        ValueError: a specifier or a variable would be replaced by something else.
    """
    found: list[str] = []
    word: str | None = None
    quote = ""
    place = iter(line)
    for sign in place:
        if sign == "\\":
            word = (word or "") + next(place)
        elif quote:
            if sign == quote:
                quote = ""
            else:
                word = (word or "") + sign
        elif sign in "\"'":
            quote, word = sign, word or ""
        elif sign == " ":
            if word is not None:
                found.append(word)
            word = None
        else:
            word = (word or "") + sign
    assert not quote, line
    found += [] if word is None else [word]
    return [resolved(one, command=command) for one in found]


def resolved(text: str, *, command: bool = False) -> str:
    """Text with ``%%`` (and ``$$`` of commands) read as one character; any other specifier is an error."""
    for sign in "%$" if command else "%":
        parts = text.split(sign * 2)
        if any(sign in part for part in parts):
            raise ValueError(f"{sign} stands for something else in {text!r}")
        text = sign.join(parts)
    return text


def lines(text: str, name: str) -> list[str]:
    joined = re.sub(r"\\\n[ \t]*", "", text)
    return re.findall(rf"^{name}=(.*)$", joined, re.MULTILINE)


@pytest.mark.parametrize("text", HOSTILE)
def test_words_of_commands_and_environments_come_back(text: str) -> None:
    assert words(" ".join(units.command_lines(["/bin/x", text])), command=True) == ["/bin/x", text]
    assert words(units.quote_assignment(f"NAME={text}"), command=False) == [f"NAME={text}"]
    assert resolved(units.text(text)) == text


TEXTS = st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_any_text_comes_back(text: str) -> None:
    assert words(units.quote(text), command=True) == [text]
    assert words(units.quote_assignment("A=" + text), command=False) == ["A=" + text]
    if not text.endswith("\\"):
        assert resolved(units.text(text)) == text


@pytest.mark.parametrize("write", [units.quote, units.quote_assignment, units.text, units.line])
@pytest.mark.parametrize("sign", ["\n", "\r", "\0"])
def test_no_line_break_gets_into_a_unit_and_no_secret_out(write: Any, sign: str) -> None:
    with pytest.raises(ValueError, match="line break") as caught:
        write(f"hunter2{sign}ExecStartPre=/bin/sh")
    assert "hunter2" not in str(caught.value)


def test_a_backslash_joins_no_line() -> None:
    with pytest.raises(ValueError, match="backslash"):
        units.text("name\\")


def hostile_plan(text: str) -> dict[str, Any]:
    """The plan of a host whose user writes such a text in every free-text setting."""
    variables = {
        "metal_model": "MiniMax-M2.5",
        "metal_served_model_name": f"m {text}",
        "metal_weights_directory": f"/srv/my {text}",
        "metal_tls_certificate": f"/etc/tls/my {text}/c.pem",
        "metal_tls_key": f"/etc/tls/my {text}/k.pem",
        "metal_engine_extra_args": ["--log-level", text],
        "metal_engine_extra_environment": {"MY_OWN": text},
        "metal_warm_weights": True,
    }
    plan = plan_from_variables("gpu01", variables, raw_host("H200", 8))
    assert plan["fits"], plan["refusals"]
    return plan


@pytest.mark.parametrize("path", ["/opt/a b", "/opt/%h", '/opt/"x', "/opt/$x", "/opt/é"])
def test_programs_start_from_plain_paths_only(path: str) -> None:
    variables = {"metal_model": "MiniMax-M2.5", "metal_engine_directory": path}
    plan = plan_from_variables("gpu01", variables, raw_host("H200", 8))
    assert [one["code"] for one in plan["refusals"]] == ["directory"]


def rendered(folder: Path, template: str, plan: dict[str, Any], text: str) -> str:
    sandbox = evaluate(role_variables("sglang_service"), "__sglang_service_sandbox")
    gateway = role_variables("sglang_gateway")
    weights = role_variables("model_weights", model_weights_environment={"MY_OWN": text})
    names: dict[str, Any] = {
        "item": plan["services"][0],
        "__sglang_service_sandbox": sandbox,
        "__sglang_gateway_sandbox": gateway["__sglang_gateway_sandbox_defaults"],
        "__sglang_gateway_credentials": {"tls.key": f"/etc/my {text}"},
        "__sglang_gateway_config": "/etc/sglang-gateway/admin.json",
        "sglang_gateway_stop_timeout_seconds": 600,
        "artefact_cache_directory": f"/srv/cache {text}",
        "__artefact_cache_configuration": "/etc/x.conf",
        "host_tuning_shm_size": text,
    }
    for name, value in weights.items():
        names[name] = value if "{{" not in str(value) else f"/run/{name}"
    names["model_weights_token_files"] = {}
    own = plan if "gateway" not in template else {**plan, "release": "1", "argv": ["/opt/smg", "--x", text]}
    return render(folder / template.removesuffix(".j2"), template, own, **names)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("template", UNITS)
def test_every_unit_means_what_the_user_wrote(tmp_path: Path, template: str, text: str) -> None:
    """A space or a % in a name or a path led to another directory, another word or another meaning before."""
    plan = hostile_plan(text)
    whole = rendered(tmp_path, template, plan, text)
    for line in lines(whole, "Environment"):
        name, _, value = words(line, command=False)[0].partition("=")
        if name == "MY_OWN":
            assert value == text
    if template.startswith("metal-weights@"):
        assert any(words(line, command=False) == [f"MY_OWN={text}"] for line in lines(whole, "Environment"))
        assert [plan["model"]["path"].rpartition("/")[0]] in [
            words(line, command=False) for line in lines(whole, "ReadWritePaths")
        ]
    if template.startswith("sglang@"):
        (command,) = lines(whole, "ExecStart")
        got = words(command, command=True)
        assert got[got.index("--") + 1 :] == plan["services"][0]["argv"]
        assert any(words(line, command=False) == [f"MY_OWN={text}"] for line in lines(whole, "Environment"))
        assert resolved(lines(whole, "AssertPathIsDirectory")[0]) == plan["model"]["path"]
        credentials = [resolved(line) for line in lines(whole, "LoadCredential")]
        assert f"tls.key:/etc/tls/my {text}/k.pem" in credentials
        assert f"m {text}" in resolved(lines(whole, "Description")[0])
    if template.startswith("metal-page-cache"):
        assert resolved(lines(whole, "ConditionPathIsDirectory")[0]) == plan["page_cache"]["path"]
        assert words(lines(whole, "ExecStart")[0], command=True)[2] == plan["page_cache"]["path"]
    if template.startswith("sglang-gateway"):
        assert words(lines(whole, "ExecStart")[0], command=True)[-2:] == ["--x", text]
        assert f"tls.key:/etc/my {text}" in [resolved(line) for line in lines(whole, "LoadCredential")]
    if template.startswith("artefact-cache"):
        assert [f"/srv/cache {text}"] in [
            words(line, command=False) for line in lines(whole, "ReadWritePaths")
        ]
    if template.startswith("tuning-shm"):
        assert words(lines(whole, "ExecStart")[0], command=True)[2] == f"remount,size={text}"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_reads_them_without_a_complaint(tmp_path: Path) -> None:
    text = " ".join(HOSTILE)
    plan = hostile_plan(text)
    for template in UNITS:
        rendered(tmp_path, template, plan, text)
    for path in sorted(tmp_path.iterdir()):
        name = path.name.replace("@.", "@x.")
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(path.with_name(name))],
            check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        complaints = [
            line
            for line in (done.stdout + done.stderr).splitlines()
            # Programs and units of a host are not here.
            if name in line
            and not re.search(
                r"is not executable|not found|No such file|is deprecated|Cannot add dependency", line
            )
        ]
        assert complaints == [], complaints

"""Key rotation: the controller's state, the guard with two keys, continuing and going back at each step."""

from __future__ import annotations

import itertools
import json
import os
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.cli import main
from minimax_metal.common import files
from minimax_metal.common.errors import UserError
from minimax_metal.common.redact import secrets_of_directories
from minimax_metal.controller.keys import rotation
from minimax_metal.controller.keys.rotation import FINISH, NAMES, START, TAKE_BACK
from minimax_metal.controller.keys.rules import given, reasons
from minimax_metal.controller.verbs import keys as key_commands
from minimax_metal.controller.verbs import run as commands
from minimax_metal.host.engine.output import Secrets
from minimax_metal.host.engine_plugin.minimax_metal_engine import Guard, read_settings
from minimax_metal.host.engine_plugin.minimax_metal_engine.keys import FILE, Accepted, KeyFile, parse
from minimax_metal.host.gateway.launch import key_arguments
from minimax_metal.plan.gateway import GatewayPlan
from minimax_metal.plan.model import Plan, Refusal
from minimax_metal.plan.reading import lenient
from tests.support.asgi_client import Recorder, ask
from tests.support.simulated import free_port, simulated_engine
from tests.support.templates import REPOSITORY

OLD, NEW = "old-key-0123456789abcdef", "new-key-0123456789abcdef"
MANAGER = "managers-key-0123456789"
WAYS = (START, FINISH, TAKE_BACK)


def secrets_in(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text().strip() for path in directory.iterdir() if path.name in NAMES}


def fleet(directory: Path, count: int = 3) -> list[tuple[str, ...]]:
    return [tuple(rotation.accepted(directory / "api_key"))] * count


def goes(verb: str, directory: Path) -> str:
    """Finish one step; the place, empty if nothing was left to do."""
    place = rotation.step(directory, verb)["place"]
    if place:
        assert rotation.arrived(directory) == place
    return str(place)


def test_a_whole_change_goes_by_two_valid_keys(tmp_path: Path) -> None:
    rotation.accepted(tmp_path / "api_key")
    before = secrets_in(tmp_path)["api_key"]
    with pytest.raises(UserError, match="found no key rotation"):
        rotation.step(tmp_path, TAKE_BACK)
    assert rotation.step(tmp_path, TAKE_BACK, further=True)["place"] == ""
    assert [goes(START, tmp_path), goes(START, tmp_path), goes(START, tmp_path)] == ["both", "new", ""]
    keys = rotation.accepted(tmp_path / "api_key")
    assert (len(keys), keys[1]) == (2, before)
    assert secrets_in(tmp_path)["api_key"] == keys[0] != before
    assert rotation.accepted(tmp_path / "api_key", gateway=True) == keys
    assert stat.S_IMODE((tmp_path / rotation.FILE).stat().st_mode) == 0o600
    assert before not in repr(rotation.read(tmp_path))
    assert goes(FINISH, tmp_path) == "done"
    assert rotation.accepted(tmp_path / "api_key") == [keys[0]]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.iterdir())
    with pytest.raises(UserError, match="found no key rotation"):
        rotation.step(tmp_path, FINISH)


@pytest.mark.parametrize("steps", range(4))
@pytest.mark.parametrize("cut", [False, True])
def test_from_each_step_it_can_be_taken_back(steps: int, cut: bool, tmp_path: Path) -> None:
    before = {name: rotation.accepted(tmp_path / name)[0] for name in NAMES}
    for verb in (START, START, FINISH)[:steps]:
        assert goes(verb, tmp_path)
    if cut:
        if steps == 3:
            pytest.skip("nothing is under way after the end")
        rotation.step(tmp_path, FINISH if steps == 2 else START)  # the run ends before the hosts are there
    if not cut and steps in {0, 3}:
        with pytest.raises(UserError, match="found no key rotation"):
            rotation.step(tmp_path, TAKE_BACK)
        return
    places = list(itertools.takewhile(bool, (back(tmp_path) for _ in range(4))))
    assert places[-1] == "old"
    assert secrets_in(tmp_path) == before
    assert not (tmp_path / rotation.FILE).exists()


def back(directory: Path) -> str:
    return goes(TAKE_BACK, directory) if (directory / rotation.FILE).exists() else ""


def test_a_fleet_in_the_middle_of_a_step_serves_everybody_whatever_is_done_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sequence of some commands, each cut at every host: no host refuses a key in use."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for number, walk in enumerate(itertools.product(WAYS, (0, 1, 3), repeat=2)):
        directory = tmp_path / str(number)
        directory.mkdir()
        hosts = fleet(directory)
        gateway = tuple(rotation.accepted(directory / "api_key", gateway=True))
        # Behind a first step that went well: the walks begin in the middle.
        walked: list[tuple[Any, ...]] = [(START, 3), *zip(walk[::2], walk[1::2], strict=True)]
        for verb, reached in walked:
            try:
                place = rotation.step(directory, str(verb))["place"]
            except UserError:
                continue
            if not place:
                continue
            keys = tuple(rotation.accepted(directory / "api_key"))
            at_gateway = tuple(rotation.accepted(directory / "api_key", gateway=True))
            if verb == TAKE_BACK and int(reached) > 0:
                gateway = at_gateway
            for host in range(int(reached)):
                hosts[host] = keys
                # Whatever the gateway asks with, and the key in use on the controller, opens every engine.
                in_use = (directory / "api_key").read_text().strip()
                for taken in hosts:
                    assert gateway[0] in taken
                    assert in_use in taken, (verb, place, walk)
            if reached == 3:
                gateway = at_gateway
                assert all(gateway[0] in taken for taken in hosts)
                rotation.arrived(directory)


@pytest.mark.parametrize("operations", range(12))
def test_a_crash_between_two_files_loses_no_key(
    operations: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rotation.accepted(tmp_path / "api_key")[0]
    left = operations

    def write(*words: Any, **named: Any) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        files.write_atomic(*words, **named)

    monkeypatch.setattr(rotation, "write_atomic", write)
    reached = ""
    try:
        for verb in (START, START, FINISH):
            reached = goes(verb, tmp_path)
    except KeyboardInterrupt:
        pass
    monkeypatch.undo()
    state = rotation.read(tmp_path)
    if state is None:
        assert reached in {"", "done"}
        assert (rotation.accepted(tmp_path / "api_key")[0] == before) == (reached == "")
        return
    # The next commands end it, and the files are what the state says.
    for verb in (START, START, START, FINISH, FINISH):
        if rotation.read(tmp_path) is not None and not (verb == START and max(state.at, state.to) > 2):
            goes(verb, tmp_path)
    assert rotation.read(tmp_path) is None
    assert secrets_in(tmp_path)["api_key"] == state.keys["api_key"][1] != before


def state_text(at: int, to: int, name: str, old: str, new: str) -> str:
    return json.dumps({"at": at, "to": to, "began": "", "keys": {name: {"old": old, "new": new}}})


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        ("", 0o600, "not JSON"),
        ("[]", 0o600, "unexpected content"),
        ("{}", 0o600, "unexpected content"),
        ("[" * 60000, 0o600, "not JSON"),
        (state_text(0, 3, "api_key", "a", "b"), 0o600, "unexpected content"),
        (state_text(1, 1, "../x", "a", "b"), 0o600, "unexpected content"),
        (state_text(1, 1, "api_key", "a", "a"), 0o600, "unexpected content"),
        (state_text(1, 4, "api_key", "a", "b"), 0o600, "unexpected content"),
        ("{}", 0o644, "mode 0644"),
    ],
)
def test_a_broken_state_is_refused_by_name(content: str, mode: int, said: str, tmp_path: Path) -> None:
    path = tmp_path / rotation.FILE
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(UserError, match=said):
        rotation.read(tmp_path)
    with pytest.raises(UserError):
        rotation.accepted(tmp_path / "api_key")


def test_no_command_shows_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["step", "--do", "start"], ["arrived"], ["status"], ["step", "--do", "start"], ["status"]):
        assert main(["keys", words[0], "--secrets", str(tmp_path), *words[1:]]) == 0
    shown = capsys.readouterr()
    values = [one for pair in rotation.read(tmp_path).keys.values() for one in pair]  # type: ignore[union-attr]
    assert values
    assert not any(value in shown.out + shown.err for value in values)
    assert "between 'both' and 'new'" in shown.out


@pytest.mark.parametrize(
    ("name", "said"),
    [("gateway_virtual_auth", "VRRP"), ("share", "metal keys rotate --key share"), ("x", "expected one of")],
)
def test_other_secrets_are_refused_with_what_to_do(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        rotation.step(tmp_path, START, [name])
    assert not (tmp_path / rotation.FILE).exists()


def plan_of(**changes: Any) -> Plan:
    service = {"unit": "sglang@m.service", "keys_directory": "/etc/sglang/m", "proves": True}
    return Plan.of_record({"services": [service | changes]})


PLAN = plan_of()


def test_what_can_not_be_changed_is_said_with_what_to_do() -> None:
    assert reasons(PLAN, "gpu01", "", []) == []
    assert "without --limit" in reasons(PLAN, "gpu01", "gpu01", [])[0]
    assert "0.5.16" in reasons(plan_of(proves=False), "gpu01", "", [])[0]
    assert "metal_api_keys" in reasons(plan_of(keys_directory=None), "gpu01", "", [])[0]
    assert "metal_api_keys" in reasons(lenient(GatewayPlan, {"api_keys": False}), "gw01", "", [])[0]
    assert reasons(lenient(GatewayPlan, {"api_keys": True}), "gw01", "", []) == []
    assert "preflight" in reasons(replace(PLAN, refusals=(Refusal("a", "b", "c", "d"),)), "gpu01", "", [])[0]
    mine = given({"sglang_service_api_key": "x" * 20, "sglang_service_admin_api_key": ""})
    assert mine == ["sglang_service_api_key"]
    (text,) = reasons(PLAN, "gpu01", "", mine)
    assert "sglang_service_accepted_api_keys" in text
    assert "--key admin_api_key --key gateway_admin_key" in text
    assert reasons(PLAN, "gpu01", "", mine, START, ["admin_api_key"]) == []
    assert "x" * 20 not in text


def write_keys(directory: Path, user: list[str], mode: int = 0o640) -> None:
    files.write_atomic(directory / FILE, json.dumps({"api_key": user, "admin_api_key": [MANAGER]}), mode=mode)


def engine(directory: Path) -> tuple[Guard, Recorder]:
    (directory / "api_key").write_text(OLD + "\n")
    (directory / "admin_api_key").write_text(MANAGER + "\n")
    (directory / "engine.yaml").write_text(f'api-key: "{OLD}"\nadmin-api-key: "{MANAGER}"\n')
    write_keys(directory, [OLD])
    environment = {"METAL_SECRETS": str(directory), "METAL_IDENTITY": "http://gpu01:8000"}
    application = Recorder(body=json.dumps({"api_key": OLD, "other": NEW}).encode())
    return Guard(application, None, read_settings(environment, [])), application


def status(guard: Guard, key: str, path: str = "/v1/models") -> int:
    return ask(guard, "GET", path, None, [("Authorization", f"Bearer {key}")]).status


def test_the_guard_takes_both_keys_then_the_new_one_without_a_restart(tmp_path: Path) -> None:
    guard, application = engine(tmp_path)
    seen = []
    for keys in ([OLD], [OLD, NEW], [NEW, OLD], [NEW], [NEW, OLD], [OLD]):
        write_keys(tmp_path, keys)
        seen.append([status(guard, key) == 200 for key in (OLD, NEW)])
        assert status(guard, MANAGER, "/get_weights_by_name") == 200
        assert status(guard, "nobodys-key-0123456789") == 401
    assert seen == [[True, False], [True, True], [True, True], [False, True], [True, True], [True, False]]
    # The engine itself gets the key that it was started with.
    assert {headers["authorization"] for headers in application.headers} == {
        f"Bearer {OLD}",
        f"Bearer {MANAGER}",
    }


def test_no_key_that_counts_or_counted_is_in_an_answer(tmp_path: Path) -> None:
    guard, _ = engine(tmp_path)
    write_keys(tmp_path, [NEW])
    answer = ask(guard, "GET", "/server_info", None, [("x-api-key", NEW)])
    assert answer.status == 200
    assert OLD.encode() not in answer.body
    assert NEW.encode() not in answer.body


def test_the_proof_names_every_key_that_counts_and_sends_none(tmp_path: Path) -> None:
    from minimax_metal.host.engine_plugin.minimax_metal_engine.identity import Identity, proven

    guard, _ = engine(tmp_path)
    nonce = "ab" * 16
    for keys in ([OLD], [OLD, NEW], [NEW]):
        write_keys(tmp_path, keys)
        guard_answer = ask_identity(guard, nonce)
        for key in (OLD, NEW):
            assert proven(guard_answer, Identity(key, "http://gpu01:8000"), nonce) == (key in keys)
            assert key.encode() not in guard_answer
        assert len(json.loads(guard_answer)["proofs"]) == len(keys)
        assert len(json.loads(guard_answer)["managers"]) == 1


def ask_identity(guard: Guard, nonce: str) -> bytes:
    import asyncio

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": "GET", "path": "/metal/identity", "headers": [],
             "query_string": f"nonce={nonce}".encode()}  # fmt: skip
    asyncio.run(guard(scope, receive, send))
    return bytes(sent[-1]["body"])


def content(user: object, admin: object) -> bytes:
    return json.dumps({"api_key": user, "admin_api_key": admin}).encode()


BROKEN: dict[str, bytes] = {
    "half": b'{"api_key": ["' + NEW.encode(),
    "empty": b"",
    "no keys": content([], []),
    "one kind": json.dumps({"api_key": [NEW]}).encode(),
    "a number": content([5], [MANAGER]),
    "a text": content(NEW, [MANAGER]),
    "an empty key": content([""], [MANAGER]),
    "one for both": content([NEW], [NEW]),
    "twice": content([NEW, NEW], [MANAGER]),
    "many": content([NEW + str(number) for number in range(5)], [MANAGER]),
    "deep": b"[" * 60000,
    "large": b" " * 70000,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_changes_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guard, _ = engine(tmp_path)
    files.write_atomic(tmp_path / FILE, BROKEN[name], mode=0o640)
    assert [status(guard, OLD), status(guard, NEW)] == [200, 401]
    said = capsys.readouterr().err
    assert said.count("keeping the current keys") == 1
    assert NEW not in said
    write_keys(tmp_path, [NEW])
    assert [status(guard, OLD), status(guard, NEW)] == [401, 200]
    with pytest.raises(ValueError, match=r"expected|not JSON|both lists|more than"):
        parse(BROKEN[name])


def test_a_file_that_others_may_write_or_a_link_is_not_taken(tmp_path: Path) -> None:
    guard, _ = engine(tmp_path)
    write_keys(tmp_path, [NEW], mode=0o660)
    assert [status(guard, OLD), status(guard, NEW)] == [200, 401]
    write_keys(tmp_path, [NEW])
    (tmp_path / "real").write_bytes((tmp_path / FILE).read_bytes())
    (tmp_path / "real").chmod(0o640)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).symlink_to("real")
    assert [status(guard, OLD), status(guard, NEW)] == [200, 401]
    (tmp_path / FILE).unlink()
    os.mkfifo(tmp_path / FILE)
    assert status(guard, OLD) == 200
    (tmp_path / FILE).unlink()
    assert status(guard, OLD) == 200


def test_a_start_with_a_broken_file_is_refused(tmp_path: Path) -> None:
    engine(tmp_path)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ValueError, match=r"0640|JSON"):
        read_settings({"METAL_SECRETS": str(tmp_path)}, [])


def test_the_engines_own_key_is_the_one_it_was_started_with(tmp_path: Path) -> None:
    engine(tmp_path)
    (tmp_path / "api_key").write_text(NEW)  # written a moment after the engine had read its file
    settings = read_settings({"METAL_SECRETS": str(tmp_path)}, [])
    assert settings.user_key == OLD


def test_the_supervisor_hides_every_key_that_counts(tmp_path: Path) -> None:
    engine(tmp_path)
    write_keys(tmp_path, [OLD, NEW])
    assert Secrets.of_directory(tmp_path).out_of(f"{OLD} {NEW} {MANAGER}") == "*** *** ***"


def test_a_report_masks_both_values_and_nothing_else_of_the_state(tmp_path: Path) -> None:
    rotation.step(tmp_path, START)
    state = rotation.read(tmp_path)
    assert state is not None
    found = [*rotation.secrets_of([tmp_path]), *secrets_of_directories([tmp_path])]
    assert set(found) == {value for pair in state.keys.values() for value in pair}


def test_ansible_reads_no_key_as_the_name_of_a_host(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("gpu_hosts: {hosts: {gpu01: }}\n")
    rotation.step(tmp_path / "secrets", START)
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-inventory"), "-i", str(tmp_path), "--list"],
        env=os.environ | {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert list(json.loads(done.stdout)["_meta"]["hostvars"]) == ["gpu01"]
    assert not [one for one in secrets_in(tmp_path / "secrets").values() if one in done.stdout + done.stderr]


def test_an_engine_under_load_refuses_nobody_while_its_key_is_changed(tmp_path: Path) -> None:
    """Against the simulated engine: its HTTP surface and its own check of the key, behind the real guard."""
    engine(tmp_path)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {"METAL_SECRETS": str(tmp_path), "METAL_IDENTITY": address}
    answers: dict[str, list[int]] = {OLD: [], NEW: []}
    valid, over = {OLD}, threading.Event()

    def client(key: str) -> None:
        while not over.is_set():
            # Whether it counts before and after: what is written meanwhile decides.
            before = key in valid
            code = asked(address, key)
            if before and key in valid:
                answers[key].append(code)

    with simulated_engine(
        tmp_path, "--config", str(tmp_path / "engine.yaml"), port=port, environment=environment
    ):
        threads = [threading.Thread(target=client, args=(key,)) for key in (OLD, NEW, OLD, NEW)]
        for thread in threads:
            thread.start()
        takes = []
        try:
            for keys in ([OLD, NEW], [NEW, OLD], [NEW]):
                valid &= set(keys)
                write_keys(tmp_path, keys)
                valid |= set(keys)
                time.sleep(0.5)
                takes.append(
                    main(["keys", "accepted", "--url", f"{address}/health", "--identity", address,
                          "--directory", str(tmp_path)])
                )  # fmt: skip
        finally:
            over.set()
            for thread in threads:
                thread.join(30)
        assert takes == [0, 0, 0]
        assert (asked(address, OLD), asked(address, NEW)) == (401, 200)
        # An engine that has not read the file says so: the proof is of other keys.
        (tmp_path / "other").mkdir()
        write_keys(tmp_path / "other", [OLD])
        words = ["--url", f"{address}/health", "--identity", address, "--directory", str(tmp_path / "other")]
        assert main(["keys", "accepted", *words]) == 1
    for key, codes in answers.items():
        assert len(codes) > 3, key
        assert set(codes) == {200}, key


def asked(address: str, key: str) -> int:
    request = urllib.request.Request(f"{address}/v1/models", headers={"Authorization": f"Bearer {key}"})  # noqa: S310  # loopback
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310  # loopback
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_gateway_is_started_with_every_key_that_counts(tmp_path: Path) -> None:
    (tmp_path / "api_key").write_text(f"{NEW}\n{OLD}\n")
    (tmp_path / "admin_key").write_text(f"{MANAGER}\nanother-{MANAGER}\n")
    assert key_arguments(tmp_path) == [
        "--api-key", NEW, "--tenant-api-key", f"metal-2:{OLD}",
        "--control-plane-api-keys", f"metal:metal:admin:{MANAGER}", f"metal2:metal2:admin:another-{MANAGER}",
    ]  # fmt: skip


def test_keys_without_a_file_are_those_of_the_start(tmp_path: Path) -> None:
    found = KeyFile(tmp_path / FILE, Accepted((OLD,), (MANAGER,)))
    assert found.now().user == (OLD,)
    write_keys(tmp_path, [NEW, OLD])
    assert found.now().user == (NEW, OLD)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--key", "share", "--key", "api_key"], "expected it alone"),
        (["--key", "share", "--take-back"], "renew it again instead"),
    ],
)
def test_the_secret_of_sharing_is_renewed_alone(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        key_commands.rotate([*words, "-i", "nowhere"])


@pytest.mark.parametrize(("words", "do"), [([], "renew"), (["--finish"], "drop")])
def test_the_verb_for_the_secret_of_sharing_runs_its_own_playbook(
    words: list[str], do: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, list[str]]] = []

    def run_verb(verb: Any, argv: list[str]) -> int:
        ran.append((verb.playbook, argv))
        return 0

    monkeypatch.setattr(commands, "run_verb", run_verb)
    assert key_commands.rotate(["--key", "share", *words, "-i", "inventory"]) == 0
    extra = json.dumps({"metal_share_secret_do": do})
    assert ran == [("playbooks/rotate_share.yml", ["-i", "inventory", "-e", extra])]
    assert (REPOSITORY / ran[0][0]).is_file()


@pytest.mark.parametrize("stale", [[], ["sglang@b.service"]])
def test_a_change_of_keys_alone_restarts_those_that_do_not_take_them(stale: list[str]) -> None:
    """No unit is written then: seen on lab hosts, where the handler failed without that result."""
    asked = [
        {"rc": int(unit in stale), "item": {"unit": unit}}
        for unit in ("sglang@a.service", "sglang@b.service")
    ]
    keys = {
        "metal_plan": {"services": [{"unit": f"sglang@{name}.service"} for name in "abc"]},
        "__sglang_service_owned": {"units": []},
        "__sglang_service_keys_owned": {"units": [{"name": "sglang.target", "enabled": True}]},
        "__sglang_service_key_asked": {"results": asked},
    }
    assert restarted(keys) == stale
    written = [
        {"name": "sglang@c.service", "state": "restarted", "why": "its unit changed"},
        {"name": "metal-kernel-lines.service", "state": "restarted", "why": "its unit changed"},
        {"name": "sglang@a.service", "state": "started", "why": "is not ready"},
    ]
    assert set(restarted({**keys, "__sglang_service_owned": {"units": written}})) == {
        "sglang@c.service",
        *stale,
    }
    skipped = {
        "__sglang_service_keys_owned": {"skipped": True},
        "__sglang_service_key_asked": {"skipped": True},
    }
    assert restarted({**keys, **skipped}) == []


def restarted(given_variables: dict[str, Any]) -> Any:
    """Which units role sglang_service restarts, according to Ansible itself."""
    name = "__sglang_service_restarted"
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible"), "localhost", "-i", "localhost,", "-c", "local",
         "-m", "ansible.builtin.debug", "-a", f"var={name}",
         "-e", f"@{REPOSITORY}/roles/sglang_service/vars/main.yml", "-e", json.dumps(given_variables)],
        cwd=REPOSITORY, env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout[done.stdout.index("{") :])[name]

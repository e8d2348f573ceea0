"""Doing nothing is not success: no hosts, an empty group, a limit that leaves none, tags that no task has."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minimax_metal.controller.acting import no_hosts, unknown_tags, unreadable
from minimax_metal.controller.ansible_programs import program
from minimax_metal.controller.tags import tags_of

REPOSITORY = Path(__file__).parents[2]
PLAYBOOKS = sorted((REPOSITORY / "playbooks").glob("*.yml"))


def test_a_missing_group_is_named_with_those_that_exist() -> None:
    groups = {"all": ["a"], "ungrouped": [], "gpu_host": ["gpu01"], "gateway_hosts": ["gw01"], "empty": []}
    said = no_hosts(["gpu_hosts"], groups, inventories=["my-fleet"])
    assert "no group gpu_hosts in my-fleet" in said
    assert "gateway_hosts, gpu_host)" in said
    assert "did you mean gpu_host" in said
    assert "empty" not in said
    assert "without a host" in no_hosts(["gpu_hosts"], {"gpu_hosts": []})


@pytest.mark.parametrize(("name", "text", "words"), [
    # ansible-core plugins/inventory/yaml.py: each is only warned of, and the hosts in it are left out
    ("tab.yml", "gpu_hosts:\n\thosts: {a: }\n", ["tab.yml line 2 column 1"]),
    ("colon.yml", "gpu_hosts:\n  hosts:\n    gpu01: {a: b\n", ["colon.yml line"]),
    ("list.json", '{"gpu_hosts": ["gpu01"]}', ["the hosts of gpu_hosts are a list", "gpu01: "]),
    ("dashes.yml", "gpu_hosts:\n  hosts:\n    - gpu01\n", ["the hosts of gpu_hosts are a list"]),
    ("flat.yml", "- gpu01\n- gpu02\n", ["a list, not a mapping"]),
    ("vault.yml", "$ANSIBLE_VAULT;1.1;AES256\n3338\n", ["ansible-vault"]),
])  # fmt: skip
def test_a_file_that_ansible_can_t_read_is_named(
    tmp_path: Path, name: str, text: str, words: list[str]
) -> None:
    (tmp_path / name).write_text(text)
    for inventory in (tmp_path / name, tmp_path):
        broken = unreadable([inventory])
        said = no_hosts(["gpu_hosts"], {}, inventories=["x"], broken=broken)
        for word in words:
            assert word in said
        assert "no group with hosts" not in said
        assert "\n" not in said


def test_inventories_that_can_be_read_are_not_blamed(tmp_path: Path) -> None:
    for name, text in (
        ("a.yml", "gpu_hosts: {hosts: {a: }, vars: {x: !vault secret, y: !unsafe z}}"),
        ("aws_ec2.yml", "plugin: amazon.aws.aws_ec2\nkeyed_groups: [{key: tags}]\n"),
        ("empty.yml", ""),
        ("hosts", "[gpu_hosts]\n\tgpu01"),
    ):
        (tmp_path / name).write_text(text)
        assert unreadable([tmp_path]) == "", name
    assert unreadable(["gpu01,"]) == ""


def test_a_limit_that_leaves_none_is_named_with_the_hosts_there_are() -> None:
    groups = {"gpu_hosts": [f"gpu{number:02}" for number in range(1, 20)]}
    said = no_hosts(["gpu_hosts"], groups, [], limit="gw01")
    assert "--limit gw01" in said
    assert "gpu08, …" in said
    assert no_hosts(["gpu_hosts"], groups, ["gpu07"], limit="gpu07") == ""
    assert no_hosts(["gpu_hosts", "cache_hosts"], {"cache_hosts": ["c"]}) == ""


def test_a_tag_that_no_task_has_is_named_with_the_nearest() -> None:
    known = {"sglang_service", "post_check"}
    said = unknown_tags(["sglang_servise", "always", "post_check"], known)
    assert "did you mean sglang_service for sglang_servise?" in said
    assert "post_check, sglang_service" in said
    assert unknown_tags(["post_check", "all", "untagged"], known) == ""


def test_tags_are_read_through_imports_and_roles() -> None:
    roles = REPOSITORY / "roles"
    site = tags_of(REPOSITORY / "site.yml", roles)
    assert {"always", "model_weights", "post_check", "sglang_gateway", "artefact_cache"} <= site
    assert "drain" not in site
    rollout = tags_of(REPOSITORY / "playbooks" / "rollout.yml", roles)
    assert {"rollout", "drain", "stop", "undrain", "soak", "rollback", "release_record"} <= rollout


def play(*words: str) -> tuple[int, str]:
    done = subprocess.run(
        [program("ansible-playbook"), *words],
        cwd=REPOSITORY,
        env=os.environ | {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("inventory", ["nope", "others"])
def test_every_playbook_refuses_an_inventory_without_its_hosts(tmp_path: Path, inventory: str) -> None:
    """With plain ansible-playbook; before, all of them ended with 0."""
    path = tmp_path / inventory
    if inventory == "others":
        path.write_text("[gpu_hosts]\n[web_hosts]\nw1 ansible_connection=local\n")
    names = [str(REPOSITORY / "site.yml"), *map(str, PLAYBOOKS)]
    if inventory == "nope":
        names = [name for name in names if name.endswith(("site.yml", "rollback.yml", "remove.yml"))]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda name: play(name, "-i", str(path)), names))
    for name, (status, said) in zip(names, answers, strict=True):
        assert status != 0, name
        assert "nothing was done" in said, name
        assert ("web_hosts" in said) == (inventory == "others"), name


def test_a_limit_and_a_tag_are_refused_by_ansible_playbook(tmp_path: Path) -> None:
    path = tmp_path / "hosts.yml"
    path.write_text(
        "gpu_hosts: {hosts: {gpu01: {ansible_connection: local}}}\n"
        "gateway_hosts: {hosts: {gw01: {ansible_connection: local}}}\n"
    )
    status, said = play("site.yml", "-i", str(path), "--limit", "gw*")
    assert status != 0
    assert "no host of group gpu_hosts within --limit gw*" in said
    status, said = play("site.yml", "-i", str(path), "--tags", "post_chek")
    assert status != 0
    assert "did you mean post_check for post_chek?" in said
    # What only reads the playbook is left alone.
    status, said = play("site.yml", "-i", "nope", "--syntax-check")
    assert status == 0, said


def test_a_gateway_is_optional_in_the_site_and_is_all_of_its_own_playbook(tmp_path: Path) -> None:
    path = tmp_path / "hosts.yml"
    path.write_text("gpu_hosts: {hosts: {gpu01: {ansible_connection: local}}}\n")
    wrapper = tmp_path / "part.yml"
    gateway = REPOSITORY / "playbooks" / "gateway.yml"
    wrapper.write_text(
        f"- ansible.builtin.import_playbook: {gateway}\n  vars:\n    __metal_needed: [gpu_hosts]\n"
    )
    assert play(str(wrapper), "-i", str(path))[0] == 0
    status, said = play(str(gateway), "-i", str(path))
    assert status != 0
    assert "no group gateway_hosts" in said


@pytest.mark.parametrize("verb", [("site", "--limit", "nobody"), ("accept", "nobody")])
def test_a_host_that_no_group_has_is_refused_with_those_there_are(
    verb: tuple[str, ...], tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts.yml"
    hosts.write_text("gpu_hosts:\n  hosts: {gpu01: }\n  vars: {metal_model: MiniMax-M2.5}\n")
    done = subprocess.run(
        [sys.executable, "-m", "minimax_metal.cli", *verb, "-i", str(hosts)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)},
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "expected at least one of gpu01" in said, said

"""The repository as the Ansible collection ``minimax.metal``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import minimax_metal as metal
from minimax_metal.controller.adapter import plan_from_variables
from tests.unit.plan_helpers import raw_host
from tools import module_utils

REPOSITORY = Path(__file__).parents[2]
FULL = "minimax.metal."
ACTIONS = {
    path.stem for kind in ("modules", "action") for path in (REPOSITORY / "plugins" / kind).glob("*.py")
}
LOOKUPS = {path.stem for path in (REPOSITORY / "plugins/lookup").glob("*.py")}
FILTERS = {
    name
    for path in (REPOSITORY / "plugins/filter").glob("*.py")
    for name in re.findall(r'"(metal_\w+)":', path.read_text())
}
ROLES = {path.name for path in (REPOSITORY / "roles").iterdir()}
USED = (
    (ACTIONS, re.compile(r"^[ ]*(?:- )?((?:minimax\.metal\.)?metal_\w+):(?= &|$)", re.MULTILINE)),
    (FILTERS, re.compile(r"(?:\||\bmap\(['\"])[ ]*((?:minimax\.metal\.)?metal_\w+)")),
    (LOOKUPS, re.compile(r"\b(?:lookup|query|q)\(\s*['\"]((?:minimax\.metal\.)?[a-z_]+)['\"]")),
    (
        ROLES,
        re.compile(r"(?:^[ ]*- role: |_role:\n(?:[ ]+(?!name:)\w+:.*\n)*[ ]+name: )([\w.]+)$", re.MULTILINE),
    ),
)
"""The names by which our own actions, filters, lookups and roles are called."""
TEXTS = sorted(
    path
    for place in ("roles", "playbooks", "molecule", "site.yml")
    for path in [REPOSITORY / place, *(REPOSITORY / place).rglob("*")]
    if path.is_file() and path.suffix in {".yml", ".j2"} and path.parent.name != "meta"
)


def uses(text: str) -> Iterator[tuple[str, set[str]]]:
    for known, pattern in USED:
        for name in pattern.findall(text):
            yield name, known


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_own_plugins_and_roles_are_named_in_full(path: Path) -> None:
    """Short names are only found with this repository's ansible.cfg."""
    for name, known in uses(path.read_text(encoding="utf-8")):
        assert name.removeprefix(FULL) not in known or name.startswith(FULL), name
        assert not name.startswith(FULL) or name.removeprefix(FULL) in known, (
            f"{name}: there is no such plugin"
        )


def test_the_search_for_names_finds_them() -> None:
    found = {name for path in TEXTS for name, _ in uses(path.read_text(encoding="utf-8"))}
    for known in (ACTIONS, FILTERS, LOOKUPS, ROLES):
        assert len({FULL + name for name in known} & found) >= 3


def ansible(program: str, *words: str, here: Path, settings: str) -> str:
    """Run one of Ansible's programs in another directory, with its own settings; it must succeed."""
    (here / "own.cfg").write_text(f"[defaults]\n{settings}\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    done = subprocess.run(
        [str(Path(sys.executable).with_name(program)), *words], cwd=here, check=False, timeout=240, text=True,
        env=kept | {"ANSIBLE_CONFIG": str(here / "own.cfg"), "ANSIBLE_NOCOLOR": "1"}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  tasks:
    - minimax.metal.metal_facts:
      register: found
    - ansible.builtin.assert:
        that:
          - found.facts is defined
          - query('minimax.metal.role_values', 'ansible_play_hosts') | length == 1
          - none | minimax.metal.metal_run is mapping
"""


@pytest.mark.parametrize("path", sorted((REPOSITORY / "plugins").rglob("*.py")), ids=lambda path: path.stem)
def test_what_calls_the_package_says_where_it_is(path: Path) -> None:
    """An installed collection has its own package, which Python does not know yet."""
    text = path.read_text(encoding="utf-8")
    if re.search("^(from|import) minimax_metal", text, re.MULTILINE):
        assert text.index("plugin_utils.package") < text.index("minimax_metal.")


def test_plugins_are_found_from_any_directory_with_any_settings(tmp_path: Path) -> None:
    """Was "couldn't resolve module/action 'metal_facts'" with a user's own ``ANSIBLE_CONFIG``."""
    (tmp_path / "play.yml").write_text(PLAY)
    ansible("ansible-playbook", "-i", "localhost,", "play.yml", here=tmp_path, settings="")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the collection and install it into a separate directory."""
    place = tmp_path_factory.mktemp("elsewhere")
    ansible(
        "ansible-galaxy",
        "collection",
        "build",
        "--output-path",
        ".",
        str(REPOSITORY),
        here=place,
        settings="",
    )
    (archive,) = place.glob("minimax-metal-*.tar.gz")
    words = (
        "collection",
        "install",
        "--force",
        "--offline",
        "--collections-path",
        "collections",
        str(archive),
    )
    ansible("ansible-galaxy", *words, here=place, settings="")
    return place


def test_the_artifact_holds_what_roles_and_playbooks_use(installed: Path) -> None:
    """Every top-level entry of the repository is in the artifact, or is named in galaxy.yml."""
    root = installed / "collections/ansible_collections/minimax/metal"
    assert {path.name for path in root.iterdir()} - {"requirements"} == {
        "FILES.json", "LICENSE", "MANIFEST.json", "README.md", "docs", "meta", "playbooks", "plugins",
        "pyproject.toml", "roles", "site.yml", "src",
    }  # fmt: skip
    names = [path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()]
    kept = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert set(names) - set(kept.split()) == {"FILES.json", "MANIFEST.json"}
    assert len([name for name in names if name.startswith("roles/")]) > 100


def test_the_playbooks_of_the_installed_collection_are_complete(installed: Path) -> None:
    playbooks = sorted(path.stem for path in (REPOSITORY / "playbooks").glob("*.yml"))
    assert {"site", "rollout", "preflight"} <= set(playbooks)
    (installed / "hosts").write_text("[gpu_hosts]\ngpu01\n[gateway_hosts]\ngw\n[cache_hosts]\ncache\n")
    wanted = [f"minimax.metal.{name}" for name in playbooks if "_" not in name]
    said = ansible(
        "ansible-playbook", "--syntax-check", "-i", "hosts", *wanted, here=installed,
        settings="collections_path = collections\ncollections_scan_sys_path = false",
    )  # fmt: skip
    assert said.count(f"playbook: {installed}") == len(wanted)


ROLE = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  roles:
    - minimax.metal.package_sources
  post_tasks:
    - ansible.builtin.debug:
        msg: "{{ __package_sources }}"
"""


def test_one_role_runs_from_the_installed_collection_alone(installed: Path) -> None:
    """With the collection's own package: neither the clone nor an installed package is on the path."""
    plan = plan_from_variables("localhost", {"metal_model": "MiniMax-M2.5"}, raw_host("H20", 8))
    (installed / "plan.json").write_text(json.dumps({"metal_plan": plan}))
    (installed / "role.yml").write_text(ROLE)
    (installed / "alone.py").write_text(
        "import sys\n"
        f"sys.path = [place for place in sys.path if not place.startswith({str(REPOSITORY / 'src')!r})]\n"
        "from ansible.cli.playbook import main\n"
        "sys.exit(main())\n"
    )
    said = ansible(
        "python", "alone.py", "--check", "-i", "localhost,", "-e", "@plan.json", "role.yml", here=installed,
        settings="collections_path = collections\ncollections_scan_sys_path = false",
    )  # fmt: skip
    assert "TASK [minimax.metal.package_sources : " in said
    assert re.search(r"localhost +: ok=\d+ +changed=0 .*failed=0", said)


def test_what_the_collection_declares_is_what_the_project_declares() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    galaxy = yaml.safe_load((REPOSITORY / "galaxy.yml").read_text(encoding="utf-8"))
    assert (galaxy["namespace"], galaxy["name"], galaxy["version"]) == (
        "minimax",
        "metal",
        project["version"],
    )
    assert metal.__version__ == project["version"]
    needed = {*project["dependencies"], *project["optional-dependencies"]["controller"]}
    lines = (REPOSITORY / "meta/requirements.txt").read_text(encoding="utf-8").splitlines()
    missing = needed - {line for line in lines if not line.startswith("#")}
    assert {re.split("[<>=]", one)[0] for one in missing} == {"ansible-core", "editables"}
    ansible_core = next(one for one in missing if one.startswith("ansible-core"))
    runtime = yaml.safe_load((REPOSITORY / "meta/runtime.yml").read_text(encoding="utf-8"))
    assert runtime["requires_ansible"].removesuffix(".0") in ansible_core


@pytest.mark.parametrize("role", sorted(ROLES))
def test_a_role_reads_nothing_beside_itself_by_its_own_path(role: str) -> None:
    """Files shared with the project are found by name: lookup ``minimax.metal.project_file``."""
    for path in (REPOSITORY / "roles" / role).rglob("*"):
        if path.is_file() and path.suffix != ".md":
            assert not re.search(r"role_path[^\n]{0,9}/\.\.", path.read_text(encoding="utf-8")), path


def test_no_link_is_tracked() -> None:
    """Links do not survive every archive. The labs' inventories, which share variables, are left out."""
    said = subprocess.run(
        ["git", "ls-files", "-s"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    links = {line.split("\t")[1] for line in said.splitlines() if line.startswith("120000")}
    assert {link for link in links if not link.startswith("inventories/")} == set()


def test_what_modules_share_with_the_package_is_the_same() -> None:
    for path, content in module_utils.copies().items():
        name = path.relative_to(REPOSITORY)
        assert path.read_text(encoding="utf-8") == content, (
            f"{name} is stale: run python tools/module_utils.py"
        )

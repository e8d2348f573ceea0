"""The wheel for the hosts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from minimax_metal import cli
from minimax_metal.controller import wheel

PROJECT = Path(__file__).parents[2]
PACKAGES = str(Path(pytest.__file__).parents[1])
"""The directory of the tests' libraries; the project itself is only linked there, which -S does not follow.
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project of the same shape: building the real one would race with edits."""
    directory = tmp_path / "project"
    (directory / wheel.PACKAGE).mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", wheel.LICENCE):
        shutil.copy(PROJECT / name, directory / name)
    (directory / wheel.PACKAGE / "cli.py").write_text('"""Small."""\n')
    for name in ("host", "controller"):
        (directory / wheel.PACKAGE / name).mkdir()
        (directory / wheel.PACKAGE / name / "__init__.py").write_text(f'"""The {name}."""\n')
    (directory / wheel.PACKAGE / "__init__.py").write_text('"""Small."""\n__version__ = "0.2.0"\n')
    return directory


def test_built_once_for_the_same_sources(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--project", str(project), "--output", str(tmp_path / "wheels")]
    assert wheel.main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    (project / wheel.PACKAGE / "__pycache__").mkdir()
    (project / wheel.PACKAGE / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"x")
    assert wheel.main(arguments) == 0
    second = json.loads(capsys.readouterr().out)
    assert first["built"] is True
    assert second == {**first, "built": False}
    path = Path(first["path"])
    assert path.parent == tmp_path / "wheels" / first["digest"]
    assert path.name == "minimax_metal-0.2.0-py3-none-any.whl"
    assert "minimax_metal/__init__.py" in zipfile.ZipFile(path).namelist()
    assert [p.name for p in (tmp_path / "wheels").iterdir()] == [first["digest"]], "nothing temporary is left"


def test_the_same_bytes_for_the_same_sources(project: Path, tmp_path: Path) -> None:
    one, two = (wheel.build(project, tmp_path / name) for name in ("one", "two"))
    assert Path(one.path).read_bytes() == Path(two.path).read_bytes()


def test_a_changed_source_is_another_wheel(project: Path, tmp_path: Path) -> None:
    before = wheel.digest_of(wheel.sources(project))
    (project / wheel.PACKAGE / "host" / "data.yml").write_text("a: 1\n")
    assert wheel.digest_of(wheel.sources(project)) != before


@pytest.mark.parametrize("name", ["README.md", "src/minimax_metal/controller/__init__.py", "pyproject.toml"])
def test_what_hosts_do_not_run_is_no_new_wheel(project: Path, name: str) -> None:
    before = wheel.digest_of(wheel.sources(project))
    with (project / name).open("a", encoding="utf-8") as stream:
        stream.write("\n# changed\n")
    assert wheel.digest_of(wheel.sources(project)) == before


def test_the_hosts_wheel_has_what_hosts_run_and_nothing_of_the_controller(tmp_path: Path) -> None:
    """Installed alone, it has every verb that a role, a unit or a user calls on a host."""
    made = wheel.build(PROJECT, tmp_path / "wheels")
    with zipfile.ZipFile(made.path) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert not [name for name in names if "/controller" in name]
    assert "minimax_metal/catalog/locks/README.md" in names

    path = [str(tmp_path / "site"), PACKAGES]
    code = f"import sys; sys.path[:0] = {path!r}; from minimax_metal.cli import main; sys.exit(main())"

    def metal(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-S", "-c", code, *words],
            capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path,
        )  # fmt: skip

    for verb, (target, _) in cli.VERBS.items():
        done = metal(verb, "--help")
        if target.startswith(cli.CONTROLLER) and verb not in cli.ON_HOSTS:
            assert done.returncode == cli.EXIT_USAGE, verb
            assert "expected the controller" in done.stderr
            assert len(done.stderr.splitlines()) == 1
        else:
            assert (done.returncode, done.stderr) == (0, ""), verb
    for words in (("accept", "--list"), ("keys", "accepted", "--help"), ("status", "--here", "--help")):
        assert metal(*words).returncode == 0, words


def test_what_is_no_project_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wheel.main(["--project", str(tmp_path), "--output", str(tmp_path / "wheels")]) == 2
    assert "pass the project's directory" in capsys.readouterr().err


def test_what_cannot_be_built_says_why(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "pyproject.toml").write_text("[build-system\n")
    assert wheel.main(["--project", str(project), "--output", str(tmp_path / "wheels")]) == 2
    said = capsys.readouterr().err
    assert "pyproject.toml can't be read" in said
    assert len(said.splitlines()) == 1


def test_the_project_itself_has_a_digest() -> None:
    assert len(wheel.digest_of(wheel.sources(PROJECT))) == 12

"""The wheel for the hosts."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from minimax_metal.controller import wheel

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project of the same shape: building the true one would race with whoever edits it."""
    directory = tmp_path / "project"
    (directory / wheel.PACKAGE).mkdir(parents=True)
    for name in wheel.FILES:
        shutil.copy(PROJECT / name, directory / name)
    (directory / wheel.PACKAGE / "__init__.py").write_text('"""Small."""\n__version__ = "0.1.0"\n')
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
    assert path.name == "minimax_metal-0.1.0-py3-none-any.whl"
    assert "minimax_metal/__init__.py" in zipfile.ZipFile(path).namelist()
    assert [p.name for p in (tmp_path / "wheels").iterdir()] == [first["digest"]], "nothing temporary is left"


def test_the_same_bytes_for_the_same_sources(project: Path, tmp_path: Path) -> None:
    one, two = (wheel.build(project, tmp_path / name) for name in ("one", "two"))
    assert Path(one.path).read_bytes() == Path(two.path).read_bytes()


def test_a_changed_source_is_another_wheel(project: Path, tmp_path: Path) -> None:
    before = wheel.digest_of(project)
    (project / wheel.PACKAGE / "data.yml").write_text("a: 1\n")
    assert wheel.digest_of(project) != before


def test_what_is_no_project_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wheel.main(["--project", str(tmp_path), "--output", str(tmp_path / "wheels")]) == 2
    assert "pass the project's directory" in capsys.readouterr().err


def test_what_cannot_be_built_says_why(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "pyproject.toml").write_text("[build-system\n")
    assert wheel.main(["--project", str(project), "--output", str(tmp_path / "wheels")]) == 2
    said = capsys.readouterr().err
    assert "hatchling could not build" in said
    assert len(said.splitlines()) == 1


def test_the_project_itself_has_a_digest() -> None:
    assert len(wheel.digest_of(PROJECT)) == 12

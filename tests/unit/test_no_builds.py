"""No installation, on a host or here, runs a package's build program, whatever the package index offers.

The index offers one file: the source archive of a package, whose hash is in the lock. Its build program
leaves a mark. The commands are those of the roles, the Makefile and the package, not copies.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

from minimax_metal.common.errors import UserError
from minimax_metal.controller.bundle import wheels
from minimax_metal.controller.bundle.wanted import Wheels
from tests.unit.test_roles import load, tasks
from tools import engine_bump, locks

REPOSITORY = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class Index:
    """An index on loopback with one source archive, in a separate directory."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.mark = directory, directory / "built"

    def offer(self, name: str, version: str) -> str:
        """Offer a release as a source archive only; return the lock with its hash."""
        program = f"import pathlib; pathlib.Path({str(self.mark)!r}).touch()\nraise SystemExit('built')\n"
        members = {
            "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "mark"\nbackend-path = ["."]\n',
            "mark.py": program,
            "setup.py": program,
        }
        stem = f"{name}-{version}"
        archive = self.directory / f"{stem}.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for member, text in members.items():
                entry = tarfile.TarInfo(f"{stem}/{member}")
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text.encode()))
        return self._list(name, version, archive)

    def _list(self, name: str, version: str, archive: Path) -> str:
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        page = self.directory / "simple" / name / "index.html"
        page.parent.mkdir(parents=True)
        link = f'<a href="/{archive.name}#sha256={digest}">{archive.name}</a>'
        page.write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")
        return f"{name}=={version} \\\n    --hash=sha256:{digest}\n"

    def offer_wheel(self, name: str, version: str) -> str:
        """Offer a release as a wheel; return the lock with its hash."""
        wheel = self.directory / f"{name}-{version}-py3-none-any.whl"
        info = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{name}.py", "")
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            archive.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(
                f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
            )
        return self._list(name, version, wheel)

    def environment(self, url: str) -> dict[str, str]:
        names = ("PIP_", "UV_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
        index = f"{url}/simple"
        return kept | {
            "PIP_INDEX_URL": index,
            "PIP_TRUSTED_HOST": "127.0.0.1",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_CACHE_DIR": "1",
            "UV_DEFAULT_INDEX": index,
            "UV_NO_CONFIG": "1",
            "UV_CACHE_DIR": str(self.directory / "uv-cache"),
        }


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    directory = tmp_path / "index"
    directory.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    found = Index(directory)
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    for name, value in found.environment(f"http://127.0.0.1:{server.server_port}").items():
        monkeypatch.setenv(name, value)
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A virtual environment with pip, like a host's; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    return tmp_path / "venv/bin/python"


def run(words: list[str], **options: Any) -> str:
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=120, **options)
    said = f"{done.stdout}{done.stderr}"
    assert done.returncode, f"{words}: {said}"
    return said


def words_of(role: str, values: dict[str, Any]) -> list[list[str]]:
    """The arguments of every role's task that lets pip or uv install something, as Ansible fills them in."""
    loader = DataLoader()
    directory = REPOSITORY / "roles" / role
    variables: dict[str, Any] = {}
    for name in ("defaults/main.yml", "vars/main.yml"):
        variables |= loader.load_from_file(str(directory / name), trusted_as_template=True) or {}
    variables |= values
    found: list[list[str]] = []
    for path in sorted((directory / "tasks").glob("*.yml")):
        for task in tasks(loader.load_from_file(str(path), trusted_as_template=True)):
            argv = task.get("ansible.builtin.command", {}).get("argv", "")
            text = str(argv)
            if "install" not in text or ("pip" not in text and "uv" not in text):
                continue
            installs = next((name for name in variables if name.endswith("_installs")), None)
            items = Templar(loader, variables).template(variables[installs]) if installs else [None]
            for item in items if "item" in text else [None]:
                given = {"item": item}
                # Nothing is damaged, so nothing is installed again.
                named = variables | task.get("vars", {}) | {"__again": []} | given
                words = Templar(loader, named).template(argv)
                found.append([str(word) for word in words])
    return found


def role_values(role: str, tmp_path: Path, lock: str, venv: Path) -> dict[str, Any]:
    [offered] = (tmp_path / "index").glob("mark-1.0*")
    source = tmp_path / offered.name
    shutil.copy(offered, source)
    path = tmp_path / "lock.txt"
    path.write_text(lock)
    values: dict[str, dict[str, Any]] = {
        "host_tools": {
            "__host_tools_uv": str(UV),
            "__host_tools_python": str(venv),
            "__host_tools_environment": str(tmp_path),
            "__host_tools_uv_directory": str(venv.parents[1]),
            "host_tools_requirements": "lock.txt",
            "host_tools_uv_requirements": "lock.txt",
            "__host_tools_wheel": {"path": str(source)},
        },
        "sglang_runtime": {
            "__sglang_runtime_uv": str(UV),
            "__sglang_runtime_python": str(venv),
            "__sglang_runtime_files": str(tmp_path),
            "__sglang_runtime_lock": str(path),
            "__sglang_runtime_wheels": [str(source)],
        },
        "sglang_gateway": {
            "__sglang_gateway_uv": str(UV),
            "__sglang_gateway_python": str(venv),
            "__sglang_gateway_sources": str(tmp_path),
            "__sglang_gateway_lock": str(path),
        },
    }
    return values[role]


@pytest.mark.parametrize(("role", "count"), [("host_tools", 3), ("sglang_runtime", 2), ("sglang_gateway", 1)])
def test_a_role_builds_nothing(role: str, count: int, index: Index, venv: Path, tmp_path: Path) -> None:
    lock = index.offer("mark", "1.0")
    commands = words_of(role, role_values(role, tmp_path, lock, venv))
    assert len(commands) == count
    for words in commands:
        run(words)
        assert not index.mark.exists(), words


@pytest.mark.parametrize(("role", "count"), [("host_tools", 3), ("sglang_runtime", 2), ("sglang_gateway", 1)])
def test_a_role_takes_a_wheel(role: str, count: int, index: Index, venv: Path, tmp_path: Path) -> None:
    """The same arguments install a wheel: otherwise they might fail for any reason."""
    commands = words_of(role, role_values(role, tmp_path, index.offer_wheel("mark", "1.0"), venv))
    assert len(commands) == count
    for words in commands:
        assert all(word == word.strip("{}") for word in words), words
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (words, done.stderr)
    assert list((venv.parents[1] / "lib").rglob("mark.py"))


def test_this_index_has_a_build_run_where_nothing_forbids_it(
    index: Index, venv: Path, tmp_path: Path
) -> None:
    """Otherwise the other tests would prove nothing."""
    (tmp_path / "lock.txt").write_text(index.offer("mark", "1.0"))
    run(
        [
            str(UV),
            "pip",
            "install",
            "--python",
            str(venv),
            "--require-hashes",
            "-r",
            str(tmp_path / "lock.txt"),
        ]
    )
    assert index.mark.exists()


def test_the_roles_that_install_are_all_tested() -> None:
    installing = set()
    for path in (REPOSITORY / "roles").glob("*/tasks/*.yml"):
        for task in tasks(load(path)):
            text = str(task)
            if "ansible.builtin.pip" in task or ("'pip'" in text and "install" in text):
                installing.add(path.parts[-3])
    assert installing == {"host_tools", "sglang_runtime", "sglang_gateway"}


@pytest.mark.parametrize("lock", ["bootstrap.txt", "controller.txt"])
def test_setup_builds_nothing(lock: str, index: Index, venv: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "requirements").mkdir(parents=True)
    shutil.copytree(REPOSITORY / "scripts", tree / "scripts")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tree / name)
    for name in ("bootstrap.txt", "controller.txt"):
        (tree / "requirements" / name).write_text("# empty\n")
    (tree / "requirements" / lock).write_text(index.offer("mark", "1.0"))
    (venv.parent / "uv").symlink_to(UV)
    said = run(["make", "-C", str(tree), "setup", f"VENV={venv.parents[1]}", f"PYTHON={sys.executable}"])
    assert "mark" in said
    assert not index.mark.exists()


def test_a_bundle_and_a_lock_build_nothing(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock.txt"
    path.write_text(index.offer("mark", "1.0"))
    with pytest.raises(UserError, match="can't resolve"):
        wheels.resolve(path, Wheels("uv", "3.12", "x86_64"), os.environ["UV_DEFAULT_INDEX"])
    with pytest.raises(UserError, match="can't resolve"):
        locks.ask(path, "3.12")
    assert not index.mark.exists()


def test_a_new_release_of_the_engine_builds_nothing(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    index.offer("sglang", "9.9.9")
    assert engine_bump.main(["9.9.9"]) == 1
    with pytest.raises(UserError):
        engine_bump.lock("9.9.9", "3.12")
    assert not index.mark.exists()

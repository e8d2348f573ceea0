"""A directory's owner decides as which user root works there; no other user's name is trusted."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from minimax_metal.common import files, privileges

ENGINE, PULL = 64_001, 64_002
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="root changes owners")


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    """A directory that other users can reach, and that only this user writes to."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.geteuid() and directory != Path("/tmp"):  # noqa: S108
            directory.chmod(0o755)
    return tmp_path


def owned(path: Path, uid: int) -> Path:
    path.mkdir(mode=0o755)
    os.chown(path, uid, uid)
    return path


@root_only
def test_root_works_as_the_owner_of_the_first_directory_that_is_not_its_own(open_path: Path) -> None:
    inner = owned(owned(open_path / "engine", ENGINE) / "pull", PULL)
    assert privileges.untrusted_owner(open_path) is None
    assert privileges.untrusted_owner(inner / "missing" / "more") == (ENGINE, ENGINE)
    # A link of root's leads there as well; one inside is the owner's own matter.
    (open_path / "link").symlink_to("engine/pull")
    assert privileges.untrusted_owner(open_path / "link") == (ENGINE, ENGINE)
    assert privileges.untrusted_owner(open_path / "engine" / ".." / "engine") == (ENGINE, ENGINE)
    with privileges.acting_as_owner_of(inner):
        assert os.geteuid() == ENGINE
        with pytest.raises(PermissionError):
            (open_path / "new").touch()
    with privileges.acting_as_owner_of(open_path):
        assert os.geteuid() == 0


@root_only
@pytest.mark.parametrize("place", ["engine", "engine/below", "link", "writable"])
def test_a_directory_that_somebody_else_can_change_is_not_trusted(open_path: Path, place: str) -> None:
    owned(open_path / "engine", ENGINE)
    (open_path / "engine" / "below").mkdir()
    (open_path / "link").symlink_to("engine/below")
    (open_path / "writable").mkdir()
    (open_path / "writable").chmod(0o777)
    with pytest.raises(PermissionError, match=r"can write to .*/(engine|writable), which only root should"):
        privileges.trusted_directory(open_path / place)
    assert not privileges.untrusted_owner(open_path / "writable")


def test_a_directory_of_ones_own_is_trusted_and_made(open_path: Path) -> None:
    (open_path / "link").symlink_to("real")
    (open_path / "real").mkdir()
    made = privileges.trusted_directory(open_path / "link" / "a" / "b", create=0o700)
    assert made == open_path / "real" / "a" / "b"
    assert made.stat().st_mode & 0o777 == 0o700
    for missing in ("none", "real/none/more"):
        with pytest.raises(FileNotFoundError):
            privileges.trusted_directory(open_path / missing)
    (open_path / "file").touch()
    with pytest.raises(OSError, match=r"[Nn]ot a directory"):
        privileges.trusted_directory(open_path / "file")
    (open_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        privileges.trusted_directory(open_path / "loop")


@root_only
def test_a_thread_reaches_files_as_somebody_and_others_go_on_as_root(open_path: Path) -> None:
    theirs = owned(open_path / "theirs", PULL)
    (open_path / "secret").write_text("secret")
    (open_path / "secret").chmod(0o600)
    found: list[object] = []

    def work() -> None:
        with privileges.files_as(PULL, PULL):
            (theirs / "file").write_text("mine")
            for forbidden in (
                lambda: (open_path / "secret").read_text(),
                lambda: (open_path / "new").touch(),
                lambda: os.chown(theirs / "file", 0, 0),
            ):
                try:
                    forbidden()
                    found.append("allowed")
                except PermissionError:
                    found.append("denied")
            with privileges.files_as(0, 0):
                found.append((open_path / "secret").read_text())
            inside.wait(10)
            inside.wait(10)

    inside = threading.Barrier(2)
    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(10)
    assert (open_path / "secret").read_text() == "secret"
    inside.wait(10)
    thread.join(10)
    assert found == ["denied", "denied", "denied", "secret"]
    assert (theirs / "file").stat().st_uid == PULL


def plant_file(place: Path, victim: Path) -> None:
    place.symlink_to(victim / "file")


def plant_directory(place: Path, victim: Path) -> None:
    place.symlink_to(victim)


def plant_hard(place: Path, victim: Path) -> None:
    place.hardlink_to(victim / "file")


@root_only
@pytest.mark.parametrize("plant", [plant_file, plant_directory, plant_hard])
def test_nothing_but_the_former_owners_own_is_given(
    open_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    victim = open_path / "etc"
    victim.mkdir()
    (victim / "file").write_text("root's")
    tree = owned(owned(open_path / "models", ENGINE) / "model", ENGINE)
    (tree / "shard").touch()
    os.chown(tree / "shard", ENGINE, ENGINE)
    os.mkfifo(tree / "pipe")
    os.chown(tree / "pipe", ENGINE, ENGINE)
    plant(tree / "planted", victim)
    # Even a link of the former owner's own leads nowhere.
    os.chown(tree / "planted", ENGINE, ENGINE, follow_symlinks=False) if (
        tree / "planted"
    ).is_symlink() else None
    assert files.give_tree(open_path / "models", frozenset({ENGINE}), (PULL, PULL)) == 4
    assert (victim / "file").stat().st_uid == victim.stat().st_uid == 0
    assert {path.stat().st_uid for path in (tree, tree.parent, tree / "shard", tree / "pipe")} == {PULL}
    assert files.give_tree(open_path / "models", frozenset({ENGINE}), (PULL, PULL)) == 0


def test_a_root_that_is_a_link_is_given_to_nobody(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(OSError, match=r"links|directory"):
        files.give_tree(tmp_path / "link", frozenset({0}), (0, 0))


def test_a_new_file_appears_whole_and_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").symlink_to("/etc/passwd")
    with files.directory_beneath(tmp_path) as directory:
        with files.new_file(directory, "new", 0o640) as descriptor:
            os.write(descriptor, b"content")
            assert not (tmp_path / "new").exists()
        with pytest.raises(FileExistsError), files.new_file(directory, "taken"):
            pass
        with pytest.raises(OSError, match="not a name"), files.new_file(directory, "../x"):
            pass
    assert (tmp_path / "new").read_bytes() == b"content"
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
    assert {path.name for path in tmp_path.iterdir()} == {"taken", "new"}


def test_killed_before_the_end_a_new_file_has_no_name(tmp_path: Path) -> None:
    code = (
        "import os, signal; from minimax_metal.common import files\n"
        f"with files.directory_beneath(__import__('pathlib').Path({str(tmp_path)!r})) as d, "
        "files.new_file(d, 'name') as f:\n os.write(f, b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert not (tmp_path / "name").exists()
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]

"""The owners of a model's directories, on a new host and on one of an earlier version."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from minimax_metal.common.errors import UserError
from minimax_metal.host.weights import commands
from minimax_metal.host.weights.ownership import settle

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root changes owners")

ENGINE = pwd.getpwnam("games")
PULL = pwd.getpwnam("nobody")
OWNER = (PULL.pw_uid, PULL.pw_gid)
BEFORE = frozenset({ENGINE.pw_uid})


def earlier(root: Path) -> Path:
    """The previous version's state: everything is the engine's."""
    leaf = root / "MiniMaxAI" / "MiniMax-M2.5"
    for name in ("r/.minimax-metal/manifest.json", "r/model.safetensors", ".r.lock", "s.partial/half"):
        (leaf / name).parent.mkdir(parents=True, exist_ok=True)
        (leaf / name).write_text(name)
    for path in (root, *root.rglob("*")):
        os.chown(path, ENGINE.pw_uid, ENGINE.pw_gid)
    return leaf


def owners(path: Path) -> set[int]:
    return {one.lstat().st_uid for one in (path, *path.rglob("*"))}


def test_a_host_of_the_previous_version_migrates_in_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "models"
    leaf = earlier(root)
    words = ["own", str(leaf), "--root", str(root), "--user", "nobody", "--before", "games"]
    assert commands.main(words) == 0
    assert capsys.readouterr().out == "given 10 to nobody and root\n"
    assert (root.stat().st_uid, leaf.parent.stat().st_uid) == (0, 0)
    assert owners(leaf) == {PULL.pw_uid}
    assert commands.main(words) == 0
    assert capsys.readouterr().out == "owners unchanged\n"


def test_a_new_host_gets_directories_of_roots_down_to_the_models(tmp_path: Path) -> None:
    leaf = tmp_path / "srv" / "models" / "MiniMaxAI" / "MiniMax-M2.5"
    assert settle(leaf, tmp_path / "srv" / "models", OWNER, BEFORE) == 1
    assert [path.stat().st_uid for path in (leaf, *list(leaf.parents)[:3])] == [PULL.pw_uid, 0, 0, 0]
    assert leaf.stat().st_mode & 0o777 == 0o755
    assert settle(leaf, tmp_path / "srv" / "models", OWNER, BEFORE) == 0


def test_roots_own_link_to_the_disk_counts(tmp_path: Path) -> None:
    leaf = earlier(tmp_path / "disk" / "models")
    (tmp_path / "models").symlink_to("disk/models")
    settle(
        tmp_path / "models" / leaf.relative_to(tmp_path / "disk/models"), tmp_path / "models", OWNER, BEFORE
    )
    assert owners(leaf) == {PULL.pw_uid}


@pytest.mark.parametrize("place", ["MiniMaxAI", "MiniMaxAI/MiniMax-M2.5"])
def test_a_planted_link_on_the_way_is_refused(tmp_path: Path, place: str) -> None:
    root, victim = tmp_path / "models", tmp_path / "etc"
    (victim / "MiniMax-M2.5").mkdir(parents=True)
    (victim / "shadow").write_text("root's")
    os.chown(victim / "MiniMax-M2.5", ENGINE.pw_uid, ENGINE.pw_gid)
    leaf = earlier(root)
    (root / place).rename(root / "aside")
    (root / place).symlink_to(victim)
    os.chown(root / place, ENGINE.pw_uid, ENGINE.pw_gid, follow_symlinks=False)
    with pytest.raises(UserError, match=r"expected directories below .* and no links"):
        commands.main(["own", str(leaf), "--root", str(root), "--user", "nobody", "--before", "games"])
    assert (victim / "shadow").stat().st_uid == 0
    assert (victim / "MiniMax-M2.5").stat().st_uid == ENGINE.pw_uid


def test_what_the_engine_linked_into_its_directory_stays_whose_it_is(tmp_path: Path) -> None:
    leaf, victim = earlier(tmp_path / "models"), tmp_path / "shadow"
    victim.write_text("root's")
    (leaf / "r" / "link").symlink_to(victim)
    (leaf / "r" / "hard").hardlink_to(victim)
    (leaf / "r" / "directory").symlink_to(tmp_path)
    settle(leaf, tmp_path / "models", OWNER, BEFORE)
    assert (victim.stat().st_uid, tmp_path.stat().st_uid) == (0, 0)


def test_a_user_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found no user nobody-of-that-name"):
        commands.main(["own", str(tmp_path / "a"), "--root", str(tmp_path), "--user", "nobody-of-that-name"])

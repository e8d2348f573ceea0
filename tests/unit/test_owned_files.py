"""Files of a role's list are compared and written whole, and nobody else's link leads a write elsewhere."""

from __future__ import annotations

import base64
import os
import stat
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.common.files import directory_by_name
from tests.support.plugins import load_plugin

FILES: Any = load_plugin("module_utils/metal_owned_files")
MODULE: Any = load_plugin("modules/metal_owned")


def entry(path: Path, kind: str = "file", **more: Any) -> dict[str, Any]:
    return {
        "path": str(path),
        "kind": kind,
        "owner": "root",
        "group": "root",
        "mode": "0755" if kind == "directory" else "0644",
        "secret": False,
        **more,
    }


def accept(_words: Sequence[str]) -> None:
    pass


def apply(one: dict[str, Any], content: bytes | None = None, check: bool = False) -> Any:
    return FILES.apply(one, content, check, accept)


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_a_file_is_written_once_and_then_as_it_should_be(tmp_path: Path) -> None:
    path = tmp_path / "file"
    change = apply(entry(path, mode="0640"), b"text\n")
    assert (change.content, change.was, change.now) == (True, "absent", "file root:root 0640")
    assert path.read_text() == "text\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert apply(entry(path, mode="0640"), b"text\n") is None
    assert names(tmp_path) == ["file"]


def damaged_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def damaged_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, tuple[Callable[[Path], object], bool]] = {
    "content": (lambda path: path.write_text("other"), True),
    "longer": (lambda path: path.write_text("text\nx"), True),
    "mode": (lambda path: path.chmod(0o600), False),
    "owner": (lambda path: os.chown(path, 12345, 0), False),
    "gone": (lambda path: path.unlink(), True),
    "a link": (damaged_link, True),
    "a pipe": (damaged_pipe, True),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damage_of_a_file_is_seen_in_check_mode_and_repaired(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "file"
    apply(entry(path), b"text\n")
    before = path.stat().st_mtime_ns
    change, content = DAMAGE[damage]
    change(path)
    found = apply(entry(path), b"text\n", check=True)
    left = os.lstat(path) if damage != "gone" else None
    assert found.content is content
    assert found.was != "file root:root 0644" or content
    seen = apply(entry(path), b"text\n")
    assert seen == found
    if left is not None and not content:
        # Owner and mode were set; the file is the same one: nothing that reads it is restarted.
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (left.st_ino, before)
    assert apply(entry(path), b"text\n") is None
    assert path.read_text() == "text\n"
    assert Path("/etc/passwd").read_text().startswith("root:")


def test_the_old_content_is_shown_but_of_secrets_and_of_what_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    shown = apply(entry(path), b"new", check=True).before
    assert zlib.decompress(base64.b64decode(shown)) == b"old"
    assert apply(entry(path, secret=True), b"new", check=True).before is None
    path.write_bytes(b"\0old")
    assert apply(entry(path), b"new", check=True).before is None
    path.write_bytes(b"x" * (FILES.BEFORE_BYTES + 1))
    assert apply(entry(path), b"new", check=True).before is None
    assert apply(entry(path, kind="absent", secret=True), None, check=True).before is None


def test_an_endless_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    assert apply(entry(path), b"text", check=True).content


def test_a_file_that_a_program_refuses_takes_nobodys_place(tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.write_text("old")
    one = entry(
        path, validate=["/bin/sh", "-c", 'grep -q good "$0" || { echo "no good" >&2; exit 1; }', "%s"]
    )
    with pytest.raises(OSError, match=r"sh refuses the new file \(no good\)"):
        FILES.apply(one, b"bad", False, MODULE.validate)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["rules"]
    assert FILES.apply(one, b"good", False, MODULE.validate).content
    assert path.read_text() == "good"


def test_links_directories_and_what_must_not_be_there(tmp_path: Path) -> None:
    link, directory, gone = tmp_path / "link", tmp_path / "a" / "b", tmp_path / "gone"
    (gone / "deep").mkdir(parents=True)
    todo = [
        entry(directory, "directory", mode="0750"),
        entry(link, "link", target="a"),
        entry(gone, "absent"),
    ]
    assert all(apply(one, check=True).content for one in todo)
    assert names(tmp_path) == ["gone"]
    assert all(apply(one).content for one in todo)
    assert [apply(one) for one in todo] == [None] * 3
    assert names(tmp_path) == ["a", "link"]
    assert (link.readlink(), stat.S_IMODE(directory.stat().st_mode)) == (Path("a"), 0o750)
    link.unlink()
    link.symlink_to("/nowhere")
    directory.chmod(0o777)
    assert apply(todo[1]).was == "link to /nowhere"
    assert not apply(todo[0]).content
    assert [apply(one) for one in todo] == [None] * 3


def test_a_file_of_others_gets_owner_and_mode_where_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert apply(entry(path, "kept")) is None
    assert apply(entry(tmp_path / "none" / "lock", "kept")) is None
    path.write_text("theirs")
    path.chmod(0o666)
    assert apply(entry(path, "kept")).content is False
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("theirs", 0o644)
    path.chmod(0o666)
    os.link(path, tmp_path / "second")
    with pytest.raises(OSError, match="second name"):
        apply(entry(path, "kept"))


def test_owner_and_mode_that_are_kept_are_nobodys_business(tmp_path: Path) -> None:
    path = tmp_path / "sources.list"
    path.write_text("old")
    path.chmod(0o604)
    assert apply(entry(path, mode="preserve"), b"new").content
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert apply(entry(path, mode="preserve"), b"new") is None


def test_a_second_name_of_a_file_gets_nothing(tmp_path: Path) -> None:
    """A hard link to somebody else's file must not be given another owner."""
    other = tmp_path / "other"
    other.write_text("text")
    other.chmod(0o600)
    os.link(other, tmp_path / "file")
    assert apply(entry(tmp_path / "file", mode="0644"), b"text").content is False
    assert stat.S_IMODE(other.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_bytes_come_from_a_transferred_file_only_if_they_are_those(tmp_path: Path) -> None:
    path, source = tmp_path / "file", tmp_path / "source"
    source.write_bytes(b"wheel")
    digest = "0fc1d6b6ad9ac4a9dbcd8d1f4d0ba4d0"
    one = entry(path, sha256=digest, size=5, source=str(source))
    with pytest.raises(OSError, match="other bytes"):
        apply(one)
    assert names(tmp_path) == ["source"]
    one["sha256"] = FILES.hashlib.sha256(b"wheel").hexdigest()
    changes, wanted = MODULE.apply_all([{key: one[key] for key in one if key != "source"}], {}, False)
    assert (wanted, changes[0].content, path.exists()) == ([str(path)], True, False)
    assert MODULE.apply_all([one], {}, False)[1] == []
    assert path.read_bytes() == b"wheel"
    assert MODULE.apply_all([{key: one[key] for key in one if key != "source"}], {}, False) == ([], [])


def test_what_lies_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="a directory, where a file belongs"):
        apply(entry(tmp_path / "file"), b"x")
    with pytest.raises(OSError, match="a directory, where a link belongs"):
        apply(entry(tmp_path / "file", "link", target="x"))
    with pytest.raises(FileNotFoundError):
        apply(entry(tmp_path / "none" / "file"), b"x")
    assert apply(entry(tmp_path / "none" / "file"), b"x", check=True).was == "absent"
    with pytest.raises(FileNotFoundError) as missing:
        MODULE.apply_all([entry(tmp_path / "none" / "file")], {str(tmp_path / "none" / "file"): ""}, False)
    assert missing.value.filename == str(tmp_path / "none" / "file")


def test_users_that_are_not_there_yet_differ_in_check_mode_and_are_an_error_else(tmp_path: Path) -> None:
    one = entry(tmp_path / "file", owner="no-such-user")
    assert apply(one, b"x", check=True).now == "file no-such-user:root 0644"
    with pytest.raises(OSError, match="no user no-such-user"):
        apply(one, b"x")
    assert names(tmp_path) == []


# Somebody else's directories --------------------------------------------------------------------------------


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory of another user, with links to a directory of root's and to a file of root's."""
    place = tmp_path / "theirs"
    place.mkdir()
    (tmp_path / "roots").mkdir()
    (tmp_path / "roots" / "file").write_text("root's")
    (place / "way").symlink_to(tmp_path / "roots")
    (place / "file").symlink_to(tmp_path / "roots" / "file")
    os.chown(place, 12345, 12345)
    return place


def test_a_planted_link_is_not_followed_on_the_way(theirs: Path) -> None:
    roots = theirs.parent / "roots"
    for one, content in (
        (entry(theirs / "way" / "file"), b"new"),
        (entry(theirs / "way" / "new"), b"new"),
        (entry(theirs / "way" / "made", "directory"), None),
        (entry(theirs / "way", "directory", mode="0700"), None),
        (entry(theirs / "way" / "file", "absent"), None),
    ):
        with pytest.raises(OSError, match="somebody else"):
            apply(one, content)
    assert (names(roots), (roots / "file").read_text()) == (["file"], "root's")
    assert stat.S_IMODE(roots.stat().st_mode) != 0o700


def test_a_planted_link_at_the_end_is_replaced_and_not_followed(theirs: Path) -> None:
    apply(entry(theirs / "file"), b"new")
    assert (theirs / "file").read_text() == "new"
    assert not (theirs / "file").is_symlink()
    assert (theirs.parent / "roots" / "file").read_text() == "root's"


def test_a_link_of_roots_own_is_followed_on_the_way(tmp_path: Path) -> None:
    """``/srv/models -> /data/models``: the disk's place is the administrator's to say."""
    (tmp_path / "data").mkdir()
    (tmp_path / "srv").symlink_to("data")
    apply(entry(tmp_path / "srv" / "file"), b"x")
    assert (tmp_path / "data" / "file").read_text() == "x"


def test_links_without_end_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="link"), directory_by_name(tmp_path / "a"):
        pass


def test_what_matches_a_pattern_and_is_not_listed_is_a_stray(tmp_path: Path) -> None:
    for name in ("a@one.service", "a@two.service", "b.service"):
        (tmp_path / name).touch()
    (tmp_path / "a@one.service.d").mkdir()
    patterns = [f"{tmp_path}/a@*.service", f"{tmp_path}/none/*"]
    assert FILES.strays(patterns, {f"{tmp_path}/a@two.service"}) == [f"{tmp_path}/a@one.service"]
    assert FILES.strays([], set()) == []

"""Keys in files of the controller: created once, complete or not at all, and refused if incomplete."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from minimax_metal.common.errors import UserError
from minimax_metal.controller.keys import kept as keys
from tests.support.templates import REPOSITORY


def write(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    place = tmp_path / "secrets" / "api_key"
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: keys.kept(place), range(40)))
    assert len(found) == 1
    assert place.read_text() == found.pop() + "\n"
    assert (place.stat().st_mode & 0o777, place.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert [path.name for path in place.parent.iterdir()] == ["api_key"]
    assert len(place.read_text().strip()) == keys.LENGTH


def test_a_check_keeps_nothing(tmp_path: Path) -> None:
    assert len(keys.kept(tmp_path / "a" / "key", keep=False)) == keys.LENGTH
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "content", ["own.key_of-16+/=~" + "\n", "Ab3dEf9h" * 3 + "\n", keys.make(), keys.make() + "\r\n"]
)
def test_a_users_own_key_counts(tmp_path: Path, content: str) -> None:
    assert keys.kept(write(tmp_path / "key", content)) == content.strip()


def test_keepalived_takes_eight_characters(tmp_path: Path) -> None:
    assert len(keys.kept(tmp_path / "auth", 8)) == 8
    assert keys.kept(write(tmp_path / "other", "abcDEF12\n"), 8) == "abcDEF12"
    with pytest.raises(UserError, match="weak"):
        keys.kept(write(tmp_path / "short", "abcDEF1\n"), 8)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "nothing"),
        ("\n", "nothing"),
        (b"\0" * 49, "characters other than"),
        ("Ab3dEf9h" * 3, "which a crash can leave incomplete"),
        ("short\n", "weak"),
        ("a" * 48 + "\n", "weak"),
        ("abababababababababab\n", "weak"),
        ("two keys-of-one-file\n", "characters other than"),
        ("first-key-of-the-file\nsecond-key-of-the-file\n", "characters other than"),
        ('key-with-"quotes"-in-it\n', "characters other than"),
        ("schlüssel-mit-umlauten\n", "characters other than"),
        ("$ANSIBLE_VAULT;1.1;AES256\n6162\n", "characters other than"),
    ],
)
def test_a_file_of_less_is_never_a_key(tmp_path: Path, content: str | bytes, found: str) -> None:
    place = write(tmp_path / "key", content)
    with pytest.raises(UserError, match=found) as told:
        keys.kept(place)
    text = content.decode() if isinstance(content, bytes) else content
    assert str(place) in str(told.value)
    assert not text.strip() or text.strip() not in str(told.value)
    assert place.read_bytes() == (content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_key_that_others_reach_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(UserError, match=f"mode {mode:04o}.*chmod 600"):
        keys.kept(write(tmp_path / "key", keys.make() + "\n", mode))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "directory"):
        with pytest.raises(UserError, match=r"found .*expected a key"):
            keys.kept(tmp_path / name)
    write(tmp_path / "large", "x" * 100_000)
    with pytest.raises(UserError, match="more than 4096 bytes"):
        keys.kept(tmp_path / "large")


@pytest.mark.parametrize("call", ["write", "fchmod", "fsync", "link", "unlink"])
def test_killed_at_any_step_no_half_of_a_key_is_left(tmp_path: Path, call: str) -> None:
    place = tmp_path / "secrets" / "key"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        f"real = os.{call}\n"
        "def dying(*words, **named):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"os.{call} = dying\n"
        "from minimax_metal.controller.keys import kept as keys\n"
        f"keys.kept(Path({str(place)!r}))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    first = keys.kept(place)
    assert len(first) == keys.LENGTH
    assert keys.kept(place) == first == place.read_text().strip()


def test_roles_make_keys_in_no_other_way() -> None:
    """Ansible's own lookup writes a file piece by piece, and accepts any content as the key."""
    for path in sorted((REPOSITORY / "roles").rglob("*.yml")):
        text = path.read_text(encoding="utf-8")
        yaml.safe_load(text)
        assert "builtin.password'" not in text.replace("builtin.password', '/dev/null'", ""), path

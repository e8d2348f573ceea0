"""The helpers in common/: limits of time and size, links that are not followed, text without controls."""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

import pytest

from minimax_metal.common import files, privileges, program, text

NOBODY = 65534


def test_a_program_answers() -> None:
    answer = program.run(
        [sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"]
    )
    assert (answer.status, answer.out, answer.err, answer.ok) == (3, "out\n", "err\n", False)


def test_a_program_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    began = time.monotonic()
    answer = program.run(["/bin/sh", "-c", f"echo first; sleep 60 & echo $! > {mark}; wait"], seconds=1)
    assert answer.timed_out
    assert answer.status == program.TIMED_OUT
    assert answer.out == "first\n"
    assert "sh did not answer within 1 s" in answer.err
    assert time.monotonic() - began < 20
    child = int(mark.read_text())
    for _ in range(100):
        try:
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            break
        if state == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the program's own child goes on")


def test_a_program_that_ignores_sigterm_and_closes_its_output_is_ended() -> None:
    code = (
        "import os, signal, time; signal.signal(15, signal.SIG_IGN); os.close(1); os.close(2); time.sleep(60)"
    )
    assert program.run([sys.executable, "-c", code], seconds=1).timed_out


def test_a_daemon_that_keeps_the_pipes_does_not_hold_the_caller(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    answer = program.run(["/bin/sh", "-c", f"setsid sleep 60 & echo $! > {mark}; echo done"], seconds=30)
    os.kill(int(mark.read_text()), 9)
    assert (answer.ok, answer.out) == (True, "done\n")


def test_endless_output_is_cut() -> None:
    answer = program.run(["/bin/sh", "-c", "yes | head -c 3000000; echo e >&2"], limit=1000)
    assert (answer.ok, answer.cut, len(answer.out), answer.err) == (True, True, 1000, "e\n")


def test_no_program_is_an_answer_too(tmp_path: Path) -> None:
    assert program.run([tmp_path / "none"]).status == program.NO_PROGRAM
    (tmp_path / "data").write_text("no program")
    assert program.run([tmp_path / "data"]).status == program.CANNOT_RUN


def test_an_atomic_write_replaces_a_link_and_never_follows_it(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    (tmp_path / "file").symlink_to(victim)
    files.write_atomic(tmp_path / "file", "new", mode=0o640)
    assert victim.read_text() == "whole"
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "file").stat(follow_symlinks=False).st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "victim"]


def test_an_atomic_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomic(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("place", ["link/secret", "sub/link"])
def test_no_component_of_a_name_may_be_a_link(tmp_path: Path, place: str) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    for directory in (outside, root / "sub"):
        directory.mkdir(parents=True)
    (outside / "secret").write_text("root's")
    (root / "link").symlink_to(outside)
    (root / "sub" / "link").symlink_to(outside / "secret")
    with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
        files.read_beneath(root, place, 100)
    with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
        os.close(files.open_beneath(root, place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    assert (outside / "secret").read_text() == "root's"


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "", "."])
def test_a_name_has_to_lie_below_the_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match=r"not a name below|Invalid|Is a directory"):
        files.read_beneath(tmp_path, name, 100)


def test_a_root_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(NotADirectoryError), files.directory_beneath(tmp_path / "link"):
        pass


def test_directories_are_made_on_the_way(tmp_path: Path) -> None:
    with files.directory_beneath(tmp_path, "a/b", create=0o750) as directory:
        assert Path(f"/proc/self/fd/{directory}").samefile(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o750


def test_pipes_devices_and_large_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 101)
    with pytest.raises(OSError, match="not a regular file"):
        files.read_bounded(tmp_path / "pipe", 100)
    with pytest.raises(OSError, match="not a regular file"):
        files.read_bounded(Path("/dev/zero"), 100)
    with pytest.raises(files.TooLargeError):
        files.read_bounded(tmp_path / "large", 100)
    assert len(files.read_bounded(tmp_path / "large", 101)) == 101


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as somebody else")
def test_acting_as_somebody_has_only_that_users_rights(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)  # pytest's own directories are closed to others
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", NOBODY, NOBODY)
    with privileges.acting_as(NOBODY, NOBODY):
        (tmp_path / "theirs" / "file").write_text("theirs")
        with pytest.raises(PermissionError):
            secret.read_text()
    assert (tmp_path / "theirs" / "file").stat().st_uid == NOBODY
    assert secret.read_text() == "root's"
    assert (os.geteuid(), os.getegid()) == (0, os.getgid())


def test_text_is_made_fit_to_show() -> None:
    hostile = "\x1b[2J\x1b]0;title\x07safe\x9b31m \x00end\u202e\u2028"
    assert text.printable(hostile) == "safe31m end"
    assert text.one_line("a\nb\t c\r\n") == "a b c"
    assert text.one_line("x" * 50, 10) == "x" * 9 + "…"
    assert text.has_controls("a\nb")
    assert not text.has_controls("Grüße 北京 100 %")

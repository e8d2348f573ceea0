"""Reading weights into the page cache."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from minimax_metal.common.errors import UserError
from minimax_metal.host.weights.warm import main, warm


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A model's directory: shards, a file in a subfolder, and one that was adopted as a link."""
    directory = tmp_path / "weights"
    (directory / "below").mkdir(parents=True)
    for name, size in (("one.safetensors", 9_000_000), ("two.safetensors", 5), ("below/config.json", 2)):
        (directory / name).write_bytes(b"x" * size)
    (tmp_path / "elsewhere").write_bytes(b"y" * 7)
    (directory / "three.safetensors").symlink_to(tmp_path / "elsewhere")
    return directory


def test_every_byte_is_read(weights: Path) -> None:
    done = warm(weights, threads=2)
    assert (done.bytes, done.files, done.failed) == (9_000_014, 4, ())


def test_a_stop_ends_it_early(weights: Path) -> None:
    stop = threading.Event()
    stop.set()
    assert warm(weights, threads=1, stop=stop).bytes == 0


def test_no_directory_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a model's weights"):
        warm(tmp_path / "none", threads=1)


def test_the_command_says_how_much(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(weights), "--threads", "2"]) == 0
    assert capsys.readouterr().out.startswith("read 0.0 GB in 4 files in ")
    with pytest.raises(UserError, match="1 or more"):
        main([str(weights), "--threads", "0"])


@pytest.mark.skipif(not Path("/proc/1").is_dir(), reason="needs /proc")
def test_a_directory_that_became_a_link_to_anything_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to("/proc/self/task")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "here").write_bytes(b"x")
    warmed = warm(tmp_path, 2)
    assert (warmed.bytes, warmed.files, warmed.failed) == (1, 1, ())

"""Compiled kernels on their way from one host to an equal one."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from minimax_metal.errors import UserError
from minimax_metal.service.kernels import kernels, main, pack, unpack


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache as an engine leaves it: kernels, and what is no kernel."""
    root = tmp_path / "cache"
    for name, text in (
        ("deep_gemm/a/kernel.cubin", "cubin"),
        ("triton/b/launcher.so", "so"),
        ("precompiled-0123456789ab", ""),
        ("triton/b/launcher.so.lock", ""),
        ("triton/c/half.tmp", "half"),
        (".cache/flashinfer/0.7.2/flashinfer_jit.log", "a line"),
        ("huggingface/modules/remote_code.py", "import os"),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "triton" / "link").symlink_to("/etc/passwd")
    os.utime(root / "deep_gemm/a/kernel.cubin", (1_000_000_000, 1_000_000_000))
    return root


KERNELS = {"deep_gemm/a/kernel.cubin", "triton/b/launcher.so", "precompiled-0123456789ab"}


def test_only_finished_kernels_count(cache: Path) -> None:
    assert {path.as_posix() for path in kernels(cache)} == KERNELS


def test_what_is_packed_here_is_there_afterwards(cache: Path, tmp_path: Path) -> None:
    archive, other = tmp_path / "shared" / "kernels.tar.gz", tmp_path / "other"
    assert pack(cache, archive) == len(KERNELS)
    assert archive.stat().st_mode & 0o777 == 0o644
    assert unpack(archive, other) == len(KERNELS)
    assert {path.as_posix() for path in kernels(other)} == KERNELS
    assert (other / "deep_gemm/a/kernel.cubin").read_text() == "cubin"
    assert (other / "deep_gemm/a/kernel.cubin").stat().st_mtime == 1_000_000_000
    assert sorted(path.name for path in archive.parent.iterdir()) == ["kernels.tar.gz"]


def test_a_file_that_is_there_stays_as_it_is(cache: Path, tmp_path: Path) -> None:
    archive, other = tmp_path / "kernels.tar.gz", tmp_path / "other"
    pack(cache, archive)
    (other / "triton/b").mkdir(parents=True)
    (other / "triton/b/launcher.so").write_text("newer")
    assert unpack(archive, other) == len(KERNELS) - 1
    assert (other / "triton/b/launcher.so").read_text() == "newer"
    assert unpack(archive, other) == 0
    assert not list(other.rglob("*.part"))


def test_an_empty_cache_makes_no_archive(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    assert pack(tmp_path / "cache", tmp_path / "kernels.tar.gz") == 0
    assert not (tmp_path / "kernels.tar.gz").exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside"])
def test_nothing_is_written_beside_the_cache(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "kernels.tar.gz"
    (tmp_path / "file").write_text("x")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "file", arcname="kept", filter=lambda info: _named(info, name))
    with pytest.raises(UserError, match="outside"):
        unpack(archive, tmp_path / "deep" / "cache")
    assert not list(tmp_path.rglob("outside"))


def _named(info: tarfile.TarInfo, name: str) -> tarfile.TarInfo:
    info.name = name
    return info


def test_links_and_what_is_no_archive_are_refused(cache: Path, tmp_path: Path) -> None:
    archive = tmp_path / "kernels.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(cache / "triton" / "link", arcname="link")
    with pytest.raises(UserError, match="expected files"):
        unpack(archive, tmp_path / "other")
    archive.write_bytes(b"no archive")
    with pytest.raises(UserError, match="can't be read"):
        unpack(archive, tmp_path / "other")


def test_the_command_says_what_it_did(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, other = str(tmp_path / "kernels.tar.gz"), str(tmp_path / "other")
    for words in (
        ["count", other],
        ["pack", other, archive],
        ["pack", str(cache), archive],
        ["unpack", archive, other],
        ["unpack", archive, other],
        ["count", other],
    ):
        assert main(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "0",
        "no kernels to share",
        "packed 3 files",
        "unpacked 3 files",
        "every kernel was there",
        "3",
    ]
    with pytest.raises(UserError, match="found no user"):
        main(["unpack", archive, other, "--owner", "nobody-of-that-name"])

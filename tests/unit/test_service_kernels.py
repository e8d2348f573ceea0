"""Compiled kernels copied from one host to an identical one."""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

from minimax_metal.common.errors import UserError
from minimax_metal.host.engine.kernel_archive import kernels
from minimax_metal.host.engine.kernels import main, pack, unpack
from minimax_metal.host.releases.record import kernels_of
from minimax_metal.plan.model import Plan
from tests.support.templates import REPOSITORY, role_variables


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache as left by an engine: kernels, and other files."""
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


def test_a_cache_that_its_owner_made_a_link_to_everything_has_no_kernels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").symlink_to("/")
    began = time.monotonic()
    assert main(["count", str(tmp_path / "cache")]) == 0
    assert main(["pack", str(tmp_path / "cache"), str(tmp_path / "archive")]) == 0
    assert main(["copy", str(tmp_path / "cache"), str(tmp_path / "other")]) == 0
    assert capsys.readouterr().out.split("\n")[:2] == ["0", "no kernels to share"]
    assert time.monotonic() - began < 20


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
    with pytest.raises(UserError, match="expected only kernel files"):
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
        "no kernel was missing",
        "3",
    ]
    with pytest.raises(UserError, match="found no user"):
        main(["unpack", archive, other, "--owner", "nobody-of-that-name"])


def test_an_archive_is_bound_to_its_hash_and_its_builder_is_noted(cache: Path, tmp_path: Path) -> None:
    archive, other, notes = tmp_path / "kernels.tar.gz", tmp_path / "key", tmp_path / "notes"
    pack(cache, archive)
    good = hashlib.sha256(archive.read_bytes()).hexdigest()
    words = ["unpack", str(archive), str(other), "--built-by", "gpu07", "--notes", str(notes), "--sha256"]
    with pytest.raises(UserError, match=r"SHA-256.*remove it here and on the controller"):
        main([*words, "0" * 64])
    assert not other.exists()
    assert not notes.exists()
    assert main([*words, good]) == 0
    assert {path.as_posix() for path in kernels(other)} == KERNELS
    plan = {"kernel_cache": {"key": "key"}}
    found = kernels_of(Plan.of_record(plan), notes)
    assert found is not None
    assert (found["built_by"], found["sha256"]) == ("gpu07", good)
    assert kernels_of(Plan.of_record({"kernel_cache": {"key": "another"}}), notes) is None


@pytest.mark.parametrize(
    "name", ["huggingface/modules/remote_code.py", "a/modelscope/x.py", "a.so.lock", "x.part"]
)
def test_what_no_host_would_pack_is_not_unpacked(tmp_path: Path, name: str) -> None:
    """Code of a model's repository is run by the engine: it must not arrive with kernels."""
    archive = tmp_path / "kernels.tar.gz"
    (tmp_path / "file").write_text("x")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "file", arcname=name)
    with pytest.raises(UserError, match="expected only kernel files"):
        unpack(archive, tmp_path / "cache")


def test_an_archive_that_claims_more_than_a_host_has_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "kernels.tar.gz"
    huge, long = tarfile.TarInfo("huge.so"), tarfile.TarInfo("x" * 300)
    huge.size = 1 << 45
    long.size = 0
    with gzip.open(archive, "wb") as stream:
        stream.write(huge.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(UserError, match="found more data in"):
        main(["unpack", str(archive), str(tmp_path / "cache")])
    # A name of 16 TiB: GNU's long names are read into memory.
    name = long.tobuf(tarfile.GNU_FORMAT)
    broken = tarfile.TarInfo("././@LongLink")
    broken.type, broken.size = tarfile.GNUTYPE_LONGNAME, 1 << 44
    with gzip.open(archive, "wb") as stream:
        stream.write(broken.tobuf(tarfile.GNU_FORMAT) + name[512:])
    with pytest.raises(UserError, match=r"can't be read|found more"):
        main(["unpack", str(archive), str(tmp_path / "cache")])


def test_setuid_and_owner_of_an_archive_mean_nothing(tmp_path: Path) -> None:
    archive = tmp_path / "kernels.tar.gz"
    member = tarfile.TarInfo("a.so")
    member.mode, member.uid, member.mtime = 0o6777, 4242, -5
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(member)
    assert unpack(archive, tmp_path / "cache") == 1
    status = (tmp_path / "cache" / "a.so").stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_mtime) == (0o755, os.geteuid(), 0)


def test_kernels_pass_between_hosts_of_one_named_group_only() -> None:
    key = {"metal_plan": {"kernel_cache": {"key": "k", "path": "/var/cache/sglang/k"}}}
    given: dict[str, Any] = {
        "groups": {"all": ["gpu01", "gpu02", "gpu03"], "racks": ["gpu02", "gpu03"]},
        "hostvars": dict.fromkeys(("gpu01", "gpu02", "gpu03"), key),
        "ansible_play_batch": ["gpu01", "gpu02", "gpu03"],
        **key,
    }

    def of(name: str, host: str, group: str) -> Any:
        loader = DataLoader()
        variables: dict[str, Any] = {}
        for part in ("defaults", "vars"):
            path = REPOSITORY / "roles" / "sglang_service" / part / "main.yml"
            variables |= loader.load_from_file(str(path), trusted_as_template=True)
        variables |= {"inventory_hostname": host, "sglang_service_share_kernels_group": group, **given}
        return Templar(loader, variables).template(variables[name])

    assert role_variables("sglang_service")["sglang_service_share_kernels_group"] == ""
    assert not any(of("__sglang_service_shares", host, "") for host in given["hostvars"])
    assert [of("__sglang_service_shares", host, "racks") for host in given["hostvars"]] == [False, True, True]
    assert of("__sglang_service_giver", "gpu03", "racks") == "gpu02"

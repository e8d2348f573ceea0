"""The cached catalogue: the same as the validated one, rebuilt after a change, never another user's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.catalog import Catalog, kept, load, load_catalog, packaged_catalog
from minimax_metal.common.errors import UserError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the catalogue's own directory, without a cache, and an empty home."""
    copy = tmp_path / "catalog"
    shutil.copytree(load.HERE, copy, ignore=shutil.ignore_patterns("__pycache__", "sglang-*"))
    copy.chmod(0o755)
    monkeypatch.setattr(load, "HERE", copy)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return copy


@pytest.fixture
def validations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each validation of the catalogue."""
    calls: list[int] = []

    def counted(overlays: Any = ()) -> Catalog:
        calls.append(1)
        return load_catalog(overlays)

    monkeypatch.setattr(load, "load_catalog", counted)
    return calls


def read() -> Catalog:
    """The packaged catalogue as read by a new process."""
    return packaged_catalog.__wrapped__()


def file(package: Path) -> Path:
    return package / "__pycache__" / kept.NAME


def test_it_is_validated_once_and_is_the_same_after(package: Path, validations: list[int]) -> None:
    made, again = read(), read()
    assert validations == [1]
    assert made == again
    # Types too: 8 is no "8", a tuple no list; and which fields the files have, which the audit asks for.
    assert repr(made) == repr(again)
    assert kept.plain(made) == kept.plain(again)
    assert again.gpus["H20"].written == made.gpus["H20"].written
    assert "notes" not in again.gpus["H20"].written
    assert file(package).stat().st_mode & 0o777 == 0o644


def test_reading_what_is_kept_imports_neither_pydantic_nor_yaml(package: Path) -> None:
    read()
    program = (
        "import sys; from pathlib import Path; from minimax_metal.catalog import load; "
        f"load.HERE = Path({str(package)!r}); assert load.packaged_catalog().models; "
        "print(sorted({'pydantic', 'pydantic_core', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["gpus.yml", "locks/smg-1.13.0-py3.11.txt", "schema.py"])
def test_a_change_of_anything_it_is_made_from_is_noticed(
    package: Path, validations: list[int], name: str
) -> None:
    before = read()
    changed = package / name
    status = changed.stat()
    text = changed.read_text()
    # The same length and the same times: neither tells.
    last = text.rstrip("\n")
    new = text.replace("97871", "97872") if name == "gpus.yml" else last[:-1] + "#" + text[len(last) :]
    changed.write_text(new)
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = read()
    assert validations == [1, 1]
    assert (after == before) == (name == "schema.py")
    assert read() == after
    assert validations == [1, 1]


def test_a_mistake_in_a_file_is_said_although_a_catalogue_is_kept(package: Path) -> None:
    read()
    with (package / "gpus.yml").open("a") as stream:
        stream.write("  BAD: {memory_bytes: many}\n")
    with pytest.raises(UserError, match=r"^catalogue: gpus\.BAD\."):
        read()


def _writable(path: Path) -> None:
    path.chmod(0o666)


def _group(path: Path) -> None:
    path.chmod(0o664)


def _directory(path: Path) -> None:
    path.parent.chmod(0o777)


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _directory_link(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))
    path.parent.symlink_to("elsewhere")


def _owner(path: Path) -> None:
    os.chown(path, 65534, 65534)


def _directory_owner(path: Path) -> None:
    os.chown(path.parent, 65534, 65534)


FOREIGN = [_writable, _group, _directory, _link, _pipe, _directory_link]
FOREIGN += [_owner, _directory_owner] if os.geteuid() == 0 else []


@pytest.mark.parametrize("beside", [True, False], ids=["beside the package", "in the user's cache"])
@pytest.mark.parametrize("spoil", FOREIGN)
def test_what_others_can_write_is_not_read(
    package: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], beside: bool
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", not beside)
    catalog = read()
    place = file(package) if beside else Path(os.environ["XDG_CACHE_HOME"], "minimax-metal", kept.NAME)
    # Theirs: the right digest, other figures.
    document = json.loads(place.read_text())
    document["catalog"] = kept.plain(replace(catalog, default_engine="0.0.1"))
    place.write_text(json.dumps(document))
    assert read().default_engine == "0.0.1"
    spoil(place)
    assert read() == catalog


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        b'{"digest": "DIGEST", "catalog": null}',
        b'{"digest": "DIGEST", "catalog": ["Catalog", {}]}',
        b'{"digest": "DIGEST", "catalog": ["Entry", {}]}',
        b'{"digest": "DIGEST", "catalog": ["Figure", {"value": 1, "confidence": "U", "source": "x"}]}',
        b'{"digest": "DIGEST", "catalog": [["tuple"]]}',
        b'{"digest": "DIGEST", "catalog": []}',
        b'{"digest": "DIGEST", "catalog": ["date"]}',
        b'{"digest": "DIGEST", "catalog": ["Catalog", []]}',
    ],
)
def test_a_damaged_file_is_made_again(package: Path, content: bytes) -> None:
    catalog = read()
    file(package).write_bytes(content.replace(b"DIGEST", load._digest().encode()))
    assert read() == catalog
    assert json.loads(file(package).read_text())["digest"] == load._digest()


def test_where_nothing_can_be_written_it_is_validated_each_time(
    package: Path, validations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert read() == read()
    assert validations == [1, 1]
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the XDG specification
    monkeypatch.chdir(package.parent)
    read()
    assert not Path("relative").exists()


@pytest.mark.parametrize("link", ["", "cache", "cache/minimax-metal"])
def test_nothing_is_written_through_another_users_directory(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    """``sudo -E``: root with the cache directory of a user, who may put a link where root would write."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (home / link).parent.mkdir(parents=True, exist_ok=True)
    if link:
        (home / link).symlink_to(elsewhere)
    else:
        home.mkdir(exist_ok=True)
        home.chmod(0o777)  # as another user's: who may write there is not only this one
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    read()
    assert not list(elsewhere.iterdir())
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_an_overlay_is_validated_although_a_catalogue_is_kept(package: Path) -> None:
    read()
    with pytest.raises(UserError, match=r"gpus\.H20\.memory_bytes\.value"):
        load_catalog([{"gpus": {"H20": {"memory_bytes": {"value": "many"}}}}])
    with pytest.raises(UserError, match=r"gpus\.H20\.colour: unknown key"):
        load_catalog([{"gpus": {"H20": {"colour": "green"}}}])
    name = next(iter(read().recipes))
    with pytest.raises(UserError, match=rf"recipes\.{name}\.mem_fraction_static: .*less than 1"):
        load_catalog([{"recipes": {name: {"mem_fraction_static": 1.5}}}])


def test_bare_numbers_of_an_overlay_are_the_users_wherever_figures_are() -> None:
    overlay = {
        "gpus": {"H200": {"nvlinks": 9, "all_reduce_bandwidth": {8: 5, "4": {"value": 6}}}},
        "models": {"MiniMax-M2.5": {"formats": {"fp8": {"bytes": 7}}}},
    }
    changed = load_catalog([overlay])
    gpu = changed.gpus["H200"]
    found = [gpu.nvlinks, gpu.all_reduce_bandwidth[8], gpu.all_reduce_bandwidth[4]]
    found.append(changed.models["MiniMax-M2.5"]["fp8"].bytes)
    assert [(one.value, one.confidence, one.source) for one in found if one] == [
        (value, "U", "catalogue overlay") for value in (9, 5, 6, 7)
    ]
    # Two spellings of one key are one.
    both = load_catalog([{"gpus": {"H200": {"all_reduce_bandwidth": {8: 5, "8": 6}}}}])
    assert both.gpus["H200"].all_reduce_bandwidth[8].value == 6


def test_entries_are_read_only_and_compared_by_value() -> None:
    gpu = packaged_catalog().gpus["H20"]
    with pytest.raises(FrozenInstanceError):
        gpu.name = "another"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del gpu.name
    assert replace(gpu) == gpu
    assert replace(gpu, name="another") != gpu
    memory = gpu.memory_bytes
    assert memory is not None
    assert hash(memory) == hash(replace(memory))
    with pytest.raises(TypeError, match="no colour"):
        replace(gpu, colour="green")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="needs confidence"):
        type(memory)(value=1)  # type: ignore[call-arg]

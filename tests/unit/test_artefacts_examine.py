"""Directories as users have them, examined as models: complete ones pass, everything else is named.

The first group comes from the field; each was "verified" before, and passed to the fleet.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimax_metal.host.weights.examine import Expected, examine
from minimax_metal.host.weights.examine.leftovers import is_companion, unfinished
from minimax_metal.host.weights.examine.safetensors import MOST_HEADER, UnsoundError, read
from tests.support.models import ARCHITECTURE, INDEX, model, safetensors, write

SHARD, OTHER = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 4995584792\n"
)
"""The form of git-lfs docs/spec.md."""


APPLE = bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(4072)
"""As written by macOS 10.4 and later: RFC 1740, 4 KiB, mostly empty."""


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write(tmp_path / "MiniMax-M2.5", model())


def problems(directory: Path, expected: Expected | None = None) -> dict[str, str]:
    return {problem.path: problem.text for problem in examine(directory, expected).problems}


def test_a_whole_model_passes(whole: Path) -> None:
    found = examine(whole, Expected((ARCHITECTURE,), sum(map(len, model().values()))))
    assert found.ok
    assert found.problems == []
    assert set(found.files) == set(model())
    assert found.architectures == (ARCHITECTURE,)
    assert found.tensors == 4


def test_what_tools_leave_beside_a_whole_model_does_no_harm(whole: Path) -> None:
    # hf download --local-dir leaves a lock and a note of each file; modelscope these others.
    kept = whole / ".cache" / "huggingface" / "download"
    for name in model():
        write(kept, {f"{name}.lock": b"", f"{name}.metadata": b"commit\netag\n1.0\n"})
    write(whole, {".msc": b"x", ".mv": b"x", ".mdl": b"x", ".git/config": b"", f"{SHARD}.sha256": b"0"})
    (whole / "._____temp").mkdir()
    assert problems(whole) == {}


def test_a_snapshot_of_a_hub_cache_passes_and_a_dangling_link_is_named(tmp_path: Path) -> None:
    cache = tmp_path / "models--MiniMaxAI--MiniMax-M2.5"
    snapshot = cache / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    write(cache / "blobs", {str(number): content for number, content in enumerate(model().values())})
    for number, name in enumerate(model()):
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    assert problems(snapshot) == {}
    (cache / "blobs" / "0").unlink()
    assert problems(snapshot) == {SHARD: "a link to a file that is not there"}
    assert "snapshots/" in problems(cache)["."], "the cache itself is not the model"


Spoil = Callable[[Path], object]


def replace(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


def cut(folder: Path) -> None:
    os.truncate(folder / SHARD, (folder / SHARD).stat().st_size - 1)


def preallocated(folder: Path) -> None:
    """Aria2 and browsers give a file its full size first."""
    size = (folder / SHARD).stat().st_size
    with (folder / SHARD).open("r+b") as file:
        file.truncate(4096)
        file.truncate(size)


FIELD: list[tuple[str, Spoil, str, str]] = [
    ("git clone without LFS", replace(SHARD, POINTER), SHARD, "git-LFS pointer"),
    ("its tokenizer only", replace("tokenizer.json", POINTER), "tokenizer.json", "git-LFS pointer"),
    ("aria2 at work", replace(f"{SHARD}.aria2", b"x"), f"{SHARD}.aria2", "unfinished download of aria2"),
    ("hf at work", replace(f"{SHARD}.incomplete", b"x"), f"{SHARD}.incomplete", "unfinished download"),
    ("wget or curl cut off", cut, SHARD, "cut off"),
    ("holes", preallocated, SHARD, "never written"),
    ("zeros", lambda f: (f / SHARD).write_bytes(bytes(200_000)), SHARD, "begins with zeros"),
    ("an empty shard", replace(SHARD, b""), SHARD, "is empty"),
    ("a page for a shard", replace(SHARD, b"<!doctype html><html>" + b" " * 500), SHARD, "not a"),
    ("a page for a text", replace("config.json", b"<html>login</html>"), "config.json", "not a JSON object"),
    ("an empty config", replace("config.json", b""), "config.json", "is empty"),
    ("a shard lost", lambda f: (f / OTHER).unlink(), OTHER, f"missing; {INDEX} names it"),
    ("the index lost", lambda f: (f / INDEX).unlink(), INDEX, "missing; 2 weight files"),
    ("no config", lambda f: (f / "config.json").unlink(), "config.json", "missing"),
    ("no tokenizer", lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json", "missing"),
    (
        "a shard of another model",
        replace(OTHER, safetensors({"x": b"1"})),
        OTHER,
        "lacks 2 of the 2 tensors",
    ),
    (
        "a shard of another numbering",
        replace("model-00001-of-00003.safetensors", safetensors({"y": b"1"})),
        "model-00001-of-00003.safetensors",
        f"not named by {INDEX}",
    ),
    (
        "code missing",
        replace(
            "config.json",
            json.dumps(
                {
                    "architectures": [ARCHITECTURE],
                    "auto_map": {"AutoConfig": "configuration_minimax_m2.MiniMaxM2Config"},
                }
            ).encode(),
        ),
        "configuration_minimax_m2.py",
        "config.json loads code from it",
    ),
    ("a named pipe", lambda f: os.mkfifo(f / "weights.safetensors"), "weights.safetensors", "not a regular"),
    (
        "hf --local-dir at work",
        lambda f: write(f / ".cache/huggingface/download", {f"{SHARD}.lock": b""}),
        f".cache/huggingface/download/{SHARD}.lock",
        "an unfinished download",
    ),
    (
        "modelscope at work",
        lambda f: write(f / "._____temp", {SHARD: b"x"}),
        f"._____temp/{SHARD}",
        "an unfinished download",
    ),
    (
        # SceneWorks/SceneWorks#1333, jundot/omlx#3679: opened as weights, with a header of 2.2 TB.
        "copied from a Mac",
        replace(f"._{SHARD}", APPLE),
        f"._{SHARD}",
        "a file that macOS keeps beside another one (AppleDouble), not part of the model; remove them: find ",
    ),
    (
        "of a file that is not there any more",
        lambda f: write(f / "extra", {"._model.safetensors": APPLE}),
        "extra/._model.safetensors",
        "AppleDouble",
    ),
    ("cut off itself", replace("._config.json", b""), "._config.json", "AppleDouble"),
    ("rsync at work", replace(f".{SHARD}.Xk3dQ9", b"x"), f".{SHARD}.Xk3dQ9", "unfinished download of rsync"),
]


@pytest.mark.parametrize(
    ("spoil", "path", "words"), [case[1:] for case in FIELD], ids=[case[0] for case in FIELD]
)
def test_what_is_not_whole_is_named(spoil: Spoil, path: str, words: str, whole: Path) -> None:
    spoil(whole)
    assert words in problems(whole)[path]


def test_a_macs_files_are_one_problem_and_its_remedy_leaves_the_model(whole: Path) -> None:
    for name in model():
        (whole / f"._{name}").write_bytes(APPLE)
    (whole / "._own").write_bytes(b"a file of the publisher's")
    found = examine(whole)
    assert [problem.path for problem in found.problems] == ["._" + min(model())]
    assert set(found.files) == {*model(), "._own"}, "not taken over where the directory is accepted as it is"
    text = found.problems[0].text
    assert f"(and {len(model()) - 1} more)" in text
    (whole / "._own").unlink()
    subprocess.run(text.partition("remove them: ")[2], shell=True, check=True)  # noqa: S602 - as an operator
    assert problems(whole) == {}
    assert set(examine(whole).files) == set(model())


def test_folders_that_file_servers_and_archives_leave_do_no_harm(whole: Path) -> None:
    for folder in ("__MACOSX", ".AppleDouble", "@eaDir"):
        write(whole / folder, {f"._{SHARD}": APPLE, SHARD: APPLE})
    write(whole, {".DS_Store": b"\0\0\0\1Bud1"})
    (whole / "lost+found").mkdir()
    assert problems(whole) == {}
    assert set(examine(whole).files) == set(model())


def test_a_byte_order_mark_is_named(whole: Path) -> None:
    # huggingface/transformers reads its JSON files as plain UTF-8: "Unexpected UTF-8 BOM"
    config = whole / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert "byte order mark" in problems(whole)["config.json"]


def test_the_parent_of_two_models_is_not_a_model(tmp_path: Path) -> None:
    for name in ("MiniMax-M2.5", "MiniMax-M3"):
        write(tmp_path / name, model())
    assert problems(tmp_path) == {
        ".": "contains 2 models in folders, MiniMax-M2.5, MiniMax-M3, and is not one itself: name one of them"
    }


def test_a_readme_and_a_config_are_not_a_model(tmp_path: Path) -> None:
    write(tmp_path, {"README.md": b"# M", "config.json": b"{}"})
    assert problems(tmp_path) == {".": "contains no .safetensors file, only README.md, config.json"}


def test_an_empty_directory_and_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert problems(tmp_path / "empty") == {".": "is empty"}
    with pytest.raises(FileNotFoundError):
        examine(tmp_path / "gone")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        examine(tmp_path / "file")


def test_another_model_is_named_by_its_architecture_and_its_size(whole: Path) -> None:
    found = problems(whole, Expected(("MiniMaxM3ForCausalLM",), 230_000_000_000, "MiniMax-M3"))
    assert found["config.json"] == (
        f"is of {ARCHITECTURE}, expected MiniMaxM3ForCausalLM (MiniMax-M3): another model"
    )
    assert "the catalogue's size of MiniMax-M3 is 230000000000" in found["."]


def test_a_name_that_would_deceive_a_terminal_is_shown_without_its_escapes(whole: Path) -> None:
    (whole / "a\x1b]0;owned\x07b.txt").touch()
    shown = [str(problem) for problem in examine(whole).problems]
    assert shown
    assert not any("\x1b" in line or "\x07" in line for line in shown)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        SHARD,
        INDEX,
        "README.md",
        ".gitattributes",
        "chat_template.jinja",
        "tokenizer_config.json",
        "modeling_minimax_m2.py",
        f"{SHARD}.sha256",
        "LICENSE",
        ".eslintrc.config",
        "uv.lock",
    ],
)
def test_ordinary_names(name: str) -> None:
    assert unfinished(name) is None
    assert not is_companion(name, [name])


@pytest.mark.parametrize(
    "end",
    [
        *(".aria2", ".part", ".partial", ".incomplete", ".tmp", ".crdownload", ".lock", ".filepart"),
        *(".download", ".st", ".!ut", ".opdownload", ".1", ".8CAB12fF", ".aria2__temp", ".PART"),
    ],
)
def test_names_of_downloads_that_have_not_ended(end: str) -> None:
    assert unfinished(f"{SHARD}{end}") is not None


# The format itself ---------------------------------------------------------------------------------------


def header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: object = "U8", shape: object = (4,), offsets: object = (0, 4)) -> bytes:
    one = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    return json.dumps({"w": one}).encode()


def look(tmp_path: Path, content: bytes) -> str | None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with file.open("rb") as stream:
        try:
            read(stream.fileno())
        except UnsoundError as error:
            return str(error)
    return None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header(tensor(), b"1234"), None),
        (header(b'{"__metadata__": {"format": "pt"}}'), None),
        (header(tensor("F4", [8]), b"1234"), None),
        (header(tensor(shape=[0, 5], offsets=[0, 0])), None),
        (header(tensor(), b"123"), "is cut off: its tensors have 4 bytes, 3 bytes are present"),
        (header(tensor(), b"12345"), "is longer than its header says"),
        (header(tensor("F33")), "unknown type 'F33'"),
        (header(tensor("F4", [3], [0, 2]), b"12"), "while its type and shape give"),
        (header(tensor(shape=[5]), b"1234"), "of 4 bytes, while its type and shape give 5"),
        (header(tensor(offsets=[1, 5]), b"12345"), "leaves a hole before it"),
        (header(tensor(shape=[-4]), b"1234"), "in an unknown way"),
        (header(tensor(shape=[1 << 80]), b"1234"), "in an unknown way"),
        (header(tensor(offsets=[0]), b"1234"), "in an unknown way"),
        (header(tensor(shape=[True]), b"1"), "in an unknown way"),
        (header(b'{"w": 3}'), "in an unknown way"),
        (header(b'{"w": {}, "w": {}}'), "names a tensor twice"),
        (header(b"[1, 2]"), "its header is not JSON"),
        (header(b"{" + b'"a":{' * 50_000), "its header is not JSON"),
        (struct.pack("<Q", 1 << 60) + b"x" * 100, "its header would have"),
        (b"12345", "too few"),
        (POINTER, "git-LFS pointer"),
    ],
)
def test_headers(content: bytes, words: str | None, tmp_path: Path) -> None:
    found = look(tmp_path, content)
    assert (found is None) if words is None else (found is not None and words in found)


def test_a_huge_header_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", MOST_HEADER + 1) + b"{")
    os.truncate(file, MOST_HEADER * 4)
    with file.open("rb") as stream, pytest.raises(UnsoundError, match="its header would have"):
        read(stream.fileno())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F8_E4M3", "BF16", "F4", "x"]) | JSON,
        "shape": st.lists(st.integers(-1, 1 << 70), max_size=4) | JSON,
        "data_offsets": st.lists(st.integers(-1, 200), min_size=2, max_size=2) | JSON,
    },
)


@given(st.dictionaries(st.text(max_size=4), TENSOR | JSON, max_size=4), st.binary(max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, raw: object, data: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    look(folder, header(json.dumps(raw).encode(), data))


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    look(tmp_path_factory.getbasetemp(), content)


@given(st.sampled_from([INDEX, "config.json", "tokenizer.json", "tokenizer_config.json"]), JSON)
@settings(max_examples=150, deadline=None)
def test_any_text_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, raw: object
) -> None:
    folder = write(tmp_path_factory.getbasetemp() / "any", model(1, 100))
    (folder / name).write_text(json.dumps(raw))
    for problem in examine(folder, Expected((ARCHITECTURE,), 100)).problems:
        assert "\n" not in str(problem)

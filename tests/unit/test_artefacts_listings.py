"""File lists as hubs of all kinds give them: parsed, or refused in one line; and their dialects.

Before, ten kinds of answers of a hub ended in a traceback.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimax_metal.common.errors import UserError
from minimax_metal.common.text import has_controls
from minimax_metal.host.weights import listings, names
from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.manifest import FILE, FOLDER, Entry
from minimax_metal.host.weights.request import Source
from minimax_metal.host.weights.sources import Directory, HuggingFace, ModelScope, Served, open_source
from minimax_metal.host.weights.web import Web
from tests.support.answering import Answer, Asked, answering
from tests.support.models import model, write

COMMIT = "a" * 40
REPOSITORY = "MiniMaxAI/MiniMax-M2.5"
FILES = model(2, 1000)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


# Names and numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *("../x", "/etc/passwd", "a/../../x", "a//b", "./a", "a/.", "a/", "", "..", "a\\b", "a\0b", "a\nb"),
        *("a\x1b[31m", "a\u202egnp.exe", "\ud800", "x" * 256, "a/" * 600 + "b", "\u200bx"),
        *(f"{FOLDER}/manifest.json", ".MiniMax-Metal/parts/x", f"{FOLDER}", ".model.safetensors.adopting"),
        *(3, None, [], {}, True, b"x"),
    ],
)
def test_names_that_are_refused(path: object) -> None:
    with pytest.raises(UserError, match="do not trust it") as caught:
        names.check(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("path", ["config.json", "figures/a b.png", "模型.md", ".gitattributes", "a" * 255])
def test_names_that_are_taken(path: str) -> None:
    assert names.check(path) == path


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["a", "b", "a"], "lists 'a' twice"),
        (["README.md", "readme.md"], "which some file systems treat as one name"),
        (["caf\u00e9", "cafe\u0301"], "which some file systems treat as one name"),
        (["a", "a/b"], "as a file and as a folder"),
        (["a/b/c", "A/B"], "as a file and as a folder"),
    ],
)
def test_names_that_can_not_lie_beside_one_another(paths: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        names.together(paths)


@pytest.mark.parametrize(
    "size",
    [None, -1, 1.5, float("inf"), float("nan"), True, "12x", "-3", "1e9", [], {}, 1 << 60, 10**40, "9" * 40],
)
def test_sizes_that_are_refused(size: object) -> None:
    with pytest.raises(UserError, match="do not trust it"):
        listings.size_of(size, "x")


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
PATH = (
    st.sampled_from(["a", "A", "a/b", "../x", "/x", f"{FOLDER}/x", "\x1b[2J", ""])
    | st.text(max_size=5)
    | VALUE
)
HASH = st.sampled_from(["0" * 64, "0" * 40, "z", ""]) | VALUE
HF_FILE = st.fixed_dictionaries(
    {},
    optional={
        "rfilename": PATH,
        "size": st.integers(-2, 5) | VALUE,
        "blobId": HASH,
        "lfs": st.fixed_dictionaries({}, optional={"size": VALUE, "sha256": HASH, "oid": HASH}) | VALUE,
        "type": st.sampled_from(["file", "directory"]) | VALUE,
    },
)
MS_FILE = st.fixed_dictionaries(
    {},
    optional={
        "Path": PATH,
        "Size": VALUE | st.integers(0, 9),
        "Sha256": HASH,
        "Type": st.sampled_from(["tree", 1]),
    },
)
HF_FILES = st.lists(HF_FILE | VALUE, max_size=4) | VALUE
MS_FILES = st.fixed_dictionaries({"Files": st.lists(MS_FILE | VALUE, max_size=4) | VALUE}) | VALUE
ENTRY = st.fixed_dictionaries({"path": PATH, "size": VALUE, "sha256": HASH, "stated": VALUE}) | VALUE
MANIFEST = st.fixed_dictionaries(
    {"name": VALUE, "revision": VALUE, "source": VALUE},
    optional={"files": st.lists(ENTRY, max_size=3) | VALUE},
)


class Told(Web):
    """Answers every question with the same document."""

    def __init__(self, raw: Any) -> None:
        super().__init__("hub")
        self.raw = raw

    def json_and_headers(self, *_: object) -> tuple[Any, dict[str, str]]:
        return self.raw, {}

    def json(self, *_: object) -> Any:
        return self.raw

    def head(self, url: str) -> Any:
        raise SourceError("no")


def listed(origin: Any) -> None:
    """List; only a one-line refusal is allowed instead."""
    try:
        found = origin.list()
    except SourceError as error:
        assert not has_controls(str(error))  # noqa: PT017  either outcome is right
        return
    for entry in found.files:
        assert names.check(entry.path)
        assert entry.size >= 0


@given(
    st.fixed_dictionaries(
        {}, optional={"siblings": st.lists(HF_FILE | VALUE, max_size=4) | VALUE, "sha": HASH}
    )
    | VALUE
)
@settings(max_examples=400, deadline=None)
def test_any_answer_of_hugging_face(raw: Any) -> None:
    listed(HuggingFace(Source("huggingface", REPOSITORY, COMMIT, "http://127.0.0.1:9"), Told(raw)))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "Data": st.fixed_dictionaries({"Files": st.lists(MS_FILE | VALUE, max_size=4) | VALUE}) | VALUE
        },
    )
    | VALUE
)
@settings(max_examples=400, deadline=None)
def test_any_answer_of_modelscope(raw: Any) -> None:
    listed(ModelScope(Source("modelscope", REPOSITORY, COMMIT, "http://127.0.0.1:9"), Told(raw)))


@given(MANIFEST | VALUE)
@settings(max_examples=400, deadline=None)
def test_any_manifest_of_a_server(raw: Any) -> None:
    listed(Served(Source("http", endpoint="http://127.0.0.1:9"), Told(raw)))


@given(
    st.binary(max_size=300) | st.text(alphabet='<a href="./x">&%2F\n', max_size=200).map(str.encode), VALUE
)
@settings(max_examples=300, deadline=None)
def test_any_list_of_a_folder(content: bytes, parsed: Any) -> None:
    for one in (None, parsed, [parsed]):
        try:
            files, folders = listings.folder_of(content, one)
        except (UserError, TypeError, LookupError, AttributeError, ValueError):
            continue
        assert all("/" not in name for name in [*files, *folders])


# Dialects -------------------------------------------------------------------------------------------------


def hub(
    answer: Callable[[str, dict[str, str], Asked], Answer | None], files: dict[str, bytes] = FILES
) -> Callable[[Asked], Answer]:
    """Serve ``resolve`` of Hugging Face's protocol, and the extra routes of ``answer``."""

    def serve(asked: Asked) -> Answer:
        parts = urlsplit(asked.path)
        query = {key: value[0] for key, value in parse_qs(parts.query).items()}
        found = answer(parts.path, query, asked)
        if found is not None:
            return found
        path = unquote(parts.path.partition(f"/resolve/{COMMIT}/")[2])
        if path not in files:
            return Answer(404, {"Content-Type": "application/json"}, b'{"error": "not found"}')
        span = asked.span(len(files[path]))
        if span is None:
            return Answer(200, {}, files[path])
        first, end = span
        return Answer(
            206, {"Content-Range": f"bytes {first}-{end - 1}/{len(files[path])}"}, files[path][first:end]
        )

    return serve


def sizes(entries: tuple[Entry, ...]) -> dict[str, int]:
    return {entry.path: entry.size for entry in entries}


def ask(server: str, revision: str = COMMIT) -> HuggingFace:
    found = open_source(Source("hf-mirror", REPOSITORY, revision, server), stall=5)
    assert isinstance(found, HuggingFace)
    return found


def tree_of(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": path, "size": len(content), "oid": git_id(content)}
        | ({"lfs": {"oid": sha256(content), "size": len(content)}} if path.endswith(".safetensors") else {})
        for path, content in files.items()
    ]


def js(raw: Any, **headers: str) -> Answer:
    return Answer(200, {"Content-Type": "application/json", **headers}, json.dumps(raw).encode())


NOT_FOUND = Answer(
    404, {"Content-Type": "application/json"}, b'{"errors": [{"status": 404, "message": "Not Found"}]}'
)


def test_artifactory_knows_no_parameters_and_no_sizes() -> None:
    """huggingface_hub issue 2974: an unknown parameter is a 404; pull request 3241: no ``siblings``."""

    def answer(path: str, query: dict[str, str], asked: Asked) -> Answer | None:
        if "/revision/" in path:
            return NOT_FOUND if query else js({"id": REPOSITORY, "sha": COMMIT})
        if "/tree/" in path:
            # The next page's address is the hub's own behind it: only the cursor counts.
            pages = {None: list(FILES)[:3], "two": list(FILES)[3:]}
            here = {name: FILES[name] for name in pages[query.get("cursor")]}
            more = (
                {} if query.get("cursor") else {"Link": '<https://huggingface.co/x?cursor=two>; rel="next"'}
            )
            return js(tree_of(here), **more)
        return None

    with answering(hub(answer)) as server:
        found = ask(server.url).list()
    assert sizes(found.files) == {path: len(content) for path, content in FILES.items()}
    assert all(entry.sha256 or entry.git_oid for entry in found.files), "the tree states hashes, too"
    assert found.revision == COMMIT


def test_where_the_tree_is_not_known_the_files_are_asked_one_by_one() -> None:
    """Nexus forwards HEAD for every file (sonatype/nexus-public issue 828), Artifactory without a commit
    (huggingface_hub issue 1796).
    """

    def answer(path: str, query: dict[str, str], asked: Asked) -> Answer | None:
        if "/revision/" in path:
            return NOT_FOUND if query else js({"siblings": [{"rfilename": name} for name in FILES]})
        return NOT_FOUND if "/tree/" in path else None

    with answering(hub(answer)) as server:
        found = ask(server.url).list()
        assert sizes(found.files) == {path: len(content) for path, content in FILES.items()}
        assert found.revision == COMMIT, "what was asked for, where nothing else is stated"
        assert {asked.method for asked in server.asked if "/resolve/" in asked.path} == {"HEAD"}


def test_a_mirror_that_states_no_length_to_head_is_asked_for_one_byte() -> None:
    """huggingface_hub issue 2362: hf-mirror's answer to HEAD without a Content-Length."""

    def answer(path: str, query: dict[str, str], asked: Asked) -> Answer | None:
        if "/api/" in path:
            return (
                js({"sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]})
                if "rev" in path
                else NOT_FOUND
            )
        return Answer(200, {"Transfer-Encoding": "chunked"}) if asked.method == "HEAD" else None

    with answering(hub(answer)) as server:
        found = ask(server.url).list()
    assert sizes(found.files) == {path: len(content) for path, content in FILES.items()}


def test_large_files_are_described_by_the_redirect_itself() -> None:
    """Olah and hf-mirror forward Hugging Face's ``X-Linked-*``; the redirect's target need not be asked."""
    digest = sha256(b"x")

    def answer(path: str, query: dict[str, str], asked: Asked) -> Answer | None:
        if "/revision/" in path:
            return js({"sha": COMMIT, "siblings": [{"rfilename": "model.safetensors"}]})
        if "/resolve/" in path:
            linked = {
                "X-Linked-Size": "123456789012",
                "X-Linked-Etag": f'"{digest}"',
                "X-Repo-Commit": COMMIT,
            }
            return Answer(302, {"Location": "https://cdn.example/x", **linked})
        return NOT_FOUND

    with answering(hub(answer)) as server:
        found = ask(server.url).list()
    assert found.files == (Entry("model.safetensors", 123456789012, digest, stated=True),)


def test_final_words_are_not_asked_again() -> None:
    gone = Answer(404, {"X-Error-Code": "RepoNotFound"}, b"{}")
    with answering(lambda _: gone) as server:
        with pytest.raises(SourceError, match="does not exist or needs a token") as caught:
            ask(server.url).list()
        assert len(server.asked) == 1
    assert caught.value.permanent


def test_a_tree_without_an_end_is_left() -> None:
    def answer(path: str, query: dict[str, str], asked: Asked) -> Answer | None:
        if "/revision/" in path:
            return js({"sha": COMMIT})
        number = int(query.get("cursor", "0")) + 1
        return js(tree_of({f"f{number}": b""}), Link=f'<http://x/?cursor={number}>; rel="next"')

    with answering(hub(answer)) as server:
        with pytest.raises(SourceError, match="on more than 50 pages"):
            ask(server.url).list()
        assert len(server.asked) < 60


# Plain web servers ----------------------------------------------------------------------------------------

NGINX = """<html><head><title>Index of /m/</title></head><body>
<h1>Index of /m/</h1><hr><pre><a href="../">../</a>
"""


def files_at(files: dict[str, bytes], list_folders: str | None) -> Callable[[Asked], Answer]:
    """A web server: nginx with ``autoindex`` (html or json), or one without listings (Nexus "raw")."""

    def serve(asked: Asked) -> Answer:
        path = unquote(urlsplit(asked.path).path).removeprefix("/m/")
        if path in files:
            return Answer(200, {}, files[path])
        if (path == "" or path.endswith("/")) and list_folders:
            inside = {name.removeprefix(path).partition("/") for name in files if name.startswith(path)}
            found = sorted({first + slash for first, slash, _ in inside})
            if list_folders == "json":
                kind = {True: "directory", False: "file"}
                return js([{"name": name.rstrip("/"), "type": kind[name.endswith("/")]} for name in found])
            links = "".join(f'<a href="{name}">{name}</a>  1.8G\n' for name in found)
            return Answer(200, {"Content-Type": "text/html"}, f"{NGINX}{links}</pre></body></html>".encode())
        return Answer(
            403 if path.endswith("/") or not path else 404, {"Content-Type": "text/html"}, b"<html>no</html>"
        )

    return serve


@pytest.mark.parametrize("list_folders", ["html", "json", None])
def test_a_directory_without_a_manifest_on_a_web_server(list_folders: str | None) -> None:
    """nginx ngx_http_autoindex_module (html, json); Nexus "raw" and others list nothing."""
    files = FILES | {"figures/one.svg": b"<svg/>", "._____temp/x": b"x"}
    with answering(files_at(files, list_folders)) as server:
        found = open_source(Source("http", endpoint=f"{server.url}/m"), stall=5).list()
    wanted = FILES | ({"figures/one.svg": b"<svg/>"} if list_folders else {})
    if not list_folders:
        wanted = {path: content for path, content in wanted.items() if path != "README.md"}
    assert sizes(found.files) == {path: len(content) for path, content in wanted.items()}


def test_an_unfinished_download_on_a_web_server_is_refused_by_name() -> None:
    refused = pytest.raises(SourceError, match=r"model.safetensors.aria2: an unfinished download of aria2")
    with answering(files_at(FILES | {"model.safetensors.aria2": b"x"}, "html")) as server, refused:
        open_source(Source("http", endpoint=f"{server.url}/m"), stall=5).list()


def test_what_a_mac_left_on_a_web_server_is_refused_by_name() -> None:
    refused = pytest.raises(SourceError, match=r"\._config\.json: a file that macOS keeps .*\(and 1 more\)")
    left = {f"._{name}": b"x" for name in ("config.json", "model-00001-of-00002.safetensors")}
    with answering(files_at(FILES | left, "html")) as server, refused:
        open_source(Source("http", endpoint=f"{server.url}/m"), stall=5).list()


def test_a_web_server_without_a_model_is_refused() -> None:
    refused = pytest.raises(SourceError, match="neither a manifest")
    with answering(files_at({"index.txt": b""}, "html")) as server, refused:
        open_source(Source("http", endpoint=f"{server.url}/m"), stall=5).list()


# Directories ----------------------------------------------------------------------------------------------


def test_a_directory_that_is_not_proved_is_refused_by_the_files_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "nfs", model())
    source = Source("directory", path=folder)
    assert set(sizes(Directory(source).list().files)) == set(model())
    (folder / "model-00001-of-00002.safetensors.aria2").touch()
    with pytest.raises(SourceError, match=r"model-00001-of-00002.safetensors.aria2: an unfinished") as caught:
        Directory(source).list()
    assert caught.value.permanent
    assert set(sizes(Directory(source, None, True).list().files)) == set(model()), "accepted by name"


def test_a_manifest_of_a_stranger_may_not_lead_outside(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            f"{FOLDER}/{FILE}": json.dumps(
                {
                    "name": "x",
                    "revision": None,
                    "source": {},
                    "files": [{"path": "../../etc/passwd", "size": 1, "sha256": None, "stated": False}],
                }
            ).encode()
        },
    )
    with pytest.raises(SourceError, match="not proved to be the model"):
        Directory(Source("directory", path=tmp_path)).list()

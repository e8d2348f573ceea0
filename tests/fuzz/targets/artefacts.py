"""Readers of model data from hubs, mirrors and files."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from minimax_metal.common.errors import UserError
from minimax_metal.controller.statements.bundled import of as of_bundle
from minimax_metal.controller.statements.wishes import Kept, Wish, file_of
from minimax_metal.host.weights import answers, hubs, names, redirects, served
from minimax_metal.host.weights.attempt import Journal
from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.examine import examine
from minimax_metal.host.weights.examine.safetensors import UnsoundError
from minimax_metal.host.weights.examine.safetensors import read as read_header
from minimax_metal.host.weights.manifest import DamagedFileError, Manifest, missing_from_index
from minimax_metal.host.weights.proof import Proof, named
from minimax_metal.host.weights.request import Request, Source
from minimax_metal.host.weights.stock import _words, model_paths
from minimax_metal.host.weights.watch import _read_events
from minimax_metal.host.weights.web import Document, Head
from tests.fuzz.target import Form, Target, of_file, of_json, of_text, text_of

HASH: Final = "a" * 64
COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"
HUGGING_FACE: Final = json.dumps(
    {
        "id": "a/b", "sha": COMMIT,
        "siblings": [
            {"rfilename": "config.json", "size": 100, "blobId": "b" * 40},
            {"rfilename": "model-00001-of-00002.safetensors", "size": 10**10, "blobId": "c" * 40,
             "lfs": {"sha256": HASH, "size": 10**10, "pointerSize": 135}},
        ],
    }
).encode()  # fmt: skip
TREE: Final = json.dumps(
    [
        {"type": "file", "oid": "b" * 40, "size": 7, "path": "config.json"},
        {"type": "directory", "oid": "b" * 40, "size": 0, "path": "docs"},
        {
            "type": "file",
            "oid": "b" * 40,
            "size": 9,
            "path": "a.safetensors",
            "lfs": {"oid": HASH, "size": 9},
        },
    ]
).encode()
MODEL_SCOPE: Final = json.dumps(
    {
        "Code": 200, "Success": True, "Message": "",
        "Data": {"Files": [
            {"Path": "config.json", "Name": "config.json", "Type": "blob", "Size": 100, "Sha256": HASH},
            {"Path": "docs", "Type": "tree", "Size": 0, "Sha256": ""},
        ]},
    }
).encode()  # fmt: skip
FILES: Final = [{"path": "config.json", "size": 3, "sha256": HASH, "stated": True, "git_oid": "b" * 40}]
MANIFEST: Final = json.dumps(
    {"schema": 1, "name": "a/b", "revision": COMMIT, "source": {"kind": "huggingface"}, "bytes": 3,
     "proof": {"by": "hub", "origin": "https://huggingface.co"}, "files": FILES}
).encode()  # fmt: skip
PROOF: Final = json.dumps(
    {"by": "hub", "origin": "https://huggingface.co", "resolver": "controller", "time": "2026-01-01T00:00:00Z",
     "repository": "a/b", "revision": COMMIT, "files": FILES}
).encode()  # fmt: skip
BUNDLE: Final = json.dumps(
    {"schema": 1, "created": "2026-01-01", "contents": {},
     "files": [{"path": f"weights/a/b/{COMMIT}/config.json", "size": 3, "sha256": HASH}]}
).encode()  # fmt: skip
SHARE: Final = {"me": "gpu01", "peers": [{"name": "gpu02", "address": "10.0.0.2", "port": 18320}],
                "port": 18320, "piece_bytes": 1 << 20, "allow": ["10.0.0.0/8"], "poll": 0.5, "rate": 0}  # fmt: skip
REQUEST: Final = json.dumps(
    {"path": "/srv/models/a/b/c", "name": "a/b", "revision": COMMIT, "bytes": 100, "owner": "sglang",
     "sources": [{"kind": "huggingface", "repository": "a/b", "endpoint": "https://hf-mirror.com"},
                 {"kind": "directory", "path": "/mnt/a"}],
     "adopt": ["/srv/old"], "share": SHARE, "proof": json.loads(PROOF), "accept": ["weights-unhashed"],
     "architectures": ["MiniMaxM2ForCausalLM"]}
).encode()  # fmt: skip
PAGE: Final = (
    b'<html><head><title>Index of /</title></head><body><a href="../">../</a>\n'
    b'<a href="config.json">config.json</a> 2026\n<a href="model.safetensors">m</a><a href="docs/">docs/</a></html>'
)


class _Web:
    """Answers everything with one content, read like :class:`minimax_metal.host.weights.web.Web` does."""

    def __init__(self, content: bytes) -> None:
        self.content, self.headers = content, {"Link": text_of(content)[:20_000]}

    def json_and_headers(self, _url: str, _parameters: object = None) -> tuple[Any, Mapping[str, str]]:
        try:
            return answers.read_json(self.content), self.headers
        except ValueError as error:
            raise SourceError(f"not JSON ({error})") from error

    def json(self, url: str, parameters: object = None) -> Any:
        return self.json_and_headers(url, parameters)[0]

    def text(self, _url: str, _parameters: object = None) -> str:
        return text_of(self.content)

    def document(self, url: str, _parameters: object = None) -> Document:
        return Document(self.content, self.headers, url)

    def head(self, _url: str) -> Head:
        return Head(7, "a" * 64, None)


def _hugging_face(content: bytes) -> object:
    source = Source("huggingface", "a/b", "main", "http://hub")
    return hubs.HuggingFace(source, _Web(content)).list()  # type: ignore[arg-type]


def _model_scope(content: bytes) -> object:
    source = Source("modelscope", "a/b", "master", "http://hub")
    return hubs.ModelScope(source, _Web(content)).list()  # type: ignore[arg-type]


def _served(content: bytes) -> object:
    source = Source("http", None, None, "http://10.0.0.1/model")
    return served.Served(source, _Web(content)).list()  # type: ignore[arg-type]


def _without_manifest(content: bytes) -> object:
    source = Source("http", None, None, "http://10.0.0.1/model")
    one = served.Served(source, _Web(content))  # type: ignore[arg-type]
    return sorted(one._listed() or one._named())


def _headers(content: bytes) -> object:
    pairs = [line.partition(":") for line in text_of(content).splitlines()]
    headers = {name.strip(): value.strip() for name, _, value in pairs}
    answers.patience(headers)
    answers.is_page(headers, content)
    answers.title_of(content)
    hubs._next_cursor(headers.get("Link", ""))
    return answers.span_of("hub", 206, headers, 0, 100)


def _redirect(location: str) -> object:
    return redirects.following("hub", "https://hub/a", location)


def _safetensors(path: Path) -> object:
    with path.open("rb") as file:
        return read_header(file.fileno())


def _index(path: Path) -> object:
    return missing_from_index(path.parent, ["a.safetensors"])


def _examined(path: Path) -> object:
    (path.parent / "model.safetensors").write_bytes(SAFETENSORS)
    found = examine(path.parent)
    return [(problem.path, problem.text) for problem in found.problems], found.architectures, found.line()


def _journal(path: Path) -> object:
    journal = Journal.open(path.parent.parent)
    for line in journal.lines.values():
        journal.knows(path.parent.parent, _entry(str(line.get("path"))))
    return None


def _entry(path: str) -> Any:
    from minimax_metal.host.weights.manifest import Entry

    try:
        return Entry(path, 3, None)
    except UserError:
        return Entry("a", 3, None)


def _kept(path: Path) -> object:
    wish = Wish("a/b", COMMIT, (Source("huggingface", "a/b", COMMIT),), None, False, False)
    place = file_of(path.parent, wish)
    place.write_bytes(path.read_bytes())
    return Kept.read(path.parent, wish)


def _events(content: bytes) -> object:
    import io

    from minimax_metal.host.weights.watch import Watch

    found: list[Any] = []
    _read_events(io.StringIO(text_of(content)), found.append)
    return [type(one).__name__ for one in found] and Watch.__name__


def _named(raw: Any) -> object:
    return named(raw, "file", "2026-01-01T00:00:00Z", repository="a/b", revision=COMMIT)


_HEADER = json.dumps({"a": {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
SAFETENSORS: Final = struct.pack("<Q", len(_HEADER)) + _HEADER + bytes(8)
_REFUSED = (UserError, SourceError)

TARGETS: Final = (
    Target("hub-hugging-face", _hugging_face, (HUGGING_FACE, TREE), Form.JSON, _REFUSED, shown=True),
    Target("hub-tree", _hugging_face, (TREE,), Form.JSON, _REFUSED, shown=True),
    Target("hub-modelscope", _model_scope, (MODEL_SCOPE,), Form.JSON, _REFUSED, shown=True),
    Target("hub-git-refs", of_text(hubs.parse_refs), (
        f"003f{COMMIT} refs/heads/master\n003d{COMMIT} refs/tags/v1\n0040{COMMIT} refs/tags/v1^{{}}\n".encode(),
    )),
    Target("web-server-manifest", _served, (MANIFEST, HUGGING_FACE), Form.JSON, _REFUSED, shown=True),
    Target("web-server-folder", _without_manifest, (
        PAGE, b'[{"name":"config.json","type":"file"},{"name":"docs","type":"directory"}]',
        b'{"weight_map":{"a":"model.safetensors"},"auto_map":{"A":"modeling_a.B"}}',
    ), Form.TEXT, _REFUSED),
    Target("web-headers", _headers, (
        b"Content-Type: text/html\nContent-Range: bytes 0-99/100\nContent-Length: 100\nRetry-After: 12\n"
        b'RateLimit: "api";r=0;t=55\nLink: <https://hub/api?cursor=abc>; rel="next"\nDate: Sun, 06 Nov 1994 08:49:37 GMT',
        b"Retry-After: Sun, 06 Nov 1994 08:49:37 GMT\nContent-Encoding: gzip\n<html><title>Not here</title>",
    ), Form.TEXT, _REFUSED, shown=True),
    Target("web-redirect", of_text(_redirect), (
        b"https://cdn-lfs.hub/a/b?X-Amz-Signature=1", b"//other/a", b"http://[::1]:80/x", b"https://u:p@h/a",
    ), Form.TEXT, _REFUSED),
    Target("file-names", of_text(names.check), (b"a/b.json", b"docs/../x", "ﬁle".encode(), b"con.txt"), shown=True),
    Target("manifest", of_json(Manifest.parse), (MANIFEST,), Form.JSON, (UserError, KeyError, TypeError, ValueError)),
    Target("manifest-file", of_file(lambda path: Manifest.read(path.parent.parent), ".minimax-metal/manifest.json"),
           (MANIFEST,), Form.JSON),
    Target("manifest-of-user", of_json(_named), (MANIFEST, PROOF, BUNDLE, HUGGING_FACE), Form.JSON, shown=True),
    Target("proof", of_json(Proof.parse), (PROOF,), Form.JSON, shown=True),
    Target("bundle-weights", lambda content: of_bundle(content, "bundle", "SHA256:x", "a/b", COMMIT),
           (BUNDLE,), Form.JSON, shown=True),
    Target("request", of_json(Request.parse), (REQUEST,), Form.JSON, shown=True),
    Target("request-file", of_file(Request.read), (REQUEST,), Form.JSON, shown=True),
    Target("safetensors", of_file(_safetensors), (SAFETENSORS,), Form.BYTES, (UnsoundError,), shown=False),
    Target("safetensors-header", of_file(lambda path: _headed(path)), (_HEADER,), Form.JSON, (UnsoundError,), shown=False),
    Target("weights-index", of_file(_index, "model.safetensors.index.json"),
           (b'{"metadata":{},"weight_map":{"a":"a.safetensors","b":"b.safetensors"}}',), Form.JSON, (DamagedFileError,)),
    Target("model-config", of_file(_examined, "config.json"), (
        b'{"architectures":["MiniMaxM2ForCausalLM"],"auto_map":{"AutoConfig":"configuration_a.A"}}',
    ), Form.JSON, shown=True),
    Target("model-index", of_file(_examined, "model.safetensors.index.json"), (
        b'{"metadata":{},"weight_map":{"a":"model.safetensors","b":"b.safetensors"}}',
    ), Form.JSON, shown=True),
    Target("pull-journal", of_file(_journal, ".minimax-metal/verified.jsonl"), (
        b'{"path":"config.json","size":3,"mtime":1,"sha256":"' + b"a" * 64 + b'","git_oid":null}\n',
    ), Form.JSON),
    Target("pull-events", _events, (
        b'{"event":"listed","bytes":100,"files":2,"needed":50}\n{"event":"progress","have":1,"fetched":1}\n',
    ), Form.JSON),
    Target("resolved-store", of_file(_kept), (
        json.dumps({"schema": 1, "repository": "a/b", "revision": COMMIT, "proof": json.loads(PROOF),
                    "settled": [{"source": {"kind": "huggingface", "repository": "a/b"}, "commit": COMMIT}]}).encode(),
    ), Form.JSON, shown=True),
    Target("unit-words", of_text(lambda text: list(model_paths(_words(text)))), (
        b"ExecStart=/opt/x --model-path /srv/models/a \\\n  --port 8000 '--model=/srv/b' \"a%%b\"\n",
    )),
)  # fmt: skip


def _headed(path: Path) -> object:
    header = path.read_bytes()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    return _safetensors(path)

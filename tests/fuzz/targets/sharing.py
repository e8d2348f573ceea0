"""Readers of messages from other hosts of the fleet while weights are shared."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from minimax_metal.host.weights import share_keys as keys
from minimax_metal.host.weights.manifest import Entry
from minimax_metal.host.weights.share import renewal
from minimax_metal.host.weights.share.board import Board
from minimax_metal.host.weights.share.facts import File
from minimax_metal.host.weights.share.listen import Listener
from minimax_metal.host.weights.share.listing import _parsed
from minimax_metal.host.weights.share.peers import _date
from minimax_metal.host.weights.share.pieces import PieceFile
from minimax_metal.host.weights.share_log import LISTING, Reader, chained
from minimax_metal.host.weights.share_settings import Peer, Share
from minimax_metal.plan import sharing as members
from tests.fuzz.target import Form, Target, of_file, of_json, of_text, text_of
from tests.fuzz.targets.artefacts import FILES, SHARE

SECRET: Final = "5" * 64
KEY: Final = "config.json"
LINES: Final = (
    b'[["claim","k",0,3,1],["drop","k",0,1],["have","k",0,"' + b"a" * 64 + b'",1,"gpu02"],["file","k"],'
    b'["origin",true],["distrust","gpu03"],["beat",1764000000.1],["end"],{"boot":"ab","me":"gpu02","piece":1}]',
)


def _sealed_log(bodies: list[bytes]) -> bytes:
    link, lines = b"", [b""]
    for body in [b'{"boot":"00","me":"gpu02","piece":1048576}', *bodies]:
        link = chained(link, body)
        lines.append(keys.seals([SECRET], "log", "gpu02", link).encode() + b" " + body)
    return b"\n".join([*lines, b""])


def _log(content: bytes) -> object:
    """As received, and sealed line by line: any message that a host of the fleet may send."""
    Reader("gpu02", [SECRET]).feed(content, 0)
    return Reader("gpu02", [SECRET]).feed(_sealed_log(content.splitlines()[:10_000]), 0)


def _board() -> Board:
    files = [File("k", "a.bin", 5 << 20, 5), File("l", "b.bin", 3 << 20, 3, "a" * 64)]
    board = Board("gpu01", ["gpu01", "gpu02", "gpu03"], files, seed=1)
    board.met("gpu02", pulling=True)
    return board


def _heard(value: Any) -> object:
    share = Share("gpu01", (Peer("gpu02", "10.0.0.2", 1), Peer("gpu03", "10.0.0.3", 1)), piece=1 << 20)
    board = _board()
    said: list[str] = []
    listener = Listener(
        share.peers[0], share, [SECRET], board, threading.Condition(), lambda *_: None, said.append, {}
    )
    listener._hear(value)
    board.next_claim(1.0), board.readers(), board.watched()
    return said


def _listing(content: bytes) -> object:
    body = keys.seal([SECRET], LISTING, "gpu02", content)
    return _parsed([SECRET], LISTING, "gpu02", content), _parsed([SECRET], LISTING, "gpu02", body)


def _pieces(path: Path) -> object:
    entry = Entry("a.bin", 10 << 20, "a" * 64)
    file = PieceFile(path.parent, "identity", entry, 1 << 20)
    file.notes.parent.mkdir(parents=True, exist_ok=True)
    file.notes.write_bytes(path.read_bytes())
    return file._noted()


def _answered(content: bytes) -> object:
    answer: Any = SimpleNamespace(headers={"Date": text_of(content)})
    return _date(answer)


TARGETS: Final = (
    Target("share-settings", of_json(Share.parse), (json.dumps(SHARE).encode(),), Form.JSON, shown=True),
    Target("share-log", _log, (
        b'["claim","k",0,3,1]\n["have","k",0,"' + b"a" * 64 + b'",1,"gpu02"]\n["beat",1764000000.1]\n["end"]\n',
    )),
    Target("share-log-line", _log, (b'["beat",1764000000.1]', b'{"boot":"1","me":"a","piece":1}'), Form.JSON),
    Target("share-heard", of_json(_heard, list), LINES, Form.JSON),
    Target("share-listing", _listing, (
        json.dumps({"revision": None, "files": [one | {"identity": "x"} for one in FILES]}).encode(),
    ), Form.JSON),
    Target("share-secrets", of_text(keys.parse), (SECRET.encode(), f"{SECRET}\n{'6' * 64}\n".encode())),
    Target("share-pieces", of_file(_pieces), (b"piece 1048576\n0 " + b"a" * 64 + b"\n9 " + b"b" * 64 + b"\n",)),
    Target("share-date", _answered, (b"Sun, 06 Nov 1994 08:49:37 GMT",), expects=()),
    Target("share-renewal", of_json(renewal._read), (
        json.dumps({"results": [
            {"content": base64.b64encode(SECRET.encode()).decode()},
            {"content": base64.b64encode(b'{"generation":3,"holders":["a"],"renewed":1.5}').decode()},
        ]}).encode(),
    ), Form.JSON),
    Target("share-renewal-note", lambda content: renewal._read({"results": [
        {"content": ""}, {"content": base64.b64encode(content).decode()}]}),
           (b'{"generation":3,"holders":["a"],"renewed":1.5}',), Form.JSON),
    Target("share-account", of_json(lambda rows: members.account(rows, 100), list), (
        b'[{"fetched":100,"peers":50},{"fetched":1}]',
    ), Form.JSON),
)  # fmt: skip

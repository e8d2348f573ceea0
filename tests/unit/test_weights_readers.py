"""Every reader of external text about weights either reads it or refuses it in one line.

``METAL_FUZZ_SEED`` and ``METAL_FUZZ_ROUNDS`` use other, or more, documents.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.common.errors import UserError
from minimax_metal.host.weights import share_keys as keys
from minimax_metal.host.weights.manifest import Manifest
from minimax_metal.host.weights.proof import Proof, named
from minimax_metal.host.weights.request import Request
from minimax_metal.host.weights.share.renewal import renewed
from minimax_metal.host.weights.share_log import Log, Reader, parse_listing
from minimax_metal.host.weights.share_settings import Share

SECRET = "ab12cd34" * 8
SEED = int(os.environ.get("METAL_FUZZ_SEED", "7"))
ROUNDS = int(os.environ.get("METAL_FUZZ_ROUNDS", "1500"))
FOREIGN = (KeyError, TypeError, ValueError, AttributeError, UserError)
"""What callers of the readers of manifests and listings catch."""

VALID: dict[str, Any] = {
    "proof": {
        "by": "hub",
        "origin": "https://huggingface.co",
        "repository": "a/b",
        "revision": "c" * 40,
        "resolver": "controller",
        "time": "2026-11-29T00:00:00Z",
        "files": [{"path": "config.json", "size": 3, "sha256": "0" * 64, "git_oid": "1" * 40}],
    },
    "named": {
        "sha": "c" * 40,
        "siblings": [{"rfilename": "m", "size": 3, "lfs": {"sha256": "0" * 64, "size": 3}}],
    },
    "bundle": {"contents": {}, "files": [{"path": "weights/a/b/main/x", "size": 3, "sha256": "0" * 64}]},
    "manifest": {
        "name": "m",
        "revision": None,
        "source": {},
        "proof": {},
        "files": [{"path": "a", "size": 1, "sha256": "0" * 64, "stated": True, "identity": "x"}],
    },
    "request": {
        "path": "/srv/m/r",
        "sources": [{"kind": "http", "endpoint": "http://h", "repository": "a/b", "path": None}],
        "bytes": 5,
        "adopt": ["/x"],
        "accept": ["weights-unhashed"],
        "share": {
            "me": "a",
            "peers": [{"name": "b", "address": "h", "port": 5}],
            "poll": 1,
            "allow": ["10.0.0.0/8"],
        },
    },
    "note": {"results": [{"content": "YQ=="}, {"content": "e30="}]},
}


def renew(raw: Any) -> Any:
    return renewed([{"inventory_hostname": "a", "__model_weights_secret_found": raw}], ["a"], SECRET, 1e9)


def name(raw: Any) -> Any:
    return named(raw, "/m.json", "t", repository="a/b", revision="main")


READERS: list[tuple[str, Callable[[Any], Any], tuple[type[Exception], ...]]] = [
    ("proof", Proof.parse, (UserError,)),
    ("proof", name, (UserError,)),
    ("named", name, (UserError,)),
    ("bundle", name, (UserError,)),
    ("manifest", name, (UserError,)),
    ("manifest", Manifest.parse, FOREIGN),
    ("manifest", parse_listing, FOREIGN),
    ("request", Request.parse, (UserError,)),
    ("request", lambda raw: Share.parse(raw.get("share") if isinstance(raw, dict) else raw), (UserError,)),
    ("note", renew, ()),
]


class Odd:
    """Makes documents that are almost valid."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311  reproducible

    def atom(self) -> Any:
        few: list[Any] = [
            None,
            True,
            0,
            -1,
            7,
            10**40,
            1e300,
            float("nan"),
            float("inf"),
            "",
            "a/b",
            "../x",
            "/",
        ]
        many: list[Any] = [
            "\x1b[2J",
            "a\nb",
            "\ud800",
            "x" * 300,
            "0" * 64,
            [],
            {},
            [[]],
            {"a": 1},
            "hub",
            "\0",
        ]
        return self.chance.choice(few + many)

    def twisted(self, value: Any) -> Any:
        """Return a document with a few of its values replaced, removed or doubled."""
        if self.chance.random() < 0.12:
            return self.atom()
        if isinstance(value, dict):
            found = {key: self.twisted(one) for key, one in value.items() if self.chance.random() > 0.05}
            if self.chance.random() < 0.05:
                found[str(self.atom())] = self.atom()
            return found
        if isinstance(value, list):
            found_list = [
                self.twisted(one) for one in value for _ in range(self.chance.choice((1, 1, 1, 0, 2)))
            ]
            return [*found_list, self.atom()] if self.chance.random() < 0.05 else found_list
        return value


@pytest.mark.parametrize("number", range(len(READERS)), ids=lambda number: f"{number}-{READERS[number][0]}")
def test_a_document_is_read_or_refused(number: int) -> None:
    kind, read, allowed = READERS[number]
    odd = Odd(SEED + number)
    refused = 0
    for _ in range(ROUNDS):
        raw = odd.twisted(VALID[kind])
        said = ""
        try:
            read(raw)
        except allowed as error:
            refused += 1
            said = str(error) if isinstance(error, UserError) else ""
        assert "\n" not in said, raw
        assert "\x1b" not in said, raw
    assert refused or not allowed
    read(VALID[kind])


def test_a_log_of_anybody_is_passed_over() -> None:
    odd = Odd(SEED)
    for _ in range(ROUNDS):
        text = json.dumps(odd.twisted(VALID["manifest"]), allow_nan=True).encode()
        content = b"\n".join([odd.chance.randbytes(40), b"0" * 32 + b" " + text, b'{"boot":"1"}', b""])
        assert not Reader("gpu02", [SECRET]).feed(content, 0)
        with pytest.raises(keys.SealError):
            keys.unseal([SECRET], "listing", "gpu02", content)


def test_sealed_lines_come_back_whatever_is_in_them(tmp_path: Path) -> None:
    odd = Odd(SEED)
    log = Log(tmp_path, "gpu02", 10, [SECRET])
    for _ in range(200):
        makers: list[Callable[[], Any]] = [odd.atom, int]
        log.post([odd.chance.choice(makers)() or 0 for _ in range(odd.chance.randrange(1, 4))])
    log.post(["file", "key0"])
    log.close()
    heard = Reader("gpu02", [SECRET]).feed(log.path.read_bytes(), 0)
    assert heard is not None
    assert heard[-1] == ["end"]

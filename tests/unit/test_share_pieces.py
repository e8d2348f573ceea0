"""Files in pieces, the hosts' messages about them, and whom a host's nginx lets in."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.common.errors import UserError
from minimax_metal.host.weights import share_keys as keys
from minimax_metal.host.weights.manifest import FOLDER, DamagedFileError, Entry
from minimax_metal.host.weights.part import Part
from minimax_metal.host.weights.request import Request
from minimax_metal.host.weights.share import server
from minimax_metal.host.weights.share.peers import signature
from minimax_metal.host.weights.share.pieces import PieceFile, count, key_of
from minimax_metal.host.weights.share_log import Log, Reader, parse_listing, write_listing
from minimax_metal.host.weights.share_settings import PIECE, Share
from minimax_metal.plan import sharing as members

PART = 1000
CONTENT = random.Random(3).randbytes(PART * 4 + 77)  # noqa: S311  test data
SECRET = "0123456789abcdef" * 4


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry(content: bytes = CONTENT, path: str = "a/shard") -> Entry:
    return Entry(path, len(content), sha(content), stated=True)


def opened(staging: Path, of: Entry | None = None) -> PieceFile:
    of = of or entry()
    found = PieceFile(staging, of.sha256 or "", of, PART)
    found.recall()
    found.open()
    return found


def put(file: PieceFile, *numbers: int, content: bytes = CONTENT) -> None:
    for number in numbers:
        begin, end = file.span(number)
        file.write(content[begin:end], begin)
        file.keep(number, sha(content[begin:end]))


@pytest.mark.parametrize(("size", "expected"), [(0, 1), (1, 1), (1000, 1), (1001, 2), (4077, 5)])
def test_a_file_has_as_many_pieces(size: int, expected: int) -> None:
    assert count(size, PART) == expected


def test_pieces_may_come_in_any_order(tmp_path: Path) -> None:
    file = opened(tmp_path)
    for number in (3, 0, 4, 1):
        put(file, number)
        assert not file.advance()
    put(file, 2)
    assert file.advance()
    found = file.finish(tmp_path / "done")
    assert found.sha256 == sha(CONTENT)
    assert (tmp_path / "done").read_bytes() == CONTENT
    assert list((tmp_path / FOLDER / "parts").iterdir()) == []


def test_a_file_that_is_not_the_stated_one_is_refused(tmp_path: Path) -> None:
    file = opened(tmp_path)
    wrong = CONTENT[:1500] + b"\0" + CONTENT[1501:]
    put(file, 0, 1, 2, 3, 4, content=wrong)
    assert file.advance()
    with pytest.raises(DamagedFileError, match="a/shard has sha256"):
        file.finish(tmp_path / "done")
    assert file.dispute() == len(CONTENT)
    put(file, 0, 1, 2, 3, 4)
    assert file.advance()
    file.finish(tmp_path / "done")
    assert (tmp_path / "done").read_bytes() == CONTENT


def test_a_git_id_is_held_against_all_pieces(tmp_path: Path) -> None:
    git = hashlib.sha1(f"blob {len(CONTENT)}\0".encode() + CONTENT, usedforsecurity=False).hexdigest()
    for oid, good in ((git, True), ("0" * 40, False)):
        file = PieceFile(tmp_path, oid, Entry("a", len(CONTENT), git_oid=oid), PART)
        file.open()
        put(file, 0, 1, 2, 3, 4)
        assert file.advance()
        if good:
            assert file.finish(tmp_path / "done").sha256 == sha(CONTENT)
        else:
            with pytest.raises(DamagedFileError, match="git id"):
                file.finish(tmp_path / "done")


def test_what_an_earlier_process_left_is_taken_up(tmp_path: Path) -> None:
    put(opened(tmp_path), 4, 1)
    again = PieceFile(tmp_path, sha(CONTENT), entry(), PART)
    assert again.staged() == 77 + PART
    read: list[int] = []
    again.recall(read.append)
    assert sorted(again.have) == [1, 4]
    assert sum(read) == 77 + PART, "nothing but what is there is read"


def test_a_piece_that_a_power_cut_emptied_is_dropped(tmp_path: Path) -> None:
    file = opened(tmp_path)
    put(file, 0, 1, 2)
    file.write(b"\0" * 500, 1200)
    again = PieceFile(tmp_path, sha(CONTENT), entry(), PART)
    again.recall()
    assert sorted(again.have) == [0, 2]


def test_pieces_of_another_size_are_not_believed(tmp_path: Path) -> None:
    put(opened(tmp_path), 0, 1)
    other = PieceFile(tmp_path, sha(CONTENT), entry(), PART * 2)
    other.recall()
    assert other.have == {}


def test_what_a_pull_without_sharing_left_is_taken_up(tmp_path: Path) -> None:
    with Part.open(tmp_path, sha(CONTENT), entry()) as part:
        part.recall()
        part.write(CONTENT[:2500])
    file = PieceFile(tmp_path, sha(CONTENT), entry(), PART)
    assert file.staged() == 2500
    file.recall()
    assert file.have == {0: sha(CONTENT[:1000]), 1: sha(CONTENT[1000:2000])}
    put(file, 2, 3, 4)
    assert file.advance()
    file.finish(tmp_path / "done")
    assert (tmp_path / "done").read_bytes() == CONTENT


def test_a_log_is_read_as_it_grows(tmp_path: Path) -> None:
    log, reader = Log(tmp_path, "gpu01", PART, [SECRET]), Reader("gpu01", [SECRET])
    log.post(["claim", "k", 0, 0, 0])
    content = log.path.read_bytes()
    first = reader.feed(content, 0)
    assert first is not None
    assert first[0]["me"] == "gpu01"
    assert first[1:] == [["claim", "k", 0, 0, 0]]
    log.post(["file", "k"])
    log.close()
    content = log.path.read_bytes()
    # Cut in the middle of a line: it comes whole with the next look.
    assert reader.feed(content[reader.offset - 1 : -4], reader.offset - 1) == [["file", "k"]]
    assert reader.feed(content[reader.offset - 1 :], reader.offset - 1) == [["end"]]
    assert reader.feed(content[reader.offset - 1 :], reader.offset - 1) == []


def test_another_log_in_the_same_place_is_noticed(tmp_path: Path) -> None:
    reader = Reader("gpu01", [SECRET])
    log = Log(tmp_path, "gpu01", PART, [SECRET])
    reader.feed(log.path.read_bytes(), 0)
    assert reader.feed(b'x"]\n', reader.offset - 1) is None
    assert reader.offset == 0


def test_a_line_that_a_crash_cut_off_spoils_no_other(tmp_path: Path) -> None:
    log = Log(tmp_path, "gpu01", PART, [SECRET])
    with log.path.open("ab") as file:
        file.write(b'["have","k"')
    again = Log(tmp_path, "gpu01", PART, [SECRET])
    again.post(["file", "k"])
    lines = Reader("gpu01", [SECRET]).feed(log.path.read_bytes(), 0)
    assert lines is not None
    assert [line for line in lines if isinstance(line, list)] == [["file", "k"]]
    assert len([line for line in lines if isinstance(line, dict)]) == 2


def test_a_listing_goes_to_other_hosts_and_back(tmp_path: Path) -> None:
    files: list[tuple[Entry, str | None]] = [
        (entry(), sha(CONTENT)),
        (Entry("b", 3, git_oid="1" * 40), "1" * 40),
        (Entry("c", 4), None),
    ]
    write_listing(tmp_path, files, "main", "gpu01", [SECRET])
    sealed = (tmp_path / FOLDER / "share" / "listing").read_bytes()
    found, revision = parse_listing(json.loads(keys.unseal([SECRET], "listing", "gpu01", sealed)))
    assert found == files
    assert revision == "main"
    with pytest.raises(UserError, match="outside the model directory"):
        parse_listing({"revision": None, "files": [{**vars_of(entry()), "path": "../etc/passwd"}]})


def vars_of(of: Entry) -> dict[str, object]:
    return {"path": of.path, "size": of.size, "sha256": of.sha256, "stated": of.stated}


def request_of(tmp_path: Path, **share: object) -> Request:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    peers = [{"name": "b", "address": "10.0.0.2"}, {"name": "c", "address": "gpu03.example"}]
    raw = {"me": "a", "peers": peers, "secret_file": str(secret), **share}
    return Request.parse(
        {"path": str(tmp_path / "m" / "r"), "sources": [{"kind": "directory", "path": "/x"}], "share": raw}
    )


def test_the_server_lets_in_the_fleet_and_nobody_else(tmp_path: Path) -> None:
    request = request_of(tmp_path, allow=["10.9.0.0/16"], rate=8000, uploads=4)
    known = {"10.0.0.2": ["10.0.0.2"], "gpu03.example": []}
    target = tmp_path / "run" / "nginx.conf"
    assert server.write(request, target, lambda name: known[name]) == ["c"]
    text = target.read_text()
    assert re.findall(r"allow (.*);", text) == ["10.0.0.2/32", "10.9.0.0/16"]
    assert text.index("deny all;") > text.index("allow")
    assert "limit_rate 2000;" in text
    assert "listen 18320" in text
    assert "[::]" not in text
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_path_that_would_mean_something_to_nginx_is_refused(tmp_path: Path) -> None:
    request = request_of(tmp_path)
    share = request.share
    assert share is not None
    strange = Request(Path("/srv/$uri/r"), "n", request.sources, share=share)
    with pytest.raises(UserError, match="model_weights_share"):
        server.configuration(strange, share, [SECRET], tmp_path, [])


def test_the_secret_is_in_no_representation(tmp_path: Path) -> None:
    request = request_of(tmp_path)
    assert request.share is not None
    assert SECRET not in json.dumps(request.share.as_dict()) + repr(request)
    signed = signature(SECRET, 5, "/log", "10.0.0.1")
    assert SECRET not in signed
    assert signed != signature(SECRET, 5, "/log", "10.0.0.2"), "good for one address"
    assert signed != signature(SECRET, 5, "/manifest", "10.0.0.1"), "good for one path"
    assert signed != signature(SECRET, 6, "/log", "10.0.0.1"), "good until a time"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ([], None),
        ({"me": "a", "peers": []}, None),
        ({"peers": [{"name": "b", "address": "x"}]}, "does not name this host"),
        ({"me": "a", "peers": [{"name": "b"}]}, "name and address"),
        ({"me": "a", "peers": [{"name": "a", "address": "x"}]}, "names a host twice"),
        ({"me": "a", "peers": [{"name": "b", "address": "x"}], "port": 0}, "port is 0"),
        ({"me": "a", "peers": [{"name": "b", "address": "x"}], "allow": ["all"]}, "is not a network"),
    ],
)
def test_a_request_that_shares_is_read(raw: object, words: str | None) -> None:
    if words is None:
        assert Share.parse(raw) is None
        return
    with pytest.raises(UserError, match=words):
        Share.parse(raw)


def test_a_missing_or_wrong_secret_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    share = Share.parse({"me": "a", "peers": [{"name": "b", "address": "x"}], "piece_bytes": str(PIECE)})
    assert share is not None
    with pytest.raises(UserError, match="start the pull by its unit"):
        share.secrets()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", os.fspath(tmp_path))
    with pytest.raises(UserError, match="can't read the fleet's secret"):
        share.secrets()
    (tmp_path / "share").write_text("short\n")
    with pytest.raises(UserError, match="holds no fleet secret"):
        share.secrets()
    (tmp_path / "share").write_text(SECRET + "\n")
    assert share.secrets() == (SECRET,)


def test_the_hosts_of_a_run_with_the_same_model_are_peers() -> None:
    plan = {"model": {"path": "/srv/models/M/1"}}
    hosts: list[dict[str, Any]] = [
        {"inventory_hostname": "a", "metal_plan": plan, "ansible_host": "10.0.0.1"},
        {"inventory_hostname": "b", "metal_plan": plan, "ansible_host": "x", "metal_address": "10.0.0.2"},
        {"inventory_hostname": "c", "metal_plan": plan},
        {"inventory_hostname": "d", "metal_plan": {"model": {"path": "/srv/models/M/2"}}},
        {"inventory_hostname": "e"},
    ]
    known = members.members(hosts)
    assert members.share(known, "a", {"port": 1}) == {
        "me": "a",
        "peers": [{"name": "b", "address": "10.0.0.2"}, {"name": "c", "address": "c"}],
        "port": 1,
    }
    assert members.share(known, "d", {"port": 1}) == {}


def test_the_account_says_how_often_the_source_was_read() -> None:
    text = members.account([{"fetched": 100, "peers": 60}, {"fetched": 100, "peers": 40}, {}], 100)
    assert text.startswith("3 hosts: 100 B from the source, 1.00 × the model")
    assert "100 B from one another" in text


def test_keys_are_the_same_for_the_same_bytes_under_the_same_path() -> None:
    assert key_of("x", "a") == key_of("x", "a") != key_of("x", "b")
    assert re.fullmatch("[0-9a-f]{32}", key_of("x", "a"))


def test_who_shares_is_read_from_the_file_that_the_request_names(tmp_path: Path) -> None:
    who = tmp_path / "model.share"
    raw = {
        "path": "/srv/models/MiniMaxAI/MiniMax-M2.5/0",
        "sources": [{"kind": "directory", "path": "/mnt/model"}],
        "share": str(who),
    }
    assert Request.parse(raw).share is None, "nobody was written down"
    who.write_text('{"me": "gpu01", "peers": [{"name": "gpu02", "address": "10.0.0.2"}]}')
    share = Request.parse(raw).share
    assert share is not None
    assert share.names == ("gpu01", "gpu02")
    who.write_text('{"me": "gpu01", "pe')
    with pytest.raises(UserError, match=r"can't read .*model\.share .*run playbooks/weights\.yml again"):
        Request.parse(raw)

"""A host of the fleet, or an attacker at its address, that tries to stop the others' pulls."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import random
import socket
import string
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minimax_metal.host.weights import share_keys as keys
from minimax_metal.host.weights.manifest import Entry
from minimax_metal.host.weights.pull import Options, pull
from minimax_metal.host.weights.request import Request
from minimax_metal.host.weights.share.board import Board, Claim, File
from minimax_metal.host.weights.share.facts import BUSY, CLAIMS, DISTRUSTED, FRUITLESS, LEFT_OUT, PATIENCE
from minimax_metal.host.weights.share.listen import Listener
from minimax_metal.host.weights.share.peers import SKEW, DeniedError, Line, PeerError
from minimax_metal.host.weights.share.pieces import count, key_of
from minimax_metal.host.weights.share.swarm import SharedAttempt
from minimax_metal.host.weights.share_log import Log, Reader
from minimax_metal.host.weights.share_settings import Peer, Share
from tests.support.hub import Hub, model, running

A, B, C = "gpu01", "gpu02", "gpu03"
SECRET, OTHER, OLD = "ab01" * 16, "cd23" * 16, "ef45" * 16
SHA = "0" * 64


def board(names: tuple[str, ...] = (A, B, C), pieces: int = 6) -> Board:
    files = [File(f"key{n}", f"shard-{n}", pieces * 10, pieces, SHA) for n in range(2)]
    it = Board(A, names, files, seed=1)
    for name in names:
        if name != A:
            it.met(name, pulling=True)
    return it


# Numbers that no clock says ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["410 Gone", "200 OK"])
@pytest.mark.parametrize(
    "date",
    [
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 01 Jan 2026 00:00:00 +99999999999999999999",
        "Mon, 01 Jan 0001 00:00:00 +2359",
        "Fri, 31 Dec 9999 23:59:59 -2359",
        "9" * 60_000,
        "yesterday",
    ],
)
def test_a_date_that_is_none_is_one_hosts_error(status: str, date: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                for _ in range(4):
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65536)
                        head = f"HTTP/1.1 {status}\r\nDate: {date}\r\nContent-Length: 2\r\n\r\n"
                        connection.sendall(head.encode() + b"{}")

        threading.Thread(target=answer, daemon=True).start()
        line = Line(Peer(B, "127.0.0.1", server.getsockname()[1]), (SECRET,), stall=2)
        before = time.time()
        if status.startswith("200"):
            assert before - 1 <= line.get("/log").date <= time.time() + 1
        else:
            with pytest.raises(PeerError) as caught:
                line.get("/log")
            assert len(str(caught.value)) < 300
            assert str(caught.value).isprintable()
        line.close()


@pytest.mark.parametrize("beat", ["9" * 400, "-1", "NaN", "Infinity", "1e999", "1e30", "null", '"1"', "[]"])
def test_a_beat_that_no_clock_says_is_none(tmp_path: Path, beat: str) -> None:
    log = Log(tmp_path, B, 10, [SECRET])
    (at,) = [path for path in tmp_path.rglob("log") if path.is_file()]
    before = Reader(B, [SECRET])
    before.feed(at.read_bytes(), 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json, "dumps", lambda *_, **__: f'["beat",{beat}]')
        log.post(["beat"])
    reader = Reader(B, [SECRET])
    assert reader.feed(at.read_bytes(), 0) is not None
    assert not reader.strange
    assert reader.beat == before.beat


# Claims ----------------------------------------------------------------------------------------------------


def test_a_claim_that_is_made_again_and_again_lapses() -> None:
    it = board()
    for second in range(100):
        it.claimed(B, Claim("key0", 1, 1, 0, False), float(second))
        assert it._free(("key0", 1), float(second)) is (second >= PATIENCE)


def test_a_claim_that_is_dropped_and_made_again_lapses() -> None:
    it = board()
    held = 0.0
    for step in range(1000):
        now = step * 0.5
        it.dropped(B, "key0", 1, 1)
        it.claimed(B, Claim("key0", 1, 1, 0, False), now)
        held += 0.5 * (not it._free(("key0", 1), now))
    assert held <= CLAIMS * PATIENCE
    assert it._free(("key0", 1), 600.0)


def test_claims_to_everything_hold_nobody_up_for_long() -> None:
    it = board(pieces=2000)
    for key in it.files:
        it.claimed(B, Claim(key, 0, 1999, 0, False), 0.0)
    assert it.next_claim(PATIENCE + 1) is not None


def test_a_whole_file_claimed_in_one_go_lasts_while_it_comes() -> None:
    it = board()
    it.ranges = False
    it.claimed(B, Claim("key0", 0, 5, 0, False), 0.0)
    for number in range(5):
        now = 20.0 * (number + 1)
        assert not it._free(("key0", 5), now)
        it.announced(B, ("key0", number), SHA, 0, B, now)
    assert it._free(("key0", 5), 1000.0), "and no longer"


# Announcements ---------------------------------------------------------------------------------------------


def test_a_host_that_announces_and_does_not_send_is_left_out() -> None:
    it = board()
    for key in it.files:
        it.announced_whole(B, key)
    assert it.next_claim(0.0) is None, "everything can be had from there, as it says"
    now = 0.0
    out = None
    takes = 0
    while out is None:
        offer = it.next_offer(now)
        if offer is None:
            now += 1.0
            continue
        takes += 1
        out = it.undelivered(offer, now)
    assert takes == FRUITLESS
    assert out == LEFT_OUT
    assert it.next_offer(now + 1) is None
    assert it.next_claim(now + 1) is not None, "the origin is read"
    # It gets another chance, and a longer pause.
    later = now + LEFT_OUT + 1
    offer = it.next_offer(later)
    assert offer is not None
    assert it.undelivered(offer, later) == 2 * LEFT_OUT
    again = later + 2 * LEFT_OUT + 1
    offer = it.next_offer(again)
    assert offer is not None
    it.have(offer.piece, SHA, B, B)
    it.delivered(B, 1.0)
    assert it.others[B].fruitless == 0


def test_a_host_that_is_always_busy_is_left_out() -> None:
    it = board()
    it.announced_whole(B, "key0")
    now, out = 0.0, None
    while out is None and now < 1000:
        if (offer := it.next_offer(now)) is not None:
            out = it.busy(offer, now + 0.1, now)
        now += 0.2
    assert out is not None
    assert now <= (FRUITLESS + 1) * (BUSY + 5)


def test_a_piece_that_one_host_does_not_send_is_taken_from_another() -> None:
    it = board()
    for name in (B, C):
        it.announced(name, ("key0", 0), SHA, 0, name, 0.0)
    now = 0.0
    asked: list[str] = []
    while len(asked) < 20:
        offer = it.next_offer(now)
        now += 5.0
        if offer is None:
            continue
        asked.append(offer.peer)
        if offer.peer == C:
            break
        it.undelivered(offer, now)
    assert asked[-1] == C
    assert asked.count(B) <= 2


def test_slow_takes_are_given_up_by_what_is_usual() -> None:
    it = board()
    assert it.time_to_take(64 << 20, 1 << 20, 30.0) == 64.0, "nothing is known as yet"
    it.delivered(B, 10.0)
    assert it.time_to_take(64 << 20, 1 << 20, 30.0) == 80.0
    it.usual = 0.5
    assert it.time_to_take(64 << 20, 1 << 20, 30.0) == 30.0


def test_who_is_distrusted_by_a_liar_reads_the_origin_after_a_while() -> None:
    """In a fleet of two, one host's claim that the other is not to be trusted stopped that one for good."""
    it = board((A, B))
    it.next_claim(1000.0)
    it.flight.clear()
    it.distrusted(B, A)
    assert it.next_claim(1001.0) is None
    assert it.next_claim(1001.0 + DISTRUSTED) is not None


def test_who_sends_wrong_bytes_in_anothers_name_is_blamed_and_not_the_other() -> None:
    for honest in (C, A):
        it = board()
        it.disputed("key0")
        for number in range(6):
            it.announced(B, ("key0", number), SHA, 1, honest, 0.0)
            it.have(("key0", number), SHA, honest, B)
        assert it.disputed("key0") == [B]
        assert it.others[C].strikes == 0
    it = board()
    it.disputed("key0")
    for name in (B, C):
        it.announced(name, ("key0", 0), SHA, 1, C, 0.0)
    it.have(("key0", 0), SHA, C, B)
    assert it.disputed("key0") == [C], "it said so itself"


# Lines -----------------------------------------------------------------------------------------------------


def listener(it: Board, said: list[str]) -> Listener:
    share = Share(A, (Peer(B, "127.0.0.1", 1),))
    entries = {file.path: (Entry(file.path, file.size, file.stated), key) for key, file in it.files.items()}
    return Listener(
        share.peers[0], share, [SECRET], it, threading.Condition(), lambda *_: None, said.append, entries
    )


HUGE: Any = (1e30, 10**30, -1, True, None, "7", float("inf"), float("nan"), [], {}, [[]] * 50, "\x1b[2J")


@pytest.mark.parametrize("value", HUGE, ids=repr)
def test_no_number_of_another_host_is_taken_beyond_its_bounds(value: Any) -> None:
    it = board()
    found = listener(it, [])
    begun = time.monotonic()
    for kind in ("claim", "drop", "have", "file", "origin", "distrust", "end", "other"):
        for place in range(5):
            line: list[Any] = [kind, "key0", 0, 0, 0, B]
            line[place + 1] = value
            found._hear([line, line[: place + 1], [value], {"boot": value, "piece": value}])
    assert time.monotonic() - begun < 2.0
    assert set(it.distrust) <= {A, B, C}
    assert len(it.others[B].have) <= 6
    it.next_claim(1.0)
    it.next_offer(1.0)


def test_any_line_is_survived() -> None:
    chance = random.Random(5)  # noqa: S311  reproducible
    it = board()
    found = listener(it, [])

    def some(depth: int = 0) -> Any:
        kind = chance.randrange(9 if depth < 3 else 6)
        if kind == 0:
            return chance.choice(HUGE)
        if kind == 1:
            return chance.choice(["key0", "key1", A, B, "claim", "have", "drop", "file", SHA])
        if kind in {2, 3}:
            return chance.randrange(-3, 9)
        if kind < 6:
            return "".join(chance.choices(string.printable, k=5))
        return [some(depth + 1) for _ in range(chance.randrange(5))]

    for _ in range(3000):
        kind = chance.choice(["claim", "drop", "have", "file", "origin", "distrust", "end", some()])
        found._hear([[kind, *(some() for _ in range(chance.randrange(6)))]])
        assert it.next_claim(float(chance.randrange(100))) is None or it.flight
        it.flight.clear()


# Seals -----------------------------------------------------------------------------------------------------


def test_a_line_that_is_added_changed_dropped_or_moved_is_not_heard(tmp_path: Path) -> None:
    log = Log(tmp_path, B, 10, [SECRET])
    for number in range(4):
        log.post(["have", "key0", number, SHA, 0, B])
    lines = log.path.read_bytes().splitlines(keepends=True)

    def heard(content: list[bytes], peer: str = B, fleet: tuple[str, ...] = (SECRET,)) -> int:
        return len(Reader(peer, fleet).feed(b"".join(content), 0) or [])

    assert heard(lines) == 5
    assert heard(lines, fleet=(OTHER,)) == 0, "another fleet"
    assert heard(lines, peer=C) == 0, "another host's word, passed off as this one's"
    forged = [*lines, b'{"boot":"x"}\n["file","key0"]\n', b"0" * 32 + b' ["file","key0"]\n']
    reader = Reader(B, [SECRET])
    assert len(reader.feed(b"".join(forged), 0) or []) == 5
    assert reader.strange
    assert heard([line.replace(b"key0", b"key1") for line in lines]) == 1
    assert heard([*lines[:3], *lines[4:]]) == 1, "the chain breaks where a line is missing"
    assert heard([*lines[:4], lines[5], lines[4], lines[6]]) == 2
    assert heard([lines[0], *lines[3:]]) == 0, "nothing counts without its start"
    assert heard([b"x" * 5000 + b"\n", b"[" * 1500 + b"\n", *lines]) == 5


def test_while_the_secret_is_renewed_old_and_new_understand_each_other(tmp_path: Path) -> None:
    both = (SECRET, OLD)
    for name, writes in (("new", both), ("old", (OLD,))):
        log = Log(tmp_path / name, B, 10, writes)
        log.post(["file", "key0"])
        for reads in (both, (OLD,)):
            assert len(Reader(B, reads).feed(log.path.read_bytes(), 0) or []) == 2
    log = Log(tmp_path / "after", B, 10, (SECRET,))
    assert Reader(B, (OLD,)).feed(log.path.read_bytes(), 0) == [], "who left hears nothing any more"


def test_a_sealed_document_is_of_one_host_and_one_kind() -> None:
    sealed = keys.seal([SECRET], "listing", B, b"{}")
    assert keys.unseal([OTHER, SECRET], "listing", B, sealed) == b"{}"
    for fleet, kind, host, content in (
        ([OTHER], "listing", B, sealed),
        ([SECRET], "announced", B, sealed),
        ([SECRET], "listing", C, sealed),
        ([SECRET], "listing", B, sealed + b" "),
        ([SECRET], "listing", B, b"{}"),
        ([SECRET], "listing", B, b""),
        ([SECRET], "listing", B, b"\xff" * 40 + b"\n{}"),
    ):
        with pytest.raises(keys.SealError):
            keys.unseal(fleet, kind, host, content)


# Connections -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def raw_server(answer: Callable[[socket.socket], None]) -> Iterator[Peer]:
    """A server that handles every connection as the test decides."""
    listening = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    def handle(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            answer(connection)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield Peer(B, "127.0.0.1", listening.getsockname()[1])
    finally:
        ended.set()
        listening.close()


def drip(head: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(200):
            connection.sendall(b"x")
            time.sleep(0.1)

    return answer


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1000\r\nContent-Range: bytes 0-999/1000\r\n\r\n",
        b"HTTP/1.1 206 Partial Content\r\nX-Header: ",
        b"",
    ],
    ids=["body", "headers", "status"],
)
def test_bytes_that_drip_are_given_up(head: bytes) -> None:
    """A byte now and then keeps any socket timeout from expiring."""
    with raw_server(drip(head)) as peer:
        line = Line(peer, [SECRET])
        begun = time.monotonic()
        with pytest.raises(PeerError, match="no answer after 1 s"):
            line.take("/files/x/y", 0, 1000, lambda _: None, 1.0)
        assert time.monotonic() - begun < 4.0


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "]
)
def test_a_log_that_drips_is_given_up(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minimax_metal.host.weights.share.peers.DOCUMENT_SECONDS", 1.0)
    with raw_server(drip(head)) as peer, pytest.raises(PeerError, match="no answer after 1 s"):
        Line(peer, [SECRET]).get("/log")


def test_a_document_without_end_is_given_up() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with raw_server(answer) as peer, pytest.raises(PeerError, match="more than 1000000 bytes"):
        Line(peer, [SECRET]).get("/log", 0, 1_000_000)


def test_the_time_of_whoever_answers_makes_no_lasting_signatures() -> None:
    """Signed for the time in an answer, requests were valid for as long as the adversary liked."""
    seen: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        connection.sendall(
            b"HTTP/1.1 410 Gone\r\nDate: Fri, 01 Jan 2100 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n"
        )
        seen.append(connection.recv(65536))

    with raw_server(answer) as peer, pytest.raises(DeniedError, match="clock"):
        Line(peer, [SECRET]).get("/log")
    assert not any(seen), "nothing was signed for that time"
    assert SKEW <= 900


def test_an_old_secret_is_tried_where_the_new_one_is_not_known() -> None:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.headers["X-Share-Key"])
            known = asked[-1] == keys.name_of(OLD)
            self.send_response(200 if known else 403)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        peer = Peer(B, "127.0.0.1", server.server_address[1])
        line = Line(peer, [SECRET, OLD])
        assert line.get("/log").content == b"ok"
        assert line.get("/log").content == b"ok"
        assert asked == [keys.name_of(SECRET), keys.name_of(OLD), keys.name_of(OLD)]
        with pytest.raises(DeniedError):
            Line(peer, [SECRET, OTHER]).get("/log")
        server.shutdown()


def test_bytes_that_come_and_are_lost_again_are_no_progress() -> None:
    """One byte of a piece each time, then an end of the connection, kept a pull waiting for ever."""
    it = object.__new__(SharedAttempt)
    it.lock, it.have, it.fetched, it.most = threading.Lock(), 1000, 0, 1000
    grew = []
    for _ in range(50):
        it.have += 1
        it.fetched += 1
        grew.append(it._grew())
        it._lose(1)
        grew.append(it._grew())
    assert sum(grew) <= 1
    it.have += 100_000
    assert it._grew(), "what stays is progress"
    assert not it._grew()


# The whole of it -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running(tmp_path_factory.mktemp("hub"), model(shards=3, size=400_000)) as found:
        yield found


@contextlib.contextmanager
def traitor(hub: Hub, folder: Path, piece: int) -> Iterator[int]:
    """A host with the fleet's secret that claims everything, announces everything, and sends nothing."""
    log = Log(folder, B, piece, [SECRET])
    sizes = {path: len(content) for path, content in hub.files.items()}
    names = {
        path: key_of(entry.sha256 or entry.git_oid or "", path)
        for path, entry in ((entry.path, entry) for entry in _listed(hub))
    }
    ended = threading.Event()

    def lie() -> None:
        while not ended.wait(0.2):
            for path, key in names.items():
                last = count(sizes[path], piece) - 1
                log.post(["claim", key, 0, 10**30, 0], ["claim", key, 0, last, 0], ["distrust", A])
                log.post(["drop", key, 0, 10**30])
                log.post(*(["have", key, number, SHA, 10**20, B] for number in range(last + 1)))
                log.post(*(["have", key, number, SHA, 0, B] for number in range(0, last + 1, 2)))
            log.beat()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path != "/log":
                ended.wait(20)
                return
            content = log.path.read_bytes()
            first = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
            self.send_response(206)
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            self.wfile.write(content[first:])

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        for target in (server.serve_forever, lie):
            threading.Thread(target=target, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            ended.set()
            server.shutdown()


def _listed(hub: Hub) -> list[Entry]:
    host = hub.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.request("GET", f"/api/models/MiniMaxAI/MiniMax-M2.5/revision/{hub.commit}?blobs=true")
    raw = json.loads(connection.getresponse().read())
    return [
        Entry(one["rfilename"], 0, one["lfs"]["sha256"])
        if one.get("lfs")
        else Entry(one["rfilename"], 0, git_oid=one["blobId"])
        for one in raw["siblings"]
    ]


def test_a_host_that_lies_about_everything_delays_a_pull_and_no_more(
    hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret").write_text(SECRET)
    piece = 100_000
    with traitor(hub, tmp_path / "traitor", piece) as port:
        request = Request.parse(
            {
                "path": str(tmp_path / "srv" / "m" / "r"),
                "sources": [hub.source()],
                "share": {
                    "me": A,
                    "port": 18000,
                    "piece_bytes": piece,
                    "poll": 0.05,
                    "peers": [{"name": B, "address": "127.0.0.1", "port": port}],
                    "secret_file": str(tmp_path / "secret"),
                },
            }
        )
        begun = time.monotonic()
        assert pull(request, Options(stall=2, attempts=1, spare=0, backoff=0.1))
        assert time.monotonic() - begun < 60
    assert "gpu02 doesn't send what it announced and is left out" in capfd.readouterr().out

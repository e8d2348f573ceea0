"""Hosts that share a pull, as processes with an nginx each on this machine, while faults happen.

The last part runs rounds of random faults with hosts lost and back (support/share_faults.py);
``METAL_FAULT_SEED`` repeats a run, ``METAL_FAULT_ROUNDS`` makes it shorter or longer.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import json
import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minimax_metal.host.weights.manifest import Entry, Manifest
from minimax_metal.host.weights.share.peers import AbsentError, DeniedError, Line, signature
from minimax_metal.host.weights.share_keys import name_of
from minimax_metal.host.weights.share_settings import Peer
from tests.support.fleet import ADDRESS, Fleet, Member, fleet
from tests.support.hub import Hub, model, running
from tests.support.share_faults import play

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROUNDS = int(os.environ.get("METAL_FAULT_ROUNDS", "50"))
PIECE = 400_000
KNOBS = ("--stall", "10", "--backoff", "0.1")
SHARD = "model-00001-of-00004.safetensors"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running(tmp_path_factory.mktemp("hub"), model(shards=4, size=2_000_000)) as hub:
        yield hub


@pytest.fixture
def hub(served: Hub) -> Iterator[Hub]:
    served.fail()
    yield served
    served.fail()


def size(hub: Hub) -> int:
    return sum(map(len, hub.files.values()))


def sent(hub: Hub, skip: int) -> int:
    return sum(bytes_ for answers in hub.bodies(skip).values() for _, bytes_, _ in answers)


def all_there(found: Fleet, hub: Hub) -> None:
    statuses = found.wait(300)
    print("\n".join(f"{member.name}\n{member.output}" for member in found.members))
    assert statuses == [0] * len(statuses)
    for member in found.members:
        assert member.tree() == hub.files


def by_itself(member: Member) -> str:
    found = re.search(r": ([\d.]+ \w+) by itself", member.output)
    assert found, member.output
    return found[1]


def wait_until_some(member: Member, share: float, hub: Hub) -> None:
    deadline = time.monotonic() + 120
    root = member.folder / "srv"
    while time.monotonic() < deadline:
        there = sum(path.stat().st_blocks * 512 for path in root.rglob("*") if path.is_file())
        if there >= share * size(hub):
            return
        time.sleep(0.05)
    raise AssertionError(f"{member.name} did not come to {share}: {member.output}")


def test_the_origin_is_read_once(hub: Hub, tmp_path: Path) -> None:
    skip = len(hub.lines())
    hub.fail({"fault": "throttle", "rate": 1_000_000})
    with fleet(tmp_path, 3, lambda _: [hub.source()], piece_bytes=PIECE) as found:
        found.start(*KNOBS)
        all_there(found, hub)
    assert sent(hub, skip) <= 1.02 * size(hub)


def test_a_host_with_other_bytes_is_found_out_and_avoided(hub: Hub, tmp_path: Path) -> None:
    zeros = tmp_path / "zeros"
    for path, content in hub.files.items():
        (zeros / path).parent.mkdir(parents=True, exist_ok=True)
        (zeros / path).write_bytes(bytes(len(content)))
    skip = len(hub.lines())
    hub.fail({"fault": "throttle", "rate": 1_000_000})
    with fleet(tmp_path, 3, lambda _: [hub.source()], piece_bytes=PIECE) as found:
        found[1].silence()
        found[1].serve(
            lambda text: re.sub(r'try_files "[^"]*/\$2" [^;]*;', f'try_files "{zeros}/$2" =404;', text)
        )
        found.start(*KNOBS)
        all_there(found, hub)
        assert "gpu01 sent other bytes of" in found[0].output + found[2].output
    # What the one read is read again by another; the third takes it from there.
    assert sent(hub, skip) <= 1.8 * size(hub)


def test_what_a_lost_host_was_reading_is_read_by_others(hub: Hub, tmp_path: Path) -> None:
    skip = len(hub.lines())
    hub.fail({"fault": "throttle", "rate": 600_000})
    with fleet(tmp_path, 3, lambda _: [hub.source()], piece_bytes=PIECE) as found:
        found.start(*KNOBS)
        wait_until_some(found[2], 0.3, hub)
        found[1].end()
        wait_until_some(found[2], 0.6, hub)
        found[1].serve()
        found[1].start(*KNOBS)
        all_there(found, hub)
    # Lost at most: what was on its way to the lost host, and what only it had.
    assert sent(hub, skip) <= 1.5 * size(hub)


def test_a_late_host_is_fed_by_the_others(hub: Hub, tmp_path: Path) -> None:
    with fleet(tmp_path, 3, lambda _: [hub.source()], piece_bytes=PIECE) as found:
        for member in found.members[:2]:
            member.start(*KNOBS)
        for member in found.members[:2]:
            assert member.pull is not None
            assert member.pull.wait(timeout=200) == 0
        skip = len(hub.lines())
        found[2].start(*KNOBS)
        all_there(found, hub)
    assert sent(hub, skip) == 0


def test_hosts_that_do_not_see_each_other_read_the_origin(hub: Hub, tmp_path: Path) -> None:
    skip = len(hub.lines())
    with fleet(tmp_path, 2, lambda _: [hub.source()], serve=False, piece_bytes=PIECE) as found:
        found.start(*KNOBS)
        all_there(found, hub)
        assert "continuing without gpu01: no answer" in found[0].output
    assert sent(hub, skip) == 2 * size(hub)


def test_one_host_reads_the_origin_where_one_may(hub: Hub, tmp_path: Path) -> None:
    skip = len(hub.lines())
    with fleet(tmp_path, 3, lambda _: [hub.source()], piece_bytes=PIECE, origin_hosts=1) as found:
        found[0].start(*KNOBS)
        wait_until_some(found[0], 0.01, hub)
        for member in found.members[1:]:
            member.start(*KNOBS)
        all_there(found, hub)
        assert [by_itself(member) for member in found.members[1:]] == ["0 B", "0 B"]
    assert sent(hub, skip) <= 1.02 * size(hub)


@contextlib.contextmanager
def files_at(root: Path) -> Iterator[str]:
    """Serve a directory as plain files; this server does not support ranges."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(root))
    with ThreadingHTTPServer((ADDRESS, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://{ADDRESS}:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("kind", ["modelscope", "http", "directory", "directory-proved"])
def test_every_kind_of_source_is_shared(kind: str, hub: Hub, tmp_path: Path) -> None:
    """The directory is on one host only; the others get it from there, by a proof or because the user
    accepts.
    """
    there = tmp_path / "there"
    for path, content in hub.files.items():
        (there / path).parent.mkdir(parents=True, exist_ok=True)
        (there / path).write_bytes(content)

    def sources(number: int) -> list[dict[str, object]]:
        if kind.startswith("directory"):
            return [{"kind": "directory", "path": str(there if number == 1 else tmp_path / "nothing")}]
        if kind == "http":
            return [{"kind": "http", "endpoint": urls[0]}]
        return [hub.source("modelscope")]

    urls: list[str] = []
    skip = len(hub.lines())
    with contextlib.ExitStack() as stack:
        if kind == "http":
            entries = [
                Entry(path, len(content), hashlib.sha256(content).hexdigest(), stated=True)
                for path, content in hub.files.items()
            ]
            Manifest("m", None, {}, tuple(entries)).write(there)
            urls.append(stack.enter_context(files_at(there)))
        found = stack.enter_context(fleet(tmp_path, 3, sources, piece_bytes=PIECE))
        more: dict[str, object] = {"accept": ["weights-unhashed"]} if kind == "directory" else {}
        if kind == "directory-proved":
            stated = [
                {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                for path, content in hub.files.items()
            ]
            who = {"by": "manifest", "origin": "/m.json", "resolver": "controller", "time": "2026-11-29"}
            more = {"proof": {**who, "files": stated}}
        for member in found.members:
            member.file.write_text(json.dumps({**json.loads(member.file.read_text()), **more}))
        found.start(*KNOBS)
        all_there(found, hub)
        if kind.startswith("directory"):
            assert "gpu01 has it" in found[0].output
            assert by_itself(found[0]) == by_itself(found[2]) == "0 B"
    assert sent(hub, skip) <= (1.02 * size(hub) if kind == "modelscope" else 0)


def test_a_file_whose_pieces_are_wrong_together_is_read_again_once(hub: Hub, tmp_path: Path) -> None:
    skip = len(hub.lines())
    rule = {"match": hashlib.sha256(hub.files[SHARD]).hexdigest(), "fault": "corrupt", "times": 1}
    hub.fail({**rule, "after": 10}, {"fault": "throttle", "rate": 2_000_000})
    with fleet(tmp_path, 3, lambda _: [hub.source()], piece_bytes=PIECE) as found:
        found.start(*KNOBS)
        all_there(found, hub)
    damaged = sum(fault == "corrupt" for answers in hub.bodies(skip).values() for _, _, fault in answers)
    assert damaged == 1, "the piece with that byte was spoiled"
    assert sent(hub, skip) <= size(hub) + 2 * len(hub.files[SHARD]), "only that file again"


def test_an_origin_that_ignores_ranges_is_shared_file_by_file(hub: Hub, tmp_path: Path) -> None:
    hub.fail({"fault": "ignore-ranges"})
    with fleet(tmp_path, 2, lambda _: [hub.source()], piece_bytes=PIECE) as found:
        found.start(*KNOBS)
        all_there(found, hub)


def test_nobody_is_let_in_without_the_secret(hub: Hub, tmp_path: Path) -> None:
    with fleet(tmp_path, 2, lambda _: [hub.source()], piece_bytes=PIECE) as found:
        found[0].start(*KNOBS)
        assert found[0].pull is not None
        assert found[0].pull.wait(timeout=200) == 0
        share = found[0].request.share
        assert share is not None
        secret, port = share.secrets()[0], share.port
        now = int(time.time())

        def status(path: str, headers: dict[str, str]) -> int:
            connection = http.client.HTTPConnection(ADDRESS, port, timeout=10)
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status

        def signed(path: str, expires: int, by: str = secret, address: str = ADDRESS) -> dict[str, str]:
            proof = signature(by, expires, path, address)
            return {"X-Share-Expires": str(expires), "X-Share-Signature": proof}

        assert status("/manifest", {}) == 403
        assert status("/manifest", signed("/manifest", now + 60, "f" * 64)) == 403
        assert status("/manifest", signed("/manifest", now + 60, address="127.0.0.2")) == 403, "another's"
        assert status("/manifest", signed("/log", now + 60)) == 403, "signed for another path"
        assert status("/manifest", signed("/manifest", now - 5)) == 410, "too old"
        assert status("/etc/passwd", signed("/etc/passwd", now + 60)) == 404
        named = {"X-Share-Key": name_of(secret)}
        assert status("/manifest", {**signed("/manifest", now + 60), **named}) == 200
        for guess in ("", "0" * 64, "f" * 16):
            unknown = {"X-Share-Key": "f" * 16, **signed("/manifest", now + 60, guess)}
            assert status("/manifest", unknown) == 403, "a name that no secret has opens nothing"
        assert status("/manifest", signed("/manifest", now + 60)) == 200

        line = Line(Peer("gpu00", ADDRESS, port), [secret], skew=-800.0)
        assert b'"schema"' in line.get("/manifest").content, "a clock that is wrong is allowed for"
        with pytest.raises(AbsentError):
            line.get("/log")
        with pytest.raises(DeniedError, match="gpu00 does not accept this host as part of its fleet"):
            Line(Peer("gpu00", ADDRESS, port), ["e" * 64]).get("/manifest")

        # A host with another secret is alone, and says why.
        other = tmp_path / "other"
        other.write_text("d3c4b5a6" * 8)
        found[1].file.write_text(found[1].file.read_text().replace(str(tmp_path / "secret"), str(other)))
        found[1].start(*KNOBS)
        all_there(found, hub)
        assert "gpu00 does not accept this host as part of its fleet" in found[1].output
        logs = [path.read_text() for path in tmp_path.glob("gpu*/*.log")]
        lines = [Path(f"/proc/{found[0].nginx.pid}/cmdline").read_text()] if found[0].nginx else []
        assert lines
        assert secret not in "".join([*logs, *lines])


def test_slow_clients_shut_no_server(hub: Hub, tmp_path: Path) -> None:
    """Clients that send a byte now and then are cut off; hosts are answered meanwhile."""
    with fleet(tmp_path, 2, lambda _: [hub.source()], piece_bytes=PIECE) as found:
        found[0].start(*KNOBS)
        assert found[0].pull is not None
        assert found[0].pull.wait(timeout=200) == 0
        share = found[0].request.share
        assert share is not None
        line = Line(Peer("gpu00", ADDRESS, share.port), share.secrets())
        with contextlib.ExitStack() as stack:
            slow = []
            for number in range(300):
                one = stack.enter_context(socket.create_connection((ADDRESS, share.port), timeout=20))
                one.sendall(b"GET /log HTTP/1.1\r\nHost: x\r\n"[: number % 30])
                slow.append(one)
            begun = time.monotonic()
            assert line.get("/manifest").content
            assert time.monotonic() - begun < 3
            # What it had to say in five seconds it did not: the connection is over.
            for one in slow[::50]:
                with contextlib.suppress(ConnectionResetError):
                    assert one.recv(4096)[:11] in {b"", b"HTTP/1.1 40"}
            assert time.monotonic() - begun < 15
            line.close()
            assert line.get("/manifest").content


def test_a_renewed_secret_and_the_one_before_are_valid_meanwhile(hub: Hub, tmp_path: Path) -> None:
    """One host still pulls with the old secret; the others have the new one as well."""
    old, new = "a1" * 32, "b2" * 32
    skip = len(hub.lines())
    hub.fail({"fault": "throttle", "rate": 1_000_000})
    with fleet(tmp_path, 3, lambda _: [hub.source()], piece_bytes=PIECE, serve=False) as found:
        for number, member in enumerate(found.members):
            secret = tmp_path / f"secret-{number}"
            secret.write_text(f"{old}\n" if number == 0 else f"{new}\n{old}\n")
            raw = json.loads(member.file.read_text())
            raw["share"]["secret_file"] = str(secret)
            member.file.write_text(json.dumps(raw))
        for member in found.members:
            member.serve()
        found.start(*KNOBS)
        all_there(found, hub)
        assert not any("does not know the fleet" in member.output for member in found.members)
    assert sent(hub, skip) <= 1.02 * size(hub)


@pytest.fixture(scope="module")
def seed() -> int:
    return int(os.environ.get("METAL_FAULT_SEED") or random.SystemRandom().randrange(10**6))


@pytest.mark.parametrize("number", range(ROUNDS))
def test_round(number: int, seed: int, hub: Hub, tmp_path: Path) -> None:
    print(f"METAL_FAULT_SEED={seed}")
    print(play(number, seed + number, hub, tmp_path))

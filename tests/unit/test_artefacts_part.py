"""Partial files across kills, reboots and power cuts; patience; rate; meaning of network errors."""

from __future__ import annotations

import errno
import hashlib
import random
import ssl
import threading
import time
from pathlib import Path

import pytest
import requests
import urllib3

from minimax_metal.host.weights import part as parts
from minimax_metal.host.weights.manifest import DamagedFileError, Entry
from minimax_metal.host.weights.part import Part
from minimax_metal.host.weights.web import Gate, Throttle, Web, patience

CONTENT = random.Random(3).randbytes(10_000)  # noqa: S311  test data
ENTRY = Entry("f", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), stated=True)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "STEP", 1000)
    monkeypatch.setattr(parts, "_BLOCK", 300)


def write(tmp_path: Path, content: bytes, identity: str | None = "i", entry: Entry = ENTRY) -> Path:
    with Part.open(tmp_path, identity, entry) as part:
        part.recall()
        for begin in range(0, len(content), 777):
            part.write(content[begin : begin + 777])
        return part.path


def recalled(tmp_path: Path, identity: str | None = "i", entry: Entry = ENTRY) -> tuple[int, int]:
    """The good bytes, and the truncated ones; the good ones are compared with the true bytes."""
    with Part.open(tmp_path, identity, entry) as part:
        lost = part.recall()
        assert part._sha256.hexdigest() == hashlib.sha256(CONTENT[: part.offset]).hexdigest()
        assert part.path.read_bytes() == CONTENT[: part.offset]
        return part.offset, lost


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 4321, 10_000])
def test_a_kill_costs_nothing_that_was_written(tmp_path: Path, size: int) -> None:
    write(tmp_path, CONTENT[:size])
    assert recalled(tmp_path) == (size, 0)
    assert Part.staged(tmp_path, "i", ENTRY) == size
    with Part.open(tmp_path, "i", ENTRY) as part:
        part.recall()
        part.write(CONTENT[size:])
        found = part.finish(tmp_path / "f")
    assert found.sha256 == ENTRY.sha256
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert list(part.path.parent.iterdir()) == []


def test_after_a_reboot_only_what_has_a_mark_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, CONTENT[:4321])
    monkeypatch.setattr(parts, "boot_id", lambda: "another")
    assert recalled(tmp_path) == (4000, 321)
    assert recalled(tmp_path) == (4000, 0), "it is this boot's now"


def test_an_orderly_stop_before_a_reboot_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, CONTENT[:4321])
    parts.flush(tmp_path)
    monkeypatch.setattr(parts, "boot_id", lambda: "another")
    assert recalled(tmp_path) == (4321, 0)
    write(tmp_path, b"")
    with Part.open(tmp_path, "i", ENTRY) as part:
        part.recall()
        part.write(CONTENT[4321:4400])
    monkeypatch.setattr(parts, "boot_id", lambda: "a third")
    assert recalled(tmp_path) == (4000, 400), "what came after the stop was not flushed"


@pytest.mark.parametrize(("hole", "good"), [(0, 0), (999, 0), (1000, 1000), (2500, 2000), (3999, 3000)])
def test_a_hole_that_a_power_cut_left_is_cut_off(
    tmp_path: Path, hole: int, good: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, CONTENT[:4321])
    with path.open("r+b") as file:
        file.seek(hole)
        file.write(bytes([CONTENT[hole] ^ 1]))
    monkeypatch.setattr(parts, "boot_id", lambda: "another")
    assert recalled(tmp_path) == (good, 4321 - good)


def test_marks_that_are_lost_or_garbage(tmp_path: Path) -> None:
    path = write(tmp_path, CONTENT[:4321])
    marks = path.with_name(f"{path.name}.marks")
    marks.write_bytes(b"\0\xff\n1000 short\nboot\n" + marks.read_bytes()[:30])
    assert recalled(tmp_path)[0] in {0, 4321}
    marks.unlink()
    assert recalled(tmp_path)[0] == 0, "without its boot nobody vouches for what is there"


def test_another_file_is_not_continued(tmp_path: Path) -> None:
    write(tmp_path, CONTENT[:4321])
    assert Part.staged(tmp_path, "j", ENTRY) == 0
    assert Part.staged(tmp_path, None, ENTRY) == 0
    other = Entry("g", 10_000, ENTRY.sha256)
    assert Part.staged(tmp_path, "i", other) == 0, "the same bytes under another name are another part"
    write(tmp_path, CONTENT[:500], None)
    with Part.open(tmp_path, None, ENTRY) as part:
        assert part.recall() == 0
        assert part.offset == 0


def test_wrong_bytes_are_found_at_the_end(tmp_path: Path) -> None:
    with Part.open(tmp_path, "i", ENTRY) as part:
        part.recall()
        part.write(CONTENT[:5000])
        with pytest.raises(DamagedFileError, match="has 5000 bytes, expected 10000"):
            part.finish(tmp_path / "f")
        part.write(CONTENT[:5000])
        with pytest.raises(DamagedFileError, match="has sha256"):
            part.finish(tmp_path / "f")
        part.discard()
    assert not (tmp_path / "f").exists()
    git = hashlib.sha1(b"blob 10000\0" + CONTENT, usedforsecurity=False).hexdigest()
    write(tmp_path, CONTENT, "g", Entry("f", 10_000, git_oid=git))
    with Part.open(tmp_path, "g", Entry("f", 10_000, git_oid=git)) as part:
        part.recall()
        assert part.finish(tmp_path / "f").sha256 == ENTRY.sha256
    write(tmp_path, CONTENT, "h", Entry("f", 10_000, git_oid="0" * 40))
    with Part.open(tmp_path, "h", Entry("f", 10_000, git_oid="0" * 40)) as part:
        part.recall()
        with pytest.raises(DamagedFileError, match="has git id"):
            part.finish(tmp_path / "f")


# Patience and rate ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "30"}, 30),
        ({"Retry-After": "soon"}, None),
        # The clock of this host plays no part where the server says what time it is there.
        ({"Retry-After": "Thu, 01 Jan 1970 00:02:00 GMT", "Date": "Thu, 01 Jan 1970 00:00:30 GMT"}, 90),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT", "Date": "Thu, 01 Jan 1970 00:00:30 GMT"}, 0),
        ({"Retry-After": "Thu, 01 Jan 1970 00:02:00 GMT"}, 0),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
    ],
)
def test_patience(headers: dict[str, str], seconds: float | None) -> None:
    assert patience(headers) == seconds


def test_gate() -> None:
    gate = Gate(backoff=10, limit=25)
    assert 10 <= gate.refused(None) <= 11
    assert 10 <= gate.refused(None) <= 11.1, "several threads that are refused together count once"
    gate.until = 0
    assert 20 <= gate.refused(None) <= 22
    gate.until = 0
    assert 25 <= gate.refused(None) <= 27.5
    assert 100 <= gate.refused(100) <= 110
    halted = threading.Event()
    halted.set()
    gate.wait(halted)
    gate.passed()
    gate.until = 0
    assert 10 <= gate.refused(None) <= 11, "what was served begins anew"
    gate.until = time.monotonic() + 0.01
    gate.wait(threading.Event())


def test_throttle() -> None:
    slept: list[float] = []
    throttle = Throttle(1000, sleep=slept.append)
    for _ in range(5):
        throttle.take(1000)
    assert 3.5 < slept[-1] <= 4, "five seconds' worth, one of them in advance"
    Throttle(0, sleep=slept.append).take(10**9)
    assert len(slept) == 4


# What errors mean ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words", "permanent"),
    [
        (requests.exceptions.ReadTimeout("x"), "no data for 60 s", False),
        (urllib3.exceptions.ReadTimeoutError(None, "u", "Read timed out."), "no data for 60 s", False),  # type: ignore[arg-type]  # no pool
        (
            requests.exceptions.SSLError(
                ssl.SSLCertVerificationError(
                    1,
                    "certificate verify failed: certificate is not yet valid (_ssl.c:992)",
                )
            ),
            "certificate is not yet valid.*check the host's clock",
            True,
        ),
        (
            requests.exceptions.SSLError("certificate verify failed: self-signed certificate (_ssl.c:992)"),
            r"rejected \(self-signed certificate\); check the proxy",
            True,
        ),
        (requests.exceptions.ProxyError("x"), "the proxy can't connect", False),
        (OSError(errno.ENOSPC, "full"), "the disk is full", True),
        (
            requests.exceptions.ConnectionError(OSError(errno.ECONNRESET, "r")),
            "Connection reset by peer",
            False,
        ),
    ],
)
def test_what_errors_mean(error: BaseException, words: str, permanent: bool) -> None:
    found = Web("hub").failure(error)
    with pytest.raises(type(found), match=words):
        raise found
    assert found.permanent is permanent

"""An origin that delivers nothing is given up after a bounded number of tries, with a message."""

from __future__ import annotations

import math
import threading
from types import SimpleNamespace
from typing import Any

from minimax_metal.host.weights.errors import SourceError
from minimax_metal.host.weights.share.origin import VAIN, OriginReader


def attempt(said: list[str], posted: list[Any]) -> Any:
    return SimpleNamespace(
        changed=threading.Condition(),
        board=SimpleNamespace(origin=True),
        log=SimpleNamespace(post=posted.append),
        say=lambda _event, text: said.append(text),
        fail=lambda error: said.append(f"failed: {error}"),
        shut=None,
    )


def close(reader: OriginReader, permanent: bool = False) -> None:
    reader.attempt.board.origin = True
    reader.close(SourceError("modelscope: no data for 60 s", permanent=permanent))


def test_an_origin_without_a_piece_is_left_after_some_tries() -> None:
    """Before, it was retried every 30 seconds for ever, and the shared pull hung."""
    said: list[str] = []
    posted: list[Any] = []
    reader = OriginReader(attempt(said, posted))
    for _ in range(VAIN - 1):
        close(reader)
        assert reader.again < math.inf
    close(reader)
    assert reader.again == math.inf
    assert "no data for 60 s (3 times without a piece, giving up on it)" in said[-1]
    assert posted == [["origin", False]] * VAIN


def test_threads_that_fail_together_count_once_and_a_piece_begins_anew() -> None:
    said: list[str] = []
    reader = OriginReader(attempt(said, []))
    close(reader)
    for _ in range(8):
        reader.close(SourceError("x"))
    assert reader.vain == 1
    assert len(said) == 1
    reader.vain = 0
    close(reader)
    assert reader.again < math.inf


def test_what_is_final_is_left_at_once() -> None:
    reader = OriginReader(attempt([], []))
    close(reader, permanent=True)
    assert reader.again == math.inf

"""Taking announced pieces from other hosts."""

from __future__ import annotations

import hashlib
import random
import time
from typing import TYPE_CHECKING

from minimax_metal.host.weights.errors import transport_error
from minimax_metal.host.weights.share.facts import Offer
from minimax_metal.host.weights.share.origin import IDLE
from minimax_metal.host.weights.share.peers import (
    LEAST_RATE,
    LEAST_SECONDS,
    AbsentError,
    BusyError,
    Line,
    PeerError,
)

if TYPE_CHECKING:
    from minimax_metal.host.weights.share.swarm import SharedAttempt


class PieceTaker:
    """The part of an attempt that takes pieces from other hosts; shared by its threads."""

    def __init__(self, attempt: SharedAttempt) -> None:
        self.attempt = attempt

    def work(self) -> None:
        """Take announced pieces from other hosts, one after the other."""
        it = self.attempt
        lines: dict[str, Line] = {}
        peers = {peer.name: peer for peer in it.share.peers}
        while not it.halted.is_set():
            with it.changed:
                offer = it.board.next_offer(time.monotonic())
                if offer is None:
                    if not it.halted.is_set():
                        it.changed.wait(0.1 if it.board.available else IDLE)
                    continue
            line = lines.get(offer.peer)
            if line is None:
                line = lines[offer.peer] = Line(peers[offer.peer], it.secrets, min(it.stall, 15.0))
            try:
                self._take_one(offer, line)
            except OSError as error:
                it.fail(transport_error("the staging directory", error))
        for line in lines.values():
            line.close()

    def _take_one(self, offer: Offer, line: Line) -> None:
        it = self.attempt
        key, number = offer.piece
        store = it.stores[key]
        begin, end = store.span(number)
        sha256, position = hashlib.sha256(), begin

        def put(block: memoryview) -> None:
            nonlocal position
            store.write(block, position)
            sha256.update(block)
            position += len(block)
            with it.lock:
                it.have += len(block)
                it.fetched += len(block)
                it.from_peers += len(block)

        now = time.monotonic()
        with it.changed:
            seconds = it.board.time_to_take(end - begin, LEAST_RATE, LEAST_SECONDS)
        try:
            line.take(f"/files/{key}/{store.entry.path}", begin, end, put, seconds)
        except PeerError as error:
            it._lose(position - begin)
            self._not_taken(offer, error)
            return
        it.helped = True
        found = sha256.hexdigest()
        wanted = offer.sha256
        if wanted is None and store.pieces == 1:
            wanted = store.entry.sha256
        if wanted is not None and found != wanted:
            it._lose(end - begin)
            with it.changed:
                distrusted = it.board.wrong(offer)
                if distrusted:
                    it.board.distrusted(it.share.me, offer.peer)
                it.changed.notify_all()
            if distrusted:
                it.log.post(["distrust", offer.peer])
            reason = f"{offer.peer} sent other bytes of {store.entry.path} than it announced"
            it.say("damaged", path=store.entry.path, reason=reason)
            return
        with it.changed:
            it.board.delivered(offer.peer, time.monotonic() - now)
        it.keep(offer.piece, found, offer.reader, offer.peer)

    def _not_taken(self, offer: Offer, error: PeerError) -> None:
        """Handle a host that did not send an announced piece: ask others, and leave it out if it goes on."""
        it, now = self.attempt, time.monotonic()
        with it.changed:
            left_out = None
            if isinstance(error, AbsentError):
                it.board.gone(offer)
            if isinstance(error, BusyError):
                pause = random.uniform(0.02, 0.1)  # noqa: S311  no secret
                left_out = it.board.busy(offer, now + pause, now)
            else:
                left_out = it.board.undelivered(offer, now)
            it.changed.notify_all()
        if left_out is not None:
            it.say(
                "note",
                text=f"{error}: {offer.peer} doesn't send what it announced and is left out for "
                f"{left_out:.0f} s",
            )

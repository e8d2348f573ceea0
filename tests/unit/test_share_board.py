"""Who reads what from the origin and from whom hosts take the rest, simulated without clock or network."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest

from minimax_metal.host.weights.share.board import OVERDUE, PATIENCE, STRIKES, Board, Claim, File, Offer

A, B, C = "gpu01", "gpu02", "gpu03"
ALL = (A, B, C)


def sha(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def files(count: int = 2, pieces: int = 6) -> list[File]:
    return [File(f"key{n}", f"shard-{n}", pieces * 10, pieces, sha(f"key{n}")) for n in range(count)]


def board(me: str = A, found: list[File] | None = None, pulling: tuple[str, ...] = ALL, **more: int) -> Board:
    it = Board(me, ALL, found or files(), seed=1, **more)
    for name in pulling:
        if name != me:
            it.met(name, pulling=True)
    return it


def test_the_pieces_are_dealt_out_in_turn() -> None:
    taken: Counter[tuple[str, int]] = Counter()
    for me in ALL:
        it = board(me, workers=100)
        mine = []
        assert it.next_claim(-9.0) is not None, "who reads is new: the claim is to be confirmed"
        it.flight.clear()
        while (claim := it.next_claim(0.0)) is not None and not claim.taken_over:
            mine += claim.pieces
            for piece in claim.pieces:
                it.have(piece, "x", me)
        assert len(mine) == 4
        taken.update(mine)
    assert set(taken.values()) == {1}
    assert len(taken) == 12


def test_what_another_claimed_is_left_alone_until_it_dies() -> None:
    it = board(workers=100)
    it.claimed(B, Claim("key0", 1, 1, 0, False), 0.0)
    assert not it._free(("key0", 1), 1.0)
    it.lost(B)
    assert it._free(("key0", 1), 1.0)
    assert it.readers() == [A, C], "its share of the pieces goes to the others"


def test_a_claim_of_a_pull_that_is_not_at_work_does_not_count() -> None:
    it = board()
    it.claimed(B, Claim("key0", 1, 1, 0, False), 0.0)
    it.met(B, pulling=False)
    assert it._free(("key0", 1), 0.0)


def test_a_claim_that_lasts_much_longer_than_others_is_overdue() -> None:
    it = board()
    for number in range(4):
        it.claimed(C, Claim("key1", number, number, 0, False), 100.0)
        it.announced(C, ("key1", number), "x", 0, C, 110.0)
    assert it.typical == pytest.approx(10.0)
    it.claimed(B, Claim("key0", 1, 1, 0, False), 200.0)
    assert not it._free(("key0", 1), 200.0 + OVERDUE * 10 - 1)
    assert it._free(("key0", 1), 200.0 + OVERDUE * 10 + 1)
    assert PATIENCE < OVERDUE * 10


def test_no_more_hosts_than_the_cap_read_from_the_origin() -> None:
    it = board(C, cap=2)
    assert it.next_claim(0.0) is None
    assert it.readers() == [A, B]
    it.lost(A)
    claim = it.next_claim(0.0)
    assert claim is not None, "the next by name steps in"


def test_hosts_that_see_nobody_read_the_origin() -> None:
    it = Board(C, ALL, files(), cap=1, seed=1)
    assert it.next_claim(0.0) is not None


def test_hosts_that_cannot_read_the_origin_are_passed_over() -> None:
    it = board(B, cap=1)
    assert it.next_claim(0.0) is None
    it.can_read(A, False)
    assert it.next_claim(0.0) is not None
    it.origin = False
    assert it.next_claim(0.0) is None
    assert it.readers() == [C]


def test_the_streams_of_a_fleet_are_shared_out() -> None:
    assert board(workers=8).streams() == 6
    assert board(workers=4).streams() == 4
    assert board(pulling=(), workers=8).streams() == 8


def test_of_two_that_take_over_the_same_piece_the_first_by_name_has_it() -> None:
    first, second = board(A), board(B)
    claim = Claim("key1", 5, 5, 0, True)
    first.claimed(B, claim, 0.0)
    second.claimed(A, claim, 0.0)
    assert first.stands(claim, 0.1)
    assert not second.stands(claim, 0.1)


def test_whose_turn_a_piece_is_has_it_whoever_takes_it_over() -> None:
    claim = Claim("key1", 4, 4, 0, True)
    taker, owner = board(A), board(B)
    taker.claimed(B, claim, 0.0)
    owner.claimed(A, claim, 0.0)
    assert owner.stands(claim, 0.1)
    assert not taker.stands(claim, 0.1)
    owner.can_read(A, False)
    assert owner.stands(claim, 0.1)
    taker.can_read(B, False)
    assert taker.stands(claim, 0.1), "who can't read has no turn, and its claims count nothing"


def test_who_claimed_the_same_at_the_same_time_is_waited_for_as_long_as_its_claims_count() -> None:
    it = board(A)
    looks = it.looks()
    assert sorted(looks) == [B, C]
    for name, times in ((B, 3), (C, 2)):
        for _ in range(times):
            it.met(name, pulling=True)
    assert it.heard_since(looks, 2)
    assert not it.heard_since(looks, 3), "one of them was not looked at often enough"
    it.lost(C)
    assert it.heard_since(looks, 3), "whoever is gone has no claims"


def test_a_piece_is_taken_from_who_announced_it() -> None:
    it = board()
    assert it.next_offer(0.0) is None
    it.announced(B, ("key0", 3), "abc", 0, C, 0.0)
    offer = it.next_offer(0.0)
    assert offer == Offer(("key0", 3), B, "abc", C)
    assert it.next_offer(0.0) is None, "it is on its way"
    it.have(("key0", 3), "abc", C, B)
    assert ("key0", 3) not in it.missing


def test_a_busy_host_is_asked_again_later() -> None:
    it = board()
    it.announced(B, ("key0", 3), "abc", 0, B, 0.0)
    it.busy(Offer(("key0", 3), B, "abc", B), 2.0, 0.0)
    assert it.next_offer(1.0) is None
    assert it.next_offer(3.0) is not None


def test_a_host_that_sends_other_bytes_is_avoided() -> None:
    it = board(found=files(count=5))
    for number in range(STRIKES):
        it.announced(B, (f"key{number}", 0), "abc", 0, B, 0.0)
        offer = it.next_offer(0.0)
        assert offer is not None
        it.wrong(offer)
        assert it.next_offer(0.0) is None, "not that file from that host again"
    it.announced(B, ("key4", 0), "abc", 0, B, 0.0)
    assert it.next_offer(0.0) is None, "nothing from it any more"
    it.announced(C, ("key0", 0), "abc", 0, C, 0.0)
    offer = it.next_offer(0.0)
    assert offer is not None
    assert offer.peer == C


def test_who_is_trusted_by_nobody_leaves_the_origin_to_others() -> None:
    it = board(B)
    it.distrusted(A, B)
    assert it.next_claim(0.0) is not None, "one may be wrong itself"
    it.distrusted(C, B)
    assert it.next_claim(0.0) is None
    it.lost(A)
    it.lost(C)
    assert it.next_claim(0.0) is not None, "alone it reads for itself"


def test_two_reports_are_enough_to_avoid_a_host() -> None:
    it = board(A)
    it.claimed(B, Claim("key0", 1, 1, 0, False), 0.0)
    it.distrusted(C, B)
    assert not it._free(("key0", 1), 1.0)
    it.distrusted(A, B)
    assert it._free(("key0", 1), 1.0)
    assert it.readers() == [A, C]


def test_a_file_that_went_wrong_is_read_again_by_one_host() -> None:
    it = board(workers=100)
    for number in range(6):
        it.announced(B, ("key0", number), sha(number), 0, (A, B, C)[number % 3], 0.0)
        it.have(("key0", number), sha(number), (A, B, C)[number % 3], B)
    assert it.disputed("key0") == [], "several hosts read it: nobody is to blame for sure"
    assert it.next_offer(0.0) is None, "what was announced before does not count any more"
    claims = []
    while (claim := it.next_claim(0.0)) is not None:
        claims.append(claim)
    whole = [claim for claim in claims if claim.key == "key0"]
    assert [(claim.first, claim.last, claim.generation) for claim in whole] == [(0, 5, 1)]


def test_pieces_that_turn_out_right_are_not_fetched_again() -> None:
    it = board(B)
    for number in range(6):
        it.have(("key0", number), sha(number), C, C)
    it.disputed("key0")
    assert not it.announced(A, ("key0", 2), sha("other"), 1, A, 0.0), "other bytes than here"
    assert it.announced(A, ("key0", 3), sha(3), 1, A, 0.0), "the same as here"
    assert not it.announced(C, ("key0", 4), sha(4), 0, C, 0.0), "said before the file was read again"


def test_who_read_a_file_alone_and_wrong_is_avoided() -> None:
    it = board()
    it.disputed("key0")
    for number in range(6):
        it.announced(B, ("key0", number), sha(number), 1, B, 0.0)
        it.announced(C, ("key0", number), sha(number), 1, B, 0.0)
        it.have(("key0", number), sha(number), B, C)
    assert it.disputed("key0") == [B]
    assert "key0" in it.others[B].avoided
    for number in range(6):
        it.announced(C, ("key0", number), sha(number), 2, B, 0.0)
    assert it.next_offer(0.0) is None, "nor what others have from it"


def test_a_file_without_stated_pieces_comes_from_one_host_who_is_then_to_blame() -> None:
    it = board()
    it.completed(B, ["key0", "key1"])
    it.completed(C, ["key0", "key1"])
    offers: list[Offer] = []
    while len(offers) < 12 and (offer := it.next_offer(0.0)) is not None:
        offers.append(offer)
        it.have(offer.piece, sha(offer.piece), offer.reader, offer.peer)
    senders = {offer.peer for offer in offers if offer.piece[0] == "key0"}
    assert len(senders) == 1
    assert it.disputed("key0") == sorted(senders)
    offer = it.next_offer(0.0)
    assert offer is not None
    assert offer.peer not in senders


def test_an_origin_that_ignores_ranges_is_read_file_by_file() -> None:
    it = board(pulling=())
    it.ranges = False
    claim = it.next_claim(0.0)
    assert claim is not None
    assert (claim.first, claim.last) == (0, 5)
    it.release(claim)
    assert it.flight == {}


def test_hope_is_given_up_only_when_nobody_can_help() -> None:
    it = board()
    assert not it.hopeless()
    it.origin = False
    assert not it.hopeless(), "others can read it, as far as is known"
    it.can_read(B, False)
    it.can_read(C, False)
    assert it.hopeless()
    it.announced(B, ("key0", 0), "x", 0, B, 0.0)
    assert not it.hopeless(), "there is something to take"
    it.lost(B)
    assert it.hopeless()
    it.completed(C, [])
    assert not it.hopeless()


@pytest.mark.parametrize("count", [20, 64, 200])
def test_a_large_fleet_is_listened_to_by_few_and_still_hears_all(count: int) -> None:
    names = [f"host{number:03}" for number in range(count)]
    boards = [Board(name, names, [], cap=8) for name in names]
    listens = {it.me: it.watched() for it in boards}
    assert max(map(len, listens.values())) <= 8 + 2 + 8
    for name in names:
        assert set(names[:9]) - {name} <= set(listens[name]), "those at the origin, and who comes next"
    reached, heard = {names[-1]}, {names[-1]}
    while heard:
        heard = {me for me, found in listens.items() if reached & set(found)} - reached
        reached |= heard
    assert reached == set(names), "what one has, everybody hears of by and by"


@pytest.mark.parametrize("seed", range(6))
def test_a_fleet_reads_everything_once_and_ends(seed: int) -> None:
    """Hosts take turns in any order; each hears about the others one round late."""
    chance = random.Random(seed)  # noqa: S311  reproducible on purpose
    found = files(count=3, pieces=7)
    names = [f"gpu{number}" for number in range(5)]
    boards = {name: Board(name, names, found, cap=3, workers=2, seed=seed) for name in names}
    for it in boards.values():
        for other in it.others:
            it.met(other, pulling=True)
    reads: Counter[tuple[str, int]] = Counter()
    readers: set[str] = set()
    dead = names[1]
    posts: list[tuple[str, object]] = []
    for turn in range(400):
        now = float(turn)
        if turn == 6:
            for it in boards.values():
                if it.me != dead:
                    it.lost(dead)
        news, posts = posts, []
        for name, said in news:
            for it in boards.values():
                if it.me == name or (turn >= 6 and dead in (it.me, name)):
                    continue
                if isinstance(said, Claim):
                    it.claimed(name, said, now)
                elif isinstance(said, tuple):
                    it.announced(name, said, sha(said), 0, name, now)
        for name in chance.sample(names, len(names)):
            it = boards[name]
            if turn >= 6 and name == dead:
                continue
            for offer in iter(lambda it=it, now=now: it.next_offer(now), None):  # type: ignore[misc]  # bound now
                it.have(offer.piece, sha(offer.piece), offer.reader, offer.peer)
                posts.append((name, offer.piece))
            for piece in [piece for piece, peer in it.flight.items() if not peer]:
                # Claimed in an earlier turn: by now everybody has heard of it.
                if it.stands(Claim(piece[0], piece[1], piece[1], 0, True), now):
                    reads[piece] += 1
                    readers.add(name)
                    it.have(piece, sha(piece), name)
                    posts.append((name, piece))
                else:
                    it.failed(piece)
            while (claim := it.next_claim(now)) is not None:
                posts.append((name, claim))
        if all(not it.missing for it in boards.values() if it.me != dead):
            break
    else:
        raise AssertionError({name: len(it.missing) for name, it in boards.items()})
    assert readers <= set(names[:4]), "three at a time, and one in the place of the dead one"
    assert set(reads) == {(file.key, number) for file in found for number in range(file.pieces)}
    lost = [piece for piece, times in reads.items() if times > 1]
    assert len(lost) <= 4, "read again is what only the dead one had"

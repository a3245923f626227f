"""Workers say hosts as they join: chunks are stored as where `serve` is told them."""

import math
import threading
from typing import Any

import pytest

from bcgc_jax.balancing.dispatch import Memory, join, serve
from bcgc_jax.balancing.dispatch.coordinator import Gathering
from bcgc_jax.balancing.dispatch.loops import Loops
from bcgc_jax.balancing.dispatch.messages import NOT_JOINED, Answer, Join, TakeSeat
from bcgc_jax.balancing.placement import Placement

HOSTS = ["red", "red", "blue", "blue"]
WORKERS = len(HOSTS)
RANKS = range(WORKERS)


def _shares(hosts):
    memory = Memory()
    coordinator = serve(
        WORKERS, 2, 4, transport=memory, hosts=hosts, adapt=False, timeout=60.0
    )
    shares = [
        join(coordinator.address, rank, transport=memory, host=HOSTS[rank])
        for rank in RANKS
    ]
    return coordinator, shares


def test_each_worker_stores_what_it_does_where_serve_is_told_the_hosts():
    told_coordinator, told_shares = _shares(HOSTS)
    coordinator, shares = _shares("join")
    with told_coordinator, coordinator:
        assert [share.held for share in shares] == [share.held for share in told_shares]
        for chunk in shares[0].own:
            holders = {
                HOSTS[rank]
                for rank in RANKS
                if (0, chunk.number) in [held[1:3] for held in shares[rank].held]
            }
            assert holders == {"red", "blue"}, chunk


def test_a_step_after_it_has_every_chunk_once():
    coordinator, shares = _shares("join")
    done: list[Any] = []

    def run(share):
        for chunk in share.step(0):
            done.append((chunk.subset, chunk.number))

    threads = [threading.Thread(target=run, args=(share,)) for share in shares]
    with coordinator:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
    chunks = [(chunk.subset, chunk.number) for share in shares for chunk in share.own]
    assert sorted(done) == sorted(chunks)


def _gathering():
    return Gathering(
        Placement(WORKERS, 2, 4),
        lambda place: Loops(place, 60.0, None, shares=False),
        shares=False,
        timeout=60.0,
    )


def test_who_asks_early_is_answered_once_all_have_joined_and_the_missing_are_named():
    gathering = _gathering()
    answers: dict[int, list[Answer]] = {rank: [] for rank in RANKS}
    tells = [answers[rank].append for rank in RANKS]
    for rank in (0, 2):
        gathering.joined(Join(rank, host=HOSTS[rank]), tells[rank], 0.0)
        who = Join(rank, host=HOSTS[rank])
        gathering.asked(who, TakeSeat(), tells[rank], now=1.0)
    assert gathering.time_goes_on(2.0) == 6.0
    with pytest.warns(UserWarning, match=r"have not joined: 1, 3$"):
        gathering.time_goes_on(6.0)
    gathering.asked(Join(2, host="blue"), TakeSeat(), tells[2], now=7.0)
    assert gathering.time_goes_on(60.0) == 61.0  # said once; until the timeout
    gathering.joined(Join(1, host="red"), tells[1], 60.5)
    assert answers == {rank: [] for rank in RANKS}
    gathering.joined(Join(3, host="blue"), tells[3], 60.5)
    seats = {rank: [answer.seat for answer in answers[rank]] for rank in (0, 2)}
    stored = Placement(WORKERS, 2, 4, hosts=(0, 0, 1, 1)).storage.chunks()
    for rank, (seat,) in seats.items():
        assert seat is not None
        assert seat.stored == tuple(stored[rank])


def test_a_worker_that_leaves_before_all_have_joined_can_come_again():
    gathering = _gathering()
    first: list[Answer] = []
    second: list[Answer] = []
    who = Join(3, host="blue")
    tell = first.append
    gathering.joined(who, tell, 0.0)
    gathering.asked(who, TakeSeat(), tell, now=0.0)
    gathering.left(who, tell, now=1.0)
    gathering.asked(who, TakeSeat(), tell, now=2.0)
    assert first == [NOT_JOINED]
    assert gathering.time_goes_on(60.0) == math.inf  # nobody waits
    tell = second.append
    gathering.joined(who, tell, 3.0)
    gathering.asked(who, TakeSeat(), tell, now=3.0)
    for rank in range(3):
        gathering.joined(Join(rank, host=HOSTS[rank]), lambda answer: None, 4.0)
    assert [answer.seat is not None for answer in second] == [True]


def test_a_rank_that_does_not_exist_is_refused():
    assert _gathering().joined(Join(4), print, 0.0).refused == (
        "there are 4 workers, from 0 to 3: got rank 4"
    )

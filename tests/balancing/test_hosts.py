"""Holders on other hosts, and sets of workers that may be absent."""

import itertools
from collections import Counter

import numpy as np
import pytest

from bcgc_jax.balancing.asking import Asking
from bcgc_jax.balancing.lockstep import Chunks, handed_out
from bcgc_jax.balancing.placement import Placement, Storage, chunk_tables, spread
from bcgc_jax.balancing.storage import (
    by_hosts,
    least_alone,
    missing,
    numbered,
    on_one_host,
)
from bcgc_jax.solvers.limit import storage_bound

CHUNKS = 10  # of a subset, with the pieces of the last one
HOSTS = {
    "4 x 8": np.repeat(range(4), 8),
    "4 x 8, in turn": np.arange(32) % 4,
    "2 x 16": np.repeat(range(2), 16),
    "8 + 4 + 4": np.repeat(range(3), [8, 4, 4]),
    "8 + 8 + 8 + 4 + 4": np.repeat(range(5), [8, 8, 8, 4, 4]),
    "12 + 4": np.repeat(range(2), [12, 4]),
    "8 x 1": np.arange(8),
}


def test_holders_are_those_worked_out():
    holders = by_hosts((0, 0, 1, 1), 2, 3).holders
    text = ["".join(map(str, itertools.chain(*row))) for row in holders]
    assert text == ["020302", "131213", "202120", "313031"]


@pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)
@pytest.mark.parametrize("stored", [2, 3])
def test_loads_are_equal_and_holders_on_different_hosts_where_hosts_are_small(
    hosts, stored
):
    names = tuple(hosts.tolist())
    storage = by_hosts(names, stored, CHUNKS)
    chunks = [holders for row in storage.holders for holders in row]
    assert all(len({*holders}) == stored for holders in chunks)
    largest = max(Counter(names).values())
    fits = largest <= len(names) / stored
    assert (on_one_host(storage, names) == 0) == fits
    loads = Counter(worker for holders in chunks for worker in holders)
    if fits:
        assert {*loads.values()} == {stored * CHUNKS}


def test_hosts_are_numbered_by_their_first_workers():
    assert numbered(["node-b", "node-a", "node-b"]) == (0, 1, 0)
    assert Placement(3, 2, 4, hosts=(0, 1, 0)).storage == by_hosts((0, 1, 0), 2, 6)


@pytest.mark.parametrize("slower", [2.0, 5.0, 8.0])
def test_with_a_slow_host_a_step_is_near_the_limit_of_that_storage(slower):
    """It saves 93 to 96 % of what the limit does: at 8 times 95 %, by ranks 74 %."""
    rng = np.random.default_rng(0)
    steps, hosts = 60, HOSTS["4 x 8"]
    paces = rng.lognormal(0, 0.03, (steps, 32))
    factors = np.ones((steps, 4))
    factors[np.arange(steps), rng.integers(0, 4, steps)] = slower
    paces *= factors[:, hosts]
    place = Placement(32, 2, 8, hosts=tuple(hosts.tolist()))
    lengths = np.tile(np.array(place.shares) / 8, (steps, 32))
    chunks = Chunks(paces, lengths, np.zeros((steps, 32, 0)))
    tables = chunk_tables(place.storage, place.sizes)
    ends = handed_out(tables, chunks, Asking(0.01 / 8))
    of_host = 1 / (1 / paces).reshape(steps, 4, 8).sum(axis=2)
    limit = 8 * storage_bound(None, of_host, least_alone(4, 2))
    own_seconds = paces.max(axis=1)
    saved = [1 - seconds.mean() / own_seconds.mean() for seconds in (ends, limit)]
    assert 0.92 <= saved[0] / saved[1] <= 1


def _borne(storage: Storage, absent: int) -> int:
    """How many sets of so many absent workers are borne."""
    workers = range(len(storage.holders))
    sets = [
        set(workers).difference(gone)
        for gone in itertools.combinations(workers, absent)
    ]
    return sum(not missing(storage, present) for present in sets)


def test_any_worker_may_be_absent_and_as_many_pairs_as_were_counted():
    assert _borne(spread(6, 2, CHUNKS), 1) == 6
    assert _borne(spread(6, 2, CHUNKS), 2) == 0
    assert _borne(spread(6, 3, CHUNKS), 2) == 15
    assert _borne(spread(32, 2, CHUNKS), 2) == 176
    place = Placement(32, 2, 8, hosts=tuple(HOSTS["4 x 8"].tolist()))
    for host in range(4):
        assert not missing(
            place.storage, np.flatnonzero(HOSTS["4 x 8"] != host).tolist()
        )


@pytest.mark.parametrize(
    ("offsets", "percent"), [(1, 94), (3, 81), (5, 68), (None, 35)]
)
def test_fewer_offsets_bear_more_pairs(offsets, percent):
    storage = Placement(32, 2, 8, offsets=offsets).storage
    assert 100 * _borne(storage, 2) / 496 == pytest.approx(percent, abs=0.6)
    loads = Counter(w for row in storage.holders for holders in row for w in holders)
    assert {*loads.values()} == {2 * CHUNKS}


def test_what_nobody_present_stores_is_said():
    storage = Storage((((0, 2), (0, 1), (0, 2)), ((1, 0),) * 3, ((2, 1),) * 3))
    assert missing(storage, [1]) == (
        "chunks 0 and 2 of subset 0 are stored by workers 0 and 2 alone, and both are "
        "absent; store three subsets to bear any two"
    )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"hosts": (0, 1)}, "of each of 4 workers: got 2"),
        ({"offsets": 0}, "from 1 to 3: got 0"),
        ({"offsets": 2, "hosts": (0, 0, 1, 1)}, "leave out hosts"),
    ],
)
def test_a_placement_that_is_none_is_refused(options, why):
    with pytest.raises(ValueError, match=why):
        Placement(4, **options).check()

"""What hands out chunks: its rule, and that each chunk is handed out once."""

import csv
import random

import numpy as np
import pytest

from bcgc_jax.balancing.ledger import Ledger
from bcgc_jax.balancing.placement import Storage
from experiments.event_loop import driven
from tests.oracles.work_sharing import VECTORS, offsets_of, sizes_of

ROWS = list(csv.DictReader(VECTORS.read_text().splitlines()))
# Each stores one chunk of everyone.
ALL = Storage(tuple(((j, *(w for w in range(3) if w != j)),) for j in range(3)))


def _pairs(num_workers: int, chunks: int) -> Storage:
    """Two holders of each chunk, with another offset for each chunk of a subset."""
    offsets = offsets_of(num_workers, chunks)
    return Storage(
        tuple(
            tuple((j, (j + o) % num_workers) for o in offsets)
            for j in range(num_workers)
        )
    )


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: f"{row['workers']}-{row['chunks']}"
)
def test_neediest_first_ends_when_it_should(row):
    chunks = int(row["chunks"])
    sizes = sizes_of(chunks, row["equal"] == "1")
    times = [float(t) / (4 * chunks) for t in row["cycle_times"].split()]
    ledger = Ledger(_pairs(len(times), len(sizes)), [sizes] * len(times))
    # The vectors have nine digits.
    seconds = np.array(times)[:, None] * np.array(sizes * len(times))
    end = driven(ledger, seconds).time
    assert end == pytest.approx(float(row["ends"]), rel=5e-9)
    assert ledger.complete


def test_that_chunk_is_next_whose_first_other_holder_would_come_last():
    """Workers 0 to 2 have shown their speeds: 1, 4 and 20 seconds for a chunk of 4."""
    storage = Storage((((0, 1),) * 2, ((1, 0),) * 2, ((2, 0),) * 2))
    ledger = Ledger(storage, [[4, 4]] * 3)
    for handout in ledger.hand_out([0, 1, 2], now=0.0):
        assert handout.chunk == (handout.worker, 0)
    for worker, end in ((0, 1.0), (1, 4.0), (2, 20.0)):
        ledger.done(worker, ledger.running[worker].ticket, end)
    # Of the chunks left to it, (2, 1) is that of the slowest worker.
    (handout,) = ledger.hand_out([0], now=20.0)
    assert handout.chunk == (2, 1)


def test_a_holder_that_is_absent_never_comes():
    """Worker 1 is as fast as all, but takes no part: what it stores is needed first."""
    storage = Storage((((0, 2),), ((1, 0),), ((2, 0),)))
    for present, neediest in (([0, 1, 2], (0, 0)), ([0, 2], (1, 0))):
        ledger = Ledger(storage, [[4]] * 3, present=present)
        (handout,) = ledger.hand_out([0], now=0.0)
        assert handout.chunk == neediest


def _random_ledger(rng: random.Random) -> Ledger:
    n = rng.randint(2, 7)
    stored = rng.randint(1, n)
    sizes = sizes_of(rng.randint(1, 4), rng.random() < 0.5)
    rows = [
        tuple(
            (j, *rng.sample([w for w in range(n) if w != j], stored - 1)) for _ in sizes
        )
        for j in range(n)
    ]
    return Ledger(Storage(tuple(rows)), [sizes] * n)


def test_every_chunk_is_handed_out_once_whatever_comes_in_which_order():
    """Workers are free, and done, in any order. Some lengths come late, and tickets
    that nobody has, or that are done already, change nothing.
    """
    for seed in range(300):
        rng = random.Random(seed)
        ledger = _random_ledger(rng)
        workers = range(len(ledger.queue.stored))
        computed: list[tuple[int, int]] = []
        now = 0.0
        while not ledger.complete:
            now += rng.random()
            if rng.random() < 0.1:
                subset = rng.choice(workers)
                count = sum(j == subset for j, _ in ledger.holders)
                ledger.queue.reweigh(subset, rng.choices((1, 2, 3), k=count))
            free = [w for w in workers if w not in ledger.running]
            asking = rng.sample(free, rng.randint(0, len(free)))
            for handout in ledger.hand_out(asking, now):
                assert handout.worker in ledger.holders[handout.chunk]
                computed.append(handout.chunk)
            if ledger.running and rng.random() < 0.7:
                handout = ledger.running[rng.choice([*ledger.running])]
                assert ledger.done(handout.worker, handout.ticket + 100, now) is None
                assert ledger.done(handout.worker, handout.ticket, now) == handout
                assert ledger.done(handout.worker, handout.ticket, now) is None
        assert sorted(computed) == sorted(ledger.holders)
        assert not ledger.running
        assert ledger.hand_out(workers, now) == []


def test_sizes_must_be_of_the_chunks():
    with pytest.raises(ValueError, match="sizes must be"):
        Ledger(ALL, [[4], [4], [4, 4]])

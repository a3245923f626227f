"""Which chunk is next, by hand."""

import math

import pytest

from bcgc_jax.balancing.chunk_lengths import ticks_of
from bcgc_jax.balancing.ledger import Queue
from bcgc_jax.balancing.placement import Storage

# Worker 0 stores chunks of all: with worker 1 that of subset 1, with worker 2 that of
# subset 2, and with both its own two.
STORED = Storage((((0, 1, 2),) * 2, ((1, 0),), ((2, 0),)))
ALIKE = [1.0, 1.0, 1.0]


def _queue(*lengths: list[int]) -> Queue:
    queue = Queue(STORED, [[2, 2], [4], [4]])
    for subset, ticks in enumerate(lengths):
        queue.reweigh(subset, ticks)
    return queue


def _order(queue: Queue, worker: int, seconds: list[float]) -> list[tuple[int, int]]:
    """In which a worker alone takes all that it stores."""
    order = []
    while (chunk := queue.best(worker, seconds)) is not None:
        queue.take(chunk)
        order.append(chunk)
    return order


def test_sums_of_131_072_chunks_are_whole_in_floating_point_however_long_these_are():
    (greatest,) = ticks_of([1e300], usual=1.0).tolist()
    assert 131_072 * greatest <= 2**53


@pytest.mark.parametrize(
    ("lengths", "seconds", "order"),
    [
        # By size: 8 x 2, 8 x 2, 8 x 4, 16 x 4. Then worker 2 has 4: 8 x 2, 8 x 2, 8 x
        # 4.
        ((), [1.0, 1.0, 2.0], [(2, 0), (1, 0), (0, 0), (0, 1)]),
        # Workers 1 and 2 have 8 left each: 8 x 1, 8 x 3, 8 x 4, 8 x 4, of equal ones
        # the first. Then worker 1 has 4: 4 x 1, 4 x 3, 8 x 4.
        (([1, 3], [4], [4]), ALIKE, [(1, 0), (2, 0), (0, 1), (0, 0)]),
        # Worker 2 is slow: 8 x 1, 8 x 3, 8 x 4, 24 x 4. Then 8 x 1, 8 x 3, 8 x 4.
        (([1, 3], [4], [4]), [1.0, 1.0, 3.0], [(2, 0), (1, 0), (0, 1), (0, 0)]),
        # A long chunk: 14 x 1, 14 x 9, 14 x 4, 14 x 4.
        (([1, 9], [4], [4]), ALIKE, [(0, 1), (1, 0), (2, 0), (0, 0)]),
    ],
)
def test_the_neediest_chunk_is_next(lengths, seconds, order):
    assert _order(_queue(*lengths), 0, seconds) == order


def test_a_small_chunk_of_a_slow_worker_comes_before_a_large_one():
    """Worker 1 has 8 left, worker 2 has 2: 8 x 4, 8 x 4, 2 s x 2 if a tick takes s."""
    queue = Queue(Storage((((0, 1),), ((1, 0),), ((2, 0),))), [[4], [4], [2]])
    assert queue.best(0, [1.0, 1.0, 9.0]) == (2, 0)
    assert queue.best(0, [1.0, 1.0, 7.0]) == (0, 0)


def test_who_does_not_answer_never_comes():
    queue = _queue([1, 3], [4], [4])
    assert queue.best(0, [1.0, 1.0, 1.0], {1}) == (1, 0)
    assert queue.best(0, [1.0, 1.0, 1.0], {2}) == (2, 0)
    assert queue.best(1, [1.0, 1.0, math.inf]) == (1, 0)

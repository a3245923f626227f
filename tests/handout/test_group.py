"""A worker of two processes: both compute the same chunks, and both hear what has
failed.
"""

import queue
import threading

import pytest

from bcgc_jax.handout import Memory, StepFailed, follow, join, serve

WORKERS, SIZE = 2, 2


class Group:
    """A broadcast of threads: the first one puts what all others take."""

    def __init__(self):
        self.boxes: list[queue.Queue] = [queue.Queue() for _ in range(SIZE - 1)]

    def first(self, value):
        for box in self.boxes:
            box.put(value)
        return value

    def other(self, number):
        return lambda nothing: self.boxes[number].get(timeout=10.0)


def _in_threads(functions):
    found: list = [None] * len(functions)

    def run(place, function):
        try:
            found[place] = function()
        except Exception as error:
            found[place] = error

    threads = [
        threading.Thread(target=run, args=given) for given in enumerate(functions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
        assert not thread.is_alive()
    return found


@pytest.mark.parametrize("adapt", [True, False])
def test_all_of_a_group_compute_the_chunks_that_its_first_process_is_given(adapt):
    memory = Memory()
    groups = [Group() for _ in range(WORKERS)]
    with serve(WORKERS, 2, 4, transport=memory, adapt=adapt) as coordinator:

        def first(rank):
            with join(coordinator.address, rank, transport=memory) as share:
                group = share.for_group(groups[rank].first)
                return [list(group.step(step)) for step in range(3)]

        def other(rank):
            group = follow(groups[rank].other(0))
            assert (group.num_workers, len(group.own)) == (WORKERS, 6)
            return [list(group.step(step)) for step in range(3)]

        ranks = range(WORKERS)
        given = [lambda r=r: first(r) for r in ranks] + [
            lambda r=r: other(r) for r in ranks
        ]
        found = _in_threads(given)
    assert found[:WORKERS] == found[WORKERS:]
    samples = [
        row for chunk in found[0][2] + found[1][2] for row in chunk.rows(64, WORKERS)
    ]
    assert sorted(samples) == [*range(64)]


def test_a_step_that_fails_does_so_in_all_of_a_group():
    memory, group = Memory(), Group()
    with serve(WORKERS, 2, 4, transport=memory, adapt=False) as coordinator:
        lost = join(coordinator.address, 1, transport=memory)
        next(lost.step(0))
        share = join(coordinator.address, 0, transport=memory)

        def first():
            chunks = share.for_group(group.first).step(0)
            next(chunks)
            lost.close()
            return list(chunks)

        found = _in_threads([first, lambda: list(follow(group.other(0)).step(0))])
    assert [type(error) for error in found] == [StepFailed] * 2
    assert "worker 1 is gone" in str(found[1])

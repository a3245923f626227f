"""A worker of two processes: both compute and hear the same."""

import queue
import threading

import pytest

from bcgc_jax.balancing.dispatch import Memory, StepFailed, follow, join, serve

WORKERS, SIZE = 2, 2


class Group:
    """A broadcast of threads: the first one puts what all others take."""

    def __init__(self):
        self.boxes: list[queue.Queue] = [queue.Queue() for _ in range(SIZE - 1)]

    def first(self, value):
        for box in self.boxes:
            box.put(value)
        return value

    def follower(self, number):
        return lambda nothing: self.boxes[number].get(timeout=10.0)


def _in_threads(functions):
    results: list = [None] * len(functions)

    def run(place, function):
        try:
            results[place] = function()
        except Exception as error:
            results[place] = error

    threads = [
        threading.Thread(target=run, args=numbered) for numbered in enumerate(functions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
        assert not thread.is_alive()
    return results


@pytest.mark.parametrize("adapt", [True, False])
def test_all_of_a_group_compute_the_chunks_that_its_first_process_is_given(adapt):
    memory = Memory()
    groups = [Group() for _ in range(WORKERS)]
    with serve(WORKERS, 2, 4, transport=memory, adapt=adapt) as coordinator:

        def first(rank):
            with join(coordinator.address, rank, transport=memory) as share:
                group = share.for_group(groups[rank].first)
                return [list(group.step(step)) for step in range(3)]

        def follower(rank):
            group = follow(groups[rank].follower(0))
            assert (group.num_workers, len(group.own)) == (WORKERS, 6)
            return [list(group.step(step)) for step in range(3)]

        ranks = range(WORKERS)
        functions = [lambda r=r: first(r) for r in ranks] + [
            lambda r=r: follower(r) for r in ranks
        ]
        chunks = _in_threads(functions)
    assert chunks[:WORKERS] == chunks[WORKERS:]
    samples = [
        row for chunk in chunks[0][2] + chunks[1][2] for row in chunk.rows(64, WORKERS)
    ]
    assert sorted(samples) == [*range(64)]


def test_a_step_that_fails_does_so_in_all_of_a_group():
    memory, group = Memory(), Group()
    with serve(WORKERS, 2, 4, transport=memory, adapt=False) as coordinator:
        lost = join(coordinator.address, 1, transport=memory)
        lost_chunks = lost.step(0)
        next(lost_chunks)
        share = join(coordinator.address, 0, transport=memory)

        def first():
            chunks = share.for_group(group.first).step(0)
            next(chunks)
            lost.close()
            return list(chunks)

        errors = _in_threads([first, lambda: list(follow(group.follower(0)).step(0))])
    assert [type(error) for error in errors] == [StepFailed] * 2
    assert "worker 1 is lost" in str(errors[1])

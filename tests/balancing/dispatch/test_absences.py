"""Workers that are absent: the others do their chunks, or refuse by name."""

import threading

import numpy as np
import pytest

from bcgc_jax.balancing.dispatch import Memory, StepFailed, join, serve
from bcgc_jax.balancing.dispatch.messages import Join
from bcgc_jax.balancing.placement import Placement
from tests.balancing.dispatch.clocked import Training

WORKERS = 6


@pytest.mark.parametrize("is_slow", [False, True], ids=["own", "shared"])
def test_one_of_six_leaves_between_two_steps_and_comes_back(is_slow):
    """The step takes 1.28 times as long; all data are in each, in either mode."""
    training = Training(Placement(WORKERS, 2, 8))
    pace = [0.02] * WORKERS
    took = []
    with training.coordinator:
        for step in range(12):
            took.append(training.step(step, [0.1 * is_slow + pace[0], *pace[1:]]))
            assert training.is_whole
        assert training.is_shared is is_slow
        left = 5
        training.loops.left(Join(left), training.replies[left], training.now)
        took.append(training.step(12, pace, present=[0, 1, 2, 3, 4]))
        assert training.is_whole
        assert training.is_shared is is_slow
        training.loops.joined(Join(left), training.replies[left], training.now)
        training.step(13, pace)
        assert training.is_whole
    if not is_slow:
        assert took[12] / np.median(took[:12]) < 1.35


@pytest.fixture
def shares():
    memory = Memory()
    with serve(WORKERS, 2, 8, transport=memory) as coordinator:
        yield [
            join(coordinator.address, rank, transport=memory) for rank in range(WORKERS)
        ]


def test_what_nobody_present_stores_is_refused_before_anything_is_computed(shares):
    present = [0, 1, 2, 3]
    for rank in present:
        with pytest.raises(ValueError, match="step 7: chunk") as raised:
            next(shares[rank].step(7, present=present))
        assert str(raised.value).endswith(
            "both are absent; store three subsets to bear any two"
        )
    assert not shares[0].covers(present)
    assert shares[0].covers(range(WORKERS))
    assert all(
        shares[0].covers(set(range(WORKERS)) - {rank}) for rank in range(1, WORKERS)
    )


def test_who_has_lost_its_place_is_not_told_that_data_are_missing():
    memory = Memory()
    with serve(2, 2, 8, transport=memory) as coordinator:
        older = join(coordinator.address, 0, transport=memory)
        newer = join(coordinator.address, 0, transport=memory)
        assert newer.covers([0])
        with pytest.raises(ConnectionError, match=r"worker 0: .* taken its place"):
            older.covers([0])


@pytest.mark.parametrize("present", [[1, 2, 3, 4, 5], [0, 1, 2, 3, 9]])
def test_who_is_not_among_the_present_or_is_nobody_is_refused(shares, present):
    with pytest.raises(
        ValueError, match="those present must be worker 0 and others from 0 to 5"
    ):
        next(shares[0].step(0, present=present))


def test_workers_that_differ_about_who_is_present_are_told(shares):
    chunks = shares[0].step(3, present=[0, 1, 2, 3, 4])
    next(chunks)
    with pytest.raises(
        ValueError, match="worker 1 says that 0, 1, 2, 3, 5 are present, others"
    ):
        next(shares[1].step(3, present=[0, 1, 2, 3, 5]))


def test_who_is_absent_may_go_without_failing_the_step(shares):
    present = [0, 1, 2, 3, 4]
    done: list = []
    chunks = [share.step(0, present=present) for share in shares[:5]]
    for share_chunks in chunks:
        next(share_chunks)
    shares[5].close()
    threads = [
        threading.Thread(target=lambda c=c: done.append(len(list(c)))) for c in chunks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10.0)
    assert len(done) == 5
    with pytest.raises(
        StepFailed, match="worker 4 is lost, because its connection was closed"
    ):
        _next_while_gone(shares, present)


def _next_while_gone(shares, present):
    chunks = shares[0].step(1, present=present)
    lost = shares[4].step(1, present=present)
    next(lost)
    next(chunks)
    shares[4].close()
    next(chunks)


def test_a_placement_by_hosts_bears_that_a_whole_host_leaves():
    memory = Memory()
    hosts = ["a", "a", "a", "b", "b", "b"]
    with serve(WORKERS, 2, 8, transport=memory, hosts=hosts) as coordinator:
        share = join(coordinator.address, 0, transport=memory)
        assert share.covers([0, 1, 2])
        assert share.covers([3, 4, 5])


def test_a_host_with_too_many_workers_is_said():
    with pytest.warns(UserWarning, match="of the chunks have two holders on one host"):
        serve(4, 2, transport=Memory(), hosts=["a", "a", "a", "b"]).close()

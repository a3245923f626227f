"""Steps that the workers of a process begin and end together, with threads."""

import concurrent.futures
import threading

import pytest

from bcgc_jax.balancing.compiled.questions import Launches

SECONDS = 20.0


@pytest.fixture
def threads():
    with concurrent.futures.ThreadPoolExecutor(3) as executor:
        yield executor


def test_if_one_worker_fails_after_another_has_ended_both_have_failed(threads):
    launches = Launches(range(2))
    for worker in range(2):
        launches.begin(worker, "step 0")
    ending = threads.submit(launches.end, 0)
    with pytest.raises(concurrent.futures.TimeoutError):
        ending.result(0.05)
    launches.fail(OSError("the disk is gone"))
    with pytest.raises(OSError, match="the disk is gone"):
        ending.result(SECONDS)
    with pytest.raises(OSError, match="the disk is gone"):
        launches.end(1)


def test_a_step_that_all_have_ended_stays_ended(threads):
    launches = Launches(range(3))
    for step in range(50):
        for worker in range(3):
            launches.begin(worker, step)
        ended = [threads.submit(launches.end, worker) for worker in range(3)]
        ended[step % 3].result(SECONDS)
        launches.fail(OSError("too late"))
        assert [end.result(SECONDS) for end in ended] == [None] * 3


def test_the_next_step_begins_when_all_have_left_the_one_that_has_failed(threads):
    launches = Launches(range(2))
    for worker in range(2):
        launches.begin(worker, "step 0")
    launches.fail(OSError("the disk is gone"))
    launches.leave(0)
    following = threads.submit(launches.begin, 0, "step 1")
    with pytest.raises(concurrent.futures.TimeoutError):
        following.result(0.05)
    launches.leave(1)
    following.result(SECONDS)
    launches.begin(1, "step 1")
    ended = [threads.submit(launches.end, worker) for worker in range(2)]
    assert [end.result(SECONDS) for end in ended] == [None, None]


def test_a_worker_that_comes_late_to_a_failed_step_hears_why():
    launches = Launches(range(2))
    launches.begin(0, "step 0")
    launches.fail(OSError("the disk is gone"))
    launches.leave(0)
    with pytest.raises(OSError, match="the disk is gone"):
        launches.begin(1, "step 0")


@pytest.mark.parametrize(("worker", "key"), [(0, "b"), (1, "b"), (0, "a")])
def test_two_steps_at_once_are_refused(worker, key):
    launches = Launches(range(2))
    launches.begin(0, "a")
    with pytest.raises(RuntimeError, match="at the same time"):
        launches.begin(worker, key)


def test_nobody_waits_after_a_close(threads):
    launches = Launches(range(3))
    for worker in range(2):
        launches.begin(worker, "step 0")
    launches.leave(0)
    waiting = [
        threads.submit(launches.begin, 0, "step 1"),
        threads.submit(launches.end, 1),
    ]
    assert not threading.Event().wait(0.05)
    launches.close()
    for call in waiting:
        with pytest.raises(RuntimeError, match=r"Call reset\(\) first"):
            call.result(SECONDS)

"""Who takes part where workers are lost and return, without any process."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import pytest

from bcgc_jax.cluster import Cluster
from bcgc_jax.cluster.planning import Course
from bcgc_jax.cluster.processes import Process, Processes


class Workers(SimpleNamespace):
    """A cluster of so many, of whom `lost` are, and `more` could be there again."""

    num_workers: int
    size: int = 0
    lost: tuple[int, ...] = ()
    num_returning: int = 0
    assignment: str = "the plan's"

    def does(self, work: str) -> bool:
        return work == self.assignment

    def returning(self) -> int:
        return self.num_returning


class Planned(Course):
    """Notes for whom plans are made; not for `refused` or more."""

    planned: list[list[int]]
    refused = 99

    def give_work(self) -> Any:
        self.planned.append(list(self.members))
        if len(self.members) >= self.refused:
            raise ValueError("the Ray cluster has 0 free CPUs of 1 needed")
        workers: Any = self.cluster
        workers.num_workers = len(self.members)
        workers.lost = ()
        workers.assignment = f"work {len(self.planned)}"


def begun_course(
    workers: Workers, count: int, max_workers: int, refused: int = 99
) -> tuple[Course, list[list[int]]]:
    """A training of `most` workers at most, and for whom plans are made."""
    arguments: Any = workers, None, None, None, None, jax.random.key(0), 1
    course = Planned(None, *arguments)
    course.planned = []
    course.num_workers = count
    course._max_workers = max_workers
    course.refused = refused
    course.begin(0)
    return course, course.planned


def test_lost_workers_return_with_their_numbers() -> None:
    workers = Workers(num_workers=4)
    course, planned = begun_course(workers, 4, 4)
    assert not course.follow()
    workers.lost = (1, 2)
    course.replan()
    assert planned[-1] == [0, 3]
    workers.num_returning = 1
    assert course.follow()
    course.replan()
    assert planned[-1] == [0, 3, 1]  # processes are in this order
    assert course.follow()
    course.replan()
    assert planned[-1] == [0, 3, 1, 2]
    assert not course.follow()  # the problem has no more
    workers.lost, workers.num_returning = (0,), 0
    course.replan()
    assert planned[-1] == [3, 1, 2]


def test_those_whose_room_is_taken_meanwhile_are_left_out() -> None:
    course, planned = begun_course(
        Workers(num_workers=2, num_returning=1), 3, 3, refused=3
    )
    assert course.follow()
    with pytest.warns(UserWarning, match="left out: the Ray cluster has 0 free CPUs"):
        course.replan()
    assert planned == [[0, 1], [0, 1, 2], [0, 1]]
    # who was there from the start is not left out
    with pytest.raises(ValueError, match="0 free CPUs"):
        begun_course(Workers(num_workers=3), 3, 3, refused=3)


def test_the_size_and_the_work_that_the_cluster_was_given_are_followed() -> None:
    workers = Workers(num_workers=2)
    course, planned = begun_course(workers, 2, 99)
    for count in (5, 3, 3):  # also where others have used it and left as many
        workers.num_workers, workers.assignment = count, "another's"
        assert course.follow()
        course.replan()
        assert planned[-1] == list(range(count))
    course, planned = begun_course(workers, 3, 3)
    workers.num_workers, workers.assignment = 4, "another's"
    assert course.follow()
    course.replan()
    assert planned[-1] == [0, 1, 2]  # the problem has no more


def test_successors_have_a_multiple_of_what_the_others_took() -> None:
    processes: Any = SimpleNamespace(patience=1.0, _started_in=0.0)
    begun = (1, None), (1, 7), (None, 7)  # one that starts, one that loads, one at work
    all_three = [
        Process(None, None, "", 1, starting=ref, pid=pid) for ref, pid in begun
    ]

    def patience() -> list[float]:
        return [Processes._patience_with(processes, process) for process in all_three]

    assert patience() == [120.0, 30.0, 1.0]  # as long as nobody has started
    processes._started_in = 2.0
    assert patience() == [6.0, 6.0, 1.0]
    all_three[0].attempts = 0  # all of them start at once
    assert patience() == [120.0, 6.0, 1.0]


def test_who_starts_at_first_is_no_successor() -> None:
    actor, loaded = Mock(), Mock()
    processes: Any = SimpleNamespace(
        _needs={}, _actor=actor, _all=[None, None], ray=None, _here="a", _load=loaded
    )
    Processes._spawn(processes, 1)
    process = processes._all[1]
    assert (process.attempts, loaded.call_args.args) == (0, (1, process))
    assert actor.options.call_args.kwargs["scheduling_strategy"] == "SPREAD"


def test_a_shortage_says_what_all_of_them_need() -> None:
    cluster: Any = object.__new__(Cluster)
    has = {"CPU": 8.0, "GPU": 0.5}
    cluster.ray = SimpleNamespace(
        available_resources=lambda: has, cluster_resources=lambda: has
    )
    cluster._all, cluster._needs = [], {"CPU": 2.0, "GPU": 0.25}
    assert (cluster._shortage(2), cluster._shortage(3)) == (
        "",
        "0.5 free GPUs of 0.75 needed",
    )


def test_two_threads_do_not_share_a_cluster() -> None:
    cluster = object.__new__(Cluster)
    cluster._used = threading.RLock()

    def use() -> None:
        with cluster.at_work(), cluster.at_work():  # a training, and its gradients
            pass

    with ThreadPoolExecutor(1) as second_thread:
        with (
            cluster.at_work(),
            pytest.raises(ValueError, match="at work in another thread"),
        ):
            second_thread.submit(use).result()
        second_thread.submit(use).result()


def test_a_cluster_that_is_whole_is_left_as_it_is() -> None:
    resized: list[int] = []
    cluster: Any = SimpleNamespace(
        num_workers=3, size=3, _resize=resized.append, _check_open=lambda: None
    )
    cluster._shortage = lambda count: ""
    for cluster.lost in ((), (1,), (0, 1, 2)):
        Cluster.restore(cluster)
    assert resized == [3, 3]
    cluster.lost, cluster._shortage = (1,), lambda count: "no free CPUs"
    with pytest.warns(UserWarning, match="with 2 of 3 workers: there are no free"):
        Cluster.restore(cluster)
    assert resized == [3, 3, 2]

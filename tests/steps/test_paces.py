"""What is expected of workers, against times worked out by hand."""

import math
import random

import pytest

from bcgc_jax.steps.paces import Paces


def _timing(
    num_workers: int, ends: dict[int, float], began: dict[int, float], size: int = 4
) -> Paces:
    """Workers that took so long for a first chunk, and those that then began one."""
    paces = Paces(num_workers)
    for worker, end in ends.items():
        paces.began(worker, (worker, 0), size, 0.0)
        paces.ended(worker, end)
    for worker, begin in began.items():
        paces.began(worker, (worker, 1), size, begin)
    return paces


def test_a_worker_takes_as_long_as_last_or_longer_if_it_does_now():
    paces = _timing(4, {0: 4.0, 1: 8.0}, {1: 8.0, 2: 0.0})
    # The fourth has the mean of those known.
    assert paces.seconds(10.0).tolist() == [1.0, 2.0, 2.5, 1.5]
    assert paces.seconds(18.0).tolist() == [1.0, 2.5, 4.5, 1.5]
    paces.ended(1, 9.0)
    paces.lost(2)
    assert paces.seconds(18.0).tolist() == [1.0, 0.25, 0.625, 0.625]
    assert Paces(2).seconds(3.0).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("now", "worth"),
    [
        (8.0, [(1, 1), (3, 1)]),  # they need 48 and 20 from 8 on, a copy 4, times 1.5
        (21.9, [(1, 1), (3, 1)]),
        (22.1, [(1, 1)]),  # the fourth needs less than 6
        (27.9, [(1, 1)]),
        # The fourth is late by now, and expected to take as long again.
        (28.0, [(1, 1), (3, 1)]),
        (40.0, [(3, 1), (1, 1)]),
    ],
)
def test_a_copy_is_worth_it_where_the_rest_is_long(now, worth):
    paces = _timing(4, {0: 4.0, 1: 48.0, 3: 20.0}, {1: 8.0, 3: 8.0})
    assert paces.worth(0, now) == worth


def test_of_an_unknown_one_a_copy_is_worth_it_after_a_while():
    paces = _timing(3, {0: 4.0}, {1: 1.0, 2: 2.0})
    assert paces.worth(0, 6.99) == []
    assert paces.next_look(6.0) == 7.0
    assert paces.worth(0, 7.0) == [(1, 1)]
    assert paces.worth(0, 8.0) == [(1, 1), (2, 1)]
    # A copy runs already: the first of the two that is expected to end counts.
    paces.began(2, (1, 1), 4, 6.0)
    assert paces.worth(0, 11.99) == []
    assert paces.worth(0, 12.0) == [(1, 1)]


def test_of_two_that_compute_the_same_the_first_to_end_counts():
    paces = _timing(4, {0: 4.0, 1: 100.0, 2: 50.0, 3: 70.0}, {1: 100.0, 3: 100.0})
    paces.began(2, (1, 1), 4, 100.0)
    assert paces.worth(0, 100.0) == [(3, 1), (1, 1)]  # at 170; at 200 or 150


def test_a_worker_is_overdue_after_twice_its_own_mean_or_that_of_all():
    assert _timing(2, {}, {0: 0.0}).overdue(1e9) == []
    paces = _timing(4, {0: 4.0, 1: 16.0, 2: 4.0}, {0: 20.0, 1: 20.0, 3: 20.0})
    # The mean of all is 2 a unit, that of the second 4.
    deadlines = {0: 36.0, 1: 52.0, 3: 36.0}
    for now in (35.9, 36.0, 51.9, 52.0):
        assert paces.overdue(now) == [
            worker for worker, end in deadlines.items() if end <= now
        ]
    assert paces.overdue(51.9, voided=1) == []
    assert paces.overdue(52.0, voided=1) == [0, 3]


def test_nothing_new_is_worth_it_or_overdue_before_the_next_look():
    rng = random.Random(5)
    looks = 0
    for _ in range(200):
        began = {worker: 9 * rng.random() for worker in rng.sample(range(5), 3)}
        paces = _timing(
            5,
            {w: 9 * rng.random() for w in rng.sample(range(5), rng.randint(0, 5))},
            began,
        )
        now = 9 + 9 * rng.random()
        look = paces.next_look(now)
        free = set(range(5)) - began.keys()

        def news(seconds, paces=paces, free=free):
            worth = {
                (worker, chunk)
                for worker in free
                for chunk in paces.worth(worker, seconds)
            }
            return worth | {(worker, None) for worker in paces.overdue(seconds)}

        until = look if math.isfinite(look) else now + 1e3
        for part in (0.1, 0.5, 0.9, 0.999):
            assert news(now + part * (until - now)) <= news(now)
        looks += math.isfinite(look) and not news(look) <= news(now)
    assert looks > 100

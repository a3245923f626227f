"""A step an event at a time: by hand, and with the looks that are left out."""

import numpy as np
import pytest

from bcgc_jax.steps.asking import Asking
from bcgc_jax.steps.chunk_lengths import chunk_sizes
from bcgc_jax.steps.driven import driven
from bcgc_jax.steps.ledger import Ledger, Roster
from bcgc_jax.steps.paces import Paces
from bcgc_jax.steps.placement import Storage, spread

# Two workers that store all, two chunks each.
BOTH = Storage((((0, 1),) * 2, ((1, 0),) * 2))


@pytest.mark.parametrize(
    ("starts", "asking", "end"),
    [
        # Worker 1 takes 3 for its first chunk; meanwhile worker 0 does the other three.
        ([0.0, 0.0], Asking(), 3.0),
        # Worker 1 begins when one chunk is left, the second of its own, and ends it at
        # 5.5.
        ([0.0, 2.5], Asking(), 5.5),
        # Each chunk takes 0.5 more.
        ([0.0, 0.0], Asking(delay=0.5), 4.5),
        # Worker 1 is answered at 0.2. From 1.1 on worker 0 asks alone.
        ([0.0, 0.0], Asking(service=0.1), 3.3),
    ],
)
def test_a_step_of_two_workers_by_hand(starts, asking, end):
    ledger = Ledger(0, BOTH, [[4, 4]] * 2, "chunks")
    seconds = np.array([[1.0] * 4, [3.0] * 4])
    step = driven(ledger, Paces(2), seconds, starts, asking=asking)
    assert step.time == pytest.approx(end)
    np.testing.assert_allclose(step.busy, end)
    assert ledger.complete


def test_a_pause_is_in_the_first_chunk_that_a_worker_is_given():
    """Worker 0 pauses for 5 in its first chunk. Worker 1 takes 3 for each other one."""
    ledger = Ledger(0, BOTH, [[4, 4]] * 2, "chunks")
    pauses = np.array([[5.0], [0.0]])
    assert (
        driven(ledger, Paces(2), np.array([[1.0] * 4, [3.0] * 4]), None, pauses).time
        == 7.0
    )


def test_a_copy_ends_the_step_and_its_first_worker_is_busy():
    """Worker 0 pauses for 50 in its first chunk. Worker 1 takes 2 for each of the
    others.

    At 6 they are done. The first one has taken 6 by then: a copy is worth it at once.
    """
    ledger = Ledger(0, BOTH, [[4, 4]] * 2)
    seconds = np.array([[1.0] * 4, [2.0] * 4])
    end, busy = driven(ledger, Paces(2), seconds, None, np.array([[50.0], [0.0]]))
    assert end == 8.0
    assert busy.tolist() == [51.0, 8.0]


@pytest.mark.parametrize(("later", "busy"), [(7e-15, 1.5), (1.5e-14, 2.5)])
def test_who_ends_but_for_rounding_when_a_copy_is_worth_it_needs_none(later, busy):
    """Worker 1 is free at 1, and at 1.5 a copy of the other chunk is worth it."""
    ledger = Ledger(0, Storage((((0, 1),), ((1, 0),))), [[4]] * 2)
    seconds = np.array([[1.5 * (1 + later)] * 2, [1.0] * 2])
    step = driven(ledger, Paces(2), seconds)
    assert step.busy[1] == pytest.approx(busy)


def test_what_nobody_stores_who_answers_is_said():
    ledger = Ledger(0, BOTH, [[4, 4]] * 2, "chunks")
    ledger.lost(0)
    with pytest.raises(ValueError, match="nobody is left"):
        driven(ledger, Paces(2), np.ones((2, 4)))


class _Plain(Ledger):
    """All that are free are asked, and may copy whatever runs."""

    def may_be_given(self, free):
        return sorted(free)

    def begun(self, worker):
        return list(self.holders)


class _Watchful(Paces):
    """It looks whenever a copy pays for anybody, whether it stores the chunk or not."""

    def next_look(self, now, voided=0, copies=None):
        return super().next_look(now, voided)


@pytest.mark.parametrize("whole", [False, True], ids=["drawn", "ties"])
def test_looks_and_questions_that_are_left_out_are_of_no_use(whole):
    workers, sizes = 6, chunk_sizes(3)
    storage = spread(workers, 2, len(sizes))
    rng = np.random.default_rng(6)
    voided = 0
    rosters: list[Roster | None] = [None, None]
    for step in range(15):
        starts = rng.exponential(3.0, workers) * rng.integers(0, 2)
        paces = rng.exponential(size=(workers, 1)) + 0.05
        if whole:
            starts = starts.round()
            paces = rng.integers(1, 4, paces.shape).astype(float)
        seconds = 0.25 + paces * np.tile(sizes, workers)
        seconds = seconds + rng.integers(1, 40, seconds.shape) * (
            rng.random(seconds.shape) < 0.05
        )
        ends = []
        for k, (books, times) in enumerate(((Ledger, Paces), (_Plain, _Watchful))):
            ledger = books(step, storage, [sizes] * workers, before=rosters[k])
            ends.append(driven(ledger, times(workers), seconds, starts))
            rosters[k] = ledger.roster
            voided += ledger.voided
        assert ends[0].time == pytest.approx(ends[1].time, rel=1e-12)
        np.testing.assert_allclose(ends[0].busy, ends[1].busy, rtol=1e-12)
        assert rosters[0] == rosters[1]
    assert voided > 0

"""A step an event at a time, by hand."""

import numpy as np
import pytest

from bcgc_jax.balancing.asking import Asking
from bcgc_jax.balancing.ledger import Ledger
from bcgc_jax.balancing.placement import Storage
from experiments.event_loop import driven

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
    ledger = Ledger(BOTH, [[4, 4]] * 2)
    seconds = np.array([[1.0] * 4, [3.0] * 4])
    step = driven(ledger, seconds, starts, asking=asking)
    assert step.time == pytest.approx(end)
    np.testing.assert_allclose(step.busy, end)
    assert ledger.complete


def test_a_pause_is_in_the_first_chunk_that_a_worker_is_given():
    """Worker 0 pauses for 5 in its first chunk. Worker 1 takes 3 for each other one."""
    ledger = Ledger(BOTH, [[4, 4]] * 2)
    pauses = np.array([[5.0], [0.0]])
    assert driven(ledger, np.array([[1.0] * 4, [3.0] * 4]), None, pauses).time == 7.0


def test_what_nobody_stores_who_takes_part_is_said():
    ledger = Ledger(Storage((((0,),), ((1, 0),))), [[4]] * 2, present=[1])
    with pytest.raises(ValueError, match="nobody is left"):
        driven(ledger, np.ones((2, 2)), [np.inf, 0.0])

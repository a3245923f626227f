"""Codes planned on measured steps, replayed in others, against a loop over workers."""

import math

import numpy as np
import pytest

from bcgc_jax.balancing.steps import Steps
from bcgc_jax.solvers.methods import code_of


def one_level(times, stored, chunks=8):
    """Ends of steps in whole chunks; all workers but `stored` - 1 are waited for."""
    late, ends = [0.0] * len(times[0]), []
    for row in times:
        done = [begin + stored * time for begin, time in zip(late, row, strict=True)]
        end = sorted(done)[len(row) - stored]
        for w, time in enumerate(row):
            until = late[w]  # who still ends a chunk of the step before begins none
            if late[w] < end:
                begun = math.floor((end - late[w]) / time * chunks) + 1
                until = min(late[w] + begun * time / chunks, done[w])
            late[w] = max(until - end, 0.0)
        ends.append(end)
    return ends


@pytest.mark.slow
def test_a_worker_first_ends_its_chunk_and_does_whole_passes():
    times = np.random.default_rng(0).gamma(2.0, 0.5, (30, 4)) + 0.2
    steps = Steps(
        times,
        np.ones((30, 4, 1)),
        np.zeros((30, 4, 0)),
        np.zeros((30, 4)),
        forward=0.47,
    )
    first = np.arange(30) < 15
    outcome = code_of("tandon:1").plan_on(steps, first).replay(steps, ~first)
    np.testing.assert_allclose(
        outcome.seconds, one_level(times[15:].tolist(), 2), rtol=1e-9
    )
    assert outcome.choice == (2.0,)


def test_what_has_no_plan_is_refused():
    for method in ("limit", "sharing:2", "backup:1", "drop"):
        with pytest.raises(ValueError, match="not planned on measured steps"):
            code_of(method)

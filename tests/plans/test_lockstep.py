"""Work sharing in many steps at once, against one step at a time in plain Python."""

import numpy as np
import pytest

from bcgc_jax.measured.causes import Parts
from bcgc_jax.measured.remedies import sharing
from bcgc_jax.plans.chunk_tables import UNITS, chunk_sizes, chunk_tables
from bcgc_jax.plans.lockstep import Chunks, handed_out
from bcgc_jax.plans.storage import spread
from tests.oracles.sharing import shared


@pytest.mark.parametrize(
    ("workers", "stored", "chunks", "equal", "known"),
    [
        (5, 2, 3, False, False),
        (5, 3, 3, True, True),
        (6, 2, 4, False, True),
        (4, 4, 3, True, False),
    ],
)
def test_each_step_is_that_of_an_event_loop(workers, stored, chunks, equal, known):
    rng = np.random.default_rng(workers + chunks)
    sizes = chunk_sizes(chunks, equal=equal)
    storage = spread(workers, stored, len(sizes))
    steps, count = 6, workers * len(sizes)
    paces, lengths = (
        rng.uniform(0.5, 2, (steps, workers)),
        rng.gamma(2.0, 1.0, (steps, count)) + 0.1,
    )
    costs = lengths * rng.uniform(0.8, 1.2, lengths.shape) if known else None
    found = handed_out(
        chunk_tables(storage, sizes),
        Chunks(paces, lengths, np.zeros((steps, workers, 0)), costs),
        0.03,
    )
    for s, end in enumerate(found):
        cost = None if costs is None else costs[s]
        want = shared(
            storage.holders, sizes, [0.0] * workers, paces[s], 0.03, [lengths[s]] * workers, cost
        )
        assert end == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("known", [True, False])
def test_where_all_store_all_the_largest_that_is_left_is_next(known):
    rng = np.random.default_rng(3)
    shape = 5, 4, 3
    data = rng.gamma(2.0, 1.0, shape) + 0.1
    parts = Parts(
        rng.normal(0, 0.3, shape[:2]), rng.normal(0, 0.3, shape[:2]), data, rng.random(shape)
    )
    costs = data * rng.uniform(0.8, 1.2, shape) if known else None
    found = sharing(parts, 4, costs, round_trip=0.05).seconds
    sizes = chunk_sizes(3)
    for s, end in enumerate(found):
        left = [
            (
                -(1 if costs is None else costs[s, w, min(c, 2)]) * size / UNITS,
                c,
                w,
                data[s, w, min(c, 2)] * size / UNITS,
            )
            for w in range(4)
            for c, size in enumerate(sizes)
        ]
        free, done = np.zeros(4), [0] * 4
        for _, _, _, length in sorted(left):
            w = int(np.argmin(free))
            pause = parts.pauses[s, w, done[w]] if done[w] < 3 else 0.0
            free[w] += 0.05 + length * np.exp(parts.steady[s, w] + parts.random[s, w]) + pause
            done[w] += 1
        assert end == pytest.approx(free.max(), rel=1e-12)

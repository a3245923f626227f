"""Work sharing in many steps at once, against one step at a time by `Ledger` and
`Paces`.

With lengths it is held against what runs: tests/balancing/dispatch/test_promise.py.
"""

import numpy as np
import pytest

from bcgc_jax.balancing.asking import Asking
from bcgc_jax.balancing.chunk_lengths import chunk_sizes
from bcgc_jax.balancing.ledger import Ledger
from bcgc_jax.balancing.lockstep import Chunks, handed_out
from bcgc_jax.balancing.placement import chunk_tables, spread
from experiments.event_loop import driven


@pytest.mark.parametrize("at_once", [60, 2**18])
@pytest.mark.parametrize(
    ("workers", "stored", "chunks", "equal"),
    [(5, 2, 3, False), (5, 3, 3, True), (6, 2, 4, False), (4, 4, 3, True)],
)
def test_each_step_is_that_of_an_event_loop(
    monkeypatch, workers, stored, chunks, equal, at_once
):
    """Also where few steps are replayed at once, as in long logs."""
    monkeypatch.setattr("bcgc_jax.balancing.lockstep._AT_ONCE", at_once)
    rng = np.random.default_rng(workers + chunks)
    sizes = chunk_sizes(chunks, equal=equal)
    storage = spread(workers, stored, len(sizes))
    steps = 6
    paces = rng.uniform(0.5, 2, (steps, workers))
    lengths = rng.gamma(2.0, 1.0, (steps, workers * len(sizes))) + 0.1
    starts = rng.exponential(0.5, (steps, workers))
    asking = Asking(0.03)
    ends = handed_out(
        chunk_tables(storage, sizes),
        Chunks(paces, lengths, np.zeros((steps, workers, 0)), starts=starts),
        asking,
    )
    for s, end in enumerate(ends):
        ledger = Ledger(storage, [sizes] * workers)
        seconds = np.outer(paces[s], lengths[s])
        want = driven(ledger, seconds, starts[s], asking=asking).time
        assert end == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(("ticks", "end"), [(None, 5.0), ([1, 4, 1, 1], 4.0)])
def test_a_long_chunk_is_begun_early_where_its_length_is_known(ticks, end):
    """By hand: two workers of one pace store all; the second chunk of worker 0 takes 4
    s, others 1.

    By sizes each begins with its own first chunk, and worker 0 ends its long one at 1 +
    4. By lengths worker 0 begins with the long one, and worker 1 does the three others.
    """
    chunks = Chunks(
        paces=np.ones((1, 2)),
        lengths=np.array([[1.0, 4.0, 1.0, 1.0]]),
        pauses=np.zeros((1, 2, 0)),
        ticks=None if ticks is None else np.array([ticks]),
    )
    assert handed_out(chunk_tables(spread(2, 2, 2), (1, 1)), chunks).tolist() == [end]

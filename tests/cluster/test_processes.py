"""One training on real processes, with most of what master and workers do."""

import os
import signal
import time
from typing import Any

import numpy as np
import optax
import pytest

from bcgc_jax.cluster import Cluster, InjectedDelay, Told
from tests.cluster.training import ADAM, PROBLEM, N, case, trained


@pytest.mark.slow
@pytest.mark.smoke
def test_training_is_plain_gradient_descent_and_goes_on_from_a_checkpoint(tmp_path):
    params, data = case()
    folder, seen = tmp_path / "one", []
    options: Any = {
        "pace": InjectedDelay(PROBLEM.cycle_time, 1e-4),
        "checkpoints": folder,
    }

    def before(step, running):
        seen.append(step)
        if step == 8:
            os.kill(running.pids[2], signal.SIGKILL)
        if step == 10:
            running.resize(N - 1)

    options["before_step"] = before
    begin = time.monotonic()
    with Cluster(N, patience=1.0) as cluster:
        first_half = trained(cluster, Told(PROBLEM), params, data, 6, ADAM, **options)
        assert first_half.seconds.shape == first_half.paced.shape == (6,)
        assert np.all(first_half.seconds >= first_half.paced)
        assert first_half.seconds.sum() < time.monotonic() - begin
        second_half = trained(cluster, Told(PROBLEM), params, data, 12, ADAM, **options)
        assert (seen, second_half.first_step) == (list(range(12)), 6)
        assert [fault[1:3] for fault in second_half.faults] == [
            (2, "died"),
            (2, "replaced"),
        ]
        assert second_half.num_workers.tolist() == [N] * 4 + [N - 1] * 2
        cluster.resize(N)
        for steps, optimizer, words in (
            (11, ADAM, "of 12 iterations, more than the 11 asked for"),
            (13, optax.adam(1e-2), "made with another learning rate or optimiser"),
        ):
            with pytest.raises(ValueError, match=words):
                trained(
                    cluster, Told(PROBLEM), params, data, steps, optimizer, **options
                )

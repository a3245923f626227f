"""One training on real processes in the default tier: most of what master and workers do for each other."""

from typing import Any

import numpy as np
import optax
import pytest

from bcgc_jax.cluster import Cluster, InjectedDelay, Told
from tests.cluster.test_cluster import ADAM, PROBLEM, N, case, trained


def test_training_is_plain_gradient_descent_and_goes_on_from_a_checkpoint(tmp_path):
    params, data = case()
    folder, seen = tmp_path / "one", []
    more: Any = {"pace": InjectedDelay(PROBLEM.cycle_time, 1e-4), "checkpoints": folder}
    more["before_step"] = lambda step, _: seen.append(step)

    with Cluster(N, patience=1.0) as cluster:
        half = trained(cluster, Told(PROBLEM), params, data, 6, ADAM, **more)
        assert half.seconds.shape == half.paced.shape == (6,)
        assert np.all(half.seconds >= half.paced)
        rest = trained(cluster, Told(PROBLEM), params, data, 12, ADAM, **more)
        assert (seen, rest.first_step) == (list(range(12)), 6)
        for steps, optimizer, words in (
            (11, ADAM, "of 12 iterations, more than the 11 asked for"),
            (13, optax.adam(1e-2), "made with another learning rate or optimiser"),
        ):
            with pytest.raises(ValueError, match=words):
                trained(cluster, Told(PROBLEM), params, data, steps, optimizer, **more)

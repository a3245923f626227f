"""The simplex method for sums with limits, against HiGHS."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from bcgc_jax.solvers.packing import largest_sum


def test_no_sizes_within_the_limits_have_a_larger_sum(x64):
    """Also where rows are alike, a limit is 0, or a size does not exist."""
    rng = np.random.default_rng(0)
    rows, size, programs = 12, 5, 60
    weights = rng.exponential(size=(programs, rows, size))
    weights *= rng.random(weights.shape) < 0.6
    weights[:, 0] = rng.uniform(0.1, 1, (programs, size))  # so none is without a limit
    weights[:, 2] = weights[:, 1]
    limits = rng.exponential(size=(programs, rows))
    limits[:, 2] = limits[:, 1]
    limits[::7, 3] = 0
    exists = rng.random((programs, size)) < 0.8
    sizes = np.asarray(jax.jit(jax.vmap(largest_sum))(weights, limits, exists))
    assert np.all(sizes[~exists] == 0)
    # worst measured 4e-16
    assert np.all(np.einsum("prn,pn->pr", weights, sizes) <= limits + 1e-14)
    for program, x in enumerate(sizes):
        bounds = [(0, None if is_real else 0) for is_real in exists[program]]
        best = optimize.linprog(
            -np.ones(size), A_ub=weights[program], b_ub=limits[program], bounds=bounds
        )
        # worst measured 1e-15
        assert x.sum() == pytest.approx(-best.fun, rel=1e-12, abs=1e-14)


def test_a_batch_of_one_dtype_stays_in_it():
    sizes = largest_sum(
        jnp.ones((1, 2), jnp.float32), jnp.ones(1, jnp.float32), jnp.ones(2, bool)
    )
    assert sizes.dtype == jnp.float32
    assert float(sizes.sum()) == 1.0

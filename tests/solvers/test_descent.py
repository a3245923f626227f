"""The search over shares against minima that are known in closed form."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcgc_jax.solvers.descent import MAX_STEPS, quasi_newton_descent
from bcgc_jax.solvers.pattern import _shares


@pytest.mark.parametrize("kinked", [False, True])
def test_shares_of_many_scales_are_found_also_at_kinks(kinked, precision):
    """Σ w / u is least at u ∝ √w, and max w / u at u ∝ w."""
    weights = np.array([1.0, 3e-5, 5.0, 7e-3, 2e-4], precision)
    used = np.arange(5) != 2

    def function(share):
        terms = jnp.where(used, weights / jnp.where(used, share, 1), 0)
        return (jnp.max if kinked else jnp.sum)(terms), None

    search: dict[str, Any] = {"tolerance": 1e-4}
    if kinked:
        search = {"tolerance": 1e-6, "patience": 40}
    descend = functools.partial(quasi_newton_descent, function, used, **search)
    result = jax.jit(descend)(np.ones(5, precision))
    assert result.num_steps < MAX_STEPS
    best = np.where(used, weights if kinked else np.sqrt(weights), 0)
    assert float(result.value) == pytest.approx(
        best.sum() ** (1 if kinked else 2), rel=1e-5
    )
    # Worst measured 0.011.
    np.testing.assert_allclose(result.point, best / best.sum(), rtol=3e-2)


def test_a_share_below_a_millionth_is_none():
    shares = _shares(jnp.array([[0.8e-6, 0.5, 0.5], [1.3e-6, 0.5, 0.5]]))
    assert (shares[:, 0] > 0).tolist() == [False, True]

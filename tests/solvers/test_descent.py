"""The search over shares against minima that are known in closed form."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcgc_jax.solvers.descent import MAX_STEPS, _updated, quasi_newton_descent
from bcgc_jax.solvers.pattern import _points, _shares, moves, pattern_search


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


def test_a_search_ends_early_only_where_a_bound_says_that_it_is_in_vain():
    """Σ w / u is convex, and at least (Σ √w)²."""
    weights = np.array([1.0, 4.0, 9.0])

    def function(share):
        return jnp.sum(weights / share), None

    search = jax.jit(
        lambda start, least: quasi_newton_descent(
            function, start > 0, start, tolerance=1e-3, least=least
        )
    )
    whole, early, later = (search(np.ones(3), least) for least in (np.inf, 20.0, 36.01))
    assert later.point.tolist() == whole.point.tolist()
    assert float(whole.value) == pytest.approx(36, rel=1e-3)
    assert int(early.num_steps) < int(whole.num_steps)
    assert 20 <= float(early.value * (1 - early.aux.residual)) <= 36


def test_points_at_the_start_of_a_pattern_search_leave_no_hole():
    """Worst measured 0.067; 0.12 with half as many points."""
    points = _points(3)
    tried = np.random.default_rng(1).dirichlet(np.ones(3), 2000)
    distance = np.linalg.norm(tried[:, None] - points, axis=-1)
    assert distance.min(axis=1).max() < 0.09


@pytest.mark.slow
def test_moves_of_a_pattern_search_end_close_to_a_cusp(x64):
    middle = 0.1234567

    def function(share):
        return jnp.abs(share[0] - middle)

    result = pattern_search(
        function, jnp.full(2, 0.5), moves(np.array([1.0, 2.0])), max_steps=99
    )
    assert float(result.value) < 2e-5


def test_a_share_below_a_millionth_is_none():
    shares = _shares(jnp.array([[0.8e-6, 0.5, 0.5], [1.3e-6, 0.5, 0.5]]))
    assert (shares[:, 0] > 0).tolist() == [False, True]


def test_an_inverse_hessian_that_overflows_is_not_taken():
    inverse = _updated(jnp.eye(2), jnp.array([1e20, 0.0]), jnp.array([1e-22, 1e-22]))
    assert inverse.tolist() == [[1, 0], [0, 1]]

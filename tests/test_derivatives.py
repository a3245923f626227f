"""What has no derivative is NaN, and spoils nothing that has one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax._derivatives import with_slopes, without_derivative
from tests.problems import padded, slow


def _cost(rate: Any, x: Any) -> Any:
    return rate * (x - rate) ** 2 + rate**3


def _solved(rate: Any) -> dict[str, Any]:
    """The least of the cost, at x = rate, with the number of steps."""
    fields = without_derivative(
        {
            "x": jax.lax.stop_gradient(rate),
            "pair": jnp.full(2, rate),
            "steps": jnp.asarray(7),
        },
        rate,
    )
    return fields | {"value": with_slopes(_cost, None, rate, fields["x"])}


def _value(rate: Any) -> Any:
    return _solved(rate)["value"]


def _mapped(rates: Any) -> Any:
    return jax.lax.map(_solved, rates)["value"]


def _chosen(rate: Any) -> Any:
    return jax.lax.cond(rate > 0, _solved, _solved, rate)["value"]


RATES = jnp.array([0.5, 2.0])
WAYS: dict[str, Callable[[Any], Any]] = {
    "batch": jax.vmap(jax.grad(_value)),
    "forward": jax.vmap(jax.jacfwd(_value)),
    "of a batch": jax.grad(lambda rates: jnp.sum(jax.vmap(_solved)(rates)["value"])),
    "of a loop": jax.grad(lambda rates: jnp.sum(_mapped(rates))),
    "of a branch": jax.vmap(jax.grad(_chosen)),
    "computed again": jax.vmap(jax.grad(jax.checkpoint(_value))),
    "all outputs": lambda rates: jax.vmap(
        jax.jacrev(lambda r: (_value(r), _solved(r)["x"]))
    )(rates)[0],
}


@pytest.mark.parametrize("way", WAYS)
def test_the_value_of_an_optimum_has_the_slope_at_a_fixed_plan(way):
    np.testing.assert_allclose(jax.jit(WAYS[way])(RATES), 3 * RATES**2, rtol=1e-6)


@pytest.mark.parametrize("derivative", [jax.grad, jax.jacfwd, jax.hessian])
def test_what_a_search_has_found_has_none(derivative):
    def plan(rate):
        return _solved(rate)["pair"] @ jnp.array([1.0, -1.0])

    assert np.isnan(jax.jit(derivative(plan))(0.5))
    assert np.isnan(jax.jit(jax.vmap(derivative(plan)))(RATES)).all()


def test_nor_has_the_value_a_second_one():
    assert np.isnan(jax.jit(jax.hessian(_value))(0.5))


@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
def test_what_is_not_taken_spoils_no_second_derivative(outer):
    """A runtime is NaN, with NaN for its derivatives, where the problem makes no sense.

    The branch that is not taken has a cotangent of 0, and 0 times NaN is NaN.
    """

    def runtime(rate):
        unknown = without_derivative(jnp.full_like(rate, jnp.nan), rate)
        return jnp.where(rate > 0, rate**3, unknown)

    second = outer(jax.grad(runtime))
    assert float(second(2.0)) == 12.0
    assert np.isnan(second(-2.0))


# Closed forms and baselines, of which docs/api.md promises second derivatives.
_PROMISED = ("time", "uncoded", "tandon_partial", "backup")
_PROMISED_TOO = (
    *("frequency", "single_block", "tandon:2", "ferdinand_full", "ferdinand_half"),
    "backup:1",
)


@pytest.mark.parametrize("method", slow(*_PROMISED, *_PROMISED_TOO))
def test_second_derivatives_of_closed_forms_and_baselines_are_differences(x64, method):
    """In the logarithms of the rate and the shift: against first ones, and twice
    forward.
    """

    def runtime(logs):
        rate, shift = 1e-3 * jnp.exp(logs[0]), 500.0 * jnp.exp(logs[1])
        problem = padded(bcgc.ShiftedExponential(rate, shift), 6)
        return bcgc.solve(problem, method).expected_runtime

    slopes = jax.jit(jax.grad(runtime))
    origin = jnp.zeros(2)
    hessian = jax.jit(jax.hessian(runtime))(origin)
    step = 1e-4
    differences = [
        (slopes(origin + move) - slopes(origin - move)) / (2 * step)
        for move in step * np.eye(2)
    ]
    forward = jax.jit(jax.jacfwd(jax.jacfwd(runtime)))(origin)
    size = float(np.abs(hessian).max())
    np.testing.assert_allclose(hessian, np.stack(differences), rtol=0, atol=1e-8 * size)
    np.testing.assert_allclose(hessian, forward, rtol=0, atol=1e-12 * size)


def test_numbers_are_what_they_were():
    result = jax.jit(_solved)(0.5)
    assert (float(result["x"]), int(result["steps"]), float(result["value"])) == (
        0.5,
        7,
        0.125,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        bcgc.Ferdinand(4),  # ten workers have no 4 layers of 20,000 coordinates
        bcgc.Optimal(levels=[0, 2]),
        "limit",
    ],
)
def test_a_runtime_that_is_nan_has_nan_for_its_slope(method):
    """Of a scheme that does not exist, and of numbers that make no problem."""

    def runtime(rate, workers):
        law = bcgc.ShiftedExponential(rate, 50.0)
        problem = bcgc.Problem(law, workers, 20_000, 50, max_workers=10)
        return bcgc.solve(problem, method).expected_runtime

    value_and_slope = jax.jit(jax.vmap(jax.value_and_grad(runtime)))
    # an unknown number of workers may lack a level; a negative rate is none
    values, slopes = value_and_slope(
        jnp.array([1e-3, 1e-3, -1.0]), jnp.array([2, 10, 10])
    )
    assert np.array_equal(np.isnan(values), np.isnan(slopes))
    assert np.isnan(values[2])
    if method != "limit":
        assert np.isnan(values[0])


def test_functions_that_are_nan_have_nan_for_their_slopes():
    def times(scale):
        return bcgc.block_runtime(
            jnp.ones(2), jnp.array([1.0, 2.0]) * scale, num_samples=2.0
        )

    def limit(rate):
        return bcgc.solvers.runtime_limit(bcgc.Problem(bcgc.Exponential(rate), 3, 30))

    def ratio(rate):
        return bcgc.solvers.straggler_ratio(bcgc.ShiftedExponential(rate, 1.0))

    for function in (times, limit, ratio):
        value, slope = jax.value_and_grad(function)(-1.0)
        assert np.isnan(value)
        assert np.isnan(slope)
        assert np.all(np.isfinite(jax.value_and_grad(function)(1.0)))
    # a runtime of exponential times is one over the rate, times a constant; worst
    # measured 4e-7
    value, slope = jax.value_and_grad(limit)(1.0)
    assert float(slope) == pytest.approx(-float(value), rel=1e-5)

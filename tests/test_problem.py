"""`Problem`: what it refuses, what it derives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc

LAW = bcgc.Uniform(0.7, 2.1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("num_workers", v) for v in (0, -2, 2.5, np.nan, np.inf, "five")],
        *[("num_coordinates", v) for v in (0, -1, 10.5, np.nan, np.inf)],
        *[("num_samples", v) for v in (0, -3.0, np.nan, np.inf)],
        *[("cycles", v) for v in (0.0, -1.0, np.nan, np.inf)],
    ],
)
def test_a_number_that_makes_no_sense_is_refused_by_name(name, value):
    good = {"num_workers": 4, "num_coordinates": 9, "num_samples": 5, "cycles": 1.5}
    with pytest.raises(ValueError, match=name):
        bcgc.Problem(LAW, **(good | {name: value}))


def test_what_is_no_law_is_refused():
    with pytest.raises(ValueError, match="cycle_time must be a law"):
        bcgc.Problem(1.0, 4, 9)


def test_more_workers_than_the_static_maximum_are_refused():
    with pytest.raises(ValueError, match="exceeds max_workers 3"):
        bcgc.Problem(LAW, 4, 9, max_workers=3)


def test_traced_workers_need_a_static_maximum():
    with pytest.raises(ValueError, match="max_workers"):
        jax.jit(lambda n: bcgc.Problem(LAW, n, 9).scale)(3)


def test_more_coordinates_than_32_bits_hold_need_x64():
    with pytest.raises(ValueError, match="jax_enable_x64"):
        bcgc.Problem(LAW, 4, 3_000_000_000)
    with jax.enable_x64(True):
        assert bcgc.Problem(LAW, 4, 3_000_000_000).num_coordinates == 3_000_000_000


def test_the_scale_is_samples_times_cycles_over_workers(precision):
    problem = bcgc.Problem(LAW, 4, 9, 50, 1.5)
    assert float(problem.scale) == pytest.approx(50 * 1.5 / 4)
    assert problem.dtype == precision
    assert problem.exists.tolist() == [True] * 4


def test_float32_leaves_stay_float32_where_64_bits_are_enabled(x64):
    law = bcgc.Uniform(jnp.float32(0.7), jnp.float32(2.1))
    problem = bcgc.Problem(law, 4, 9)
    assert problem.dtype == jnp.float32
    assert bcgc.expected_runtime(problem, jnp.array([3, 2, 2, 2], jnp.float32)).dtype == jnp.float32


def test_a_batch_of_problems_has_the_largest_number_of_workers():
    assert bcgc.Problem(LAW, jnp.array([3, 7, 2]), 9).max_workers == 7

"""Results have the dtype of what they were computed from, whatever JAX takes by default."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax import partitions
from bcgc_jax._pytree import working_dtype
from bcgc_jax.laws import JointLaw, Law
from bcgc_jax.measured.resampling import bootstrap_interval, resampled_means
from tests.problems import NAMES

Number = Callable[[Any], Any]
KEY: Any = np.array([0, 1], np.uint32)


def _power_hazard(p, t):
    return (t / p) ** 2


def _power_inverse(p, a):
    return p * a**0.5


# Laws whose numbers are what `number` makes of them.
LAWS: dict[str, Callable[[Number], Law | JointLaw]] = {
    "ShiftedExponential": lambda number: bcgc.ShiftedExponential(number(2.0), number(0.5)),
    "Exponential": lambda number: bcgc.Exponential(number(2.0)),
    "Deterministic": lambda number: bcgc.Deterministic(number(2.0)),
    "Weibull": lambda number: bcgc.Weibull(number(2.0), number(1.5), number(0.5)),
    "Pareto": lambda number: bcgc.Pareto(number(1.0), number(2.5)),
    "Uniform": lambda number: bcgc.Uniform(number(1.0), number(3.0)),
    "Lognormal": lambda number: bcgc.Lognormal(number(0.2), number(0.5), number(0.1)),
    "Gamma": lambda number: bcgc.Gamma(number(2.5), number(1.5), number(0.4)),
    "FromHazard": lambda number: bcgc.FromHazard(_power_hazard, _power_inverse, number(2.0)),
    "TwoSpeed": lambda number: bcgc.TwoSpeed(number(1.0), number(5.0), number(0.2)),
    "Empirical": lambda number: bcgc.Empirical(number([1.0, 2.0, 5.0])),
    "Pairs": lambda number: bcgc.Pairs(number([3.0, 0.0, 7.0]), number([1.0, 2.0, 5.0])),
    "HazardSpline": lambda number: bcgc.HazardSpline(
        jnp.asarray(number([0.0, 0.5, 1.0])),
        jnp.asarray(number([1.0, 2.0, 3.0])),
        jnp.asarray(number([2.0, 2.0, 2.0])),
        number(0.1),
    ),
    "Rows": lambda number: bcgc.Rows(number([[1.0, 2.0, 4.0], [3.0, 4.0, 2.0]])),
    "Unlike": lambda number: bcgc.Unlike(
        [bcgc.Uniform(number(1.0), number(4.0))] * 2 + [bcgc.Pareto(number(1.0), number(3.0))]
    ),
}
JOINT, ATOMIC = ("Rows", "Unlike"), ("Deterministic", "TwoSpeed", "Empirical", "Pairs")


def _of_one(method: Callable[[Any, Any], Any]) -> Callable[[str], Callable[[Number], Any]]:
    return lambda name: lambda number: method(LAWS[name](number), number)


METHODS: dict[str, Callable[[Any, Any], Any]] = {
    "mean": lambda law, number: law.mean(),
    "infimum": lambda law, number: law.infimum(),
    "sample": lambda law, number: law.sample(KEY, (2, 3)),
    "sorted_cycle_times": lambda law, number: bcgc.sorted_cycle_times(KEY, law, 3, 2),
}
OF_ONE_TIME: dict[str, Callable[[Any, Any], Any]] = {
    "cumulative_hazard": lambda law, number: law.cumulative_hazard(number(1.5)),
    "inverse_cumulative_hazard": lambda law, number: law.inverse_cumulative_hazard(number(1.5)),
    "fast inverse": lambda law, number: law.with_fast_inverse().inverse_cumulative_hazard(number(1.5)),
    "cdf": lambda law, number: law.cdf(number(1.5)),
    "survival": lambda law, number: law.survival(number(1.5)),
    "log_density": lambda law, number: law.log_density(number(1.5)),
}
EXACT: dict[str, Callable[[Any, Any], Any]] = {
    "expected_order_statistics": lambda law, number: bcgc.expected_order_statistics(law, 3),
    "straggler_ratio": lambda law, number: bcgc.straggler_ratio(law),
    "runtime_limit": lambda law, number: bcgc.runtime_limit(_problem(law, number)),
    "integrate_runtime": lambda law, number: bcgc.integrate_runtime(_problem(law, number), [1, 2, 7]),
    "completion_probability": lambda law, number: bcgc.completion_probability(
        _problem(law, number), [1, 2, 7], number([9.0, 10.0])
    ),
    "certificate": lambda law, number: bcgc.certificate(_problem(law, number), [1, 2, 7]),
}


def _problem(law: Any, number: Number, **more: Any) -> bcgc.Problem:
    return bcgc.Problem(law, 3, 10, number(2.0), number(1.0), **more)


def _exponential(number: Number, **more: Any) -> bcgc.Problem:
    return _problem(LAWS["ShiftedExponential"](number), number, **more)


OF_A_NUMBER: dict[str, Callable[[Any, Any], Any]] = {
    "cdf of a number": lambda law, number: law.cdf(1.5),
    "quantile of a number": lambda law, number: law.inverse_cumulative_hazard(1.5),
}
CALLS: dict[str, Callable[[Number], Any]] = {
    f"{name} {law}": _of_one(method)(law)
    for names, methods in (
        (LAWS, METHODS),
        ([name for name in LAWS if name not in JOINT], OF_ONE_TIME | OF_A_NUMBER),
        ([name for name in LAWS if name != "Unlike"], EXACT),
    )
    for law in names
    for name, method in methods.items()
    if not (name == "log_density" and law in ATOMIC)
}
METHODS_OF_SOLVE = (
    *("optimal", "subgradient", "time", "frequency", "uncoded", "single_block", "tandon:1"),
    *("tandon_partial", "ferdinand_full", "ferdinand_half", "ferdinand:4", "limit"),
    *("cyclic:2", "groups:3", "alternating:2:2", "backup:1", "sharing:2", "credit:2"),
)


def _solved(method: str, number: Number) -> bcgc.Solution:
    asked = bcgc.Subgradient(max_steps=100) if method == "subgradient" else method
    return bcgc.solve(_exponential(number), asked, key=KEY)


CALLS |= {
    "block_runtime": lambda number: bcgc.block_runtime(
        number([3.0, 2.0, 5.0]), number([1.0, 4.0, 2.0]), num_samples=2, setup_cycles=number(0.5)
    ),
    "block_runtime of whole numbers": lambda number: bcgc.block_runtime(
        [3, 2, 5], number([1.0, 4.0, 2.0]), cycles=2.0
    ),
    "block_runtime of workers that start up and send": lambda number: bcgc.block_runtime(
        [3, 2, 5], [1, 4, 2], start_ups=number([2.0, 0.0, 3.0]), send_time=0.5, overlap=True
    ),
    "coordinate_runtime": lambda number: bcgc.coordinate_runtime(
        np.array([0, 1, 2]), number([1.0, 4.0, 2.0]), unit_costs=number([1.0, 2.0, 0.5])
    ),
    "expected_runtime": lambda number: bcgc.expected_runtime(_exponential(number), number([3.0, 2.0, 5.0])),
    "expected_runtime with setup": lambda number: bcgc.expected_runtime(
        _exponential(number, setup_cycles=1.0), number([3.0, 2.0, 5.0])
    ),
    **{
        f"{name} of workers that start up and send": functools.partial(
            lambda of, number: of(
                _exponential(
                    number,
                    start_up=bcgc.Weibull(number(3.0), number(0.7), number(0.4)),
                    send_time=number(0.5),
                    chain_cycles=number(0.2),
                ),
                number([3.0, 2.0, 5.0]),
            ),
            of,
        )
        for name, of in {
            "certificate": bcgc.certificate,
            "completion_probability": lambda p, x: bcgc.completion_probability(p, x, 9.0),
            "simulate_runtime": lambda p, x: bcgc.simulate_runtime(KEY, p, x, 8),
            "solve": lambda p, x: bcgc.solve(p),
        }.items()
    },
    "expected_runtime of units": lambda number: bcgc.expected_runtime(
        bcgc.Problem(LAWS["Weibull"](number), 3, 3, unit_costs=[2.0, 1.0, 0.5]), [2.0, 1.0, 0.5]
    ),
    "simulate_runtime": lambda number: bcgc.simulate_runtime(
        KEY, _exponential(number), number([3.0, 2.0, 5.0]), 8
    ),
    "cumulative_load": lambda number: bcgc.partitions.cumulative_load(jnp.asarray(number([3.0, 2.0, 5.0]))),
    "finish_load": lambda number: partitions.finish_load(
        jnp.asarray(number([3.0, 2.0, 5.0])), np.array([True, False, True]), 0.5
    ),
    "project_partition": lambda number: bcgc.partitions.project_partition(
        jnp.asarray(number([3.0, 2.0, 5.0])), 4.0, 2
    ),
    "cost_of_units": lambda number: partitions.cost_of_units(
        np.array([1, 2, 0]), jnp.asarray(number([3.0, 2.0, 5.0]))
    ),
    "smooth_empirical": lambda number: bcgc.measured.smooth_empirical(
        number(np.random.default_rng(0).gamma(2.0, 1.0, 100).tolist()), pareto_tail=True
    ),
    "resampled_means": lambda number: resampled_means(
        KEY, jnp.asarray(number([3.0, 2.0, 5.0])), num_replicates=7
    ),
    "bootstrap_interval": lambda number: bootstrap_interval(
        KEY, _problem(LAWS["Rows"](number), number), [1, 2, 7], num_replicates=20
    ),
    **{f"solve {method}": functools.partial(_solved, method) for method in METHODS_OF_SOLVE},
    "solve to a deadline": lambda number: bcgc.solve(_exponential(number), bcgc.Deadline(number(20.0))),
    "solve for unlike workers": lambda number: bcgc.solve(
        _problem(LAWS["Unlike"](number), number), "time", key=KEY, num_draws=8, num_replications=4
    ),
    "solve for rows": lambda number: bcgc.solve(_problem(LAWS["Rows"](number), number)),
}
# Measured on the host or in text, of whole numbers, of the dtype of the gradients: nothing to follow.
WITHOUT_NUMBERS = {
    *("Law", "Problem", "Solution", "Status", "Trace", "load_trace", "Description", "describe", "Fit"),
    *("fit_start_up", "StartUpFit"),
    *(
        "fit_laws",
        "grid",
        "Sweep",
        "sweep",
        "write_sweep",
        "Scheme",
        "Certificate",
        "Expectation",
        "RuntimeEstimate",
        "Parts",
        "CodedGradient",
        "Training",
        "compare",
        "Comparison",
        "CompletionBound",
        "completion_bound",
        "Optimal",
        "Deadline",
        "Subgradient",
        "TandonPartial",
        "Tandon",
        "Ferdinand",
        "Cyclic",
        "Groups",
        "Alternating",
        "Backup",
        "Sharing",
        "Credit",
        "Schedule",
        "Needs",
        "levels_from_partition",
    ),
    *("partition_from_levels", "allocate", "gradient_code", "GradientCode"),
    *("conditioning", "decoding_weights", "encode", "decode", "CodingPlan", "coding_plan"),
    *("coded_value_and_grad", "backward_order", "unit_sizes", "split_batch", "shard_subsets"),
    *("TrainingScheme", "training_scheme", "train", "SchedulePlan", "schedule_plan"),
}


def test_every_public_name_is_called_or_has_no_numbers_of_its_own():
    called = {name.split()[0] for name in CALLS} | set(LAWS)
    assert WITHOUT_NUMBERS | (called & NAMES) == NAMES
    assert not WITHOUT_NUMBERS & called


def _found(name: str, number: Number) -> set[str]:
    """The dtypes of the floating results; nothing is compiled where nothing needs to be."""
    call = CALLS[name]
    if name.startswith(("smooth_empirical", "bootstrap_interval", "block", "coordinate")):
        leaves = jax.tree.leaves(call(number))
    else:
        leaves = jax.tree.leaves(jax.eval_shape(lambda: call(number)))
    return {
        str(a.dtype)
        for a in leaves
        if not isinstance(a, float | int) and jnp.issubdtype(a.dtype, jnp.floating)
    }


def _python(value: Any) -> Any:
    return value


def _single(value: Any) -> jax.Array:
    return jnp.asarray(value, jnp.float32)


@pytest.mark.parametrize("name", CALLS)
def test_single_precision_stays_single_where_64_bits_are_enabled(name, x64):
    assert _found(name, _single) == {"float32"}


@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith("solve ")])
def test_numbers_of_python_have_the_default_precision(name, precision):
    assert _found(name, _python) == {precision.name}


def test_arrays_of_numpy_count_like_those_of_jax(x64):
    single = np.array([1.0, 2.0, 5.0], np.float32)
    for law in (bcgc.Empirical(single), bcgc.Rows(single[None])):
        chex.assert_type(law.times, jnp.float32)
    problem = bcgc.Problem(bcgc.Uniform(1.0, 2.0), 3, 3, unit_costs=single)
    assert problem.dtype == problem.total.dtype == jnp.float32


def test_the_numbers_of_a_problem_are_weak_beside_a_partition(x64):
    problem = bcgc.Problem(bcgc.ShiftedExponential(2.0, 0.5), 3, 10, 2.0)
    x = jnp.array([3.0, 2.0, 5.0], jnp.float32)
    results = (
        bcgc.expected_runtime(problem, x),
        bcgc.certificate(problem, x),
        bcgc.completion_probability(problem, x, 10.0),
        bcgc.simulate_runtime(jax.random.key(0), problem, x, 8),
    )
    chex.assert_type(jax.tree.leaves(results), jnp.float32)
    chex.assert_type(bcgc.expected_runtime(problem, x.astype(float)), jnp.float64)
    wide = bcgc.Problem(bcgc.ShiftedExponential(jnp.float64(2.0), 0.5), 3, 10, 2.0)
    chex.assert_type(bcgc.expected_runtime(wide, x), jnp.float64)


@pytest.mark.parametrize(
    "name", [name for name in LAWS if name not in ("HazardSpline", *JOINT, "Empirical", "Pairs")]
)
def test_the_numbers_of_a_law_are_weak_beside_a_time(name, x64):
    law = LAWS[name](_python)
    t = jnp.float32(1.5)
    for what, method in OF_ONE_TIME.items():
        # No density; a table.
        if not (what == "log_density" and name in ATOMIC) and (what, name) != ("fast inverse", "Gamma"):
            assert jax.eval_shape(lambda law, method=method: method(law, lambda _: t), law).dtype == t.dtype


def test_a_dtype_that_is_asked_for_is_given(x64):
    law = LAWS["ShiftedExponential"](_single)
    key = jax.random.key(0)
    for dtype in (jnp.float32, jnp.float64):
        chex.assert_type(law.sample(key, (3,), dtype), dtype)
        chex.assert_type(LAWS["Rows"](_single).sample(key, (2, 3), dtype), dtype)
        chex.assert_type(bcgc.sorted_cycle_times(key, law, 3, 2, dtype=dtype), dtype)


@pytest.mark.parametrize(
    ("trees", "wide"),
    [
        ((), True),
        ((1.0, 2), True),
        (([1.0, np.arange(3)],), True),
        ((jnp.float32(1.0), 2.0, np.int64(3)), False),
        ((np.ones(2, np.float32), [2.0, 3]), False),
        ((np.float16(1.0), 2.0), False),
        ((np.float32(1.0), np.float64(2.0)), True),
    ],
)
def test_the_working_dtype_is_that_of_the_widest_array(trees, wide, precision):
    assert working_dtype(*trees) == (precision if wide else np.float32)

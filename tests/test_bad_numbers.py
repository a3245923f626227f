"""What makes no problem: refused by name where known, INVALID and NaN where traced."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax._pytree import check_shape
from bcgc_jax.traces.resampling import bootstrap_interval
from tests.problems import slow
from tests.registry import OF_A_PARTITION

LAW = bcgc.ShiftedExponential(rate=0.5, shift=1.5)
PROBLEM = bcgc.Problem(LAW, 3, 300, 2.0, 1.5)
X = np.array([120.0, 80.0, 100.0])
MEASURED = bcgc.Problem(bcgc.EmpiricalRows(X[None]), 3, 300)
KEY = jax.random.key(5)

each_function = pytest.mark.parametrize("name", OF_A_PARTITION)


@each_function
@pytest.mark.parametrize(
    ("partition", "message"),
    [
        ([200.0, -100.0, 200.0], r"partition must be >= 0, .* got -100"),
        (
            [0.4, 0.3, 0.3],
            r"partition must sum to 300, num_coordinates, got 1. Multiply fractions",
        ),
        (np.array([np.nan, 1.0, 2.0]), "partition must be finite, got nan"),
        ([1.0, 2.0, 3.0, 4.0], r"partition must have shape \(3,\), .*got \(4,\).*vmap"),
        (
            np.full((2, 3), 100.0),
            r"partition must have shape \(3,\), .*got \(2, 3\).*vmap",
        ),
    ],
)
def test_what_is_known_to_be_no_partition_is_refused(name, partition, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        OF_A_PARTITION[name](PROBLEM, partition)


@each_function
def test_levels_that_the_workers_do_not_have_are_refused(name):
    problem = bcgc.Problem(LAW, 2, 300, max_workers=3)
    with pytest.raises(
        ValueError, match=r"^partition must be 0 from level 2 on, because 2 workers"
    ):
        OF_A_PARTITION[name](problem, X)


def test_units_and_what_rows_are_resampled_for_must_be_partitions_too():
    problem = bcgc.Problem(LAW, 3, 4, unit_costs=[10.0, 20.0, 30.0, 40.0])
    with pytest.raises(
        ValueError, match="partition must sum to 100, the sum of unit_costs, got 4"
    ):
        bcgc.expected_runtime(problem, [2, 1, 1])
    with pytest.raises(ValueError, match="partition must sum to 300"):
        bootstrap_interval(KEY, MEASURED, [1.0, 2.0, 3.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_rounding_of_a_sum_is_no_fault(dtype, x64):
    def runtimes(x):
        return bcgc.simulate_runtime(KEY, PROBLEM, np.asarray(x, dtype), 8, unit=None)

    # A thousandth, for numbers typed by hand and steps of differences; and what a
    # projection leaves behind.
    for x in (
        X * (1 + 9e-4),
        np.round(X / 7, 2) * 7,
        X + np.array([0.1, -0.1, -0.2]),
        [0.0, -2e-3, 300.0],
    ):
        assert np.isfinite(runtimes(x).mean)
    with pytest.raises(ValueError, match="must be >= 0"):
        runtimes([0.0, -5e-3, 300.0])
    with pytest.raises(ValueError, match="must sum"):
        runtimes(X * (1 + 1.5e-3))


def test_a_traced_partition_may_leave_the_simplex_for_the_runtime_is_homogeneous(x64):
    runtime = jax.jit(bcgc.expected_runtime)
    np.testing.assert_allclose(
        runtime(PROBLEM, 2 * X), 2 * runtime(PROBLEM, X), rtol=1e-9
    )


def _of_levels(levels, costs=1.0):
    return bcgc.coordinate_runtime(levels, np.ones((3, 3)), unit_costs=costs)


REFUSED: list[tuple[Callable[..., Any], tuple[Any, ...], str]] = [
    (
        bcgc.block_runtime,
        ([1.0], [[0.1, 0.2, 0.3]]),
        r"partition must have shape \(\.\.\., 3\), got \(1,\)",
    ),
    (
        bcgc.block_runtime,
        ([1, 1, 1], [0.3]),
        r"partition must have shape \(\.\.\., 1\), got \(3,\)",
    ),
    (
        bcgc.block_runtime,
        ([1, -1, 1], [0.3, 0.2, 0.5]),
        "partition must be finite and >= 0, got -1",
    ),
    (
        bcgc.block_runtime,
        ([1.0, 2.0], [0.3, -0.1]),
        "cycle_times must be >= 0, got -0.1",
    ),
    (bcgc.block_runtime, ([1.0], 0.3), r"cycle_times must have .*got .*\(\)"),
    (
        _of_levels,
        ([0, 1], np.array([1, 1e-39], np.float32)),
        "unit_costs must be 0 or at least 1.18e-38, the",
    ),
    (_of_levels, ([0, 1], [1.0, -2.0]), "unit_costs must be finite and > 0, got -2"),
    (_of_levels, ([-1, 0],), "levels must be from 0 to 2, .* got -1 to 0"),
    (_of_levels, ([0, 3],), "levels must be from 0 to 2, .* got 0 to 3"),
    (_of_levels, ([0.0, 1.0],), "levels must be an array of integers"),
    (_of_levels, (1,), "levels must be an array of integers"),
    (
        _of_levels,
        ([0, 1], [1.0, 2.0, 3.0]),
        r"unit_costs must have shape \(\.\.\., 2\), got \(3,\)",
    ),
    (
        bcgc.levels_from_partition,
        ([2, -1, 2],),
        "partition must be finite and >= 0, got -1",
    ),
    (
        bcgc.partition_from_levels,
        ([0, 3], 3),
        "levels must be from 0 to 2, .* got 0 to 3",
    ),
    (
        bcgc.partition_from_levels,
        ([-1, 3],),
        "levels must be from 0 to 3, .* got -1 to 3",
    ),
    (
        bcgc.certificate,
        (PROBLEM, X, np.array([0, 1])),
        r"levels must have shape \(3,\), got \(2,\); pass True",
    ),
]


@pytest.mark.parametrize(("call", "arguments", "message"), REFUSED)
def test_what_is_no_partition_no_time_and_no_level_is_refused_by_name(
    call, arguments, message
):
    with pytest.raises(ValueError, match=message):
        call(*arguments)


NO_RUNTIME = {"num_samples": 0.0, "cycles": -1.0, "setup_cycles": np.nan}
NO_RUNTIME |= {"chain_cycles": -0.5, "send_time": -0.1, "start_ups": -2.0}


@pytest.mark.parametrize(("name", "value"), NO_RUNTIME.items())
def test_numbers_that_make_no_runtime_are_refused_or_give_nan(name, value):
    times = np.array([0.3, np.inf, 0.5])  # a worker that never answers
    runtimes = [lambda v: bcgc.block_runtime([0.0, 1.0, 2.0], times, **{name: v})]
    if name in ("num_samples", "cycles"):
        runtimes.append(
            lambda v: bcgc.coordinate_runtime([1, 1, 2], times, **{name: v})
        )
    for runtime in runtimes:
        with pytest.raises(ValueError, match=f"{name} must be (finite and )?>"):
            runtime(value)
        assert np.isnan(jax.jit(runtime)(value))
        assert np.isnan(jax.jit(runtime)(1e-39))
        assert np.isfinite(jax.jit(runtime)(1.0))


def test_what_is_traced_and_no_level_or_no_partition_has_no_runtime():
    times = np.array([0.3, 0.2, 0.5])
    bad_levels, bad_partitions = (
        [[-1, 0], [0, 3], [0, 2]],
        [[1.0, -1, 1], [np.nan, 1, 1], [1, 0, 1]],
    )
    for runtime, bad in (
        (bcgc.coordinate_runtime, bad_levels),
        (bcgc.block_runtime, bad_partitions),
    ):
        runtimes = jax.jit(jax.vmap(runtime, (0, None)))(np.array(bad), times)
        assert np.isnan(runtimes).tolist() == [True, True, False]
    assert np.isnan(jax.jit(lambda t: bcgc.block_runtime([1.0, 1.0, 1.0], t))(-times))
    assert np.isnan(
        jax.jit(lambda c: bcgc.coordinate_runtime([0, 1], times, unit_costs=c))(
            -times[:2]
        )
    )
    levels = jax.jit(lambda x: bcgc.levels_from_partition(x, 4))(np.array([2, -1, 3]))
    counts = jax.jit(lambda s: bcgc.partition_from_levels(s, 3))(
        np.array([0, -1, 2, 3])
    )
    assert {*levels.tolist(), *counts.tolist()} == {-1}


HAZARD = bcgc.FromHazard(lambda p, t: p * t, lambda p, a: a / p, np.ones(2))
BATCHES: dict[str, Any] = {
    "rate of ShiftedExponential must be one number, got shape": bcgc.ShiftedExponential(
        np.ones(3), 0.5
    ),
    "times of Empirical must be an array of rank 1": bcgc.Empirical([1.0, 2.0]),
    "times of EmpiricalRows must be an array of rank 2": bcgc.EmpiricalRows(
        np.ones((2, 4, 3))
    ),
    "parameters of FromHazard must be one number": HAZARD,
    "low of Uniform must be one number": bcgc.Heterogeneous(
        [LAW, bcgc.Uniform(np.ones(2), 2.0), LAW]
    ),
    "num_workers must have shape": {"num_workers": np.array([2, 3])},
    "setup_cycles must have shape": {"setup_cycles": np.ones(2)},
    "unit_costs must have shape": {
        "num_coordinates": 3,
        "unit_costs": np.full((2, 3), 100.0),
    },
}


@pytest.mark.parametrize("message", BATCHES)
def test_a_batch_is_told_to_go_through_vmap(message):
    batch, numbers = (
        BATCHES[message],
        {"cycle_time": LAW, "num_workers": 3, "num_coordinates": 300},
    )
    problem = bcgc.Problem(
        **numbers | (batch if isinstance(batch, dict) else {"cycle_time": batch})
    )
    if "Empirical" in message:
        problem = jax.tree.map(
            lambda leaf: np.stack([leaf] * 2) if np.ndim(leaf) else leaf, problem
        )
    calls = {
        **OF_A_PARTITION,
        "solve": lambda problem, _: bcgc.solve(problem, "time", key=KEY),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=f"{message}.*jax.vmap"):
            call(problem, X)


def test_a_law_of_arrays_is_one_law():
    power = bcgc.FromHazard(
        lambda p, t: p[0] * t ** p[1],
        lambda p, a: (a / p[0]) ** (1 / p[1]),
        jnp.array([0.3, 2.0]),
    )
    problems = [
        bcgc.Problem(law, 3, 300) for law in (power, bcgc.Weibull(0.3**-0.5, 2.0))
    ]
    times = np.array([150.0, 250.0])
    by_hazard, expected = (
        bcgc.completion_probability(problem, X, times) for problem in problems
    )
    np.testing.assert_allclose(by_hazard, expected, rtol=1e-5)
    assert 0.1 < expected[0] < expected[1] < 0.9


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((), r"\(\)"),
        ((2,), r"\(2,\)"),
        ((None, 3), r"\(\*, 3\)"),
        ((..., 3), r"\(\.\.\., 3\)"),
    ],
)
def test_a_shape_is_refused_in_words(shape, text):
    with pytest.raises(
        ValueError, match=rf"^depth must have shape {text}, got \(3, 2\); turn it$"
    ):
        check_shape("depth", np.ones((3, 2)), shape, "turn it")
    jax.eval_shape(lambda: check_shape("depth", jnp.ones((2, 3)), (2, ...), "turn it"))


KEYED: dict[str, Callable[[Any], Any]] = {
    "solve": lambda key: bcgc.solve(PROBLEM, "time", key=key),
    "compare": lambda key: bcgc.compare(PROBLEM, "time", key=key),
    "simulate_runtime": lambda key: bcgc.simulate_runtime(key, PROBLEM, X, 10),
    "sorted_cycle_times": lambda key: bcgc.sorted_cycle_times(key, LAW, 3, 10),
    "sample": lambda key: LAW.sample(key, (2,)),
    "rows": lambda key: bcgc.EmpiricalRows([[1.0, 2.0]]).draw_rows(key, 3),
    "unlike": lambda key: bcgc.Heterogeneous([LAW]).sample(key, (1,)),
    "Sweep": lambda key: bcgc.sweeps.Sweep(
        lambda **_: PROBLEM, {"num_workers": X}, "time", key=key
    ),
    "fit_distributions": lambda key: bcgc.traces.fit_distributions(key, X),
    "bootstrap_interval": lambda key: bootstrap_interval(key, MEASURED, X),
    "gradient_code": lambda key: bcgc.coding.gradient_code(key, 4, 1),
    "coding_plan": lambda key: bcgc.coding.coding_plan(key, X, [1, 2, 0]),
}


@pytest.mark.parametrize("name", KEYED)
def test_what_is_no_key_is_refused_by_name(name):
    for key in (0, np.arange(2), jax.random.split(KEY)):
        with pytest.raises(
            ValueError,
            match=r"key must be a single PRNG key, such as jax.random.key\(0\)",
        ):
            KEYED[name](key)


def test_how_many_draws_is_a_whole_number_that_is_known():
    for count in (0, -1, 1e4, True):
        wrong: Any = count
        for call in (
            lambda n: bcgc.simulate_runtime(KEY, PROBLEM, X, n),
            lambda n: bcgc.sorted_cycle_times(KEY, LAW, 3, n),
            lambda n: bcgc.solve(PROBLEM, "time", num_draws=n),
        ):
            with pytest.raises(ValueError, match=r"must be an integer >= [12]"):
                call(wrong)


GOOD: dict[str, float] = {"num_workers": 3, "rate": 0.5, "shift": 1.5}
GOOD |= {"num_coordinates": 300, "num_samples": 2.0, "cycles": 1.5}


def _columns(good: dict[str, float], *bad: tuple[str, float]) -> dict[str, np.ndarray]:
    """What is good, then each change of it."""
    return {
        name: np.array([value, *(b if name == n else value for n, b in bad)])
        for name, value in good.items()
    }


COLUMNS = _columns(
    GOOD,
    *(
        ("num_workers", 4),
        ("num_workers", 0),
        ("rate", -0.5),
        ("rate", np.nan),
        ("shift", -1.5),
    ),
    *(
        ("num_coordinates", 0),
        ("num_coordinates", 300.5),
        ("num_samples", -2.0),
        ("cycles", np.inf),
    ),
    # Below the smallest normal number, which arithmetic may make 0 of.
    *((name, 1e-39) for name in ("num_samples", "cycles", "rate", "shift")),
)


def _problem_of(numbers: dict[str, Any]) -> bcgc.Problem:
    numbers = dict(numbers)
    law = bcgc.ShiftedExponential(numbers.pop("rate"), numbers.pop("shift"))
    return bcgc.Problem(law, max_workers=3, **numbers)


def _only_the_first_is_finite(tree: Any) -> None:
    chex.assert_tree_all_finite(jax.tree.map(lambda a: a[0], tree))
    for value in jax.tree.leaves(tree):
        assert np.isnan(value[1:]).all()


@pytest.mark.slow
def test_runtimes_of_traced_numbers_that_make_no_problem_are_nan():
    """Run all in one program, which is smaller than one for each."""
    calls = {
        **OF_A_PARTITION,
        "limit": lambda problem, _: bcgc.solvers.runtime_limit(problem),
    }

    @jax.jit
    @jax.vmap
    def runtimes(numbers):
        return {name: call(_problem_of(numbers), X) for name, call in calls.items()}

    results = runtimes(COLUMNS)
    results["certificate"] = results["certificate"]._replace(
        lower_bound=results["expected_runtime"]
    )
    for result in results.values():
        _only_the_first_is_finite(result)


def test_numbers_whose_product_is_no_normal_number_make_no_problem():
    valid = jax.jit(
        lambda samples, cycles: bcgc.Problem(LAW, 3, 300, samples, cycles).valid
    )
    assert [bool(valid(1e-20, cycles)) for cycles in (1e-22, 1e-10)] == [False, True]


def test_times_and_moments_of_traced_numbers_that_make_no_law_are_nan():
    def times(num_workers, rate, shift):
        law, options = (
            bcgc.ShiftedExponential(rate, shift),
            {"num_workers": num_workers, "max_workers": 3},
        )
        return (
            bcgc.sorted_cycle_times(KEY, law, num_draws=4, **options),
            bcgc.plans.expected_order_statistics(law, **options),
            bcgc.plans.expected_order_statistics(law, function=jnp.sqrt, **options),
        )

    columns = (COLUMNS[name][:6] for name in ("num_workers", "rate", "shift"))
    _only_the_first_is_finite(jax.jit(jax.vmap(times))(*columns))
    ratio = jax.jit(
        jax.vmap(
            lambda rate: bcgc.solvers.straggler_ratio(bcgc.ShiftedExponential(rate))
        )
    )
    assert np.isnan(ratio(np.array([0.5, -0.5, 0.0, np.nan]))).tolist() == [
        False,
        True,
        True,
        True,
    ]


@pytest.mark.slow
def test_workers_of_traced_numbers_that_are_none_have_no_runtime():
    bad = [
        ("scale", -3.0),
        ("scale", np.nan),
        ("send_time", -0.1),
        ("send_time", np.inf),
    ]
    bad += [("chain_cycles", -0.2), ("chain_cycles", np.nan)]
    bad += [("scale", 1e-39), ("send_time", 1e-39), ("chain_cycles", 1e-39)]

    def outcome(numbers):
        scale = numbers.pop("scale")
        problem = bcgc.Problem(bcgc.Exponential(0.5), 3, 300, start_up=scale, **numbers)
        solution = bcgc.solve(problem, "uncoded")
        return solution.status, (
            solution.expected_runtime,
            bcgc.completion_probability(problem, X, 900.0),
            bcgc.simulate_runtime(KEY, problem, X, 8, unit=None),
        )

    good = {"scale": 40.0, "send_time": 0.1, "chain_cycles": 0.2}
    status, runtimes = jax.jit(jax.vmap(outcome))(_columns(good, *bad))
    assert status.tolist() == [int(bcgc.Status.CONVERGED)] + [
        int(bcgc.Status.INVALID)
    ] * len(bad)
    _only_the_first_is_finite(runtimes)


def _constant(problem, key):
    return bcgc.plans.Expectation(
        jnp.ones((), problem.dtype), jnp.zeros((), problem.dtype)
    )


# One of each way to a solution; the others are slow for what they add.
QUICK: dict[str, Any] = {
    "optimal": bcgc.Optimal(levels=[0, 2]),
    "tandon:2": "tandon:2",
    "limit": "limit",
    # Of one's own, which knows nothing of what makes sense.
    "an expectation": bcgc.Scheme("constant", _constant, gives="expectation"),
}
METHODS = QUICK | {
    "a runtime": bcgc.Scheme(
        "no_scale", lambda problem, times: times[..., 0], gives="runtime"
    ),
    "subgradient": bcgc.Subgradient(max_steps=100),
    "deadline": bcgc.Deadline(900.0, max_steps=50),
}


def _check_statuses(solution: bcgc.Solution, refused: set[bcgc.Status]) -> None:
    assert (
        solution.status[0] == bcgc.Status.CONVERGED or solution.method == "subgradient"
    )
    assert np.isfinite(solution.expected_runtime[0])
    assert {bcgc.Status(int(s)) for s in solution.status[1:]} <= refused
    assert np.isnan([solution.expected_runtime[1:], solution.relative_gap[1:]]).all()


@functools.cache
def _solver(method: str) -> Callable[[Any], bcgc.Solution]:
    return jax.jit(
        jax.vmap(lambda n: bcgc.solve(_problem_of(n), METHODS[method], key=KEY))
    )


@pytest.mark.parametrize(
    "method", [*QUICK, *slow(*(name for name in METHODS if name not in QUICK))]
)
def test_no_method_solves_what_traced_numbers_make_no_problem_of(method):
    solution = _solver(method)(COLUMNS)
    _check_statuses(solution, {bcgc.Status.INVALID})
    if method == "deadline":
        _only_the_first_is_finite(solution.completion_probability)


@pytest.mark.parametrize("method", ["optimal", "tandon:2"])
def test_a_level_that_a_traced_number_of_workers_lacks_is_infeasible(method):
    columns = {
        name: np.full_like(column, GOOD[name]) for name, column in COLUMNS.items()
    }
    columns["num_workers"][1:] = 2
    _check_statuses(_solver(method)(columns), {bcgc.Status.INFEASIBLE})


@pytest.mark.parametrize(
    ("method", "number", "good", "bad"),
    [
        (bcgc.Optimal, "tolerance", 1e-3, (-1.0, 0.0, np.nan, np.inf)),
        (bcgc.Deadline, "deadline", 1e3, (-1.0, 0.0, np.nan, np.inf)),
        (bcgc.Subgradient, "tolerance", -1.0, (np.nan, np.inf)),
        (bcgc.TandonPartial, "alpha", 1.0, (0.5, np.nan, np.inf)),
    ],
)
def test_what_a_method_refuses_it_does_not_take_traced(method, number, good, bad):
    valid = jax.jit(jax.vmap(lambda value: method(value).valid()))
    assert valid(np.array([good, *bad])).tolist() == [True] + [False] * len(bad)
    for value in bad:
        with pytest.raises(ValueError, match="must be"):
            method(value)
    with pytest.raises(
        ValueError, match=rf"{number} of {method.__name__}.*\(2,\).*vmap"
    ):
        bcgc.solve(PROBLEM, method(np.full(2, good)), key=KEY)
    assert method(np.asarray(good)).valid()  # an array of one number is one


LAWS: list[
    tuple[Callable[..., bcgc.distributions.Distribution], list[tuple[float, ...]]]
] = [
    (bcgc.Exponential, [(2.0,), (-2.0,), (0.0,), (np.nan,)]),
    (bcgc.distributions.Deterministic, [(2.0,), (-2.0,), (0.0,), (np.inf,)]),
    (
        bcgc.Weibull,
        [(2.0, 1.5, 0.5), (-2.0, 1.5, 0.5), (2.0, -1.5, 0.5), (2.0, 1.5, -0.5)],
    ),
    (bcgc.Pareto, [(1.0, 3.0), (-1.0, 3.0), (1.0, -3.0)]),
    (bcgc.Uniform, [(1.0, 3.0), (-1.0, 3.0), (3.0, 1.0), (2.0, 2.0)]),
    (
        bcgc.Lognormal,
        [(0.2, 0.5, 0.1), (np.inf, 0.5, 0.1), (0.2, -0.5, 0.1), (0.2, 0.5, -0.1)],
    ),
    (
        bcgc.Gamma,
        [(2.5, 1.5, 0.4), (-2.5, 1.5, 0.4), (2.5, -1.5, 0.4), (2.5, 1.5, -0.4)],
    ),
    (
        bcgc.TwoSpeed,
        [(1.0, np.inf, 0.2), (-1.0, 5.0, 0.2), (6.0, 5.0, 0.2), (1.0, np.nan, 0.2)],
    ),
    (bcgc.TwoSpeed, [(1.0, 5.0, 0.2), (1.0, 5.0, 1.2)]),
]


@pytest.mark.parametrize(
    ("law", "rows"), LAWS, ids=lambda value: getattr(value, "__name__", "")
)
def test_traced_numbers_out_of_range_make_no_law(law, rows):
    valid = jax.vmap(lambda *numbers: law(*numbers).valid())(*np.array(rows).T)
    assert valid.tolist() == [True] + [False] * (len(rows) - 1)


def test_measured_times_that_are_traced_are_judged_too():
    @jax.jit
    def valid(times):
        atoms = bcgc.Empirical(times[0])
        return [
            law.valid()
            for law in (
                atoms,
                bcgc.EmpiricalRows(times),
                bcgc.Heterogeneous([LAW, atoms]),
            )
        ]

    times = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert all(valid(times))
    assert not any(valid(-times))

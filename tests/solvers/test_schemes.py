"""Schemes that a user adds, against the built-in ones that they imitate."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.solvers.methods import method_of
from tests.problems import SIZE, not_none, padded

pytestmark = pytest.mark.usefixtures("x64")

LAW = bcgc.ShiftedExponential(1e-3, 50.0)
PROBLEM = padded(LAW, 6, 5_000, 50)


def test_a_partition_is_rounded_evaluated_and_certified():
    def halves(problem):
        level = jnp.arange(problem.max_workers)
        return jnp.where(
            (level == 0) | (level == problem.num_workers - 1), problem.total / 2, 0
        )

    scheme = bcgc.Scheme("halves", halves, label="half and half")
    solution = bcgc.solve(PROBLEM, scheme)
    assert solution.method == "halves"
    assert not_none(solution.rounded).tolist() == [2500, 0, 0, 0, 0, 2500] + [0] * (
        SIZE - 6
    )
    # By hand: all of T_(6) before half of the work, T_(1) for the rest: simulated over
    # NumPy draws.
    times = np.sort(
        50 + 1000 * np.random.default_rng(0).standard_exponential((200_000, 6)), axis=1
    )
    draws = 50 / 6 * np.maximum(times[:, -1] * 2500, times[:, 0] * (2500 + 6 * 2500))
    error = draws.std() / np.sqrt(draws.size)
    assert abs(float(solution.expected_runtime) - draws.mean()) < 4 * error
    assert float(solution.lower_bound) <= float(bcgc.solve(PROBLEM).expected_runtime)
    # In a batch, the number of workers traced; of a law whose program is small: all
    # take the same time.
    law = bcgc.distributions.Deterministic(2.0)
    of_sizes = jax.vmap(lambda n: bcgc.solve(padded(law, n, 5_000, 50), scheme))
    batch = jax.jit(of_sizes)(np.array([6, 8]))
    exact = [50 / n * 2 * (2500 + n * 2500) for n in (6, 8)]
    np.testing.assert_allclose(batch.expected_runtime, exact, rtol=1e-12)
    assert batch.rounded[1].tolist() == [2500, 0, 0, 0, 0, 0, 0, 2500] + [0] * (
        SIZE - 8
    )


def test_levels_are_counted_also_for_units_of_unequal_cost():
    comb = bcgc.Scheme("comb", lambda problem, unit: unit % 3, gives="levels")
    counts = not_none(bcgc.solve(PROBLEM, comb).rounded).tolist()
    assert counts == [1667, 1667, 1666] + [0] * (SIZE - 3)
    law = bcgc.TwoSpeed(1.0, 2.0, 0.5)  # for which the program is smaller
    units = bcgc.Problem(law, 4, 5, unit_costs=np.array([5.0, 1.0, 2.0, 4.0, 8.0]))
    np.testing.assert_allclose(
        not_none(bcgc.solve(units, comb).partition), [9.0, 9.0, 2.0, 0.0]
    )


def test_a_runtime_is_averaged_with_its_standard_error():
    def limit(problem, times):
        exists = jnp.arange(problem.max_workers) < problem.num_workers
        speed = jnp.sum(jnp.where(exists, 1 / times, 0), axis=-1)
        return problem.total * problem.num_samples * problem.cycles / speed

    scheme = bcgc.Scheme("limit_by_draws", limit, gives="runtime")
    with pytest.raises(ValueError, match=r"Pass key=jax.random.key"):
        bcgc.solve(PROBLEM, scheme)
    exact = float(bcgc.solve(PROBLEM, "limit").expected_runtime)
    solutions = [
        bcgc.solve(PROBLEM, scheme, key=jax.random.key(seed)) for seed in range(8)
    ]
    errors, reported = np.array(
        [(s.expected_runtime - exact, s.runtime_error) for s in solutions]
    ).T
    assert np.all(np.abs(errors) < 4 * reported)
    # And no larger than it must be, of 2^17 draws.
    assert np.sqrt(np.mean(errors**2)) > 0.3 * reported.mean()
    times = 50 + 1000 * np.random.default_rng(0).standard_exponential((100_000, 6))
    deviation = np.std(5_000 * 50 / np.sum(1 / times, axis=1))
    assert reported.mean() == pytest.approx(deviation / 2**8.5, rel=0.05)
    assert solutions[0].partition is None
    assert solutions[0].kind == "confidence"


def test_a_scheme_may_not_exist_and_says_so_with_nan():
    def odd_only(problem):
        x = jnp.zeros(problem.max_workers).at[0].set(problem.total)
        return jnp.where(problem.num_workers % 2 == 1, x, jnp.nan)

    scheme = bcgc.Scheme("odd_only", odd_only)
    statuses = [int(bcgc.solve(padded(LAW, n, 10), scheme).status) for n in (5, 6)]
    assert statuses == [bcgc.Status.CONVERGED, bcgc.Status.INFEASIBLE]


@pytest.mark.parametrize(
    ("function", "gives", "words"),
    [
        (lambda p: jnp.ones(p.max_workers), "partition", "sum 12"),
        # nobody's level
        (lambda p: p.total * (jnp.arange(SIZE) == 6), "partition", "gave no partition"),
        (lambda p: jnp.zeros(3), "partition", r"shape \(12,\)"),
        (
            lambda p: jnp.zeros(SIZE).at[:2].set(jnp.array([6e3, -1e3])),
            "partition",
            "from -1000",
        ),
        (lambda p, unit: unit, "levels", "over 6 levels: .*sum 12"),
        (
            lambda p, unit: 0,
            "levels",
            r"a level for each coordinate, .* \(4096,\), got \(\)",
        ),
        (
            lambda p, times: times,
            "runtime",
            r"a runtime for each row .* \(4096,\), got \(4096, 12\)",
        ),
    ],
)
def test_what_is_no_scheme_is_refused_in_words(function, gives, words):
    scheme = bcgc.Scheme("wrong", function, gives=gives)
    with pytest.raises(ValueError, match=words):
        bcgc.solve(PROBLEM, scheme, key=jax.random.key(0))


def test_runtimes_of_cycle_times_alone_know_no_start_ups():
    scheme = bcgc.Scheme("mine", lambda p, times: times[..., 0], gives="runtime")
    for problem in (
        dataclasses.replace(PROBLEM, start_up=3.0),
        dataclasses.replace(PROBLEM, send_time=0.1),
    ):
        with pytest.raises(
            ValueError,
            match='"mine" makes runtimes of cycle times alone: it knows no start',
        ):
            bcgc.solve(problem, scheme, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "gives", "words"),
    [
        *(
            (name, "partition", "none of a method of the package")
            for name in ("optimal", "cyclic", "limit")
        ),
        ("my scheme", "partition", "letters, digits and underscores"),
        ("mine", "plan", "must be one of partition, levels, runtime"),
    ],
)
def test_names_that_cannot_be_are_refused(name, gives, words):
    with pytest.raises(ValueError, match=words):
        bcgc.Scheme(name, lambda p: p, gives=gives)


def test_schemes_of_one_name_are_kept_apart():
    for level in (0, 2):
        scheme = bcgc.Scheme(
            "mine",
            lambda p, level=level: jnp.where(
                jnp.arange(p.max_workers) == level, p.total, 0
            ),
            baseline=level == 2,
        )
        assert int(jnp.argmax(not_none(bcgc.solve(PROBLEM, scheme).rounded))) == level
        assert scheme.baseline == (level == 2)
    assert method_of("tandon:3").baseline
    assert not any(method_of(name).baseline for name in ("limit", "frequency"))

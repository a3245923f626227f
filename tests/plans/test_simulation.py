"""Successive steps against an event loop in plain Python: who is busy when one ends."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.plans.completion import OneOfEach
from bcgc_jax.plans.groups import kinds_by_size
from bcgc_jax.plans.loads import passes_of, problem_tasks
from bcgc_jax.plans.passes import in_a_row, parts_of
from bcgc_jax.plans.plan import Plan, cyclic_plan, partition_plan
from bcgc_jax.plans.simulation import added_in_a_row
from tests.oracles.chains import Piece, around_circle, chain, in_order
from tests.problems import nested_groups, not_none

pytestmark = pytest.mark.usefixtures("x64")

PARTS = {"subset": 1, "chunk:3": 3, "block": 0}
SIZES = [2.0, 0.0, 3.0, 1.0]
COSTS: dict[str, dict[str, Any]] = {
    "bare": {},
    "passes": {"setup_cycles": 1.5, "chain_cycles": 0.5},
    "sent": {"setup_cycles": 1.5, "chain_cycles": 0.5, "send_time": 0.7},
    "overlap": {"send_time": 2.5, "overlap": True},
}


def _case(name: str, costs: str, unit: str) -> tuple[Plan, Any, Any, Any]:
    """A plan of four workers, their pieces, what completes a step, and the link."""
    options = COSTS[costs]
    passes = {
        "setup": options.get("setup_cycles", 0.0),
        "passing": options.get("chain_cycles", 0.0),
    }
    link = None
    if options.get("overlap"):
        link = [options["send_time"] * size for size in SIZES]
    else:
        passes["send"] = options.get("send_time", 0.0)
    if name == "levels":
        plan = partition_plan(jnp.array(SIZES), 4)
        pieces = [in_order([1, 2, 3, 4], SIZES, parts=PARTS[unit], **passes)] * 4

        def complete(done):
            return all(
                sum((w, k) in done for w in range(4)) >= 4 - k
                for k in range(4)
                if SIZES[k]
            )

    else:
        groups = nested_groups((1, 2, 4), 4) if name == "groups" else _UNEVEN
        kinds, data = kinds_by_size(groups)
        sizes = SIZES[:1] + SIZES[2:]
        plan = Plan(
            jnp.array(sizes), np.arange(3), data, np.ones(3), OneOfEach(groups, kinds)
        )
        rows = np.broadcast_to(
            np.atleast_2d(data)[np.zeros(4, int) if kinds is None else list(kinds)],
            (4, 3),
        )
        pieces = [
            in_order(row.tolist(), sizes, parts=PARTS[unit], **passes) for row in rows
        ]
        link = link and [options["send_time"] * size for size in sizes]

        def complete(done):
            pairs = ((k, group) for k, level in enumerate(groups) for group in level)
            return all(any((w, k) in done for w in group) for k, group in pairs)

    return plan, pieces, complete, link


_UNEVEN = (((0,), (1,), (2,), (3,)), ((0,), (1,), (2, 3)), ((0, 1, 2, 3),))


def _draws(steps: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Start-ups that are long at times; many times are equal: ties of all kinds."""
    rng = np.random.default_rng(3)
    starts = rng.exponential(2.0, (steps, 4)) * (rng.random((steps, 4)) < 0.4)
    times = np.where(
        rng.random((steps, 4)) < 0.5, 1.0, rng.choice([0.5, 2.0, 40.0], (steps, 4))
    )
    times[steps // 2 :] = rng.exponential(1.0, (steps - steps // 2, 4))
    starts[: steps // 4] = 0
    return starts, times


def _host(
    problem: bcgc.Problem, plan: Plan, unit: str, starts: np.ndarray, times: np.ndarray
) -> np.ndarray:
    rule: Any = not_none(plan.completion).of_problem(4, 4)
    passes: Any = passes_of(problem, plan)
    used = np.flatnonzero(np.asarray(plan.sizes) > 0)

    def last(begin: np.ndarray, time: np.ndarray) -> np.ndarray:
        blocks = rule.blocks(passes.finish(begin, time), np.asarray(plan.block))
        return blocks[..., used].max(axis=-1)

    return in_a_row(last, passes.of(unit), starts, times)


@pytest.mark.parametrize("unit", PARTS)
@pytest.mark.parametrize("costs", COSTS)
@pytest.mark.parametrize("name", ["levels", "groups", "uneven"])
def test_a_worker_ends_what_it_has_begun(name, costs, unit):
    plan, pieces, complete, link = _case(name, costs, unit)
    problem = bcgc.Problem(bcgc.Uniform(1.0, 2.0), 4, 6, 4.0, **COSTS[costs])
    starts, times = _draws()
    want, late = chain(pieces, complete, starts.tolist(), times.tolist(), link)
    assert np.mean(np.array(late) > 0) > 0.1
    np.testing.assert_allclose(
        _host(problem, plan, unit, starts, times), want, rtol=1e-12
    )


SCHEDULE = cyclic_plan(6.0, 3)
ORDER = [(turn, 0) for turn in range(3)]


def _someone_has_each(done: set[tuple[int, int]]) -> bool:
    tasks = {((w + ORDER[k][0]) % 4, ORDER[k][1]) for w, k in done}
    return len(tasks) == 4


def _scanned(
    problem: bcgc.Problem, plan: Plan, unit: str, starts: np.ndarray, times: np.ndarray
) -> Any:
    """The same steps by JAX."""

    @jax.jit
    def run(plan, starts, times):
        load, rule, _ = problem_tasks(problem, plan)
        passes = not_none(passes_of(problem, plan)).of(unit)

        def step(late, drawn):
            end = rule.runtimes(load, problem.overlap, late + drawn[0], drawn[1])
            return passes.overrun(late, drawn[0], drawn[1], end), end

        return jax.lax.scan(step, 0 * starts[0], (starts, times))[1]

    return run(plan, starts[:, None], times[:, None])[:, 0]


def test_a_worker_on_a_circle_ends_its_subset():
    """In NumPy, and in JAX with as many workers that do not exist."""
    starts, times = _draws()
    for costs in ("bare", "passes"):
        options = COSTS[costs]
        problem = bcgc.Problem(bcgc.Uniform(1.0, 2.0), 4, 6, 4.0, **options)
        pieces = around_circle(
            ORDER, [6.0], options.get("setup_cycles", 0), options.get("chain_cycles", 0)
        )
        thirds = [
            Piece(piece.cycles / 3, task=task)
            for piece in pieces
            for task in (None, None, piece.task)
        ]
        want, _ = chain(
            [thirds] * 4, _someone_has_each, starts.tolist(), times.tolist()
        )
        ends = _host(problem, SCHEDULE, "chunk:3", starts, times)
        np.testing.assert_allclose(ends, want, rtol=1e-12)
        want, late = chain(
            [pieces] * 4, _someone_has_each, starts.tolist(), times.tolist()
        )
        assert np.mean(np.array(late) > 0) > 0.1
        ends = _host(problem, SCHEDULE, "subset", starts, times)
        np.testing.assert_allclose(ends, want, rtol=1e-12)
    options = {"max_workers": 6, **COSTS["passes"]}
    padded = (np.pad(a, ((0, 0), (0, 2)), constant_values=9.0) for a in (starts, times))
    ends = _scanned(
        bcgc.Problem(bcgc.Uniform(1.0, 2.0), 4, 6, 4.0, **options),
        SCHEDULE,
        "subset",
        *padded,
    )
    np.testing.assert_allclose(ends, want, rtol=1e-12)


@pytest.mark.parametrize(
    "name", ["levels", pytest.param("uneven", marks=pytest.mark.slow)]
)
def test_jax_ends_what_it_has_begun_as_numpy_does(name):
    starts, times = _draws()
    plan, pieces, complete, _ = _case(name, "sent", "chunk:3")
    problem = bcgc.Problem(bcgc.Uniform(1.0, 2.0), 4, 6, 4.0, **COSTS["sent"])
    want, _ = chain(pieces, complete, starts.tolist(), times.tolist())
    np.testing.assert_allclose(
        _scanned(problem, plan, "chunk:3", starts, times), want, rtol=1e-12
    )


@pytest.mark.slow
def test_unlike_workers_keep_their_places():
    """As in the event loop; a step would be 1.8 times as long if they changed."""

    def problem(slow: Any) -> bcgc.Problem:
        laws = [bcgc.Uniform(1.0, 1.0 + slow), *[bcgc.Uniform(1.0, 1.1)] * 3]
        return bcgc.Problem(bcgc.Heterogeneous(laws), 4, 6, 4.0)

    x = jnp.array([0.0, 6.0, 0.0, 0.0])
    keys = jax.random.split(jax.random.key(0), 2)
    slow = jnp.array([9.0, -1.0])

    @jax.jit
    @jax.vmap
    def simulate(key: Any, slow: Any) -> Any:
        return bcgc.simulate_runtime(key, problem(slow), x, 4000)

    simulation, invalid = (
        jax.tree.map(lambda a, k=k: float(a[k]), simulate(keys, slow)) for k in range(2)
    )
    rng = np.random.default_rng(1)
    slow_ones = rng.uniform(1.0, 10.0, (4000, 1))
    times = np.concatenate([slow_ones, rng.uniform(1.0, 1.1, (4000, 3))], axis=1)
    pieces = [in_order([2], [6.0])] * 4
    means = []
    for row in (times, rng.permuted(times, axis=1)):
        ends, _ = chain(
            pieces, lambda done: len(done) >= 3, (0 * row).tolist(), row.tolist()
        )
        means.append(np.mean(ends))
    assert simulation.chained == pytest.approx(
        means[0], abs=5 * simulation.chained_error
    )
    mean = np.sort(times, axis=1)[:, 2].mean() * 12
    assert simulation.mean == pytest.approx(mean, abs=5 * simulation.standard_error)
    assert means[1] > 1.5 * means[0]
    assert np.isnan(invalid.chained)
    # The same by NumPy, for tables.
    added_seconds, error = not_none(added_in_a_row(problem(9.0), x))
    error = np.hypot(error, simulation.standard_error)
    assert simulation.mean + added_seconds == pytest.approx(means[0], abs=5 * error)


def test_equal_workers_lose_by_redundancy():
    """Two subsets each: 1, 2, 2, …; both begin the other's at the end; uncoded 1."""
    problem = bcgc.Problem(bcgc.distributions.Deterministic(1.0), 4, 1, 4.0)
    for plan, added_seconds in (
        (cyclic_plan(1.0, 2), 1.0),
        (np.array([1.0, 0.0, 0.0, 0.0]), 0.0),
    ):
        assert added_in_a_row(problem, plan) == (added_seconds, 0.0)
    # Of so many samples passes go over chunks, and a chunk of eight is lost.
    large_problem = bcgc.Problem(
        bcgc.distributions.Deterministic(1.0), 4, 1, 4.0 * 2048
    )
    assert added_in_a_row(large_problem, cyclic_plan(1.0, 2)) == (2048 / 8, 0.0)


def test_a_unit_that_is_none_is_refused():
    for unit in ("pass", "chunk", "chunk:0", "subset:2"):
        with pytest.raises(
            ValueError, match='unit must be "subset", "block" or "chunk:C"'
        ):
            parts_of(unit)


def test_what_draws_cannot_tell_has_nan_for_a_slope():
    """Shares and counts of draws, and a probability at which a draw jumps."""

    @jax.jit
    @jax.jacfwd
    def slopes(numbers):
        law = bcgc.TwoSpeed(1.0, numbers[1], numbers[0])
        problem = bcgc.Problem(law, 2, 4, 2)
        key = jax.random.key(0)
        x = jnp.array([3.0, 1.0])
        late = bcgc.plans.simulation.simulate_completion(key, problem, x, 13.0, 50)
        mean = bcgc.simulate_runtime(key, problem, x, 50, unit=None)
        sent = not_none(bcgc.solve(problem, "cyclic:2").needs).sent
        return jnp.stack([mean.mean, mean.standard_error, late.mean, sent])

    (by_chance, by_time), *other_slopes = np.array(slopes(jnp.array([0.3, 5.0])))
    assert np.isnan(by_chance)
    # A step takes 3 times the slower one's time, or 5 times the faster one's.
    assert 1 < by_time < 3
    assert np.isnan(other_slopes).all()

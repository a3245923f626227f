"""Training by simulation: events against eq. (5), steps against uncoded ones."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bcgc_jax as bcgc
from bcgc_jax.coding.gradients import subset_gradients
from bcgc_jax.coding.training import collect, draws_of, training_scheme
from bcgc_jax.plans.completion import AnyOf
from bcgc_jax.plans.sharing import WorkSharing
from bcgc_jax.plans.stopped import Stopped
from bcgc_jax.problem import Status
from tests.coding.network import (
    KEY,
    make_batch,
    make_params,
    network,
    relative_difference,
)
from tests.compilations import compilations
from tests.oracles.chains import chain, in_order
from tests.oracles.circle import simulated
from tests.oracles.runtimes import delivered_runtime
from tests.problems import not_none, slow

LAW = bcgc.ShiftedExponential(0.8, 0.3)
SCHEMES = "time", *slow("sharing:2:3", "cyclic:4", "tandon_partial")
PROBLEM, SGD = bcgc.Problem(LAW, 6, 58, 36), optax.sgd(0.1)


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    return make_params(rng), make_batch(rng, 36)


@functools.cache
def solved(method):
    return bcgc.solve(PROBLEM, method, key=KEY)


@functools.cache
def scheme_of(method):
    return training_scheme(
        KEY, PROBLEM, solved(method), make_params(np.random.default_rng(0))
    )


def clock_only(params, batch):
    """A loss that is quick to compile."""
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves((params, batch)))


def trained(
    model, scheme, times, steps, loss=clock_only, key=KEY, optimizer=None, **options
):
    """A training on the samples of the model, or on others."""
    params, batch = model
    subsets = bcgc.coding.split_batch(batch, 6)
    return bcgc.coding.train(
        key, loss, scheme, times, params, subsets, optimizer or SGD, steps, **options
    )


def taken_by(training):
    """By each iteration, if all are free at its start."""
    return np.asarray(training.fresh)


RUN = jax.jit(
    jax.vmap(
        lambda times, levels: collect(times, AnyOf(times.shape[-1], levels)), (0, None)
    )
)


@pytest.mark.parametrize("method", ["time", "tandon_partial", *slow("cyclic:4")])
def test_a_plan_has_the_scheme_of_its_solution(model, method):
    of_solution = scheme_of(method)
    of_plan = training_scheme(KEY, PROBLEM, not_none(solved(method).plan), model[0])
    assert of_solution.plan.blocks == of_plan.plan.blocks
    np.testing.assert_array_equal(of_solution.load, of_plan.load)


def test_the_loss_of_shares_of_the_samples_is_that_of_all(model):
    params, batch = model
    plan = scheme_of("tandon_partial").plan
    assert len({block.share for block in plan.blocks}) == 2

    def loss(params, batch):
        return jnp.mean(jax.tree.leaves(batch)[0]) * jnp.sum(jax.tree.leaves(params)[0])

    value, gradients = subset_gradients(
        loss, plan, params, bcgc.coding.split_batch(batch, 6)
    )
    assert float(value) == pytest.approx(float(loss(params, batch)), abs=1e-6)
    summed = plan.scaling * sum(
        jax.tree.leaves(shares)[0].sum(axis=0) for shares in gradients.values()
    )
    np.testing.assert_allclose(
        summed, jax.tree.leaves(jax.grad(loss)(params, batch))[0], rtol=1e-5
    )


def test_the_event_order_ends_at_equation_5_draw_for_draw(precision):
    rng = np.random.default_rng(1)
    for n in (1, 9):
        for trial in range(3):
            x = rng.multinomial(300, rng.dirichlet(np.full(n, 0.4)))
            used = np.flatnonzero(x)
            load = np.cumsum(x * np.arange(1, n + 1))[used]
            times = (0.2 + rng.exponential(1.3, (400, n))).astype(precision)
            # Blocks once more up to N of them: one program for each N.
            repeated = np.arange(n) % used.size
            paced = times[:, None] * (load * 7 / n).astype(precision)[repeated, None]
            arrived, completed = (
                x[:, : used.size] for x in jax.device_get(RUN(paced, used[repeated]))
            )
            slowest = np.sort(times.astype(float), axis=1)[:, ::-1]
            expected = 7 / n * (slowest[:, used] * load).max(axis=1)
            runtime = completed.max(axis=1)
            # Not a bit of difference but for the order of the products.
            rtol = 4 * np.finfo(precision).eps
            np.testing.assert_allclose(runtime, expected, rtol=rtol)
            if trial == 0:
                formula = bcgc.block_runtime(x.astype(float), times, num_samples=7)
                np.testing.assert_allclose(formula, expected, rtol=rtol)
            # The fastest N - n of each block, and no other, are used.
            assert np.array_equal(
                arrived.sum(axis=2), np.broadcast_to(n - used, (400, used.size))
            )
            rank = np.argsort(np.argsort(times, axis=1), axis=1)
            assert np.array_equal(arrived, rank[:, None] < (n - used)[:, None])


def _collect(finish_times: Any, levels: Any) -> Any:
    """`collect` by the paper's rule."""
    times = np.asarray(finish_times)
    return collect(times, AnyOf(times.shape[-1], np.asarray(levels)))


def test_ties_and_workers_that_never_answer():
    # Two equal times: one of the two is enough, and both are there.
    arrived, completed = jax.device_get(_collect([[2.0, 1.0, 2.0]], [1]))
    assert (float(completed[0]), np.sum(arrived)) == (2.0, 3)
    # One worker of three never answers: level 1 ends, level 0 does not.
    arrived, completed = jax.device_get(
        _collect([[1.0, np.inf, 3.0], [2.0, np.inf, 6.0]], [0, 1])
    )
    assert completed.tolist() == [np.inf, 6.0]
    assert not arrived[:, 1].any()


@pytest.mark.parametrize("method", SCHEMES)
def test_training_with_a_code_is_training_without_but_for_the_clock(model, method):
    params, batch = model
    scheme, optimizer = scheme_of(method), optax.adam(0.05)
    evaluate = lambda p: network(p, batch)  # noqa: E731
    training = trained(
        model, scheme, LAW, 12, network, jax.random.key(1), optimizer, evaluate=evaluate
    )
    plain, state = params, optimizer.init(params)

    @jax.jit
    def uncoded_step(plain, state):
        value, gradient = jax.value_and_grad(network)(plain, batch)
        updates, state = optimizer.update(gradient, state)
        plain = optax.apply_updates(plain, updates)
        return plain, state, (value, network(plain, batch))

    for step in range(12):
        plain, state, values = uncoded_step(plain, state)
        coded = float(training.loss[step]), float(training.metrics[step])
        assert coded == pytest.approx(tuple(map(float, values)), rel=1e-5), step
    assert relative_difference(training.params, plain) < 1e-5  # worst measured 1.2e-7
    assert np.all(training.stepped)
    # The clock: the draws of the same keys, by the formulas.
    keys = jax.random.split(jax.random.key(1), 12)
    times = jax.jit(jax.vmap(lambda k: LAW.sample(jax.random.split(k)[0], (6,))))(keys)
    if method == "tandon_partial":
        alpha = float(bcgc.solvers.straggler_ratio(LAW))
        slowest = np.sort(np.asarray(times), axis=1)[:, ::-1]
        level = scheme.plan.blocks[1].level
        unit = 36 * 58 / 6 * (level + 1) / (level + alpha)
        expected = unit * np.maximum(alpha * slowest[:, level], slowest[:, 0])
    elif method == "cyclic:4":
        expected = 6 * np.array(
            [
                simulated(solved(method).plan, t, 0 * t)[0]
                for t in np.asarray(times, float)
            ]
        )
    elif method == "sharing:2:3":
        rule = WorkSharing(num_workers=6, max_subsets=2, chunks=3)
        expected = rule.in_lockstep(np.asarray(times, float) * (36 * 58 / 6))
    else:
        expected = bcgc.block_runtime(solved(method).rounded, times, num_samples=36)
    np.testing.assert_allclose(taken_by(training), expected, rtol=2e-5)


def telling(params, batch):
    """A loss that tells which samples it saw: a bit for each of the 36."""
    return jnp.mean(batch) + 0.0 * sum(
        jnp.sum(leaf) for leaf in jax.tree.leaves(params)
    )


def mini_batches(model, law=LAW, key=KEY, batch_size=2):
    arguments = (
        (model[0], jnp.asarray(2.0 ** np.arange(36))),
        scheme_of("time"),
        law,
        30,
        telling,
    )
    return trained(*arguments, key, batch_size=batch_size)


@pytest.mark.slow
def test_mini_batches_are_drawn_from_each_subset_without_replacement(model, x64):
    training = mini_batches(model)
    # means of two samples, of six subsets
    seen = np.round(np.asarray(training.loss) * 12).astype(np.int64)
    drawn = (seen[:, None] >> np.arange(36) & 1).reshape(30, 6, 6)
    assert np.all(drawn.sum(axis=2) == 2)  # two different samples of each subset
    pairs = drawn @ 2 ** np.arange(6)
    # Other ones for each worker and in each iteration, and all of the 15 pairs by and
    # by.
    assert np.all([len(np.unique(row)) > 1 for row in pairs])
    assert np.all([len(np.unique(column)) > 5 for column in pairs.T])
    assert len(np.unique(pairs)) == 15
    with pytest.raises(ValueError, match="from 1 to 6"):
        mini_batches(model, batch_size=7)


def test_an_iteration_that_never_ends_leaves_the_parameters_and_says_so(model):
    # One block needs everyone.
    rows = np.where(np.arange(6) == 0, np.inf, np.ones((4, 6)))
    training = trained(model, scheme_of("time"), rows, 6)
    assert not np.any(training.stepped)
    assert (training.clock[0], relative_difference(training.params, model[0])) == (
        np.inf,
        0,
    )


def test_whole_layers_and_setup_cycles_pace_the_messages(model):
    params, _ = model
    sizes = bcgc.coding.unit_sizes(params, "leaves")
    problem = bcgc.Problem(LAW, 6, sizes.size, 36, unit_costs=sizes, setup_cycles=3.0)
    scheme = training_scheme(
        KEY, problem, not_none(solved("time").plan), params, units="leaves"
    )
    assert len(scheme.plan.blocks) > 1
    done = 0.0
    for block, load in zip(scheme.plan.blocks, np.asarray(scheme.load), strict=True):
        done += (block.level + 1) * block.size
        assert load == pytest.approx(36 / 6 * (done + 3.0 * (block.level + 1)))


_LATE: dict[str, Any] = {
    "start_up": 300.0,
    "send_time": 4.0,
    "chain_cycles": 0.05,
}
DELIVERING = bcgc.Problem(LAW, 6, 58, 36, overlap=True, **_LATE)


@pytest.mark.smoke
@pytest.mark.parametrize("overlap", [True, *slow(False)])
def test_workers_that_start_up_and_send_are_paced_draw_for_draw(model, x64, overlap):
    params, _ = model
    problem = dataclasses.replace(DELIVERING, overlap=overlap)
    solution = solved("time")
    scheme = training_scheme(KEY, problem, solution, params)
    rng = np.random.default_rng(5)
    starts, rows = rng.weibull(0.8, (4, 6)) * 300, rng.gamma(2.0, 1.0, (4, 6))
    x = np.asarray(solution.rounded)
    delivery = {"chain_cycles": 0.05, "send_time": 4.0, "overlap": overlap}
    loop = [
        delivered_runtime(x, begins, times, 36, 1, **delivery)
        for begins, times in zip(starts, rows, strict=True)
    ]
    training = trained(model, scheme, rows, 6, start_ups=starts)
    steps = [0, 1, 2, 3, 0, 1]
    np.testing.assert_allclose(taken_by(training), np.array(loop)[steps], rtol=1e-12)
    # One after the other: who has begun a pass, or without overlap a message, ends it
    # first.
    pieces = in_order(
        range(1, 7), (6 * x).tolist(), passing=0.05, send=0 if overlap else 4.0 / 6
    )
    link = (4.0 * x).tolist() if overlap else None

    def complete(done):
        return all(
            sum((w, k) in done for w in range(6)) >= 6 - k for k in np.flatnonzero(x)
        )

    want, late = chain(
        [pieces] * 6, complete, starts[steps].tolist(), rows[steps].tolist(), link
    )
    np.testing.assert_allclose(np.diff(training.clock, prepend=0), want, rtol=1e-12)
    assert np.sum(want) > 1.02 * taken_by(training).sum()
    assert np.mean(np.array(late) > 0) > 0.1
    with pytest.raises(ValueError, match=r"shape \[steps, 6\]"):
        trained(model, scheme, rows[:, :5], 2)
    # The same in NumPy, for processes that are slowed on purpose.
    finish = scheme.pace(starts[0], rows[0]).ends()
    levels = [block.level for block in scheme.plan.blocks]
    assert float(_collect(finish, levels)[1].max()) == pytest.approx(loop[0], rel=1e-12)


@pytest.mark.slow
def test_the_mean_iteration_takes_the_expected_runtime_with_start_ups_too(model, x64):
    # Partial stragglers know no chain.
    problem = dataclasses.replace(DELIVERING, chain_cycles=None)
    solution = bcgc.solve(problem, "tandon_partial")
    training = trained(
        model, training_scheme(KEY, problem, solution, model[0]), LAW, 4000
    )
    seconds = taken_by(training)
    assert abs(
        seconds.mean() - float(solution.rounded_runtime)
    ) < 4 * seconds.std() / np.sqrt(seconds.size)


def test_start_ups_are_a_number_or_rows_of_all_workers(model):
    scheme = scheme_of("uncoded")
    with pytest.raises(
        ValueError, match=r"measured start_ups must have shape \[steps, 6\]"
    ):
        trained(model, scheme, LAW, 8, start_ups=np.ones((2, 5)))
    with pytest.raises(ValueError, match="start_ups must be a number or rows"):
        trained(model, scheme, LAW, 8, start_ups=LAW)


def test_a_worker_ends_a_chunk_of_the_plan_unless_another_unit_is_asked_for(
    model, monkeypatch
):
    monkeypatch.setattr(
        "bcgc_jax.coding.training._train", lambda *arguments: arguments[-2]
    )
    two_chunks = training_scheme(KEY, PROBLEM, solved("time"), model[0], chunks=2)
    assert trained(model, two_chunks, LAW, 1) == "chunk:2"
    assert trained(model, scheme_of("uncoded"), LAW, 1) == "chunk:1"
    assert trained(model, two_chunks, LAW, 1, unit="block") == "block"
    with pytest.raises(ValueError, match="chunks"):
        training_scheme(KEY, PROBLEM, solved("time"), model[0], chunks=0)


def test_a_scheme_that_does_not_exist_or_does_not_fit_is_refused(model):
    params, _ = model
    nowhere = dataclasses.replace(solved("tandon_partial"), status=Status.INFEASIBLE)
    with pytest.raises(ValueError, match='"tandon_partial": the scheme does not exist'):
        training_scheme(KEY, PROBLEM, nowhere, params)
    scheme = scheme_of("tandon_partial")
    alpha = float(bcgc.solvers.straggler_ratio(LAW))
    assert float(scheme.load[1] / scheme.load[0]) == pytest.approx(alpha)
    for wrong, units in (
        (bcgc.Problem(LAW, 6, 57), "coordinates"),
        (bcgc.Problem(LAW, 6, 4), "leaves"),
    ):
        with pytest.raises(ValueError, match="not those of the parameters"):
            training_scheme(KEY, wrong, solved("time"), params, units=units)


def test_what_loses_samples_or_names_no_workers_is_refused_with_its_reason(model):
    solution = solved("time")
    lossy = dataclasses.replace(solution.plan, completion=Stopped(6, jnp.ones(()), 8))
    for plan, why in ((lossy, "loses samples.*take"), (None, "not say which worker")):
        with pytest.raises(ValueError, match=why):
            training_scheme(
                KEY, PROBLEM, dataclasses.replace(solution, plan=plan), model[0]
            )


def test_the_clock_of_many_iterations_keeps_its_digits(model):
    scheme = scheme_of("uncoded")
    rows = np.full((1, 6), 0.3 / float(scheme.load[0]), np.float32)
    tiny = jax.tree.map(jnp.zeros_like, make_params(np.random.default_rng(0)))
    optimizer = optax.sgd(0.0)

    def loss(params, batch):
        return jnp.mean(batch) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))

    clock = bcgc.coding.train(
        KEY, loss, scheme, rows, tiny, jnp.ones((6, 1)), optimizer, 30_000
    ).clock
    # A running float32 sum ends 3e-4 off.
    assert float(clock[-1]) == pytest.approx(9_000, rel=1e-6)


def test_second_calls_compile_nothing(model, x64):
    solutions = [solved(method) for method in ("time", "tandon_partial")]

    def calls(rate, seed):
        key = jax.random.key(seed)
        problem = bcgc.Problem(LAW, 6, 58, 36, float(seed + 1))
        for solution in solutions:
            runtime = np.float32(solution.expected_runtime) * np.float32(seed + 1)
            changed = dataclasses.replace(solution, expected_runtime=runtime)
            training_scheme(key, problem, changed, model[0])
        _collect(np.full((2, 6), rate, np.float32), [0, seed])
        mini_batches(model, bcgc.ShiftedExponential(rate, 0.3), key)

    calls(0.8, 0)
    with compilations() as compiled:
        calls(0.7, 1)
    assert compiled == []


def test_any_worker_may_be_the_slowest_of_a_row():
    """Rows are sorted, and schemes without a code have unlike places in a plan."""
    draw = draws_of(bcgc.EmpiricalRows([[1.0, 2.0, 3.0], [4.0, 4.5, 6.0]]), None, 3)
    rows = [np.asarray(draw(0, jax.random.key(k))[1]) for k in range(30)]
    assert {int(np.argmax(row)) for row in rows} == {0, 1, 2}
    assert {tuple(np.sort(row).tolist()) for row in rows} == {
        (1.0, 2.0, 3.0),
        (4.0, 4.5, 6.0),
    }

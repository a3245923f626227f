"""Training on the simulated clock: the event order against eq. (5), the steps against uncoded training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bcgc_jax as bcgc
from bcgc_jax.training import collect
from tests.test_coded_gradients import KEY, make_batch, make_params, network, relative_difference

pytestmark = pytest.mark.usefixtures("quick_compilation")

LAW = bcgc.ShiftedExponential(0.8, 0.3)
# The others differ from these in their numbers only.
SCHEMES = ("uncoded", "tandon:2", "tandon_partial", "optimal")


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    return make_params(rng), make_batch(rng, 36)


def scheme_of(method, params, law=LAW, workers=6):
    problem = bcgc.Problem(law, workers, 58, 36)
    return problem, bcgc.training_scheme(KEY, problem, bcgc.solve(problem, method), params)


def test_the_event_order_ends_at_equation_5_draw_for_draw(precision):
    rng = np.random.default_rng(1)
    run = jax.jit(jax.vmap(collect, (0, None)))
    for n in (1, 4, 9):
        for _ in range(3):
            x = rng.multinomial(300, rng.dirichlet(np.full(n, 0.4)))
            used = np.flatnonzero(x)
            load = np.cumsum(x * np.arange(1, n + 1))[used]
            times = (0.2 + rng.exponential(1.3, (400, n))).astype(precision)
            collected = run(jnp.asarray(times[:, None] * (load * 7 / n).astype(precision)[:, None]), used)
            expected = bcgc.block_runtime(x.astype(float), times, num_samples=7)
            runtime = collected.runtime
            # Not a bit of difference but for the order of the products.
            rtol = 4 * np.finfo(precision).eps
            np.testing.assert_allclose(runtime, expected, rtol=rtol)
            # The fastest N - n of each block, and no other, are used.
            arrived = np.asarray(collected.arrived)
            assert np.array_equal(arrived.sum(axis=2), np.broadcast_to(n - used, (400, used.size)))
            rank = np.argsort(np.argsort(times, axis=1), axis=1)
            assert np.array_equal(arrived, rank[:, None] < (n - used)[:, None])


def test_ties_and_workers_that_never_answer():
    # Two equal times: one of the two is enough.
    tie = collect(jnp.array([[2.0, 1.0, 2.0]]), jnp.array([1]))
    assert (float(tie.completed[0]), int(tie.arrived.sum())) == (2.0, 2)
    # One worker of three never answers: level 1 ends, level 0 does not.
    lost = collect(jnp.array([[1.0, jnp.inf, 3.0], [2.0, jnp.inf, 6.0]]), jnp.array([0, 1]))
    assert lost.completed.tolist() == [np.inf, 6.0]
    assert not lost.arrived[:, 1].any()
    assert float(lost.runtime) == np.inf


@pytest.mark.parametrize("method", SCHEMES)
def test_training_with_a_code_is_training_without_but_for_the_clock(model, method):
    params, batch = model
    problem, scheme = scheme_of(method, params)
    optimizer = optax.adam(0.05)
    evaluate = lambda p: network(p, batch)  # noqa: E731
    run = jax.jit(
        lambda key: bcgc.train(
            key, network, scheme, LAW, params, bcgc.split_batch(batch, 6), optimizer, 12, evaluate=evaluate
        )
    )
    training = run(jax.random.key(1))
    plain, state = params, optimizer.init(params)

    @jax.jit
    def uncoded_step(plain, state):
        value, gradient = jax.value_and_grad(network)(plain, batch)
        updates, state = optimizer.update(gradient, state)
        plain = optax.apply_updates(plain, updates)
        return value, plain, state, network(plain, batch)

    for step in range(12):
        value, plain, state, metric = uncoded_step(plain, state)
        assert float(training.loss[step]) == pytest.approx(float(value), rel=1e-5), step
        assert float(training.metrics[step]) == pytest.approx(float(metric), rel=1e-5), step
    assert relative_difference(training.params, plain) < 1e-5  # worst measured 1.2e-7
    assert np.all(training.stepped)
    # The clock: the draws of the same keys, by the formulas.
    keys = jax.random.split(jax.random.key(1), 12)
    times = jnp.stack([LAW.sample(jax.random.split(k)[0], (6,)) for k in keys])
    solution = bcgc.solve(problem, method)
    if method == "tandon_partial":
        alpha = float(bcgc.straggler_ratio(LAW))
        slowest = np.sort(np.asarray(times), axis=1)[:, ::-1]
        level = scheme.plan.blocks[1].level
        unit = 36 * 58 / 6 * (level + 1) / (level + alpha)
        expected = unit * np.maximum(alpha * slowest[:, level], slowest[:, 0])
    else:
        expected = bcgc.block_runtime(solution.rounded, times, num_samples=36)
    np.testing.assert_allclose(np.diff(training.clock, prepend=0), expected, rtol=2e-5)


def test_the_mean_iteration_takes_the_expected_runtime(model, x64):
    params, _ = model
    for method in ("time", "tandon_partial"):
        problem, scheme = scheme_of(method, params)
        levels = jnp.array([block.level for block in scheme.plan.blocks])
        times = LAW.sample(jax.random.key(2), (20_000, 6))
        runs = jax.jit(jax.vmap(lambda t, s=scheme, n=levels: collect(t * s.load[:, None], n).runtime))(times)
        solution = bcgc.solve(problem, method)
        expected = float(solution.expected_runtime)
        if solution.rounded is not None:
            expected = float(bcgc.expected_runtime(problem, solution.rounded))
        assert abs(float(runs.mean()) - expected) < 4 * float(runs.std()) / np.sqrt(len(runs))


def test_measured_rows_are_replayed_in_their_order(model):
    params, batch = model
    _, scheme = scheme_of("time", params)
    rows = np.random.default_rng(3).gamma(2.0, 1.0, (4, 6))
    training = bcgc.train(KEY, network, scheme, rows, params, bcgc.split_batch(batch, 6), optax.sgd(0.1), 6)
    solution = bcgc.solve(bcgc.Problem(LAW, 6, 58, 36), "time")
    expected = bcgc.block_runtime(solution.rounded, rows[[0, 1, 2, 3, 0, 1]], num_samples=36)
    np.testing.assert_allclose(np.diff(training.clock, prepend=0), expected, rtol=2e-5)
    with pytest.raises(ValueError, match=r"shape \[steps, 6\]"):
        bcgc.train(KEY, network, scheme, rows[:, :5], params, bcgc.split_batch(batch, 6), optax.sgd(0.1), 2)


def test_mini_batches_are_drawn_from_each_subset_without_replacement(model):
    params, _ = model
    _, scheme = scheme_of("optimal", params)
    # The loss tells which samples it saw: the sum over the batch of a power of two for each.
    code = 2.0 ** (np.arange(36) % 6)

    def loss(params, batch):
        return jnp.sum(batch) + 0.0 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))

    sums = (
        bcgc.train(
            KEY,
            loss,
            scheme,
            LAW,
            params,
            bcgc.split_batch(jnp.asarray(code), 6),
            optax.sgd(0.1),
            30,
            batch_size=2,
        ).loss
        * 6
    )
    pairs = {2.0**i + 2.0**j for i in range(6) for j in range(i)}
    reachable = {round(float(s)) for s in np.asarray(sums)}
    assert len(reachable) > 10
    # Six pairs of different samples in each: between six times the least and six times the largest pair.
    assert 6 * min(pairs) <= min(reachable)
    assert max(reachable) <= 6 * max(pairs)
    with pytest.raises(ValueError, match="from 1 to 6"):
        bcgc.train(KEY, loss, scheme, LAW, params, bcgc.split_batch(code, 6), optax.sgd(0.1), 2, batch_size=7)


def test_an_iteration_that_never_ends_leaves_the_parameters_and_says_so(model):
    params, batch = model
    law = bcgc.TwoSpeed(1.0, np.inf, 0.3)
    problem = bcgc.Problem(LAW, 6, 58, 36)
    scheme = bcgc.training_scheme(KEY, problem, bcgc.solve(problem, "uncoded"), params)
    training = bcgc.train(
        jax.random.key(4), network, scheme, law, params, bcgc.split_batch(batch, 6), optax.sgd(0.1), 1
    )
    assert not training.stepped[0]
    assert training.clock[0] == np.inf
    assert relative_difference(training.params, params) == 0


def test_a_batch_of_seeds_is_the_loop_over_them(model):
    params, batch = model
    _, scheme = scheme_of("optimal", params)

    def run(key):
        subsets = bcgc.split_batch(batch, 6)
        return bcgc.train(key, network, scheme, LAW, params, subsets, optax.sgd(0.1), 5, batch_size=3)

    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(run))(keys)
    for i, key in enumerate(keys):
        alone = run(key)
        np.testing.assert_allclose(together.clock[i], alone.clock, rtol=1e-6)
        np.testing.assert_allclose(together.loss[i], alone.loss, rtol=1e-5)


def test_whole_layers_and_setup_cycles_pace_the_messages(model):
    params, _ = model
    sizes = bcgc.unit_sizes(params, "leaves")
    problem = bcgc.Problem(LAW, 6, sizes.size, 36, unit_costs=sizes, setup_cycles=3.0)
    scheme = bcgc.training_scheme(KEY, problem, bcgc.solve(problem, "time"), params, units="leaves")
    done = 0.0
    for block, load in zip(scheme.plan.blocks, np.asarray(scheme.load), strict=True):
        done += (block.level + 1) * block.size
        assert load == pytest.approx(36 / 6 * (done + 3.0 * (block.level + 1)))


def test_a_scheme_that_does_not_exist_or_does_not_fit_is_refused(model):
    params, _ = model
    alone = bcgc.Problem(LAW, 1, 58)
    with pytest.raises(ValueError, match='"tandon_partial": the scheme does not exist'):
        bcgc.training_scheme(KEY, alone, bcgc.solve(alone, "tandon_partial"), params)
    problem = bcgc.Problem(LAW, 6, 58)
    with pytest.raises(ValueError, match="pass the alpha it was solved with"):
        bcgc.training_scheme(KEY, problem, bcgc.solve(problem, "tandon_partial", alpha=3.0), params)
    scheme = bcgc.training_scheme(
        KEY, problem, bcgc.solve(problem, "tandon_partial", alpha=3.0), params, alpha=3.0
    )
    assert float(scheme.load[1] / scheme.load[0]) == pytest.approx(3.0)
    for wrong, units in ((bcgc.Problem(LAW, 6, 57), "coordinates"), (bcgc.Problem(LAW, 6, 4), "leaves")):
        with pytest.raises(ValueError, match="not those of the parameters"):
            bcgc.training_scheme(KEY, wrong, bcgc.solve(wrong, "time"), params, units=units)


def test_one_sample_for_two_parts_is_one_part(model):
    params, batch = model
    few = jax.tree.map(lambda x: x[:6], batch)
    problem = bcgc.Problem(LAW, 6, 58, 6)
    scheme = bcgc.training_scheme(KEY, problem, bcgc.solve(problem, "tandon_partial"), params)
    training = bcgc.train(KEY, network, scheme, LAW, params, bcgc.split_batch(few, 6), optax.sgd(0.1), 1)
    assert float(training.loss[0]) == pytest.approx(float(network(params, few)), rel=1e-5)
    step = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(network)(params, few))
    assert relative_difference(training.params, step) < 1e-6


def test_the_clock_of_many_iterations_keeps_its_digits(model):
    scheme = scheme_of("uncoded", model[0])[1]
    rows = np.full((1, 6), 0.3 / float(scheme.load[0]), np.float32)
    tiny = {
        "hidden": {"w": jnp.zeros((7, 5)), "b": jnp.zeros(5)},
        "out": {"w": jnp.zeros((5, 3)), "b": jnp.zeros(3)},
    }
    run = jax.jit(
        lambda: (
            bcgc.train(
                KEY, lambda p, b: jnp.sum(b), scheme, rows, tiny, jnp.ones((6, 1)), optax.sgd(0.0), 100_000
            ).clock
        )
    )
    # A running float32 sum ends 9e-4 off.
    assert float(run()[-1]) == pytest.approx(30_000, rel=1e-6)

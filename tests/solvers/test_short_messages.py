"""Short messages: plans against SciPy's linear program, random plans by draws, and the paper's scheme."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.message_codes import message_codes
from bcgc_jax.solvers.short_messages import grouped_runtime, short_messages
from tests.compilations import compilations
from tests.oracles.programme import best_shares

pytestmark = pytest.mark.usefixtures("x64")

# Of four workers: stragglers, parts, subsets; in ascending order of stragglers, as blocks are computed.
FOUR = ((0, 1, 1), (0, 2, 2), (0, 4, 4), (1, 1, 2), (1, 3, 4), (2, 1, 3), (2, 2, 4), (3, 1, 4))
PAPER = bcgc.ShiftedExponential(1e-3, 50.0)


def _problem(law, workers=4, **changes):
    given = {"num_coordinates": 1000} | changes
    return bcgc.Problem(law, workers, num_samples=float(workers), **given)


def _by_scipy(times, limit, send=0.0, order=FOUR):
    """The least mean over rows of when the last of the blocks is complete, in shares of all coordinates."""
    tolerance, parts, work = np.array(order).T
    before, slowest = np.tri(len(order)), -np.sort(-times, axis=1)
    finish = slowest[:, tolerance][:, :, None] * (before * work) + send * before / parts
    return best_shares(finish, limited=(1 / parts, limit))[0]


LIMITS = np.array([1.0, 0.8, 0.5, 0.3])


@pytest.mark.parametrize("send", [0.0, 3.0])
def test_the_optimum_of_measured_rows_is_scipys(send):
    times = np.random.default_rng(0).gamma(0.7, 1.0, (40, 4)) + 0.1
    problem = _problem(bcgc.Rows(jnp.asarray(times)), **({"send_time": send} if send else {}))
    found = short_messages(problem, LIMITS)
    assert found.status.tolist() == [bcgc.Status.CONVERGED] * 4
    assert np.all(np.asarray(found.relative_gap) < 1.1e-6)
    assert np.all(np.asarray(found.sent) <= LIMITS * (1 + 1e-12))
    exact = 1000 * np.array([_by_scipy(times, limit, send) for limit in LIMITS])
    assert np.all(np.asarray(found.lower_bound) <= exact * (1 + 1e-9))
    assert np.all(np.asarray(found.expected_runtime) >= exact * (1 - 1e-9))


def test_no_other_order_of_the_blocks_is_better():
    rng = np.random.default_rng(2)
    times = rng.gamma(0.7, 1.0, (20, 4)) + 0.1
    best = _by_scipy(times, 0.6, 0.5)
    for _ in range(20):
        assert _by_scipy(times, 0.6, 0.5, rng.permutation(FOUR)) >= best * (1 - 1e-9)


LAWS = {
    "paper": (PAPER, lambda rng, shape: 50 + 1000 * rng.exponential(size=shape)),
    "uniform": (bcgc.Uniform(1.0, 9.0), lambda rng, shape: rng.uniform(1, 9, shape)),
}


@pytest.mark.parametrize("name", ["paper", pytest.param("uniform", marks=pytest.mark.slow)])
def test_the_value_is_that_of_draws_and_no_random_plan_is_below_the_bound(name):
    law, draw = LAWS[name]
    rng = np.random.default_rng(3)
    slowest = -np.sort(-draw(rng, (20_000, 4)), axis=1)
    tolerance, parts, work = np.array(FOUR).T

    def values(x):
        return np.max(slowest[:, tolerance] * np.cumsum(work * x), axis=1)

    found = short_messages(_problem(law), LIMITS)
    plans = rng.dirichlet(np.full(8, 0.3), 2000)
    for i, limit in enumerate(LIMITS):
        drawn = values(np.asarray(found.partition[i]))
        error = drawn.std() / np.sqrt(drawn.size)
        assert abs(drawn.mean() - float(found.expected_runtime[i])) < 4 * error
        for x in 1000 * plans[plans @ (1 / parts) <= limit][:200]:
            other = values(x)
            # The same draws: the difference is known better than either.
            spread = (other - drawn).std() / np.sqrt(drawn.size)
            assert (other - drawn).mean() > -4 * spread - 1e-6 * drawn.mean()


@pytest.mark.slow
def test_the_published_setting():
    """Without a limit the paper's plan; the curve is convex, and its slope is the price."""
    problem = bcgc.Problem(PAPER, 20, 20_000, 50.0, 1.0)
    limits = np.array([1.0, 0.81, 0.8, 0.79, 0.5, 0.2, 0.1])
    found = short_messages(problem, limits, tolerance=1e-8)
    assert np.all(np.asarray(found.relative_gap) < 1.01e-8)
    optimum = bcgc.solve(problem)
    assert float(found.expected_runtime[0]) == pytest.approx(float(optimum.expected_runtime), rel=2e-7)
    assert float(found.price[0]) == 0
    above, at, below = np.asarray(found.expected_runtime[1:4])
    assert (below - above) / (0.02 * 20_000) == pytest.approx(float(found.price[2]), rel=0.02)
    assert above + below > 2 * at
    codes, x = message_codes(20), np.asarray(found.partition[4])
    slowest = -np.sort(-LAWS["paper"][1](np.random.default_rng(1), (20_000, 20)), axis=1)
    drawn = 50 / 20 * np.max(slowest[:, codes.tolerance] * np.cumsum(codes.work * x), axis=1)
    error = drawn.std() / np.sqrt(drawn.size)
    assert abs(drawn.mean() - float(found.expected_runtime[4])) < 4 * error
    np.testing.assert_allclose(found.sent, limits, rtol=1e-5)


def test_the_bound_follows_from_one_slope_and_one_price():
    """max over prices of min over codes, from differences of the exact runtime at the optimum."""
    limit, codes = 0.6, message_codes(4)
    problem = _problem(bcgc.Uniform(1.0, 9.0))
    found = short_messages(problem, limit, codes, tolerance=1e-9)

    x = np.asarray(found.partition) / 1000

    def value(x):
        """By the paper's levels, with as much work; a partition has a given sum, but f is homogeneous."""
        levels = np.bincount(codes.tolerance, codes.work * x, 4) / np.arange(1, 5)
        total = levels.sum()
        return float(bcgc.expected_runtime(problem, levels * 1000 / total)) * total / 1000

    step = 1e-5
    slope = np.array([(value(x + step * e) - value(x - step * e)) / (2 * step) for e in np.eye(8)])
    inside = x > 1e-3
    price = float(found.price)
    priced = slope + price / codes.parts
    least = priced.min() - price * limit
    assert least == pytest.approx(float(found.expected_runtime) / 1000, rel=1e-4)
    # What is used costs the same, with the price.
    np.testing.assert_allclose(priced[inside], priced.min(), rtol=1e-4)


def test_the_shortest_messages_alone_and_less():
    found = short_messages(_problem(PAPER), [0.25, 0.2])
    assert found.status.tolist() == [bcgc.Status.CONVERGED, bcgc.Status.INFEASIBLE]
    slowest = 50 + 1000 * (1 + 1 / 2 + 1 / 3 + 1 / 4)
    assert float(found.expected_runtime[0]) == pytest.approx(4 * 1000 * slowest, rel=1e-8)
    assert np.isnan(found.expected_runtime[1])
    assert np.isnan(found.price).all()


@pytest.mark.slow
def test_a_start_up_is_added_and_a_link_is_paid_for_what_is_sent():
    alike = short_messages(_problem(PAPER), 0.7)
    later = short_messages(_problem(PAPER, start_up=500.0), 0.7)
    assert float(later.expected_runtime) == pytest.approx(float(alike.expected_runtime) + 500, rel=1e-9)
    assert float(later.lower_bound) == pytest.approx(float(alike.lower_bound) + 500, rel=1e-6)
    # Where the link is fast whole messages are best, the plan that `solve` has; not where it is slow.
    for send_time, gains in ((100.0, False), (3000.0, True)):
        linked = _problem(PAPER, send_time=send_time, num_coordinates=2000)  # too many for whole units
        short, whole = short_messages(linked), bcgc.solve(linked)
        if gains:
            assert float(short.expected_runtime) < 0.9 * float(whole.lower_bound)
            assert float(short.sent) < 0.7
        else:
            assert float(short.expected_runtime) == pytest.approx(float(whole.expected_runtime), rel=2e-6)


@pytest.mark.parametrize("overlap", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_groups_are_done_no_later_than_the_order_statistics(overlap):
    rng = np.random.default_rng(5)
    codes = message_codes(4)
    problem = _problem(PAPER, send_time=0.5 * 1000, start_up=7.0, overlap=overlap)
    x = 1000 * rng.dirichlet(np.ones(8))
    times = 50 + 1000 * rng.exponential(size=(300, 4))
    found = np.asarray(grouped_runtime(problem, codes, x, times))
    for row, runtime in zip(times, found, strict=True):
        ready, done, sent, last, bound = np.zeros(4), 0.0, 0.0, 0.0, 0.0
        for (s, m, d), amount in zip(FOUR, x, strict=True):
            done += d * amount
            sent += 500 * amount / m
            ready = np.maximum(ready, done * row) + 500 * amount / m if overlap else done * row + sent
            groups = [range(4)] if m == 1 else [range(g, g + d) for g in range(0, 4, d)]
            # The first set of messages that is complete: any d - s of each group.
            each = [
                min(max(ready[list(some)]) for some in itertools.combinations(g, len(g) - s)) for g in groups
            ]
            last = max(last, max(each))
            bound = max(bound, np.sort(ready)[::-1][s])
        assert runtime == pytest.approx(7 + last, rel=1e-12)
        assert last <= bound * (1 + 1e-12)


def test_other_numbers_compile_nothing():
    codes = message_codes(4)
    short_messages(_problem(bcgc.ShiftedExponential(1.0, 0.5)), 0.9, codes)
    with compilations() as found:
        short_messages(_problem(bcgc.ShiftedExponential(2.0, 0.1)), 0.7, codes, tolerance=1e-5)
    assert not found


@pytest.mark.slow
def test_single_precision_is_certified_to_what_it_resolves():
    with jax.enable_x64(False):
        found = short_messages(_problem(PAPER), LIMITS, tolerance=1e-3)
        assert found.expected_runtime.dtype == np.float32
        assert found.status.tolist() == [bcgc.Status.CONVERGED] * 4
        single = np.asarray(found.expected_runtime)
    double = short_messages(_problem(PAPER), LIMITS)
    np.testing.assert_allclose(single, double.expected_runtime, rtol=2e-3)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (_problem(PAPER, setup_cycles=1.0), "without setup_cycles"),
        (_problem(PAPER, start_up=bcgc.Exponential(1.0)), "constant start_up"),
        (_problem(bcgc.Unlike([PAPER] * 4)), "workers that are alike"),
        (_problem(bcgc.Pareto(1.0, 0.9)), "infinite"),
    ],
)
def test_what_cannot_be_planned_is_refused(problem, message):
    with pytest.raises(ValueError, match=message):
        short_messages(problem)


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="limit must be"):
        short_messages(_problem(PAPER), 0.0)
    with pytest.raises(ValueError, match="a row of them"):
        short_messages(_problem(PAPER), np.ones((1, 1)))
    with pytest.raises(ValueError, match="tolerance must be"):
        short_messages(_problem(PAPER), tolerance=0.0)
    with pytest.raises(ValueError, match="known before tracing"):
        jax.jit(lambda n: short_messages(bcgc.Problem(PAPER, n, 10, max_workers=4)))(3)

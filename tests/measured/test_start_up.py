"""Start-up and cycle time apart: known laws found again, dependence kept, and what cannot be told refused."""

from typing import Any

import jax
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.measured import Trace, fit_start_up
from bcgc_jax.measured.start_up_likelihood import CYCLE_TIMES, START_UPS, Model, Moments, Times

LOADS = np.array([100.0, 200.0, 400.0])
WORKERS = 6


def _trace(seconds, load, workers=WORKERS, censored=None):
    step, worker = np.divmod(np.arange(seconds.size), workers)
    names = np.arange(step.max() + 1).astype(str), np.arange(workers).astype(str)
    cut = np.zeros(seconds.size, bool) if censored is None else censored
    return Trace(*names, step, worker, seconds, cut, load)


def _load(size):
    return LOADS[np.arange(size) // WORKERS % 3]


# Of S and T: draws, families and means.
SIMULATED = {
    "gamma": (
        lambda rng, n: (rng.gamma(4.0, 0.5, n), 0.01 + rng.exponential(0.01, n)),
        ("gamma", "shifted-exponential"),
        (2.0, 0.02),
    ),
    "exponential": (
        lambda rng, n: (rng.exponential(2.0, n), 0.01 + rng.exponential(0.01, n)),
        ("exponential", "shifted-exponential"),
        (2.0, 0.02),
    ),
    "weibull": (
        lambda rng, n: (2 * rng.weibull(1.5, n), 0.005 + rng.gamma(2.0, 0.005, n)),
        ("weibull", "gamma"),
        (1.80549, 0.015),
    ),
    "constant": (
        lambda rng, n: (np.full(n, 2.0), 0.01 + rng.exponential(0.01, n)),
        ("constant", "shifted-exponential"),
        (2.0, 0.02),
    ),
}


def _fitted(name, seed, size, replicates):
    draw, (start_up, cycle_time), means = SIMULATED[name]
    start, cycle = draw(np.random.default_rng(seed), size)
    load = _load(size)
    fit = fit_start_up(
        jax.random.key(seed),
        _trace(start + cycle * load, load),
        start_ups=[start_up],
        cycle_times=[cycle_time],
        num_replicates=replicates,
    )
    share = means[0] / (means[0] + 200 * means[1])
    told = fit.mean_start_up, fit.mean_cycle_time, fit.share(200)
    return fit, np.array([(e.value - m) / e.error for e, m in zip(told, (*means, share), strict=True)])


def test_known_laws_are_found_within_their_errors():
    fit, off = _fitted("gamma", 0, 480, 12)
    assert np.all(np.abs(off) < 3)
    assert isinstance(fit.start_up, bcgc.Gamma)
    assert isinstance(fit.cycle_time, bcgc.ShiftedExponential)
    for law, errors, truth in (
        (fit.start_up, fit.start_up_errors, {"shape": 4.0, "rate": 2.0}),
        (fit.cycle_time, fit.cycle_time_errors, {"rate": 100.0, "shift": 0.01}),
    ):
        assert set(errors) == set(truth)
        for name, value in truth.items():
            assert abs(float(getattr(law, name)) - value) < 3 * errors[name]
    assert fit.laws == {"cycle_time": fit.cycle_time, "start_up": fit.start_up}
    assert (fit.loads, fit.num_times, fit.dependent) == ((100.0, 231.25, 400.0), 480, False)
    remarks = " ".join(fit.remarks())
    assert "of the time does not grow with the load at a load of 100" in remarks
    assert (
        "taken as independent: with one load in each iteration they are not both seen; the variance"
        in remarks
    )


@pytest.mark.study
@pytest.mark.slow
@pytest.mark.parametrize("name", ["weibull", "constant"])
def test_intervals_of_95_percent_hold_the_truth_as_often(name):
    """So they do for the other two families, which take as long."""
    off = np.array([_fitted(name, seed, 480, 40)[1] for seed in range(40)])
    held = np.mean(np.abs(off) < 1.96, axis=0)
    # Two standard errors of a share of 95 % below 95 %, of 40.
    assert np.all(held >= 0.875), held
    # Neither are they wide for nothing.
    assert np.all(np.std(off, axis=0) > 0.75)


@pytest.mark.slow
def test_the_plan_of_a_fit_costs_hardly_more_than_that_of_the_truth():
    law, start_up = bcgc.ShiftedExponential(100.0, 0.01), bcgc.Gamma(4.0, 2.0)

    def problem(**given):
        return bcgc.Problem(num_workers=WORKERS, num_coordinates=1400, **given)

    true = problem(cycle_time=law, start_up=start_up)
    best = float(bcgc.solve(true).expected_runtime)
    for seed in range(5):
        fit, _ = _fitted("gamma", seed, 480, 10)
        plan = bcgc.solve(problem(**fit.laws))
        assert float(bcgc.expected_runtime(true, np.asarray(plan.partition))) < 1.01 * best


@pytest.mark.slow
def test_the_families_are_chosen_by_akaike():
    start, cycle = SIMULATED["weibull"][0](np.random.default_rng(5), 1500)
    heard: list[str] = []
    load = _load(1500)
    fit = fit_start_up(
        jax.random.key(0), _trace(start + cycle * load, load), num_replicates=20, progress=heard.append
    )
    assert {c.start_up for c in fit.candidates} >= {"none"}
    assert [c.aic for c in fit.candidates] == sorted(c.aic for c in fit.candidates)
    assert fit.candidates[0].start_up in ("weibull", "gamma")
    none = next(c for c in fit.candidates if c.start_up == "none")
    assert none.aic > fit.candidates[0].aic + 100
    assert abs(fit.mean_start_up.value - 1.80549) < 3 * fit.mean_start_up.error
    assert "weibull + gamma" in heard
    # Where no time is without load, none is found.
    fit = fit_start_up(
        jax.random.key(0), _trace(cycle * load, load), start_ups=["none", "constant"], num_replicates=10
    )
    assert fit.share(200).value < 0.02


def test_the_likelihood_is_that_of_its_terms():
    """Of constants and of censored times, by SciPy."""
    stats = pytest.importorskip("scipy.stats")
    load, seconds = np.array([1.0, 2.0, 4.0, 2.0]), np.array([5.0, 7.0, 9.0, 6.0])
    cut = np.array([False, False, False, True])

    def laws(model: Model, point: np.ndarray) -> Any:
        return model.laws(point)

    with jax.enable_x64(True):
        model = Model("constant", "gamma", Times(seconds, load, cut, 1e-9))
        point = np.array([0.0, 0.0, -1.0, np.log(2.0), np.log(3.0), -0.5])
        start, cycle = laws(model, point)
        s, law = float(start.value), stats.gamma(2.0, float(cycle.shift), 1 / 3)
        value, slope, squares = model.scores(point)
        expected = np.sum(law.logpdf((seconds[:3] - s) / load[:3]) - np.log(load[:3]))
        assert value == pytest.approx(expected + law.logsf((6.0 - s) / 2), rel=1e-9)
        assert squares == pytest.approx(squares.T)
        for k in (2, 3, 4, 5):
            up, down = point.copy(), point.copy()
            up[k], down[k] = up[k] + 1e-6, down[k] - 1e-6
            difference = (model.scores(up)[0] - model.scores(down)[0]) / 2e-6
            assert slope[k] == pytest.approx(difference, rel=1e-5)
        model = Model("exponential", "constant", Times(seconds, load, cut, 1e-9))
        start, cycle = laws(model, point)
        expected = np.sum(stats.expon.logpdf(seconds[:3] - float(cycle.value) * load[:3]))
        later = stats.expon.logsf(6.0 - 2 * float(cycle.value))
        assert model.scores(point)[0] == pytest.approx(expected + later, rel=1e-9)
    with pytest.raises(ValueError, match="either S or T must be random"):
        Model("none", "constant", Times(seconds, load, cut, 1e-9))


@pytest.mark.slow
def test_a_search_does_not_end_on_the_lower_of_two_tops():
    """Draws with which a search from estimated variances ended 117 and 338 below."""
    for seed in (7, 13):
        rng = np.random.default_rng(seed)
        load = LOADS[np.arange(500) // 10 % 3]
        seconds = np.exp(0.5 + 0.6 * rng.normal(size=500)) + load * (0.005 + 0.01 * rng.weibull(1.7, 500))
        times = Times(seconds, load, np.zeros(500, bool), 1e-3)
        with jax.enable_x64(True):
            found = Model("lognormal", "weibull", times).top(Moments(np.array([1.6, 0.0143]), 3.0, 233.0))
        assert found.log_likelihood == pytest.approx({7: -896.0132, 13: -970.6048}[seed], abs=0.02)


def _blocks(seed, steps, dependence, noise=0.02):
    rng = np.random.default_rng(seed)
    size = steps * WORKERS
    z = rng.normal(size=(2, size))
    z[1] = dependence * z[0] + np.sqrt(1 - dependence**2) * z[1]
    start, cycle = np.exp(0.5 + 0.5 * z[0]), 0.01 + 0.01 * np.exp(0.6 * z[1])
    seconds = start[:, None] + cycle[:, None] * LOADS + noise * rng.normal(size=(size, 3))
    one = _trace(np.ones(size), np.ones(size))
    trace = one._replace(
        step=np.repeat(one.step, 3),
        worker=np.repeat(one.worker, 3),
        seconds=np.maximum.accumulate(seconds, axis=1).ravel(),
        censored=np.zeros(3 * size, bool),
        load=np.tile(LOADS, size),
    )
    return trace, start, cycle


FAMILIES: Any = {"start_ups": ["lognormal"], "cycle_times": ["lognormal"], "num_replicates": 10}


@pytest.mark.slow
def test_several_loads_in_an_iteration_keep_what_s_and_t_have_to_do_with_each_other():
    trace, start, cycle = _blocks(0, 40, 0.6)
    fit = fit_start_up(jax.random.key(0), trace, **FAMILIES)
    assert fit.dependent
    assert fit.pairs is not None
    np.testing.assert_allclose(fit.pairs[:, 0], start, atol=0.1)
    np.testing.assert_allclose(fit.pairs[:, 1], cycle, atol=4e-4)
    law = fit.laws["cycle_time"]
    assert isinstance(law, bcgc.laws.Pairs)
    assert "start_up" not in fit.laws
    assert abs(fit.mean_start_up.value - np.exp(0.625)) < 3 * fit.mean_start_up.error
    assert "they depend on each other, and are kept as pairs" in " ".join(fit.remarks())
    # A worker of one load in a step says nothing of the two.
    some = np.r_[1:9, 9 : trace.seconds.size]
    some = some[some != 2]
    short = Trace(*trace[:2], *(x[some] for x in trace[2:-1]))
    fit = fit_start_up(jax.random.key(0), short, **FAMILIES)
    assert (fit.num_times, fit.num_left_out) == (239, 1)


def test_independent_ones_have_laws_of_their_own():
    trace, *_ = _blocks(1, 40, 0.0)
    fit = fit_start_up(jax.random.key(0), trace, **FAMILIES)
    assert not fit.dependent
    assert set(fit.laws) == {"start_up", "cycle_time"}
    assert isinstance(fit.start_up, bcgc.Lognormal)
    assert "no more than chance" in " ".join(fit.remarks())
    # A start-up that is always the same.
    constant = trace._replace(seconds=np.tile(LOADS, 240) * np.repeat(_blocks(2, 40, 0.0)[2], 3) + 2.0)
    fit = fit_start_up(jax.random.key(0), constant, **FAMILIES)
    assert isinstance(fit.start_up, bcgc.Deterministic)
    assert fit.mean_start_up.value == pytest.approx(2.0, rel=1e-6)
    assert not fit.dependent


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"load": None}, "the trace has no loads: with one load the time before the work cannot be told"),
        ({"load": np.full(60, 100.0)}, "all loads are 100: with one load"),
        ({"load": np.linspace(100, 100.5, 60)}, "all loads are alike, from 100 to 100.5: with one load"),
        ({"load": np.r_[0.0, _load(59)]}, "loads must be finite and positive, got 0"),
        ({"load": np.r_[-5.0, _load(59)]}, "loads must be finite and positive, got -5"),
        ({"seconds": np.r_[np.nan, np.ones(59)]}, "seconds must be finite and positive, got nan"),
        ({"censored": np.arange(60) > 8}, "at least 10 times that are not cut off, got 9"),
        ({"seconds": 2 + 0.5 * _load(60)}, r"all times are 2 \+ 0.5 · load: nothing is random"),
    ],
)
def test_what_cannot_tell_them_apart_is_refused(change, message):
    trace = _trace(np.random.default_rng(0).gamma(2.0, 1.0, 60) + 0.1 * _load(60), _load(60))
    with pytest.raises(ValueError, match=message):
        fit_start_up(jax.random.key(0), trace._replace(**change))


def test_unknown_families_and_too_few_samples():
    trace = _trace(np.random.default_rng(0).gamma(2.0, 1.0, 60) + 0.1 * _load(60), _load(60))
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="start_ups: unknown family 'cauchy'; known: none, constant"):
        fit_start_up(key, trace, start_ups=["cauchy"])
    with pytest.raises(ValueError, match="cycle_times: no family"):
        fit_start_up(key, trace, cycle_times=[])
    with pytest.raises(ValueError, match="num_replicates must be at least 10, got 2"):
        fit_start_up(key, trace, num_replicates=2)
    assert set(START_UPS) - {"none"} <= set(CYCLE_TIMES)

"""Plans on measured times, replayed: against NumPy and an event loop, and what a study says of them."""

import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.plans.desk import chunk_sizes
from bcgc_jax.plans.plan import cyclic_plan
from bcgc_jax.plans.runtime import load_of_plan
from bcgc_jax.plans.storage import spread
from experiments import replay, traces
from tests.cli.steps import written
from tests.measured.test_intervals import autoregressive
from tests.oracles.sharing import shared
from tests.studies import Ran

# Those that compile little: all windows and all that is replayed have one shape.
FEW = {name: replay.RULES[name] for name in ("uncoded", "sharing:2")} | {
    "shares": replay.Rule(replay.by_speed),
    "shares 6/5": replay.Rule(replay.by_speed, 6, 5),
    "shares 50/3": replay.Rule(replay.by_speed, 50, 3),  # more than there is: it is cut
}


def times_of(steps=24, workers=4, seed=5):
    """Times that stay: a worker's speed drifts, and one is slow for a while."""
    rng = np.random.default_rng(seed)
    drift = 1 + 0.2 * np.cumsum(rng.normal(size=(steps, workers)), axis=0) / np.sqrt(steps)
    times = np.abs(drift) + rng.gamma(2.0, 0.2, (steps, workers)) + 0.3
    times[steps // 2 :, -1] *= 1.7
    return times


@pytest.mark.study
@pytest.mark.slow
def test_plans_see_their_window_only_and_are_replayed_as_numpy_does(x64):
    rows, planned = times_of(), 12
    found = replay.replay(rows, planned, rules=FEW)
    rest = rows[planned:]
    np.testing.assert_allclose(found["uncoded"], rest.max(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found["limit"], 4 / np.sum(1 / rest, axis=1), rtol=1e-12)
    for i, row in enumerate(rest):
        now, made, last = planned + i, planned + i // 5 * 5, planned + i // 3 * 3
        windows = {"shares": rows[:planned], "shares 6/5": rows[made - 6 : made]}
        for name, seen in (windows | {"shares 50/3": rows[last - 12 : last]}).items():
            speed = 1 / seen.mean(axis=0)
            assert found[name][i] == pytest.approx((4 * speed / speed.sum() * row).max(), rel=1e-12), name
        holders = spread(4, 2, len(chunk_sizes(8))).holders
        one_by_one = shared(holders, chunk_sizes(8), np.zeros(4), rows[now] / 32)
        assert found["sharing:2"][i] == pytest.approx(one_by_one, rel=1e-9)


@pytest.mark.parametrize("forward", [0.0, 0.5])
def test_every_pass_that_a_plan_adds_is_counted(forward, x64):
    """One subset takes a worker its time, two take it twice as long."""
    given = replay.problem(bcgc.Uniform(1.0, 2.0), 4, forward)
    work = load_of_plan(given, cyclic_plan(given.total, 2)).work
    np.testing.assert_allclose(given.scale * work, [1, 2], rtol=1e-12)


def test_intervals_are_those_of_blocks_resampled_one_by_one():
    rng = np.random.default_rng(3)
    common = np.exp(0.3 * autoregressive(0.6, 150, 4))
    names = ("uncoded", "shares")
    taken = {name: common * (1 - 0.1 * i) + 0.3 * rng.gamma(2.0, size=150) for i, name in enumerate(names)}
    rows = {row.scheme: row for row in traces.intervals("x", taken, 7, 0)}
    draws = []
    for _ in range(4000):
        starts = rng.integers(0, 150, 22)
        chosen = [(start + j) % 150 for start in starts for j in range(7)]
        mean = {name: taken[name][chosen].mean() for name in names}
        draws.append((mean["shares"], 100 * (1 - mean["shares"] / mean["uncoded"])))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    row = rows["shares"]
    for i, interval in enumerate((row.taken, row.saved)):
        # Measured: 0.04 of the width, of 2000 and 4000 draws.
        room = 0.12 * (high[i] - low[i])
        assert [interval.low, interval.high] == pytest.approx([low[i], high[i]], abs=room)
    assert row.saved.value == pytest.approx(100 * (1 - taken["shares"].mean() / taken["uncoded"].mean()))
    assert rows["uncoded"].saved == (0, 0, 0)


@pytest.mark.slow
def test_a_folder_of_traces_is_one_table_and_one_figure(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "measured"
    folder.mkdir()
    written(folder / "one.csv", times_of())
    lacking = times_of(26, seed=6)
    lacking[[3, 9], [0, 2]] = np.nan
    written(folder / "two.csv", lacking)
    (folder / "README.md").write_text("no trace")
    few = {name: FEW[name] for name in ("uncoded", "sharing:2", "shares 6/5")}
    monkeypatch.setattr(traces.compute, "__kwdefaults__", {"rules": few})
    found = Ran(traces, tmp_path, capsys, seed=0, traces=folder)
    assert all(f"{name}:" in found.printed for name in ("one", "two"))
    assert found.drew("traces")
    rows = {(row["trace"], row["scheme"]): row for row in found.rows("traces")}
    assert len(rows) == 2 * (len(few) + len(replay.BOUNDS))
    whole = np.delete(lacking, [3, 9], axis=0)
    uncoded = float(rows["two", "uncoded"]["taken"])
    assert uncoded == pytest.approx(whole[12:].max(axis=1).mean())
    for (_, scheme), row in rows.items():
        assert float(row["saved_low"]) <= float(row["saved"]) <= float(row["saved_high"])
        assert float(row["saved"]) <= float(rows[row["trace"], "limit"]["saved"]), scheme

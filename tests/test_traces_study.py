"""Plans on measured times, replayed: against NumPy and a linear programme, and what a study says of them."""

import jax
import numpy as np
import pytest
from scipy import signal

from experiments import replay, traces
from tests.cli.steps import written
from tests.oracles.programme import best_shares, level_times
from tests.studies import Ran

# Those that compile little: all windows and all that is replayed have one shape.
FEW = {name: replay.RULES[name] for name in ("uncoded", "last step", "cyclic:2", "shares")} | {
    "whole steps 12/5": replay.RULES["whole steps"]._replace(window=12, every=5),
    "shares 6/5": replay.RULES["shares"]._replace(window=6, every=5),
    "shares 50/3": replay.RULES["shares"]._replace(window=50, every=3),  # more than there is: it is cut
}


def times_of(steps=24, workers=4, seed=5):
    """Times that stay: a worker's speed drifts, and one is slow for a while."""
    rng = np.random.default_rng(seed)
    drift = 1 + 0.2 * np.cumsum(rng.normal(size=(steps, workers)), axis=0) / np.sqrt(steps)
    times = np.abs(drift) + rng.gamma(2.0, 0.2, (steps, workers)) + 0.3
    times[steps // 2 :, -1] *= 1.7
    return times


def best(rows):
    """The least mean runtime of `rows` and its partition, by a linear programme."""
    return best_shares(level_times(rows))


def runtime(x, times):
    return (level_times(times[None])[0] @ x).max()


@pytest.mark.slow
def test_plans_see_their_window_only_and_are_replayed_as_numpy_does(x64):
    rows, planned = times_of(), 12
    found = replay.replay(rows, planned, rules=FEW)
    for i in range(12):
        now = planned + i
        made = planned + i // 5 * 5
        want = {
            "uncoded": (rows[:planned].max(axis=1).mean(), rows[now].max()),
            "limit": (np.mean([4 / sum(1 / t for t in row) for row in rows[:planned]]), None),
        }
        # Worker w begins with subset w, and goes on with the next one: two of them may do a subset.
        twice = np.minimum(rows, 2 * np.roll(rows, 1, axis=1)).max(axis=1)
        want["cyclic:2"] = twice[:planned].mean(), twice[now]
        last = planned + i // 3 * 3
        windows = {"shares": rows[:planned], "shares 6/5": rows[made - 6 : made]}
        for name, seen in (windows | {"shares 50/3": rows[last - 12 : last]}).items():
            speed = 1 / seen.mean(axis=0)
            share = 4 * speed / speed.sum()
            want[name] = (share * seen).max(axis=1).mean(), (share * rows[now]).max()
        previous = best(rows[now - 1 : now])[1]
        want["last step"] = runtime(previous, rows[now - 1]), runtime(previous, rows[now])
        want["whole steps 12/5"] = best(rows[made - 12 : made])[0], None
        for name, (promised, taken) in want.items():
            # Measured: 7e-7, the tolerance of cutting planes.
            assert found[name].promised[i] == pytest.approx(promised, rel=3e-6), name
            if taken is not None:
                assert found[name].taken[i] == pytest.approx(taken, rel=1e-9), name
    assert found["hindsight"].taken.mean() == pytest.approx(best(rows[planned:])[0], rel=3e-6)
    each = [best(row[None])[0] for row in rows[planned:]]
    assert found["each step's best"].taken == pytest.approx(each, rel=1e-9)
    assert np.all(found["limit"].taken <= found["each step's best"].taken)


def test_shared_work_takes_as_long_as_the_free_workers_need(x64):
    same, halved = np.full(4, 3.0), np.array([1.0, 1.0, 1.0, 1e9])
    taken = replay.shared_out(np.stack([same, halved]))
    # Three workers do 20 chunks of 0.2, seven each at most.
    assert taken == pytest.approx([3.0, 1.4])


def autoregressive(correlation, size, seed=0):
    return signal.lfilter([1.0], [1.0, -correlation], np.random.default_rng(seed).normal(size=size))


@pytest.mark.parametrize("correlation", [0.4, 0.8])
def test_blocks_are_as_long_as_those_of_an_autoregression_must_be(correlation):
    size = 4000  # R(k) ∝ ρ^k in the formula
    want = (6 * (correlation / (1 - correlation**2)) ** 2 * size) ** (1 / 3)
    found = [traces.block_length(autoregressive(correlation, size, seed)) for seed in range(20)]
    # Measured: 0.99 and 1.01 times.
    assert np.median(found) == pytest.approx(want, rel=0.15)


def test_blocks_of_noise_are_short_and_those_of_a_walk_as_long_as_may_be():
    noise = np.random.default_rng(1).normal(size=900)
    assert traces.block_length(noise) <= 6
    assert traces.block_length(np.cumsum(noise)) == 90
    assert traces.block_length(np.full(50, 3.0)) == traces.block_length(np.zeros(4)) == 1


def test_intervals_are_those_of_blocks_resampled_by_numpy(x64):
    rng = np.random.default_rng(3)
    common = np.exp(0.3 * autoregressive(0.6, 150, 4))
    names = ("uncoded", "shares", "hindsight")
    taken = {name: common * (1 - 0.1 * i) + 0.3 * rng.gamma(2.0, size=150) for i, name in enumerate(names)}
    promised = {name: np.repeat(rng.gamma(9.0, 0.2, 15), 10) for name in names}
    found = {name: replay.Replayed(promised[name], taken[name]) for name in names}
    rows = {row.scheme: row for row in traces._rows("x", found, 7, jax.random.key(0))}
    draws = []
    for _ in range(4000):
        starts = rng.integers(0, 150, 22)
        chosen = [(start + j) % 150 for start in starts for j in range(7)]
        mean = {name: taken[name][chosen].mean() for name in names}
        saved, regret = 1 - mean["shares"] / mean["uncoded"], mean["shares"] / mean["hindsight"] - 1
        late = mean["shares"] / promised["shares"][chosen].mean() - 1
        draws.append((mean["shares"], 100 * saved, 100 * regret, 100 * late))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    row = rows["shares"]
    for i, interval in enumerate((row.taken, row.saved, row.regret, row.late)):
        # Measured: 0.04 of the width, of 2000 and 4000 draws.
        room = 0.12 * (high[i] - low[i])
        assert [interval.low, interval.high] == pytest.approx([low[i], high[i]], abs=room)
    assert row.saved.value == pytest.approx(100 * (1 - taken["shares"].mean() / taken["uncoded"].mean()))
    assert row.late.value == pytest.approx(100 * (taken["shares"].mean() / promised["shares"].mean() - 1))
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
    few = {name: FEW[name] for name in ("uncoded", "last step", "cyclic:2", "shares 6/5", "whole steps 12/5")}
    monkeypatch.setattr(traces.compute, "__kwdefaults__", {"rules": few})
    found = Ran(traces, tmp_path, capsys, seed=0, traces=folder)
    assert all(f"{name}: " in found.printed for name in ("one", "two"))
    assert found.drew("traces")
    rows = {(row["trace"], row["scheme"]): row for row in found.rows("traces")}
    assert len(rows) == 2 * (len(few) + len(replay.KNOWING))
    assert rows["one", "cyclic:2"]["kind"] == traces.SCHEDULE
    whole = np.delete(lacking, [3, 9], axis=0)
    uncoded = float(rows["two", "uncoded"]["taken"])
    assert uncoded == pytest.approx(whole[12:].max(axis=1).mean())
    for row in rows.values():
        assert float(row["saved_low"]) <= float(row["saved"]) <= float(row["saved_high"])
        # The best fixed partition is beaten by those that are not fixed only.
        assert float(row["regret"]) > -1e-3 or row["scheme"] not in ("uncoded", "hindsight")

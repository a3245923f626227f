"""The closed loop on cycle times that it is not told, against plans that know them."""

import dataclasses
import functools
from collections import deque
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcgc_jax.adaptive import RULES, Decision, Planner, WorkPlan
from bcgc_jax.adaptive.rules import Window, rules
from bcgc_jax.plans.completion import AnyOf, OneOfEach
from bcgc_jax.plans.plan import Plan, cyclic_plan, partition_plan
from experiments import adaptive as study
from tests.cli.steps import written
from tests.compilations import compilations
from tests.oracles.circle import simulated
from tests.problems import nested_groups
from tests.studies import Ran

# Without what compiles a search.
CHEAP = {name: RULES[name] for name in ("uncoded", "cyclic")}


def run(times, cost=0.0, starts=None, rules=CHEAP, seen=None):
    """All that it took, changes included, and the planner at the end; `seen` gets the names of the plans."""
    costs = {"change_seconds": cost, "move_seconds": cost}
    planner = Planner(times.shape[1], len(times), key=jax.random.key(0), rules=rules, **costs)
    total = 0.0
    for row, start in zip(times, np.zeros_like(times) if starts is None else starts, strict=True):
        plan = planner.plan
        taken = float(plan.runtimes(row[None], start[None])[0])
        known = start + row * plan.loads[:, 0] <= taken * (1 + 1e-12)
        at_least = np.where(known, row, taken / plan.loads[:, 0])
        planner.observe(at_least, known, taken, start_ups=np.where(known, start, 0))
        total += taken + (planner.plan is not plan) * cost * (1 + planner.plan.moved(plan))
        if seen is not None:
            seen.append(plan.name)
    return total, planner


def test_workers_of_different_speeds_get_shares_of_them():
    rng, speed = np.random.default_rng(0), np.array([1.0, 1.0, 2.0, 4.0])
    times = rng.uniform(0.98, 1.02, (60, 4)) / speed
    total, planner = run(times)
    # With shares by speed all end at once: N / Σ speed = 0.5 of the slowest one's time.
    assert planner.plan.name == "cyclic"
    np.testing.assert_allclose(planner.plan.shares, speed / speed.sum(), rtol=0.02)  # worst 0.7 %
    assert total < 0.62 * times.max(axis=1).sum()  # 0.556
    first = planner.decisions[0]
    assert first.before == "cyclic"
    begun = RULES["cyclic"](Window(np.ones((1, 4)), 4, jax.random.key(0))).runtimes(times[: first.step])
    assert first.mean_time == pytest.approx(begun.mean())
    assert first.expected + first.gain == pytest.approx(first.mean_time, rel=0.05)


def test_where_nothing_is_to_be_gained_nothing_is_changed():
    times = np.random.default_rng(2).uniform(1.0, 1.004, (200, 6))
    total, planner = run(times)
    assert planner.decisions == []
    assert times.mean(axis=1).sum() < total < times.max(axis=1).sum()


def test_what_is_saved_is_less_sure_where_iterations_depend_on_the_one_before():
    rng = np.random.default_rng(4)
    planner = run(rng.uniform(1.0, 1.004, (30, 4)))[1]
    saved, noise = np.full(30, 0.5), rng.normal(0, 0.1, 30)
    for k in range(1, 30):
        noise[k] += 0.7 * noise[k - 1]
    planner._own, planner._losses["uncoded"] = deque(saved + noise + 1), deque(np.ones(30))
    planner._extra = {name: deque([0.0]) for name in CHEAP}
    gain, error = planner._gain("uncoded")
    away = noise - noise.mean()
    tied = np.sum(away[1:] * away[:-1]) / np.sum(away**2)
    assert 0.2 < tied < 0.9
    assert gain == pytest.approx(0.5 + noise.mean())
    assert error == pytest.approx(noise.std(ddof=1) / np.sqrt(30) * np.sqrt((1 + tied) / (1 - tied)))


def test_who_was_stopped_is_guessed_by_what_took_longer_start_up_included():
    planner = Planner(2, 100, key=jax.random.key(0), rules=CHEAP)
    for time, start in ((1.0, 2.5), (2.0, 0.0)):
        planner._add(np.full(2, time), np.ones(2, bool), np.full(2, start), np.ones(2))
    planner._add(np.full(2, 3.0), np.zeros(2, bool), np.zeros(2), np.ones(2))
    assert (planner._times[-1].tolist(), planner._starts[-1].tolist()) == ([1.0, 1.0], [2.5, 2.5])
    assert planner._max_stored == 2  # no more than there are


def test_a_plan_is_expected_to_last_twice_as_long_as_the_last_ones():
    planner = Planner(4, 1000, key=jax.random.key(0), rules=CHEAP)
    planner.decisions = [Decision(9 + 2 * k, "", "", 0.0, 0.0, 0.0) for k in range(3)]
    planner.step = 9 + 2 * 3
    assert planner._horizon() == 2 * 2


@pytest.mark.parametrize(
    ("at_hand", "gain", "taken"), [(4.0, 1.0, 0), (6.0, 1.0, 1), (4.0, 3.0, 1), (6.0, 0.4, 0)]
)
def test_a_gain_that_is_not_sure_is_taken_where_its_cost_is_at_hand(at_hand, gain, taken, monkeypatch):
    """Of a standard error of 1 and a cost of 5."""
    planner, change = Planner(4, 100, key=jax.random.key(0), rules=CHEAP), Mock()
    for name, value in {"_gain": (gain, 1.0), "_cost": 5.0, "_affordable": at_hand}.items():
        monkeypatch.setattr(planner, name, Mock(return_value=value))
    monkeypatch.setattr(planner, "_change", change)
    planner._plans["other"] = dataclasses.replace(planner.plan)
    del planner._plans["uncoded"]
    planner._choose()
    assert change.call_count == taken


@pytest.mark.parametrize("seed", range(2))
def test_changes_that_cost_much_cost_no_more_than_what_may_be_lost(seed):
    """Speeds that change as fast as they are learned: hysteresis and the stake."""
    rng, slow = np.random.default_rng(seed), np.ones((300, 5))
    slow[np.arange(300), np.arange(300) // 7 % 5] = 2.5
    times = slow * rng.uniform(0.9, 1.1, slow.shape)
    total, _ = run(times, cost=float(times.max(axis=1).mean()))
    assert total < 1.03 * times.max(axis=1).sum()  # worst 0.99


def test_a_jump_is_noticed_and_the_plan_follows():
    rng, slow = np.random.default_rng(3), np.ones((200, 5))
    slow[100:, 0] = 4
    times = slow * rng.uniform(0.8, 1.2, slow.shape)
    _, planner = run(times)
    after = [d for d in planner.decisions if d.step >= 102]  # those before know one such iteration at most
    assert after[0].step <= 118
    late = planner.plan.runtimes(times[150:]).mean()
    assert late < 1.2 * np.mean(5 / np.sum(1 / times[150:], axis=1))  # of what is possible at all; 1.10


def test_a_worker_that_is_never_done_is_asked_for_its_time():
    """With replication alone nobody but the fastest is heard of."""
    sizes: Any = np.ones(1)
    plan = Plan(sizes, np.zeros(1, int), np.full(1, 3), np.ones(1), AnyOf(3, np.array([2])))
    replicated = WorkPlan("coded", np.full(3, 1 / 3), plan)
    times = np.array([0.1, 1.0, 1.0]) * np.random.default_rng(4).uniform(0.9, 1.1, (40, 3))
    names: list[str] = []
    run(times, rules={"uncoded": RULES["uncoded"], "coded": lambda _: replicated}, seen=names)
    begin = names.index("coded")
    assert begin <= 8
    gaps = np.diff([k for k in range(begin, 40) if names[k] == "uncoded"])
    assert set(gaps.tolist()) == {11}


def test_where_beginning_takes_longest_more_is_done_by_each():
    """A load of all the data costs little more than that of one subset: whoever begins first does it."""
    rng = np.random.default_rng(8)
    starts, times = rng.exponential(1.0, (40, 6)), rng.uniform(0.05, 0.06, (40, 6))
    total, planner = run(times, starts=starts)
    assert "cyclic" in planner.plan.name
    assert total < 0.6 * (starts + times).max(axis=1).sum()  # 0.50


def test_what_preparing_takes_is_a_cost_of_the_change_and_none_of_the_rule():
    times, planner = np.full((12, 4), 1.0), Planner(4, 100, key=jax.random.key(0), rules=CHEAP)
    for k, row in enumerate(times):
        more = 0.1 + (0.4 if 5 <= k < 8 else 0.0)
        planner.observe(row, np.ones(4, bool), 1.0 + more, preparing=5 <= k < 8)
    planner.taken_up(0.2)
    assert planner.change_seconds == pytest.approx(0.2 + 3 * 0.4)
    assert planner._more("cyclic") == pytest.approx(0.1)
    planner.taken_up(0.2)
    assert planner.change_seconds == pytest.approx(0.2)


def test_nested_groups_are_for_a_load_of_1_without_redundancy_and_leave_out_what_is_empty(monkeypatch):
    groups, sizes = nested_groups((1, 2, 4), 4), jnp.array([4e5, 0.0, 6e5])
    found = Plan(sizes, np.arange(3), np.ones((4, 3), int), np.ones(3), OneOfEach(groups))
    solve = Mock(return_value=SimpleNamespace(plan=found))
    monkeypatch.setattr("bcgc_jax.adaptive.rules.solve", solve)
    times = np.random.default_rng(0).exponential(1.0, (9, 4))
    made: Any = RULES["nested"](Window(times, 3, jax.random.key(0), 0.5)).plan
    problem, method = solve.call_args.args
    assert float(problem.scale * problem.total) == pytest.approx(1)
    assert (float(problem.start_up), method.max_subsets) == (0.5, 3)
    np.testing.assert_allclose(made.sizes, [0.4, 0.6])
    assert made.completion.groups == (groups[0], groups[2])


def test_iterations_beside_which_workers_prepare_tell_nothing_of_their_times():
    """Whoever compiles beside its work is slower than it is."""
    rng = np.random.default_rng(6)
    times = 0.5 + rng.exponential(0.5, (30, 4))
    planners = [Planner(4, 100, key=jax.random.key(0), rules=CHEAP) for _ in range(2)]
    for planner, slower in zip(planners, (1.0, 9.0), strict=True):
        for k, row in enumerate(times):
            seen = row * slower if 15 <= k < 25 else row
            taken = float(planner.plan.runtimes(seen[None])[0])
            planner.observe(seen, np.ones(4, bool), taken, preparing=15 <= k < 25)
    calm, disturbed = planners
    assert len(disturbed._times) == disturbed._seen == 20
    np.testing.assert_array_equal(disturbed._times, calm._times)
    assert disturbed._disturbance > 10 * abs(calm._disturbance)


@pytest.mark.slow
def test_searches_are_compiled_once():
    """With and without start-ups, whatever the length of the window; but for the least of programs."""
    rng = np.random.default_rng(1)

    def followed(steps, is_late):
        planner = Planner(4, 200, key=jax.random.key(0), rules=rules())
        for k in range(steps):
            times, starts = 0.5 + rng.exponential(1.0, 4), rng.exponential(0.1, 4) * is_late(k)
            taken = float(planner.plan.runtimes(times[None], starts)[0])
            planner.observe(times, np.ones(4, bool), taken, start_ups=starts)
        return planner

    for late in (0, 1):
        followed(5, lambda k, late=late: late)
    with compilations() as found:
        planner = followed(60, lambda k: k % 30 > 10)
    assert planner.decisions
    assert {"nested"} <= planner._plans.keys()
    assert set(found) <= {"jit(convert_element_type)", "jit(_threefry_fold_in)", "jit(_reduce_max)"}


@pytest.mark.slow
def test_the_study_prints_and_writes_what_trainings_took(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study, "SIZES", {8: 2})
    monkeypatch.setattr(study, "LAWS", {"gamma": study.LAWS["gamma"]})
    name, drifts = "three workers become slower", study.drifts
    monkeypatch.setattr(study, "drifts", lambda *given: {name: drifts(*given)[name]})
    monkeypatch.setattr(study, "STEPS", 60)
    monkeypatch.setattr(study, "WORKERS", 8)
    monkeypatch.setattr(study, "RULES", CHEAP)
    monkeypatch.setattr(study, "Planner", functools.partial(Planner, rules=CHEAP))
    rng = np.random.default_rng(0)
    times = rng.uniform(1.0, 1.1, (40, 8)) * np.r_[np.ones(7), 3]
    written(tmp_path / "trace.csv", times)
    found = Ran(study, tmp_path, capsys, seed=0, traces=tmp_path / "trace.csv")
    trace, drift = found.rows("adaptive")
    assert float(trace["uncoded"]) == pytest.approx(times.max(axis=1).sum(), rel=1e-6)
    # A third of the speed: shares by speed take 8 / (7 + 1/3) in place of 3, but for the first iterations.
    assert 30 < float(trace["saved"]) < 64
    assert float(trace["fixed"]) == pytest.approx(100 * (1 - 8 / 22), abs=4)
    assert int(drift["changes"]) >= 1
    (early,) = found.rows("adaptive_early")
    assert abs(float(early["excess"])) < 5  # 0.9
    assert found.drew("adaptive")


@pytest.mark.parametrize("late", [False, True])
def test_runtimes_are_those_of_workers_one_after_the_other(late):
    """Of a code and of uneven subsets around the circle, with start-ups and without."""
    rng = np.random.default_rng(3)
    times, starts = rng.exponential(1.0, (40, 4)), late * rng.exponential(0.7, (40, 4))
    given = (times, starts) if late else (times,)
    coded = WorkPlan("coded", np.full(4, 0.25), partition_plan(np.array([0.3, 0.0, 0.5, 0.2]), 4))
    for row, start, found in zip(times, starts, coded.runtimes(*given), strict=True):
        ends = [(3, 0.3), (1, 0.3 + 3 * 0.5), (0, 0.3 + 3 * 0.5 + 4 * 0.2)]
        assert found == pytest.approx(max(sorted(start + row * load)[place] for place, load in ends))
    plan = WorkPlan("cyclic", np.array([0.1, 0.4, 0.3, 0.2]), cyclic_plan(1.0, 3))
    for row, start, found in zip(times, starts, plan.runtimes(*given), strict=True):
        assert found == pytest.approx(simulated(plan.plan, row, start, shares=plan.shares)[0])


def _free(passes, time, begin, end):
    """When a worker is free, pass by pass: one that has ended by the end of the iteration begins another."""
    for one in passes:
        if begin > end:
            return begin
        begin += time * one
    return max(begin, end)


def test_workers_who_cannot_be_interrupted_begin_the_next_iteration_late():
    """Of uneven subsets, one after another, and of a code on one to four subsets: measured 1e-15."""
    rng = np.random.default_rng(5)
    times, starts = rng.exponential(1.0, (12, 4)), rng.exponential(0.3, (12, 4))
    uneven = WorkPlan("cyclic", np.array([0.1, 0.4, 0.3, 0.2]), cyclic_plan(1.0, 3))
    coded = WorkPlan("coded", np.full(4, 0.25), partition_plan(np.array([0.3, 0.0, 0.5, 0.2]), 4))
    passes = [4 * uneven.shares[(w + np.arange(3)) % 4] for w in range(4)]
    for made, ones in ((uneven, passes), (coded, [[0.3] + [0.5] * 3 + [0.2] * 4] * 4)):
        late, want = np.zeros(4), []
        for time, start in zip(times, starts, strict=True):
            begin = start + late
            if made is uneven:
                end = simulated(uneven.plan, time, begin, shares=made.shares)[0]
            else:
                ends = [(3, 0.3), (1, 0.3 + 3 * 0.5), (0, 0.3 + 3 * 0.5 + 4 * 0.2)]
                end = max(sorted(begin + time * load)[place] for place, load in ends)
            want.append(end)
            # Who has not begun when it ends has nothing to do any more but what it was late for.
            free = [_free(ones[w], time[w], begin[w], end) if begin[w] <= end else late[w] for w in range(4)]
            late = np.maximum(np.array(free) - end, 0)
        np.testing.assert_allclose(made.successive(times, starts), want, rtol=1e-12)
        assert np.sum(want) > 1.05 * made.runtimes(times, starts).sum()


def test_equal_workers_who_cannot_be_interrupted_are_left_without_redundancy():
    """And nothing is searched for them. If all are free at once, redundancy evens out their times."""
    rng, search = np.random.default_rng(0), Mock()
    planner = Planner(4, 200, key=jax.random.key(0), rules=CHEAP | {"nested": search}, interruptible=False)
    for times in rng.uniform(1.0, 1.3, (200, 4)):
        assert planner.plan.name == "uncoded"
        planner.observe(times, np.ones(4, bool), float(times.max()))
    search.assert_not_called()
    free = run(rng.uniform(1.0, 1.05, (30, 4)))[1]
    assert free.plan.name == "cyclic"


@pytest.mark.parametrize(
    ("without", "names"),
    [(1.0, [8 * "c", 44 * "u", 8 * "c", 84 * "u"]), (1.5, [8 * "c", 4 * "u", 16 * "c", 4 * "u", 32 * "c"])],
)
def test_redundancy_has_to_win_by_the_clock(without, names):
    """Its records tell of workers slower than they are, for a pass is more than its share of the load.

    Each time that it loses it is left alone for twice as long, and trusted for twice as long if it wins.
    """
    planner = Planner(4, 400, key=jax.random.key(0), rules=CHEAP, interruptible=False)
    alone = without * np.array([0.5, 0.5, 0.5, 1.0])
    for _ in range(3):
        planner.observe(alone, np.ones(4, bool), without)
    planner._change("cyclic", 0.1)
    for k, name in enumerate("".join(names)):
        assert planner.plan.name[0] == name, k
        times, taken = (1.6 * alone, 1.3) if name == "c" else (alone, without)
        planner.observe(times, np.ones(4, bool), taken)
    back = [decision for decision in planner.decisions if decision.after == "uncoded"]
    assert len(back) == 2 * (without == 1.0)
    for decision in back:
        assert decision.gain == pytest.approx(0.3)


# Workers 0, 1, 2 hold thirds, then each the next one too.
@pytest.mark.parametrize(("before", "after", "moved"), [(1, 2, 1.0), (2, 1, 0.0)])
def test_what_is_held_already_is_not_sent_again(before, after, moved):
    plans = [WorkPlan("a", np.full(3, 1 / 3), cyclic_plan(1.0, stored)) for stored in (before, after)]
    assert plans[1].moved(plans[0]) == pytest.approx(moved, abs=1e-12)
    assert plans[1].moved(None) == pytest.approx(after, abs=1e-12)


def test_shares_that_shift_a_little_move_a_little():
    """Worker 0 has a tenth more from 0.5 on, and so worker 1 has nothing new."""
    before, after = (WorkPlan("a", np.array([share, 1 - share]), cyclic_plan(1.0, 1)) for share in (0.5, 0.6))
    assert after.moved(before) == pytest.approx(0.1)

"""`bcgc advise`: what it prints, as text, JSON and CSV, and what it refuses."""

import csv
import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.balancing.dispatch import join, serve
from bcgc_jax.cli import advise as advise_command
from bcgc_jax.cli import advise_files, traces
from bcgc_jax.cli.fit_answer import remarks_on
from bcgc_jax.diagnosis.advice import advise
from bcgc_jax.plans.sharing import WorkSharing
from bcgc_jax.traces.microbatches import Microbatches
from tests.cli.steps import trace_of, written, written_in_parts
from tests.traces.logs import log_of

_NO_MORE = (
    "bcgc advise --timed-apart takes the log for that, and says what else is lost."
)
assert_close: Any = np.testing.assert_allclose


@pytest.fixture
def chunks(tmp_path):
    true, log = log_of("data", 3)
    return written_in_parts(tmp_path / "chunks.csv", log.seconds, load=true.data)


def test_two_screens_say_what_to_do(command, chunks):
    status, out, err = command("advise", chunks)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) <= 48
    assert lines[0] == "chunks.csv: 8 workers, 24 steps, 8 chunks in a worker's step."
    assert any(
        line.startswith("the data: some chunks are longer than others")
        for line in lines
    )
    text = " ".join(out.split())
    assert "Do this: deal the chunks to the workers by their length. It saves" in text
    assert (
        "Lengths are predicted from load, as if that is known before the step." in text
    )
    assert "by model" not in out


def test_a_worker_that_is_slow_as_the_log_ends_is_named(answer, command, tmp_path):
    times = np.random.default_rng(5).normal(1.0, 0.01, (40, 8))
    times[20:, 3] *= 1.5
    path = written(tmp_path / "steps.csv", times)
    status, out, err = command("advise", path)
    assert (status, err) == (0, "")
    text = " ".join(out.split())
    best = answer("advise", path)["rows"][0]
    saved, low, high = (f"{100 * share:.1f}" for share in best["saved"])
    # By hand, if work were perfectly divisible: 8 workers of speeds 1 and 1 / 1.5.
    shared = (1 + 8 / (7 + 1 / 1.5)) / 2
    assert float(saved) == pytest.approx(100 * (1 - shared / 1.25), abs=2)
    assert (
        f"Nothing is advised: {best['remedy']} saves {saved} %, but perhaps nothing "
        f"({low} to {high} %). Record chunks, and more steps. The log ends while worker"
        in text
    )
    assert "look there first" in text


def test_a_log_without_chunks_is_a_range(command, tmp_path):
    rng = np.random.default_rng(2)
    times = rng.gamma(25.0, 0.04, (40, 4))
    times[:, 3] *= 1.6
    path = written(tmp_path / "steps.csv", times)
    status, out, _ = command("advise", path, "--chunks", "4")
    text = " ".join(out.split())
    assert status == 0
    assert "4 equal ones are supposed in a worker's step" in text
    assert "Worker 3 was 1." in text
    # Less than the log can tell, and that is no number.
    assert "All workers slow at once: none that shows." in text
    assert "First look at worker 3. It was 1." in text
    assert "Until then: share the work, with" in text
    assert (
        "If workers cannot ask within a step: give each worker data by its speed, anew"
        in text
    )
    (tmp_path / "few.csv").write_text(
        "\n".join((tmp_path / "steps.csv").read_text().splitlines()[:21])
    )
    text = " ".join(command("advise", str(tmp_path / "few.csv"))[1].split())
    assert "This is too little for advice: 5 steps" in text
    times[0] *= 60
    times[20:, 1] = np.nan
    text = " ".join(command("advise", written(tmp_path / "odd.csv", times))[1].split())
    assert "The first step took 6" in text
    assert "Left out: 20 steps" in text
    assert "Worker 1 has one in 20 of 40 steps." in text
    equal_steps = written(tmp_path / "same.csv", np.ones((12, 4)))
    text = " ".join(command("advise", equal_steps)[1].split())
    assert "Were they timed behind a collective" in text
    assert text.endswith(_NO_MORE)


def test_equal_workers_of_a_log_that_breaks_off(command, tmp_path):
    path = written_in_parts(tmp_path / "equal.csv", np.full((10, 6, 8), 0.05))
    text = (tmp_path / "equal.csv").read_text()
    (tmp_path / "equal.csv").write_text(text[: text.rindex("\n", 0, -1) + 1])
    status, out, err = command("advise", path)
    said = " ".join(out.split())
    assert (status, err) == (0, "")
    assert "6 workers, 9 steps, 8 chunks" in said
    assert (
        "Left out: 1 step in which a worker has fewer than 8 chunks, 7 at least."
        in said
    )
    # Rounding gave -0.0 %, and all of it to the data.
    assert "already, 0.0 % of the time is lost" in said
    assert said.endswith(_NO_MORE)
    said = " ".join(command("advise", path, "--timed-apart")[1].split())
    assert "So 0.0 % of the time is lost." in said
    assert said.count("none that shows") == 5
    assert "Nothing here pays more than 2 %." in said


def test_json_and_csv_have_the_same_rows(answer, command, chunks):
    output = answer("advise", chunks)
    assert output["advised"] == "dealt by length"
    rows = list(
        csv.DictReader(io.StringIO(command("advise", chunks, "--format", "csv")[1]))
    )
    assert [row["remedy"] for row in rows] == [row["remedy"] for row in output["rows"]]
    assert float(rows[0]["saved"]) == output["rows"][0]["saved"][0]


def test_columns_may_have_other_names(answer, tmp_path, chunks, monkeypatch):
    text = (
        (tmp_path / "chunks.csv")
        .read_text()
        .replace("step,worker,chunk,seconds", "iter,rank,mb,dur", 1)
    )
    (tmp_path / "other.csv").write_text(text)
    names = "step=iter,worker=rank,chunk=mb,seconds=dur,forward_seconds=forward_seconds"
    output = answer("advise", str(tmp_path / "other.csv"), "--columns", names)
    assert output == answer("advise", chunks)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert answer("advise", "-", "--columns", names) == output


def test_a_log_may_be_json_lines(answer, refusal, tmp_path, chunks):
    rows = list(csv.DictReader((tmp_path / "chunks.csv").open()))
    lines = [
        json.dumps({name: json.loads(text) for name, text in row.items()})
        for row in rows
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    assert answer("advise", str(tmp_path / "log.jsonl")) == answer("advise", chunks)
    for bad, said in (
        ("[1]", "not an object, such as {'step': …}"),
        (lines[2][:-9], "is the line cut off?"),
    ):
        (tmp_path / "bad.jsonl").write_text("\n".join([*lines[:2], bad]))
        refused = refusal("advise", str(tmp_path / "bad.jsonl"))
        assert "bad.jsonl, line 3: not" in refused
        assert said in refused


def test_what_cannot_be_meant_is_refused(refusal, tmp_path, chunks):
    assert ("--columns step=…,worker=…,seconds=…") in refusal(
        "advise", chunks, "--columns", "worker=rank"
    )
    assert "did you mean worker?" in refusal(
        "advise", chunks, "--columns", "wroker=rank"
    )
    assert "with names of step, worker" in refusal(
        "advise", chunks, "--columns", "worker"
    )
    assert "has 8 chunks" in refusal("advise", chunks, "--chunks", "4")
    (tmp_path / "other.csv").write_text("num_workers,rate\n1,2\n")
    assert "other.csv has the columns num_workers, rate, and " in refusal(
        "advise", chunks, str(tmp_path / "other.csv")
    )
    assert "has no effect without --method" in refusal(
        "advise", chunks, "--forward", "0.5"
    )


def test_the_picture_has_the_numbers_of_the_answer(command, tmp_path):
    times = np.random.default_rng(2).gamma(25.0, 0.04, (24, 4))
    path = written(tmp_path / "steps.csv", times)
    picture = tmp_path / "advice.svg"
    _, out, _ = command("advise", path, "--figure", str(picture))
    assert out.endswith(f"\nThe picture: {picture}\n")
    assert "sharing:2" in picture.read_text()
    advice = advise(bcgc.traces.load_trace(path))
    drawn: Any = advise_files.picture(advice)
    left, right = drawn.axes
    for axes, shares in (
        (left, [row.saved for row in advice.rows]),
        (right, sorted(advice.causes.values(), reverse=True)),
    ):
        widths = [bar.get_width() for bar in axes.patches]
        assert_close(widths, [100 * share.value for share in shares])
        ends = [line.get_xdata() for line in axes.lines[: len(shares)]]
        assert_close(ends, [[100 * share.low, 100 * share.high] for share in shares])
    by_model = left.collections[0].get_offsets()
    of_other_model = [row.range[row.range[0] >= row.saved.value] for row in advice.rows]
    assert_close(by_model[:, 0], 100 * np.array(of_other_model))
    assert [label.get_text() for label in left.get_yticklabels()] == [
        row.remedy for row in advice.rows
    ]


def test_the_plan_is_for_the_trainers_and_for_ones_own_loop(command, answer, tmp_path):
    times = np.random.default_rng(2).gamma(4.0, 0.25, (40, 4))
    path = written(tmp_path / "steps.csv", times)
    plan = tmp_path / "plan.json"
    output = answer("advise", path, "--out", str(plan))
    advised = next(row for row in output["rows"] if row["remedy"] == output["advised"])
    solution = bcgc.Solution.load(plan)
    assert solution.method == output["advised"] == "sharing:3"
    assert float(solution.expected_runtime) == pytest.approx(
        output["step"] * (1 - advised["saved"][0])
    )
    assert solution.plan is not None
    rule = solution.plan.completion
    assert isinstance(rule, WorkSharing)
    with serve(plan, key="secret"), serve(str(plan), key="secret") as coordinator:
        assert (
            len(join(coordinator.address, 0, key="secret").held) == len(rule.sizes) * 3
        )
    for wrong in (
        "{}",
        '{"plan": {"completion": {"rule": "AnyOf"}}, "method": "nested"}',
        "no",
    ):
        broken_plan = tmp_path / "other.json"
        broken_plan.write_text(wrong)
        with pytest.raises(ValueError, match=r"other.json is no plan of work sharing"):
            serve(broken_plan, key="secret")
    with pytest.raises(ValueError, match="leave out max_subsets"):
        serve(plan, 2, key="secret")
    # The clock is that of the problem that is trained for: M / N samples of L
    # coordinates.
    problem = bcgc.Problem(bcgc.Empirical(times), 4, 6, 20)
    scheme = bcgc.coding.training_scheme(
        jax.random.key(0), problem, solution, {"w": jnp.ones(6)}
    )
    assert float(scheme.load[-1]) == pytest.approx(20 / 4 * 6)


def test_without_work_sharing_no_plan_is_written(command, tmp_path, chunks):
    plan = tmp_path / "plan.json"
    # Questions take long here.
    status, out, err = command(
        "advise", chunks, "--round-trip", "0.3", "--out", str(plan)
    )
    assert status == 2
    assert not plan.exists()
    assert "Do this: deal the chunks" in out
    assert err == "bcgc: --out: no plan is written, for dealt by length needs no plan\n"


@pytest.fixture
def waited(tmp_path):
    """Times behind a collective: steps differ, and the workers of a step by 3 %."""
    rng = np.random.default_rng(3)
    seconds = np.exp(rng.normal(0, 0.5, (40, 6)))
    jitter = np.exp(rng.normal(0, 0.03, seconds.shape))
    return written(tmp_path / "waited.csv", seconds.max(axis=1, keepdims=True) * jitter)


def test_behind_a_collective_nothing_is_said_of_causes_and_remedies(
    answer, command, tmp_path, waited
):
    status, out, err = command("advise", waited)
    text = " ".join(out.split())
    assert (status, err) == (0, "")
    assert (
        "Record the seconds of each worker's own computation, up to the collective."
        in text
    )
    # The other possibility.
    assert (
        "If the log has these already, all workers are slow in the same steps" in text
    )
    assert text.endswith(_NO_MORE)
    for word in (
        "due to",
        "saved",
        "sharing",
        "pays",
        "time is lost",
        "none that shows",
    ):
        assert word not in text, word
    output = answer("advise", waited)
    assert output["alike"]
    assert (output["causes"], output["rows"], output["advised"]) == ({}, [], None)
    _, out, err = command("advise", waited, "--format", "csv")
    assert out.startswith("remedy,saved,saved_low")
    assert out.count("\n") == 1
    assert "Were they timed behind a collective" in err
    plan, picture = tmp_path / "plan.json", tmp_path / "advice.svg"
    err = command("advise", waited, "--figure", str(picture))[2]
    assert err == f"bcgc: cannot write {picture}: nothing can be learnt from this log\n"
    err = command("advise", waited, "--out", str(plan))[2]
    assert err == "bcgc: --out: no plan is written, for nothing is advised\n"
    assert list(tmp_path.iterdir()) == [Path(waited)]
    apart = answer("advise", waited, "--timed-apart")
    assert not apart["alike"]
    assert {"steady", "rest"} == apart["causes"].keys()


def test_what_may_be_jitter_is_told_beside_the_advice(command, tmp_path):
    """Steps are all alike: nothing tells jitter from workers slow at random."""
    rng = np.random.default_rng(10)
    said = (
        "The workers of a step deviate by 5.8 %. If they were timed behind a "
        "collective, that is"
    )
    path = written(tmp_path / "steps.csv", np.exp(rng.normal(0, 0.06, (60, 8))))
    text = " ".join(command("advise", path)[1].split())
    assert "Do this: share the work" in text
    assert text.endswith(
        f"{said} jitter, and nothing can be learnt here without a column `wait`."
    )
    assert "jitter" not in command("advise", path, "--timed-apart")[1]
    path = written(tmp_path / "steps.csv", np.exp(rng.normal(0, 0.2, (60, 8))))
    assert "jitter" not in command("advise", path)[1]


def test_solve_and_fit_say_of_such_a_log_what_advise_says(waited):
    trace = bcgc.traces.load_trace(waited)
    description = bcgc.diagnosis.describe(trace)
    of_fit = remarks_on(trace, description, [])
    asked: Any = SimpleNamespace(keep_workers=False)
    for said in (of_fit, traces.remarks(asked, trace), description.remarks()):
        remarks = " ".join(said)
        assert "Then nothing can be learnt here." in remarks
        assert "all workers are slow in the same steps" in remarks
        for word in ("due to", "--keep-workers plans on whole steps", "EmpiricalRows"):
            assert word not in remarks
    rng = np.random.default_rng(4)
    chunks = np.exp(rng.normal(0, 0.5, (20, 1, 1))) * np.exp(
        rng.normal(0, 0.05, (20, 3, 4))
    )
    log = trace_of(chunks.sum(axis=2), microbatches=Microbatches(chunks))
    assert traces.advice_on(log) is None


@pytest.mark.parametrize("count", [1, 2])
def test_the_verdict_begins_with_workers_that_stay_slow(
    answer, command, tmp_path, count
):
    """They are named if to replace them saves time in the steps that were not seen."""
    rng = np.random.default_rng(5)
    times = np.exp(rng.normal(0, 0.05, (40, 8)))
    times[:, 5] *= 2.6
    if count > 1:
        times[:, 2] *= 2
    path = written(tmp_path / "slow.csv", times)
    output = answer("advise", path)
    assert [worker["worker"] for worker in output["look_at"]] == ["5", "2"][:count]
    (replaced,) = (row for row in output["rows"] if row["remedy"] == "slowest replaced")
    # By hand: without them, by the median of the others, as all would be.
    other_times = np.delete(times, [5, 2][:count], axis=1)
    after = np.maximum(other_times.max(axis=1), np.median(other_times, axis=1)).mean()
    assert replaced["saved"][0] == pytest.approx(
        1 - after / times.max(axis=1).mean(), abs=0.01
    )
    text = " ".join(command("advise", path)[1].split())
    verdict = text[text.index("First look at") :]
    saved, low, high = (f"{100 * share:.1f}" for share in replaced["saved"])
    ratio = (
        f"{output['look_at'][0]['ratio']:.3g} times as slow as the others "
        "in steps 0 to 39"
    )
    first = f"First look at worker 5. It was {ratio}. To replace it"
    if count > 1:
        first = f"First look at workers 5 and 2. Worker 5 was {ratio}. Worker 2 was"
    assert verdict.startswith(first)
    assert f"saves {saved} % ({low} to {high} %). Until then: share the work" in verdict
    assert f"{count} other machine{'s' * (count > 1)} " in text + " "


def test_a_worker_that_is_slow_late_is_not_to_be_replaced_first(
    answer, command, tmp_path
):
    """In neither half of the steps does the other one tell who is slow there."""
    times = np.exp(np.random.default_rng(6).normal(0, 0.05, (40, 8)))
    times[20:, 5] *= 2
    path = written(tmp_path / "late.csv", times)
    output = answer("advise", path)
    (worker,) = output["slow_workers"]
    assert (worker["worker"], output["look_at"]) == ("5", [])
    assert "First look at" not in command("advise", path)[1]


def test_one_thing_is_in_the_singular(command, tmp_path):
    times = np.exp(np.random.default_rng(5).normal(0, 0.05, (12, 4)))
    times[:, 2] *= 2
    times[3, 1] = np.nan
    text = " ".join(command("advise", written(tmp_path / "one.csv", times))[1].split())
    assert "1 other machine " in text
    assert "1 worker left out" in text
    assert "Left out: 1 step in which a worker has no whole time." in text
    assert not re.search(r"\b1 (other machines|workers|steps|times)", text)
    row = advise(trace_of(times)).row("backup")
    assert advise_command._needs(row._replace(longer=1.04)).endswith(
        "lost chunks are as long as others"
    )
    assert advise_command._needs(row._replace(longer=1.06)).endswith(
        "lost chunks are 1.1 times as long as others"
    )
    assert advise_command._needs(row._replace(longer=None)).endswith("all are lost")


def test_a_unit_is_asked_for_where_steps_are_odd_in_seconds(answer, command, tmp_path):
    times = np.exp(np.random.default_rng(7).normal(0, 0.2, (12, 4)))
    seconds = answer("advise", written(tmp_path / "log.csv", times))
    path = written(tmp_path / "log.csv", times * 1e9)
    err = command("advise", path)[2]
    assert err.startswith(
        "bcgc: The times of the log are taken for seconds. So a step takes 1."
    )
    assert "give their unit with --unit: us (1" in err
    for unit, of in (("ns", 1), ("us", 1e3)):
        status, out, err = command("advise", path, "--unit", unit, "--format", "json")
        assert (status, err) == (0, "")
        assert json.loads(out)["step"] == pytest.approx(of * seconds["step"], rel=1e-6)
    # What is asked for is not doubted.
    assert command("advise", path, "--unit", "s")[2] == ""


def test_commands_that_plan_for_a_log_take_a_unit(refusal, tmp_path):
    times = np.random.default_rng(8).gamma(4.0, 250.0, (12, 3))
    path = written(tmp_path / "log.csv", times)
    columns = {
        "step": "step",
        "worker": "worker",
        "seconds": "seconds",
        "layout": "auto",
    }
    asked: Any = SimpleNamespace(
        trace=path, unit="ms", censored=None, load=None, **columns
    )
    assert_close(traces.read_loads(asked).seconds, times.ravel() / 1000, rtol=1e-9)
    for name in ("solve", "sweep", "fit"):
        assert "'min' is not one of 's', 'ms', 'us', 'ns'" in refusal(
            name, "--unit", "min"
        )
    law = "exponential:rate=1"
    assert "--unit has no effect without --trace" in refusal(
        "solve",
        "--workers",
        "3",
        "--cycle-time",
        law,
        "--unit",
        "ms",
        "--coordinates",
        "60",
    )


def test_steps_of_fewer_chunks_are_told_and_not_taken_for_lost_ones(
    answer, command, tmp_path
):
    rng = np.random.default_rng(9)
    seconds = np.exp(rng.normal(0, 0.3, (24, 3, 8)))
    path = tmp_path / "chunks.csv"
    written_in_parts(path, seconds)
    header, *lines = path.read_text().splitlines()
    kept = [
        line
        for line in lines
        if int(line.split(",")[0]) % 2 or int(line.split(",")[2]) < 6
    ]
    path.write_text("\n".join([header, *kept]))
    said = (
        "Left out: 12 steps in which each worker has 6 of 8 chunks. Ask about these "
        "steps again"
    )
    assert said in " ".join(command("advise", str(path))[1].split())
    trace = bcgc.traces.load_trace(path)
    asked: Any = SimpleNamespace(keep_workers=False)
    of_fit = remarks_on(trace, bcgc.diagnosis.describe(trace), [])
    for remarks in (of_fit, traces.remarks(asked, trace)):
        assert any(remark.startswith(said) for remark in remarks)
    # What is to be done with them: they are whole in a log of their own.
    short = [line for line in kept if int(line.split(",")[0]) % 2 == 0]
    path.write_text("\n".join([header, *short]))
    output = answer("advise", str(path))
    assert (output["num_steps"], output["left_out"], output["num_chunks"]) == (12, 0, 6)


def test_a_very_long_log_says_in_how_many_steps_remedies_are_replayed(
    monkeypatch, command, trace
):
    monkeypatch.setattr("bcgc_jax.diagnosis.replays._MOST_WORK", 1)
    monkeypatch.setattr("bcgc_jax.diagnosis.replays._FEWEST_JUDGED", 5)
    status, out, _ = command("advise", trace, "--timed-apart")
    assert status == 0
    assert "each remedy is replayed in 5 of the 6 steps" in " ".join(out.split())


def test_the_bar_says_which_remedy_is_replayed_and_how_many_were(trace):
    reports = []
    load = bcgc.traces.load_trace(trace)
    advise(load, timed_apart=True, report=lambda *now: reports.append(now))
    whats, done, totals = zip(*reports, strict=True)
    assert whats[0] == "finding the causes"
    assert "replaying sharing:all" in whats
    assert done[1:] == tuple(range(totals[1]))
    assert {*totals[1:]} == {len(reports) - 1}


def test_savings_that_are_hardly_known_are_named_with_enough_steps(command, tmp_path):
    noise = np.random.default_rng(2).normal(size=(40, 4))
    times = np.exp(1.5 * noise)
    path = written(tmp_path / "log.csv", times)
    said = " ".join(command("advise", path, "--timed-apart")[1].split())
    wide = advise(trace_of(times), timed_apart=True).too_wide
    first = wide[0].remedy
    assert f"by {first}" in said
    assert "hardly known, because 40 steps are too few. About" in said
    assert "steps are enough for an interval of ± 10 points." in said

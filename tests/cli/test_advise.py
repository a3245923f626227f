"""`bcgc advise`: what it prints, as text, JSON and CSV, and what it refuses."""

import csv
import io
import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.balancing.dispatch import join, serve
from bcgc_jax.cli import advise_files, traces
from bcgc_jax.diagnosis.advice import advise
from bcgc_jax.plans.sharing import WorkSharing
from tests.cli.steps import written, written_in_parts
from tests.traces.logs import log_of

assert_close: Any = np.testing.assert_allclose


@pytest.fixture
def chunks(tmp_path):
    true, log = log_of("data", 3)
    return written_in_parts(tmp_path / "chunks.csv", log.seconds, load=true.data)


def test_json_and_csv_have_the_same_rows(answer, command, chunks):
    output = answer("advise", chunks)
    assert output["advised"] == "dealt by length"
    rows = list(
        csv.DictReader(io.StringIO(command("advise", chunks, "--format", "csv")[1]))
    )
    assert [row["remedy"] for row in rows] == [row["remedy"] for row in output["rows"]]
    assert float(rows[0]["saved"]) == output["rows"][0]["saved"][0]


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

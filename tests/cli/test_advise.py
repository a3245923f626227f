"""`bcgc advise`: what it prints, as text, JSON and CSV, and what it refuses."""

import csv
import io
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.cli import advise_files
from bcgc_jax.handout import serve
from bcgc_jax.measured.advice import advise
from bcgc_jax.plans.sharing import WorkSharing
from tests.cli.steps import written, written_in_parts
from tests.measured.test_causes import log_of

assert_close: Any = np.testing.assert_allclose


@pytest.fixture
def chunks(tmp_path):
    _, log = log_of("data", 3)
    return written_in_parts(tmp_path / "chunks.csv", log.seconds)


def test_two_screens_say_what_to_do(command, chunks):
    status, out, err = command("advise", chunks)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) <= 48
    assert lines[0] == "chunks.csv: 8 workers, 24 steps, 8 chunks in a worker's step."
    assert any(line.startswith("the data: some chunks are longer than others") for line in lines)
    text = " ".join(out.split())
    assert "Do this: share the work, with three subsets stored (sharing:3). It saves" in text
    assert "Within the error as good: dealt by length." in text
    assert "ask within a step: deal the chunks to the workers by their length. It saves" in text
    assert "Lengths of chunks are predicted from forward_seconds." in " ".join(lines)
    assert "by model" not in out


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
    assert "Do this: share the work, with" in text
    assert "If workers cannot ask within a step: give each worker data by its speed, anew" in text
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
    same = written(tmp_path / "same.csv", np.ones((12, 4)))
    text = " ".join(command("advise", same)[1].split())
    assert "Were they timed behind a collective" in text
    assert text.endswith("Nothing here pays more than 2 %.")


def test_equal_workers_lose_nothing_by_no_cause_in_a_log_that_breaks_off(command, tmp_path):
    path = written_in_parts(tmp_path / "equal.csv", np.full((10, 6, 8), 0.05))
    text = (tmp_path / "equal.csv").read_text()
    (tmp_path / "equal.csv").write_text(text[: text.rindex("\n", 0, -1) + 1])
    status, out, err = command("advise", path)
    said = " ".join(out.split())
    assert (status, err) == (0, "")
    assert "6 workers, 9 steps, 8 chunks" in said
    assert "Left out: 1 step in which a worker has no whole time." in said
    # Rounding gave -0.0 %, and all of it to the data.
    assert "So 0.0 % of the time is lost." in said
    # Where nothing can be learnt no cause has a share.
    assert "share of the loss" not in said
    assert "Nothing here pays more than 2 %." in said


def test_json_and_csv_have_the_same_rows(answer, command, chunks):
    found = answer("advise", chunks)
    assert found["advised"] == "sharing:3"
    rows = list(csv.DictReader(io.StringIO(command("advise", chunks, "--format", "csv")[1])))
    assert [row["remedy"] for row in rows] == [row["remedy"] for row in found["rows"]]
    assert float(rows[0]["saved"]) == found["rows"][0]["saved"][0]


def test_columns_may_have_other_names(answer, tmp_path, chunks, monkeypatch):
    text = (
        (tmp_path / "chunks.csv")
        .read_text()
        .replace("step,worker,chunk,seconds", "iter,rank,mb,dur", 1)
    )
    (tmp_path / "other.csv").write_text(text)
    names = "step=iter,worker=rank,chunk=mb,seconds=dur,forward_seconds=forward_seconds"
    found = answer("advise", str(tmp_path / "other.csv"), "--columns", names)
    assert found == answer("advise", chunks)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert answer("advise", "-", "--columns", names) == found


def test_a_log_may_be_json_lines(answer, refusal, tmp_path, chunks):
    rows = list(csv.DictReader((tmp_path / "chunks.csv").open()))
    lines = [json.dumps({name: json.loads(text) for name, text in row.items()}) for row in rows]
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
    assert "did you mean worker?" in refusal("advise", chunks, "--columns", "wroker=rank")
    assert "with names of step, worker" in refusal("advise", chunks, "--columns", "worker")
    assert "has 8 chunks" in refusal("advise", chunks, "--chunks", "4")
    assert "has no effect without --method" in refusal("advise", chunks, "--forward", "0.5")


def test_the_picture_has_the_numbers_of_the_answer(command, tmp_path):
    times = np.random.default_rng(2).gamma(25.0, 0.04, (24, 4))
    path = written(tmp_path / "steps.csv", times)
    picture = tmp_path / "advice.svg"
    _, out, _ = command("advise", path, "--figure", str(picture))
    assert out.endswith(f"\nThe picture: {picture}\n")
    assert "sharing:2" in picture.read_text()
    found = advise(bcgc.measured.load_trace(path))
    drawn: Any = advise_files.picture(found)
    left, right = drawn.axes
    for axes, shares in (
        (left, [row.saved for row in found.rows]),
        (right, sorted(found.causes.values(), reverse=True)),
    ):
        widths = [bar.get_width() for bar in axes.patches]
        assert_close(widths, [100 * share.value for share in shares])
        ends = [line.get_xdata() for line in axes.lines[: len(shares)]]
        assert_close(ends, [[100 * share.low, 100 * share.high] for share in shares])
    by_model = left.collections[0].get_offsets()
    others = [row.range[row.range[0] >= row.saved.value] for row in found.rows]
    assert_close(by_model[:, 0], 100 * np.array(others))
    assert [label.get_text() for label in left.get_yticklabels()] == [
        row.remedy for row in found.rows
    ]


def test_the_plan_is_for_the_trainers_and_for_ones_own_loop(command, answer, tmp_path):
    times = np.random.default_rng(2).gamma(4.0, 0.25, (40, 4))
    path = written(tmp_path / "steps.csv", times)
    plan = tmp_path / "plan.json"
    found = answer("advise", path, "--out", str(plan))
    advised = next(row for row in found["rows"] if row["remedy"] == found["advised"])
    assert command("plot", str(plan))[0] == 0
    solution = bcgc.Solution.load(plan)
    assert solution.method == found["advised"] == "sharing:all"
    assert float(solution.expected_runtime) == pytest.approx(
        found["step"] * (1 - advised["saved"][0])
    )
    assert solution.plan is not None
    rule = solution.plan.completion
    assert isinstance(rule, WorkSharing)
    with serve(rule.num_workers, rule.max_subsets, rule.chunks, key="secret"):
        pass
    # The clock is that of the problem that is trained for: M / N samples of L coordinates.
    problem = bcgc.Problem(bcgc.Empirical(times), 4, 6, 20)
    scheme = bcgc.coding.training_scheme(jax.random.key(0), problem, solution, {"w": jnp.ones(6)})
    assert float(scheme.load[-1]) == pytest.approx(20 / 4 * 6)


def test_without_work_sharing_no_plan_is_written(command, tmp_path, chunks):
    plan = tmp_path / "plan.json"
    # Questions take long here.
    status, out, err = command("advise", chunks, "--round-trip", "0.3", "--out", str(plan))
    assert (status, plan.exists()) == (2, False)
    assert "Do this: deal the chunks" in out
    assert err == "bcgc: --out: no plan is written, for dealt by length needs no plan\n"

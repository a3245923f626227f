"""`bcgc fit`, and traces on the command line: what is printed, what is drawn, and what is refused."""

import json
import re

import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.cli import fit

TIMES = np.random.default_rng(4).gamma(2.5, 0.6, (60, 3)) + 0.8


@pytest.fixture
def path(tmp_path):
    lines = [f"{s};{w};{TIMES[s, w]:.9f}" for s in range(60) for w in range(3)]
    file = tmp_path / "log.csv"
    file.write_text("\n".join(["iteration;rank;time_s", *lines]))
    return str(file)


COLUMNS = ("--step-column", "iteration", "--worker-column", "rank", "--seconds-column", "time_s")


@pytest.mark.slow
def test_a_fit_is_that_of_the_library_and_its_plans_are_evaluated_under_every_law(command, path, tmp_path):
    picture = tmp_path / "fit.png"
    plan_file = tmp_path / "plan.json"
    files = ("--figure", str(picture), "--out", str(plan_file))
    arguments = ("--law", "weibull", "--law", "pareto", "--replicates", "20", *files)
    status, out, err = command(
        "fit", path, *COLUMNS, *arguments, "--coordinates", "10000", "--format", "json"
    )
    assert status == 0, err
    answer = json.loads(out)
    assert (answer["trace"]["num_workers"], answer["trace"]["num_steps"]) == (3, 60)
    assert answer["trace"]["mean"] == pytest.approx(TIMES.mean(), rel=1e-8)
    assert [fit["law"] for fit in answer["fits"]] == ["weibull", "pareto"]
    fit = answer["fits"][0]
    assert abs(fit["parameters"]["concentration"] - 1.65) < 4 * fit["standard_errors"]["concentration"]
    plans = {plan["law"]: plan for plan in answer["plans"]}
    assert {"weibull", "smooth", "measured times"} <= set(plans)
    for name, plan in plans.items():
        assert sum(plan["partition"]) == 10_000
        assert plan["relative_gap"] < 2e-6
        # Nobody's plan is better under a law than its own.
        for other in plans.values():
            assert other["runtime_under"][name] >= plan["runtime_under"][name] * (1 - 1e-5)
    # The steps replayed, and the law of atoms: plain means.
    x = np.array(plans["weibull"]["partition"])
    load = np.cumsum(np.arange(1, 4) * x) / 3
    steps = (load * -np.sort(-TIMES, axis=1)).max(axis=1)
    assert plans["weibull"]["replayed_runtime"] == pytest.approx(steps.mean(), rel=1e-6)
    draws = np.random.default_rng(0).choice(TIMES.ravel(), (200_000, 3))
    runtimes = (load * -np.sort(-draws, axis=1)).max(axis=1)
    exact = plans["weibull"]["runtime_under"]["measured times"]
    assert abs(exact - runtimes.mean()) < 4 * runtimes.std() / np.sqrt(200_000)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert np.asarray(bcgc.Solution.load(plan_file).rounded).tolist() == plans["weibull"]["partition"]


@pytest.mark.slow
def test_the_table_reads_well_and_names_the_best(command, path):
    asked = ("fit", path, *COLUMNS, "--law", "weibull", "--law", "uniform", "--replicates", "20")
    status, out, _ = command(*asked)
    assert status == 0
    assert max(map(len, out.splitlines())) <= 100
    assert "Best: weibull" in out
    assert "180 times of 3 workers over 60 steps" in out
    status, out, _ = command(*asked, "--format", "csv")
    assert status == 0
    header, best, other = out.splitlines()
    assert header.startswith("law,parameters,standard_errors")
    assert best.startswith("weibull,scale=")
    assert other.startswith("uniform,low=")


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("a,b\n1,2\n", (), "column"),
        ("step,worker,seconds\n1,a,fast\n", (), "line 2"),
        ("step,worker,seconds\n1,a,1\n1,a,2\n", (), "two times"),
        (
            "step,worker,seconds\n" + "".join(f"{i},a,{i + 1}\n" for i in range(30)),
            ("--replicates", "20"),
            "one worker",
        ),
        ("step,worker,seconds\n1,a,1\n1,b,2\n", (), "at least 10 times"),
        ("step,worker,seconds\n" + "".join(f"{i},a,2\n{i},b,2\n" for i in range(9)), (), "all times are 2"),
        ("", (), "empty"),
        ("step,worker,seconds\n1,a,1\n", ("--law", "cauchy"), "'cauchy' is not one of"),
        ("step,worker,seconds\n1,a,1\n", ("--figure", "fit.gif"), "must end in"),
        ("step,worker,seconds\n1,a,1\n", ("--seconds-column", "time"), "time"),
    ],
)
def test_a_broken_file_is_one_line_and_status_2(command, tmp_path, text, arguments, message):
    file = tmp_path / "broken.csv"
    file.write_text(text)
    status, out, err = command("fit", str(file), "--law", "uniform", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("bcgc: ")
    assert message in err
    assert len(err.splitlines()) == 1
    status, _, err = command("fit", str(tmp_path / "absent.csv"))
    assert status == 2
    assert "cannot read" in err


def test_a_trace_of_one_worker_is_refused_before_the_work(command, tmp_path, monkeypatch):
    for name in ("describe", "fit_laws"):
        monkeypatch.setattr(f"bcgc_jax.cli.fit.{name}", lambda *_, **__: pytest.fail("the work began"))
    file = tmp_path / "trace.csv"
    file.write_text("step,worker,seconds\n" + "".join(f"{i},a,{i + 1}\n" for i in range(30)))
    status, out, err = command("fit", str(file))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "has one worker only: coding needs the times of at least two, or give --workers" in err


def test_solve_reads_named_columns_and_takes_a_smooth_law(command, path):
    arguments = ("--coordinates", "10000", "--method", "uncoded", "--format", "json")
    status, out, err = command("solve", "--trace", path, *COLUMNS, "--trace-law", "smooth", *arguments)
    assert status == 0, err
    answer = json.loads(out)
    assert answer["problem"]["cycle_time"]["law"] == "smooth"
    # L / N times the mean of the slowest of three, ∫ P(T_(3) > t) dt.
    t = np.linspace(0.0, 60.0, 600_001)
    late = 1 - (1 - np.asarray(bcgc.measured.smooth_empirical(np.round(TIMES, 9)).survival(t), float)) ** 3
    found = answer["solutions"][0]["expected_runtime"]
    assert found == pytest.approx(10_000 / 3 * np.trapezoid(late, t), rel=1e-5)
    status, _, err = command("solve", "--trace", path, *COLUMNS, "--workers", "10000", *arguments)
    assert status == 2
    assert "--trace-law smooth" in err


def test_a_fit_tells_how_long_it_will_take(command, path, monkeypatch):
    def work(*_, **__):
        raise ValueError("the work has begun")

    monkeypatch.setattr(fit, "describe", work)
    _, _, err = command("fit", path, *COLUMNS)
    assert re.fullmatch(r"bcgc: this takes about \d0 s\nbcgc: the work has begun\n", err)
    _, _, err = command("fit", path, *COLUMNS, "--law", "gamma")
    assert err == "bcgc: the work has begun\n"
    _, _, err = command("fit", path, *COLUMNS, "--workers", "200")
    assert re.match(r"bcgc: this takes about \d+ (min|hours); most of it for plans: quicker with fewer", err)

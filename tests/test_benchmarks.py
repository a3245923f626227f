"""Benchmark peers do the work they claim to do, and the command what its help says."""

import doctest
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as benchmark
from benchmarks import (
    crossing,
    installed,
    peers,
    planning,
    reading,
    scaling,
    timing,
)
from tests.oracles.exact import crossing_probability
from tests.studies import refused


@pytest.mark.parametrize("size", [1, 2, 7, 20])
def test_the_judge_and_the_fft_recursion_give_the_exact_crossing_probability(size):
    # Rows of twenty digits from hardly ever to nearly always late.
    rows = np.sort(np.random.default_rng(size).random((6, size)), axis=1)
    rows = (
        np.ceil(2**20 * rows ** np.array([0.02, 0.1, 0.3, 0.6, 1, 3])[:, None]) / 2**20
    )
    exact = [1 - crossing_probability([Fraction(b) for b in row]) for row in rows]
    assert [crossing.exact_probability(row, 20) for row in rows] == exact
    assert crossing.exact_probability(rows[-1]) == exact[-1]
    # Worst 5e-15.
    np.testing.assert_allclose(
        peers.boundary_probability(rows), list(map(float, exact)), rtol=0, atol=3e-14
    )
    assert min(exact) < 0.1 < 0.5 < max(exact)


def test_programs_for_crossing_probabilities_are_measured_where_they_are_installed(
    monkeypatch, small
):
    monkeypatch.setattr(
        crossing, "CASES", (crossing.Case("one boundary", 3, repeats=2),)
    )

    # A peer that errs by a hundredth.
    def probabilities(rows):
        return np.array(
            [float(crossing.exact_probability(row, 30)) + 0.01 for row in rows]
        )

    monkeypatch.setattr(installed, "crossprob", lambda: probabilities)
    monkeypatch.setattr(installed.shutil, "which", lambda name: None)
    measured, *missing = crossing.crossing()
    assert measured["against"] == "crossprob"
    assert measured["error"] < 1e-13
    # In units of the smaller of P and 1 - P.
    assert 0.01 < measured["peer_error"] < 1
    assert measured["ratio"] > 0
    for row, name in zip(missing, ("qqconf", "mutoss"), strict=True):
        assert row["accuracy"].endswith(f"; {name} is not installed")
        assert "peer" not in row


@pytest.mark.parametrize(("workers", "depth"), [(1, 1), (3, 2), (5, 5)])
def test_the_trace_formula_is_the_mean_of_draws(workers, depth):
    exact = peers.cyclic_runtime(workers, depth)
    if depth == 1:
        # The largest of N: H_N / μ + t_0.
        assert exact == pytest.approx(1050, rel=1e-9)
    times = 50 + 1e3 * np.random.default_rng(7).standard_exponential((200_000, workers))
    mean = (
        np.min([np.roll(k * times, k, axis=1) for k in range(1, depth + 1)], axis=0)
        .max(axis=1)
        .mean()
    )
    # A runtime's standard deviation is at most its mean.
    assert mean == pytest.approx(exact, rel=4 / 200_000**0.5)


def test_compare_reports_what_was_returned_and_how_long_it_took(small):
    calls: list[str] = []
    functions = {
        name: lambda name=name: calls.append(name) for name in ("package", "peer")
    }
    results = timing.compare({**functions, "value": lambda: 3}, 4)
    assert calls == ["package", "peer"] * 5  # interleaved
    assert results["value"].value == 3
    seconds = results["package"].seconds
    assert seconds["best"] <= seconds["median"] <= seconds["worst"]
    assert seconds["compile"] == max(seconds["first_call"] - seconds["median"], 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "speed"], 'no measure "speed"'),
        (["--out", "/no/such/folder/a.json"], "name a file in a folder that is there"),
        (["--out", "a.png"], "must end in .json"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, capsys):
    refused(benchmark.main, arguments, capsys, message)


@pytest.fixture
def small(monkeypatch):
    """Three workers, compiled programs kept."""
    monkeypatch.setattr(planning, "SIZES", (3,))
    monkeypatch.setattr(scaling, "SIZES", (3,))
    monkeypatch.setattr(timing.jax, "clear_caches", lambda: None)


@pytest.mark.slow
def test_a_run_prints_its_table_and_writes_json_and_figure(
    tmp_path, capsys, small, monkeypatch
):
    out = tmp_path / "speed.json"
    monkeypatch.setattr(planning, "_AS_GOOD", 50)
    only = [
        part
        for name in ("evaluation", "equal_quality", "scaling")
        for part in ("--only", name)
    ]
    assert benchmark.main([*only, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert set(report) == {"environment", "results", "scaling"}
    assert set(report["environment"]) == {
        *(
            "package",
            "commit",
            "device",
            "device_count",
            "cpu",
            "platform",
            "cpu_count",
            "date",
        ),
        *("python", "jax", "jaxlib", "numpy", "scipy"),
    }
    evaluated, equal = report["results"]
    assert 0 <= equal["gap"] < 1e-3
    assert equal["peer_gap"] > 0
    assert equal["ratio"] == equal["peer"]["median"] / equal["package"]["median"]
    assert (evaluated["measure"], evaluated["what"]) == (
        "evaluation",
        "exact expected runtime, N=3",
    )
    assert (evaluated["dtype"], evaluated["repeats"]) == ("float64", 15)
    for times in (evaluated["package"], evaluated["peer"]):
        assert set(times) == {"first_call", "compile", "median", "best", "worst"}
        assert times["best"] <= times["median"] <= times["worst"]
    assert (
        evaluated["ratio"]
        == evaluated["peer"]["median"] / evaluated["package"]["median"]
    )
    assert 0 <= evaluated["error"] < 1e-9 < evaluated["peer_error"] < 1e-2
    points = [(p["curve"], p["x_name"], p["x"]) for p in report["scaling"]]
    assert points == [("evaluation", "workers", 3), ("optimum", "workers", 3)]
    assert all(
        p["seconds"] > 0 and p["first_call"] > 0 and p["gap"] < 1e-6
        for p in report["scaling"]
    )
    assert all(p["best"] <= p["seconds"] <= p["worst"] for p in report["scaling"])
    assert (tmp_path / "speed.png").stat().st_size > 1e4
    said = capsys.readouterr()
    assert max(map(len, said.out.splitlines())) <= 100
    assert evaluated["accuracy"] in " ".join(said.out.split())
    assert "ratio is the peer's median through the package's" in " ".join(
        said.out.split()
    )
    assert said.err.count("measuring") == 3


def test_a_file_is_read_as_its_example_says():
    assert doctest.testmod(reading) == (0, 4)


ROOT = Path(__file__).parents[1]
# Arguments and fields that users know.
_PUBLIC = {
    ("own", "bcgc_jax/balancing/dispatch/client.py"),
    ("own", "bcgc_jax/balancing/dispatch/client.py"),
}


@pytest.mark.parametrize("folder", reading.FOLDERS)
def test_names_carry_a_noun(folder):
    names = {
        (name, str(path.relative_to(ROOT)))
        for path in (ROOT / folder).rglob("*.py")
        for name in reading.names_without_noun(path.read_text("utf-8"))
    }
    assert names <= _PUBLIC

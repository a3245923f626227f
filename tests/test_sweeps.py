"""Sweeps against `solve`, cell by cell; files against what was computed in one go."""

import csv
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax import sweeps
from bcgc_jax.solvers.methods import method_of
from bcgc_jax.sweeps import fingerprint, read_rows
from tests.problems import not_none, padded


def paper(num_workers, rate, max_workers, shift=50.0):
    law = bcgc.ShiftedExponential(rate, shift)
    return bcgc.Problem(law, num_workers, 20_000, 50, max_workers=max_workers)


def test_a_grid_has_all_combinations_with_the_number_of_workers_slowest():
    cells = bcgc.sweeps.grid(rate=[3.0, 1.0], num_workers=[5, 2], shift=0.5)
    columns = {name: column.tolist() for name, column in cells.items()}
    assert columns["num_workers"] == [2, 2, 5, 5]
    assert (columns["rate"], columns["shift"]) == ([3.0, 1.0] * 2, [0.5] * 4)


def test_a_grid_of_no_numbers_is_refused():
    refused: dict[str, dict[str, Any]] = {
        "have no column num_workers": {"rate": [1.0]},
        "must be integers": {"num_workers": [2.5]},
        "integers >= 1": {"num_workers": [0]},
        "one or more": {"num_workers": []},
        "sequence of one or more numbers": {"num_workers": [2], "rate": ["fast"]},
        "name of a column of results": {"num_workers": [2], "status": [1]},
        "jax_enable_x64": {"num_workers": [2], "num_coordinates": [10**10]},
    }
    for words, columns in refused.items():
        with pytest.raises(ValueError, match=words):
            bcgc.sweeps.grid(**columns)


def test_every_cell_is_what_solve_says_and_padding_and_company_change_nothing(x64):
    # 25 cells of N = 2 and 3, and three more: all padded to 5.
    rng = np.random.default_rng(5)
    workers = np.concatenate(
        [rng.permutation(np.r_[np.full(9, 2), np.full(16, 3)]), [5, 4, 5]]
    )
    cells = {"num_workers": workers, "rate": 10 ** rng.uniform(-4, -1, workers.size)}
    rows = bcgc.sweeps.sweep(paper, cells, "optimal", partitions=True)
    # By padded size, and within a size in the order of the cells.
    np.testing.assert_array_equal(rows["num_workers"], workers)
    assert rows["method"].tolist() == ["optimal"] * workers.size
    for i in (0, 6, 16, 23, 25, 26, 27):
        n = int(rows["num_workers"][i])
        problem = padded(
            bcgc.ShiftedExponential(float(rows["rate"][i]), 50.0), n, 20_000, 50
        )
        alone = bcgc.solve(problem)
        assert rows["status"][i] == bcgc.Status(int(alone.status)).name.lower()
        # Both within their gaps of 1e-7; measured 2e-8.
        np.testing.assert_allclose(
            rows["expected_runtime"][i], alone.expected_runtime, rtol=1e-7
        )
        assert (sum(rows["partition"][i]), len(rows["partition"][i])) == (20_000, n)
    assert rows["relative_gap"].max() <= 1.1e-7  # measured 1.0e-7
    # All at level 2, for the fastest of three to do: no faster than the bound.
    three = workers == 3
    slower = 50 * 20_000 * (50 + 1 / (3 * rows["rate"][three]))
    assert np.all(slower >= rows["lower_bound"][three])


@pytest.mark.slow
def test_a_bad_cell_has_its_status_and_stops_no_other(x64):
    def heavy(num_workers, shape, max_workers):
        return bcgc.Problem(
            bcgc.Pareto(1.0, shape), num_workers, 100, max_workers=max_workers
        )

    cells: dict[str, Any] = {
        "shape": [2.5, 0.8, -1.0, np.nan, 1.5, 2.5],
        "deadline": [1e3] * 5 + [-1.0],
    }
    rows = bcgc.sweeps.sweep(
        heavy, cells | {"num_workers": [4] * 6}, "uncoded", partitions=True
    )
    assert rows["status"].tolist() == [
        "converged",
        "infinite",
        *["invalid"] * 2,
        "converged",
        "invalid",
    ]
    no_answer = [False, False, True, True, False, True]
    assert np.isnan(rows["completion_probability"]).tolist() == no_answer
    assert [counts is None for counts in rows["partition"]] == no_answer
    # E T_(4) of Pareto: 4! Γ(1 - 1/a) / Γ(5 - 1/a), times L/N.
    moments = [24 / np.prod([k - 1 / a for k in (1, 2, 3, 4)]) for a in (2.5, 1.5)]
    exact: Any = [25 * moments[0], np.inf, np.nan, np.nan, 25 * moments[1], np.nan]
    np.testing.assert_allclose(rows["expected_runtime"], exact, rtol=1e-9)


def test_numbers_that_overflow_are_no_problem_and_need_nothing(x64):
    problem = padded(bcgc.ShiftedExponential(1e-306), 3, 20_000, 50)
    answer = sweeps._answer(problem, method_of("uncoded"), None, None, False)
    assert (answer["status"], answer["num_steps"]) == (bcgc.Status.INVALID, 0)
    assert [name for name in sweeps.NEEDS if not np.isnan(answer[name])] == []


@pytest.mark.slow
def test_deadlines_are_an_axis_and_an_objective(x64):
    cells = bcgc.sweeps.grid(num_workers=[3], rate=[1e-3], deadline=[1.5e8, 3e8])
    rows = bcgc.sweeps.sweep(paper, cells, ["frequency", "limit", "deadline"])[
        "completion_probability"
    ]
    problem = paper(3, 1e-3, 3)
    solution = bcgc.solve(problem, "frequency")
    drawn_plans = 20_000 * np.random.default_rng(8).dirichlet(np.full(3, 0.7), 400)
    probability = jax.jit(jax.vmap(bcgc.completion_probability, (None, 0, None)))
    for j, deadline in enumerate((1.5e8, 3e8)):
        exact = bcgc.completion_probability(
            problem, not_none(solution.partition), deadline
        )
        plain, limit, best = rows[3 * j : 3 * j + 3]
        assert plain == pytest.approx(float(exact), abs=1e-9)
        assert np.isnan(limit)
        assert best >= float(probability(problem, drawn_plans, deadline).max())
        assert best > plain + 1e-3  # what is best on average is not for a deadline
    with pytest.raises(ValueError, match='column "deadline"'):
        bcgc.sweeps.sweep(
            paper, bcgc.sweeps.grid(num_workers=[4], rate=[1e-3]), ["deadline"]
        )


def test_methods_that_draw_have_a_key_for_each_cell(x64):
    def uncoded(problem, times):
        return problem.scale * problem.total * times[..., 0]

    by_draws = bcgc.Scheme("uncoded_by_draws", uncoded, gives="runtime")
    cells = bcgc.sweeps.grid(num_workers=[3], rate=[1e-3, 1e-3])
    with pytest.raises(ValueError, match=r"Pass key=jax.random.key"):
        bcgc.sweeps.sweep(paper, cells, [by_draws])
    rows = bcgc.sweeps.sweep(paper, cells, [by_draws], key=jax.random.key(3))
    drawn, exact = (
        rows["expected_runtime"],
        50 / 3 * 20_000 * (50 + 1000 * (1 + 1 / 2 + 1 / 3)),
    )
    assert drawn[0] != drawn[1]
    assert np.all(np.abs(drawn - exact) < 4 * rows["runtime_error"])
    assert rows["exact_gradient"].tolist() == [None, None]


def test_unknown_methods_are_refused_before_anything_is_solved():
    cells = bcgc.sweeps.grid(num_workers=[5], rate=[1e-3])
    for method, words in (
        ("optimle", 'did you mean "optimal"'),
        ("tandon:5", "from 0 to 4"),
    ):
        with pytest.raises(ValueError, match=words):
            bcgc.sweeps.Sweep(paper, cells, [method])
    with pytest.raises(TypeError, match="a method is a name"):
        bcgc.sweeps.Sweep(paper, cells, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must have the same length"):
        bcgc.sweeps.Sweep(
            paper, {"num_workers": np.array([5, 6]), "rate": np.array([1e-3])}
        )


@functools.cache
def _sweep_to(largest_rate: float, precision: np.dtype) -> bcgc.sweeps.Sweep:
    """A level that two workers do not have; compiled once for all that write it."""
    cells = bcgc.sweeps.grid(
        num_workers=[2, 3], rate=np.geomspace(1e-3, largest_rate, 40), deadline=[2e8]
    )
    return bcgc.sweeps.Sweep(paper, cells, ["tandon:2"], partitions=True)


@pytest.fixture
def plan(monkeypatch):
    """A sweep in chunks of a few cells."""
    monkeypatch.setattr(sweeps, "_CACHED", 9 * 12)
    return _sweep_to(1e-2, jnp.result_type(float))


def test_a_sweep_that_is_cut_off_resumes_and_gives_the_same_file(
    x64, monkeypatch, plan, tmp_path
):
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    assert len(plan.chunks) > 4
    done_cells: list[int] = []
    bcgc.sweeps.write_sweep(
        plan, whole, progress=lambda done, total: done_cells.append(done)
    )
    assert (done_cells, done_cells[-1]) == (sorted(done_cells), plan.num_cells)
    original, left = bcgc.sweeps.Sweep.solve, [3]

    def interrupted(self, chunk):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(self, chunk)

    monkeypatch.setattr(bcgc.sweeps.Sweep, "solve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bcgc.sweeps.write_sweep(plan, cut)
    first_chunks = cut.read_bytes()
    assert whole.read_bytes().startswith(first_chunks)
    with pytest.raises(FileExistsError, match="Continue it with resume"):
        bcgc.sweeps.write_sweep(plan, cut)
    second_plan = _sweep_to(2e-2, jnp.result_type(float))
    with pytest.raises(ValueError, match=r"cut\.csv belongs to another sweep"):
        bcgc.sweeps.write_sweep(second_plan, cut, resume=True)
    for lost, solved_again in ((0, 0), (9, 1)):  # a line that was cut off, too
        cut.write_bytes(first_chunks[: len(first_chunks) - lost])
        left[0] = 1000
        bcgc.sweeps.write_sweep(plan, cut, resume=True)
        assert 1000 - left[0] == len(plan.chunks) - 3 + solved_again
        assert cut.read_bytes() == whole.read_bytes()
    notes = [tmp_path / f"{path.name}.sweep.json" for path in (cut, whole)]
    assert sorted(tmp_path.iterdir()) == sorted([cut, whole, *notes])
    # A finished file: nothing to do, and nothing is overwritten.
    left[0] = 0
    bcgc.sweeps.write_sweep(plan, cut, resume=True)
    with pytest.raises(FileExistsError, match="the file exists"):
        bcgc.sweeps.write_sweep(plan, cut)
    with pytest.raises(ValueError, match="another sweep"):
        bcgc.sweeps.write_sweep(second_plan, cut, resume=True)
    # Of a header that was cut off nothing is left.
    cut.write_text("num_wor")
    left[0] = 1000
    bcgc.sweeps.write_sweep(plan, cut, resume=True)
    assert cut.read_bytes() == whole.read_bytes()


def test_a_file_of_unknown_origin_is_not_taken_for_results(x64, plan, tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("mine\n")
    with pytest.raises(FileExistsError, match="the file exists"):
        bcgc.sweeps.write_sweep(plan, path)
    for note in (None, "another"):
        if note is not None:
            (tmp_path / "s.csv.sweep.json").write_text(note)
        with pytest.raises(ValueError, match="another sweep"):
            bcgc.sweeps.write_sweep(plan, path, resume=True)
    assert path.read_text() == "mine\n"


def test_a_refused_sweep_leaves_no_file(x64, plan, tmp_path):
    refused = bcgc.sweeps.Sweep(
        paper, bcgc.sweeps.grid(num_workers=[2], rate=[1e-3]), ["subgradient"]
    )
    with pytest.raises(ValueError, match=r"Pass key=jax.random.key"):
        bcgc.sweeps.write_sweep(refused, tmp_path / "s.csv")
    with pytest.raises(ValueError, match=r"\*\.csv"):
        bcgc.sweeps.write_sweep(plan, tmp_path / "sweep.txt")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        bcgc.sweeps.write_sweep(plan, tmp_path / "nowhere" / "sweep.csv")
    assert not list(tmp_path.iterdir())


def test_another_scheme_or_problem_is_another_sweep_though_first_cells_are_alike():
    def mark(change):
        def problem(num_workers, rate, max_workers):
            shift = jnp.where(
                jnp.asarray(rate) > 1e-3, 60.0 if change == "law" else 50.0, 50.0
            )
            law = bcgc.ShiftedExponential(rate, shift)
            communication = {
                "start_up": 2.0 if change == "start-up" else 1.0,
                "send_time": 0.1,
                "overlap": change == "overlap",
            }
            return bcgc.Problem(
                law, num_workers, 60, max_workers=max_workers, **communication
            )

        gives = "levels" if change == "gives" else "partition"
        scheme = bcgc.Scheme(
            "yours" if change == "name" else "mine", lambda p: p.total, gives=gives
        )
        cells = bcgc.sweeps.grid(num_workers=[3], rate=[1e-3, 1e-2])
        return fingerprint(bcgc.sweeps.Sweep(problem, cells, [scheme]))

    assert mark("none") == mark("none")
    assert (
        len(
            {
                mark(change)
                for change in ("none", "name", "gives", "law", "start-up", "overlap")
            }
        )
        == 6
    )
    # In another process functions are at other addresses.
    assert not any(
        " at 0x" in repr(method_of(name))
        for name in ("uncoded", "ferdinand_half", "limit")
    )


def test_files_hold_the_rows_in_full_precision(tmp_path, precision, plan):
    kind, tables = precision.type, [plan.solve(chunk) for chunk in plan.chunks]
    rows = {
        name: np.concatenate([table[name] for table in tables]).tolist()
        for name in plan.names
    }
    path = bcgc.sweeps.write_sweep(plan, tmp_path / "s.csv")
    text = list(csv.DictReader(path.read_text().splitlines()))
    assert list(text[0]) == list(plan.names)
    assert list(read_rows(path)) == text
    assert len(text) == plan.num_cells
    assert {row["status"] for row in text} == {"infeasible", "converged"}
    for i, row in enumerate(text):
        keys = float(row["rate"]), row["method"], row["status"]
        assert keys == tuple(rows[name][i] for name in ("rate", "method", "status"))
        if row["status"] == "infeasible":
            assert row["num_workers"] == "2"
            assert row["expected_runtime"] == row["partition"] == ""
        else:
            # The fastest of three does all of it.
            exact = 50 * 20_000 * (50 + 1 / (3 * float(row["rate"])))
            assert float(row["expected_runtime"]) == pytest.approx(exact, rel=1e-5)
            assert kind(row["expected_runtime"]) == rows["expected_runtime"][i]
            assert [int(n) for n in row["partition"].split()] == rows["partition"][i]


def test_a_sweep_is_solved_as_it_is_written(x64):
    cells = bcgc.sweeps.grid(num_workers=[2, 3], rate=[1e-3, 1e-2])
    plan = bcgc.sweeps.Sweep(paper, cells, "uncoded")
    rows = bcgc.sweeps.sweep(plan)
    # M L / N times the mean of the slowest
    for workers, rate, runtime in zip(
        rows["num_workers"], rows["rate"], rows["expected_runtime"], strict=True
    ):
        slowest = 50 + sum(1 / n for n in range(1, workers + 1)) / rate
        assert runtime == pytest.approx(50 * 20_000 / workers * slowest, rel=1e-9)
    for wrong in ((cells,), (paper,), (plan, cells)):
        with pytest.raises(TypeError, match="either only a Sweep, or a function"):
            bcgc.sweeps.sweep(*wrong)

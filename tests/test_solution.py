"""Solutions: what they say, against what other functions say of the same partition."""

import functools
import json
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax._pytree import replace
from bcgc_jax.plans.simulation import added_in_a_row
from bcgc_jax.solution import solution_of_value
from bcgc_jax.solvers.methods import NAMES
from tests.problems import not_none, padded, slow

pytestmark = pytest.mark.usefixtures("x64")

LAW = bcgc.ShiftedExponential(1e-3, 50.0)
PROBLEM = padded(LAW, 6, 5_000, 50)


def test_the_runtime_of_the_whole_numbers_is_that_of_this_partition():
    for method in ("optimal", "time"):
        solution = bcgc.solve(PROBLEM, method)
        counts = np.asarray(solution.rounded, float)
        exact = float(bcgc.expected_runtime(PROBLEM, counts))
        assert float(solution.rounded_runtime) == pytest.approx(exact, rel=1e-9)
        assert float(solution.rounded_runtime) != float(solution.expected_runtime)
    assert float(bcgc.solve(PROBLEM, "limit").rounded_runtime) == float(
        bcgc.solvers.runtime_limit(PROBLEM)
    )
    missing = bcgc.solve(padded(LAW, 6, 90), "ferdinand:17")
    assert np.isnan(missing.rounded_runtime)


@pytest.mark.slow
def test_a_batch_has_the_runtimes_and_the_words_of_each():
    workers = np.array([6, 3])
    batch = jax.jit(
        jax.vmap(lambda n: bcgc.solve(padded(LAW, n, 5_000, 50), "ferdinand:1650"))
    )(workers)
    single = bcgc.solve(PROBLEM, "ferdinand:1650")
    assert float(batch.rounded_runtime[0]) == pytest.approx(
        float(single.rounded_runtime), rel=1e-9
    )
    assert np.isnan(batch.rounded_runtime[1])
    assert batch.message.tolist() == ["converged", bcgc.Status.INFEASIBLE.message]
    assert repr(batch) == "Solution(ferdinand:1650, a batch of (2,))"


def test_the_plan_is_all_of_the_work():
    solution = bcgc.solve(PROBLEM, "time")
    plan = not_none(solution.plan)
    assert np.asarray(plan.data).tolist() == list(range(1, PROBLEM.max_workers + 1))
    assert np.all(np.asarray(plan.share) == 1)
    np.testing.assert_array_equal(plan.sizes, not_none(solution.partition))
    # τ(s) = (M b L / N) (s+1)/(s+α) max{α T_(N-s), T_(N)}: an uncoded share, then a
    # coded one.
    partial = bcgc.solve(PROBLEM, bcgc.TandonPartial(3.0))
    plan = not_none(partial.plan)
    first, subsets = np.asarray(plan.data).tolist()
    s = subsets - 1
    assert first == 1
    assert 1 <= s <= 5
    np.testing.assert_allclose(
        plan.share, [(s + 1) / (s + 3.0), 2.0 / (s + 3.0)], rtol=1e-12
    )
    assert np.asarray(plan.sizes).tolist() == [5_000, 5_000]
    assert partial.partition is None
    # Nothing is coded where nobody is slow.
    assert (
        not_none(bcgc.solve(PROBLEM, bcgc.TandonPartial(1.0)).needs).stored_subsets == 1
    )
    assert bcgc.solve(PROBLEM, "limit").plan is None


@pytest.mark.parametrize("method", ["tandon_partial", *slow("cyclic:3")])
def test_a_plan_has_the_runtime_that_its_solution_says(method):
    solution = bcgc.solve(PROBLEM, method)
    plan, value = not_none(solution.plan), float(solution.expected_runtime)
    assert float(bcgc.expected_runtime(PROBLEM, plan)) == pytest.approx(value, rel=1e-7)
    drawn = bcgc.simulate_runtime(jax.random.key(3), PROBLEM, plan, 40_000, unit=None)
    assert abs(float(drawn.mean) - value) < 4 * float(drawn.standard_error)
    in_time = float(bcgc.completion_probability(PROBLEM, plan, 1.1 * value))
    assert 0.5 < in_time < 0.99


@pytest.mark.parametrize("method", ["time", "backup:1", *slow("cyclic:3")])
def test_a_plan_for_another_problem_is_refused_and_has_no_runtime_where_it_is_traced(
    method,
):
    plan = not_none(bcgc.solve(PROBLEM, method).plan)
    with pytest.raises(
        ValueError, match=r"for 5000 coordinates .* the problem has 4000"
    ):
        bcgc.expected_runtime(padded(LAW, 6, 4_000, 50), plan)
    if method == "backup:1":  # on one subset, as all workers have
        return
    fewer = padded(LAW, 2, 5_000, 50)
    with pytest.raises(ValueError, match=r"on up to [36] subsets .* and 2 subsets"):
        bcgc.completion_probability(fewer, plan, 1e6)
    if method == "time":
        assert np.isnan(jax.jit(lambda plan: bcgc.expected_runtime(fewer, plan))(plan))


def _all_solutions() -> list[bcgc.Solution]:
    """Solve by every method, with what does not exist, and a batch."""
    solutions = list(bcgc.compare(PROBLEM, key=jax.random.key(0)).values())
    solutions += [
        bcgc.solve(PROBLEM, method) for method in (bcgc.Deadline(1e8), "cyclic:3")
    ]
    solutions.append(bcgc.solve(padded(LAW, 6, 90), "ferdinand:17"))

    # Of a law whose programs are small.
    @jax.jit
    @jax.vmap
    def alike(t):
        return bcgc.solve(padded(bcgc.distributions.Deterministic(t), 6, 5_000), "time")

    return [*solutions, alike(np.array([1.0, 2.0, -1.0]))]


def test_a_saved_solution_is_read_again(tmp_path):
    for solution in _all_solutions():
        from_file = bcgc.Solution.load(solution.save(tmp_path / "solution.json"))
        assert json.loads((tmp_path / "solution.json").read_text())["version"] == 4
        assert (from_file.method, from_file.kind, repr(from_file)) == (
            solution.method,
            solution.kind,
            repr(solution),
        )
        assert from_file.citation() == solution.citation()
        np.testing.assert_array_equal(
            from_file.rounded_runtime, solution.rounded_runtime
        )
        plan = solution.plan and replace(solution.plan, known_needs=solution.needs)
        solution = replace(solution, plan=plan)
        structures = [jax.tree.structure(s.plan) for s in (from_file, solution)]
        assert len({*structures}) == 1
        for name in vars(solution).keys() - {
            "method",
            "kind",
            "problem",
            "rounded_value",
        }:
            leaves = [
                jax.tree.leaves(getattr(answer, name))
                for answer in (solution, from_file)
            ]
            for saved, loaded in zip(*leaves, strict=True):
                assert jnp.result_type(saved) == jnp.result_type(loaded)
                np.testing.assert_array_equal(saved, loaded)


def test_a_file_says_for_what_and_with_which_version_it_was_planned(tmp_path):
    path = bcgc.solve(PROBLEM, "time").save(tmp_path / "solution.json")
    fields = json.loads(path.read_text())
    assert fields.pop("bcgc_jax") == bcgc.__version__
    assert fields.pop("problem") == repr(PROBLEM)
    from_file = bcgc.Solution.load(path)
    # as earlier versions of the package wrote it
    path.write_text(json.dumps(fields | {"version": 2}))
    chex.assert_trees_all_equal(bcgc.Solution.load(path), from_file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *(
            (text, "is not a valid file of Solution.save")
            for text in ("", "{}", "[1]", "\x80")
        ),
        (
            '{"format": "another", "version": 2}',
            "has format 'another', version 2, but .* reads format 'bcgc_",
        ),
        (
            '{"format": "bcgc_jax.Solution", "version": 99}',
            "version 99, but .* Load it with the package version that wrote it, or",
        ),
    ],
)
def test_a_file_of_something_else_is_refused(text, said, tmp_path):
    path = tmp_path / "other.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=said):
        bcgc.Solution.load(path)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("note", "mine", "'note'"),
        ("plan sizes dtype", "foo", "'foo'"),
        ("plan sizes dtype", "object", "sizes must contain numbers"),
        ("plan sizes values", [1, [2]], "inhomogeneous"),
        ("plan sizes", [1, 2], "tuple"),
        ("plan completion rule", "mine", "mine"),
        ("rounded values", [1, 2], r"rounded must have shape \(12,\), got \(2,\)"),
        ("status", "gone", "missing .* 'status'"),
        ("status values", 77, "77 is not a valid Status"),
        ("expected_runtime", None, "expected_runtime must have shape"),
        ("method", 3, "method must be text and kind one of"),
        ("kind", "certain", "kind one of exact, local, confidence"),
        ("plan note", 3, "'note'"),
    ],
)
def test_a_file_that_was_changed_by_hand_is_refused(place, value, said, tmp_path):
    path = bcgc.solve(PROBLEM, "time").save(tmp_path / "solution.json")
    fields = json.loads(path.read_text())
    *way, last = place.split()
    part = functools.reduce(dict.__getitem__, way, fields)
    part[last] = value
    if value == "gone":
        del part[last]
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=f"edited by hand. .*{said}"):
        bcgc.Solution.load(path)


# What each method rests on: who proposed the scheme, and the search that it runs.
SOURCES = {
    "optimal": ["wang2021"],
    "time": ["wang2021"],
    "frequency": ["wang2021"],
    "subgradient": ["wang2021", "shamir2013"],
    "deadline": ["wang2021", "wang2023", "birgin2000"],
    "nested": ["wang2021", "tandon2017", "ozfatura2019", "lewis2013"],  # BFGS for kinks
    "uncoded": ["wang2021", "tandon2017"],
    "single_block": ["wang2021", "tandon2017"],
    "tandon": ["wang2021", "tandon2017"],
    "tandon_partial": ["wang2021", "tandon2017"],
    "ferdinand": ["wang2021", "ferdinand2018"],
    "ferdinand_full": ["wang2021", "ferdinand2018"],
    "ferdinand_half": ["wang2021", "ferdinand2018"],
    "cyclic": ["amiri2019"],
    "sharing": [
        *("wang2016", "attia2017", "amiri2019", "harlap2016"),
        *("polychronopoulos1987", "hummel1992", "copeland1989"),
    ],
    "backup": ["chen2016"],
    "drop": ["giladi2023"],
    "limit": ["attia2017"],
}


def test_every_method_cites_its_own_works():
    solution = bcgc.solve(PROBLEM, "time")
    assert {*SOURCES} == NAMES
    for method, keys in SOURCES.items():
        for name in (method, f"{method}:2"):
            entries = replace(solution, method=name).citation()
            assert re.findall(r"^@\w+\{(\w+),$", entries, flags=re.M) == keys
            assert entries.count("{") == entries.count("}")
    # A bound by draws has its own source; what is averaged over draws and bounds
    # nothing has not.
    sampled = replace(solution, kind="confidence")
    assert "mak1999" in sampled.citation()
    assert "mak1999" not in replace(sampled, plan=None, rounded=None).citation()


def test_a_scheme_of_ones_own_has_no_source_here():
    assert replace(bcgc.solve(PROBLEM, "time"), method="my_own").citation() == ""


def test_a_comparison_is_the_commands_table():
    comparison = bcgc.compare(PROBLEM, key=jax.random.key(0))
    assert list(comparison) == sorted(
        comparison, key=lambda name: float(comparison[name].expected_runtime)
    )
    assert list(comparison)[:4] == ["limit", "sharing:all", "sharing:2", "optimal"]
    assert {"subgradient", "tandon_partial", "uncoded"} <= set(comparison)
    table, heading, longer = repr(comparison).partition(
        "\nOne step after the other, each worker first ends the pass"
    )
    lines = table.splitlines()
    assert len(lines) == len(comparison) + 2
    assert all(len(line) <= 100 for line in (*lines, *longer.splitlines()))
    assert heading
    slower = re.search(r"single_block\s(\S+)\s\(×", longer)
    block = comparison["single_block"]
    added_seconds, _ = not_none(added_in_a_row(PROBLEM, not_none(block.partition)))
    assert float(not_none(slower)[1]) == pytest.approx(
        float(block.expected_runtime) + added_seconds, rel=1e-3
    )
    assert "uncoded" not in longer
    optimum = comparison["optimal"]
    above = 100 * (
        float(comparison["uncoded"].expected_runtime) / float(optimum.lower_bound) - 1
    )
    uncoded = next(line for line in lines if line.startswith("uncoded"))
    assert f"{above:.3g} %" in uncoded
    earlier = (
        "uncoded",
        "single_block",
        "tandon_partial",
        "ferdinand_full",
        "ferdinand_half",
    )
    best = min(comparison[name].expected_runtime for name in earlier)
    assert (
        f"{100 * (float(comparison['uncoded'].expected_runtime / best) - 1):+.1f} %"
        in uncoded
    )
    time = comparison["time"].expected_runtime
    saved = 100 * (1 - float(time / comparison["uncoded"].expected_runtime))
    assert next(line for line in lines if line.startswith("time")).split()[2:4] == [
        f"{saved:.1f}",
        "%",
    ]
    assert "█·····" in uncoded
    assert sum(" +0.0 %" in line for line in lines) >= 1  # that is the best baseline
    # on which its runtime depends
    assert any(line.startswith("tandon_partial α ") for line in lines)
    # Of whatever is listed; a scheme of one's own may be the best.
    short_table = (
        repr(bcgc.compare(PROBLEM, ["uncoded", "time"]))
        .partition("\nOne step")[0]
        .splitlines()
    )
    assert uncoded[:50] in {line[:50] for line in short_table}
    fastest = min(earlier, key=lambda name: float(comparison[name].expected_runtime))
    assert short_table[-1] == lines[-1] == f"Best baseline: {fastest}."
    scheme = bcgc.Scheme(
        "mine", lambda problem: not_none(comparison["optimal"].partition), baseline=True
    )
    alone = repr(bcgc.compare(PROBLEM, scheme))
    assert "\nBest baseline: mine." in alone
    optimal = next(line for line in lines if line.startswith("optimal"))
    # Uncoded is not listed.
    assert alone.splitlines()[1].split()[2:4] == optimal.split()[2:4]
    assert set(bcgc.compare(PROBLEM)) == set(comparison) - {"subgradient"}
    with pytest.raises(ValueError, match="Pass key"):
        bcgc.compare(PROBLEM, ["subgradient"])


def test_a_plan_that_does_not_exist_is_not_shown_and_not_trained():
    solve = jax.jit(
        lambda n, rate: bcgc.solve(
            padded(bcgc.ShiftedExponential(rate), n), bcgc.Tandon(5)
        )
    )
    assert (
        repr(solve(3, 1.0)) == f"Solution(tandon:5): {bcgc.Status.INFEASIBLE.message}"
    )
    shapes = jax.eval_shape(lambda n: bcgc.solve(padded(LAW, n), "time"), 3)
    assert repr(shapes) == "Solution(time)"
    wrong = solve(6, -1.0)
    with pytest.raises(ValueError, match="the problem has invalid numbers"):
        bcgc.coding.training_scheme(
            jax.random.key(0), bcgc.Problem(LAW, 3, 4), wrong, np.ones(4, np.float32)
        )


def test_a_file_of_an_older_version_says_whose_subsets_tasks_are(tmp_path):
    """Files of schedules of several blocks, which are no more, are refused."""
    solution = bcgc.solve(PROBLEM, "cyclic:3")
    path = solution.save(tmp_path / "old.json")
    saved = json.loads(path.read_text())
    turn = {"dtype": "int64", "values": [0, 1, 2]}
    saved["plan"]["completion"] |= {"turn": turn, "stored": 3}
    path.write_text(json.dumps(saved))
    from_file = bcgc.Solution.load(path)
    value = float(bcgc.expected_runtime(PROBLEM, not_none(from_file.plan)))
    assert value == pytest.approx(float(solution.expected_runtime), rel=1e-7)
    saved["plan"]["sizes"]["values"] = [2_000.0, 3_000.0]
    path.write_text(json.dumps(saved | {"method": "multi_message:3"}))
    with pytest.raises(ValueError, match="the method multi_message:3 was removed"):
        bcgc.Solution.load(path)


def test_whole_numbers_beyond_32_bits_are_not_cut(tmp_path):
    solution = bcgc.solve(padded(LAW, 6, 10**10), "time")
    path = solution.save(tmp_path / "large.json")
    with jax.enable_x64(False), pytest.raises(ValueError, match="jax_enable_x64"):
        bcgc.Solution.load(path)
    assert int(not_none(bcgc.Solution.load(path).rounded).sum()) == 10**10


def test_methods_that_are_none_or_are_two_of_a_name_are_refused():
    with pytest.raises(ValueError, match='two methods are named "optimal"'):
        bcgc.compare(PROBLEM, ["optimal", bcgc.Optimal(levels=[0, 1])])
    assert list(bcgc.compare(PROBLEM, "time")) == ["time"]
    nothing: Any
    for nothing in (bcgc.Optimal, 3, None):
        for call in (bcgc.solve, bcgc.compare):
            with pytest.raises(TypeError, match="a method is a name"):
                call(PROBLEM, nothing)
    with pytest.raises(
        TypeError, match="`problem` must be a Problem, got ShiftedExponential"
    ):
        bcgc.solve(LAW)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="level must be an integer >= 0"):
        bcgc.Tandon(1.5)  # type: ignore[arg-type]


@pytest.mark.slow
def test_traced_numbers_of_a_method_that_make_no_sense_are_invalid():
    solutions = jax.vmap(lambda alpha: bcgc.solve(PROBLEM, bcgc.TandonPartial(alpha)))(
        np.array([3.0, 0.5])
    )
    assert solutions.status.tolist() == [bcgc.Status.CONVERGED, bcgc.Status.INVALID]
    assert np.isnan(solutions.expected_runtime).tolist() == [False, True]


def test_a_runtime_that_is_not_known_to_a_hundredth_has_not_converged():
    problem = bcgc.Problem(
        bcgc.FromHazard(lambda p, t: p * t, lambda p, a: a / p, 1.0), 5, 1000
    )

    def of_error(error: float, drawn: bool = False) -> bcgc.Solution:
        expectation = bcgc.plans.Expectation(jnp.asarray(1.0), jnp.asarray(error))
        return solution_of_value(problem, expectation, drawn=drawn)

    solutions = [
        of_error(0.009),
        of_error(0.011),
        of_error(0.011, drawn=True),
        of_error(np.inf),
    ]
    imprecise, converged = bcgc.Status.PRECISION, bcgc.Status.CONVERGED
    assert [int(solution.status) for solution in solutions] == [
        converged,
        imprecise,
        converged,
        imprecise,
    ]
    assert solutions[1].message.endswith("relative_gap and runtime_error")
    assert replace(solutions[1], problem=problem).message.endswith(
        "pass the kinks of FromHazard if it has any"
    )
    single = replace(solutions[1], expected_runtime=jnp.float32(1.0))
    assert single.message.endswith("runtime_error, or enable float64")


@pytest.mark.slow
def test_a_runtime_of_which_much_is_beyond_single_precision_has_not_converged():
    # 26 % off, by its error 40 %.
    solution = bcgc.solve(
        bcgc.Problem(bcgc.Pareto(np.float32(1), np.float32(1.02)), 5, 1000), "uncoded"
    )
    assert int(solution.status) == bcgc.Status.PRECISION

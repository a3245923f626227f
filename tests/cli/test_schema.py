"""What `--format json` prints is what the schema says, field by field."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bcgc_jax.cli.arguments import LAWS
from bcgc_jax.cli.output import VERSION
from bcgc_jax.problem import Status
from tests.cli.schema import SCHEMA, problems, strict_json

LAW = ["--cycle-time", "shifted-exponential:rate=1e-3,shift=50"]
UNIFORM = ["--cycle-time", "uniform:low=0.4,high=2.6"]


@pytest.fixture
def trace(tmp_path):
    times = np.random.default_rng(3).gamma(3.0, size=(30, 4)) * [0.5, 2.5, 0.7, 0.6] + 0.2
    rows = [f"{s},{w},{t:.6f}" for s, row in enumerate(times) for w, t in enumerate(row)]
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(["step,worker,seconds", *rows]))
    return str(path)


@pytest.fixture
def answer(command):
    def ask(name: str, *arguments: str) -> Any:
        status, out, err = command(*arguments, "--format", "json")
        assert status == 0, err
        found = strict_json(out)
        assert problems(name, found) == []
        return found

    return ask


QUICK = ["--method", "uncoded", "--method", "tandon_partial"]
SCHEDULES = ["--method", "cyclic:2", "--method", "backup:1"]


@pytest.mark.smoke
def test_of_solve(answer, trace):
    found = answer(
        "solve", "solve", "--workers", "4", "--coordinates", "2000", *LAW, *QUICK, "--deadline", "1e7"
    )
    assert list(found) == ["version", "problem", "limit", "solutions"]
    assert found["version"] == VERSION
    asked = ["solve", "--trace", trace, "--coordinates", "2000", "--method", "uncoded"]
    for law in (["--keep-workers"], ["--trace-law", "atoms"], ["--trace-law", "pareto-tail"]):
        answer("solve", *asked, *law)
    found = answer("solve", "solve", "--workers", "4", "--coordinates", "2000", *LAW, *SCHEDULES)
    needs = [(row["stored_subsets"], row["round_trips"], row["exact_gradient"]) for row in found["solutions"]]
    assert sorted(needs) == [(1, 0, False), (2, 1, True)]


@pytest.mark.slow
def test_of_solve_with_everything_that_may_be_asked(answer, tmp_path):
    (tmp_path / "layers.txt").write_text("3\n1\n0.5\n4\n")
    units = ["--workers", "4", "--unit-costs", str(tmp_path / "layers.txt"), "--setup-cycles", "0.4"]
    found = answer("solve", "solve", *units, "--levels", "0,2-3", *UNIFORM, "--method", "time")
    assert found["solutions"][0]["levels"]
    goal = ["--objective", "completion-probability", "--deadline", "6e6"]
    goal += ["--workers", "4", "--coordinates", "5000"]
    found = answer("solve", "solve", *goal, *LAW, "--method", "time")
    assert found["solutions"][0]["start"]
    # Means that are infinite, and a time that never ends.
    for law in ("pareto:scale=1,shape=0.9", "two-speed:fast=1,slow=inf,probability=0.2"):
        found = answer("solve", "solve", *goal, "--cycle-time", law)
    assert found["problem"]["cycle_time"]["slow"] is None
    unlike = ["--cycle-time", "2*uniform:low=0.7,high=1.6", *LAW, "--coordinates", "3000"]
    found = answer("solve", "solve", *unlike, "--method", "uncoded")
    assert found["problem"]["num_draws"] > 0


@pytest.mark.smoke
def test_of_sweep(answer, tmp_path):
    grid = ["sweep", "--workers", "2,3", "--coordinates", "60", "--cycle-time", "pareto:scale=1"]
    grid += ["--axis", "shape=0.5,2", *QUICK]
    rows = answer("sweep", *grid, "--partitions", "--deadline", "50")
    assert rows[0]["expected_runtime"] is None
    assert rows[0]["status"] == "infinite"
    found = answer("sweep_summary", *grid, "--out", str(tmp_path / "sweep.csv"))
    assert found["version"] == VERSION


@pytest.mark.smoke
@pytest.mark.slow
def test_of_fit(answer, trace):
    asked = ["--law", "weibull", "--law", "uniform", "--replicates", "20", "--coordinates", "2000"]
    found = answer("fit", "fit", trace, *asked)
    assert found["version"] == VERSION
    assert "bcgc solve --trace FILE --keep-workers plans on whole steps." in found["remarks"]
    assert "cannot be known from one load" in found["remarks"][-1]
    assert {plan["law"] for plan in found["plans"]} > {"smooth", "measured times"}


@pytest.mark.slow
def test_of_fit_to_several_loads(answer, tmp_path):
    rng, rows = np.random.default_rng(0), ["step,worker,load,seconds"]
    for i in range(120):
        load = (100, 200, 400)[i // 4 % 3]
        rows.append(
            f"{i // 4},{i % 4},{load},{rng.exponential(2) + load * (0.01 + rng.exponential(0.01)):.6f}"
        )
    path = tmp_path / "loads.csv"
    path.write_text("\n".join(rows))
    asked = ["fit", str(path), "--law", "shifted-exponential", "--replicates", "20", "--coordinates", "2000"]
    found = answer("fit", *asked)
    assert found["fits"] == []
    assert [plan["law"] for plan in found["plans"]] == ["with start-up", "without start-up", "uncoded"]


@pytest.mark.smoke
@pytest.mark.slow
def test_of_train(answer, trace):
    asked = ["train", "--steps", "3", "--seeds", "1", *QUICK]
    found = answer("train", *asked, "--trace", trace)
    assert found["version"] == VERSION
    assert found["runs"][0]["time_to_target"] is None
    found = answer(
        "train", *asked, "--workers", "4", *LAW, "--start-up", "90", "--send-time", "2", "--overlap"
    )
    partial = next(run for run in found["runs"] if run["method"] == "tandon_partial")
    assert partial["alpha"] == pytest.approx(4.88, abs=0.005)


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _parts(part)


def test_the_schema_names_what_there_is():
    laws = SCHEMA["$defs"]["law"]["anyOf"][0]["properties"]["law"]["enum"]
    assert laws == list(LAWS)
    assert SCHEMA["$defs"]["status"]["enum"] == [status.name.lower() for status in Status]
    for name in ("solve", "sweep_summary", "fit", "train"):
        assert SCHEMA["$defs"][name]["properties"]["version"] == {"const": VERSION}
    # Every number has its unit.
    for part in _parts(SCHEMA["$defs"]):
        for name, field in part.get("properties", {}).items():
            if isinstance(field, dict) and (
                field.get("type") in ("number", "integer") or field.get("$ref") == "#/$defs/number"
            ):
                assert "unit" in field, name


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.pop("version"), "solve: version is missing"),
        (lambda x: x.update(version=1), "solve.version: 1 is not 2"),
        (lambda x: x.update(more=1), "solve.more is not in the schema"),
        (lambda x: x["solutions"][0].update(status="fine"), "'fine' is none of"),
        (lambda x: x["solutions"][0].update(partition=[1.5]), "1.5 is no"),
        (lambda x: x["solutions"][0].update(seconds=None), "None is no"),
        (lambda x: x["solutions"][0].update(lower_bound="0"), "'0' is no"),
        (lambda x: x["problem"]["cycle_time"].update(law="cauchy"), "'cauchy' is none of"),
        (lambda x: x["problem"]["cycle_time"].update(rate="fast"), "'fast' is no"),
    ],
)
def test_the_validator_sees_what_is_wrong(spoil, message):
    row: dict[str, Any] = dict.fromkeys(
        ("expected_runtime", "runtime_error", "lower_bound", "relative_gap"), 0.5
    )
    row |= {
        "method": "time",
        "status": "converged",
        "kind": "exact",
        "partition": [3],
        "partition_runtime": None,
        "schedule": {"sizes": [2, 1], "tasks": [[0, 0], [0, 1]]},
        "stored_subsets": 1,
        "sent": 0.5,
        "round_trips": 2,
        "exact_gradient": True,
        "seconds": 1,
    }
    law = {"law": "shifted-exponential", "rate": 1.0, "shift": 0.0}
    numbers = dict.fromkeys(("num_workers", "num_coordinates", "num_samples", "cycles"), 1)
    good = {"version": 2, "problem": {"cycle_time": law, **numbers}, "limit": None, "solutions": [row]}
    assert problems("solve", good) == []
    bad = copy.deepcopy(good)
    spoil(bad)
    assert message in "; ".join(problems("solve", bad))

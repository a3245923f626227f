"""The studies that run on worker processes."""

from typing import Any

import pytest

from bcgc_jax.cluster.engine import session
from experiments import busy, chunk_costs, struck
from experiments import cluster as experiment
from tests.studies import rows_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running_ray():
    """What clusters find running they use: none of them starts it anew."""
    with session(None, 2, 0):
        yield


@pytest.mark.usefixtures("running_ray")
def test_the_experiment_compares_measured_with_predicted_through_faults(
    tmp_path, capsys, monkeypatch, x64
):
    monkeypatch.setattr(experiment, "_EVEN", 3)
    methods: dict[str, Any] = {
        "methods": ("uncoded", "optimal"),
        "disturbed": ("optimal",),
    }
    experiment.run(tmp_path, workers=2, steps=6, seconds=0.05, patience=1.0, **methods)
    rows = rows_of(tmp_path / "cluster.csv")
    ran = [(row["method"], row["faults"]) for row in rows]
    assert ran == [("uncoded", "False"), ("optimal", "False"), ("optimal", "True")]
    for row in rows:
        assert float(row["measured_seconds"]) >= float(row["drawn_seconds"])
        assert float(row["final_loss"]) == pytest.approx(
            float(rows[0]["final_loss"]), rel=1e-6
        )
    for row in rows[2:]:
        assert "died" in row["events"]
        assert "hung" in row["events"]
    assert (tmp_path / "cluster.png").stat().st_size > 10_000
    out = capsys.readouterr().out
    # Which one, six iterations on a busy machine decide; that it is said of the figures
    # as they are.
    ordered = float(rows[1]["measured_seconds"]) <= float(rows[0]["measured_seconds"])
    assert (
        f"The schemes {'are' if ordered else 'are not'} in the predicted order." in out
    )
    # threads of Ray's may print too
    line_starts = ("Seconds", "The ", "scheme", "---", *methods["methods"])
    assert (
        max(len(line) for line in out.splitlines() if line.startswith(line_starts))
        <= 100
    )


def test_what_chunks_cost_is_a_ratio_to_whole_passes(tmp_path):
    chunk_costs.run(
        tmp_path, samples={"dense": (4,)}, chunks=(1, 2), width=4, seconds=0.0
    )
    (row,) = rows_of(tmp_path / "chunk_costs.csv")
    assert (row["samples"], float(row["1"])) == ("4", 1.0)
    assert min(float(row["2"]), float(row["whole_seconds"])) > 0


@pytest.mark.usefixtures("running_ray")
def test_a_frozen_worker_does_not_hold_back_a_step_of_work_sharing(tmp_path):
    """It would for two seconds and more, until its process is replaced."""
    options: Any = {"workers": 3, "strikes": 1, "steps_between": 6, "subset": 0.15}
    struck.run(tmp_path, **options, methods=("sharing:2:8",), kinds=("frozen",))
    (row,) = rows_of(tmp_path / "struck.csv")
    assert 0.9 < float(row["struck"]) < 10
    assert float(row["median_seconds"]) > 0.14


@pytest.mark.usefixtures("running_ray")
def test_what_nobody_interrupts_is_measured_beside_the_prediction(tmp_path):
    """For two equal workers two subsets take an eighth more than a pass uncoded."""
    options: Any = {
        "workers": (2,),
        "steps": 4,
        "equal_steps": 6,
        "subset": 0.1,
        "methods": (),
    }
    busy.run(tmp_path, **options, equal=("uncoded", "cyclic:2"), pauses=0.0, real=False)
    uncoded, twice = rows_of(tmp_path / "busy.csv")
    assert 0.1 < float(uncoded["free"]) == float(uncoded["in_a_row"]) < 0.4
    assert float(uncoded["measured"]) > 0.1
    assert 1.05 < float(twice["in_a_row"]) / float(twice["free"]) < 1.25
    assert float(twice["measured"]) > float(twice["free"])
    assert float(twice["against_first"]) == pytest.approx(
        float(twice["measured"]) / float(uncoded["measured"])
    )

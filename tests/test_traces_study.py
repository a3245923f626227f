"""The study of traces: a table and figure of what `advise` says of a folder's logs."""

import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.traces import load_trace
from experiments import traces
from tests.cli.steps import written
from tests.studies import Ran


def times_of(steps=24, workers=4, seed=5):
    """Times that stay: a worker's speed drifts, and one is slow for a while."""
    rng = np.random.default_rng(seed)
    drift = 1 + 0.2 * np.cumsum(rng.normal(size=(steps, workers)), axis=0) / np.sqrt(
        steps
    )
    times = np.abs(drift) + rng.gamma(2.0, 0.2, (steps, workers)) + 0.3
    times[steps // 2 :, -1] *= 1.7
    return times


@pytest.mark.slow
def test_a_folder_of_traces_is_one_table_and_one_figure(tmp_path, capsys):
    folder = tmp_path / "measured"
    folder.mkdir()
    written(folder / "one.csv", times_of())
    lacking = times_of(26, seed=6)
    lacking[[3, 9], [0, 2]] = np.nan
    written(folder / "two.csv", lacking)
    (folder / "README.md").write_text("no trace")
    study = Ran(traces, tmp_path, capsys, seed=0, traces=folder)
    assert "one: 4 workers, 24 steps" in study.printed
    assert study.drew("traces")
    rows = {(row["trace"], row["remedy"]): row for row in study.rows("traces")}
    for name in ("one", "two"):
        advice = bcgc.advise(load_trace(folder / f"{name}.csv"))
        own_rows = {
            remedy: row for (trace, remedy), row in rows.items() if trace == name
        }
        advised = [
            remedy for remedy, row in own_rows.items() if row["advised"] == "True"
        ]
        assert advised == ([] if advice.advised is None else [advice.advised])
        assert {remedy: float(row["saved"]) for remedy, row in own_rows.items()} == {
            row.remedy: pytest.approx(row.saved.value, abs=1e-9) for row in advice.rows
        }

"""The study of advice: what it says of a half the whole log's replay took there."""

from pathlib import Path

import numpy as np
import pytest

from bcgc_jax.balancing.scheme import Resources
from bcgc_jax.balancing.scheme_names import possible
from bcgc_jax.diagnosis.advice import best_and_drawn, model_of
from bcgc_jax.diagnosis.replays import replayed
from bcgc_jax.traces import load_trace
from bcgc_jax.traces.whole_steps import whole_steps
from experiments import advice
from tests.studies import Ran

STEPS = Path(advice.__file__).parent / "data" / "steps.csv"


@pytest.mark.slow
def test_advice_on_one_half_is_judged_in_the_other(tmp_path, capsys):
    study = Ran(advice, tmp_path, capsys, seed=0, traces=STEPS, num_logs=1)
    rows = study.rows("advice")
    # Steps, chunks with their lengths and without chunks, and a synthetic log: both
    # halves.
    assert len(rows) == 2 * (3 + len(advice.KNOWN))
    trace = load_trace(STEPS)
    times = trace.rows()
    best, draws = best_and_drawn(model_of(whole_steps(trace)).model)
    schemes = possible(Resources(trace.num_workers)).values()
    drawn = replayed(schemes, best.steps(), [draw.steps() for draw in draws]).draws
    for row, half in zip(
        rows, (slice(len(times) // 2, None), slice(len(times) // 2)), strict=False
    ):
        now, then = (
            np.mean([outcomes[name].seconds[half] for outcomes in drawn])
            for name in ("nothing", row["advised"])
        )
        assert float(row["saved"]) == pytest.approx(100 * (1 - then / now))
    assert all(float(row["regret"]) >= 0 for row in rows)
    assert "largest cause found" in study.printed

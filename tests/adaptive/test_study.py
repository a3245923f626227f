"""The study of the closed loop, small: what it prints and writes, against sums by hand."""

import functools

import numpy as np
import pytest

from bcgc_jax.adaptive import Planner
from experiments import adaptive as study
from tests.adaptive.test_planner import CHEAP
from tests.studies import Ran

pytestmark = pytest.mark.slow


def test_the_study_prints_and_writes_what_trainings_took(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study, "SIZES", {8: 2})
    monkeypatch.setattr(study, "LAWS", {"gamma": study.LAWS["gamma"]})
    name, drifts = "workers jump", study.drifts
    monkeypatch.setattr(study, "drifts", lambda *given: {name: drifts(*given)[name]})
    monkeypatch.setattr(study, "STEPS", 60)
    monkeypatch.setattr(study, "WORKERS", 8)
    monkeypatch.setattr(study, "RULES", CHEAP)
    monkeypatch.setattr(study, "Planner", functools.partial(Planner, rules=CHEAP))
    rng = np.random.default_rng(0)
    times = rng.uniform(1.0, 1.1, (40, 8)) * np.r_[np.ones(7), 3]
    lines = [f"{k},{w},{t}" for k, row in enumerate(times) for w, t in enumerate(row)]
    (tmp_path / "trace.csv").write_text("\n".join(["step,worker,seconds", *lines]))
    found = Ran(study, tmp_path, capsys, seed=0, traces=tmp_path / "trace.csv")
    trace, drift = found.rows("adaptive")
    assert float(trace["uncoded"]) == pytest.approx(times.max(axis=1).sum(), rel=1e-6)
    # A third of the speed: shares by speed take 8 / (7 + 1/3) in place of 3, but for the first iterations.
    assert 30 < float(trace["saved"]) < 64
    assert float(trace["fixed"]) == pytest.approx(100 * (1 - 8 / 22), abs=4)
    assert int(drift["changes"]) >= 1
    (early,) = found.rows("adaptive_early")
    assert abs(float(early["excess"])) < 5  # 0.9
    assert found.drew("adaptive")

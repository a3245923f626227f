"""A log of shared steps says what workers would have taken without sharing."""

import numpy as np
import pytest

from bcgc_jax.balancing.placement import Placement
from bcgc_jax.diagnosis.advice import advise
from bcgc_jax.traces import load_trace
from tests.balancing.dispatch.run import ROUND_TRIP, Run

STEPS = 24
WORKERS = 5
CHUNKS = 4
PLACE = Placement(WORKERS, 2, CHUNKS)


class Recorded:
    """Shared steps of workers that are at times four times as slow; their record."""

    def __init__(self, path):
        rng = np.random.default_rng(0)
        slow = rng.random((STEPS, WORKERS)) < 1 / 6
        self.paces = np.where(slow, 4.0, 1.0) * rng.lognormal(0, 0.05, slow.shape)
        self.lengths = rng.lognormal(0, 0.02, (STEPS, WORKERS, CHUNKS))
        pieces = np.minimum(np.arange(len(PLACE.sizes)), CHUNKS - 1)
        lengths = self.lengths[:, :, pieces] * PLACE.shares
        run = Run(PLACE, path)
        with run.coordinator:
            for step in range(STEPS):
                seconds = self.paces[step][:, None, None] * lengths[step]
                run.step(step, np.zeros(WORKERS), seconds, np.zeros((WORKERS, 0)))

    @property
    def seconds(self) -> np.ndarray:
        return self.paces[:, :, None] * self.lengths


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "chunks.csv"
    return Recorded(path), path


def test_own_seconds_are_those_that_workers_would_have_taken(recorded):
    """The worst of 480 chunks is 5 % off: paces are means over a worker's chunks."""
    drawn, path = recorded
    chunks = load_trace(path).microbatches
    assert chunks is not None
    assert chunks.asking == pytest.approx(ROUND_TRIP, abs=1e-6)
    np.testing.assert_allclose(chunks.seconds, drawn.seconds, rtol=0.1)


def test_advice_on_a_shared_log_is_that_on_own_steps(recorded, tmp_path):
    drawn, path = recorded
    rows = ["step,worker,chunk,seconds,asking"]
    for (step, worker, chunk), seconds in np.ndenumerate(drawn.seconds):
        rows.append(f"{step},{worker},{chunk},{seconds},{ROUND_TRIP}")
    own_log = tmp_path / "own.csv"
    own_log.write_text("\n".join(rows))
    shared, alone = advise(load_trace(path)), advise(load_trace(own_log))
    assert shared.advised == alone.advised
    for remedy in ("sharing:2", "sharing:3"):
        saved = [advice.row(remedy).saved.value for advice in (shared, alone)]
        assert saved[0] == pytest.approx(saved[1], abs=0.01)


def test_a_shared_step_that_lacks_a_chunk_is_left_out(recorded, tmp_path):
    """A record that breaks off."""
    _, path = recorded
    lines = path.read_text().splitlines(keepends=True)
    short = tmp_path / "short.csv"
    short.write_text("".join(lines[:-1]))
    assert load_trace(short).num_steps == STEPS - 1


def test_what_is_no_number_is_told_with_its_line(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,worker,subset,chunk,share,seconds\n0,a,a,0,1,x\n")
    with pytest.raises(ValueError, match="line 2: seconds must be a positive number"):
        load_trace(path)

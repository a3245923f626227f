"""What `bcgc advise` replays is what `serve` hands out: chunks and times."""

from pathlib import Path

import numpy as np
import pytest

from bcgc_jax.balancing.asking import Asking
from bcgc_jax.balancing.chunk_lengths import TICKS_OF_UNIT, LoadLine, ticks_of
from bcgc_jax.balancing.ledger import Ledger
from bcgc_jax.balancing.lockstep import Chunks, handed_out
from bcgc_jax.balancing.placement import Placement, chunk_tables
from bcgc_jax.balancing.remedies import Sharing
from bcgc_jax.balancing.scheme import Costs
from bcgc_jax.balancing.steps import Steps
from bcgc_jax.cli import advise_files
from bcgc_jax.diagnosis.advice import advise, best_and_drawn
from bcgc_jax.diagnosis.causes import Parts
from bcgc_jax.diagnosis.log_model import model_of
from bcgc_jax.diagnosis.replays import seats_of
from bcgc_jax.traces import load_trace
from bcgc_jax.traces.intervals import percent
from bcgc_jax.traces.whole_steps import whole_steps
from experiments.event_loop import driven
from tests.balancing.dispatch.run import ROUND_TRIP, Run

LOG = Path(__file__).parents[3] / "experiments" / "data" / "chunks.csv"
STEPS = 8
WORKERS = 5
CHUNKS = 3
STORED = (2, 3, 5)
LINE = LoadLine(base=0.25, slope=0.5, usual=1.25)


class Drawn:
    """Steps of unlike chunks, with pauses; with `ties` many numbers are equal."""

    def __init__(self, stored: int, *, ties: bool = False, seed: int = 0):
        rng = np.random.default_rng([seed, stored])
        self.place = Placement(WORKERS, stored, CHUNKS, load_line=LINE)
        pieces = len(self.place.sizes)
        self.paces = rng.uniform(0.5, 3.0, (STEPS, WORKERS))
        self.loads = rng.gamma(1.0, 2.0, (STEPS, WORKERS, pieces)) + 0.01
        self.starts = rng.exponential(0.5, (STEPS, WORKERS))
        self.pauses = rng.gamma(1.0, 1.0, (STEPS, WORKERS, 4)) * (rng.random(4) < 0.3)
        if ties:
            self.paces = rng.integers(1, 4, self.paces.shape) / 2
            self.loads = rng.integers(1, 4, self.loads.shape) / 1.0
            self.starts = rng.integers(0, 3, self.starts.shape) / 1.0
            self.pauses = rng.integers(0, 2, self.pauses.shape) / 1.0
        shares = np.array(self.place.shares)
        # Chunks take what is predicted, or up to twice as long.
        self.lengths = (
            LINE.costs(self.loads, shares) * rng.integers(2, 5, self.loads.shape) / 2
        )
        self.ticks = LINE.ticks(self.loads, shares)

    def replayed(
        self, *, by_length: bool, starts: bool = True, asking: Asking | None = None
    ) -> np.ndarray:
        chunks = Chunks(
            self.paces,
            self.lengths.reshape(STEPS, -1),
            self.pauses,
            self.ticks.reshape(STEPS, -1) if by_length else None,
            self.starts if starts else None,
        )
        tables = chunk_tables(self.place.storage, self.place.sizes)
        return handed_out(tables, chunks, asking or Asking(ROUND_TRIP))

    def seconds(self, step: int) -> np.ndarray:
        """Of each chunk with each worker, `[N, M]`."""
        return self.paces[step][:, None] * self.lengths[step].ravel()

    def run(self, step: int, *, by_length: bool, asking: Asking) -> float:
        """When a step has ended that `Ledger` hands out."""
        ledger = ledger_of(self.place, self.ticks[step] if by_length else None)
        starts, pauses = self.starts[step], self.pauses[step]
        return driven(ledger, self.seconds(step), starts, pauses, asking).time


def ledger_of(place: Placement, ticks: np.ndarray | None) -> Ledger:
    sizes = [place.sizes] * place.num_workers
    ledger = Ledger(place.storage, sizes, ticks_of_unit=TICKS_OF_UNIT)
    for subset, of_subset in enumerate([] if ticks is None else ticks.tolist()):
        ledger.queue.reweigh(subset, of_subset)
    return ledger


# Questions that wait for nobody, and one at a time: the coordinator knows then what has
# ended.
ASKING = {
    "at once": Asking(ROUND_TRIP),
    "one at a time": Asking(delay=0.05, service=0.1),
}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("by_length", [False, True], ids=["sizes", "lengths"])
@pytest.mark.parametrize("ties", [False, True], ids=["drawn", "ties"])
@pytest.mark.parametrize("asking", ASKING.values(), ids=ASKING)
def test_a_replayed_step_is_handed_out_by_the_machine_that_runs(
    stored, by_length, ties, asking
):
    drawn = Drawn(stored, ties=ties)
    run = [drawn.run(step, by_length=by_length, asking=asking) for step in range(STEPS)]
    replayed = drawn.replayed(by_length=by_length, asking=asking)
    np.testing.assert_allclose(run, replayed, rtol=0, atol=1e-12)


def _steps(
    run: Run, drawn: Drawn, *, by_length: bool, starts: bool, scale: float = 1.0
):
    ends = []
    for step in range(STEPS):
        run.now = 0.0
        seconds = drawn.seconds(step).reshape(WORKERS, WORKERS, -1)
        begins = drawn.starts[step] if starts else np.zeros(WORKERS)
        loads = drawn.loads[step] if by_length else None
        arguments = (scale * begins, scale * seconds, scale * drawn.pauses[step])
        ends.append(run.step(step, *arguments, loads))
    return np.array(ends)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("by_length", [False, True], ids=["sizes", "lengths"])
@pytest.mark.parametrize("ties", [False, True], ids=["drawn", "ties"])
def test_a_replayed_step_is_that_of_a_coordinator_and_its_messages(
    stored, by_length, ties
):
    """Lengths are sent as a worker begins: all are known if all begin at once."""
    drawn = Drawn(stored, ties=ties)
    run = Run(drawn.place)
    with run.coordinator:
        seconds = _steps(run, drawn, by_length=by_length, starts=not by_length)
    replayed = drawn.replayed(by_length=by_length, starts=not by_length)
    np.testing.assert_allclose(seconds, replayed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("by_length", [False, True], ids=["sizes", "lengths"])
def test_the_rows_of_advise_are_handed_out_by_the_machine_that_runs(stored, by_length):
    rng = np.random.default_rng(stored)
    shape = STEPS, WORKERS, CHUNKS
    data = rng.pareto(1.5, shape) + 0.1
    parts = Parts(
        steady=rng.normal(0, 0.3, shape[:2]),
        random=rng.normal(0, 0.3, shape[:2]),
        data=data,
        pauses=rng.gamma(1.0, 1.0, shape) * (rng.random(shape) < 0.1),
    )
    costs = data * rng.uniform(0.7, 1.4, shape) if by_length else None
    scheme = Sharing(
        str(stored), stored, by_length=by_length, costs=Costs(Asking(ROUND_TRIP))
    )
    replayed = scheme.replay(parts.steps(costs)).seconds
    place = Placement(WORKERS, stored, CHUNKS)
    run = _seconds_of_a_log(parts.steps(costs), place, Asking(ROUND_TRIP))
    np.testing.assert_allclose(run, replayed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("by_length", [False, True], ids=["sizes", "lengths"])
def test_the_unit_of_time_changes_nothing(by_length):
    drawn = Drawn(2)
    handed_out_by = {}
    for scale in (1.0, 0.001):
        run = Run(drawn.place, round_trip=0.0)
        with run.coordinator:
            _steps(run, drawn, by_length=by_length, starts=True, scale=scale)
        handed_out_by[scale] = run.handed_out
    assert handed_out_by[1.0] == handed_out_by[0.001]


def test_a_recorded_log_gives_the_plan_that_is_run(tmp_path):
    """With loads that were sent: `serve` hands out by the line of `advise`."""
    short = 2.0**-10
    drawn = Drawn(1)
    # The data alone are slow: long chunks are as long as their loads say, within a
    # tenth.
    drawn.lengths = LINE.costs(drawn.loads) * (1 + drawn.paces[:, :, None] / 30)
    drawn.paces[:] = 1.0
    drawn.pauses[:] = 0.0
    record = tmp_path / "chunks.csv"
    run = Run(Placement(WORKERS, 1, CHUNKS), record, short)
    with run.coordinator:
        _steps(run, drawn, by_length=True, starts=False)
    trace = load_trace(record)
    assert trace.microbatches is not None
    load = trace.microbatches.load
    assert load is not None
    by_rank = np.argsort(trace.worker_names.astype(int))
    np.testing.assert_array_equal(load[:, by_rank], drawn.loads)
    assert trace.microbatches.asking == pytest.approx(short, abs=1e-6)
    advice = advise(trace)
    assert advice.lengths == "load"
    assert advice.advised is not None
    assert advice.advised.endswith(", lengths")
    advise_files.plan_of(advice).save(tmp_path / "plan.json")
    place = Placement.load(tmp_path / "plan.json")
    assert place.load_line == LoadLine.fitted(load, trace.microbatches.seconds)
    stored = advice.row(advice.advised).stored_subsets
    assert place == Placement(WORKERS, stored, CHUNKS, load_line=place.load_line)
    # Run on other steps, these are the seconds of a replay that knows the same line.
    new_steps = Drawn(stored, seed=1)
    run = Run(place, round_trip=short)
    with run.coordinator:
        seconds = _steps(run, new_steps, by_length=True, starts=False)
    assert place.load_line is not None
    new_steps.ticks = place.load_line.ticks(new_steps.loads, place.shares)
    replayed = new_steps.replayed(by_length=True, starts=False, asking=Asking(short))
    np.testing.assert_allclose(seconds, replayed, rtol=0, atol=1e-12)


def test_who_sends_no_lengths_counts_as_the_others_do_on_average():
    storage = Placement(2, 2, 2, equal_chunks=True).storage
    ledger = Ledger(storage, [[4, 4]] * 2, ticks_of_unit=TICKS_OF_UNIT)
    assert ledger.queue.weight((1, 0)) == 4 * TICKS_OF_UNIT
    ledger.queue.reweigh(0, [1000, 5000])
    assert [ledger.queue.weight((0, c)) for c in (0, 1)] == [1000, 5000]
    assert [ledger.queue.weight((1, c)) for c in (0, 1)] == [3000, 3000]
    # Both store all: the longest chunk is first, whoever asks.
    (handout,) = ledger.hand_out([1], now=0.0)
    assert handout.chunk == (0, 1)


def test_wrong_lengths_cost_time_and_no_sample():
    drawn = Drawn(3)
    run = Run(drawn.place)
    drawn.loads = drawn.loads[:, ::-1, ::-1]
    with run.coordinator:
        seconds = _steps(run, drawn, by_length=True, starts=False)
    chunks = [chunk for _, chunk in run.handed_out]
    assert (
        len(chunks)
        == STEPS * len({*chunks})
        == STEPS * WORKERS * len(drawn.place.sizes)
    )
    assert np.all(seconds > 0)


@pytest.mark.slow
def test_the_rows_of_the_readme_are_those_of_a_run():
    """To the last digit printed: steps are handed out, with questions that cost."""
    trace = load_trace(LOG)
    advice = advise(trace)
    log = model_of(whole_steps(trace))
    best, draws = best_and_drawn(log.model)
    assert log.costs is not None
    now = best.steps().last().mean()
    seats = seats_of(draws[0].steps(), len(draws))
    for row in advice.rows:
        if not row.scheme.asks:
            continue
        place = Placement(6, row.stored_subsets, 8, row.equal_chunks)
        by_length = row.scheme.by_length
        seconds = [
            _seconds_of_a_log(
                draw.steps(log.costs if by_length else None).seated(seat),
                place,
                advice.costs.asking,
            )
            for draw, seat in zip(draws, seats, strict=True)
        ]
        assert percent(1 - np.mean(seconds) / now) == percent(row.saved.value), (
            row.remedy
        )


def _seconds_of_a_log(steps: Steps, place: Placement, asking: Asking) -> list[float]:
    """Of each step of a log, handed out by `Ledger`."""
    count, _, chunks = steps.lengths.shape
    of_chunk = np.minimum(np.arange(len(place.sizes)), chunks - 1)
    ends = []
    for step in range(count):
        ticks = None
        if steps.costs is not None:
            cost = steps.costs[step][:, of_chunk] * place.shares
            ticks = ticks_of(cost, steps.costs.mean())
        lengths = steps.lengths[step][:, of_chunk] * place.shares
        seconds = steps.pace[step][:, None] * lengths.ravel()
        ledger = ledger_of(place, ticks)
        pauses = steps.pauses[step]
        ends.append(driven(ledger, seconds, None, pauses, asking).time)
    return ends

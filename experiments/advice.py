"""Measure how much time the advice of `bcgc advise` saves on logs that it has not seen.

Each log is advised on in one half and evaluated in the other half, in both directions.
Regret is the saving of the best exact remedy in hindsight minus the saving of the
recommended remedy, in percentage points of the uncoded time.

The steps of a synthetic log are evaluated with the true times of workers, chunks and
pauses. The advice gets the log without chunks, with chunks, or with chunks and forward
passes. The same holds for recorded logs that have them. A request takes seconds. In a
log without a unit, such as a log of PAI jobs, requests are free.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bcgc_jax.balancing.asking import MEASURED
from bcgc_jax.balancing.scheme import Costs, Resources
from bcgc_jax.balancing.scheme_names import possible
from bcgc_jax.diagnosis.advice import advise, best_and_drawn
from bcgc_jax.diagnosis.causes import CAUSES, Parts, losses
from bcgc_jax.diagnosis.log_model import DATA_OR_PAUSES, Log, model_of
from bcgc_jax.diagnosis.replays import replayed
from bcgc_jax.traces import Trace, load_trace
from bcgc_jax.traces.microbatches import Microbatches
from bcgc_jax.traces.whole_steps import whole_steps
from experiments.report import print_table, run_command, save, with_progress
from experiments.traces import files_of

STEPS = 80
CHUNKS = 8
FORWARD = 0.47
# Mixtures of one, two or three causes; four of each, and four more: 60 logs.
MIXTURES = [
    mixture for count in (1, 2, 3) for mixture in itertools.combinations(CAUSES, count)
]
NUM_LOGS = 60
KNOWN = ("chunks, forward passes", "chunks", "steps")
# Recorded by `experiments.record`.
OWN = [Path(__file__).parent / "data" / name for name in ("steps.csv", "chunks.csv")]


class Row(NamedTuple):
    """A half of a log: what the other half advises and saves here, %; the best."""

    log: str
    knowledge: str
    half: int
    advised: str
    saved: float
    best: str
    best_saved: float

    @property
    def regret(self) -> float:
        return self.best_saved - self.saved


def synthetic(seed: int, causes: Sequence[str]) -> Parts:
    """A log of 8 to 32 workers that these causes make slow; a chunk takes about 1."""
    rng = np.random.default_rng(seed)
    workers = int(rng.choice([8, 16, 32]))
    of_steps = (STEPS, workers)
    of_chunks = (STEPS, workers, CHUNKS)
    steady = np.zeros(of_steps)
    random = np.zeros(of_steps)
    pauses = np.zeros(of_chunks)
    data = np.exp(rng.normal(0, 0.05, of_chunks))
    if "data" in causes:
        data = data * np.exp(rng.normal(0, rng.uniform(0.25, 0.6), of_chunks))
    if "steady" in causes:
        slow = rng.choice(workers, rng.integers(1, 3), replace=False)
        steady[int(rng.choice([0, STEPS // 4])) :, slow] = np.log(rng.uniform(1.2, 2))
    if "random" in causes:
        random = rng.normal(0, rng.uniform(0.12, 0.35), of_steps)
    if "pauses" in causes:
        pauses = np.where(
            rng.random(of_chunks) < rng.uniform(0.002, 0.02),
            rng.uniform(2, 10, of_chunks),
            0,
        )
    return Parts(steady, random, data, pauses)


def logged(parts: Parts, knowledge: str, seed: int) -> Trace:
    """What a recorder writes of it: pauses are in one of the two passes."""
    rng = np.random.default_rng(seed)
    share = FORWARD / (1 + FORWARD) * np.exp(rng.normal(0, 0.03, parts.data.shape))
    forward = share * (parts.seconds - parts.pauses)
    forward = forward + np.where(rng.random(forward.shape) < FORWARD, parts.pauses, 0)
    microbatches = Microbatches(
        parts.seconds, forward if knowledge == KNOWN[0] else None
    )
    return _trace(
        parts.seconds.sum(axis=2), None if knowledge == KNOWN[2] else microbatches
    )


def _trace(times: np.ndarray, parts: Microbatches | None) -> Trace:
    step, worker = np.indices(times.shape).reshape(2, -1)
    steps, workers = (np.arange(count).astype(str) for count in times.shape)
    whole = np.zeros(times.size, bool)
    return Trace(steps, workers, step, worker, times.ravel(), whole, microbatches=parts)


def judged(
    name: str, knowledge: str, trace: Trace, parts: Parts | None = None
) -> Iterator[Row]:
    """Judge both halves, by the log's `parts` if known, else by its model."""
    whole = whole_steps(trace)
    times = whole.times
    microbatches = None
    if trace.microbatches is not None:
        microbatches = trace.microbatches.whole_steps()
    log = model_of(whole)
    if parts is None:
        likely, draws = best_and_drawn(log.model)
    else:
        likely = parts
        draws = [parts]
    # Questions cost what `advise` supposes.
    costs = Costs(MEASURED)
    schemes = possible(
        Resources(trace.num_workers, know_lengths=log.costs is not None, costs=costs)
    )
    drawn = [draw.steps(log.costs) for draw in draws]
    outcomes = replayed(schemes.values(), likely.steps(log.costs), drawn).draws
    seconds = {
        name: np.mean([ended[name].seconds for ended in outcomes], axis=0)
        for name in schemes
    }
    exact = [name for name, scheme in schemes.items() if scheme.advisable]
    first = np.arange(len(times)) < len(times) // 2
    for half, steps in enumerate((~first, first)):
        now = seconds["nothing"][steps].mean()
        saved = {
            name: float(100 * (1 - seconds[name][steps].mean() / now)) for name in exact
        }
        saved["nothing"] = 0.0
        other_half = None
        if microbatches is not None:
            other_half = microbatches.take(~steps)
        advised = advise(_trace(times[~steps], other_half)).advised or "nothing"
        best = max(saved, key=saved.__getitem__)
        yield Row(name, knowledge, half, advised, saved[advised], best, saved[best])


def show(
    recorded: Sequence[Row],
    drawn: Sequence[Row],
    right_causes: dict[str, int],
    num_logs: int,
) -> None:
    print_table(
        (
            "Recorded logs: advised on one half, judged in the other; saved of the "
            "uncoded time, %"
        ),
        ["log", "known", "advised", "saved", "best", "saved", "regret"],
        [
            [
                *row[:2],
                row.advised,
                row.saved,
                row.best,
                row.best_saved,
                f"{row.regret:.2f}",
            ]
            for row in recorded
        ],
    )
    lines: list[list[object]] = []
    for knowledge in KNOWN:
        rows = [row for row in drawn if row.knowledge == knowledge]
        above = sum(row.regret > 2 for row in rows)
        worst = max(row.regret for row in rows)
        least = min(row.saved for row in rows)
        right = "–"
        if knowledge in right_causes:
            right = f"{right_causes[knowledge]} of {num_logs}"
        lines.append(
            [
                knowledge,
                right,
                f"{above} of {len(rows)}",
                f"{worst:.1f}",
                f"{least:.1f}",
            ]
        )
    print_table(
        "Synthetic logs by what is known of them",
        ["known", "largest cause found", "regret above 2", "largest", "least saved"],
        lines,
    )


def run(out: Path, *, seed: int = 0, traces: Path, num_logs: int = NUM_LOGS) -> None:
    recorded: list[Row] = []
    for file in dict.fromkeys([*files_of(traces), *OWN]):
        name = file.name.split(".")[0]
        trace = load_trace(file)
        if trace.microbatches is None:
            recorded += judged(name, KNOWN[2], trace)
            continue
        recorded += judged(name, "chunks, lengths", trace)
        true = model_of(whole_steps(trace)).model.parts
        recorded += judged(name, KNOWN[2], trace._replace(microbatches=None), true)
    drawn: list[Row] = []
    right_causes = dict.fromkeys(KNOWN[:2], 0)
    for i in with_progress(range(num_logs), "synthetic logs"):
        causes = MIXTURES[i % len(MIXTURES)]
        parts = synthetic(1000 * seed + i, causes)
        for knowledge in KNOWN:
            trace = logged(parts, knowledge, i)
            drawn += judged(" + ".join(causes), knowledge, trace, parts)
            if knowledge in right_causes:
                log = model_of(whole_steps(trace))
                right_causes[knowledge] += _largest(log.losses()) == _largest(
                    _as_logged(log, losses(parts))
                )
    show(recorded, drawn, right_causes, num_logs)
    save(
        out,
        {
            "advice": [
                row._asdict() | {"regret": row.regret} for row in (*recorded, *drawn)
            ]
        },
    )


def _as_logged(log: Log, added: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What causes add; data and pauses together where the log cannot part them."""
    if log.told_apart:
        return added
    workers = {name: added[name] for name in ("steady", "random")}
    return {DATA_OR_PAUSES: added["data"] + added["pauses"], **workers}


def _largest(added: dict[str, np.ndarray]) -> str:
    return max(added, key=lambda cause: added[cause].mean())


if __name__ == "__main__":
    sys.exit(run_command(run))

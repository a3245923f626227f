"""Intervals of `bcgc advise` against logs of which it is known what was slow.

Each log has chunks and no lengths. What its causes truly add to the loss, and what each
remedy truly saves, is a mean over very many steps of the same kind. Held: how often an
interval of 95 % had the true value in it, of the logs in which it was printed.
"""

import itertools
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bcgc_jax.measured import Advice, Trace, advise
from bcgc_jax.measured.causes import Parts
from bcgc_jax.measured.intervals import Interval
from bcgc_jax.measured.microbatches import Microbatches
from bcgc_jax.measured.replays import replayed
from bcgc_jax.schemes.base import Resources
from bcgc_jax.schemes.names import possible
from bcgc_jax.schemes.unplanned import Nothing
from experiments.report import each, print_table, run_command, save

KINDS = (
    ("data",),
    ("data", "random"),
    ("data", "slow"),
    ("random", "slow"),
    ("data", "random", "slow"),
    ("pareto", "random"),
)
STEPS, WORKERS, CHUNKS, NUM_LOGS = (20, 40, 100), (5, 8, 32), 6, 100
# The true values are of so many chunks at most.
_TRUE_CHUNKS = 2_000_000
_MOST_TRUE_STEPS = 20_000
_SLOW, _OFTEN, _SLOWER = 1.7, 0.15, (1.5, 4.0)


class Row(NamedTuple):
    """How often the intervals of one quantity held, and the mean error of its
    estimates.
    """

    kind: str
    steps: int
    workers: int
    quantity: str
    true: float
    mean: float
    logs: int
    held: float


class Made(NamedTuple):
    """Factors of slow workers, who stay so or not, `[S, W]` each; chunks,
    `[S, W, C]`.
    """

    stays: np.ndarray
    single: np.ndarray
    chunks: np.ndarray

    @property
    def seconds(self) -> np.ndarray:
        return (self.stays * self.single)[:, :, None] * self.chunks

    def centred(self) -> "Made":
        """The mean worker of a step, by ln of its seconds, is not slow at random."""
        usual = np.exp(np.log(self.single).mean(axis=1, keepdims=True))
        return Made(self.stays, self.single / usual, self.chunks * usual[:, :, None])


def made(
    rng: np.random.Generator, steps: int, workers: int, kind: Sequence[str]
) -> Made:
    """Make a log: lengths are log-normal or of a heavy tail, 15 % of worker-steps are
    slow.
    """
    shape = steps, workers, CHUNKS
    chunks = rng.lognormal(0, 0.01, shape)
    stays, single = np.ones(shape[:2]), np.ones(shape[:2])
    if "data" in kind:
        chunks *= rng.lognormal(0, 0.5, shape)
    if "pareto" in kind:
        chunks *= np.minimum((1 - rng.random(shape)) ** (-1 / 1.8), 30)
    if "random" in kind:
        single[rng.random(shape[:2]) < _OFTEN] = 2.0
        single = np.where(single > 1, rng.uniform(*_SLOWER, shape[:2]), 1.0)
    if "slow" in kind:
        stays[:, workers // 2] = _SLOW
    return Made(stays, single, chunks)


def true_shares(log: Made) -> dict[str, float]:
    """Shapley values by all orders of the causes, as shares of the loss.

    >>> even = np.ones((1, 2))
    >>> log = Made(np.array([[1.0, 3.0]]), even, np.array([[[1.0], [2.0]]]))
    >>> {cause: round(share, 12) for cause, share in true_shares(log).items()}
    {'data or pauses': 0.3, 'steady': 0.7, 'random': 0.0}
    """
    log = log.centred()
    work = log.chunks.sum(axis=2)
    even = np.broadcast_to(work.mean(axis=1, keepdims=True), work.shape)
    names = "data or pauses", "steady", "random"

    def loss(present: frozenset[str]) -> float:
        times = even
        if names[0] in present:
            times = work
        for name, factor in zip(names[1:], (log.stays, log.single), strict=True):
            if name in present:
                times = times * factor
        return float(np.mean(times.max(axis=1) - times.mean(axis=1)))

    orders = list(itertools.permutations(names))
    added = dict.fromkeys(names, 0.0)
    for order in orders:
        for place, name in enumerate(order):
            before = frozenset(order[:place])
            added[name] += (loss(before | {name}) - loss(before)) / len(orders)
    whole = loss(frozenset(names))
    return {name: value / whole for name, value in added.items()}


def true_savings(
    rng: np.random.Generator, steps: int, workers: int, kind: Sequence[str]
) -> dict[str, float]:
    """Mean savings of remedies that are planned in logs of so many steps, in these and
    others.
    """
    count = math.ceil(
        min(_TRUE_CHUNKS / 5 / (workers * CHUNKS), _MOST_TRUE_STEPS / 2) / steps
    )
    now = 0.0
    taken: dict[str, float] = defaultdict(float)
    for _ in range(count):
        log = made(rng, steps, workers, kind)
        paces = np.log(log.stays), np.log(log.single)
        parts = Parts(*paces, log.chunks, np.zeros_like(log.chunks))
        schemes = possible(Resources(workers)).values()
        (outcomes,) = replayed(schemes, parts.steps(), [parts.steps()]).draws
        now += outcomes[Nothing.name].seconds.mean()
        for name, outcome in outcomes.items():
            taken[name] += float(outcome.seconds.mean()) / (1 - outcome.lost)
    return {name: 1 - seconds / now for name, seconds in taken.items()}


def advice_on(log: Made) -> Advice:
    """Advice where questions are free, as in the true savings."""
    seconds = log.seconds
    steps, workers = (np.arange(count).astype(str) for count in seconds.shape[:2])
    step, worker = np.indices(seconds.shape[:2]).reshape(2, -1)
    every = Microbatches(seconds)
    times = seconds.sum(axis=2).ravel()
    whole = np.zeros(times.size, bool)
    trace = Trace(steps, workers, step, worker, times, whole, microbatches=every)
    return advise(trace, round_trip=0.0)


def printed(advice: Advice) -> Iterator[tuple[str, Interval]]:
    """The intervals of an answer, by name."""
    yield from advice.causes.items()
    for row in advice.rows:
        if row.saved.known:
            yield f"saved by {row.remedy}", row.saved


def judged(
    seed: int, steps: int, workers: int, kind: Sequence[str], num_logs: int
) -> list[Row]:
    """Compare the intervals of logs of one kind and size with the truth."""
    rng = np.random.default_rng([seed, steps, workers, *map(len, kind)])
    many = int(min(_TRUE_CHUNKS / (workers * CHUNKS), _MOST_TRUE_STEPS))
    true: Mapping[str, float] = true_shares(made(rng, many, workers, kind))
    saved = true_savings(rng, steps, workers, kind)
    true = {**true, **{f"saved by {name}": value for name, value in saved.items()}}
    found: dict[str, list[Interval]] = defaultdict(list)
    for _ in range(num_logs):
        for name, interval in printed(advice_on(made(rng, steps, workers, kind))):
            found[name].append(interval)
    rows = []
    for name, intervals in found.items():
        value = true[name]
        held = [each.low - 1e-9 <= value <= each.high + 1e-9 for each in intervals]
        mean = float(np.mean([each.value for each in intervals]))
        size = " + ".join(kind), steps, workers
        rows.append(Row(*size, name, value, mean, len(intervals), float(np.mean(held))))
    return rows


def show(rows: Sequence[Row]) -> None:
    lines: list[list[object]] = []
    for (kind, steps, workers), group in itertools.groupby(
        rows, key=lambda row: row[:3]
    ):
        every = list(group)
        causes = [row for row in every if not row.quantity.startswith("saved")]
        savings = [row for row in every if row not in causes]
        line: list[object] = [kind, str(steps), str(workers)]
        for several in (causes, savings):
            worst = min(several, key=lambda row: row.held)
            bias = max((row.mean - row.true for row in several), key=abs)
            line += [
                f"{worst.held:.2f} {worst.quantity.removeprefix('saved by ')}",
                f"{bias:+.3f}",
            ]
        lines.append(line)
    print_table(
        "Intervals of 95 %: how often the worst one held, and the largest mean error",
        ["log", "steps", "workers", "causes held", "error", "saved held", "error"],
        lines,
    )


def show_all(rows: Sequence[Row]) -> None:
    """How often the intervals of each quantity held, of all logs together."""
    lines: list[list[object]] = []
    for quantity in dict.fromkeys(row.quantity for row in rows):
        same = [row for row in rows if row.quantity == quantity]
        logs = sum(row.logs for row in same)
        held = sum(row.logs * row.held for row in same) / logs
        worst = min(same, key=lambda row: row.held)
        where = (
            f"{worst.held:.2f} {worst.kind}, {worst.steps} steps, {worst.workers} "
            "workers"
        )
        lines.append([quantity, str(logs), f"{held:.3f}", where])
    print_table("Of all logs", ["quantity", "logs", "held", "worst"], lines)


def run(out: Path, *, seed: int = 0, num_logs: int = NUM_LOGS) -> None:
    cells = list(itertools.product(KINDS, STEPS, WORKERS))
    rows: list[Row] = []
    for kind, steps, workers in each(cells, "kinds of logs"):
        rows += judged(seed, steps, workers, kind, num_logs)
    show(rows)
    show_all(rows)
    save(out, {"coverage": [row._asdict() for row in rows]})


if __name__ == "__main__":
    sys.exit(run_command(run))

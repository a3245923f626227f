"""Measure how often the confidence intervals of `bcgc advise` contain the true values.

The causes of the lost time are known for each log. Logs have chunks, but no lengths.
The true lost time of a cause, and the true saving of a remedy, are means over a large
number of steps of the same kind. The true saving of a remedy is the saving of the plans
of the log's two halves, because a user would run these plans. The coverage is the
fraction of printed 95 % intervals that contain the true value.
"""

import itertools
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bcgc_jax.balancing.remedies import Nothing
from bcgc_jax.balancing.scheme import Resources
from bcgc_jax.balancing.scheme_names import possible
from bcgc_jax.balancing.steps import LogRule, Steps
from bcgc_jax.diagnosis import Advice, advise
from bcgc_jax.diagnosis.causes import Parts
from bcgc_jax.diagnosis.replays import halves, replayed
from bcgc_jax.diagnosis.slowness import model_of
from bcgc_jax.traces import Trace
from bcgc_jax.traces.intervals import Interval
from bcgc_jax.traces.microbatches import Microbatches
from bcgc_jax.traces.whole_steps import whole_steps
from experiments.report import print_table, run_command, save, with_progress

KINDS = (
    ("data",),
    ("data", "random"),
    ("data", "slow"),
    ("random", "slow"),
    ("data", "random", "slow"),
    ("pareto", "random"),
)
STEPS = (20, 40, 100)
WORKERS = (5, 8, 32)
CHUNKS = 6
NUM_LOGS = 100
# Workers that are slow at random by so much that they are hardly told from the one that
# stays slow: 0.78 of the intervals of its share held where the error of its level was
# taken to be independent of the steps.
LOG_NORMAL = ("log-normal",)
OTHER_CELLS = ((LOG_NORMAL, 50, 6),)
# The true values are of so many chunks at most.
_TRUE_CHUNKS = 2_000_000
_MOST_TRUE_STEPS = 20_000
_SLOW = 1.7
_OFTEN = 0.15
_SLOWER = (1.5, 4.0)


class Row(NamedTuple):
    """How often intervals of a quantity held, their widths, and the estimates' mean."""

    kind: str
    steps: int
    workers: int
    quantity: str
    true: float
    mean: float
    half_width: float
    logs: int
    held: float


class Judgement(NamedTuple):
    """An interval, and the value that it should hold."""

    interval: Interval
    true: float

    @property
    def holds(self) -> bool:
        return self.interval.low - 1e-9 <= self.true <= self.interval.high + 1e-9


class Made(NamedTuple):
    """Factors of workers slow for long and not, `[S, W]` each; chunks, `[S, W, C]`."""

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


def drawn_log(
    rng: np.random.Generator, steps: int, workers: int, kind: Sequence[str]
) -> Made:
    """Make a log of log-normal or heavy-tailed lengths, 15 % slow worker-steps."""
    if kind == LOG_NORMAL:
        return _log_normal(rng, steps, workers)
    shape = steps, workers, CHUNKS
    chunks = rng.lognormal(0, 0.01, shape)
    stays = np.ones(shape[:2])
    single = np.ones(shape[:2])
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


def _log_normal(rng: np.random.Generator, steps: int, workers: int) -> Made:
    """Make a log of 8 chunks with a worker that is 1.5 times as slow in all steps."""
    stays = np.ones((steps, workers))
    stays[:, workers // 2] = 1.5
    single = rng.lognormal(0, 0.45, stays.shape)
    return Made(stays, single, rng.lognormal(0, 0.3, (*stays.shape, 8)))


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


def steps_of(log: Made) -> Steps:
    paces = np.log(log.stays), np.log(log.single)
    return Parts(*paces, log.chunks, np.zeros_like(log.chunks)).steps()


def saved_by(rules: Sequence[LogRule], steps: Steps) -> float:
    """What rules save on average, of the time for a sample that is used."""
    outcomes = [rule.replay(steps) for rule in rules]
    seconds = [outcome.seconds.mean() / (1 - outcome.lost) for outcome in outcomes]
    return float(1 - np.mean(seconds) / steps.last().mean())


def true_savings(steps: Steps) -> dict[str, float]:
    """What schemes save that learn nothing of a log."""
    schemes = possible(Resources(steps.pace.shape[1])).values()
    unplanned = [scheme for scheme in schemes if not scheme.learns]
    (outcomes,) = replayed(unplanned, steps, [steps]).draws
    seconds_of_nothing = outcomes[Nothing.name].seconds.mean()
    return {
        name: float(1 - outcome.seconds.mean() / seconds_of_nothing)
        for name, outcome in outcomes.items()
    }


def savings_of_plans(trace: Trace, steps: Steps) -> dict[str, float]:
    """What the plans save that `advise` makes on the halves of a log."""
    log = model_of(whole_steps(trace))
    likely = log.as_steps(log.model.without_chance().parts)
    schemes = possible(Resources(trace.num_workers)).values()
    saved = {}
    for scheme in schemes:
        if scheme.learns:
            plans = [scheme.plan_on(likely, half) for half in halves(len(likely.pace))]
            saved[scheme.name] = saved_by(plans, steps)
    return saved


def trace_of(log: Made) -> Trace:
    seconds = log.seconds
    steps, workers = (np.arange(count).astype(str) for count in seconds.shape[:2])
    step, worker = np.indices(seconds.shape[:2]).reshape(2, -1)
    microbatches = Microbatches(seconds)
    times = seconds.sum(axis=2).ravel()
    whole = np.zeros(times.size, bool)
    return Trace(steps, workers, step, worker, times, whole, microbatches=microbatches)


def printed(advice: Advice) -> Iterator[tuple[str, Interval]]:
    """The intervals of an answer, by name."""
    yield from advice.causes.items()
    for row in advice.rows:
        if row.saved.is_known:
            yield f"saved by {row.remedy}", row.saved


def judged(
    seed: int, steps: int, workers: int, kind: Sequence[str], num_logs: int
) -> list[Row]:
    """Compare the intervals of logs of one kind and size with the truth."""
    rng = np.random.default_rng([seed, steps, workers, *map(len, kind)])
    num_long_steps = int(min(_TRUE_CHUNKS / (workers * CHUNKS), _MOST_TRUE_STEPS))
    long_log = drawn_log(rng, num_long_steps, workers, kind)
    shares = true_shares(long_log)
    true_steps = steps_of(long_log).take(
        np.arange(num_long_steps) < num_long_steps // 5
    )
    unplanned = true_savings(true_steps)
    judgements: dict[str, list[Judgement]] = defaultdict(list)
    for _ in range(num_logs):
        trace = trace_of(drawn_log(rng, steps, workers, kind))
        savings = unplanned | savings_of_plans(trace, true_steps)
        true = shares | {f"saved by {name}": value for name, value in savings.items()}
        # Questions are free, as in the true savings.
        for name, interval in printed(advise(trace, round_trip=0.0)):
            judgements[name].append(Judgement(interval, true[name]))
    size = " + ".join(kind), steps, workers
    return [
        _row(size, name, judgements_of_name)
        for name, judgements_of_name in judgements.items()
    ]


def _row(size: tuple[str, int, int], name: str, judgements: list[Judgement]) -> Row:
    held = [judgement.holds for judgement in judgements]
    true = float(np.mean([judgement.true for judgement in judgements]))
    mean = float(np.mean([judgement.interval.value for judgement in judgements]))
    half_width = float(
        np.mean([(j.interval.high - j.interval.low) / 2 for j in judgements])
    )
    return Row(*size, name, true, mean, half_width, len(held), float(np.mean(held)))


def show(rows: Sequence[Row]) -> None:
    lines: list[list[object]] = []
    for (kind, steps, workers), group in itertools.groupby(
        rows, key=lambda row: row[:3]
    ):
        rows_of_kind = list(group)
        causes = [row for row in rows_of_kind if not row.quantity.startswith("saved")]
        savings = [row for row in rows_of_kind if row not in causes]
        line: list[object] = [kind, str(steps), str(workers)]
        for quantities in (causes, savings):
            worst = min(quantities, key=lambda row: row.held)
            bias = max((row.mean - row.true for row in quantities), key=abs)
            widest = max(row.half_width for row in quantities)
            line += [
                f"{worst.held:.2f} {worst.quantity.removeprefix('saved by ')}",
                f"{bias:+.3f}",
                f"{widest:.3f}",
            ]
        lines.append(line)
    numbers = "error", "width"
    print_table(
        "Intervals of 95 %: how often the worst one held, the largest mean error, and "
        "the largest half width",
        ["log", "steps", "workers", "causes held", *numbers, "saved held", *numbers],
        lines,
    )


def show_all(rows: Sequence[Row]) -> None:
    """How often the intervals of each quantity held, of all logs together."""
    lines: list[list[object]] = []
    for quantity in dict.fromkeys(row.quantity for row in rows):
        rows_of_quantity = [row for row in rows if row.quantity == quantity]
        logs = sum(row.logs for row in rows_of_quantity)
        held = sum(row.logs * row.held for row in rows_of_quantity) / logs
        worst = min(rows_of_quantity, key=lambda row: row.held)
        where = (
            f"{worst.held:.2f} {worst.kind}, {worst.steps} steps, {worst.workers} "
            "workers"
        )
        lines.append([quantity, str(logs), f"{held:.3f}", where])
    print_table("Of all logs", ["quantity", "logs", "held", "worst"], lines)


def run(out: Path, *, seed: int = 0, num_logs: int = NUM_LOGS) -> None:
    cells = [*itertools.product(KINDS, STEPS, WORKERS), *OTHER_CELLS]
    rows: list[Row] = []
    for kind, steps, workers in with_progress(cells, "kinds of logs"):
        rows += judged(seed, steps, workers, kind, num_logs)
    show(rows)
    show_all(rows)
    save(out, {"coverage": [row._asdict() for row in rows]})


if __name__ == "__main__":
    sys.exit(run_command(run))

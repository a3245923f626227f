"""The model of a log: which causes it tells apart, and the share of each."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from bcgc_jax.balancing.chunk_lengths import LoadLine
from bcgc_jax.balancing.steps import Steps
from bcgc_jax.diagnosis.causes import (
    Model,
    Parts,
    as_data,
    as_one_chunk,
    as_pauses,
    losses,
    model_of_chunks,
    model_of_steps,
    shapley_values,
)
from bcgc_jax.diagnosis.slow_workers import FEWEST_STEPS, Level
from bcgc_jax.traces.intervals import (
    ENDS,
    Interval,
    dependence,
    resample_draws,
    widened,
)
from bcgc_jax.traces.microbatches import Microbatches, predicted_seconds
from bcgc_jax.traces.whole_steps import WholeSteps


def losses_with_errors(
    parts: Parts, levels: Sequence[Level], of_random: float, *, lock_step: bool = False
) -> dict[str, np.ndarray]:
    """Return what each cause adds to the loss of each step, `[S]`, with the errors.

    Args:
      parts: a draw of the model.
      levels: the levels of its workers that stay slow, or fast.
      of_random: the part of what levels do not explain that is slowness at random.
      lock_step: whether chunk k of all workers is computed together.
    """
    parts = with_levels(parts, levels, of_random)
    added = losses(parts, lock_step=lock_step)
    by_level = slopes(parts, of_random, lock_step=lock_step)
    for cause, slope in by_level.items():
        for level in levels:
            steps = slice(level.first, level.stop)
            whole = slope[steps, level.worker].sum() / len(slope)
            added[cause][steps] += whole * level.influence
    return added


def with_levels(parts: Parts, levels: Sequence[Level], of_random: float) -> Parts:
    """Return other parts of the same seconds, with these levels.

    B keeps its mean over the workers of a step.
    """
    steady = parts.steady.copy()
    for level in levels:
        steady[level.first : level.stop, level.worker] = level.value
    less = parts.steady - steady
    random = parts.random + of_random * (less - less.mean(axis=1, keepdims=True))
    pace = np.exp(parts.steady + parts.random - steady - random)
    return Parts(steady, random, pace[:, :, None] * parts.data, parts.pauses)


def slopes(
    parts: Parts, of_random: float, *, lock_step: bool = False
) -> dict[str, np.ndarray]:
    """Return the derivatives of `losses` by the levels of the workers, `[S, W]`.

    The seconds stay, as in `with_levels`.
    """
    if not lock_step:
        parts = parts.whole()
    workers = parts.steady.shape[1]
    work = parts.data.sum(axis=2)
    share = work / work.sum(axis=1, keepdims=True)

    def slope(causes: Collection[str]) -> np.ndarray:
        times = parts.until_met(causes, lock_step=lock_step)
        paced = times - parts.pauses * ("pauses" in causes)
        slowest = times.argmax(axis=1)[:, None, :] == np.arange(workers)[:, None]
        by_pace = ((slowest - 1 / workers) * paced).sum(axis=2)
        whole = by_pace.sum(axis=1, keepdims=True)
        # B is centred, so the data of all workers are shorter.
        random = ("random" in causes) * (by_pace - whole / workers) + whole / workers
        data = by_pace if "data" in causes else whole * share
        less = of_random * random + (1 - of_random) * data
        return ("steady" in causes) * by_pace - less

    return shapley_values(slope)


class Shares(NamedTuple):
    """Shares of K causes, and how many dependent steps count as one, `[K]`."""

    intervals: list[Interval]
    dependence: list[float]


class Added(NamedTuple):
    """What causes add to the loss of each step by equally likely draws, `[D, S, K]`.

    Attributes:
      likely: by the draws.
      with_errors: with what each step adds by its influence on workers' levels, and
        with levels without bias.
    """

    likely: np.ndarray
    with_errors: np.ndarray


class _Resampled(NamedTuple):
    """Shares, `[K]`, in resampled steps, `[R, K]`, and each step's part, `[S, K]`."""

    values: np.ndarray
    drawn: np.ndarray
    influence: np.ndarray


def shares_of(added: Added, without: Added | None = None, seed: int = 0) -> Shares:
    """Return v_k = mean added_k / Σ mean added, at least 0, and its interval.

    Args:
      added: what causes add. The values are those of the draws that are likely; the
        intervals are those with errors.
      without: the same without slowness at random, where that does not show. The shares
        are those; the intervals are the union of both.
      seed: of the resampled steps.
    """
    resampled = _resampled(added.with_errors, seed)
    estimates = [(resampled.values, resampled)]
    if without is not None:
        # Draws with it are of chance: their middle is the median.
        estimates = [(np.median(resampled.drawn, axis=0), resampled)]
        added, resampled = without, _resampled(without.with_errors, seed)
        estimates.append((resampled.values, resampled))
    positive = np.maximum(added.likely.mean(axis=(0, 1)), 0.0)
    values = positive / max(float(positive.sum()), 1e-300)
    intervals = []
    for k, value in enumerate(values.tolist()):
        ends = [
            widened(
                middle[k],
                np.quantile(estimate.drawn[:, k], ENDS),
                estimate.influence[:, k],
            )
            for middle, estimate in estimates
        ]
        low, high = np.clip([np.min(ends), np.max(ends)], 0.0, 1.0).tolist()
        intervals.append(Interval(value, min(low, value), max(high, value)))
    return Shares(intervals, [dependence(series) for series in resampled.influence.T])


def _resampled(draws: np.ndarray, seed: int) -> _Resampled:
    mean = draws.mean(axis=0)
    of_cause = mean.mean(axis=0)
    loss = max(float(of_cause.sum()), 1e-300)
    values = of_cause / loss
    drawn = resample_draws(draws, seed)
    drawn = drawn / np.maximum(drawn.sum(axis=1, keepdims=True), 1e-300)
    influence = (mean - values * mean.sum(axis=1, keepdims=True)) / loss
    return _Resampled(values, drawn, influence)


# Chunks that a step is taken to have where the log does not say.
CHUNKS = 8
# The most that a user may ask for: in a step, and in a whole log.
MOST_CHUNKS, _MOST_CHUNKS_OF_LOG = 2**10, 2**25
# A time that is so many times another one is an error of a clock, or of units.
_MOST_RATIO = 1e15
# Without chunks a log does not say whether what is not steady is of workers, data or
# pauses.
STEADY = "steady"
REST = "rest"
# Without loads and forward passes chunks do not say whether a long one is long or has
# paused.
DATA_OR_PAUSES = "data or pauses"
# A few steps do not say whether a slow worker stays slow.
WORKERS = "workers"


class Log(NamedTuple):
    """The whole steps of a trace, a model of them, and other models as likely.

    Attributes:
      steps: that it is of.
      model: of the seconds.
      other_models: what makes other parts of the same seconds, by which other causes
        are slow.
      costs: of chunks, as predicted, `[S, W, C]`; None where their lengths are not
        known.
      line: predicts a chunk's seconds from its load, by which the costs are.
      recorded: whether the log has the chunks.
      told_apart: whether loads or forward passes tell long chunks from pauses.
      lock_step: whether chunk k of all workers is computed together.
    """

    steps: WholeSteps
    model: Model
    other_models: Sequence[Callable[[Parts], Parts]]
    costs: np.ndarray | None
    line: LoadLine | None
    recorded: bool
    told_apart: bool
    lock_step: bool = False

    def as_steps(self, parts: Parts) -> Steps:
        """Parts of the seconds as steps, with the lengths that are predicted."""
        steps = parts.steps(self.costs, lock_step=self.lock_step)
        return steps._replace(hosts=self.steps.trace.hosts)

    @property
    def has_loads(self) -> bool:
        """Whether loads predict the seconds of chunks."""
        return self.line is not None

    def causes(self) -> dict[str, str]:
        """The causes of `losses` that the log tells apart, and what each is in it.

        Whole steps tell "steady" from "rest", and with loads from "data". Chunks tell
        "data", "steady" and "random" apart; loads or forward passes tell "pauses" from
        the data, else both are "data or pauses". A few steps do not tell "steady": what
        is "random" in chunks is then "workers".
        """
        causes = {}
        if self.recorded or self.has_loads:
            causes["data"] = "data"
        few_steps = len(self.model.parts.data) < FEWEST_STEPS
        if not few_steps:
            causes["steady"] = STEADY
        if not self.recorded:
            return causes | {"random": REST}
        causes["random"] = "random"
        if few_steps:
            causes["random"] = WORKERS
        if self.told_apart:
            return causes | {"pauses": "pauses"}
        return causes | {"data": DATA_OR_PAUSES}

    def losses(self) -> dict[str, np.ndarray]:
        """What each cause adds to each step's loss in each of D draws, `[D, S]`."""
        draws = self.model.without_chance().draws
        return self._by_cause(
            [losses(parts, lock_step=self.lock_step) for parts in draws]
        )

    def _by_cause(
        self, losses_of_draws: Sequence[dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        return {
            name: np.stack([added[cause] for added in losses_of_draws])
            for cause, name in self.causes().items()
        }

    def shares(self, seed: int) -> tuple[dict[str, Interval], float]:
        """The shares of the causes, and how many dependent steps count as one."""
        without = None
        if not self.model.random_shows:
            without = self._added(self.model.without_chance())
        shares = shares_of(self._added(self.model), without, seed)
        causes = dict(zip(self.causes().values(), shares.intervals, strict=True))
        dependences = [
            dependence
            for dependence, share in zip(
                shares.dependence, shares.intervals, strict=True
            )
            if share.shows
        ]
        return causes, max(dependences, default=1.0)

    def _added(self, model: Model) -> Added:
        """What causes add by the draws of a model, without and with their errors."""
        likely = [losses(parts, lock_step=self.lock_step) for parts in model.draws]
        with_errors = list(likely)
        for place, parts in enumerate(model.draws):
            levels = model.levels_in(parts)
            if levels:
                with_errors[place] = losses_with_errors(
                    parts, levels, model.of_random, lock_step=self.lock_step
                )
        return Added(self._stacked(likely), self._stacked(with_errors))

    def _stacked(self, losses_of_draws: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
        """`[D, S, K]`; where all take one time, rounding is no cause."""
        rounding = 1e-9 * self.model.parts.times().max(axis=1)
        return np.stack(
            [
                np.where(np.abs(values) > rounding, values, 0.0)
                for values in self._by_cause(losses_of_draws).values()
            ],
            axis=-1,
        )


def model_of(
    steps: WholeSteps, chunks: int | None = None, *, lock_step: bool = False
) -> Log:
    """Model whole steps; of `chunks` in a worker's step, where the trace has none.

    Slowness is drawn for workers in the order of their speeds, in seconds over their
    median: what the log calls its workers and in which unit it counts makes no
    difference.
    """
    _check_chunks(chunks, steps.times.size)
    _check_ratio(steps)
    order = np.argsort(np.log(steps.times).mean(axis=0), kind="stable")
    unit = float(np.median(steps.times))
    parts = steps.trace.microbatches
    if steps.load is not None:
        log = _model_of_loads(steps, steps.load, chunks or CHUNKS, order, unit)
    elif parts is None or parts.seconds.shape[2] < 2:
        model = model_of_steps(steps.times[:, order] / unit, chunks or CHUNKS)
        log = _without_chunks(steps, model)
    elif chunks is not None:
        count = parts.seconds.shape[2]
        raise ValueError(f"the log itself says that a worker's step has {count} chunks")
    else:
        log = _model_of_parts(steps, parts.whole_steps(), order, unit)
    if lock_step and not log.recorded:
        raise ValueError(
            "lock-step is of chunks, and the log has none: give a row for each, with "
            "its number in a column chunk"
        )
    return log._replace(model=log.model.of_workers(order, unit), lock_step=lock_step)


def _check_chunks(chunks: int | None, num_times: int) -> None:
    """Raise ValueError for more chunks than are replayed in minutes, and in memory."""
    most_chunks = max(min(MOST_CHUNKS, _MOST_CHUNKS_OF_LOG // num_times), CHUNKS)
    if chunks is not None and not 2 <= chunks <= most_chunks:
        raise ValueError(
            f"chunks must be from 2 to {most_chunks:,} for {num_times:,} times, got "
            f"{chunks:,}"
        )


def _check_ratio(steps: WholeSteps) -> None:
    """Raise ValueError, with the cell, for times that leave no digits to others."""
    trace = steps.trace
    seconds = steps.times[:, :, None]
    if trace.microbatches is not None:
        seconds = trace.microbatches.whole_steps().seconds
    if seconds.max() <= _MOST_RATIO * seconds.min():
        return
    usual = float(np.median(seconds))
    place = int(np.argmax(np.abs(np.log(seconds / usual))))
    step, worker, _ = np.unravel_index(place, seconds.shape)
    raise ValueError(
        f"step {trace.step_names[steps.places[step]]} has a time of "
        f"{seconds.flat[place]:g} s of worker {trace.worker_names[worker]}, and half "
        f"of the times are above {usual:g} s. Leave the cell empty if the clock "
        "failed, and give all times in one unit"
    )


def _without_chunks(
    steps: WholeSteps,
    model: Model,
    costs: np.ndarray | None = None,
    line: LoadLine | None = None,
) -> Log:
    other_models = [as_data, as_one_chunk]
    return Log(
        steps, model, other_models, costs, line, recorded=False, told_apart=False
    )


def _model_of_parts(
    steps: WholeSteps, parts: Microbatches, order: np.ndarray, unit: float
) -> Log:
    if parts.load is not None and np.ptp(parts.load) == 0:
        # Equal loads, such as a batch's size, say nothing of lengths.
        parts = parts._replace(load=None)
    ordered = parts.take(np.s_[:, order])
    forward = None
    if ordered.forward is not None:
        forward = ordered.forward / unit
    model = model_of_chunks(
        ordered._replace(seconds=ordered.seconds / unit, forward=forward)
    )
    told_apart = parts.load is not None or parts.forward is not None
    other_models = []
    if not told_apart and as_pauses(model.parts).pauses.any():
        other_models = [as_pauses]
    costs, line = None, None
    if parts.load is not None:
        costs, line = _costs(parts.seconds, parts.load)
    return Log(
        steps, model, other_models, costs, line, recorded=True, told_apart=told_apart
    )


def _model_of_loads(
    steps: WholeSteps, load: np.ndarray, chunks: int, order: np.ndarray, unit: float
) -> Log:
    """Model a log with the load of each worker's step, in chunks taken for equal."""
    expected = predicted_seconds(steps.times, load)
    costs, line = _costs(steps.times, load)
    model = model_of_steps(
        steps.times[:, order] / unit, chunks, expected[:, order] / unit
    )
    costs = np.repeat(costs[:, :, None], chunks, axis=2) / chunks
    line = line._replace(base=line.base / chunks, usual=line.usual / chunks)
    return _without_chunks(steps, model, costs, line)


def _costs(seconds: np.ndarray, load: np.ndarray) -> tuple[np.ndarray, LoadLine]:
    """Predict chunks by loads, from the other half of the steps; the line is of all.

    Forward passes predict nothing: a chunk's own is timed after it has been handed out.
    """
    first = np.arange(len(seconds)) < len(seconds) // 2
    costs = np.empty(seconds.shape)
    for half in (first, ~first):
        line = LoadLine.fitted(load[~half], seconds[~half])
        costs[half] = line.costs(load[half])
    return costs, LoadLine.fitted(load, seconds)

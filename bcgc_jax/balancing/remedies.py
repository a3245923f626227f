"""Remedies: schemes that are planned and replayed on a log."""

import dataclasses
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from bcgc_jax.balancing.chunk_lengths import lengths_of_pieces, ticks_of
from bcgc_jax.balancing.lockstep import Chunks, handed_out
from bcgc_jax.balancing.placement import Placement, chunk_tables
from bcgc_jax.balancing.scheme import FREE, Costs, Resources, Scheme, count_of, in_words
from bcgc_jax.balancing.steps import LogRule, Outcome, Steps
from bcgc_jax.balancing.storage import least_alone


class Unplanned(Scheme, LogRule):
    """A scheme that learns nothing: what a step takes depends on no other step."""

    learns = False

    def plan_on(self, steps: Steps, which: np.ndarray) -> LogRule:
        return self

    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        return self.outcome(steps if which is None else steps.take(which))

    @abstractmethod
    def outcome(self, steps: Steps) -> Outcome:
        """How all steps end."""


@dataclasses.dataclass(frozen=True)
class Nothing(Unplanned):
    """All wait for the slowest worker."""

    name = "nothing"
    in_lock_step = of_lengths = True

    def outcome(self, steps: Steps) -> Outcome:
        return Outcome(steps.last())


@dataclasses.dataclass(frozen=True)
class Limit(Unplanned):
    """No exact scheme takes less, even if all store all, and nobody pauses."""

    name = "limit"
    by_chunk = in_lock_step = of_lengths = True

    def stored_subsets(self, choice: Sequence[float], num_workers: int) -> int:
        return num_workers

    def outcome(self, steps: Steps) -> Outcome:
        return Outcome(steps.lengths.sum(axis=(1, 2)) / np.sum(1 / steps.pace, axis=1))


@dataclasses.dataclass(frozen=True)
class HostLimit(Unplanned):
    """No exact scheme takes less that stores each sample on D of H hosts of one size.

    Data that only k hosts store can only be computed by these. It supposes that nobody
    knows which hosts will be slow when the data are placed.
    """

    max_subsets: int

    by_chunk = True

    @classmethod
    def rows(cls, resources: Resources) -> Iterator["HostLimit"]:
        """Of two subsets and of three, where that is less than one a host."""
        workers = Counter(resources.hosts)
        if len({*workers.values()}) == 1:
            for number in (2, 3):
                if number <= resources.most_subsets and number < len(workers):
                    yield cls(number)

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{Limit.name}:{self.max_subsets}"

    def needs(self, choice: Sequence[float]) -> str:
        return f"each sample on {self.max_subsets} hosts: no exact scheme saves more"

    def stored_subsets(self, choice: Sequence[float], num_workers: int) -> int:
        return self.max_subsets

    def outcome(self, steps: Steps) -> Outcome:
        """max_k C(k, D) / C(H, D) of the work, by the k slowest hosts together."""
        hosts = np.array(steps.hosts)
        count = hosts.max() + 1
        speeds = np.stack(
            [(1 / steps.pace[:, hosts == host]).sum(axis=1) for host in range(count)],
            axis=1,
        )
        slowest = np.cumsum(np.sort(speeds, axis=1), axis=1)
        alone = least_alone(count, self.max_subsets) / count
        work = steps.lengths.sum(axis=(1, 2))
        return Outcome(work * np.max(alone / slowest, axis=1))


class _Dealing(Unplanned):
    """Each worker gets C of the N C chunks, and computes them in an order."""

    by_chunk = advisable = by_length = in_lock_step = of_lengths = True

    def outcome(self, steps: Steps) -> Outcome:
        assert steps.costs is not None
        return Outcome(steps.dealt(self.chunks(steps.costs)).last())

    @abstractmethod
    def chunks(self, costs: np.ndarray) -> np.ndarray:
        """Each worker's chunks, `[S, N, C]`, numbers of all N C; costs are balanced."""


class Sorted(_Dealing):
    """Each worker computes its own chunks, the longest first: no data move."""

    name = "own chunks sorted"
    need = "lengths of chunks before the step; no data move"
    advice = "let each worker compute its own chunks by length, the longest first"

    def possible(self, resources: Resources) -> bool:
        """Elsewhere the order of a worker's own chunks changes nothing."""
        return resources.lock_step and super().possible(resources)

    def chunks(self, costs: np.ndarray) -> np.ndarray:
        """The longest first, `[S, N, C]`.

        >>> Sorted().chunks(np.array([[[1.0, 2.0], [4.0, 3.0]]])).tolist()
        [[[1, 0], [2, 3]]]
        """
        _, workers, count = costs.shape
        first_chunk = count * np.arange(workers)[:, None]
        return np.argsort(-costs, axis=2, kind="stable") + first_chunk


class AlikeRows(_Dealing):
    """The N longest chunks run together, then the next N, one for each worker."""

    name = "rows of alike chunks"
    need = "lengths of chunks before the step"
    advice = "deal the chunks so that those which are computed together are alike"

    stores_all = True

    def possible(self, resources: Resources) -> bool:
        """Elsewhere nothing is computed together."""
        return resources.lock_step and super().possible(resources)

    def chunks(self, costs: np.ndarray) -> np.ndarray:
        """Row by row, the longest chunk to the worker with the least so far.

        >>> AlikeRows().chunks(np.array([[[1.0, 2.0], [4.0, 3.0]]])).tolist()
        [[[2, 0], [3, 1]]]
        """
        steps, workers, count = costs.shape
        flat = costs.reshape(steps, -1)
        rows = np.argsort(-flat, axis=1, kind="stable").reshape(steps, count, workers)
        dealt = np.empty((steps, count, workers), int)
        load = np.zeros((steps, workers))
        for row in range(count):
            free = np.argsort(load, axis=1, kind="stable")
            np.put_along_axis(dealt[:, row], free, rows[:, row], 1)
            load += np.take_along_axis(flat, dealt[:, row], 1)
        return dealt.transpose(0, 2, 1)


class DealtEqual(_Dealing):
    """The longest chunk left goes to the worker with the least so far that has room."""

    name = "dealt, equal numbers"
    need = "lengths of chunks before the step"
    advice = "deal the chunks to the workers by their length, as many to each"

    stores_all = True

    def chunks(self, costs: np.ndarray) -> np.ndarray:
        """Longest first, also within a worker.

        >>> DealtEqual().chunks(np.array([[[1.0, 2.0], [9.0, 3.0]]])).tolist()
        [[[2, 0], [3, 1]]]
        """
        steps, workers, count = costs.shape
        flat = costs.reshape(steps, -1)
        all_steps = np.arange(steps)
        load = np.zeros((steps, workers))
        numbers = np.zeros((steps, workers), int)
        dealt = np.empty(costs.shape, int)
        for chunk in np.argsort(-flat, axis=1, kind="stable").T:
            worker = np.where(numbers < count, load, np.inf).argmin(axis=1)
            dealt[all_steps, worker, numbers[all_steps, worker]] = chunk
            numbers[all_steps, worker] += 1
            load[all_steps, worker] += flat[all_steps, chunk]
        return dealt


# So many last steps are tried for shares by speed that are made anew.
_WINDOWS = (1, 2, 4, 8, 16)
# A worker that stays slow by less, ln of the ratio, is neither named nor replaced.
SLOW = 0.05


@dataclasses.dataclass(frozen=True)
class Dealt(Unplanned):
    """All chunks are dealt before each step by predicted lengths, longest first."""

    name = "dealt by length"
    advice = "deal the chunks to the workers by their length"
    need = "lengths of chunks before the step"
    by_chunk = advisable = by_length = of_lengths = stores_all = True

    def outcome(self, steps: Steps) -> Outcome:
        assert steps.costs is not None
        count, workers, _ = steps.costs.shape
        expected = steps.costs.reshape(count, -1)
        lengths = steps.lengths.reshape(count, -1)
        load = np.zeros((count, workers))
        work = np.zeros((count, workers))
        all_steps = np.arange(count)
        for chunk in np.argsort(-expected, axis=1, kind="stable").T:
            worker = load.argmin(axis=1)
            load[all_steps, worker] += expected[all_steps, chunk]
            work[all_steps, worker] += lengths[all_steps, chunk]
        return Outcome((steps.pace * work + steps.pauses.sum(axis=2)).max(axis=1))


class _BySpeed(Scheme):
    """Each worker has data by its speed."""

    by_chunk = advisable = by_speed = stores_all = True


@dataclasses.dataclass(frozen=True)
class Shares(_BySpeed):
    """The shares are made once."""

    name = "shares by speed"
    advice = "give each worker data by its speed, once"
    need = "workers that keep their speed"

    def plan_on(self, steps: Steps, which: np.ndarray) -> LogRule:
        return FixedShares(steps.times()[which].mean(axis=0))

    def without_each(self, steps: Steps, which: np.ndarray) -> Sequence[LogRule]:
        times = steps.times()[which]
        means = (times.sum(axis=0) - times) / (len(times) - 1)
        return [FixedShares(mean) for mean in means]


@dataclasses.dataclass(frozen=True)
class Anew(_BySpeed):
    """The shares are made before each step, by the steps before it."""

    name = "shares anew"
    advice = "give each worker data by its speed, anew before each step"
    need = "new shares before each step"

    def plan_on(self, steps: Steps, which: np.ndarray) -> LogRule:
        steps = steps.whole()
        rules = [LastShares(window) for window in _WINDOWS if window < len(steps.pace)]
        mean_seconds = [rule.replay(steps, which).seconds.mean() for rule in rules]
        return rules[int(np.argmin(mean_seconds))]


@dataclasses.dataclass(frozen=True, eq=False)
class FixedShares(LogRule):
    """Shares by what workers took on average, `[N]`."""

    means: np.ndarray

    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        means = np.repeat(self.means[None], len(steps.pace), axis=0)
        return _with_shares(steps, means, which)


@dataclasses.dataclass(frozen=True)
class LastShares(LogRule):
    """Shares by what workers took in the last steps, so many in a `window`."""

    window: int

    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        steps = steps.whole()
        outcome = _with_shares(steps, _means_before(steps.times(), self.window), which)
        return outcome._replace(choice=(self.window,))


def _means_before(times: np.ndarray, window: int) -> np.ndarray:
    """The mean of the steps before each one, `[S, N]`, on a circle."""
    circle = np.concatenate([np.zeros((1, times.shape[1])), times[-window:], times])
    sums = np.cumsum(circle, axis=0)
    return (sums[window:-1] - sums[: len(times)]) / window


def _with_shares(steps: Steps, means: np.ndarray, which: np.ndarray | None) -> Outcome:
    """A worker gives away a part of its own data, or gets a part of what all others
    give away.

    By what workers took, `[S, N]`.
    """
    speed = 1 / means
    share = speed / speed.mean(axis=1, keepdims=True)
    own_work = steps.lengths.sum(axis=2)
    given_work = np.sum(np.maximum(1 - share, 0) * own_work, axis=1, keepdims=True)
    extra_share = np.maximum(share - 1, 0)
    part = extra_share / np.maximum(extra_share.sum(axis=1, keepdims=True), 1e-300)
    work = np.minimum(share, 1) * own_work + part * given_work
    seconds = (steps.pace * work + steps.pauses.sum(axis=2)).max(axis=1)
    return Outcome(seconds if which is None else seconds[which])


@dataclasses.dataclass(frozen=True)
class Replaced(Scheme):
    """Workers that stay slow are replaced by others like the rest."""

    name = "slowest replaced"
    in_lock_step = True

    def needs(self, choice: Sequence[float]) -> str:
        return count_of(choice, "other machine")

    def plan_on(self, steps: Steps, which: np.ndarray) -> LogRule:
        return OtherMachines(stay_slow(steps, which))


@dataclasses.dataclass(frozen=True, eq=False)
class OtherMachines(LogRule):
    """The workers of `slow`, `[N]` bool, have the median pace of all others."""

    slow: np.ndarray

    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        if which is not None:
            steps = steps.take(which)
        usual = np.median(steps.pace[:, ~self.slow], axis=1, keepdims=True)
        pace = np.where(self.slow, usual, steps.pace)
        pauses = np.where(self.slow[:, None], 0.0, steps.pauses)
        seconds = steps._replace(pace=pace, pauses=pauses).last()
        return Outcome(seconds, choice=(float(self.slow.sum()),))


def stay_slow(steps: Steps, which: np.ndarray) -> np.ndarray:
    """Whether workers, `[N]`, are slow in most steps of `which`, and replaced."""
    return np.mean(steps.stays[which] > SLOW, axis=0) > 0.5


# Between quantiles of workers' times that are tried as thresholds.
_STEP = 1 / 80


@dataclasses.dataclass(frozen=True)
class Backup(Scheme):
    """The slowest B workers are left out; B has the least time for a sample."""

    name = "backup"

    def needs(self, choice: Sequence[float]) -> str:
        return f"{count_of(choice, 'worker')} left out"

    def plan_on(self, steps: Steps, which: np.ndarray) -> LogRule:
        ends = _slowest_first(steps.times())
        workers = ends.shape[1]
        used = 1 - np.arange(workers) / workers
        return AllBut(int(np.argmin(ends[which].mean(axis=0) / used)))


@dataclasses.dataclass(frozen=True)
class AllBut(LogRule):
    """A step ends with all but so many workers."""

    spare: int
    exact_gradient = False

    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        times = steps.times()[slice(None) if which is None else which]
        seconds = _slowest_first(times)[:, self.spare]
        used = times <= seconds[:, None]
        return Outcome(seconds, used[:, :, None], choice=(float(self.spare),))


def _slowest_first(times: np.ndarray) -> np.ndarray:
    return np.sort(times, axis=1)[:, ::-1]


@dataclasses.dataclass(frozen=True)
class Drop(Scheme):
    """Workers stop at a threshold that has the least time for a sample which is used.

    It is one of the quantiles of workers' times, from the first of 1/N on: at least one
    worker ends all its chunks on average, as `Backup` leaves at least one. Workers
    first end their chunk; those of `solvers.Drop`, for which there is a formula, stop
    at once. DropCompute, arXiv 2306.10598.
    """

    name = "drop"

    def needs(self, choice: Sequence[float]) -> str:
        return f"a stop after {in_words(choice)} s"

    def plan_on(self, steps: Steps, which: np.ndarray) -> LogRule:
        begins, ends = _clocks(steps.take(which))
        shares = np.append(np.arange(1, 1 / ends.shape[1], -_STEP), 1 / ends.shape[1])
        rules = list(map(StopAfter, np.quantile(ends[:, :, -1], shares[::-1]).tolist()))
        for_used = []
        for rule in rules:
            seconds, used = stopped(rule.threshold, begins, ends)
            for_used.append(seconds.mean() / float(used.mean()))
        return rules[int(np.argmin(for_used))]


@dataclasses.dataclass(frozen=True)
class StopAfter(LogRule):
    """Workers stop after the chunk that passes the `threshold`; the rest is lost."""

    threshold: float
    exact_gradient = False

    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        begins, ends = _clocks(steps if which is None else steps.take(which))
        seconds, used = stopped(self.threshold, begins, ends)
        return Outcome(seconds, used, choice=(self.threshold,))


def stopped(
    threshold: float, begins: np.ndarray, ends: np.ndarray, *, at_once: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """When steps end, `[...]`, and which chunks are used, `[..., N, C]`, if they begin
    and end so.

    By default a worker first ends the chunk in which the threshold is passed. If all
    stop `at_once` such a chunk is lost.

    >>> begins, ends = (
    ...     np.array([[0.0, 2.0], [0.0, 3.0]]),
    ...     np.array([[2.0, 4.0], [3.0, 6.0]]),
    ... )
    >>> [
    ...     stopped(2.5, begins, ends, at_once=at_once)[0].item()
    ...     for at_once in (False, True)
    ... ]
    [4.0, 2.5]
    """
    if at_once:
        return np.minimum(ends.max(axis=(-1, -2)), threshold), ends <= threshold
    used = begins < threshold
    return np.where(used, ends, 0).max(axis=(-1, -2)), used


def _clocks(steps: Steps) -> tuple[np.ndarray, np.ndarray]:
    """When each chunk begins and ends, `[S, N, C]`, for workers that go on."""
    seconds = steps.seconds
    ends = np.cumsum(seconds, axis=2)
    return ends - seconds, ends


QUESTION = "a question for each chunk"
# Else the number.
_STORED = {"2": "two subsets", "3": "three subsets", "all": "all data"}


@dataclasses.dataclass(frozen=True)
class Sharing(Unplanned):
    """Chunks are handed out as `dispatch.serve` does, most left first.

    Attributes:
      subsets: in the name, what a worker stores: "2", "3" or "all".
      max_subsets: the same, as a number.
      by_length: whether workers send the lengths of their chunks.
      equal_chunks: whether the last chunk of a subset stays whole.
      costs: beside the passes.

    >>> Sharing("3", 3, by_length=True).name
    'sharing:3, lengths'
    """

    subsets: str
    max_subsets: int
    by_length: bool = False
    equal_chunks: bool = False
    costs: Costs = FREE

    word: ClassVar[str] = "sharing"
    by_chunk = advisable = asks = True

    @classmethod
    def rows(cls, resources: Resources) -> Iterator["Sharing"]:
        """With two subsets, three and all, by sizes and by lengths.

        >>> [
        ...     row.name
        ...     for row in Sharing.rows(
        ...         Resources(3, stored_subsets=2, know_lengths=True)
        ...     )
        ... ]
        ['sharing:2', 'sharing:2, lengths']
        """
        workers = resources.num_workers
        subsets = {str(number): number for number in (2, 3) if number < workers}
        for text, number in (subsets | {"all": workers}).items():
            for by_length in (False, True):
                is_known = resources.know_lengths or not by_length
                if number <= resources.most_subsets and is_known:
                    yield cls(text, number, by_length, costs=resources.costs)

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.word}:{self.subsets}{', lengths' if self.by_length else ''}"

    @property
    def instead(self) -> "Sharing | None":
        """In equal chunks."""
        if self.equal_chunks:
            return None
        return dataclasses.replace(self, equal_chunks=True)

    @property
    def advice(self) -> str:  # type: ignore[override]
        by_length = ""
        if self.by_length:
            by_length = " by length"
        equal = ""
        if self.equal_chunks:
            equal = " in equal chunks"
        stored = _STORED.get(self.subsets, f"{self.subsets} subsets")
        return f"share the work{by_length}{equal}, with {stored} stored ({self.name})"

    def needs(self, choice: Sequence[float]) -> str:
        lengths = ""
        if self.by_length:
            lengths = "; lengths"
        return f"{QUESTION}{lengths}{'; equal chunks' if self.equal_chunks else ''}"

    def stored_subsets(self, choice: Sequence[float], num_workers: int) -> int:
        return self.max_subsets

    def outcome(self, steps: Steps) -> Outcome:
        """Lengths are sent as a worker begins: all are known, for all begin at once."""
        count, workers, chunks = steps.lengths.shape
        place = Placement(
            workers, self.max_subsets, chunks, self.equal_chunks, hosts=steps.hosts
        )
        sizes = place.sizes
        lengths = lengths_of_pieces(steps.lengths, sizes, self.costs.of_chunk).reshape(
            count, -1
        )
        ticks = None
        if self.by_length:
            assert steps.costs is not None
            predicted = lengths_of_pieces(steps.costs, sizes).reshape(count, -1)
            ticks = ticks_of(predicted, steps.costs.mean())
        asked = Chunks(steps.pace, lengths, steps.pauses, ticks)
        tables = chunk_tables(place.storage, sizes)
        return Outcome(handed_out(tables, asked, self.costs.asking))

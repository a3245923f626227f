"""What workers are given where nobody has told a law: plans from their records, changed when that pays.

Plans are made in a thread, and the workers compile them beside what they do: until all have, they go on.
"""

import dataclasses
import functools
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax._pytree import check_whole
from bcgc_jax.adaptive import Decision, Planner, WorkPlan
from bcgc_jax.adaptive.planner import CAUTIOUS
from bcgc_jax.adaptive.rules import MOST_STORED, Rule, Window, by_speed, even_shares, rules
from bcgc_jax.cluster.collection import ClusterGradient
from bcgc_jax.cluster.processes import Assignment
from bcgc_jax.cluster.told import Job, Plans
from bcgc_jax.coding.gradients import CodingPlan, PyTree, num_samples, split_unevenly
from bcgc_jax.coding.scheduled import assign
from bcgc_jax.coding.training import TrainingScheme
from bcgc_jax.plans.partitions import round_partition

# Blocks of two subsets each: on processes every task is a message. What the master takes for one, measured
# with eight workers and 40 to 80 tasks each on two cores.
PARTS, _MESSAGE_SECONDS = 2, 2.5e-4


@dataclasses.dataclass(frozen=True)
class ClosedLoop:
    """Plans from what the workers take, with two subsets a worker from both ends to begin with.

    Attributes:
      max_stored: subsets of the data that a worker holds at most.
      plan_options: `units`, `order`, `mean` and `construction` of `coding_plan`.
    """

    max_stored: int = MOST_STORED
    plan_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # As `Told` has them: there are as many workers as the cluster has, and it is not known how they start.
    num_workers = start_up = None
    name = "found while it trains"

    def __post_init__(self) -> None:
        check_whole("max_stored", self.max_stored, 1)

    def begin(self, job: Job) -> Plans:
        return Loop(self, job)


class _Given(NamedTuple):
    """A plan, what of it each worker has done by its tasks, `[tasks, N]`, and where the workers find it."""

    made: WorkPlan
    loads: np.ndarray
    work: Assignment


@dataclasses.dataclass
class _Round:
    """Plans for so many workers: what they have, have had and will have; what is made of even shares alone.

    With fewer or more workers there is another one; a thread that still plans for this one changes nothing.
    """

    planner: Planner
    now: _Given | None = None
    before: _Given | None = None
    next: _Given | None = None
    even: dict[str, _Given] = dataclasses.field(default_factory=dict)


class Loop(Plans):
    """Of one training: gives the workers their work, hears what it took, and plans in a thread meanwhile."""

    def __init__(self, source: ClosedLoop, job: Job) -> None:
        super().__init__(source, job)
        self._begun = job.first
        # Where each subset gives as many samples, no worker can have more than another to do.
        alike = job.batch_size is not None or callable(job.data)
        made = rules(PARTS, even_shares if alike else by_speed)
        self._rules = {name: functools.partial(self._made_by, rule) for name, rule in made.items()}
        self._closed = False
        self._round: _Round | None = None
        self._decided: list[Decision] = []
        self._thread = ThreadPoolExecutor(1)
        self._planning: list[Future[None]] = []

    def close(self) -> None:
        """What is not planned yet is not, and nobody waits for what is; what went wrong is told."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        for future in self._planning:
            if future.done() and not future.cancelled() and (error := future.exception()) is not None:
                warnings.warn(f"planning ended with an error: {error}", stacklevel=2)

    def _made_by(self, rule: Rule, window: Window) -> WorkPlan:
        """Unless the training has ended: the next of many rules may take seconds."""
        if self._closed:
            raise CancelledError
        return rule(window)

    @property
    def decisions(self) -> tuple[Decision, ...]:  # type: ignore[override]
        own = [] if self._round is None else self._round.planner.decisions
        return (*self._decided, *(d._replace(step=d.step + self._begun) for d in own))

    def is_ready(self) -> bool:
        given = None if self._round is None else self._round.next
        return given is not None and self.job.cluster.is_ready(given.work)

    def give_work(self, members: Sequence[int]) -> TrainingScheme:
        """The next plan; with fewer or more workers than before the planning begins anew."""
        if self._round is None or self._round.planner.plan.num_workers != len(members):
            self._round = self._begin(len(members))
        now = self._round
        given = now.next or now.now
        assert given is not None
        known = [*now.even.values(), *filter(None, (now.before, now.now))]
        given.work.kept = tuple({one.work.number for one in known})
        now.before, now.now, now.next = now.now, given, None
        # To start processes and to compile is no part of what a change takes: the same is given again.
        for _ in range(1 + (now.planner.step == 0)):
            begin = time.perf_counter()
            self.job.cluster.take_up(given.work)
        now.planner.taken_up(time.perf_counter() - begin)
        nothing = jnp.zeros(len(given.loads))
        return TrainingScheme(given.work.duty.plan, jnp.asarray(given.loads), nothing, method=given.made.name)

    def _begin(self, count: int) -> _Round:
        """Nobody waits for what is still planned for others: that may be compiling."""
        self._decided = list(self.decisions)
        self._begun += 0 if self._round is None else self._round.planner.step
        self._planning = [future for future in self._planning if not future.cancel()]
        planner = Planner(
            count,
            self.job.num_steps - self._begun,
            key=self.job.key,
            max_stored=self.source.max_stored,
            message_seconds=_MESSAGE_SECONDS,
            rules=self._rules,
        )
        self._planning.append(self._thread.submit(planner.warm_up))  # while the processes start
        made = _Round(planner)
        made.next = self._put(planner.plan, made)
        return made

    def _put(self, made: WorkPlan, ours: _Round) -> _Given:
        """Where the workers find it."""
        even = made.name in CAUTIOUS and np.ptp(made.shares) == 0  # always the same plan
        if even and made.name in ours.even:
            return ours.even[made.name]
        if ours.before is not None and made is ours.before.made:
            return ours.before
        job = self.job
        parts = job.data if callable(job.data) else split_by(job.data, made.shares)
        plan = plan_of(made, job.params, job.key, self.source.plan_options)
        work = job.cluster.prepare(
            job.loss, plan, job.params, parts, batch_size=job.batch_size, seed=job.seed
        )
        sizes = np.ones(made.num_workers)
        if not (callable(parts) or job.batch_size):
            sizes = np.array([num_samples(part) for part in parts], float)
        given = _Given(made, loads_of(plan, sizes / sizes.sum()), work)
        if even:
            ours.even[made.name] = given
        return given

    def hear(self, found: ClusterGradient, start_ups: np.ndarray | float) -> None:
        now = self._round
        assert now is not None
        assert now.now is not None
        times, starts, known = times_of(found, self.job.cluster.plan, now.now.loads, start_ups)
        for done in [future for future in self._planning if future.done()]:
            self._planning.remove(done)
            done.result()  # what went wrong is told
        heard = times, known, found.seconds, now.now.made, starts, now.next is not None
        self._planning.append(self._thread.submit(self._plan, now, now.now, heard))

    def _plan(self, now: _Round, ran: _Given, heard: tuple[Any, ...]) -> None:
        """In the thread: one plan after the other, so that no worker prepares two."""
        now.planner.observe(*heard)
        if now is self._round and now.next is None and ran is now.now and now.planner.plan is not ran.made:
            given = self._put(now.planner.plan, now)
            now.next = None if given is ran else given


def plan_of(given: WorkPlan, params: PyTree, key: jax.Array, options: Mapping[str, Any]) -> CodingPlan:
    """For the units of these parameters."""
    sizes, total = np.asarray(given.plan.sizes, float), sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    scaled = given.plan.with_sizes(sizes / sizes.sum() * total)
    return assign(key, scaled, params, given.num_workers, **options)


def split_by(data: PyTree, shares: np.ndarray) -> list[PyTree]:
    """Samples `[M, …]` in subsets of these shares, at least one sample in each.

    >>> [part.tolist() for part in split_by(np.arange(6), np.array([0.1, 0.6, 0.3]))]
    [[0], [1, 2, 3], [4, 5]]
    """
    size, workers = num_samples(data), len(shares)
    if size < workers or np.ptp(shares) < 1e-9:
        return split_unevenly(data, workers)
    counts = 1 + np.asarray(round_partition(jnp.asarray(shares * (size - workers)), size - workers))
    ends = np.concatenate([[0], np.cumsum(counts)])
    return [jax.tree.map(lambda x, k=k: x[ends[k] : ends[k + 1]], data) for k in range(workers)]


def loads_of(plan: CodingPlan, shares: np.ndarray) -> np.ndarray:
    """What each worker has done at the end of each task, in 1/N of all work, `[tasks, N]`."""
    workers, total = plan.num_workers, sum(block.size for block in plan.blocks)
    tasks = zip(*(plan.tasks(w) for w in range(workers)), strict=True)
    part = [[shares[list(t.subsets)].sum() * plan.blocks[t.block].size / total for t in row] for row in tasks]
    return workers * np.cumsum(part, axis=0)


def times_of(
    found: ClusterGradient, plan: CodingPlan, loads: np.ndarray, start_ups: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each worker takes for 1/N of all work, by its last task; its start-up; whether they are known.

    The start-up is what passes between the master's call and its hearing of a task in which the worker does
    not work: the least of its tasks, for later ones may wait until the master has time. Slowness on purpose,
    `start_ups`, is counted as if the worker had begun that much later. Of who was stopped before its first
    task the time is at least what is returned. `[N]` each.
    """
    late = np.broadcast_to(np.asarray(start_ups, float), plan.num_workers)
    times, known = found.seconds / loads[0], np.zeros(plan.num_workers, bool)
    number = plan.numbers()
    last, starts = np.full(plan.num_workers, -1), np.full(plan.num_workers, np.inf)
    for item in found.work:
        k, w = number[item.worker, item.block, item.subset], item.worker
        starts[w] = min(starts[w], item.heard - item.done + late[w])
        if k > last[w]:
            last[w], known[w] = k, True
            times[w] = (item.done - late[w]) / loads[k, w]
    return np.maximum(times, 1e-9), np.where(known, np.maximum(starts, 0), 0), known

"""Who plans for a training, `Told` or a `ClosedLoop`, and its course, whoever is lost and returns.

A loop plans from its workers' records, in a thread. The workers compile the next plan beside what they do.
"""

import collections
import contextlib
import dataclasses
import functools
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import check_whole, replace
from bcgc_jax.adaptive import Decision, Planner, WorkPlan
from bcgc_jax.adaptive.planner import CAUTIOUS
from bcgc_jax.adaptive.rules import MOST_STORED, Rule, Window, by_speed, even_shares, rules
from bcgc_jax.cluster.engine import Source
from bcgc_jax.cluster.master import Cluster, ClusterGradient
from bcgc_jax.cluster.processes import Assignment, WorkersLost
from bcgc_jax.cluster.rounds import Work
from bcgc_jax.coding.gradients import CodingPlan, Loss, PyTree, assign, num_samples, split_by, split_unevenly
from bcgc_jax.coding.training import TrainingScheme, draws_of, training_scheme
from bcgc_jax.distributions import Distribution, JointDistribution
from bcgc_jax.plans.plan import Plan
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.methods import Method, method_of
from bcgc_jax.solvers.solve import solve

# What the master takes for a message, measured with eight workers and 40 to 80 tasks each on two cores.
_MESSAGE_SECONDS = 2.5e-4
# Iterations whose work is kept: an iteration of many workers and blocks is thousands of records.
_KEPT = 1000
# Seconds in the place of infinity, which times a load of 0 is nothing.
_ENDLESS = 1e30


@dataclasses.dataclass(frozen=True)
class Told:
    """A problem that is known, and how to plan for it: again for the workers left, where some are lost.

    Attributes:
      problem: as many workers as the cluster has, coordinates as the parameters have (`unit_costs` for other
        units), samples as an iteration has.
      method: of `solve`; or a `Plan`, a schedule, done as it is, as far as there are subsets.
      plan_options: of `coding_plan`, or of `schedule_plan`: `units`, `order`, `construction`, `mean`.
    """

    problem: Problem
    method: str | Method | Plan = "optimal"
    plan_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.method) if isinstance(self.method, Plan) else method_of(self.method).name


@dataclasses.dataclass(frozen=True)
class ClosedLoop:
    """Plans from what the workers take, without redundancy to begin with, and wherever it does not pay.

    A plan with redundancy is left if steps without, tried now and then, take no longer by the clock.

    Attributes:
      max_stored: subsets of the data that a worker holds at most.
      plan_options: `units`, `order`, `construction` and `mean` of `coding_plan`.
    """

    max_stored: int = MOST_STORED
    plan_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    name = "found while it trains"

    def __post_init__(self) -> None:
        check_whole("max_stored", self.max_stored, 1)


@dataclasses.dataclass(frozen=True)
class InjectedDelay:
    """Slowness on purpose: worker w sends block b no earlier than `seconds` · T_w (M b/N) y_b from its start.

    With start-ups, a link or a schedule, no earlier than `seconds` times when the problem's model has the
    block delivered, or the task done. Without a problem T is the time of 1/N of all work.

    What is modelled is compute that nobody can interrupt: a worker ends the pass of a subset that it is at,
    in which its task is cut equally, also when the iteration has ended, and begins the next one late.

    Attributes:
      cycle_times: a distribution, drawn anew for each iteration, or measured rows `[K, N]`, replayed over and
        over; infinity for a worker that does not answer in that iteration.
      seconds: wall-clock seconds in the unit of the cycle time.
      start_ups: a distribution, a number, or rows beside the cycle times'; by default the problem's.
    """

    cycle_times: Distribution | JointDistribution | ArrayLike
    seconds: float = 1.0
    start_ups: Distribution | ArrayLike | None = None

    def draw(self, key: Array, step: int, num_workers: int) -> tuple[np.ndarray, np.ndarray]:
        """Start-ups and cycle times of one iteration, in seconds, `[N]` each: of the key and the step alone.

        >>> delay = InjectedDelay([[1.0, 2.0], [3.0, 5.0]], 0.5, 3.0)
        >>> starts, times = delay.draw(jax.random.key(0), 3, num_workers=2)
        >>> starts.tolist(), times.tolist()
        ([1.5, 1.5], [1.5, 2.5])
        """
        given: list[Any] = [self.cycle_times, self.start_ups]
        for k, each in enumerate(given):
            if each is not None and not isinstance(each, Distribution | JointDistribution):
                given[k] = np.asarray(each, float)
        drawn = draws_of(given[0], given[1], num_workers)(step, jax.random.fold_in(key, step))
        starts, times = (self.seconds * np.broadcast_to(np.asarray(a, float), num_workers) for a in drawn)
        return starts, times


@dataclasses.dataclass
class Course:
    """A training's workers, their plan and gradients: as `source` tells, planned anew where some are lost.

    Of `num_steps` iterations, the `first` of which are done already.
    """

    source: Any
    cluster: Cluster
    loss: Loss
    params: PyTree
    data: PyTree | Source
    batch_size: int | None
    key: Array
    num_steps: int
    pace: InjectedDelay | None = None
    first: int = 0
    decisions: ClassVar[Sequence[Decision]] = ()  # why plans were changed

    def __post_init__(self) -> None:
        self._plan_key, self._pace_key, batch_key = jax.random.split(self.key, 3)
        self._seed = int(jax.random.randint(batch_key, (), 0, 2**31 - 1))
        # Workers of the training, and how many there can be at most.
        self.num_workers, self._most = self.cluster.size, sys.maxsize
        if isinstance(self.source, Told):
            problem = self.source.problem
            self.num_workers = self._most = int(np.asarray(problem.num_workers))
            if self.pace is not None and self.pace.start_ups is None:
                self.pace = dataclasses.replace(self.pace, start_ups=problem.start_up)
        self._joined: list[int] = []  # members that the plan is not yet for
        # Of the pace, in the last iteration: start-ups, and what the iteration takes at least.
        self.start_ups: np.ndarray | float = 0.0
        self.paced = np.nan
        self.work: collections.deque[tuple[Work, ...]] = collections.deque(maxlen=_KEPT)

    def begin(self, first: int) -> None:
        """With the workers that there are: after so many iterations."""
        self.first, self.members = first, list(range(self.cluster.num_workers))
        self.replan()

    def give_work(self) -> TrainingScheme:
        """To the `members`, the workers left as the problem counts them."""
        scheme = scheme_for(self._plan_key, self.source, self.members, self.params, self.batch_size)
        parts = self.data if callable(self.data) else split_unevenly(self.data, len(self.members))
        given = self.loss, scheme.work, self.params, parts
        self.cluster.assign(*given, batch_size=self.batch_size, seed=self._seed)
        return scheme

    def is_ready(self) -> bool:
        """Whether there is another plan, and the workers are ready for it."""
        return False

    def hear(self, found: ClusterGradient) -> None:
        """What an iteration took, of all and of each."""

    def close(self) -> None:
        """The training has ended."""

    def follow(self) -> bool:
        """Whether there are others than the plan is for, or other work: `before_step` has the cluster too."""
        cluster, left = self.cluster, len(self.members)
        resized = not cluster.does(self._given)
        count = min(cluster.num_workers if resized else left + cluster.returning(), self._most)
        self.num_workers = max(self.num_workers, count)
        absent = [w for w in range(self.num_workers) if w not in self.members]
        self.members = [*self.members, *absent][:count]
        self._joined = [] if resized else self.members[left:]
        return resized or bool(self._joined)

    def replan(self) -> None:
        """Plan anew for as long as workers are lost while they take up their work."""
        self.work.clear()
        while True:
            self.members = [w for place, w in enumerate(self.members) if place not in self.cluster.lost]
            if not self.members:
                raise WorkersLost(range(self.num_workers), "none are left")
            try:
                scheme = self.give_work()
                break
            except WorkersLost:
                continue
            except ValueError as error:
                if not self._joined:
                    raise
                warnings.warn(f"workers that could be there again are left out: {error}", stacklevel=3)
                self.members, self._joined = [w for w in self.members if w not in self._joined], []
        if self.pace is not None:  # the link in seconds too
            sent, load = (np.asarray(each, float) for each in (scheme.sent, scheme.load))
            scheme = replace(scheme, load=load, sent=self.pace.seconds * sent)
            nothing = np.zeros(len(self.members))
            scheme.work.completed(scheme.finish_times(nothing, nothing))  # compiled before the clock runs
        self.scheme, self._given, self._joined = scheme, self.cluster.given, []

    def gradient(self, params: PyTree, step: int) -> ClusterGradient:
        """Whoever is lost meanwhile; those who have returned, and another plan, are there before."""
        if self.follow() or self.is_ready():
            self.replan()
        while True:
            if self.cluster.lost:
                self.replan()
            finish = None
            if self.pace is not None:
                drawn = self.pace.draw(self._pace_key, step, self.num_workers)
                self.start_ups, times = (np.minimum(all_of, _ENDLESS)[self.members] for all_of in drawn)
                finish = self.scheme.finish_times(self.start_ups, times)
                self.paced = float(self.scheme.work.completed(finish).max())
            with contextlib.suppress(WorkersLost):
                found = self.cluster.gradient(params, finish, iteration=step)
                self.work.append(found.work)
                return found


def scheme_for(
    key: Array, told: Told, members: Sequence[int], params: PyTree, batch_size: int | None
) -> TrainingScheme:
    """What is planned for those workers of a problem that are left."""
    problem, method, options = told.problem, told.method, told.plan_options
    workers, left = int(np.asarray(problem.num_workers)), len(members)
    if left < workers:
        law = problem.cycle_time.of_workers(members)
        samples = problem.num_samples * (1 if batch_size is None else left / workers)
        # The program that solved it for all workers then solves it for those left, unless each has its own.
        most = problem.max_workers if law.width() is None else left
        problem = replace(problem, cycle_time=law, num_workers=left, max_workers=most, num_samples=samples)
    if isinstance(method, Plan):
        return training_scheme(key, problem, method, params, **options)
    solve_key, code_key = jax.random.split(jax.random.fold_in(key, left))
    try:
        return training_scheme(code_key, problem, solve(problem, method, key=solve_key), params, **options)
    except ValueError as error:
        if left == workers:
            raise
        warnings.warn(f'"{told.name}" is no scheme for the workers left, "optimal" is: {error}', stacklevel=2)
        return training_scheme(code_key, problem, solve(problem, key=solve_key), params, **options)


class _Given(NamedTuple):
    """A plan, what of it each worker has done by its tasks, `[tasks, N]`, and where the workers find it."""

    made: WorkPlan
    loads: np.ndarray
    work: Assignment
    even: bool  # it is always the same


@dataclasses.dataclass
class _Round:
    """Plans for so many workers: those they know, of which they have the last, and the one they will have.

    With fewer or more workers there is another one; a thread that still plans for this one changes nothing.
    """

    planner: Planner
    known: list[_Given] = dataclasses.field(default_factory=list)
    next: _Given | None = None


class Loop(Course):
    """As its workers' records tell: planned for in a thread meanwhile."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Where each subset gives as many samples, no worker can have more than another to do.
        alike = self.batch_size is not None or callable(self.data)
        made = rules(even_shares if alike else by_speed)
        self._faults = 0  # until the last iteration
        self._closed = threading.Event()
        self._rules = {name: functools.partial(_unless, self._closed, rule) for name, rule in made.items()}
        self._round: _Round | None = None
        self._before: list[Decision] = []  # of earlier rounds
        # Nothing of Ray's is in its hands: it may end after Ray.
        self._thread = ThreadPoolExecutor(1)
        self._planning: list[Future[None]] = []

    def close(self) -> None:
        """What is not planned yet is not, and nobody waits for what is; what went wrong is told."""
        for future in self._planning:
            if future.done() and not future.cancelled() and (error := future.exception()) is not None:
                warnings.warn(f"planning ended with an error: {error}", stacklevel=2)
        self._closed.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def decisions(self) -> tuple[Decision, ...]:  # type: ignore[override]
        own = [] if self._round is None else self._round.planner.decisions
        return (*self._before, *(d._replace(step=d.step + self.first) for d in own))

    def is_ready(self) -> bool:
        given = None if self._round is None else self._round.next
        return given is not None and self.cluster.is_ready(given.work)

    def give_work(self) -> TrainingScheme:
        """The next plan; with fewer or more workers than before the planning begins anew."""
        if self._round is None or self._round.planner.plan.num_workers != len(self.members):
            self._round = self._new_round()
        now = self._round
        given = now.next or now.known[-1]
        before = [one for one in now.known if one is now.known[-1] or one.even]
        given.work.kept = tuple(one.work.number for one in now.known)
        now.known, now.next = [*(one for one in before if one is not given), given], None
        # To start processes and to compile is no part of what a change takes: the same is given again.
        for _ in range(1 + (now.planner.step == 0)):
            begin = time.perf_counter()
            self.cluster.take_up(given.work)
        now.planner.taken_up(time.perf_counter() - begin)
        nothing = jnp.zeros(len(given.loads))
        plan = given.work.duty.plan
        assert isinstance(plan, CodingPlan)
        return TrainingScheme(plan, jnp.asarray(given.loads), nothing, method=given.made.name)

    def _new_round(self) -> _Round:
        """Nobody waits for what is still planned for others: that may be compiling."""
        self._before = list(self.decisions)
        self.first += 0 if self._round is None else self._round.planner.step
        self._planning = [future for future in self._planning if not future.cancel()]
        planner = Planner(
            len(self.members),
            self.num_steps - self.first,
            key=self._plan_key,
            max_stored=self.source.max_stored,
            message_seconds=_MESSAGE_SECONDS,
            interruptible=False,
            rules=self._rules,
        )
        made = _Round(planner)
        made.next = self._put(planner.plan, made)
        return made

    def _put(self, made: WorkPlan, ours: _Round) -> _Given:
        """Where the workers find it, unless they know it."""
        even = made.name in CAUTIOUS and np.ptp(made.shares) == 0
        for one in ours.known:
            if one.made is made or (even and one.even and one.made.name == made.name):
                return one
        parts = self.data if callable(self.data) else split_by(self.data, made.shares)
        plan = plan_of(made, self.params, self._plan_key, self.source.plan_options)
        given = self.loss, plan, self.params, parts
        work = self.cluster.prepare(*given, batch_size=self.batch_size, seed=self._seed)
        sizes = np.ones(made.num_workers)
        if not (callable(parts) or self.batch_size):
            sizes = np.array([num_samples(part) for part in parts], float)
        return _Given(made, loads_of(plan, sizes / sizes.sum()), work, even)

    def hear(self, found: ClusterGradient) -> None:
        now = self._round
        assert now is not None
        ran = now.known[-1]
        plan = ran.work.duty.plan
        assert isinstance(plan, CodingPlan)
        times, starts, known = times_of(found, plan, ran.loads, self.start_ups)
        for done in [future for future in self._planning if future.done()]:
            self._planning.remove(done)
            done.result()  # what went wrong is told
        if (
            now.next is None and now.planner.plan is not ran.made
        ):  # one after the other: no worker prepares two
            given = self._put(now.planner.plan, now)
            now.next = None if given is ran else given
        faults, self._faults = self._faults, len(self.cluster.faults)
        if faults < self._faults:
            self._planning.append(self._thread.submit(now.planner.leave_out))
            return
        heard = times, known, found.seconds, ran.made, starts, now.next is not None
        self._planning.append(self._thread.submit(now.planner.observe, *heard))


def _unless(closed: threading.Event, rule: Rule, window: Window) -> WorkPlan:
    """Unless the training has ended: the next of many rules may take seconds."""
    if closed.is_set():
        raise CancelledError
    return rule(window)


def plan_of(given: WorkPlan, params: PyTree, key: jax.Array, options: Mapping[str, Any]) -> CodingPlan:
    """For the units of these parameters."""
    sizes, total = np.asarray(given.plan.sizes, float), sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    scaled = given.plan.with_sizes(sizes / sizes.sum() * total)
    return assign(key, scaled, params, given.num_workers, **options)


def loads_of(plan: CodingPlan, shares: np.ndarray) -> np.ndarray:
    """What each worker has done at the end of each task, in 1/N of all work, `[tasks, N]`."""
    workers, total = plan.num_workers, sum(block.size for block in plan.blocks)
    tasks = zip(*(plan.tasks(w) for w in range(workers)), strict=True)
    part = [[shares[list(t.subsets)].sum() * plan.blocks[t.block].size / total for t in row] for row in tasks]
    return workers * np.cumsum(part, axis=0)


def times_of(
    found: ClusterGradient, plan: CodingPlan, loads: np.ndarray, start_ups: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each worker takes for 1/N of all work, by its last task, its start-up, and whether they are known.

    The start-up is what passes between the master's call and its hearing of a task in which the worker does
    not work: the least of its tasks, for later ones may wait until the master has time. Slowness on purpose,
    `start_ups`, counts as a later begin, and being busy with the iteration before does not. Who was stopped
    before its first task takes at least as long, unless it was busy.
    """
    late = np.broadcast_to(np.asarray(start_ups, float), plan.num_workers)
    times, known = found.seconds * ~found.busy / loads[0], np.zeros(plan.num_workers, bool)
    number = plan.numbers()
    last, starts = np.full(plan.num_workers, -1), np.full(plan.num_workers, np.inf)
    for item in found.work:
        k, w = number[item.worker, item.block, item.subset], item.worker
        starts[w] = min(starts[w], max(item.heard - item.done - item.overrun, 0) + late[w])
        if k > last[w]:
            last[w], known[w] = k, True
            times[w] = (item.done - late[w]) / loads[k, w]
    return np.maximum(times, 1e-9), np.where(known, np.maximum(starts, 0), 0), known

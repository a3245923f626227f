"""Who plans a training, `Told` or a `ClosedLoop`, and its course with lost workers."""

import collections
import contextlib
import dataclasses
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import check_whole, replace
from bcgc_jax.cluster.decisions import (
    Decision,
    reason,
    shared_step,
    subset_times,
    uncoded_step,
)
from bcgc_jax.cluster.engine import Source
from bcgc_jax.cluster.master import Cluster, ClusterGradient
from bcgc_jax.cluster.processes import Assignment, WorkersLost
from bcgc_jax.cluster.rounds import Work
from bcgc_jax.coding.chunks import SharedPlan
from bcgc_jax.coding.gradients import (
    Loss,
    PyTree,
    coding_plan,
    num_samples,
    split_unevenly,
)
from bcgc_jax.coding.pace import ENDLESS, Pace
from bcgc_jax.coding.training import (
    SharedScheme,
    TrainingScheme,
    draws_of,
    training_scheme,
)
from bcgc_jax.distributions import Distribution, JointDistribution
from bcgc_jax.handout.judge import Judge
from bcgc_jax.plans.plan import Plan
from bcgc_jax.plans.sharing import WorkSharing
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.methods import Method, method_of
from bcgc_jax.solvers.solve import solve
from bcgc_jax.steps.asking import Asking
from bcgc_jax.steps.placement import Placement

# Iterations whose work is kept: an iteration of many workers and blocks is thousands of
# records.
_KEPT = 1000
# Chunks of a subset, the best number first.
_CHUNKS = (8, 4, 2)
# Uncoded steps whose seconds beside their workers are remembered.
_LAST = 16
# A question takes this share of a message with a gradient.
_QUESTION = 0.1


@dataclasses.dataclass(frozen=True)
class Told:
    """A problem that is known, and how to plan for it, and again for the workers left.

    Attributes:
      problem: as many workers as the cluster has, coordinates as the parameters have
        (`unit_costs` for other units), samples as an iteration has.
      method: of `solve`; or a `Plan`, a schedule, done as it is, as far as there are
        subsets.
      plan_options: of `assign`: `units`, `order`, `construction`, `mean`, and `chunks`
        of a pass.
    """

    problem: Problem
    method: str | Method | Plan = "optimal"
    plan_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        if isinstance(self.method, Plan):
            return str(self.method)
        return method_of(self.method).name


@dataclasses.dataclass(frozen=True)
class ClosedLoop:
    """Uncoded or work sharing, whichever takes less time in the steps before, of either
    scheme.

    A step tells what it would have taken in the other one: nothing is tried by the
    clock. With a `batch_size` the samples that a step draws depend on its scheme too.

    Attributes:
      max_stored: how many subsets' worth of data a worker stores for work sharing,
        beside its own subset.
      mean: whether the loss is a mean over samples; else it is their sum.
    """

    max_stored: int = 2
    mean: bool = True
    name = "found while it trains"

    def __post_init__(self) -> None:
        check_whole("max_stored", self.max_stored, 1)

    @property
    def plan_options(self) -> Mapping[str, Any]:
        return {"mean": self.mean}


@dataclasses.dataclass(frozen=True)
class InjectedDelay:
    """Slowness on purpose: worker w sends block b no earlier than `seconds` · T_w (M
    b/N) y_b.

    From its start on. With start-ups, a link or a schedule, no earlier than `seconds`
    times when the problem's model has the block delivered, or the task done. Without a
    problem T is the time of 1/N of all work.

    What is modelled is compute that nobody can interrupt: a worker ends the pass of a
    chunk that it is at, also when the iteration has ended, and begins the next one
    late. The subsets of a task take equally long.

    Attributes:
      cycle_times: a distribution, drawn anew for each iteration, or measured rows
        `[K, N]`, replayed over and over; infinity for a worker that does not answer in
        that iteration.
      seconds: wall-clock seconds in the unit of the cycle time.
      start_ups: a distribution, a number, or rows beside the cycle times'; by default
        the problem's.
    """

    cycle_times: Distribution | JointDistribution | ArrayLike
    seconds: float = 1.0
    start_ups: Distribution | ArrayLike | None = None

    def draw(
        self, key: Array, step: int, num_workers: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Start-ups and cycle times of one iteration, in seconds, `[N]`, by key and
        step alone.

        >>> delay = InjectedDelay([[1.0, 2.0], [3.0, 5.0]], 0.5, 3.0)
        >>> starts, times = delay.draw(jax.random.key(0), 3, num_workers=2)
        >>> starts.tolist(), times.tolist()
        ([1.5, 1.5], [1.5, 2.5])
        """
        draw = draws_of(
            _in_numpy(self.cycle_times), _in_numpy(self.start_ups), num_workers
        )
        starts, times = draw(step, jax.random.fold_in(key, step))
        starts = self.seconds * np.broadcast_to(np.asarray(starts, float), num_workers)
        return starts, self.seconds * np.asarray(times, float)


def _in_numpy(source: Any) -> Any:
    """Measured rows as NumPy's; a distribution, or None, as it is."""
    if source is None or isinstance(source, Distribution | JointDistribution):
        return source
    return np.asarray(source, float)


@dataclasses.dataclass
class Course:
    """A training's workers, their plan and gradients, as `source` tells.

    The training's workers have numbers from 0. `members` are those whose processes the
    cluster has, in the order of the processes. A worker that is lost leaves them. When
    there is room again, `follow` appends it. After each such change `replan` gives the
    members a plan. The `first` of all `num_steps` iterations are done already.
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
        # Workers of the training until now, and at most.
        self.num_workers = self.cluster.size
        self._max_workers: int | None = None  # None: as many as have room
        if isinstance(self.source, Told):
            problem = self.source.problem
            self.num_workers = int(np.asarray(problem.num_workers))
            self._max_workers = self.num_workers
            if self.pace is not None and self.pace.start_ups is None:
                self.pace = dataclasses.replace(self.pace, start_ups=problem.start_up)
        self._joined: list[int] = []  # members that the plan is not yet for
        self.paced = np.nan  # what the last iteration takes at least, by its pace
        self.work: collections.deque[tuple[Work, ...]] = collections.deque(maxlen=_KEPT)

    def begin(self, first: int) -> None:
        """Begin with the workers that there are, after so many iterations."""
        self.first = first
        self.members = list(range(self.cluster.num_workers))
        self.replan()

    def give_work(self) -> TrainingScheme:
        """Give work to the `members`, the workers left as the problem counts them."""
        scheme = scheme_for(
            self._plan_key, self.source, self.members, self.params, self.batch_size
        )
        self.cluster.take_up(self.prepared(scheme))
        return scheme

    def prepared(self, scheme: TrainingScheme) -> Assignment:
        """A scheme's plan, and the data, where the members find them."""
        parts = self.data
        if not callable(self.data):
            parts = split_unevenly(self.data, len(self.members))
        return self.cluster.prepare(
            self.loss,
            scheme.work,
            self.params,
            parts,
            batch_size=self.batch_size,
            seed=self._seed,
        )

    def is_ready(self) -> bool:
        """Whether there is another plan, and the workers are ready for it."""
        return False

    def hear(self, gradient: ClusterGradient) -> None:
        """Hear what an iteration took."""

    def close(self) -> None:
        """The training has ended."""

    def follow(self) -> bool:
        """Whether the workers, or their work, are others than the plan's."""
        cluster = self.cluster
        left = len(self.members)
        resized = not cluster.does(self._assignment)
        if resized:
            count = cluster.num_workers
        else:
            count = left + cluster.returning()
        if self._max_workers is not None:
            count = min(count, self._max_workers)
        self.num_workers = max(self.num_workers, count)
        # `before_step` has the cluster too.
        absent = [w for w in range(self.num_workers) if w not in self.members]
        self.members = [*self.members, *absent][:count]
        if resized:
            self._joined = []
        else:
            self._joined = self.members[left:]
        return resized or bool(self._joined)

    def replan(self) -> None:
        """Give the members a plan that all of them take up."""
        self.work.clear()
        scheme = self._plan_taken_up()
        if self.pace is not None:  # the link in seconds too
            load = np.asarray(scheme.load, float)
            sent = np.asarray(scheme.sent, float)
            scheme = replace(scheme, load=load, sent=self.pace.seconds * sent)
            _compile_pace(scheme, len(self.members))  # before the clock runs
        self.scheme = scheme
        self._assignment = self.cluster.assignment
        self._joined = []

    def _plan_taken_up(self) -> TrainingScheme:
        """Plan anew for as long as members are lost while they take up their work.

        If so many cannot have work, those that have just joined leave the members.
        """
        while True:
            lost = self.cluster.lost
            self.members = [
                w for place, w in enumerate(self.members) if place not in lost
            ]
            if not self.members:
                raise WorkersLost(range(self.num_workers), "none are left")
            try:
                return self.give_work()
            except WorkersLost:
                continue
            except ValueError as error:
                if not self._joined:
                    raise
                warnings.warn(
                    f"workers that could be there again are left out: {error}",
                    stacklevel=4,
                )
                self.members = [w for w in self.members if w not in self._joined]
                self._joined = []

    def gradient(self, params: PyTree, step: int) -> ClusterGradient:
        """The gradient, whoever is lost; before, a new plan or workers come in."""
        if self.follow() or self.is_ready():
            self.replan()
        while True:
            if self.cluster.lost:
                self.replan()
            pace = self._pace_of(step)
            with contextlib.suppress(WorkersLost):
                gradient = self.cluster.gradient(params, pace, iteration=step)
                self.work.append(gradient.work)
                return gradient

    def _pace_of(self, step: int) -> Pace | None:
        """The members' pace, and in `paced` what a step takes by it; None for none."""
        if self.pace is None:
            return None
        start_ups, times = self.pace.draw(self._pace_key, step, self.num_workers)
        pace = self.scheme.pace(
            np.minimum(start_ups, ENDLESS)[self.members],
            np.minimum(times, ENDLESS)[self.members],
        )
        self.paced = float(self.scheme.work.completed(pace).max())
        return pace


def _compile_pace(scheme: TrainingScheme, workers: int) -> None:
    nothing = np.zeros(workers)
    scheme.work.completed(scheme.pace(nothing, nothing))


def scheme_for(
    key: Array,
    plans: Told,
    members: Sequence[int],
    params: PyTree,
    batch_size: int | None,
) -> TrainingScheme:
    """What is planned for those workers of a problem that are left."""
    problem = plans.problem
    method = plans.method
    options = plans.plan_options
    workers = int(np.asarray(problem.num_workers))
    left = len(members)
    if left < workers:
        law = problem.cycle_time.of_workers(members)
        samples = problem.num_samples
        if batch_size is not None:
            samples = samples * (left / workers)
        # The program that solved it for all workers then solves it for those left,
        # unless each has its own.
        max_workers = left
        if law.width() is None:
            max_workers = problem.max_workers
        problem = replace(
            problem,
            cycle_time=law,
            num_workers=left,
            max_workers=max_workers,
            num_samples=samples,
        )
    if isinstance(method, Plan):
        return training_scheme(key, problem, method, params, **options)
    solve_key, code_key = jax.random.split(jax.random.fold_in(key, left))
    try:
        solution = solve(problem, method, key=solve_key)
        return training_scheme(code_key, problem, solution, params, **options)
    except ValueError as error:
        if left == workers:
            raise
        warnings.warn(
            f'"{plans.name}" is no scheme for the workers left, "optimal" is: {error}',
            stacklevel=2,
        )
        solution = solve(problem, key=solve_key)
        return training_scheme(code_key, problem, solution, params, **options)


class _Prepared(NamedTuple):
    """A scheme for the members, and its work, which they may have compiled."""

    scheme: TrainingScheme
    work: Assignment


class Loop(Course):
    """Each step is uncoded or by work sharing, as a `Judge` says from the steps before.

    `gradient` asks the judge. Where it shares for the first time, and that saves more
    than compiling takes, sharing is prepared: the workers compile it beside their
    uncoded steps. Once they are ready, `replan` gives them the mode that the judge
    wants, for they know both. `hear` has it observe each step that nothing disturbed.
    Other members begin anew, uncoded, with another judge.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.decisions: list[Decision] = []  # type: ignore[misc]
        # Both for the present members; None before it is prepared.
        self._uncoded: _Prepared | None = None
        self._sharing: _Prepared | None = None
        # None before the first step, and where nothing can be shared.
        self._judge: Judge | None = None
        self._to_share = False  # whether the judge wants this step to be shared
        self._said_why_not = False  # whether a decision says that sharing does not pay
        # The present step, what it took, and the faults before it.
        self._step = 0
        self._took = 0.0
        self._faults = 0
        self._last_scheme: TrainingScheme | None = None  # of the step before
        # What uncoded steps take beside the slowest worker: the way of parameters and
        # gradients.
        self._beside: collections.deque[float] = collections.deque(maxlen=_LAST)

    def gradient(self, params: PyTree, step: int) -> ClusterGradient:
        """The gradient, timed with what is prepared, a change, and the step."""
        begin = time.perf_counter()
        self._step = step
        self._faults = len(self.cluster.faults)
        self._to_share = self._judge is not None and self._judge.mode.is_shared
        if self._to_share and self._sharing is None:
            self._consider_sharing()
        gradient = super().gradient(params, step)
        self._took = time.perf_counter() - begin
        return gradient

    def hear(self, gradient: ClusterGradient) -> None:
        """Hear what a step took."""
        if self._is_judged():
            self._observe(gradient.work)
        self._last_scheme = self.scheme
        if self.pace is not None and self._to_share and self._sharing is not None:
            # Beside the clock.
            _compile_pace(self._sharing.scheme, len(self.members))

    def _is_judged(self) -> bool:
        """Whether the step counts: no change, fault or compiling beside it."""
        if self.scheme is not self._last_scheme:
            return False
        if len(self.cluster.faults) != self._faults:
            return False
        sharing = self._sharing
        if sharing is not None and sharing.work.ready < len(self.members):
            return False
        if self._judge is not None:
            return True
        return self._stored > 1 and bool(self._numbers_of_chunks())

    def _observe(self, work: Sequence[Work]) -> None:
        if self._judge is None:
            rule = self._sharing_rule()
            place = Placement(rule.num_workers, rule.max_subsets, rule.chunks)
            self._judge = Judge(place, asking=Asking(_QUESTION * self._message()))
            self._place = place
        if self.scheme.work.handed_out:
            beside = 0.0
            if self._beside:
                beside = float(np.median(self._beside))
            step = shared_step(work, self._place, self._took - beside)
        else:
            step = uncoded_step(work, self._place)
            self._beside.append(self._took - float(step.busy.max()))
        if step is not None:
            self._judge.add(step)

    def is_ready(self) -> bool:
        prepared = self._uncoded
        if self._to_share:
            prepared = self._sharing
        return (
            prepared is not None
            and not self.cluster.does(prepared.work)
            and self.cluster.is_ready(prepared.work)
        )

    def give_work(self) -> TrainingScheme:
        """Give work, shared once that is ready; other workers begin anew."""
        workers = len(self.members)
        before = None
        if self._judge is not None:
            before = self.scheme.method
        prepared = self._uncoded
        if prepared is None or prepared.work.duty.plan.num_workers != workers:
            prepared = self._begin_uncoded()
        sharing = self._sharing
        if self._to_share and sharing is not None and sharing.work.ready == workers:
            prepared = sharing
        scheme, work = prepared
        self.cluster.take_up(work)
        work.ready = workers
        if before is not None and before != scheme.method:
            self._note_decision(before, scheme.method)
        return scheme

    def _note_decision(self, before: str, after: str, compiling: float = 0.0) -> None:
        """Note a change, or with `compiling` why there is none."""
        if self._judge is None:  # the workers are others
            why = "the workers are others than before"
            self.decisions.append(
                Decision(self._step, before, after, np.nan, np.nan, why)
            )
            return
        mode = self._judge.mode
        uncoded = float(np.mean(mode.own_seconds))
        sharing = uncoded - float(np.mean(mode.saved))
        why = reason(mode, self._stored, compiling, self.num_steps - self._step)
        self.decisions.append(
            Decision(self._step, before, after, uncoded, sharing, why)
        )

    def _begin_uncoded(self) -> _Prepared:
        """Begin without redundancy, for members that are others than before."""
        workers = len(self.members)
        size = sum(np.size(leaf) for leaf in jax.tree.leaves(self.params))
        level_0 = size * (np.arange(workers) == 0)
        plan = coding_plan(self._plan_key, self.params, level_0, mean=self.source.mean)
        scheme = TrainingScheme(plan, jnp.ones(1), jnp.zeros(1), method="uncoded")
        self._uncoded = None
        self._sharing = None
        uncoded = _Prepared(scheme, self.prepared(scheme))
        uncoded.work.kept = (uncoded.work.number,)
        self._uncoded = uncoded
        self._judge = None
        self._to_share = False
        self._said_why_not = False
        self._beside.clear()
        return uncoded

    @property
    def _stored(self) -> int:
        """Subsets' worth of data that a worker stores for sharing."""
        return min(self.source.max_stored, len(self.members))

    def _numbers_of_chunks(self) -> list[int]:
        """Numbers of chunks that leave none without samples, if known here."""
        if self.batch_size is None:
            if callable(self.data):
                return list(_CHUNKS)
            samples = num_samples(self.data) // len(self.members)
            return [chunks for chunks in _CHUNKS if chunks <= samples]
        return [
            c
            for c in _CHUNKS
            if min(SharedPlan(self._rule(c)).drawn(self.batch_size)) > 0
        ]

    def _rule(self, chunks: int) -> WorkSharing:
        return WorkSharing(len(self.members), self._stored, chunks)

    def _consider_sharing(self) -> None:
        """Prepare sharing if it saves more than compiling takes; else say so once."""
        assert self._judge is not None
        compiling = len(set(self._place.sizes)) * self.cluster.compiled_in
        saved = (self.num_steps - self._step) * float(np.mean(self._judge.mode.saved))
        if compiling <= saved:
            self._prepare_sharing()
        elif not self._said_why_not:
            self._note_decision("uncoded", "uncoded", compiling)
            self._said_why_not = True

    def _message(self) -> float:
        """Seconds of a message with a gradient, the least of the last steps."""
        records = [item for step in self.work for item in step]
        return max(min(item.heard - item.done - item.overrun for item in records), 0.0)

    def _sharing_rule(self) -> WorkSharing:
        """Work sharing in chunks of at least a message's time, or the fewest."""
        workers = len(self.members)
        subset = float(np.median([subset_times(step, workers) for step in self.work]))
        possible = self._numbers_of_chunks()
        for chunks in possible:
            if subset / chunks >= self._message():
                return self._rule(chunks)
        return self._rule(possible[-1])

    def _prepare_sharing(self) -> None:
        place = self._place
        assert self._uncoded is not None
        uncoded, uncoded_work = self._uncoded
        scheme = SharedScheme(
            plan=uncoded.plan,
            load=uncoded.load,
            sent=uncoded.sent,
            method=f"sharing:{place.max_subsets}:{place.chunks}",
            rule=self._rule(place.chunks),
        )
        work = self.prepared(scheme)
        work.kept = (uncoded_work.number, work.number)
        uncoded_work.kept = work.kept
        self._sharing = _Prepared(scheme, work)

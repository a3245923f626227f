r"""Gradient descent on worker processes, through slow, dead and silent ones, and through its own end.

A step is taken with the exact gradient or not at all. What a fault costs is time: a lost worker is replaced,
or the problem is solved again for those that are left, and the training goes on from its last parameters.
"""

import collections
import contextlib
import dataclasses
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import replace
from bcgc_jax.adaptive import Decision
from bcgc_jax.cluster.checkpoints import Checkpoints, made_with
from bcgc_jax.cluster.closed_loop import ClosedLoop
from bcgc_jax.cluster.collection import ClusterGradient, Work
from bcgc_jax.cluster.logs import Step, Watch
from bcgc_jax.cluster.master import Cluster
from bcgc_jax.cluster.processes import Fault, WorkersLost
from bcgc_jax.cluster.sources import Source
from bcgc_jax.cluster.told import Job, Told
from bcgc_jax.coding.codes import refuse_complex
from bcgc_jax.coding.gradients import Loss, PyTree
from bcgc_jax.coding.training import TrainingScheme, draws_of
from bcgc_jax.distributions import Distribution, JointDistribution

# Iterations whose work is kept: an iteration of many workers and blocks is thousands of records.
_KEPT = 1000
# Seconds in the place of infinity, which times a load of 0 is nothing.
_ENDLESS = 1e30
_State = tuple[PyTree, PyTree]  # parameters, and the optimiser's


class ClusterTraining(NamedTuple):
    """The end of a training and its course, one entry for each of the K iterations of this run.

    `params`, `opt_state`, `clock` and `metrics` are as in `Training`, the clock in seconds.

    Attributes:
      params, opt_state: after the last iteration.
      seconds: wall-clock of each iteration, `[K]`: from sending the parameters to having the next ones,
        recovery from faults included.
      metrics: what `evaluate` said after each iteration; its leaves stacked, `[K, …]`.
      first_step: iterations that were done before, of a checkpoint.
      paced: what the drawn cycle times alone would have taken, `[K]`; NaN without them.
      num_workers: at the end of each iteration, `[K]`.
      faults: what happened, by the number of the iteration from 0.
      work: what each message cost, of the last 1000 iterations and of the last plan only.
      decisions: why the plan was changed, where the training found its plans itself.
    """

    params: PyTree
    opt_state: PyTree
    seconds: np.ndarray
    metrics: PyTree
    first_step: int
    paced: np.ndarray
    num_workers: np.ndarray
    faults: tuple[Fault, ...]
    work: tuple[Work, ...]
    decisions: tuple[Decision, ...]

    @property
    def clock(self) -> np.ndarray:
        """Seconds until the end of each iteration, `[K]`."""
        return np.cumsum(self.seconds)


@dataclasses.dataclass(frozen=True)
class InjectedDelay:
    """Slowness on purpose: worker w sends block b no earlier than `seconds` · T_w (M b/N) y_b from its start.

    With start-ups and a link, no earlier than `seconds` times when the problem's model delivers the block. Of
    a schedule, a task is done no earlier than `seconds` times when the model has it done. Without a problem
    T is the time of 1/N of all work.

    Attributes:
      cycle_times: a law, drawn anew for each iteration, or measured rows `[K, N]`, replayed over and over;
        infinity for a worker that does not answer in that iteration.
      seconds: wall-clock seconds in the unit of the cycle time.
      start_ups: a law, a number, or rows beside those of the cycle times; by default the problem's.
    """

    cycle_times: Distribution | JointDistribution | ArrayLike
    seconds: float = 1.0
    start_ups: Distribution | ArrayLike | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"seconds of a pace must be > 0, got {self.seconds}")

    def draw(self, key: Array, step: int, num_workers: int) -> tuple[np.ndarray, np.ndarray]:
        """Start-ups and cycle times of one iteration, in seconds, `[N]` each: of the key and the step alone.

        >>> delay = InjectedDelay([[1.0, 2.0], [3.0, 5.0]], 0.5, 3.0)
        >>> starts, times = delay.draw(jax.random.key(0), 3, num_workers=2)
        >>> starts.tolist(), times.tolist()
        ([1.5, 1.5], [1.5, 2.5])
        """
        times, starts = self.cycle_times, self.start_ups
        times = times if isinstance(times, Distribution | JointDistribution) else np.asarray(times, float)
        starts = starts if starts is None or isinstance(starts, Distribution) else np.asarray(starts, float)
        drawn = draws_of(times, starts, num_workers)(step, jax.random.fold_in(key, step))
        if not all(np.all(np.asarray(values, float) >= 0) for values in drawn):
            raise ValueError(
                "times of a pace are 0 or more, infinity included: there are negative ones or NaN"
            )
        starts, times = (np.broadcast_to(np.asarray(a, float), num_workers) for a in drawn)
        return self.seconds * starts, self.seconds * times


def _nothing(step: int, cluster: Cluster) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Run:
    """Where a training runs, and what goes on beside it.

    Attributes:
      cluster: the worker processes.
      pace: slowness on purpose, for studies.
      checkpoints: a folder, or `Checkpoints` of it: read first, then written as the training goes on. Refused
        if made with another key, data, model, optimiser or learning rate, batch size, scheme or name of the
        loss; what the loss of that name does, the pace and the law of the problem are not compared.
      before_step: called with the number of the iteration and the cluster.
      after_step: called with a `Step`, in the thread of `evaluate`: `cluster.json_lines(path)`, or
        `cluster.tensorboard(folder)`, or what shows a person how it goes.
    """

    cluster: Cluster
    pace: InjectedDelay | None = None
    checkpoints: Checkpoints | str | Path | None = None
    before_step: Callable[[int, Cluster], None] = _nothing
    after_step: Callable[[Step], None] | None = None


def train_on_cluster(
    key: Array,
    loss: Loss,
    plans: Told | ClosedLoop,
    cluster: Cluster | Run,
    params: PyTree,
    data: PyTree | Source,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    batch_size: int | None = None,
    evaluate: Callable[[PyTree], PyTree] = lambda params: None,
) -> ClusterTraining:
    r"""Gradient descent on worker processes, coded or by a schedule, up to iteration `num_steps`.

    As `train` on the simulated clock, with who plans in the place of a scheme, and processes in that of cycle
    times.

    Args:
      key: of the solution, the codes, the pace and the mini-batches; iteration k draws with k, so that a
        training that goes on after a checkpoint draws what it would have drawn.
      loss: (params, batch) to a scalar, a function that can be pickled.
      plans: `Told(problem, method)`; or `ClosedLoop()`, where nobody knows a law: it measures what the
        workers take, and changes its plan where that pays (`adaptive.Planner`).
      cluster: the processes; in a `Run` with slowness on purpose, checkpoints and callbacks.
      data: pytree of arrays `[M, …]`. The subsets differ in size by at most one sample; in a closed loop
        without `batch_size` they are as unequal as the workers. Or a function (j, N) to subset j of N, all of
        one size, which the workers call: nothing passes through the master.
      batch_size: samples of each subset that an iteration draws; all by default.
      evaluate: called with the parameters after each iteration, in a thread beside the training.

    A lost worker is replaced if the cluster does so. Where it does not, or three successors end without an
    iteration done, the workers left get a plan before the next step, or at once if a block needs the lost
    one: of the optimal method, with a warning, if the other has no scheme for so few. Where workers were
    given up for want of room and room returns (a node has joined), and where `before_step` has resized the
    cluster, there is a plan for all of them before the next step. Others that were given up are there again
    at the start of the next training, as far as there is room for them.

    Raises ValueError where problem, data, checkpoint and cluster do not match, or more iterations are done
    than asked for, WorkersLost where no workers are left.

    >>> import jax.numpy as jnp
    >>> data, loss = np.arange(12.0, dtype=np.float32).reshape(4, 3), lambda p, x: jnp.mean((x @ p - 1) ** 2)
    >>> with Cluster(2) as cluster:
    ...     given = jnp.zeros(3), data, optax.sgd(1e-3), 5
    ...     found = train_on_cluster(jax.random.key(0), loss, ClosedLoop(), cluster, *given)
    >>> found.clock.shape, bool(loss(found.params, data) < 1)
    ((5,), True)
    """
    refuse_complex("params", params)
    run = cluster if isinstance(cluster, Run) else Run(cluster)
    cluster = run.cluster
    plan_key, pace_key, batch_key = jax.random.split(key, 3)
    seed = int(jax.random.randint(batch_key, (), 0, 2**31 - 1))
    pace = run.pace
    if pace is not None and pace.start_ups is None:
        pace = dataclasses.replace(pace, start_ups=plans.start_up)
    state = (params, optimizer.init(params))
    first, first_fault = 0, len(cluster.faults)

    with contextlib.ExitStack() as stack:
        stack.enter_context(cluster.at_work())
        workers = _workers(plans.num_workers, cluster)
        checkpoints = run.checkpoints
        if isinstance(checkpoints, str | Path):
            checkpoints = stack.enter_context(Checkpoints(checkpoints))
        if checkpoints is not None:
            scheme = f"{plans.name} {sorted(plans.plan_options.items())}"
            settings: dict[str, object] = {"scheme": scheme, "batch size": batch_size}
            if batch_size is not None:  # what is drawn depends on how many subsets there are
                settings["number of workers"] = workers
            described = made_with(key, loss, data, params, optimizer, **settings)
            first, state = checkpoints.last(state, described) or (first, state)
            if first > num_steps:
                raise ValueError(
                    f"the checkpoint is of {first} iterations, more than the {num_steps} asked for: ask for "
                    "as many at least, or take an empty folder"
                )
        advance = _advance(optimizer)
        jax.block_until_ready(advance(state, state[0]))  # compiled before the clock runs
        job = Job(cluster, loss, params, data, batch_size, plan_key, seed, first, num_steps)
        planned = plans.begin(job)
        stack.callback(planned.close)
        most = plans.num_workers or sys.maxsize
        course = _Course(cluster, workers, most, planned.give_work, pace, pace_key)
        watch = stack.enter_context(Watch(evaluate, run.after_step))
        for step in range(first, num_steps):
            run.before_step(step, cluster)
            begin = time.perf_counter()
            if course.follow() or planned.is_ready():
                course.replan()
            found, finish = course.gradient(state[0], step)
            state = jax.block_until_ready(advance(state, found.gradient))
            done = course.record(step, time.perf_counter() - begin, finish, found.work)
            if checkpoints is not None:
                checkpoints.save(step + 1, state, wait=step + 1 == num_steps)
            planned.hear(found, course.start_ups)
            watch.add(done, state[0])
    metrics = watch.metrics
    return ClusterTraining(
        params=state[0],
        opt_state=state[1],
        seconds=np.array([one.seconds for one in course.steps]),
        metrics=jax.tree.map(lambda *leaves: np.stack(leaves), *metrics) if metrics else None,
        first_step=first,
        paced=np.array(course.paced),
        num_workers=np.array([one.num_workers for one in course.steps], int),
        faults=tuple(cluster.faults[first_fault:]),
        work=tuple(item for one in course.work for item in one),
        decisions=planned.decisions,
    )


def _workers(number: int | None, cluster: Cluster) -> int:
    """How many there are to be, those that were given up before included."""
    workers = cluster.size if number is None else number
    if workers == cluster.size:
        cluster.restore()
    elif workers != cluster.num_workers:
        raise ValueError(f"the problem has {workers} workers, the cluster {cluster.num_workers}")
    return workers


def _advance(optimizer: optax.GradientTransformation) -> Callable[[_State, PyTree], _State]:
    """(state, gradient) to the next state."""

    @jax.jit
    def advance(state: _State, gradient: PyTree) -> _State:
        params, opt_state = state
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return advance


class _Course:
    """The workers left, the scheme they have, and what was recorded; planned when made, and again on losses.

    `give_work` plans for the workers of these numbers, as the problem counts them, and gives them their work.
    """

    def __init__(
        self,
        cluster: Cluster,
        num_workers: int,
        most: int,
        give_work: Callable[[Sequence[int]], TrainingScheme],
        pace: InjectedDelay | None,
        pace_key: Array,
    ) -> None:
        self._cluster, self._give_work = cluster, give_work
        self._pace, self._pace_key = pace, pace_key
        self._all, self._most = num_workers, most
        self.start_ups: np.ndarray | float = 0.0  # of the pace, in the last iteration
        self.members = list(range(cluster.num_workers))
        self._joined: list[int] = []  # members that the plan is not yet for
        self._growing = True  # until the room that returns is on machines that cannot be used
        self.steps: list[Step] = []
        self.paced: list[float] = []
        self.work: collections.deque[tuple[Work, ...]] = collections.deque(maxlen=_KEPT)
        self.replan()

    def follow(self) -> bool:
        """Count those whose room has returned, and as many as `before_step` has resized the cluster to.

        Whether they are others than the plan is for.
        """
        cluster, left = self._cluster, len(self.members)
        resized = not cluster.assigned
        count = cluster.num_workers if resized else left + (cluster.returning() if self._growing else 0)
        if resized and count > self._most:
            raise ValueError(
                f"the problem has {self._most} workers: resize the cluster to no more, not {count}"
            )
        self._all = max(self._all, min(count, self._most))
        absent = [w for w in range(self._all) if w not in self.members]
        self.members = [*self.members, *absent][:count]
        self._joined = [] if resized else self.members[left:]
        return resized or bool(self._joined)

    def replan(self) -> None:
        """Plan anew for as long as workers are lost while they take up their work."""
        self.work.clear()
        while True:
            self.members = [w for place, w in enumerate(self.members) if place not in self._cluster.lost]
            if not self.members:
                raise WorkersLost(range(self._all), "none are left")
            try:
                scheme = self._give_work(self.members)
            except WorkersLost:
                continue
            except ValueError as error:
                if not self._joined:
                    raise
                warnings.warn(f"workers that could be there again are left out: {error}", stacklevel=3)
                self.members = [w for w in self.members if w not in self._joined]
                self._joined, self._growing = [], False
                continue
            if self._pace is not None:  # the link in seconds too
                sent, load = (np.asarray(each, float) for each in (scheme.sent, scheme.load))
                scheme = replace(scheme, load=load, sent=self._pace.seconds * sent)
            self._scheme, self._joined = scheme, []
            return

    def gradient(self, params: PyTree, step: int) -> tuple[ClusterGradient, np.ndarray | None]:
        """The gradient, whoever is lost meanwhile, and when the pace let tasks be done, `[tasks, N]`."""
        while True:
            if self._cluster.lost:
                self.replan()
            finish = None
            if self._pace is not None:
                drawn = self._pace.draw(self._pace_key, step, self._all)
                starts, times = (np.minimum(seconds, _ENDLESS) for seconds in drawn)
                self.start_ups = starts[self.members]
                finish = self._scheme.finish_times(starts[self.members], times[self.members])
            try:
                return self._cluster.gradient(params, finish, iteration=step), finish
            except WorkersLost:
                continue

    def record(self, step: int, seconds: float, finish: np.ndarray | None, work: tuple[Work, ...]) -> Step:
        """What was done, and in how many seconds."""
        self.steps.append(Step(step, seconds, self._scheme.method, len(self.members), None))
        self.paced.append(np.nan if finish is None else float(self._scheme.plan.completed(finish).max()))
        self.work.append(work)
        return self.steps[-1]

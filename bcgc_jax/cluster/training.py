r"""Gradient descent on worker processes, slow, dead and silent ones, and through its
own end.

A step is taken with the exact gradient or not at all. What a fault costs is time.
"""

import contextlib
import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from bcgc_jax._pytree import check_whole, pytree_dataclass
from bcgc_jax.cluster.checkpoints import Checkpoints, made_with
from bcgc_jax.cluster.decisions import Decision
from bcgc_jax.cluster.engine import Source
from bcgc_jax.cluster.master import Cluster
from bcgc_jax.cluster.planning import ClosedLoop, Course, InjectedDelay, Loop, Told
from bcgc_jax.cluster.processes import Fault
from bcgc_jax.cluster.rounds import Work
from bcgc_jax.coding.checks import check_loss, check_params
from bcgc_jax.coding.gradients import Loss, PyTree
from bcgc_jax.coding.training import Training


@pytree_dataclass
class ClusterTraining(Training):
    """A `Training` on processes, with an entry for each of K iterations, and what
    happened.

    Attributes:
      first_step: iterations that were done before, of a checkpoint.
      paced: what the drawn cycle times alone would have taken, `[K]`; NaN without them.
      num_workers: at the end of each iteration, `[K]`.
      faults: what happened, by the number of the iteration from 0.
      work: what each message cost, of the last 1000 iterations and of the last plan
        only.
      decisions: when and why the scheme was changed, in a closed loop.
    """

    first_step: int
    paced: np.ndarray
    num_workers: np.ndarray
    faults: tuple[Fault, ...]
    work: tuple[Work, ...]
    decisions: tuple[Decision, ...]

    @property
    def loss(self) -> NoReturn:
        """Not known: AttributeError."""
        raise AttributeError(
            "processes send gradients, and no loss: pass evaluate, a function of the "
            "parameters, and read what it says from metrics"
        )

    @property
    def seconds(self) -> np.ndarray:
        """Seconds of each iteration, recovery included, `[K]`."""
        return np.diff(np.asarray(self.clock), prepend=0)


class Step(NamedTuple):
    """An iteration that is done: its number from 0, how, and what was evaluated."""

    step: int
    seconds: float
    scheme: str
    num_workers: int
    metrics: Any


@dataclasses.dataclass(frozen=True)
class Run:
    """The cluster on which a training runs, and what goes on beside it.

    Attributes:
      pace: slowness on purpose, for studies.
      checkpoints: a folder of `Checkpoints`: read first, then written as the training
        goes on. Refused if made with another key, data, model, optimiser or learning
        rate, batch size, scheme or name of the loss; what that does, the pace and the
        problem's distribution are not compared.
      before_step: called with the number of the iteration and the cluster.
      after_step: called with a `Step`, in the thread of `evaluate`; `json_lines(path)`
        is one.
    """

    cluster: Cluster
    pace: InjectedDelay | None = None
    checkpoints: str | Path | None = None
    before_step: Callable[[int, Cluster], None] = lambda step, cluster: None
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
    r"""Gradient descent on worker processes, coded or by a schedule, up to iteration
    `num_steps`.

    Args:
      key: of the solution, the codes, the pace and the mini-batches; iteration k draws
        with k, so that a training that goes on after a checkpoint draws what it would
        have drawn.
      loss: (params, batch) to a scalar, the mean over the samples, a function that can
        be pickled; or (params, batch, key), with the `loss_key` of a seed that is drawn
        with `key`, the iteration, the subset and the chunk. `coding.stateful` makes one
        of a loss with a state.
      plans: `Told(problem, method)`; or `ClosedLoop()`, uncoded steps or work sharing,
        whichever is faster by the steps before.
      cluster: the processes; in a `Run` with slowness on purpose, checkpoints and
        callbacks.
      data: pytree of arrays `[M, …]`. The subsets differ in size by at most one sample.
        Or a function (j, N) to subset j of N, all of one size, which the workers call:
        nothing passes through the master.
      batch_size: samples of each subset that an iteration draws; all by default.
      evaluate: called with the parameters after each iteration, in a thread beside the
        training.

    A lost worker is replaced if the cluster does so. Where it does not, or three
    successors end without an iteration done, the workers left get a plan before the
    next step, or at once if a block needs the lost one: of the optimal method, with a
    warning, if the other has no scheme for so few. When room for workers returns (a
    node has joined), or `before_step` resizes the cluster, the next step has a plan for
    all. Others that were given up are there again at the start of the next training, as
    far as there is room.

    Raises ValueError where problem, data, checkpoint and cluster do not match, or more
    iterations are done than asked for, or for what `coding.train` refuses too:
    parameters that are no real numbers or get no gradient, a loss of NumPy, a sum over
    samples. WorkersLost where no workers are left.

    >>> import jax.numpy as jnp
    >>> data, loss = (
    ...     np.arange(12.0, dtype=np.float32).reshape(4, 3),
    ...     lambda p, x: jnp.mean((x @ p - 1) ** 2),
    ... )
    >>> with Cluster(2) as cluster:
    ...     params = jnp.zeros(3)
    ...     training = train_on_cluster(
    ...         *(jax.random.key(0), loss, ClosedLoop(), cluster),
    ...         *(params, data, optax.sgd(1e-3), 5),
    ...     )
    >>> training.clock.shape, bool(loss(training.params, data) < 1)
    ((5,), True)
    """
    check_whole("num_steps", num_steps, 0)
    check_params(params)
    if not callable(data):
        sample = jax.tree.map(lambda x: np.asarray(x[:1]), data)
        check_loss(loss, params, sample, plans.plan_options.get("mean", True))
    run = cluster if isinstance(cluster, Run) else Run(cluster)
    cluster = run.cluster
    first = 0
    state = (params, optimizer.init(params))
    first_fault = len(cluster.faults)

    with contextlib.ExitStack() as stack:
        stack.enter_context(cluster.at_work())
        course_class = Course
        if isinstance(plans, ClosedLoop):
            course_class = Loop
        course = course_class(
            plans, cluster, loss, params, data, batch_size, key, num_steps, run.pace
        )
        stack.callback(course.close)
        if course.num_workers != cluster.size:
            raise ValueError(
                f"the problem has {course.num_workers} workers, the cluster "
                f"{cluster.size}"
            )
        cluster.restore()  # those too that were given up before
        checkpoints = None
        if run.checkpoints is not None:
            checkpoints = stack.enter_context(Checkpoints(run.checkpoints))
            settings = _settings(plans, batch_size, course.num_workers)
            described = made_with(key, loss, data, params, optimizer, **settings)
            checkpoint = checkpoints.last(state, described, most=num_steps)
            if checkpoint is not None:
                first, state = checkpoint
        # compiled before the clock runs
        jax.block_until_ready(_advance(optimizer, state, state[0]))
        course.begin(first)
        paced = []
        evaluations = list[Future[Step]]()
        # At its end it waits, also after an error: what is done is to be on record.
        beside = stack.enter_context(ThreadPoolExecutor(1))
        x64 = bool(jnp.result_type(float) == jnp.float64)
        for number in range(first, num_steps):
            state, step = _iterate(number, state, run, course, optimizer)
            paced.append(course.paced)
            if checkpoints is not None:
                checkpoints.save(number + 1, state, wait=number + 1 == num_steps)
            evaluations.append(
                beside.submit(evaluated, evaluate, run, x64, step, state[0])
            )
            if len(evaluations) > 2:  # the last two may run; others raise here
                evaluations[-3].result()
    steps = [evaluation.result() for evaluation in evaluations]
    return _summary(
        state, steps, first, np.array(paced), cluster.faults[first_fault:], course
    )


def _settings(
    plans: Told | ClosedLoop, batch_size: int | None, num_workers: int
) -> dict[str, Any]:
    """What a checkpoint must have been made with, beside the data and the model."""
    scheme = f"{plans.name} {sorted(plans.plan_options.items())}"
    settings: dict[str, Any] = {"scheme": scheme, "batch size": batch_size}
    if batch_size is not None:  # what is drawn depends on how many subsets there are
        settings["number of workers"] = num_workers
    return settings


def _iterate(
    number: int,
    state: Any,
    run: Run,
    course: Course,
    optimizer: optax.GradientTransformation,
) -> tuple[Any, Step]:
    """The state after one iteration, and what is known of it without its metrics."""
    run.before_step(number, run.cluster)
    begin = time.perf_counter()
    gradient = course.gradient(state[0], number)
    state = jax.block_until_ready(_advance(optimizer, state, gradient.gradient))
    seconds = time.perf_counter() - begin
    course.hear(gradient)
    step = Step(
        step=number,
        seconds=seconds,
        scheme=course.scheme.method,
        num_workers=len(course.members),
        metrics=None,
    )
    return state, step


def _summary(
    state: Any,
    steps: list[Step],
    first: int,
    paced: np.ndarray,
    faults: list[Fault],
    course: Course,
) -> ClusterTraining:
    metrics = None
    if steps:
        metrics = jax.tree.map(
            lambda *leaves: np.stack(leaves), *[step.metrics for step in steps]
        )
    return ClusterTraining(
        params=state[0],
        opt_state=state[1],
        clock=np.cumsum([step.seconds for step in steps]),
        fresh=None,
        stepped=np.full(len(steps), True),
        metrics=metrics,
        first_step=first,
        paced=paced,
        num_workers=np.array([step.num_workers for step in steps], int),
        faults=tuple(faults),
        work=tuple(record for records in course.work for record in records),
        decisions=tuple(course.decisions),
    )


@functools.partial(jax.jit, static_argnames="optimizer")
def _advance(
    optimizer: optax.GradientTransformation, state: Any, gradient: PyTree
) -> Any:
    updates, opt_state = optimizer.update(gradient, state[1], state[0])
    return optax.apply_updates(state[0], updates), opt_state


def evaluated(
    evaluate: Callable[[PyTree], Any], run: Run, x64: bool, step: Step, params: PyTree
) -> Step:
    """A step with metrics, in a thread, where JAX's precision must be set again."""
    with jax.enable_x64(x64):
        step = step._replace(metrics=evaluate(params))
        if run.after_step is not None:
            run.after_step(step)
    return step


def json_lines(path: str | os.PathLike[str]) -> Callable[[Step], None]:
    """For `after_step`: write a line for each iteration, with its numbers, to the end
    of a file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     json_lines(path := Path(folder) / "log.jsonl")(
    ...         Step(0, 0.25, "uncoded", 4, {"loss": 2.0})
    ...     )
    ...     json.loads(path.read_text())["loss"]
    2.0
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(step: Step) -> None:
        line: dict[str, Any] = {}
        for keys, leaf in jax.tree_util.tree_leaves_with_path(step.metrics):
            if np.ndim(leaf) == 0 and np.asarray(leaf).dtype.kind in "biuf":
                name = jax.tree_util.keystr(keys, simple=True, separator="/")
                line[name or "metric"] = float(leaf)
        line |= step._asdict()
        del line["metrics"]
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    return write

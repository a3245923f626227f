r"""Coded gradient descent on a simulated clock.

In each iteration the workers' cycle times are drawn (or replayed from measured rows).
As in the paper, a block at level n is complete with its (N-n)-th message and decoded
from these; the iteration ends with the last block, and the clock advances by its
runtime. A worker that has begun a pass by then ends it first, and is late for the next
iteration.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import (
    check,
    check_key,
    check_whole,
    pytree_dataclass,
    replace,
    static_field,
)
from bcgc_jax.coding.gradients import (
    CodingPlan,
    Loss,
    PyTree,
    assign,
    check_batch_size,
    coded_value_and_grad,
    num_samples,
    size_of,
    unit_sizes,
)
from bcgc_jax.coding.losses import check_loss, check_params
from bcgc_jax.distributions import (
    Distribution,
    EmpiricalRows,
    JointDistribution,
)
from bcgc_jax.plans.completion import Exact
from bcgc_jax.plans.loads import load_of_plan, passes_of
from bcgc_jax.plans.passes import Passes, parts_of
from bcgc_jax.plans.plan import Plan, cyclic_plan, partition_plan
from bcgc_jax.plans.sharing import WorkSharing
from bcgc_jax.plans.worker import Load
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import Solution


class Pace(NamedTuple):
    """The pace of all N workers.

    Attributes:
      begin: when a worker begins, `[N]`.
      unit: its time for a unit of load, `[N]`; infinity if it does not answer.
      load: until the end of each task, `[tasks]`, or `[tasks, N]` where workers do
        unequal work; in work sharing that of a whole subset, `[1]`.
      sent: what the link takes for all messages up to a task's, `[tasks]`.
      overlap: whether the link sends while the worker computes on.

    >>> pace = Pace(
    ...     np.array([0.0, 1.0]),
    ...     np.array([1.0, 2.0]),
    ...     np.array([1.0, 3.0]),
    ...     np.array([0.5, 0.75]),
    ... )
    >>> pace.ends().tolist()
    [[1.5, 3.5], [3.75, 7.75]]
    """

    begin: Any
    unit: Any
    load: Any
    sent: Any
    overlap: bool = False

    def ends(self) -> Any:
        """When each worker has delivered each task, `[tasks, N]`; NumPy or JAX."""
        # in NumPy nothing is compiled
        xp = np if isinstance(self.unit, np.ndarray | float) else jnp
        load, sent = self._columns(xp)
        work = self.unit * load
        if self.overlap:
            waited = work - xp.concatenate([0 * sent[:1], sent[:-1]])
            work = np.maximum.accumulate(waited) if xp is np else jax.lax.cummax(waited)
        return self.begin + work + sent

    def _columns(self, xp: Any) -> tuple[Any, Any]:
        """Load and link, beside the workers where there are many."""
        load = xp.asarray(self.load)
        sent = xp.asarray(self.sent)
        if np.ndim(self.unit) == 0:
            return load, sent
        return (load if load.ndim == 2 else load[:, None]), sent[:, None]


@pytree_dataclass
class TrainingScheme:
    """A plan and its pace: worker w delivers block b at S_w + T_w · `load[b]` +
    `sent[b]`.

    Both are `[B]`. Where sending `overlap`s computing, at S_w + max_{j≤b} (T_w load[j]
    + sent[b] - sent[j-1]). `start_up` is the problem's S, or None. Of a schedule,
    read task for block. Where workers do unequal work, `load` is `[B, N]`. `passes`, in
    the unit of `load`, are what a worker ends once it has begun it; None: all are free
    when an iteration ends.
    """

    plan: CodingPlan
    load: Array
    sent: Array
    start_up: ArrayLike | None = None
    overlap: bool = static_field(default=False)
    method: str = static_field(default="")
    passes: Passes | None = None

    def pace(self, starts: ArrayLike, times: Array | np.ndarray) -> Pace:
        """The pace of one iteration, from start-ups and cycle times `[N]`."""
        xp = np if isinstance(times, np.ndarray) else jnp
        begins = xp.broadcast_to(xp.asarray(starts), times.shape)
        return Pace(
            begin=begins,
            unit=times,
            load=self.load,
            sent=self.sent,
            overlap=self.overlap,
        )

    def messages(self, starts: Array, times: Array) -> tuple[Array, Array]:
        """Whose message of a block there is, bool `[B, N]`, and the runtime or inf."""
        ready = self.plan.ready(self.pace(starts, times).ends())
        arrived, completed = collect(ready, self.plan.rule)
        return arrived, jnp.max(completed)


@pytree_dataclass
class SharedScheme(TrainingScheme):
    """Work sharing: the gradient is that without redundancy, and `rule` says how long
    it takes.

    Its `load` is that of a subset, `[1]`, and its rule's round trip in the unit of
    runtimes.
    """

    rule: WorkSharing | None = None

    def messages(self, starts: Array, times: Array) -> tuple[Array, Array]:
        assert self.rule is not None
        begin = jnp.broadcast_to(jnp.asarray(starts, times.dtype), times.shape)
        load = Load(self.load, self.sent)
        runtime = self.rule.runtimes(load, False, begin, times)
        return jnp.full((1, times.size), jnp.isfinite(runtime)), runtime


@pytree_dataclass
class Training:
    """The end of a training and its course, one entry for each of K iterations.

    Attributes:
      params, opt_state: after the last iteration.
      clock: time at the end of each iteration, `[K]`: in the unit of the cycle time, on
        processes in seconds.
      fresh: what each iteration would have taken if all workers had been free at its
        start, `[K]`; None on processes.
      stepped: whether the gradient was decoded; if not, the parameters stayed.
      metrics: what `evaluate` said of the parameters at the end of each iteration.
    """

    params: PyTree
    opt_state: PyTree
    clock: Array | np.ndarray
    fresh: Array | None
    stepped: Array | np.ndarray
    metrics: PyTree


@pytree_dataclass
class SimulatedTraining(Training):
    """A `Training` on the simulated clock.

    Attributes:
      loss: of the parameters at the start of each iteration, on its batch, `[K]`.
    """

    loss: Array


def collect(finish_times: ArrayLike, rule: Exact) -> tuple[Array, Array]:
    """Whose message of each block there is when it is complete, bool `[B, N]`, and
    when, `[B]`.

    From when the messages come, `[B, N]`; the last completion is τ̂(x,T), eq. (5).
    """
    # Computed once: else XLA may round them otherwise in either place, and the last
    # message, which comes as the block is complete, would not be there (seen with
    # jaxlib 0.12).
    times = jax.lax.optimization_barrier(jnp.asarray(finish_times))
    completed = rule.blocks(times, np.arange(len(times)))
    return (times <= completed[:, None]) & jnp.isfinite(times), completed


def training_scheme(
    key: Array,
    problem: Problem,
    solution: Solution | Plan,
    params: PyTree,
    **plan_options: Any,
) -> TrainingScheme:
    r"""The codes and the pace of a solution of `solve`, for a model's parameters.

    Args:
      key: randomness of the codes.
      problem: with as many coordinates as the parameters (or `unit_costs` from
        `unit_sizes`), and as many samples as an iteration has.
      solution: of this problem, what is trained is its `plan`; or a plan.
        "tandon_partial" leaves a share of each subset's samples, to the nearest sample,
        uncoded. Schemes without a code sum the first message of each subset, and work
        sharing each chunk once.
      plan_options: `units`, `order`, `construction` and `mean` of `coding_plan`, and
        `chunks` of `assign`.

    Raises ValueError for a solution that does not exist, and where problem and
    parameters do not match.
    """
    plan, rounded, method = what_is_trained(solution)
    sizes = unit_sizes(
        params, plan_options.get("units", "coordinates"), plan_options.get("order")
    )
    _check_coordinates(problem, sizes)
    workers = int(np.asarray(problem.num_workers))
    assert plan.completion is not None
    if plan.completion.handed_out:
        return _shared_scheme(key, problem, plan, params, method, **plan_options)
    assigned = assign(key, plan, params, workers, rounded=rounded, **plan_options)
    load, sent, passes = _pace(problem, plan, assigned)
    return TrainingScheme(
        plan=assigned,
        load=load,
        sent=sent,
        start_up=problem.start_up,
        overlap=problem.overlap and assigned.coded,
        method=method,
        passes=jax.tree.map(
            lambda a: jnp.asarray(problem.scale * a, load.dtype), passes
        ),
    )


def what_is_trained(solution: Solution | Plan) -> tuple[Plan, Array | None, str]:
    """The plan, its whole numbers where it is a partition, and the name of its method.

    Raises ValueError where there is none, and where its gradient is not that of all
    samples.
    """
    plan: Plan | None
    if isinstance(solution, Plan):
        plan = solution
        rounded = None
        method = "plan"
    elif int(solution.status) in (Status.INFEASIBLE, Status.INVALID):
        raise ValueError(f'"{solution.method}": {solution.message}')
    else:
        plan = solution.plan
        rounded = solution.rounded
        method = solution.method
    if plan is None or plan.completion is None:
        raise ValueError(
            f'"{method}" does not say which worker computes what, so nothing can be '
            "trained with it: it is a bound, or the cost of a scheme"
        )
    if not plan.trainable:
        raise ValueError(
            f'"{method}" loses samples, so its gradient is not that of all of them, '
            'and nothing is trained with it here: take "optimal" or "sharing:2", which '
            "lose none"
        )
    return plan, rounded, method


def _check_coordinates(problem: Problem, sizes: np.ndarray) -> None:
    """Raise ValueError unless the problem's coordinates are units of these sizes."""
    costs = problem.unit_costs
    if costs is None:
        costs = np.ones(int(np.asarray(problem.num_coordinates)))
    if not np.array_equal(costs, sizes):
        raise ValueError(
            "the problem's coordinates are not those of the parameters: take "
            f"num_coordinates={sizes.sum()}, or for units of leaves or layers "
            "unit_costs=unit_sizes(params, units, order)"
        )


def _shared_scheme(
    key: Array,
    problem: Problem,
    plan: Plan,
    params: PyTree,
    method: str,
    **plan_options: Any,
) -> SharedScheme:
    """The scheme of work sharing: each chunk counts once, as without redundancy."""
    rule: Any = plan.completion
    workers = int(np.asarray(problem.num_workers))
    uncoded = partition_plan(problem.total * (np.arange(workers) == 0), workers)
    assigned = assign(key, uncoded, params, workers, **plan_options)
    rule = replace(rule, round_trip=rule.round_trip * problem.scale)
    load, sent = _pace_of_tasks(problem, plan.with_sizes(problem.total[None]))
    return SharedScheme(
        plan=assigned,
        load=load,
        sent=sent,
        start_up=problem.start_up,
        method=method,
        rule=rule,
    )


_Pace = tuple[Any, Any, Passes | None]


def _pace(problem: Problem, plan: Plan, assigned: CodingPlan) -> _Pace:
    """The work until each block over T, `[B]` or `[B, N]`, and the link's time for it,
    `[B]`.

    And the passes, in units of κ.
    """
    if not assigned.coded:
        return _pace_of_circle(problem, assigned)
    if assigned.groups:
        return _pace_of_groups(problem, plan, assigned)
    return _pace_of_levels(problem, plan, assigned)


def _pace_of_circle(problem: Problem, assigned: CodingPlan) -> _Pace:
    """Until each subset; the link is left out: what is sent are a few bytes."""
    plan = cyclic_plan(float(assigned.blocks[0].size), assigned.turns)
    work, sent = jax.device_get(_pace_of_tasks(problem, plan))
    return work, sent, passes_of(problem, plan)


def _pace_of_groups(problem: Problem, plan: Plan, assigned: CodingPlan) -> _Pace:
    rule = plan.completion
    assert rule is not None
    used = [rule.groups.index(groups) for groups in assigned.groups]
    plan = _with_whole_sizes(problem, plan, used, assigned)
    work, sent = jax.device_get(_pace_of_tasks(problem, plan))
    return rule.per_worker(work).T[used], sent[used], passes_of(problem, plan)


def _pace_of_levels(problem: Problem, plan: Plan, assigned: CodingPlan) -> _Pace:
    used = [block.level for block in assigned.blocks]
    if plan.is_partition:
        plan = _with_whole_sizes(problem, plan, used, assigned)
    work, sent = jax.device_get(_pace_of_tasks(problem, plan))
    return work[used], sent[used], passes_of(problem, plan)


def _with_whole_sizes(
    problem: Problem, plan: Plan, used: Sequence[int], assigned: CodingPlan
) -> Plan:
    """The plan with the sizes of the `assigned` whole blocks at the places `used`."""
    sizes = np.zeros(np.shape(plan.sizes), problem.dtype)
    sizes[list(used)] = [block.size for block in assigned.blocks]
    return plan.with_sizes(jnp.asarray(sizes))


@jax.jit
def _pace_of_tasks(problem: Problem, plan: Plan) -> tuple[Array, Array]:
    load = load_of_plan(problem, plan)
    sent = jnp.zeros_like(load.work) if load.sent is None else load.sent
    return problem.scale * load.work, problem.scale * sent


def train(
    key: Array,
    loss: Loss,
    scheme: TrainingScheme,
    cycle_times: Distribution | JointDistribution | ArrayLike,
    params: PyTree,
    subsets: PyTree,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    start_ups: ArrayLike | None = None,
    batch_size: int | None = None,
    unit: str | None = None,
    evaluate: Callable[[PyTree], PyTree] = lambda params: None,
) -> SimulatedTraining:
    r"""`num_steps` (static) iterations of coded gradient descent; under `jit` and
    `vmap` too.

    Args:
      key: draws of the cycle times, of the start-ups and of the mini-batches.
      loss: (params, batch) to a scalar, a mean or a sum over samples, as the scheme's
        plan has it; or (params, batch, key), with the `loss_key` of the samples.
        `stateful` makes one of a loss with a state.
      scheme: of `training_scheme`.
      cycle_times: a distribution, or measured rows `[K, N]`, replayed from the first on
        and over again.
      start_ups: a number, or measured rows `[K, N]` beside those of the cycle times; by
        default the scheme's.
      subsets: the data of `split_batch`, leaves `[N, m, …]`.
      batch_size: samples of each subset that an iteration draws, without replacement;
        all by default. The scheme's problem should have N times as many samples: its
        pace follows from these.
      unit: what a worker does in one piece (static), as in `simulate_runtime`; by
        default a chunk of the plan's, as on processes.
      evaluate: called with the parameters after each iteration.

    Compiled once for the same `loss`, `optimizer` and `evaluate`. An iteration that
    never ends, a worker too many not answering, leaves the clock at inf and the
    parameters as they are.

    Raises ValueError for times that are negative or NaN, and for what `check_loss`
    refuses.
    """
    check_key(key)
    check_whole("num_steps", num_steps, 0)
    if isinstance(start_ups, Distribution | JointDistribution):
        raise ValueError(
            f"start_ups must be a number or rows [K, N], got {start_ups!r}. "
            "Distributions of start-up times were removed after version 0.4"
        )
    for name, times in (("cycle_times", cycle_times), ("start_ups", start_ups)):
        if times is not None and not isinstance(
            times, Distribution | JointDistribution
        ):
            check(name, times, ">= 0", finite=False)
    check_params(params)
    size = size_of(scheme.plan, subsets)
    check_batch_size(batch_size, size)
    if unit is None:
        unit = f"chunk:{scheme.plan.chunks_of(batch_size or size)}"
    parts_of(unit)
    check_loss(
        loss, params, jax.tree.map(lambda x: x[0, :1], subsets), scheme.plan.mean
    )
    training = key, loss, scheme, cycle_times, params, subsets, optimizer, num_steps
    return _train(*training, start_ups, batch_size, unit, evaluate)


_STATIC = ("loss", "optimizer", "num_steps", "batch_size", "unit", "evaluate")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _train(
    key: Array,
    loss: Loss,
    scheme: TrainingScheme,
    cycle_times: Distribution | JointDistribution | ArrayLike,
    params: PyTree,
    subsets: PyTree,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    start_ups: ArrayLike | None,
    batch_size: int | None,
    unit: str,
    evaluate: Callable[[PyTree], PyTree],
) -> SimulatedTraining:
    plan = scheme.plan
    coded = coded_value_and_grad(loss, plan)
    starts = start_ups
    if start_ups is None:
        starts = scheme.start_up
    draw = draws_of(cycle_times, starts, plan.num_workers, scheme.load.dtype)

    def some_of(key: Array, subset: PyTree) -> PyTree:
        chosen = jax.random.permutation(key, num_samples(subset))[:batch_size]
        return jax.tree.map(lambda x: x[chosen], subset)

    def step(
        carry: tuple[Any, Array], number_and_key: tuple[Array, Array]
    ) -> tuple[Any, Any]:
        state, late = carry
        params, opt_state = state
        index, step_key = number_and_key
        time_key, batch_key = jax.random.split(step_key)
        starts, times = draw(index, time_key)
        batch = subsets
        if batch_size is not None:
            batch = jax.vmap(some_of)(
                jax.random.split(batch_key, plan.num_workers), subsets
            )
        fresh = scheme.messages(starts, times)[1]
        arrived, runtime = scheme.messages(late + starts, times)
        if scheme.passes is not None:
            late = scheme.passes.of(unit).overrun(late, starts, times, runtime)
        value, gradient, decodable = coded(params, batch, arrived, key, index)
        good = jnp.all(decodable) & jnp.isfinite(runtime)
        updates, new_state = optimizer.update(gradient, opt_state, params)
        new = (optax.apply_updates(params, updates), new_state)
        new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
        return (new, late), (runtime, fresh, value, good, evaluate(new[0]))

    steps = (jnp.arange(num_steps), jax.random.split(key, num_steps))
    begin = (
        (params, optimizer.init(params)),
        jnp.zeros(plan.num_workers, scheme.load.dtype),
    )
    (end, _), (runtimes, fresh, value, good, metrics) = jax.lax.scan(step, begin, steps)
    # XLA sums by halves: in float32 many iterations, one after the other, would fall
    # behind.
    params, opt_state = end
    return SimulatedTraining(
        params=params,
        opt_state=opt_state,
        clock=jnp.cumsum(runtimes),
        fresh=fresh,
        loss=value,
        stepped=good,
        metrics=metrics,
    )


def _in_any_order(key: Array, times: Array) -> Array:
    return jax.random.permutation(jax.random.fold_in(key, 1), times)


def draws_of(
    cycle_times: Distribution | JointDistribution | ArrayLike,
    start_ups: ArrayLike | None,
    num_workers: int,
    dtype: Any = float,
) -> Callable[[Any, Array], tuple[Any, Any]]:
    """(iteration, key) to start-ups (or 0) and cycle times, `[N]`: draws, or rows."""

    def source(name: str, times: Any) -> Callable[[Any, Array], Any]:
        # Empirical rows are sorted: which worker is which is not known.
        if isinstance(times, EmpiricalRows):
            return lambda _, key: _in_any_order(
                key, times.sample(key, (num_workers,), dtype)
            )
        if isinstance(times, Distribution | JointDistribution):
            return lambda _, key: times.sample(key, (num_workers,), dtype)
        if times.ndim != 2 or times.shape[1] != num_workers or not len(times):
            raise ValueError(
                f"measured {name} must have shape [steps, {num_workers}], got "
                f"{times.shape}"
            )
        return lambda index, _: times[index % len(times)].astype(dtype)

    next_times = source("cycle_times", cycle_times)
    start = 0.0 if start_ups is None else start_ups
    next_starts = source("start_ups", start) if np.ndim(start) else lambda *_: start

    def draw(index: Any, key: Array) -> tuple[Any, Any]:
        return next_starts(index, key), next_times(index, key)

    return draw

r"""`Nested`: nested groups of replicas without a code, and optimal sizes of the blocks.

All workers of a group are replicas, which compute the same sum. Level k of the tree is
a set of groups π_k, from single workers to all workers, and each level refines the next
one. Block k is complete when one worker of each group of π_k has sent it. Workers
compute the blocks in this order, without requests. For `OneOfEach` of
`plans.completion`, P(τ ≤ t) is a product over the tree, so E τ is a single integral
with exact derivatives.

If groups have different sizes, the data can be assigned in two ways:

- "equal": Each of the m groups of a level has 1/m of the data. All workers have the
  same load, and E τ is convex and homogeneous. So the certificate of the paper's scheme
  holds: f(z) ≥ ∇f(x)·z ≥ L min_k ∂f/∂x_k for all z ≥ 0 with Σ z = L.
- "by_size": A group of g workers has g of the N subsets. Workers of larger groups have
  more load, and the optimum is local. If each worker had the load of the smallest group
  of its level, all blocks would be complete earlier. The certificate for these loads is
  therefore a lower bound.

Atoms make kinks, at which a local search stops. Convex problems with kinks are solved
by cutting planes.

Sources: Tandon et al. 2017 have replicas in groups (fractional repetition), and
Ozfatura, Gündüz & Ulukus 2019 clustered codes. Maßny et al. 2022 nest codes of several
levels. The new part is one level for each block, with groups of any size, optimised for
the exact expected runtime.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._derivatives import with_slopes, without_derivative
from bcgc_jax._pytree import (
    concrete,
    is_traced,
    pytree_dataclass,
    replace,
    static_field,
)
from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.completion import OneOfEach
from bcgc_jax.plans.evaluate import NUM_NODES
from bcgc_jax.plans.groups import (
    Groups,
    Tree,
    check_groups,
    halves,
    halving,
    kinds_by_size,
    tree_of,
)
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.loads import problem_tasks
from bcgc_jax.plans.plan import Plan
from bcgc_jax.plans.runtime import (
    completion_probability,
    integrate_runtime,
    lower_bound_of,
)
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import Solution, solution_of_value
from bcgc_jax.solvers.deadline import resolved
from bcgc_jax.solvers.descent import MAX_STEPS, quasi_newton_descent
from bcgc_jax.solvers.method import SETUP, Numbered
from bcgc_jax.solvers.optimal import least_gap
from bcgc_jax.solvers.optimum import TOLERANCE
from bcgc_jax.solvers.pattern import moves, pattern_search, without_least
from bcgc_jax.solvers.polyhedral import cutting_plane
from bcgc_jax.solvers.search import Optimum, choose, local_optimum, status_of

# Relative optimality gap of a convex runtime at which the search ends, by bytes of the
# dtype. In float32, derivatives have errors of about 1e-5, and half the gap takes up to
# a fifth more evaluations. The search for a lower bound always uses the larger gap,
# because the bound is a few per cent below the optimum.
_TOLERANCE = {8: TOLERANCE, 4: 1e-4}
# At kinks, the search ends when this number of evaluations improves the value by at
# most the tolerance. All of 52 problems with atoms end in this way. Four of them are
# 3e-7 to 1.5e-5 above the result of 300 evaluations. With 20, 16 problems are more than
# 1e-7 above it; with 80, one. Which problems these are depends on rounding.
_PATIENCE = 40
# Rounds of the pattern search before BFGS starts. After one round, BFGS may not end.
# Four rounds improved none of 52 deadlines.
_ROUNDS = 2


@pytree_dataclass
class Nested(Numbered):
    r"""Replicate work in nested groups of workers, without a code.

    minimise E max_k max_{g ∈ π_k} min_{w ∈ g} T_w κ Σ_{i≤k} d_wi z_i over z ≥ 0 with
    Σ z = L. Block k has size z_k and groups π_k. The group of worker w has d_wi data
    subsets for block i.

    Args:
      max_subsets: Maximum number of the N data subsets that a worker stores. Defaults
        to all.
      data: How groups of different sizes share the data, "by_size" or "equal". Defaults
        to "by_size", which is faster. Only "equal" has a certificate.
      tree: Groups of each level, from the finest to the coarsest. By default, the
        workers are halved repeatedly.
      deadline: Deadline, in the unit of the runtime. If given, P(τ ≤ deadline) is
        maximised instead. The result is the best local maximum of a search from many
        points, without a bound. If no point is ever in time, the status is STEP_LIMIT.

    All arguments except `deadline` must be static. `Solution.kind` is "exact" for equal
    data without a deadline, otherwise "local". The lower bound is for the same groups.

    Raises:
      ValueError: If an argument is out of range. `solve` raises it if workers are not
        i.i.d., or if `tree` is invalid. It also raises it if the number of workers is
        traced, and `tree` or `deadline` is given.

    >>> from bcgc_jax import ShiftedExponential, solve
    >>> problem = Problem(
    ...     ShiftedExponential(1e-3, 50.0), num_workers=3, num_coordinates=2_000
    ... )
    >>> solve(problem, Nested()).plan.completion.groups
    (((0,), (1,), (2,)), ((0,), (1, 2)), ((0, 1, 2),))
    """

    max_subsets: int | None = static_field(default=None)
    data: str = static_field(default="by_size")
    tree: Groups | None = static_field(default=None)
    deadline: ArrayLike | None = None

    conditions = (("deadline", "> 0"),)
    counts = (("max_subsets", 1),)
    word = "nested"
    what = "a number of stored subsets"
    is_partition = False
    hint = 'use data="by_size"'

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data not in ("by_size", "equal"):
            raise ValueError(f'`data` must be "by_size" or "equal", got {self.data!r}')

    @property
    def fixed_workers(self) -> bool:  # type: ignore[override]
        """Whether N must be known; halving works for a traced N, too."""
        return self.tree is not None or self.deadline is not None

    @property
    def refuses(self) -> Sequence[str]:  # type: ignore[override]
        """List setup and chain cycles for equal data, because subsets then overlap."""
        if self.data == "equal":
            return SETUP
        return ()

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if not iteration_of(problem).alike:
            raise ValueError(
                f'method="{self.name}" requires i.i.d. workers. Pass one distribution '
                "for all workers, for example the distribution of all their times."
            )

    def needs_mean(self, problem: Problem) -> bool:
        return self.deadline is None

    def groups(self, num_workers: int) -> Groups:
        """Return the levels of the tree whose groups have at most `max_subsets`."""
        levels = self.tree or halving(num_workers)
        largest_group = self.max_subsets or num_workers
        check_groups(levels, num_workers)
        small = tuple(
            level for level in levels if max(map(len, level)) <= largest_group
        )
        if not small:
            raise ValueError(
                f"no level of `tree` has groups of at most {largest_group} workers. "
                "Increase `max_subsets`, or add a finer level."
            )
        return small

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        workers = concrete(problem.num_workers)
        if self.fixed_workers or workers == problem.max_workers:
            groups = self.groups(int(workers))  # type: ignore[arg-type]
            kinds, sizes = kinds_by_size(groups)
            tree = tree_of(groups, kinds)
            levels = np.ones(len(groups), bool)
        else:
            tree, sizes = halves(problem.num_workers, problem.max_workers)
            levels = self._levels(sizes)
        data = self._data(tree, sizes, problem.dtype)
        if self.data == "equal":
            tree = tree.of_one_kind
        rule = OneOfEach(tree=tree)
        solution, share = _optimum(problem, rule, data, levels)
        if self.deadline is not None:
            directions = moves(np.mean(data[0].reshape(-1, len(levels)), axis=0))
            solution = _most_probable(
                problem, rule, data[0], directions, self.deadline, share
            )
        if workers is not None:
            solution = replace(
                solution, plan=self._placed(solution.plan, int(workers), levels)
            )
        kind = "local"
        if self.data == "equal" and self.deadline is None:
            kind = "exact"
        return replace(solution, kind=kind)

    def _levels(self, sizes: Any) -> Any:
        """Return the levels of a padded tree that exist and are allowed, `[K]`."""
        xp = jnp if is_traced(sizes) else np
        largest = sizes.max(axis=0)
        small = True if self.max_subsets is None else largest <= self.max_subsets
        return xp.append(largest[1:] > 1, True) & small

    def _data(self, tree: Tree, sizes: Any, dtype: Any) -> Any:
        """Return the subsets per level of each kind of workers, and of the bound."""
        xp = jnp if is_traced(sizes) else np
        if self.data == "equal":
            return (tree.num_workers / tree.num_groups)[None].astype(dtype)
        least = xp.where(sizes > 0, sizes, tree.num_workers).min(axis=0)
        return xp.stack([sizes, xp.broadcast_to(least, sizes.shape)]).astype(dtype)

    def _placed(self, plan: Plan, workers: int, levels: np.ndarray) -> Plan:
        """Return the plan without padded levels, with the workers of its groups."""
        groups = self.groups(workers)
        kinds, sizes = kinds_by_size(groups)
        data = self._data(tree_of(groups, kinds), sizes, plan.sizes.dtype)[0]
        completion = OneOfEach(groups, kinds)
        if self.data == "equal":
            completion = OneOfEach(groups)
        # If the sizes are known, NumPy avoids a compilation for their shape.
        blocks = plan.sizes if is_traced(plan.sizes) else np.asarray(plan.sizes)
        return Plan(
            sizes=jax.device_put(blocks[levels]),
            block=np.arange(len(groups)),
            data=data,
            share=np.ones(len(groups), plan.sizes.dtype),
            completion=completion,
        )


@jax.jit
def _optimum(
    problem: Problem, rule: OneOfEach, data: Array, levels: Array
) -> tuple[Solution, Array]:
    """Return a solution with the optimal sizes for `data[0]`, and their shares of L.

    The lower bound is the optimum for the last entry of `data`.
    """
    still = jax.lax.stop_gradient(problem)
    equal = len(data) == 1
    with_kinks = iteration_of(problem).polyhedral
    if with_kinks and equal:
        best = of_bound = _cut(still, rule, levels, data[0])
    else:
        bound_too = not (equal or with_kinks)
        used, best, of_bound = _by_jobs(still, rule, data, levels, bound_too)
        if with_kinks:
            of_bound = _cut(still, rule, used, data[-1])
    best = without_derivative(best, problem)
    plan = _plan_of(problem, rule, best.point, data[0])
    runtime = Expectation(best.value, best.error)
    if not with_kinks:  # at a kink, each piece has its own derivative
        runtime = with_slopes(_expected, runtime, problem, best.point, rule, data[0])
    solution = _solution(problem, plan, best.status, best.num_steps, runtime)
    return replace(
        solution, lower_bound=lower_bound_of(of_bound.bound, best.value)
    ), best.point


class _Job(NamedTuple):
    """The arguments of one search over shares.

    Attributes:
      levels: Levels that may be used, bool `[K]`.
      data: Subsets of the workers by level.
      tolerance: Relative optimality gap.
      start: First shares, `[K]`.
      least: The search ends early when no shares can be better than this value.
    """

    levels: Array
    data: Array
    tolerance: Array
    start: Array
    least: ArrayLike = jnp.inf


class _Queue(NamedTuple):
    """The remaining jobs, one per round of a loop, and the best result so far.

    Attributes:
      around: The set of levels whose neighbours are `sets`, bool `[K]`.
      sets: Sets of levels, bool `[J, K]`.
      due: Whether each set is still to be searched, bool `[J]`.
      bound_is_due: Whether the job of the lower bound is next, after all sets.
      used: The best set so far, bool `[K]`.
      best: The optimum of `used`; its value is NaN before the first job.
      latest: The optimum of the last job.
    """

    around: Array
    sets: Array
    due: Array
    bound_is_due: Array
    used: Array
    best: Optimum
    latest: Optimum


def _by_jobs(
    problem: Problem, rule: OneOfEach, data: Array, levels: Array, bound_too: bool
) -> tuple[Array, Optimum, Optimum]:
    """Return the levels of the bound, the best shares, and the bound if `bound_too`.

    One program runs all jobs. Without setup cycles, there is one job for all levels,
    and then the job of the bound. With setup cycles, each level in use has a cost, so
    there are three stages:

    1. Search each single level, and the set of all levels.
    2. Search each set that has one level more or less than the best set. Repeat this
       until it does not improve.
    3. If `bound_too`, search the optimum for the last data, which is the bound. It uses
       the levels in use.
    """
    levels = jnp.asarray(levels)

    def run(queue: _Queue) -> _Queue:
        number = jnp.argmax(queue.due)
        set_job = _set_job(problem, data[0], queue, number)
        bound_job = _bound_job(data[-1], queue)
        job = choose(queue.bound_is_due, bound_job, set_job)
        optimum = _search(problem, rule, job)
        queue = _with_optimum(queue, number, job, optimum)
        return _next_stage(problem, levels, bound_too, queue)

    start = jnp.ones(levels.size, problem.dtype)
    unsolved = local_optimum(start, jnp.asarray(jnp.nan, problem.dtype), False, 0)
    sets, due = _sets(problem, levels, levels, first=True)
    begin = _Queue(levels, sets, due, jnp.asarray(False), levels, unsolved, unsolved)
    end = jax.lax.while_loop(lambda q: jnp.any(q.due) | q.bound_is_due, run, begin)
    used = levels
    if problem.has_setup:
        used = end.used
    return used, end.best, end.latest if bound_too else end.best


def _set_job(problem: Problem, data: Array, queue: _Queue, number: Array) -> _Job:
    """Return the job that searches the set of this number, from equal shares.

    The search ends early if its derivatives show that it cannot improve the best value.
    This is exact if the groups of each level have equal sizes, because E τ is then
    convex. With "by_size", none of 1,040 problems lost anything.
    """
    best = queue.best.value
    no_limit = jnp.isnan(best)
    return _Job(
        levels=queue.sets[number],
        data=data,
        tolerance=jnp.asarray(_TOLERANCE[problem.dtype.itemsize], problem.dtype),
        start=jnp.ones_like(queue.best.point),
        least=jnp.where(no_limit, jnp.inf, best),
    )


def _bound_job(data: Array, queue: _Queue) -> _Job:
    """Return the job of the lower bound, which starts from the best shares."""
    start = queue.best.point
    tolerance = jnp.asarray(_TOLERANCE[4], start.dtype)
    endless = jnp.asarray(jnp.inf, start.dtype)
    return _Job(queue.used, data, tolerance, start, endless)


def _with_optimum(queue: _Queue, number: Array, job: _Job, optimum: Optimum) -> _Queue:
    """Return the queue after a job, whose optimum may be the best so far."""
    # Every value is better than NaN, so the first job always counts.
    lower = (optimum.value < queue.best.value) | jnp.isnan(queue.best.value)
    better = ~queue.bound_is_due & lower
    used, best = choose(better, (job.levels, optimum), (queue.used, queue.best))
    due = queue.due & (np.arange(queue.due.size) != number)
    return queue._replace(due=due, used=used, best=best, latest=optimum)


def _next_stage(
    problem: Problem, levels: Array, bound_too: bool, queue: _Queue
) -> _Queue:
    """Return the queue with the next stage, if all sets have been searched.

    The next stage is the neighbours of a better set, otherwise the bound.
    """
    ended = ~queue.bound_is_due & ~jnp.any(queue.due)
    improved = jnp.any(queue.used != queue.around) & ~jnp.isnan(queue.best.value)
    neighbours = (queue.used, *_sets(problem, queue.used, levels))
    unchanged = queue.around, queue.sets, queue.due
    around, sets, due = choose(ended & improved, neighbours, unchanged)
    bound_is_due = ended & ~improved & bound_too
    return queue._replace(around=around, sets=sets, due=due, bound_is_due=bound_is_due)


def _sets(
    problem: Problem, around: Array, levels: Array, first: bool = False
) -> tuple[Array, Array]:
    """Return sets of levels, `[J, K]`, and whether each is due, `[J]`.

    At `first`, single levels and `around` are due, otherwise neighbours of `around`.
    """
    if not problem.has_setup:
        return around[None], jnp.full(1, first)
    alone = np.eye(around.size, dtype=bool)
    sets = jnp.concatenate([alone & levels, around[None], (around ^ alone) & levels])
    place = np.arange(len(sets))
    differs = jnp.any(sets != around, axis=1)
    # A search over a single level is quick.
    if first:
        due = differs | (place == len(alone))
    else:
        due = differs & (place > len(alone))
    return sets, due & jnp.any(sets, axis=1)


def _search(problem: Problem, rule: OneOfEach, job: _Job) -> Optimum:
    """Search the best shares of a job, with E τ, its error and a bound."""
    with_kinks = iteration_of(problem).polyhedral
    patience = MAX_STEPS
    if with_kinks:
        patience = _PATIENCE
    optimum = quasi_newton_descent(
        functools.partial(_runtime, problem, rule, job.levels, job.data),
        job.levels,
        job.start,
        tolerance=job.tolerance,
        least=job.least,
        patience=patience,
    )
    slope, residual, error = optimum.aux.slope, optimum.aux.residual, optimum.aux.aux
    bound = jnp.min(jnp.where(job.levels, slope, jnp.inf)) - error
    if not problem.bare:  # otherwise, this is 0 up to rounding
        bound = bound + optimum.value - jnp.sum(slope * optimum.point)
    # At a kink, the derivative does not show that the search has converged.
    status = optimum.status
    if not with_kinks:
        status = status_of(residual <= _enough(problem))
    return optimum._replace(error=error, bound=bound, status=status, aux=None)


def _enough(problem: Problem) -> float:
    """Return the optimality gap of a converged search."""
    return max(_TOLERANCE[problem.dtype.itemsize], least_gap(problem))


def _cut(problem: Problem, rule: OneOfEach, used: Array, data: Array) -> Optimum:
    """Minimise a convex E τ with kinks by cutting planes, with a bound."""

    def evaluate(share: Array) -> tuple[Array, Array]:
        """Return value and derivative of E τ · Σ share, which is homogeneous."""
        of_share = functools.partial(_runtime, problem, rule, used, data)
        (value, _), slope = jax.value_and_grad(of_share, has_aux=True)(share)
        return value, slope + (value - jnp.sum(slope * share))

    start = used / jnp.sum(used).astype(problem.dtype)
    tolerance = jnp.asarray(least_gap(problem), problem.dtype)
    return cutting_plane(evaluate, start, used, tolerance)._replace(aux=None)


def _runtime(
    problem: Problem, rule: OneOfEach, used: Array, data: Array, share: Array
) -> tuple[Array, Array]:
    """Compute E τ and its error."""
    # An allowed level pays for setup even if its share is 0, because otherwise the
    # runtime would jump where a share becomes 0.
    paid = jnp.finfo(problem.dtype).tiny * (problem.setup_load + problem.chain_load > 0)
    # In float32, 96 nodes are enough for several kinds of workers. The largest error of
    # 27 runtimes was 7e-8.
    nodes = NUM_NODES
    if problem.dtype.itemsize == 4 and np.size(data) > np.size(share):
        nodes = 96
    share = jnp.where(used, share + paid, 0)
    return integrate_runtime(
        problem, _plan_of(problem, rule, share, data), num_nodes=nodes
    )


@jax.jit
def _most_probable(
    problem: Problem,
    rule: OneOfEach,
    data: Array,
    directions: Array,
    deadline: ArrayLike,
    start: Array,
) -> Solution:
    """Maximise P(τ ≤ deadline) by a pattern search from many points and `start`.

    If P is differentiable, BFGS continues from the best point.
    """
    of = (problem, deadline)
    precision = jnp.finfo(start.dtype)
    still, deadline, start = jax.lax.stop_gradient((problem, deadline, start))
    iteration = iteration_of(still)

    def late(share: Array) -> Array:
        load, _, scale = problem_tasks(still, _plan_of(still, rule, share, data))
        return iteration.exceedance(
            load, jnp.asarray(deadline, share.dtype) / scale, rule
        )

    def odds(share: Array) -> tuple[Array, None]:
        chance = jnp.clip(late(share), precision.tiny, 1 - precision.epsneg)
        return chance / (1 - chance), None

    rounds = _ROUNDS
    if iteration.stepped:
        rounds = MAX_STEPS
    best = pattern_search(late, start, directions, max_steps=rounds)
    share = best.point
    steps = best.num_steps
    ended = best.status == int(Status.CONVERGED)
    if not iteration.stepped:
        if problem.has_setup:
            used = share > 0
        else:
            used = start >= 0
        tolerance = _TOLERANCE[start.dtype.itemsize]
        smooth = quasi_newton_descent(odds, used, share, tolerance=tolerance)
        least = smooth.value / (1 + smooth.value)
        # A level with a tiny share can still delay the step, so it is removed.
        share = without_least(late, smooth.point, (1 + tolerance) * least)
        steps = steps + smooth.num_steps
        missed = smooth.aux.residual
    share = without_derivative(share, of)
    plan = _plan_of(problem, rule, share, data)
    probability = with_slopes(_in_time, None, problem, share, rule, data, of[1])
    chance = jax.lax.stop_gradient(probability)
    if not iteration.stepped:
        # A derivative below the square root of the rounding error of log P promises a
        # gain below that error.
        flat = missed**2 * chance <= 8 * precision.eps
        ended = flat | (missed <= _enough(problem))
    status = status_of(ended & resolved(chance))
    solution = _solution(problem, plan, status, steps, integrate_runtime(problem, plan))
    return replace(solution, completion_probability=probability)


def _expected(
    problem: Problem, share: Array, rule: OneOfEach, data: Array
) -> Expectation:
    return integrate_runtime(problem, _plan_of(problem, rule, share, data))


def _in_time(
    problem: Problem, share: Array, rule: OneOfEach, data: Array, deadline: ArrayLike
) -> Array:
    return completion_probability(
        problem, _plan_of(problem, rule, share, data), deadline
    )


def _solution(
    problem: Problem, plan: Plan, status: Array, steps: Array, runtime: Expectation
) -> Solution:
    solution = solution_of_value(problem, runtime)
    converged = solution.status == int(Status.CONVERGED)
    status = jnp.where(converged, status, solution.status)
    return replace(solution, plan=plan, status=status, num_steps=steps)


def _plan_of(problem: Problem, rule: OneOfEach, share: Array, data: Array) -> Plan:
    level = np.arange(share.size)
    sizes = problem.total.astype(share.dtype) * share
    return Plan(
        sizes=sizes,
        block=level,
        data=data,
        share=np.ones(level.size, share.dtype),
        completion=rule,
    )

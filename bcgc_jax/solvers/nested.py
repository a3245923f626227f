r"""`Nested`: plain sums of nested groups of workers, with the best size of each block.

Workers are cut into groups, and all of a group compute the same sum. Block k is there
when one worker of each group of its partition π_k has sent it. Each partition refines
the next one, from singles to all workers, and all do the blocks in this order. Nobody
asks. `OneOfEach` of `plans.completion` has P(τ ≤ t) as a product over the tree of
groups, so E τ is one integral and its slope exact.

Groups of unlike sizes share the data in one of two ways. "equal": each of the m groups
of a level has 1/m of it. All workers have the same load, E τ is convex and homogeneous,
and the certificate of the paper's scheme holds: f(z) ≥ ∇f(x)·z ≥ L min_k ∂f/∂x_k for
all sizes z ≥ 0 with Σ z = L. "by_size": a group of g workers has g of the N subsets, so
workers of larger groups do more, and the optimum is local. If every worker had the
least group of its level, all would be there earlier: the certificate of these loads is
a bound. Atoms make kinks, at which the local search stops: what is
convex is then solved by cuts.

Repetition within groups is that of Tandon et al. 2017 (fractional repetition) and of
clustered codes (Ozfatura, Gündüz & Ulukus 2019); codes of several levels, nested, are
in Maßny et al. 2022. What is new here is a level of its own for each block, with groups
of any size, optimised for the exact expected runtime.
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

# The gap of a convex runtime at which the search ends, by the bytes of a number: in
# single precision slopes are known to some 1e-5. There half the gap takes up to a fifth
# more evaluations. A bound is searched with the wider one: it is some per cent below
# anyway.
_TOLERANCE = {8: TOLERANCE, 4: 1e-4}
# At kinks the search ends where so many evaluations bring no more than the tolerance.
# Of 52 problems with atoms all end so, four of them 3e-7 to 1.5e-5 above what 300
# evaluations bring; with 20 it is 16 above 1e-7, with 80 one. Which these are goes by
# rounding: with other flags of XLA they were others.
_PATIENCE = 40
# Rounds of a search without slopes, before one with slopes. After one alone the latter
# may not end, and four brought no more for any of 52 deadlines.
_ROUNDS = 2


@pytree_dataclass
class Nested(Numbered):
    r"""Blocks that are there with one worker of each of nested groups, without a code.

    minimise E max_k max_{g ∈ π_k} min_{w ∈ g} T_w κ Σ_{i≤k} d_wi z_i over the sizes z ≥
    0 of blocks, Σ z = L. π_k are the groups of block k, d_wi how many subsets of the
    data the group of worker w has for block i.

    Args:
      max_subsets: how many of the N subsets of the data a worker stores at most; all by
        default.
      data: "by_size" or "equal", how groups of unlike sizes share the data; the first
        is faster, and the second has a certificate.
      tree: the groups of each level, from the finest to the coarsest; by default
        workers are halved again and again.
      deadline: the plan that most probably ends by then, in the unit of runtimes, in
        place of the fastest: the best local maximum of P(τ ≤ deadline) that a search
        from many sizes finds, with no bound. STEP_LIMIT where no sizes that it tries
        are ever in time.

    `Solution.kind` is "exact" for equal data, else "local", with a lower bound for the
    same groups. Raises ValueError for workers that are not alike, for a tree that is
    none, and for a tree or a deadline where the number of workers is traced.

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
    hint = 'take data="by_size"'

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data not in ("by_size", "equal"):
            raise ValueError(f'data must be "by_size" or "equal", got {self.data!r}')

    @property
    def fixed_workers(self) -> bool:  # type: ignore[override]
        """Halves are those of any number of workers."""
        return self.tree is not None or self.deadline is not None

    @property
    def refuses(self) -> Sequence[str]:  # type: ignore[override]
        """Setup and chain, with equal data: subsets of two levels overlap in part."""
        if self.data == "equal":
            return SETUP
        return ()

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if not iteration_of(problem).alike:
            raise ValueError(
                f'method="{self.name}" is for independent workers that are alike: pool '
                "the times (on the command line, leave out --keep-workers)"
            )

    def needs_mean(self, problem: Problem) -> bool:
        return self.deadline is None

    def groups(self, num_workers: int) -> Groups:
        """Those levels of the tree whose groups store little enough."""
        levels = self.tree or halving(num_workers)
        largest_group = self.max_subsets or num_workers
        check_groups(levels, num_workers)
        small = tuple(
            level for level in levels if max(map(len, level)) <= largest_group
        )
        if not small:
            raise ValueError(
                f"no level of the tree has groups of at most {largest_group} workers"
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
        """The levels of a padded tree that exist and store little enough, `[K]`."""
        xp = jnp if is_traced(sizes) else np
        largest = sizes.max(axis=0)
        small = True if self.max_subsets is None else largest <= self.max_subsets
        return xp.append(largest[1:] > 1, True) & small

    def _data(self, tree: Tree, sizes: Any, dtype: Any) -> Any:
        """Subsets of each kind of workers by level, and those that the bound is for."""
        xp = jnp if is_traced(sizes) else np
        if self.data == "equal":
            return (tree.num_workers / tree.num_groups)[None].astype(dtype)
        least = xp.where(sizes > 0, sizes, tree.num_workers).min(axis=0)
        return xp.stack([sizes, xp.broadcast_to(least, sizes.shape)]).astype(dtype)

    def _placed(self, plan: Plan, workers: int, levels: np.ndarray) -> Plan:
        """The plan without levels that do not exist, and with its groups by worker."""
        groups = self.groups(workers)
        kinds, sizes = kinds_by_size(groups)
        data = self._data(tree_of(groups, kinds), sizes, plan.sizes.dtype)[0]
        completion = OneOfEach(groups, kinds)
        if self.data == "equal":
            completion = OneOfEach(groups)
        # NumPy compiles nothing for their shape, where they are known.
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
    """The best shares of the blocks for `data[0]`, as a solution with a bound, and as
    they are.

    The bound is the optimum for the last data.
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
    if not with_kinks:  # where pieces meet each has slopes of its own
        runtime = with_slopes(_expected, runtime, problem, best.point, rule, data[0])
    solution = _solution(problem, plan, best.status, best.num_steps, runtime)
    return replace(
        solution, lower_bound=lower_bound_of(of_bound.bound, best.value)
    ), best.point


class _Job(NamedTuple):
    """A search: over which levels, for which data, how closely, and from where.

    Once no shares can be better than `least` it ends.
    """

    levels: Array
    data: Array
    tolerance: Array
    start: Array
    least: ArrayLike = jnp.inf


class _Queue(NamedTuple):
    """The jobs that are left, one for each round of a loop, and the best so far.

    Attributes:
      around: the levels that the `sets` are neighbours of, `[K]`.
      sets: sets of levels, `[J, K]`.
      due: which of the sets are still to be searched, `[J]`.
      bound_is_due: whether the job for the bound is next, after all sets.
      used: the best set.
      best: its optimum, of value NaN before the first job.
      latest: the optimum of the last job.
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

    All jobs are one program. If a level costs by being there at all, as with setup,
    they come in three stages; otherwise there is one job, for all levels, before the
    bound's.

    1. Each level alone, and all of them.
    2. Each set that has a level more or less than the best one, as long as that helps.
    3. With `bound_too` the optimum for the last data, which is the bound; with setup
       over the levels in use.
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
    """The search over the set of this number, from equal shares.

    If its slopes show that it cannot get below the best one it ends early. That is sure
    where groups are of one size, for E τ is convex then. By size it is nearly so: of
    1,040 problems none lost anything.
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
    """The search over the best set, from its best shares."""
    start = queue.best.point
    tolerance = jnp.asarray(_TOLERANCE[4], start.dtype)
    endless = jnp.asarray(jnp.inf, start.dtype)
    return _Job(queue.used, data, tolerance, start, endless)


def _with_optimum(queue: _Queue, number: Array, job: _Job, optimum: Optimum) -> _Queue:
    """The queue after a job: a set's is done, and its optimum perhaps the best."""
    # Anything is better than NaN: else it would be the best in each round.
    lower = (optimum.value < queue.best.value) | jnp.isnan(queue.best.value)
    better = ~queue.bound_is_due & lower
    used, best = choose(better, (job.levels, optimum), (queue.used, queue.best))
    due = queue.due & (np.arange(queue.due.size) != number)
    return queue._replace(due=due, used=used, best=best, latest=optimum)


def _next_stage(
    problem: Problem, levels: Array, bound_too: bool, queue: _Queue
) -> _Queue:
    """The queue once sets have ended: neighbours of a better set, else the bound."""
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
    """Sets of levels, `[J, K]`, and if due: neighbours of `around`, at `first` all."""
    if not problem.has_setup:
        return around[None], jnp.full(1, first)
    alone = np.eye(around.size, dtype=bool)
    sets = jnp.concatenate([alone & levels, around[None], (around ^ alone) & levels])
    place = np.arange(len(sets))
    differs = jnp.any(sets != around, axis=1)
    # Each level alone is quick.
    if first:
        due = differs | (place == len(alone))
    else:
        due = differs & (place > len(alone))
    return sets, due & jnp.any(sets, axis=1)


def _search(problem: Problem, rule: OneOfEach, job: _Job) -> Optimum:
    """The best shares of the job's levels, with E τ and its error."""
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
    if not problem.bare:  # else 0, up to rounding
        bound = bound + optimum.value - jnp.sum(slope * optimum.point)
    # At a kink no slope says that the search has ended.
    status = optimum.status
    if not with_kinks:
        status = status_of(residual <= _enough(problem))
    return optimum._replace(error=error, bound=bound, status=status, aux=None)


def _enough(problem: Problem) -> float:
    """The gap of a search that has converged."""
    return max(_TOLERANCE[problem.dtype.itemsize], least_gap(problem))


def _cut(problem: Problem, rule: OneOfEach, used: Array, data: Array) -> Optimum:
    """The best shares by cuts, with a bound, where E τ is convex and has kinks."""

    def evaluate(share: Array) -> tuple[Array, Array]:
        """Value and slope of E τ Σ share, which is homogeneous."""
        of_share = functools.partial(_runtime, problem, rule, used, data)
        (value, _), slope = jax.value_and_grad(of_share, has_aux=True)(share)
        return value, slope + (value - jnp.sum(slope * share))

    start = used / jnp.sum(used).astype(problem.dtype)
    tolerance = jnp.asarray(least_gap(problem), problem.dtype)
    return cutting_plane(evaluate, start, used, tolerance)._replace(aux=None)


def _runtime(
    problem: Problem, rule: OneOfEach, used: Array, data: Array, share: Array
) -> tuple[Array, Array]:
    """E τ and its error."""
    # A level in use is paid for, however small it is: else values would jump where it
    # ends.
    paid = jnp.finfo(problem.dtype).tiny * (problem.setup_load + problem.chain_load > 0)
    # For workers of several kinds 96 are enough in single precision: the worst of 27
    # runtimes was 7e-8 off.
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
    """Return the shares that are most probably in time, by a search from many points
    and `start`.

    Where P has slopes, BFGS goes on from the best point.
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
        # A level that is hardly there is waited for, perhaps for ever.
        share = without_least(late, smooth.point, (1 + tolerance) * least)
        steps = steps + smooth.num_steps
        missed = smooth.aux.residual
    share = without_derivative(share, of)
    plan = _plan_of(problem, rule, share, data)
    probability = with_slopes(_in_time, None, problem, share, rule, data, of[1])
    chance = jax.lax.stop_gradient(probability)
    if not iteration.stepped:
        # A slope of less than the root of the rounding of log P promises less than that
        # rounding.
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

r"""`Nested`: plain sums of nested groups of workers, with the best size of each block.

Workers are cut into groups, and all of a group compute the same sum. Block k is there when one
worker of each group of its partition π_k has sent it. Each partition refines the next one, from
singles to all workers, and all do the blocks in this order. Nobody asks. `OneOfEach` of
`plans.completion` has P(τ ≤ t) as a product over the tree of groups, so E τ is one integral and its
slope exact.

Groups of unlike sizes share the data in one of two ways. "equal": each of the m groups of a level
has 1/m of it. All workers have the same load, E τ is convex and homogeneous, and the certificate of
the paper's scheme holds: f(z) ≥ ∇f(x)·z ≥ L min_k ∂f/∂x_k for all sizes z ≥ 0 with Σ z = L.
"by_size": a group of g workers has g of the N subsets, so workers of larger groups do more, and the
optimum is local. If every worker had the least group of its level, all would be there earlier: the
certificate of these loads is a bound. With random start-ups E τ is not convex, and the bound is
that of workers which all begin with the first. Atoms make kinks, at which the local search stops:
what is convex is then solved by cuts.

Repetition within groups is that of Tandon et al. 2017 (fractional repetition) and of clustered
codes (Ozfatura, Gündüz & Ulukus 2019); codes of several levels, nested, are in Maßny et al. 2022.
What is new here is a level of its own for each block, with groups of any size, optimised for the
exact expected runtime.
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
from bcgc_jax._pytree import concrete, is_traced, pytree_dataclass, replace, static_field
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
    with_least_start_up,
)
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import Solution, solution_of_value
from bcgc_jax.solvers.deadline import resolved
from bcgc_jax.solvers.method import SETUP, Numbered
from bcgc_jax.solvers.optimal import least_gap
from bcgc_jax.solvers.pattern import moves, pattern_search, without_least
from bcgc_jax.solvers.polyhedral import cutting_plane
from bcgc_jax.solvers.quasi_newton import minimise_shares
from bcgc_jax.solvers.spectral import MAX_STEPS, Minimum

# The gap of a convex runtime at which the search ends, by the bytes of a number: in single
# precision slopes are known to some 1e-5.
_TOLERANCE = {8: 1e-7, 4: 1e-4}
# The same for a bound by size, which is some per cent below anyway.
_OF_BOUND = 2e-4
# At kinks the search ends where so many evaluations bring no more than the tolerance. Of twelve
# problems with atoms eleven end so, at most 7e-8 above what 300 evaluations bring.
_PATIENCE = 40
# Rounds of a search without slopes, before one with slopes.
_ROUNDS = 4
# What a round of the search over sets of levels is for: all kinds of them, neighbours of the best
# one, or the bound.
_FIRST, _MORE, _BOUND, _DONE = range(4)


@pytree_dataclass
class Nested(Numbered):
    r"""Blocks that are there with one worker of each of nested groups, without a code.

    minimise E max_k max_{g ∈ π_k} min_{w ∈ g} T_w κ Σ_{i≤k} d_wi z_i over the sizes z ≥ 0 of
    blocks, Σ z = L. π_k are the groups of block k, d_wi how many subsets of the data the group of
    worker w has for block i.

    Args:
      max_subsets: how many of the N subsets of the data a worker stores at most; all by default.
      data: "by_size" or "equal", how groups of unlike sizes share the data; the first is faster,
        and the second has a certificate.
      tree: the groups of each level, from the finest to the coarsest; by default workers are halved
        again and again.
      deadline: the plan that most probably ends by then, in the unit of runtimes, in place of the
        fastest: the best local maximum of P(τ ≤ deadline) that a search from many sizes finds, with
        no bound. STEP_LIMIT where no sizes that it tries are ever in time.

    `Solution.kind` is "exact" for equal data, else "local", with a lower bound for the same groups.
    Raises ValueError for workers that are not alike, for a tree that is none, and for a tree or a
    deadline where the number of workers is traced.

    >>> from bcgc_jax import ShiftedExponential, solve
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=3, num_coordinates=2_000)
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
    instead = 'take data="by_size"'

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
        return SETUP if self.data == "equal" else ()

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if not iteration_of(problem).alike:
            raise ValueError(
                f'method="{self.name}" is for independent workers that are alike: pool the times '
                "(on the command line, leave out --keep-workers)"
            )

    def needs_mean(self, problem: Problem) -> bool:
        return self.deadline is None

    def groups(self, num_workers: int) -> Groups:
        """Those levels of the tree whose groups store little enough."""
        levels = self.tree or halving(num_workers)
        most = self.max_subsets or num_workers
        check_groups(levels, num_workers)
        small = tuple(level for level in levels if max(map(len, level)) <= most)
        if not small:
            raise ValueError(f"no level of the tree has groups of at most {most} workers")
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
        rule = OneOfEach(tree=tree.of_one_kind if self.data == "equal" else tree)
        solution, share = _optimum(problem, rule, data, levels)
        if self.deadline is not None:
            directions = moves(np.mean(data[0].reshape(-1, len(levels)), axis=0))
            solution = _most_probable(problem, rule, data[0], directions, self.deadline, share)
        if workers is not None:
            solution = replace(solution, plan=self._placed(solution.plan, int(workers), levels))
        certified = self.data == "equal" and problem.convex and self.deadline is None
        return replace(solution, kind="exact" if certified else "local")

    def _levels(self, sizes: Any) -> Any:
        """Whether there is each level of a padded tree, and it stores little enough, `[K]`."""
        xp = jnp if is_traced(sizes) else np
        largest = sizes.max(axis=0)
        few = True if self.max_subsets is None else largest <= self.max_subsets
        return xp.append(largest[1:] > 1, True) & few

    def _data(self, tree: Tree, sizes: Any, dtype: Any) -> Any:
        """Subsets of each kind of workers at each level, and those of the bound, or of all."""
        xp = jnp if is_traced(sizes) else np
        if self.data == "equal":
            return (tree.num_workers / tree.num_groups)[None].astype(dtype)
        least = xp.where(sizes > 0, sizes, tree.num_workers).min(axis=0)
        return xp.stack([sizes, xp.broadcast_to(least, sizes.shape)]).astype(dtype)

    def _placed(self, plan: Plan, workers: int, levels: np.ndarray) -> Plan:
        """The same without the levels that there are not, and with who is in which group."""
        groups = self.groups(workers)
        kinds, sizes = kinds_by_size(groups)
        dtype = plan.sizes.dtype
        # NumPy compiles nothing for their shape, where they are known.
        blocks = plan.sizes if is_traced(plan.sizes) else np.asarray(plan.sizes)
        return Plan(
            sizes=jax.device_put(blocks[levels]),
            block=np.arange(len(groups)),
            data=self._data(tree_of(groups, kinds), sizes, dtype)[0],
            share=np.ones(len(groups), dtype),
            completion=OneOfEach(groups, None if self.data == "equal" else kinds),
        )


@jax.jit
def _optimum(
    problem: Problem, rule: OneOfEach, data: Array, levels: Array
) -> tuple[Solution, Array]:
    """The best shares of the blocks for `data[0]`, as a solution with a bound, and as they are.

    The bound is the optimum for the last data; with random start-ups, if all began with the first.
    """
    still = jax.lax.stop_gradient(problem)
    equal = len(data) == 1
    with_kinks = iteration_of(problem).polyhedral
    if with_kinks and equal:
        used = levels
        best = bound = _cut(still, rule, used, data[0])
    else:
        bound_too = problem.convex and not (equal or with_kinks)
        used, best, bound = _local(still, rule, data, levels, bound_too)
        if with_kinks:
            bound = _cut(still, rule, used, data[-1])
        elif not problem.convex:
            bound = _search(with_least_start_up(still), rule, used, data[-1], _OF_BOUND, best.point)
    lower = jnp.min(jnp.where(used, bound.slope, jnp.inf)) - bound.aux
    if not (problem.bare or with_kinks):  # else 0, up to rounding
        lower = lower + bound.value - jnp.sum(bound.slope * bound.point)
    best = without_derivative(best, problem)
    plan = _plan_of(problem, rule, best.point, data[0])
    runtime = Expectation(best.value, best.aux)
    if not with_kinks:  # where pieces meet each has slopes of its own
        runtime = with_slopes(_expected, runtime, problem, best.point, rule, data[0])
    solution = _solution(problem, plan, best.residual, best.num_steps, runtime)
    return replace(solution, lower_bound=lower_bound_of(lower, best.value)), best.point


class _Local(NamedTuple):
    """A search over sets of levels: the best one so far, its shares, and those of the last search.

    `stage` says what the next round is for.
    """

    used: Array
    best: Minimum
    latest: Minimum
    stage: Array


def _local(
    problem: Problem, rule: OneOfEach, data: Array, levels: Array, bound_too: bool
) -> tuple[Array, Minimum, Minimum]:
    """Return the levels that a bound is for, the best shares, and with `bound_too` their bound.

    The bound is the optimum for the last data.

    Where a level costs by being there at all, setup or the start-ups of those that it waits for: a
    search of its own for each level alone, and for each set of levels that has one more or less, as
    long as that helps. With setup a bound is for the levels in use.
    """
    dtype = problem.dtype
    size = data.shape[-1]

    def round_(s: _Local) -> _Local:
        last = s.stage == _BOUND
        sets = s.used[None]
        wanted = (s.stage != _MORE)[None]
        if _by_levels(problem):
            sets, wanted = _sets(s, levels)
        wanted_first = jnp.argsort(~wanted)

        def try_(i: Array, s: _Local) -> _Local:
            used = sets[wanted_first[i]]
            unknown = last | jnp.isnan(s.best.value)
            latest = _search(
                problem,
                rule,
                used,
                jnp.where(last, data[-1], data[0]),
                jnp.where(last, _OF_BOUND, _TOLERANCE[dtype.itemsize]).astype(dtype),
                jnp.where(last, s.best.point, 1),
                # Sets that by their slopes cannot get below the best one are searched no further.
                # That is sure where groups are of one size, for E τ is convex then. By size it is
                # nearly so: of 1,040 problems none lost anything.
                jnp.where(unknown | (not problem.convex), jnp.inf, s.best.value),
            )
            # Anything is better than NaN: else it would be the best in each round.
            better = ~last & ((latest.value < s.best.value) | jnp.isnan(s.best.value))
            new = s._replace(used=used, best=latest)
            s = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, s)
            return s._replace(latest=latest)

        new = jax.lax.fori_loop(0, jnp.sum(wanted), try_, s)
        improved = jnp.any(new.used ^ s.used) & ~jnp.isnan(new.best.value)
        ended = jnp.where(last | (not bound_too), _DONE, _BOUND)
        return new._replace(stage=jnp.where(improved, _MORE, ended))

    none = jnp.asarray(jnp.nan, dtype)
    start = jnp.ones(size, dtype)
    nothing = Minimum(
        point=start,
        value=none,
        slope=start,
        residual=none,
        num_steps=jnp.asarray(0),
        aux=none,
    )
    first = _Local(jnp.asarray(levels), nothing, nothing, jnp.asarray(_FIRST))
    end = jax.lax.while_loop(lambda s: s.stage != _DONE, round_, first)
    return end.used if problem.has_setup else jnp.asarray(levels), end.best, end.latest


def _sets(s: _Local, levels: Array) -> tuple[Array, Array]:
    """Sets of levels, `[S, K]`, and which of them the round tries; each level alone is quick."""
    one = np.eye(s.used.size, dtype=bool)
    others = (s.used ^ one) & levels
    sets = jnp.concatenate([one & levels, s.used[None], others])
    rounds = (s.stage == _FIRST, s.stage != _MORE, s.stage != _BOUND)
    due = jnp.repeat(jnp.stack(rounds), np.array([len(one), 1, len(one)]))
    changed = jnp.any(sets != s.used, axis=1) | (np.arange(len(sets)) == len(one))
    return sets, due & changed & jnp.any(sets, axis=1)


def _by_levels(problem: Problem) -> bool:
    """Whether a level costs by being there at all."""
    return problem.has_setup or not problem.convex


def _search(
    problem: Problem,
    rule: OneOfEach,
    used: Array,
    data: Array,
    tolerance: ArrayLike,
    start: Array,
    least: ArrayLike = jnp.inf,
) -> Minimum:
    """The best shares of the levels that are used, with E τ, its slope and its error."""
    runtime = functools.partial(_runtime, problem, rule, used, data)
    with_kinks = iteration_of(problem).polyhedral
    patience = _PATIENCE if with_kinks else MAX_STEPS
    found = minimise_shares(
        runtime, used, start, tolerance=tolerance, least=least, patience=patience
    )
    if not with_kinks:
        return found
    # At a kink no slope says that the search has ended.
    ended = found.num_steps < MAX_STEPS
    return found._replace(residual=jnp.where(ended, 0, found.residual))


def _cut(problem: Problem, rule: OneOfEach, used: Array, data: Array) -> Minimum:
    """Do the same for atoms, where E τ is convex and has kinks, by cuts and with their bound."""

    def evaluate(share: Array) -> tuple[Array, Array]:
        """Value and slope of E τ Σ share, which is homogeneous whatever a level costs itself."""
        of_share = functools.partial(_runtime, problem, rule, used, data)
        (value, _), slope = jax.value_and_grad(of_share, has_aux=True)(share)
        return value, slope + (value - jnp.sum(slope * share))

    start = used / jnp.sum(used).astype(problem.dtype)
    tolerance = jnp.asarray(least_gap(problem), problem.dtype)
    share, value, lower, steps, _ = cutting_plane(evaluate, start, used, tolerance)
    return Minimum(
        point=share,
        value=value,
        slope=lower + 0 * share,
        residual=1 - lower / value,
        num_steps=steps,
        aux=0 * value,
    )


def _runtime(
    problem: Problem, rule: OneOfEach, used: Array, data: Array, share: Array
) -> tuple[Array, Array]:
    """E τ and its error."""
    # A level in use is paid for, however small it is: else values would jump where it ends.
    paid = jnp.finfo(problem.dtype).tiny * (problem.setup_load + problem.chain_load > 0)
    # For workers of several kinds 96 are enough in single precision: the worst of 27 runtimes was
    # 7e-8 off.
    nodes = 96 if problem.dtype.itemsize == 4 and np.size(data) > np.size(share) else NUM_NODES
    share = jnp.where(used, share + paid, 0)
    return integrate_runtime(problem, _plan_of(problem, rule, share, data), num_nodes=nodes)


@jax.jit
def _most_probable(
    problem: Problem,
    rule: OneOfEach,
    data: Array,
    directions: Array,
    deadline: ArrayLike,
    start: Array,
) -> Solution:
    """Return the shares that are most probably in time, by a search from many points and `start`.

    Where P has slopes, BFGS goes on from the best point.
    """
    of = (problem, deadline)
    precision = jnp.finfo(start.dtype)
    still, deadline, start = jax.lax.stop_gradient((problem, deadline, start))
    iteration = iteration_of(still)

    def late(share: Array) -> Array:
        load, _, scale = problem_tasks(still, _plan_of(still, rule, share, data))
        return iteration.exceedance(load, jnp.asarray(deadline, share.dtype) / scale, rule)

    def odds(share: Array) -> tuple[Array, None]:
        chance = jnp.clip(late(share), precision.tiny, 1 - precision.epsneg)
        return chance / (1 - chance), None

    rounds = MAX_STEPS if iteration.stepped else _ROUNDS
    best = pattern_search(late, start, directions, max_steps=rounds)
    share = best.point
    steps = best.num_steps
    missed = jnp.where(best.ended, 0, jnp.inf)
    if not iteration.stepped:
        used = share > 0 if _by_levels(problem) else start >= 0
        tolerance = _TOLERANCE[start.dtype.itemsize]
        smooth = minimise_shares(odds, used, share, tolerance=tolerance)
        least = smooth.value / (1 + smooth.value)
        # A level that is hardly there is waited for, perhaps for ever.
        share = without_least(late, smooth.point, (1 + tolerance) * least)
        steps = steps + smooth.num_steps
        missed = smooth.residual
    share = without_derivative(share, of)
    plan = _plan_of(problem, rule, share, data)
    probability = with_slopes(_in_time, None, problem, share, rule, data, of[1])
    chance = jax.lax.stop_gradient(probability)
    # A slope of less than the root of the rounding of log P promises a gain below that rounding.
    missed = jnp.where(missed**2 * chance <= 8 * precision.eps, 0, missed)
    missed = jnp.where(resolved(chance), missed, jnp.inf)
    solution = _solution(problem, plan, missed, steps, integrate_runtime(problem, plan))
    return replace(solution, completion_probability=probability)


def _expected(problem: Problem, share: Array, rule: OneOfEach, data: Array) -> Expectation:
    return integrate_runtime(problem, _plan_of(problem, rule, share, data))


def _in_time(
    problem: Problem, share: Array, rule: OneOfEach, data: Array, deadline: ArrayLike
) -> Array:
    return completion_probability(problem, _plan_of(problem, rule, share, data), deadline)


def _solution(
    problem: Problem, plan: Plan, residual: Array, steps: Array, runtime: Expectation
) -> Solution:
    solution = solution_of_value(problem, runtime)
    tolerance = max(_TOLERANCE[problem.dtype.itemsize], least_gap(problem))
    loose = (solution.status == int(Status.CONVERGED)) & ~(residual <= tolerance)
    status = jnp.where(loose, int(Status.STEP_LIMIT), solution.status)
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

r"""`Nested`: plain sums of nested groups of workers, with the optimal size of each block; nobody is asked.

The paper's codes make up for any n late workers. Repetition needs less: cut the workers into groups, let all
workers of a group compute the same sum, and block k is there when one worker of each group of its partition
π_k has sent it. Each partition refines the next one, from singles to all workers, and all do the blocks in
this order. With S_k = P(a worker has not done block k by t), `plans.completion.OneOfEach` has P(τ ≤ t) as a
product over the tree of groups, so E τ is one integral and its slope exact.

Groups of unlike sizes share the data in one of two ways. "by_size": a group of g workers has g of the N
subsets, so workers of larger groups do more: E τ is a mean of maxima of minima, not convex, and the optimum
local. "equal": each of the m groups of a level has 1/m of the data. All workers have the same load, E τ is
convex and homogeneous as the paper's is, and so its certificate holds:

    f(z) ≥ ∇f(x)·z ≥ L min_k ∂f/∂x_k   for all sizes z ≥ 0 with Σ z = L.

By size, if every worker had the least group of its level, all would be there earlier: the certificate of
these loads, which are alike, is a bound, too. With random start-ups E τ is not convex, and the bound is that
of workers which all begin with the first, after E S_(1).

Repetition within groups is that of Tandon et al. 2017 (fractional repetition) and of clustered codes
(Ozfatura, Gündüz & Ulukus 2019); codes of several levels, nested, are in Maßny et al. 2022. What is new here
is a level of its own for each block, with groups of any size, optimised for the exact expected runtime.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import check_whole, concrete, pytree_dataclass, replace, static_field
from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.completion import OneOfEach
from bcgc_jax.plans.groups import Groups, check_groups, halving, kinds_by_size, sizes_of_kinds
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.partitions import project_on_levels
from bcgc_jax.plans.plan import Plan
from bcgc_jax.plans.runtime import (
    completion_probability,
    integrate_runtime,
    lower_bound_of,
    problem_tasks,
    with_least_start_up,
)
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import Solution, solution_of_value
from bcgc_jax.solvers.method import Numbered
from bcgc_jax.solvers.spectral import spectral_projected_gradient

# A projected step that moves no share by more ends the search; in single precision, where slopes are known to
# some 1e-5.
_TOLERANCE = {8: 1e-8, 4: 1e-4}
_MAX_STEPS = 300
# The search for a bound by size ends earlier: it is some per cent below the optimum anyway.
_OF_BOUND = 1e-4


@pytree_dataclass
class Nested(Numbered):
    r"""Blocks that are there with one worker of each of nested groups; no code, and nobody is asked.

    Minimises E max_k max_{g ∈ π_k} min_{w ∈ g} T_w κ y_wk over the sizes z ≥ 0 of the blocks, Σ z = L. π_k
    are the groups of block k, y_wk = Σ_{i≤k} d_wi z_i, and d_wi is how many subsets of the data the group of
    worker w has for block i.

    Args:
      max_subsets: how many of the N subsets of the data a worker stores at most; all by default.
      data: "by_size" or "equal", how groups of unlike sizes share the data; the first is faster, and the
        second has a certificate.
      tree: the groups of each level, from the finest to the coarsest; by default workers are halved again and
        again.
      deadline: the plan that most probably ends by then, in the unit of runtimes, in place of the fastest: a
        local maximum of P(τ ≤ deadline), searched for from the fastest, with no bound.

    `Solution.kind` is "exact" for equal data, else "local", with a lower bound for the same groups. Raises
    ValueError for a number of workers that is traced, workers that are not alike, and a tree that is none.

    >>> from bcgc_jax import ShiftedExponential, solve
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=4, num_coordinates=2_000)
    >>> found = solve(problem, Nested())
    >>> found.plan.completion.groups[1], bool(found.expected_runtime < solve(problem).expected_runtime)
    (((0, 1), (2, 3)), True)
    """

    max_subsets: int | None = static_field(default=None)
    data: str = static_field(default="by_size")
    tree: Groups | None = static_field(default=None)
    deadline: ArrayLike | None = None

    conditions = (("deadline", "> 0"),)
    word, what = "nested", "a number of stored subsets"
    fixed_workers = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_subsets is not None:
            check_whole("max_subsets", self.max_subsets, 1)
        if self.data not in ("by_size", "equal"):
            raise ValueError(f'data must be "by_size" or "equal", got {self.data!r}')

    @property
    def name(self) -> str:
        return "nested" if self.max_subsets is None else f"nested:{self.max_subsets}"

    @property
    def is_partition(self) -> bool:
        return False

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if concrete(problem.num_workers) is None:
            raise ValueError(
                f'method="{self.name}" makes its groups of a known number of workers, and this one is '
                "traced: solve for each number of workers by itself"
            )
        if not iteration_of(problem).alike:
            raise ValueError(
                f'method="{self.name}" plans for independent workers of one law: pool the times of all'
            )
        if self.data == "equal" and problem.has_setup:
            raise ValueError(
                'data="equal" knows no setup_cycles and no chain_cycles: pieces of the data of two levels '
                'overlap in part; take data="by_size"'
            )

    def groups(self, num_workers: int) -> Groups:
        """Those levels of the tree whose groups store little enough."""
        if self.tree is not None:
            check_groups(self.tree, num_workers)
        levels = halving(num_workers) if self.tree is None else self.tree
        most = num_workers if self.max_subsets is None else self.max_subsets
        found = tuple(level for level in levels if max(map(len, level)) <= most)
        if not found:
            raise ValueError(f"no level of the tree has groups of at most {most} workers")
        return found

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        workers = int(concrete(problem.num_workers))  # type: ignore[arg-type]
        groups = self.groups(workers)
        kinds = kinds_by_size(groups) if self.data == "by_size" else None
        rule = OneOfEach(groups, kinds)
        count = np.array([len(level) for level in groups])
        data = workers / count if kinds is None else sizes_of_kinds(groups, kinds)
        least = [np.broadcast_to([min(map(len, level)) for level in groups], np.shape(data))]
        data = np.stack([data, *(least if kinds else [])]).astype(problem.dtype)
        found = _optimum(problem, rule, data)
        if self.deadline is not None:
            found = _most_probable(problem, rule, data[0], jnp.asarray(self.deadline), found)
        block, share = np.arange(len(groups)), np.ones(len(groups), problem.dtype)
        plan = Plan(found.sizes, block, data[0], share, rule)
        solution = solution_of_value(problem, found.runtime)
        if self.deadline is not None:
            solution = replace(
                solution, completion_probability=completion_probability(problem, plan, self.deadline)
            )
        loose = (solution.status == int(Status.CONVERGED)) & ~found.converged
        return replace(
            solution,
            plan=plan,
            lower_bound=found.lower_bound,
            status=jnp.where(loose, int(Status.STEP_LIMIT), solution.status),
            num_steps=found.num_steps,
            kind="exact" if kinds is None and problem.convex and self.deadline is None else "local",
        )


class _Found(NamedTuple):
    sizes: Array
    runtime: Expectation
    lower_bound: Array
    num_steps: Array
    converged: Array


class _Best(NamedTuple):
    """Of a search: the levels it uses, shares, E τ with its slope in them and its error, and how it ended."""

    used: Array
    share: Array
    value: Array
    slope: Array
    error: Array
    num_steps: Array
    converged: Array


@jax.jit
def _optimum(problem: Problem, rule: OneOfEach, data: Array) -> _Found:
    """The sizes of the blocks for `data[0]`; the optimum for the last data, of convex ones, is a bound."""
    size, dtype = len(rule.groups), problem.dtype
    total = problem.total.astype(dtype)
    still = jax.lax.stop_gradient(problem)
    first = _search(still, rule, jnp.ones(size, bool), data[0], 1.0, max_steps=0)
    round_ = functools.partial(_round, still, rule, data)
    # The search, and that of the bound, if that is of other data; without convexity it is of another problem.
    phases = len(data) if problem.convex else 1
    begin = (jnp.asarray(0), first, first)
    _, found, bounding = jax.lax.while_loop(lambda state: state[0] < phases, round_, begin)
    if not problem.convex:
        bounding = _search(with_least_start_up(still), rule, found.used, data[-1], _OF_BOUND)
    elif phases == 1:
        bounding = found
    plan = _plan_of(problem, rule, found.share, data[0])
    known = _differentiable(Expectation(found.value, found.error), problem, plan)
    # 0 without what is paid once, up to rounding.
    constant = bounding.value - jnp.sum(bounding.slope * bounding.share)
    least = jnp.min(jnp.where(found.used, bounding.slope, jnp.inf)) - bounding.error
    lower = least if problem.bare else least + constant
    lower = lower_bound_of(lower, jax.lax.stop_gradient(known.value))
    return _Found(total * found.share, known, lower, found.num_steps, found.converged)


def _round(
    problem: Problem, rule: OneOfEach, data: Array, state: tuple[Array, _Best, _Best]
) -> tuple[Array, _Best, _Best]:
    """A search for each set of levels that has one more or less, as long as that helps; then the bound's."""
    phase, best, bounding = state
    lanes = best.used[None]
    if problem.has_setup:
        others = best.used ^ np.eye(best.used.size, dtype=bool)
        lanes = jnp.concatenate([lanes, jnp.where(jnp.any(others, axis=1)[:, None], others, lanes)])
    now = data[jnp.minimum(phase, len(data) - 1)]
    tolerance = jnp.where(phase == 0, _TOLERANCE[problem.dtype.itemsize], _OF_BOUND).astype(problem.dtype)
    found = jax.vmap(lambda used: _search(problem, rule, used, now, tolerance))(lanes)
    at = jnp.where(phase == 0, jnp.argmin(found.value), 0)
    one = jax.tree.map(lambda a: a[at], found)
    better = (phase == 0) & ~(one.value >= best.value)
    go_on = better & (at > 0)
    best, bounding = (
        jax.tree.map(lambda a, b, now=now: jnp.where(now, a, b), one, other)
        for now, other in ((better, best), (phase == 1, bounding))
    )
    return jnp.where(go_on, 0, phase + 1), best, bounding


def _search(
    problem: Problem,
    rule: OneOfEach,
    used: Array,
    data: Array,
    tolerance: ArrayLike,
    max_steps: int = _MAX_STEPS,
) -> _Best:
    """The best shares of the levels that are used."""
    dtype = problem.dtype
    start = used / jnp.sum(used, dtype=dtype)
    load, _, scale = problem_tasks(problem, _plan_of(problem, rule, start, data))
    typical = iteration_of(problem).pooled().inverse_cumulative_hazard(jnp.log(2.0))
    unit = (scale * load.work[-1] * typical).astype(dtype)

    def runtime(share: Array) -> tuple[Array, Array]:
        if problem.has_setup:  # a level in use is paid for, however small: else values jump where it ends
            share = jnp.where(used, share + jnp.finfo(dtype).tiny, 0)
        found = integrate_runtime(problem, _plan_of(problem, rule, share, data))
        return found.value / unit, found.error

    if max_steps == 0:  # nothing is known yet
        none = jnp.asarray(jnp.inf, dtype)
        return _Best(jnp.asarray(used), start, none, start, none, jnp.asarray(0), jnp.asarray(False))
    found = spectral_projected_gradient(
        runtime,
        lambda share: project_on_levels(share, 1.0, used),
        start,
        tolerance=tolerance,
        max_steps=max_steps,
        has_aux=True,
    )
    value, slope = found.value * unit, found.slope * unit
    converged = found.residual <= tolerance
    return _Best(jnp.asarray(used), found.point, value, slope, found.aux, found.num_steps, converged)


@jax.jit
def _most_probable(
    problem: Problem, rule: OneOfEach, data: Array, deadline: Array, fastest: _Found
) -> _Found:
    """From the fastest plan to one that is more probably in time."""
    still = jax.lax.stop_gradient(problem)
    used, total = fastest.sizes > 0, still.total.astype(problem.dtype)
    tolerance = _TOLERANCE[problem.dtype.itemsize]

    def unlikely(share: Array) -> Array:
        load, _, scale = problem_tasks(still, _plan_of(still, rule, share, data))
        late = iteration_of(still).exceedance(load, deadline.astype(share.dtype) / scale, rule)
        return jnp.log(late) - jnp.log1p(-late)

    # Where the fastest is always or never in time, up to rounding, it is the answer.
    start = fastest.sizes / total
    known = jnp.isfinite(unlikely(start))
    found = spectral_projected_gradient(
        lambda share: jnp.where(known, unlikely(share), 0),
        lambda share: project_on_levels(share, 1.0, used),
        start,
        tolerance=tolerance,
        max_steps=_MAX_STEPS,
    )
    share = jnp.where(known, found.point, start)
    runtime = integrate_runtime(problem, _plan_of(problem, rule, share, data))
    converged = ~known | (found.residual <= tolerance)
    return _Found(total * share, runtime, jnp.zeros_like(runtime.value), found.num_steps, converged)


def _plan_of(problem: Problem, rule: OneOfEach, share: Array, data: Array) -> Plan:
    level = np.arange(len(rule.groups))
    sizes = problem.total.astype(share.dtype) * share
    return Plan(sizes, level, data, np.ones(level.size, share.dtype), rule)


@jax.custom_jvp
def _differentiable(known: Expectation, problem: Problem, plan: Plan) -> Expectation:
    """`known`, that of a plan, with its slopes in the problem's leaves: those of the optimum."""
    del problem, plan
    return known


@_differentiable.defjvp
def _differentiable_jvp(primals, tangents):
    known, problem, plan = primals
    _, slope = jax.jvp(lambda p: integrate_runtime(p, plan), (problem,), (tangents[1],))
    return known, slope

"""`solve`: one entry point for every scheme, with the exact runtime and the certificate of each."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import check_key, check_whole, concrete, is_traced, replace
from bcgc_jax.laws import Atomic
from bcgc_jax.problem import Problem, Status
from bcgc_jax.quadrature import Expectation
from bcgc_jax.runtime import (
    Certificate,
    certificate,
    completion_probability,
    lower_bound_of,
    partition_of_units,
    with_least_start_up,
)
from bcgc_jax.solution import (
    Parts,
    Solution,
    assess,
    assess_shares,
    is_partition,
    overflows,
    solution_of,
    with_whole_numbers,
)
from bcgc_jax.solvers import baselines, sample_average
from bcgc_jax.solvers.completion import completion_partition
from bcgc_jax.solvers.in_time import fastest_in_time
from bcgc_jax.solvers.level_sets import best_levels
from bcgc_jax.solvers.many_workers import is_of_many, is_rough, optimum_of_many
from bcgc_jax.solvers.methods import (
    LIMIT,
    Deadline,
    Ferdinand,
    Method,
    Optimal,
    Scheduled,
    Subgradient,
    Tandon,
    TandonPartial,
    check_method,
    method_of,
    owners_of,
)
from bcgc_jax.solvers.optimal import least_gap, optimal_partition
from bcgc_jax.solvers.schedules import is_drawn, schedule_for, scheduled_runtime, without_padding
from bcgc_jax.solvers.schemes import SCHEMES, BuiltIn, Scheme
from bcgc_jax.solvers.start_ups import best_found
from bcgc_jax.solvers.subgradient import subgradient_partition
from bcgc_jax.solvers.units import improve_units

# Up to here the loss of rounding may show, and the search over whole units is worth its time; with measured
# times up to so many operations for all N² moves of a unit, a few seconds.
FEW_UNITS, _MOST_OPERATIONS = 1000, 1e9
# Of partial stragglers, those that are assessed one by one; operations of each under measured times.
_FEW_LEVELS, _CHEAP = 64, 1e7
# The package's own rules that give a partition.
RULES = tuple(scheme for scheme in SCHEMES.values() if scheme.is_partition)
# Workers up to which dense steps take over from smooth ones that end above this gap.
DENSE, _SMOOTH_GAP = 1024, 1e-5


F = TypeVar("F", bound=Callable[..., Any])


def _with_its_own_options(function: F) -> F:
    """`function`; an option that is a method's is refused with the method's name."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: Any, **keywords: Any) -> Any:
        for name in keywords.keys() - known.keys():
            owners = owners_of(name)
            hint = f"; it has {', '.join(known)}"
            if owners:
                hint = f": it is an option of the method, as in solve(problem, {owners[0]}({name}=…))"
            raise TypeError(f'solve has no "{name}"{hint}')
        return function(*args, **keywords)

    return checked  # type: ignore[return-value]


@_with_its_own_options
def solve(
    problem: Problem,
    method: str | Method | Scheme = "optimal",
    *,
    key: Array | None = None,
    num_draws: int = sample_average.NUM_DRAWS,
    num_replications: int = sample_average.NUM_REPLICATIONS,
) -> Solution:
    r"""A scheme for `problem`, with its exact expected runtime and its distance from the best.

    Args:
      problem: what to solve; under `jax.vmap` a batch of them (`num_workers` included).
      method: a method with its options, or the short name of its defaults: "optimal" (`Optimal`, to a proven
        relative gap), "subgradient" (`Subgradient`), "time" (x^(t)), "frequency" (x^(f)); `Deadline(t)`, the
        partition that most probably ends by t, or with `min_completion` the fastest that does so often
        enough; the baselines "uncoded", "single_block" (one level, the best), "tandon:3" (`Tandon`: one
        level, 3), "tandon_partial" (`TandonPartial`), "ferdinand_full", "ferdinand_half", "ferdinand:100"
        (`Ferdinand`: 100 layers); "limit", the limit of any scheme; or a `Scheme` of one's own.
      key: randomness of "subgradient", of schemes that give a runtime, and of all methods for `Unlike`
        workers; others need none.
      num_draws: S, of the sample that `Unlike` workers are planned for.
      num_replications: K; plans for `Unlike` workers are judged by K S fresh draws.

    "optimal" ends with a search over whole units where these are few (at most 1000, known before tracing, and
    not too many atoms); the other plans are rounded. Closed forms and baselines plan without setup and are
    evaluated with it.

    Workers that are not alike: under `Rows` all of this is exact for the sample. Plans for `Unlike` ones are
    judged by the same draws for all methods that get the same key: `expected_runtime` is then a mean,
    `runtime_error` its standard error, and `lower_bound`, hence `relative_gap`, a 97.5 % confidence limit and
    no certainty (`solvers.sample_average`).

    Raises ValueError for an unknown method, a missing key, a level or a number of layers out of range, what a
    method cannot do, and for a law whose mean is known to be infinite. What shows only in traced values is a
    `Status`: INVALID for numbers that make no problem, with NaN for the runtime, INFEASIBLE for a scheme that
    a problem does not have, such as a level that a traced number of workers lacks.

    >>> from bcgc_jax.laws import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=3, num_coordinates=2_000)
    >>> solution = solve(problem, "time")
    >>> solution.rounded.tolist(), bool(solution.lower_bound < solution.expected_runtime)
    ([802, 454, 744], True)
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a Problem, got {problem!r}")
    method = method_of(method, problem=problem)
    check_method(problem, method)
    check_whole("num_draws", num_draws, 1)
    check_whole("num_replications", num_replications, 1)
    if key is not None:
        check_key(key)
    if key is None and _draws(problem, method):
        raise ValueError(f'method="{method.name}" draws cycle times: pass key=jax.random.key(seed)')
    if isinstance(method, Scheduled):
        if _is_drawn(problem, method):
            check_finite_mean(problem)
        solution = _solve_scheduled(problem, method, key)
    elif not problem.iteration.exact:
        solution = _solve_unlike(problem, method, key, num_draws, num_replications)
    else:
        solution = _solve_exactly(problem, method, key)
    if is_traced((problem, method)):  # what could not be checked when it was made
        solution = _invalid_without(_makes_sense(problem, method), solution)
    if not problem.iteration.exact or _is_drawn(problem, method):
        solution = replace(solution, kind="confidence")
    return replace(solution, method=method.name, problem=problem)


def _makes_sense(problem: Problem, method: Method | Scheme) -> Array:
    return problem.valid & method.valid() if isinstance(method, Method) else problem.valid


def _invalid_without(sense: Array, solution: Solution) -> Solution:
    """`solution`, or one that says nothing."""
    names = (
        *("expected_runtime", "runtime_error", "relative_gap", "completion_probability", "rounded_value"),
    )
    values = {name: getattr(solution, name) for name in names}
    known = {name: jnp.where(sense, v, jnp.nan) for name, v in values.items() if v is not None}
    status = jnp.where(sense, solution.status, int(Status.INVALID))
    return replace(solution, status=status, **known)


def _draws(problem: Problem, method: Method | Scheme) -> bool:
    """Whether a method draws, a search or what is judged by draws."""
    return isinstance(method, Subgradient) or (isinstance(method, Scheduled) and _is_drawn(problem, method))


def _is_drawn(problem: Problem, method: Method | Scheme) -> bool:
    if isinstance(method, Scheduled):
        return is_drawn(problem, method)
    return isinstance(method, Scheme) and method.gives == "runtime"


def _solve_exactly(problem: Problem, method: Method | Scheme, key: Array | None) -> Solution:
    if not isinstance(method, Deadline) or method.min_completion is not None:
        check_finite_mean(problem)
    match method:
        case Optimal():
            return _solve_optimal(problem, method)
        case Deadline():
            return _solve_deadline(problem, method)
        case Subgradient():
            assert key is not None
            return _solve_subgradient(problem, method, key)
        case TandonPartial(alpha=alpha):
            return _solve_tandon_partial(problem, alpha)
        case Scheme() if not method.is_partition:
            return _solve_expectation(problem, key, scheme=method)
    return _solve_rule(problem, method)


def _solve_scheduled(problem: Problem, method: Scheduled, key: Array | None) -> Solution:
    """A scheme without a code, the optimised one by draws that its search has not seen."""
    search, judge = (None, None) if key is None else jax.random.split(key)
    workers = concrete(problem.num_workers)
    if workers is not None and not workers.ndim and _is_drawn(problem, method):
        problem = replace(problem, max_workers=int(workers))  # draws of workers that are none take as long
    schedule = schedule_for(problem, method, search)
    found, needs = scheduled_runtime(problem, schedule, judge, method)
    schedule = None if schedule is None else without_padding(schedule)
    return replace(_no_partition(problem, found), schedule=schedule, known_needs=needs)


def _solve_optimal(problem: Problem, method: Optimal) -> Solution:
    found = None
    # Where smooth steps do not get there, dense ones, O(N³) each.
    dense = problem.max_workers <= DENSE
    smooth = method.levels is None and is_of_many(problem) and not is_traced(method)
    if smooth and not (dense and is_rough(problem.iteration.pooled())):
        found = _optimum_of_many(problem, method)
        if dense and found.relative_gap > max(np.max(method.tolerance), _SMOOTH_GAP):
            found = None
    if found is None:
        allowed = problem.exists if method.levels is None else level_mask(problem, method.levels)
        found = optimum(
            problem,
            allowed,
            tolerance=jax.lax.stop_gradient(method.tolerance),
            max_steps=method.max_steps,
        )
    solution = with_whole_numbers(problem, found)
    if _few_units(problem):
        rounded = improve_units(problem, solution.rounded, solution.levels)
        solution = replace(solution, rounded=rounded)
    return solution


def _optimum_of_many(problem: Problem, method: Optimal) -> Solution:
    found = optimum_of_many(problem, tolerance=float(np.max(method.tolerance)), max_steps=method.max_steps)
    if not problem.iteration.smooth:  # by the rules between kinks, which tell their error
        solution = assess_shares(problem, found.partition, found.status, found.num_steps, problem.exists)
        loose = solution.relative_gap > method.tolerance
        return replace(solution, status=jnp.where(loose, int(Status.PRECISION), solution.status))
    lower = lower_bound_of(found.lower_bound - found.error, found.value)
    certified = Certificate(found.value, found.error, lower, 1 - lower / found.value)
    return solution_of(problem, found.partition, found.status, found.num_steps, problem.exists, certified)


def _solve_deadline(problem: Problem, method: Deadline) -> Solution:
    if method.deadline is None:
        raise ValueError("a deadline is missing: Deadline(t), with t in the unit of the runtime")
    still = jax.lax.stop_gradient(problem)
    deadline = jax.lax.stop_gradient(jnp.asarray(method.deadline, problem.dtype))
    options: dict[str, Any] = {"tolerance": method.tolerance, "max_steps": method.max_steps}
    found = completion_partition(still, deadline, **options)
    lower = jnp.zeros((), problem.dtype)
    if method.min_completion is not None:
        least = jax.lax.stop_gradient(jnp.asarray(method.min_completion, problem.dtype))
        fastest = optimum(still, still.exists, tolerance=1e-6, max_steps=Optimal.max_steps)
        assert fastest.partition is not None
        found = fastest_in_time(still, deadline, least, fastest.partition, found, **options)
        lower = fastest.lower_bound
    solution = assess(problem, found.partition, found.status, found.num_steps)
    if method.min_completion is not None:  # no plan is faster than one that need not end in time
        lower = jnp.minimum(jnp.maximum(solution.lower_bound, lower), solution.expected_runtime)
        solution = replace(solution, lower_bound=lower, relative_gap=1 - lower / solution.expected_runtime)
    probability = _differentiable_probability(found.probability, problem, found.partition, method.deadline)
    return replace(solution, completion_probability=probability, start=found.start)


@jax.custom_jvp
def _differentiable_probability(
    known: Array, problem: Problem, partition: Array, deadline: ArrayLike
) -> Array:
    """`known`, with the slopes that `completion_probability` has at a fixed partition."""
    del problem, partition, deadline
    return known


@_differentiable_probability.defjvp
def _differentiable_probability_jvp(primals, tangents):
    known, problem, partition, deadline = primals
    _, slope = jax.jvp(
        lambda p, t: completion_probability(p, partition, t), (problem, deadline), (tangents[1], tangents[3])
    )
    return known, slope


def _solve_subgradient(problem: Problem, method: Subgradient, key: Array) -> Solution:
    found = subgradient_partition(
        problem.without_delivery,
        key,
        batch_size=method.batch_size,
        check_every=method.check_every,
        max_steps=method.max_steps,
        tolerance=method.tolerance,
    )
    solution = assess(problem, found.partition, found.status, found.num_steps)
    return replace(solution, history=found.history) if problem.plain else solution


def _solve_rule(problem: Problem, method: Method | Scheme) -> Solution:
    """A partition that needs no search."""
    match method:
        case Tandon(level=number) | Ferdinand(num_layers=number):
            partition, status = _partition(problem, number, rule=type(method))
        case _:
            partition, status = _partition(problem, None, rule=method)
            if isinstance(method, Scheme) and not isinstance(method, BuiltIn):
                _refuse_partition(problem, method.name, partition)
    # Compiled once for all methods.
    return assess(problem, partition, status)


def _solve_unlike(
    problem: Problem, method: Method | Scheme, key: Array | None, num_draws: int, num_replications: int
) -> Solution:
    """A plan for the mean over draws, judged by fresh ones."""
    if key is None:
        raise ValueError(
            "workers that are not alike are planned for and judged by draws: pass key=jax.random.key(seed)"
        )
    check_finite_mean(problem)
    plan, fresh = sample_average.draw_problems(
        key, problem, num_draws=num_draws, num_replications=num_replications
    )
    if isinstance(method, Scheme) and not method.is_partition and method is not SCHEMES[LIMIT]:
        return _solve_expectation(problem, key, scheme=method)  # draws for itself
    if isinstance(method, TandonPartial) or method is SCHEMES[LIMIT]:
        solution = solve(fresh, method)
        error = _error_of_parts(fresh, method, num_replications)
        return replace(solution, runtime_error=error)
    solution = solve(plan, method, key=key)
    assert solution.partition is not None
    assert solution.levels is not None
    if isinstance(method, Optimal):
        judged = sample_average.judge_optimum(fresh, solution.partition, solution.levels, num_replications)
    else:
        judged = sample_average.judge(fresh, solution.partition, solution.levels)
    exists = solution.status != int(Status.INFEASIBLE)
    known: dict[str, Any] = {
        name: jnp.where(exists, value, jnp.nan) for name, value in judged._asdict().items()
    }
    assert solution.rounded is not None
    counts = partition_of_units(problem, solution.rounded)
    rounded = sample_average.judge(fresh, counts, solution.levels).expected_runtime
    known["rounded_value"] = jnp.where(exists, rounded, jnp.nan)
    if isinstance(method, Deadline):
        known["completion_probability"] = completion_probability(
            fresh, solution.partition, jnp.asarray(method.deadline)
        )
    return replace(solution, **known)


@functools.partial(jax.jit, static_argnums=2)
def _error_of_parts(fresh: Problem, method: Method | Scheme, num_replications: int) -> Array:
    """Standard error of the value of a method that is no partition, from K parts of the fresh draws."""
    return sample_average.error_of_parts(
        fresh, num_replications, lambda part: solve(part, method).expected_runtime
    )


def level_mask(problem: Problem, levels: Sequence[int]) -> Array:
    """Bool `[max_workers]`."""
    return jnp.zeros(problem.max_workers, bool).at[np.asarray(levels)].set(True)


def _few_units(problem: Problem) -> bool:
    count = concrete(problem.num_coordinates)
    if is_traced(problem) or count is None or count.ndim or count > FEW_UNITS:
        return False
    return problem.iteration.evaluation_cost() * problem.max_workers**2 <= _MOST_OPERATIONS


def check_finite_mean(problem: Problem) -> None:
    """Raise ValueError where a concrete law has an infinite mean."""
    if is_traced(problem):
        return
    for one in problem.iteration.laws():
        batched = any(np.ndim(leaf) for leaf in jax.tree.leaves(one)) and not isinstance(one.pieces(), Atomic)
        mean = concrete(one.mean())  # traced within a caller's jit
        if batched or mean is None or np.all(np.isfinite(mean)):
            continue
        named = f"{'the start-up, ' * (one is problem.start_up)}{type(one).__name__}"
        raise ValueError(
            f"the mean of {named} is infinite, or above the largest number, "
            f"{jnp.finfo(problem.dtype).max:.1e}, and so is the expected runtime of a scheme that ever waits "
            "for the slowest worker: take a law with a lighter tail, or plan for a deadline (Deadline; in a "
            "shell --objective completion-probability)"
        )


@functools.partial(jax.jit, static_argnames="max_steps")
def optimum(problem: Problem, allowed: Array, **options: Any) -> Solution:
    """The optimum, but for the whole numbers; converged if its certificate meets the tolerance."""
    solution = _certified_optimum(problem, allowed, **options)
    if not problem.convex:
        return replace(solution, kind="local")
    least = least_gap(problem)
    # Where the answer was judged by another rule than the last of the search, by the rounding of both.
    resolved = (
        jnp.maximum(options["tolerance"], least) + least + solution.runtime_error / solution.expected_runtime
    )
    loose = (solution.status == int(Status.CONVERGED)) & (solution.relative_gap > resolved)
    return replace(solution, status=jnp.where(loose, int(Status.PRECISION), solution.status))


def _certified_optimum(problem: Problem, allowed: Array, **options: Any) -> Solution:
    """Certified by the last round of the search where that can be."""
    # The steps are not differentiated: by the envelope theorem the value's slope is that of the exact
    # runtime at a fixed partition.
    still = jax.lax.stop_gradient(problem)
    used, rounds = allowed, 0
    if problem.has_setup:
        used, rounds = best_levels(still if problem.convex else with_least_start_up(still), allowed)
    if problem.convex:
        found = optimal_partition(still, used, **options)
    else:
        found = best_found(still, used, **options)
    steps = rounds + found.num_steps
    # Of the levels that were asked for, a traced number of workers may lack some.
    lacks = jnp.any(allowed & ~problem.exists)
    status = jnp.where(lacks, int(Status.INFEASIBLE), found.status)
    if not (problem.plain and problem.iteration.smooth):
        known = found.lower_bound if not problem.plain or problem.iteration.polyhedral else None
        return assess_shares(problem, found.partition, status, steps, used, known)
    lower = lower_bound_of(found.lower_bound - found.error, found.value)
    certified = Certificate(found.value, found.error, lower, 1 - lower / found.value)
    certified = _differentiable(certified, problem, found.partition, used)
    return solution_of(problem, found.partition, status, steps, used, certified)


@jax.custom_jvp
def _differentiable(known: Certificate, problem: Problem, partition: Array, levels: Array) -> Certificate:
    """`known`, that of a partition, with the slopes in the problem's leaves that `certificate` has."""
    del problem, partition, levels
    return known


@_differentiable.defjvp
def _differentiable_jvp(primals, tangents):
    known, problem, partition, levels = primals
    _, slope = jax.jvp(lambda p: certificate(p, partition, levels), (problem,), (tangents[1],))
    return known, slope


def _by_rule(problem: Problem, number: int | None, *, rule: Scheme | type[Method]) -> tuple[Array, Array]:
    """Partition and status of a rule that needs no search."""
    if isinstance(rule, Scheme):
        x = rule.partition(problem)
    elif rule is Tandon:
        x = baselines.single_level_partition(problem, jnp.asarray(number))
    else:
        x, feasible = baselines.ferdinand_partition(problem, jnp.asarray(number))
        x = jnp.where(feasible, x, jnp.nan)
    converged = jnp.asarray(int(Status.CONVERGED))
    return x, jnp.where(is_partition(problem, x), converged, int(Status.INFEASIBLE))


_partition = jax.jit(_by_rule, static_argnames="rule")


@jax.jit
def _by_number(problem: Problem, number: int) -> tuple[Array, Array]:
    """The same of one of `RULES`."""
    return jax.lax.switch(
        number, [functools.partial(_by_rule, number=None, rule=one) for one in RULES], problem
    )


def solve_sharing(problem: Problem, method: Method | Scheme, *, key: Array | None = None) -> Solution:
    """As `solve`, with few programs that several methods share: for those who ask for many of them once."""
    check_method(problem, method)
    known = problem.iteration.exact and not is_traced((problem, method))
    if known and method in RULES:
        check_finite_mean(problem)
        partition, status = _by_number(problem, RULES.index(method))
        return replace(assess(problem, partition, status), method=method.name, problem=problem)
    if known and isinstance(method, TandonPartial) and method.alpha is None and _has_few_levels(problem):
        check_finite_mean(problem)
        return replace(_partial_by_partitions(problem), method=method.name, problem=problem)
    return solve(problem, method, key=key)


def _has_few_levels(problem: Problem) -> bool:
    several = 1 < int(np.max(problem.num_workers)) <= _FEW_LEVELS
    return several and problem.plain and problem.iteration.evaluation_cost() <= _CHEAP


def _partial_by_partitions(problem: Problem) -> Solution:
    """Partial stragglers, by the program that partitions are assessed with.

    An uncoded part, (s+1)/(s+α) of the samples, and the rest at level s take as long as the partition with
    that share of the coordinates at level 0 and the others at level s.
    """
    alpha = baselines.straggler_ratio(problem.iteration.pooled())
    levels = np.arange(1, int(np.asarray(problem.num_workers)))
    total, uncoded = float(problem.total), (levels + 1) / (levels + float(alpha))
    partitions = np.zeros((levels.size, problem.max_workers))
    partitions[:, 0] = total * uncoded
    partitions[np.arange(levels.size), levels] = total - partitions[:, 0]
    found = [assess(problem, jnp.asarray(x), whole_numbers=False) for x in partitions]
    best = int(np.argmin([float(one.expected_runtime) for one in found]))
    return _of_parts(problem, alpha, found[best].expected_runtime, found[best].runtime_error, levels[best])


def _refuse_partition(problem: Problem, name: str, partition: Array) -> None:
    """ValueError where an added scheme gave something else than a partition, or NaN for none."""
    x, total = concrete(partition), concrete(problem.total)
    if x is None or total is None or np.isnan(x).any() or bool(is_partition(problem, partition)):
        return
    raise ValueError(
        f'scheme "{name}" gave no partition of {total:g} over {problem.num_workers} levels: entries from '
        f"{x.min():g} to {x.max():g}, sum {x.sum():g}; it must give what is at each level, NaN if it is none"
    )


@functools.partial(jax.jit, static_argnames="scheme")
def _solve_expectation(problem: Problem, key: Array | None, *, scheme: Scheme) -> Solution:
    return _no_partition(problem, scheme.expectation(problem, key))


@jax.jit
def _solve_tandon_partial(problem: Problem, alpha: ArrayLike | None) -> Solution:
    alpha = baselines.straggler_ratio(problem.iteration.pooled()) if alpha is None else alpha
    found, level = baselines.tandon_partial_runtime(problem, alpha)
    return _of_parts(problem, alpha, *found, level)


@jax.jit
def _of_parts(problem: Problem, alpha: ArrayLike, value: Array, error: Array, level: Array) -> Solution:
    """An uncoded part, and one that is coded at a `level`."""
    # One worker has no level to code at.
    value = jnp.where(jnp.asarray(problem.num_workers) == 1, jnp.nan, value)
    uncoded = (level + 1) / (level + jnp.asarray(alpha, problem.dtype))
    count = jnp.asarray(problem.num_coordinates)
    parts = Parts(jnp.stack([0 * level, level]), jnp.stack([uncoded, 1 - uncoded]), jnp.stack([count, count]))
    solution = _no_partition(problem, Expectation(value, error))
    return replace(solution, parts=parts)


def _no_partition(problem: Problem, found: Expectation) -> Solution:
    value, error = found
    status = jnp.where(jnp.isfinite(value), int(Status.CONVERGED), int(Status.INFINITE))
    status = jnp.where(jnp.isnan(value), int(Status.INFEASIBLE), status)
    too_large = overflows(problem, value)
    value = jnp.where(too_large, jnp.nan, value)
    status = jnp.where(problem.valid & ~too_large, status, int(Status.INVALID))
    # No partition, so no subgradient: 0 is all that this scheme tells about the best partition.
    nothing, zero = jnp.zeros_like(value), jnp.asarray(0)
    gap = 1 - nothing / value
    return Solution(None, None, value, error, nothing, gap, status, zero, None)

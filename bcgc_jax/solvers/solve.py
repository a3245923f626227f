"""`solve`: one entry point for every scheme, with the exact runtime and the certificate of each."""

import dataclasses
import difflib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import check, concrete, is_traced
from bcgc_jax.laws import Unlike
from bcgc_jax.problem import Problem, Solution, Status
from bcgc_jax.runtime import Certificate, certificate, completion_probability
from bcgc_jax.solvers import baselines, sample_average
from bcgc_jax.solvers.assess import assess, assess_shares, is_partition, solution_of, with_whole_numbers
from bcgc_jax.solvers.completion import completion_partition
from bcgc_jax.solvers.level_sets import best_levels
from bcgc_jax.solvers.optimal import optimal_partition
from bcgc_jax.solvers.schemes import SCHEMES, Scheme, added_schemes
from bcgc_jax.solvers.subgradient import subgradient_partition
from bcgc_jax.solvers.units import improve_units

PROPOSED = ("optimal", "subgradient", "time", "frequency")
BASELINES = ("uncoded", "single_block", "tandon_partial", "ferdinand_full", "ferdinand_half")
LIMIT = "limit"
# Methods that take a number, as in "tandon:3": a level, a number of layers.
NUMBERED = ("tandon", "ferdinand")
METHODS = ", ".join([*PROPOSED, *BASELINES, LIMIT, *(f"{name}:NUMBER" for name in NUMBERED)])

OBJECTIVES = ("expected-runtime", "completion-probability")
# Up to here the loss of rounding may show, and the search over whole units is worth its time; for laws of
# atoms up to this product of the atoms and N⁵, for rows of the rows and N³, a few seconds.
FEW_UNITS, _FEW_ATOMS = 1000, 1e9


def solve(
    problem: Problem,
    method: str = "optimal",
    *,
    objective: str = "expected-runtime",
    deadline: ArrayLike | None = None,
    levels: Sequence[int] | None = None,
    key: Array | None = None,
    written_out: bool = False,
    **options: Any,
) -> Solution:
    r"""A scheme for `problem`, with its exact expected runtime and its distance from the best.

    Args:
      problem: what to solve; under `jax.vmap` a batch of them (`num_workers` included).
      method: "optimal" (to a proven relative gap of `tolerance`, 1e-7; for laws of atoms 1e-6),
        "subgradient", "time" (x^(t)), "frequency" (x^(f)); the baselines "uncoded", "single_block" (one
        level, the best), "tandon:3" (one level, 3), "tandon_partial", "ferdinand_full", "ferdinand_half",
        "ferdinand:100" (100 layers); "limit", the limit of any scheme; and those of `register_scheme`.
      objective: "expected-runtime", or "completion-probability": the partition, local optimum from several
        starts, that most probably ends by `deadline` (only "optimal").
      levels: the redundancy levels that may be used (only "optimal"); the bound then is for these. With
        setup cycles "optimal" also searches which of them to use, and the bound is for those in
        `Solution.levels`.
      key: randomness of "subgradient", of added schemes that give a runtime, and of all methods for `Unlike`
        workers; others need none.
      written_out: write the sums of up to 12 workers out term by term: twice as fast in a batch of many
        problems, and longer to compile; static. `Sweep` does it.
      options: keywords of the method: those of `optimal_partition`, `completion_partition` and
        `subgradient_partition`, `alpha` of "tandon_partial"; for `Unlike` workers also num_draws, S = 4096,
        and num_replications, K = 16.

    "optimal" ends with a search over whole units where these are few (at most 1000, known before tracing, and
    not too many atoms); the other plans are rounded. Closed forms and baselines plan without setup and are
    evaluated with it.

    Workers that are not alike: under `Rows` all of this is exact for the sample. `Unlike` ones are planned
    for with S draws and judged by K S fresh ones, the same for all methods that get the same key:
    `expected_runtime` is then a mean, `runtime_error` its standard error, and `lower_bound`, hence
    `relative_gap`, a 97.5 % confidence limit and no certainty (`solvers.sample_average`).

    Raises ValueError for an unknown method, a missing key, a level or a number of layers out of range, what a
    method cannot do, and for a law whose mean is known to be infinite. What shows only in traced values is a
    `Status`.

    >>> from bcgc_jax.laws import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=20, num_coordinates=20_000)
    >>> solution = solve(problem, "time")
    >>> solution.rounded[:3].tolist(), bool(solution.lower_bound < solution.expected_runtime)
    ([5697, 1076, 609], True)
    """
    name, number = parse_method(problem, method)
    _refuse(problem, name, objective, deadline, levels)
    if name == "subgradient" and key is None:
        raise ValueError('method="subgradient" draws cycle times: pass key=jax.random.key(seed)')
    if isinstance(problem.cycle_time, Unlike):
        asked = {"objective": objective, "deadline": deadline, "levels": levels}
        return _solve_unlike(problem, method, name, key, asked, **options)
    if objective == "completion-probability":
        assert deadline is not None
        found = completion_partition(jax.lax.stop_gradient(problem), deadline, **options)
        solution = assess(problem, found.partition, found.status, found.num_steps)
        solution = dataclasses.replace(  # type: ignore[type-var]
            solution, completion_probability=found.probability, start=found.start, method=method
        )
        return solution
    check_finite_mean(problem)
    scheme = SCHEMES.get(name)
    if scheme is not None and scheme.partition is None:
        return _no_partition(problem, key, options, scheme=scheme)
    history = None
    if name == "optimal":
        allowed = problem.exists if levels is None else level_mask(problem, levels)
        solution = with_whole_numbers(problem, _optimum(problem, allowed, written_out, **options))
        if _few_units(problem):
            rounded = improve_units(problem, solution.rounded, solution.levels)
            solution = dataclasses.replace(solution, rounded=rounded)  # type: ignore[type-var]
        return dataclasses.replace(solution, method=method)  # type: ignore[type-var]
    if name == "subgradient":
        assert key is not None
        partition, status, num_steps, history = subgradient_partition(problem, key, **options)
    else:
        partition, status = _partition(problem, number, options, name=name, scheme=scheme)
        num_steps = None
    if name in added_schemes():
        _refuse_partition(problem, name, partition)
    # Compiled once for all methods.
    solution = assess(problem, partition, status, num_steps, written_out=written_out)
    return dataclasses.replace(solution, history=history, method=method)  # type: ignore[type-var]


def _solve_unlike(
    problem: Problem,
    method: str,
    name: str,
    key: Array | None,
    asked: Mapping[str, Any],
    *,
    num_draws: int = sample_average.NUM_DRAWS,
    num_replications: int = sample_average.NUM_REPLICATIONS,
    **options: Any,
) -> Solution:
    """A plan for the mean over draws, judged by fresh ones."""
    if key is None:
        raise ValueError(
            "workers that are not alike are planned for and judged by draws: pass key=jax.random.key(seed)"
        )
    check_finite_mean(problem)
    sizes = {"num_draws": num_draws, "num_replications": num_replications}
    plan, fresh = sample_average.draw_problems(key, problem, **sizes)
    scheme = SCHEMES.get(name)
    if scheme is not None and scheme.partition is None:
        if name in added_schemes():  # draws for itself
            return _no_partition(problem, key, options, scheme=scheme)
        solution = solve(fresh, method, **options)
        found = sample_average.judge_scheme(fresh, scheme, num_replications, **options)
        return dataclasses.replace(solution, runtime_error=found.error)  # type: ignore[type-var]
    solution = solve(plan, method, key=key, **asked, **options)
    assert solution.partition is not None
    assert solution.levels is not None
    if name == "optimal" and asked["deadline"] is None:
        found = sample_average.judge_optimum(fresh, solution.partition, solution.levels, num_replications)
    else:
        found = sample_average.judge(fresh, solution.partition, solution.levels)
    exists = solution.status != int(Status.INFEASIBLE)
    known: dict[str, Any] = {
        name: jnp.where(exists, value, jnp.nan) for name, value in found._asdict().items()
    }
    if solution.completion_probability is not None:
        known["completion_probability"] = completion_probability(
            fresh, solution.partition, jnp.asarray(asked["deadline"])
        )
    return dataclasses.replace(solution, **known)  # type: ignore[type-var]


def _refuse(
    problem: Problem,
    name: str,
    objective: str,
    deadline: ArrayLike | None,
    levels: Sequence[int] | None,
) -> None:
    """ValueError for what a method cannot do."""
    if objective not in OBJECTIVES:
        raise ValueError(f'unknown objective "{objective}"; known: {", ".join(OBJECTIVES)}')
    completion = objective == "completion-probability"
    if completion != (deadline is not None):
        raise ValueError(
            'objective="completion-probability" needs a deadline, and only this objective takes one; for the '
            "probability of another plan see completion_probability"
        )
    if completion:
        check("deadline", deadline, "> 0")
    if name != "optimal" and (completion or levels is not None):
        raise ValueError(f'only method="optimal" can be restricted to levels or to a deadline, not "{name}"')
    if completion and (problem.setup_cycles is not None or levels is not None):
        raise ValueError("the completion probability is optimised without setup_cycles and over all levels")
    if problem.setup_cycles is not None and name in ("subgradient", "tandon_partial", LIMIT):
        raise ValueError(f'method="{name}" knows no setup_cycles: use "optimal"')
    if problem.unit_costs is not None and name.startswith("ferdinand"):
        raise ValueError(f'method="{name}" has layers of equal coordinates: it knows no unit_costs')


def level_mask(problem: Problem, levels: Sequence[int]) -> Array:
    """Bool `[max_workers]`; ValueError for a level that some problem of a batch does not have."""
    chosen = np.unique(np.asarray(levels))
    workers = concrete(problem.num_workers)
    top = (problem.max_workers if workers is None else int(workers.min())) - 1
    if chosen.size == 0 or not np.issubdtype(chosen.dtype, np.integer) or chosen[0] < 0 or chosen[-1] > top:
        raise ValueError(f"levels must be whole numbers from 0 to {top}, at least one, got {levels!r}")
    return jnp.zeros(problem.max_workers, bool).at[chosen].set(True)


def _few_units(problem: Problem) -> bool:
    count = concrete(problem.num_coordinates)
    if is_traced(problem) or count is None or count.ndim or count > FEW_UNITS:
        return False
    law = problem.cycle_time
    rows = law.rows()
    if rows is not None:
        return rows.size * problem.max_workers**2 <= _FEW_ATOMS
    return not law.atomic() or law.kinks().size * problem.max_workers**5 <= _FEW_ATOMS


def check_finite_mean(problem: Problem) -> None:
    """Raise ValueError where a concrete law has an infinite mean."""
    if is_traced(problem):
        return
    law = problem.cycle_time
    laws = law.laws if isinstance(law, Unlike) else (law,)
    for one in laws:
        batched = any(np.ndim(leaf) for leaf in jax.tree.leaves(one)) and not one.atomic()
        if batched or np.all(np.isfinite(np.asarray(one.mean()))):
            continue
        raise ValueError(
            f"the mean of {type(one).__name__} is infinite, and so is the expected runtime of a scheme that "
            "ever waits for the slowest worker: take a law with a lighter tail, or look at the probability "
            "of meeting a deadline (completion_probability) instead"
        )


def parse_method(problem: Problem, method: str) -> tuple[str, int | None]:
    """Name and number of a `method`; ValueError for one that does not exist for this problem."""
    name, colon, text = method.partition(":")
    if name in NUMBERED:
        workers, coordinates = concrete(problem.num_workers), concrete(problem.num_coordinates)
        low = 0 if name == "tandon" else 1
        high = None
        if workers is not None and name == "tandon":
            high = int(workers.min()) - 1
        if coordinates is not None and name == "ferdinand":
            high = int(coordinates.min())
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            what = "a redundancy level" if name == "tandon" else "a number of layers"
            until = "" if high is None else f" to {high}"
            raise ValueError(
                f'method "{method}": "{name}" takes {what} from {low}{until}, as in "{name}:{max(low, 1)}"'
            )
        return name, int(text)
    known = (*PROPOSED, *BASELINES, LIMIT, *added_schemes())
    if name not in known or colon:
        near = difflib.get_close_matches(method, known, n=1)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        raise ValueError(f'unknown method "{method}"{hint}; known: {", ".join([METHODS, *added_schemes()])}')
    return name, None


def is_baseline(method: str) -> bool:
    """Whether a method counts as a scheme known before the paper."""
    name = method.partition(":")[0]
    return name in NUMBERED or (name in SCHEMES and SCHEMES[name].baseline)


@functools.partial(jax.jit, static_argnames=("written_out", "max_steps"))
def _optimum(problem: Problem, allowed: Array, written_out: bool, **options: Any) -> Solution:
    """The optimum, but for the whole numbers; certified by the last round of its search where that can be."""
    # The steps are not differentiated: by the envelope theorem the value's slope is that of the exact
    # runtime at a fixed partition.
    still = jax.lax.stop_gradient(problem)
    used, rounds = allowed, 0
    if problem.setup_cycles is not None:
        used, rounds = best_levels(still, allowed)
    found = optimal_partition(still, used, written_out=written_out, **options)
    steps = rounds + found.num_steps
    if problem.cycle_time.kinks().size or problem.cycle_time.atomic():
        known = found.lower_bound if problem.cycle_time.atomic() else None
        return assess_shares(
            problem, found.partition, found.status, steps, used, known, written_out=written_out
        )
    lower = found.lower_bound - found.error
    lower = jnp.where(jnp.isfinite(lower), jnp.maximum(lower, 0), 0)
    certified = Certificate(found.value, found.error, lower, 1 - lower / found.value)
    certified = _differentiable(certified, problem, found.partition, used)
    return solution_of(problem, found.partition, found.status, steps, used, certified)


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


@functools.partial(jax.jit, static_argnames=("name", "scheme"))
def _partition(
    problem: Problem, number: int | None, options: Mapping[str, Any], *, name: str, scheme: Scheme | None
) -> tuple[Array, Array]:
    """Partition and status of a rule that needs no search."""
    match name:
        case "tandon":
            assert number is not None
            x = baselines.single_level_partition(problem, number)
        case "ferdinand":
            x, feasible = baselines.ferdinand_partition(problem, jnp.asarray(number))
            x = jnp.where(feasible, x, jnp.nan)
        case _:
            assert scheme is not None
            assert scheme.partition is not None
            x = scheme.partition(problem, **options)
    converged = jnp.asarray(int(Status.CONVERGED))
    return x, jnp.where(is_partition(problem, x), converged, int(Status.INFEASIBLE))


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
def _no_partition(
    problem: Problem, key: Array | None, options: Mapping[str, Any], *, scheme: Scheme
) -> Solution:
    assert scheme.expectation is not None
    value, error = scheme.expectation(problem, key, **options)
    status = jnp.where(jnp.isfinite(value), int(Status.CONVERGED), int(Status.INFINITE))
    status = jnp.where(jnp.isnan(value), int(Status.INFEASIBLE), status)
    # No partition, so no subgradient: 0 is all that this scheme tells about the best partition.
    nothing, zero = jnp.zeros_like(value), jnp.asarray(0)
    gap = 1 - nothing / value
    return Solution(None, None, value, error, nothing, gap, status, zero, None, scheme.name)

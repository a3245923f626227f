"""`solve`: one entry point for every scheme, with the exact runtime and the certificate of each."""

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax._pytree import concrete
from bcgc_jax.partitions import round_partition
from bcgc_jax.problem import Problem, Solution, Status
from bcgc_jax.runtime import certificate
from bcgc_jax.solvers import baselines, closed_form
from bcgc_jax.solvers.optimal import optimal_partition
from bcgc_jax.solvers.subgradient import subgradient_partition

PROPOSED = ("optimal", "subgradient", "time", "frequency")
BASELINES = ("uncoded", "single_block", "tandon_partial", "ferdinand_full", "ferdinand_half")
# Methods that take a number, as in "tandon:3": a level, a number of layers.
NUMBERED = ("tandon", "ferdinand")


def solve(problem: Problem, method: str, *, key: Array | None = None, **options: Any) -> Solution:
    r"""A scheme for `problem`, with its exact expected runtime and its distance from the best.

    Args:
      problem: what to solve; under `jax.vmap` a batch of them (`num_workers` included).
      method: "optimal" (to a relative gap of `tolerance`, 1e-7; laws without atoms), "subgradient", "time"
        (x^(t)), "frequency" (x^(f)); the baselines "uncoded", "single_block" (one
        level, the best), "tandon:3" (one level, 3), "tandon_partial", "ferdinand_full", "ferdinand_half",
        "ferdinand:100" (100 layers).
      key: randomness of "subgradient"; the other methods need none.
      options: keywords of the method: those of `optimal_partition` and `subgradient_partition`, `alpha` of
        "tandon_partial".

    Raises ValueError for an unknown method, a missing key, a level or a number of layers out of range, and
    for a law whose mean is known to be infinite. What shows only in traced values is a `Status`.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=20, num_coordinates=20_000)
    >>> solution = solve(problem, "time")
    >>> solution.rounded[:3].tolist(), bool(solution.lower_bound < solution.expected_runtime)
    ([5697, 1076, 609], True)
    """
    name, number = parse_method(problem, method)
    if name == "subgradient" and key is None:
        raise ValueError('method="subgradient" draws cycle times: pass key=jax.random.key(seed)')
    check_finite_mean(problem)
    if name == "optimal" and problem.cycle_time.atomic():
        raise ValueError(
            f'method="optimal" needs a law without atoms and {type(problem.cycle_time).__name__} is made of '
            'them: use method="subgradient"'
        )
    options_static = tuple(sorted((k, v) for k, v in options.items() if not isinstance(v, jax.Array)))
    options_traced = {k: v for k, v in options.items() if isinstance(v, jax.Array)}
    if name == "tandon_partial":
        return _tandon_partial(problem, options_traced, options_static)
    # Two compiled functions: the second, which takes longest to compile, serves every method.
    answer = _partition(problem, key, number, options_traced, name=name, options=options_static)
    return dataclasses.replace(assess(problem, *answer), method=method)  # type: ignore[type-var]


def check_finite_mean(problem: Problem) -> None:
    """Raise ValueError where a concrete law has an infinite mean."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(problem)):
        return
    law = problem.cycle_time
    batched = any(np.ndim(leaf) for leaf in jax.tree.leaves(law)) and not law.atomic()
    if not batched and not np.all(np.isfinite(np.asarray(law.mean()))):
        raise ValueError(
            f"the mean of {type(law).__name__} is infinite, and so is the expected runtime of a scheme that "
            "ever waits for the slowest worker: take a law with a lighter tail, or look at the probability "
            "of meeting a deadline (completion_probability) instead"
        )


def parse_method(problem: Problem, method: str) -> tuple[str, int | None]:
    """Name and number of a `method`; ValueError for one that does not exist for this problem."""
    name, colon, text = method.partition(":")
    if name in NUMBERED:
        workers, coordinates = concrete(problem.num_workers), concrete(problem.num_coordinates)
        low = 0 if name == "tandon" else 1
        high = problem.max_workers - 1 if name == "tandon" else None
        if workers is not None and name == "tandon":
            high = int(workers.min()) - 1
        if coordinates is not None and name == "ferdinand":
            high = int(coordinates.min())
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            what = "a redundancy level" if name == "tandon" else "a number of layers"
            raise ValueError(
                f'method "{method}": "{name}" takes {what} from {low} to {high}, as in "{name}:{max(low, 1)}"'
            )
        return name, int(text)
    known = PROPOSED + BASELINES
    if name not in known or colon:
        near = difflib.get_close_matches(method, known, n=1)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        numbered = [f"{n}:NUMBER" for n in NUMBERED]
        raise ValueError(f'unknown method "{method}"{hint}; known: {", ".join([*known, *numbered])}')
    return name, None


@functools.partial(jax.jit, static_argnames=("name", "options"))
def _partition(
    problem: Problem,
    key: Array | None,
    number: int | None,
    traced: Mapping[str, Array],
    *,
    name: str,
    options: tuple[tuple[str, Any], ...],
) -> tuple[Array, Array, Array, Array | None]:
    """Partition, status, steps and history of every method that gives a partition."""
    settings = {**dict(options), **traced}
    status = jnp.asarray(int(Status.CONVERGED))
    number = 0 if number is None else number
    match name:
        case "optimal":
            # The steps are not differentiated: by the envelope theorem the value's slope is that of
            # the exact runtime at a fixed partition.
            result = optimal_partition(jax.lax.stop_gradient(problem), **settings)
            return result.partition, result.status, result.num_steps, None
        case "subgradient":
            assert key is not None
            found = subgradient_partition(problem, key, **settings)
            return found.partition, found.status, found.num_steps, found.history
        case "time":
            x = closed_form.time_partition(problem, **settings)
        case "frequency":
            x = closed_form.frequency_partition(problem, **settings)
        case "uncoded" | "tandon":
            x = baselines.single_level_partition(problem, number, **settings)
        case "single_block":
            x = baselines.single_block_partition(problem, **settings)
        case _:
            half = jnp.maximum(jnp.floor(problem.total / 2), 1)
            layers = {"ferdinand_full": problem.total, "ferdinand_half": half}.get(name, jnp.asarray(number))
            x, feasible = baselines.ferdinand_partition(problem, layers, **settings)
            status = jnp.where(feasible, status, int(Status.INFEASIBLE))
    return x, status, jnp.asarray(0), None


@functools.partial(jax.jit, static_argnames="options")
def _tandon_partial(
    problem: Problem, traced: Mapping[str, Array], options: tuple[tuple[str, Any], ...]
) -> Solution:
    settings = {**dict(options), **traced}
    (value, error), _ = baselines.tandon_partial_runtime(problem, **settings)
    # One worker has no level to code at.
    alone = jnp.asarray(problem.num_workers) == 1
    value = jnp.where(alone, jnp.nan, value)
    status = jnp.where(jnp.isfinite(value), int(Status.CONVERGED), int(Status.INFINITE))
    status = jnp.where(alone, int(Status.INFEASIBLE), status)
    # No partition, so no subgradient: 0 is all that this scheme tells about the best partition.
    nothing, zero = jnp.zeros_like(value), jnp.asarray(0)
    gap = 1 - nothing / value
    return Solution(None, None, value, error, nothing, gap, status, zero, None, "tandon_partial")


@functools.partial(jax.jit, static_argnames="method")
def assess(
    problem: Problem,
    partition: Array,
    status: Array | None = None,
    num_steps: Array | None = None,
    history: Array | None = None,
    *,
    method: str = "",
) -> Solution:
    """The `Solution` that a partition is: rounded, evaluated exactly, certified."""
    status = jnp.asarray(int(Status.CONVERGED)) if status is None else status
    num_steps = jnp.asarray(0) if num_steps is None else num_steps
    bound = certificate(problem, partition)
    value = jnp.where(status == int(Status.INFEASIBLE), jnp.nan, bound.expected_runtime)
    status = jnp.where(jnp.isinf(value), int(Status.INFINITE), status)
    gap = jnp.where(jnp.isfinite(value), bound.relative_gap, jnp.where(jnp.isinf(value), 1, jnp.nan))
    rounded = round_partition(partition, problem.num_coordinates)
    error, lower = bound.runtime_error, bound.lower_bound
    return Solution(partition, rounded, value, error, lower, gap, status, num_steps, history, method)

"""`solve`: one entry point for every scheme, with the exact runtime and the certificate of each."""

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
from bcgc_jax.solvers.subgradient import subgradient_partition

PROPOSED = ("subgradient", "time", "frequency")
BASELINES = ("uncoded", "single_block", "tandon_partial", "ferdinand_full", "ferdinand_half")
# Methods that take a number, as in "tandon:3": a level, a number of layers.
NUMBERED = ("tandon", "ferdinand")


def solve(problem: Problem, method: str, *, key: Array | None = None, **options: Any) -> Solution:
    r"""A scheme for `problem`, with its exact expected runtime and its distance from the best.

    Args:
      problem: what to solve; under `jax.vmap` a batch of them (`num_workers` included).
      method: "subgradient", "time" (x^(t)), "frequency" (x^(f)); the baselines "uncoded", "single_block" (one
        level, the best), "tandon:3" (one level, 3), "tandon_partial", "ferdinand_full", "ferdinand_half",
        "ferdinand:100" (100 layers).
      key: randomness of "subgradient"; the other methods need none.
      options: keywords of the method: those of `subgradient_partition`, `alpha` of "tandon_partial".

    Raises ValueError for an unknown method, a missing key, a level or a number of layers out of range, and
    for a law whose mean is known to be infinite. What shows only in traced values is a `Status`.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=20, num_coordinates=20_000)
    >>> solution = solve(problem, "time")
    >>> solution.rounded[:3].tolist(), bool(solution.lower_bound < solution.expected_runtime)
    ([5697, 1076, 609], True)
    """
    name, number = _parse_method(problem, method)
    if name == "subgradient" and key is None:
        raise ValueError('method="subgradient" draws cycle times: pass key=jax.random.key(seed)')
    check_finite_mean(problem)
    static = {k: v for k, v in options.items() if not isinstance(v, jax.Array)}
    traced = {k: v for k, v in options.items() if isinstance(v, jax.Array)}
    solution = _solve(problem, key, number, traced, name=name, options=tuple(sorted(static.items())))
    return solution if method == name else _rename(solution, method)


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


def _parse_method(problem: Problem, method: str) -> tuple[str, int | None]:
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


def _rename(solution: Solution, method: str) -> Solution:
    fields: Mapping[str, Any] = {**vars(solution), "method": method}
    return Solution(**fields)


@functools.partial(jax.jit, static_argnames=("name", "options"))
def _solve(
    problem: Problem,
    key: Array | None,
    number: int | None,
    traced: Mapping[str, Array],
    *,
    name: str,
    options: tuple[tuple[str, Any], ...],
) -> Solution:
    settings = {**dict(options), **traced}
    zero = jnp.asarray(0)
    status, steps, history = jnp.asarray(int(Status.CONVERGED)), zero, None
    if name == "tandon_partial":
        (value, error), _ = baselines.tandon_partial_runtime(problem, **settings)
        # No partition, so there is no subgradient; 0 is what is known of the best partition here.
        status = jnp.where(
            problem.max_workers > 1, jnp.where(jnp.isfinite(value), 0, int(Status.INFINITE)), 3
        )
        return Solution(
            None, None, value, error, jnp.zeros_like(value), jnp.ones_like(value), status, zero, None, name
        )
    if name == "subgradient":
        assert key is not None
        x, status, steps, history = subgradient_partition(problem, key, **settings)
    elif name == "time":
        x = closed_form.time_partition(problem, **settings)
    elif name == "frequency":
        x = closed_form.frequency_partition(problem, **settings)
    elif name == "uncoded":
        x = baselines.single_level_partition(problem, 0, **settings)
    elif name == "tandon":
        assert number is not None
        x = baselines.single_level_partition(problem, number, **settings)
    elif name == "single_block":
        x = baselines.single_block_partition(problem, **settings)
    else:
        layers = {
            "ferdinand_full": problem.total,
            "ferdinand_half": jnp.maximum(jnp.floor(problem.total / 2), 1),
            "ferdinand": jnp.asarray(number or 0),
        }[name]
        x, feasible = baselines.ferdinand_partition(problem, layers, **settings)
        status = jnp.where(feasible, status, int(Status.INFEASIBLE))
    bound = certificate(problem, x)
    value = jnp.where(status == int(Status.INFEASIBLE), jnp.nan, bound.expected_runtime)
    status = jnp.where(jnp.isinf(value), int(Status.INFINITE), status)
    gap = jnp.where(jnp.isfinite(value), bound.relative_gap, jnp.where(jnp.isinf(value), 1, jnp.nan))
    return Solution(
        x,
        round_partition(x, problem.num_coordinates),
        value,
        bound.runtime_error,
        bound.lower_bound,
        gap,
        status,
        steps,
        history,
        name,
    )

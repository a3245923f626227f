r"""The schemes that `solve` knows by name, and how to add one.

A scheme is a rule that needs no search: a function from a problem to a partition or to the levels of the
coordinates, or, where it is no partition, a function from sorted cycle times to a runtime.
"""

import dataclasses
import inspect
import re
import types
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bcgc_jax.expectation import Expectation
from bcgc_jax.order_statistics import sorted_cycle_times
from bcgc_jax.problem import Problem
from bcgc_jax.solvers import baselines, closed_form

# Draws of the runtime of a scheme that is no partition, and how many of them at a time.
NUM_DRAWS, _BATCH = 2**17, 2**12


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A named rule; either `partition` or `expectation` is there. Hashable: static under `jit`.

    Attributes:
      name: what `solve` and the command line call it.
      label: what figures call it.
      partition: (problem, **options) to x, `[max_workers]`; NaN where the scheme does not exist.
      expectation: (problem, key, **options) to the expected runtime and its error; NaN likewise.
      baseline: whether it counts where a plan is compared with the best scheme known before the paper.
      code: what the function that was added does, so that a sweep does not go on with another one.
    """

    name: str
    label: str
    partition: Callable[..., Array] | None = None
    expectation: Callable[..., Expectation] | None = None
    baseline: bool = False
    code: str = ""


def _ferdinand(layers: Callable[[Problem], Array]) -> Callable[..., Array]:
    def partition(problem: Problem) -> Array:
        x, feasible = baselines.ferdinand_partition(problem, layers(problem))
        return jnp.where(feasible, x, jnp.nan)

    return partition


def _tandon_partial(problem: Problem, key: Array | None, **options: Any) -> Expectation:
    value, error = baselines.tandon_partial_runtime(problem, **options)[0]
    # One worker has no level to code at.
    return Expectation(jnp.where(jnp.asarray(problem.num_workers) == 1, jnp.nan, value), error)


def _limit(problem: Problem, key: Array | None) -> Expectation:
    value = baselines.runtime_limit(problem)
    return Expectation(value, jnp.zeros_like(value))


_BUILT_IN = (
    Scheme("time", "x^(t)", closed_form.time_partition),
    Scheme("frequency", "x^(f)", closed_form.frequency_partition),
    Scheme("uncoded", "uncoded", lambda p: baselines.single_level_partition(p, 0), baseline=True),
    Scheme("single_block", "single block", baselines.single_block_partition, baseline=True),
    Scheme("tandon_partial", "Tandon et al., partial", expectation=_tandon_partial, baseline=True),
    Scheme("ferdinand_full", "Ferdinand–Draper, r = L", _ferdinand(lambda p: p.total), baseline=True),
    Scheme(
        "ferdinand_half",
        "Ferdinand–Draper, r = L/2",
        _ferdinand(lambda p: jnp.maximum(jnp.floor(p.total / 2), 1)),
        baseline=True,
    ),
    Scheme("limit", "limit of any scheme", expectation=_limit),
)
_schemes = {scheme.name: scheme for scheme in _BUILT_IN}
SCHEMES: Mapping[str, Scheme] = MappingProxyType(_schemes)


def added_schemes() -> tuple[str, ...]:
    """Names of the schemes that `register_scheme` has added, in order."""
    return tuple(_schemes)[len(_BUILT_IN) :]


def register_scheme(
    name: str,
    function: Callable[..., Any],
    *,
    gives: str = "partition",
    label: str = "",
    baseline: bool = False,
) -> None:
    r"""Add a scheme to `solve`, `sweep`, the command line, the figures and the benchmarks, as `name`.

    Args:
      name: letters, digits and underscores; a name that was added before is replaced.
      function: of JAX arrays; it is traced, and under a sweep `problem.num_workers` is too, below the static
        `problem.max_workers`. By `gives`:
        "partition": problem to x, `[max_workers]`, Σ x = `problem.total`, 0 for n ≥ N;
        "levels": (problem, l) to the redundancy levels of the coordinates (or units) l, an array of some of
        0…L-1;
        "runtime": (problem, T) to the runtime of one iteration, `[...]`, for cycle times T sorted slowest
        first, `[..., max_workers]` (beyond N they repeat the law's infimum). Its expectation is that of 2^17
        draws (`key` of `solve`), `Solution.runtime_error` their standard error.
        NaN says that the scheme does not exist for this problem.
      gives: "partition", "levels" or "runtime".
      label: for figures; `name` by default.
      baseline: whether "against the best baseline" may mean this scheme.

    Raises ValueError for a name that is taken by the package or cannot be typed.

    >>> def two_blocks(problem):  # half of the coordinates uncoded, half with one straggler to spare
    ...     level = jnp.arange(problem.max_workers)
    ...     return jnp.where(level < 2, problem.total / jnp.minimum(problem.num_workers, 2), 0)
    >>> register_scheme("two_blocks", two_blocks)
    >>> from bcgc_jax import ShiftedExponential, solve
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=3, num_coordinates=100)
    >>> solve(problem, "two_blocks").rounded.tolist()
    [50, 50, 0]
    """
    taken = {scheme.name for scheme in _BUILT_IN} | {"optimal", "subgradient", "tandon", "ferdinand"}
    if not name.isidentifier() or name in taken:
        why = "is a method of the package" if name in taken else "must be letters, digits and underscores"
        raise ValueError(f'the name of a scheme, "{name}", {why}: choose another')
    if gives not in _READINGS:
        raise ValueError(f'gives must be one of {", ".join(_READINGS)}, got "{gives}"')
    reading = _READINGS[gives](name, function)
    _schemes[name] = Scheme(name, label or name, **reading, baseline=baseline, code=_describe(function))


def _describe(value: Any) -> str:
    """What a function does, as far as its own code, defaults and closure say; no addresses, no file names."""
    value = inspect.unwrap(value) if callable(value) else value
    if isinstance(value, types.FunctionType):
        closure = [cell.cell_contents for cell in value.__closure__ or ()]
        return "".join(map(_describe, (value.__code__, value.__defaults__, value.__kwdefaults__, closure)))
    if isinstance(value, types.CodeType):
        return f"{value.co_code.hex()} {value.co_names} {_describe(value.co_consts)}"
    if isinstance(value, list | tuple):
        return "".join(map(_describe, value))
    return re.sub(r"0x[0-9a-f]+", "", repr(value))


def _reading_partition(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    def partition(problem: Problem) -> Array:
        x = jnp.asarray(function(problem), problem.dtype)
        if x.shape != (problem.max_workers,):
            raise ValueError(
                f'scheme "{name}" must give a partition of shape ({problem.max_workers},), one entry for '
                f"each redundancy level of max_workers, got {x.shape}"
            )
        return x

    return {"partition": partition}


def _reading_levels(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    def partition(problem: Problem) -> Array:
        # A piece at a time, so that L may be traced. Their order is no matter: ascending is best (Lemma 1).
        def add(i: Array, x: Array) -> Array:
            unit = i * _BATCH + jnp.arange(_BATCH)
            levels = jnp.asarray(function(problem, unit))
            if levels.shape != unit.shape:
                raise ValueError(f'scheme "{name}" must give one level a coordinate, got {levels.shape}')
            cost = jnp.ones(_BATCH, int)
            if problem.unit_costs is not None:
                cost = jnp.asarray(problem.unit_costs, x.dtype).at[unit].get(mode="clip")
            whole = jnp.where((levels >= 0) & (levels == jnp.floor(levels)), levels, x.size).astype(int)
            return x.at[whole].add(jnp.where(unit < problem.num_coordinates, cost, 0), mode="drop")

        counts = jnp.zeros(problem.max_workers, int if problem.unit_costs is None else problem.dtype)
        pieces = (jnp.asarray(problem.num_coordinates, int) + _BATCH - 1) // _BATCH
        return jax.lax.fori_loop(0, pieces, add, counts).astype(problem.dtype)

    return {"partition": partition}


def _reading_runtime(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    def expectation(problem: Problem, key: Array | None) -> Expectation:
        if key is None:
            raise ValueError(f'scheme "{name}" is averaged over draws: pass key=jax.random.key(seed)')

        def batch(key: Array) -> Array:
            times = sorted_cycle_times(
                key,
                problem.cycle_time,
                problem.num_workers,
                _BATCH,
                max_workers=problem.max_workers,
                dtype=problem.dtype,
            )
            draws = jnp.asarray(function(problem, times), problem.dtype)
            if draws.shape != (_BATCH,):
                raise ValueError(
                    f'scheme "{name}" must turn cycle times [..., N] into runtimes [...]: of times '
                    f"{times.shape} it made {draws.shape}"
                )
            return jnp.stack([jnp.mean(draws), jnp.var(draws)])

        mean, variance = jax.lax.map(batch, jax.random.split(key, NUM_DRAWS // _BATCH)).T
        spread = jnp.mean(variance) + jnp.var(mean)
        return Expectation(jnp.mean(mean), jnp.sqrt(spread / NUM_DRAWS))

    return {"expectation": expectation}


_READINGS = {"partition": _reading_partition, "levels": _reading_levels, "runtime": _reading_runtime}

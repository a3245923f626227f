"""Schemes of a user's own: functions of a problem."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax._pytree import is_traced, represent
from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import Solution, assess, solution_of_value
from bcgc_jax.solvers.method import NUM_DRAWS, Method
from bcgc_jax.solvers.methods import NAMES

_BATCH = 2**12  # draws, or coordinates, at a time, for memory
_GIVES = ("partition", "levels", "runtime", "expectation")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Scheme(Method):
    r"""A scheme of one's own, for `solve`, `compare`, `Sweep`, and studies that take
    `--schemes`.

    Solutions of partitions and levels can be trained with. For another scheme to train
    with see the page of the API: a `Method` whose solution has a `Plan`.

    Args:
      name: letters, digits and underscores; not that of a method of the package.
      function: of JAX arrays; it is traced, and under a sweep `problem.num_workers` is
        too, below the static `problem.max_workers`. NaN says that the scheme does not
        exist for this problem.
      gives: what the function does: "partition": problem to x, `[max_workers]`, Σ x =
        `problem.total`, 0 for n ≥ N; "levels": (problem, l) to the redundancy levels of
        coordinates (or units) l, some of 0…L-1; "runtime": (problem, T) to the runtime
        of one iteration, `[...]`, for cycle times T sorted slowest first,
        `[..., max_workers]` (beyond N they repeat the infimum); 2^17 draws make its
        mean; "expectation": (problem, key) to the expected runtime and its error; where
        it matters which worker is slow, of times that it draws itself.
      label: for figures; `name` by default.
      baseline: whether the "best baseline" of a table may be this scheme.

    Static under `jit`, by identity: make one and use it again.

    >>> def two_blocks(
    ...     problem,
    ... ):  # half of the coordinates uncoded, half with one to spare
    ...     level = jnp.arange(problem.max_workers)
    ...     return jnp.where(
    ...         level < 2, problem.total / jnp.minimum(problem.num_workers, 2), 0
    ...     )
    >>> from bcgc_jax import ShiftedExponential, solve
    >>> problem = Problem(
    ...     ShiftedExponential(1e-3, 50.0), num_workers=3, num_coordinates=100
    ... )
    >>> solve(problem, Scheme("two_blocks", two_blocks)).rounded.tolist()
    [50, 50, 0]
    """

    name: str
    function: Callable[..., Any]
    gives: str = "partition"
    label: str = ""
    baseline: bool = False
    __repr__ = represent

    def __post_init__(self) -> None:
        if self.gives not in _GIVES:
            raise ValueError(
                f'gives must be one of {", ".join(_GIVES)}, got "{self.gives}"'
            )
        if not self.name.isidentifier() or self.name in NAMES:
            sense = (
                "letters, digits and underscores, and none of a method of the package"
            )
            raise ValueError(f'the name of a scheme must be {sense}, got "{self.name}"')
        object.__setattr__(self, "label", self.label or self.name)

    @property
    def is_partition(self) -> bool:  # type: ignore[override]
        return self.gives in ("partition", "levels")

    def is_drawn(self, problem: Problem) -> bool:
        return self.gives == "runtime"

    def check(self, problem: Problem) -> None:
        if self.gives == "runtime" and not problem.plain:
            alone = (
                "makes runtimes of cycle times alone: it knows no start_up and no "
                "send_time"
            )
            raise ValueError(f'method="{self.name}" {alone}')

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        answer = _asked(self, problem, key)
        if not self.is_partition:
            return solution_of_value(problem, answer, drawn=self.is_drawn(problem))
        partition, status = answer
        if (
            not is_traced(answer)
            and status != Status.CONVERGED
            and not np.isnan(partition).any()
        ):
            raise ValueError(
                f'scheme "{self.name}" gave no partition of {problem.total:g} over '
                f"{problem.num_workers} levels: entries from {partition.min():g} to "
                f"{partition.max():g}, sum {partition.sum():g}; it must give what is "
                "at each level, NaN if it is none"
            )
        return assess(problem, partition, status)

    def array(self, what: str, shape: tuple[int, ...], *arguments: Any) -> Array:
        """What the function gives, which must have this shape."""
        values = jnp.asarray(self.function(*arguments))
        if values.shape != shape:
            raise ValueError(
                f'scheme "{self.name}" must give {what} of shape {shape}, got '
                f"{values.shape}"
            )
        return values


@functools.partial(jax.jit, static_argnums=0)
def _asked(scheme: Scheme, problem: Problem, key: Array | None) -> Any:
    """The expected runtime and its error, or a partition and its status."""
    if scheme.gives == "expectation":
        return Expectation(*scheme.function(problem, key))
    if scheme.gives == "runtime":
        return _mean_of_draws(scheme, problem, key)
    if scheme.gives == "levels":
        x = _partition_of_levels(scheme, problem)
    else:
        x = scheme.array("a partition", (problem.max_workers,), problem).astype(
            problem.dtype
        )
    # x ≥ 0, Σ x = L to rounding, and x_n = 0 for n ≥ N; nothing of it where anything is
    # NaN.
    share = x / problem.total
    slack = 1e3 * jnp.finfo(x.dtype).eps
    inside = jnp.all(share >= -slack) & jnp.all(problem.exists | (share <= slack))
    good = inside & (jnp.abs(jnp.sum(share) - 1) <= slack * max(x.size, 10))
    return x, jnp.where(good, int(Status.CONVERGED), int(Status.INFEASIBLE))


def _partition_of_levels(scheme: Scheme, problem: Problem) -> Array:
    # Some coordinates at a time, so that L may be traced. Their order does not matter:
    # ascending is best (Lemma 1).
    def add(i: Array, x: Array) -> Array:
        unit = i * _BATCH + jnp.arange(_BATCH)
        levels = scheme.array(
            "a level for each coordinate, an array", unit.shape, problem, unit
        )
        cost = jnp.ones(_BATCH, int)
        if problem.unit_costs is not None:
            cost = jnp.asarray(problem.unit_costs, x.dtype).at[unit].get(mode="clip")
        good = (levels >= 0) & (levels == jnp.floor(levels))
        whole = jnp.where(good, levels, x.size).astype(int)
        return x.at[whole].add(
            jnp.where(unit < problem.num_coordinates, cost, 0), mode="drop"
        )

    counts = jnp.zeros(
        problem.max_workers, int if problem.unit_costs is None else problem.dtype
    )
    batches = (jnp.asarray(problem.num_coordinates, int) + _BATCH - 1) // _BATCH
    return jax.lax.fori_loop(0, batches, add, counts).astype(problem.dtype)


def _mean_of_draws(scheme: Scheme, problem: Problem, key: Any) -> Expectation:
    def batch(key: Array) -> Array:
        times = iteration_of(problem).sorted_draws(key, _BATCH, problem.dtype)
        what = f"a runtime for each row of cycle times {times.shape}, an array"
        return scheme.array(what, (_BATCH,), problem, times).astype(problem.dtype)

    tau = jax.lax.map(batch, jax.random.split(key, NUM_DRAWS // _BATCH))
    return Expectation(jnp.mean(tau), jnp.std(tau) / NUM_DRAWS**0.5)

r"""`Drop`: each worker stops at a threshold θ, and what it has not ended is lost.

With F_k the time at which a worker has ended k of C chunks, and f_k its distribution
function, a step takes E min(θ, max F_C) = ∫_0^θ (1 - f_C^N) dt, and the share of
samples that is used is the mean of f_k(θ) over k. Both are known at the ends of panels;
between these the rules of Gauss and Legendre integrate.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax._derivatives import without_derivative
from bcgc_jax._pytree import pytree_dataclass, replace, static_field
from bcgc_jax.balancing import remedies
from bcgc_jax.distributions.special_functions import legendre, log_early
from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.plan import Plan, Requirements
from bcgc_jax.plans.stopped import Stopped
from bcgc_jax.plans.worker import Load, late_hazard
from bcgc_jax.problem import Problem
from bcgc_jax.solution import Solution, solution_of_value
from bcgc_jax.solvers.method import CHUNKS, Numbered

# Panels between quantiles of a worker's time, those that one of them is cut into, and
# how often.
_PANELS = 64
_CUT = 32
_ROUNDS = 3
# Nodes of the two rules in a panel; their difference is the error.
_ORDERS = (8, 6)


@pytree_dataclass
class Drop(Numbered):
    """The threshold with the least time for a sample that is used, of `chunks` in a
    subset (8).

    Workers stop at once, within a chunk too. A real worker ends its chunk. So of all
    samples (P(F_0 < θ) - P(F_C < θ)) / C more are used, and a step is up to a chunk of
    its slowest worker longer. Its mean is no integral of the f_k, for whoever is slower
    is at an earlier chunk.

    On average at least one worker ends all its chunks, as `Backup` waits for at least
    one. Without a limit there may be no best threshold: if a step has no cost of its
    own and times are near 0 with a density, ever shorter steps are better. At this
    limit `at_limit` of the plan's rule is true. Derivatives are NaN, because they need
    that of the threshold. Giladi et al., DropCompute, 2023.

    Raises:
      ValueError: If workers are not alike.

    >>> from bcgc_jax import Exponential, Problem, solve
    >>> found = solve(
    ...     Problem(Exponential(1e-3), num_workers=6, num_coordinates=2_000), "drop"
    ... )
    >>> bool(found.needs.exact_gradient), round(float(found.needs.lost), 2)
    (False, 0.65)
    """

    chunks: int | None = static_field(default=None)

    counts = (("chunks", 1),)
    word = remedies.Drop.name
    what = "a number of chunks"
    baseline = True
    is_partition = on_steps = False

    @classmethod
    def highest(cls, problem: Problem) -> int | None:
        return None

    def needs_mean(self, problem: Problem) -> bool:
        return False

    def check(self, problem: Problem) -> None:
        super().check(problem)
        iteration = iteration_of(problem)
        if not iteration.alike:
            raise ValueError(
                f'method="{self.name}" is for independent workers that are alike: see '
                "what bcgc advise says of their log"
            )

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        chunks = self.chunks or CHUNKS
        ends = _ends(problem, chunks)
        finer_ends = jnp.zeros(_CUT + 1, ends.dtype)
        way = np.linspace(0, 1, _CUT + 1, dtype=ends.dtype)
        for _ in range(_ROUNDS):
            best = _best(problem, jnp.concatenate([ends, finer_ends]), chunks)
            finer_ends = best.left + (best.right - best.left) * way
        best = without_derivative(best, problem)
        ones = np.ones(1, int)
        needs = Requirements(
            stored_subsets=jnp.ones((), int),
            sent=jnp.ones((), problem.dtype),
            round_trips=jnp.zeros((), int),
            exact_gradient=jnp.zeros((), bool),
            lost=1 - best.used,
        )
        plan = Plan(
            sizes=problem.total[None],
            block=0 * ones,
            data=ones,
            share=ones.astype(problem.dtype),
            completion=Stopped(
                problem.num_workers, best.threshold, chunks, best.at_limit
            ),
            known_needs=needs,
        )
        return replace(solution_of_value(problem, best.runtime), plan=plan)


class _Best(NamedTuple):
    """The best threshold, its neighbours left and right, E τ, and the share used.

    `at_limit`: whether no lower threshold is allowed.
    """

    threshold: Array
    at_limit: Array
    left: Array
    right: Array
    runtime: Expectation
    used: Array


def _load(problem: Problem, chunks: int) -> Load:
    """The load of a worker after each chunk."""
    return Load(
        problem.pass_load * (np.arange(1, chunks + 1) / chunks).astype(problem.dtype)
    )


def _least_whole(problem: Problem) -> Array:
    """The share of workers that at least end all their chunks: one of them."""
    return 1 / jnp.asarray(problem.num_workers, problem.dtype)


@functools.partial(jax.jit, static_argnums=1)
def _ends(problem: Problem, chunks: int) -> Array:
    """The ends of panels, in units of κ: quantiles of a worker's time and kinks."""
    worker = iteration_of(problem).worker
    load = _load(problem, chunks).work
    start, law = worker.start, worker.cycle_time
    high = jnp.log(jnp.asarray(problem.num_workers, load.dtype)) + 40
    hazard = jnp.geomspace(1e-4, high, _PANELS, dtype=load.dtype)
    hazard = jnp.append(hazard, -jnp.log1p(-_least_whole(problem)))
    typical = start + load[-1] * law.inverse_cumulative_hazard(hazard)
    times = jnp.append(law.infimum(), law.breaks())
    kinks = start + times[:, None] * load
    ends = jnp.concatenate([typical, kinks.ravel()]).astype(load.dtype)
    return jnp.where(jnp.isfinite(ends), ends, 0)


@functools.partial(jax.jit, static_argnums=2)
def _best(problem: Problem, ends: Array, chunks: int) -> _Best:
    """The best of thresholds at the ends of panels."""
    worker = iteration_of(problem).worker.with_fast_inverses()
    load = _load(problem, chunks)
    # An atom at an end has come, whatever rounding says.
    ends = jnp.sort(ends) * (1 + 8 * jnp.finfo(ends.dtype).eps)
    left = jnp.append(0, ends[:-1])
    size = ends - left

    def integrals(order: int) -> Array:
        node, weight = legendre(order)
        t = left[:, None] + size[:, None] * node.astype(ends.dtype)
        whole = Load(load.work[-1:])
        hazard = late_hazard(worker, whole, t.reshape(-1, 1)).reshape(t.shape)
        workers = jnp.asarray(problem.num_workers, ends.dtype)
        late = -jnp.expm1(workers * log_early(hazard))
        return size * jnp.sum(weight.astype(ends.dtype) * late, axis=1)

    fine, coarse = map(integrals, _ORDERS)
    step = jnp.cumsum(fine)
    ended = -jnp.expm1(-late_hazard(worker, load, ends[:, None]))
    used = jnp.mean(ended, axis=1)
    sent = problem.send_load * problem.total / problem.scale
    # That share of the atoms is enough, whatever rounding says.
    rounding = 64 * jnp.finfo(ended.dtype).eps
    possible = ended[:, -1] >= _least_whole(problem) * (1 - rounding)
    best = jnp.argmin(
        jnp.where(possible, (step + sent) / jnp.where(possible, used, 1), jnp.inf)
    )
    error = jnp.cumsum(jnp.abs(fine - coarse))[best]
    return _Best(
        threshold=ends[best],
        at_limit=~jnp.any(possible & (ends < ends[best])),
        left=left[best],
        right=ends[jnp.minimum(best + 1, ends.size - 1)],
        runtime=Expectation(problem.scale * (step[best] + sent), problem.scale * error),
        used=used[best],
    )

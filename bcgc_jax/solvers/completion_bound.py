r"""How probable can completion be at most? A proof, where the search for a deadline is
a local one.

With r_n = y_n κ/t, κ = M b/N, a worker has level n in time if T ≤ 1/r_n, with
probability exp(-u(r_n)), u(r) = -log P(T ≤ 1/r). By the quantile transform P(τ̂ ≤ t) is
the probability that the order statistics of N independent Exp(1) variables lie above
the u(r_n), whatever the distribution. Their density is log-concave, hence (Prékopa
1971) log P is concave in the u(r_n), and it falls in each of them.

Where u is convex, log P is concave in x, and every local maximum is the greatest: a
shifted exponential is such a distribution from rate · shift = 1 - log 2 on. Elsewhere a
convex function below u takes its place. That makes the workers faster and the problem
concave; its maximum is a bound. It need lie below u only between the limits that r_n
has in a plan no worse than a known one: alone each level must be in time as often.
Bounds of log P ± λ r_n draw these limits closer.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import betainc

from bcgc_jax._pytree import check, check_whole, replace
from bcgc_jax.distributions import Distribution
from bcgc_jax.distributions.special_functions import log_early
from bcgc_jax.exact.bisection import bisect
from bcgc_jax.exact.crossing import crossing_slopes
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.partitions import cumulative_load
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.deadline import completion_partition
from bcgc_jax.solvers.descent import projected_descent

# Cells between the limits of each r_n: of the convex functions, and of the suprema of a
# cut. More make a bound tighter; it holds with any.
_CELLS = 2**10
_FINE_CELLS = 2**15


class CompletionBound(NamedTuple):
    """P of the best partition that was found, and what no partition exceeds."""

    reached: float
    upper_bound: float


class _Minorant(NamedTuple):
    """A convex function below u for each level: u itself but in `straight` cells,
    `[N, cells]`.

    The cells are between `low` and `high`, the limits of each r_n, `[N]`.
    """

    low: Array
    high: Array
    values: Array
    straight: Array


class _Cut(NamedTuple):
    """log P(x) ≤ constant + Σ_n sup_r (fall_n u(r) + slopes_n (r - r_n(x)))."""

    constant: Array
    fall: Array
    slopes: Array
    share: Array


def completion_bound(
    problem: Problem, deadline: float, *, rounds: int = 3
) -> CompletionBound:
    r"""max_x P(τ̂(x,T) ≤ deadline), from below by the best partition found, from above
    by a proof.

    Each of `rounds` draws the limits of the levels closer, and takes as long as 4 N
    searches. In float64, whatever the caller's precision. For independent workers of
    one distribution without start-up, link and setup; of atoms too, though their bound
    is not tight.

    Raises ValueError for other problems. Not under `jit`.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(
    ...     ShiftedExponential(0.1, 4.0), num_workers=3, num_coordinates=100
    ... )
    >>> found = completion_bound(problem, 900.0, rounds=0)
    >>> bool(
    ...     found.reached <= found.upper_bound < found.reached + 1e-4
    ... )  # 0.4 ≥ 1 - log 2
    True
    """
    check_whole("rounds", rounds, 0)
    check("deadline", deadline, "> 0")
    if not (problem.bare and iteration_of(problem).alike):
        raise ValueError(
            "the bound is for independent like workers without start-up, link and setup"
        )
    with jax.enable_x64(True):
        wide = jax.tree.map(_double, problem)
        # Without padding.
        problem = replace(wide, max_workers=int(np.asarray(problem.num_workers)))
        best = completion_partition(problem, deadline)
        reached = float(best.value)
        share = best.point / problem.total
        if not 0 < reached < 1:
            return CompletionBound(reached, 1.0)
        law = iteration_of(problem).pooled()
        size = problem.max_workers
        # The r_n of all coordinates at level 0.
        total = problem.total * problem.scale / deadline
        low = jnp.zeros(size)
        high = _first_limits(law, size, reached)
        upper = 1.0
        for left in reversed(range(rounds + 1)):
            minorant = _minorant(law, low, high)
            bound, cut = _bounds(
                law, minorant, total, reached, share, jnp.zeros((1, size))
            )
            upper = min(upper, float(jnp.nan_to_num(jnp.exp(bound[0]), nan=1.0)))
            share = cut.share[0]
            if left:
                tilts = jnp.array([-3.0, -1.0, 1.0, 3.0])[:, None] * cut.slopes  # λ
                single_tilts = jnp.concatenate([jnp.diag(tilt) for tilt in tilts])
                bounds, _ = _bounds(law, minorant, total, reached, share, single_tilts)
                low, high = _closer(low, high, tilts, bounds, reached)
        return CompletionBound(reached, max(reached, upper))


def _double(leaf: Any) -> Any:
    if jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
        return jnp.asarray(leaf, float)
    return leaf


def _lateness(law: Distribution, r: Array) -> Array:
    """u(r) = -log P(T ≤ 1/r); 0 at r = 0."""
    hazard = law.cumulative_hazard(1 / jnp.where(r > 0, r, 1))
    return jnp.where(r > 0, -log_early(hazard), 0)


@jax.jit
def _log_in_time(lateness: Array) -> Array:
    """log P of the levels' u, `[N]`, slowest worker first."""
    u = jnp.maximum(lateness, float(jnp.finfo(lateness.dtype).tiny))
    late, _ = crossing_slopes(-log_early(u), u.size)
    return jnp.log1p(-late)


@functools.partial(jax.jit, static_argnums=1)
def _first_limits(law: Distribution, workers: int, reached: float) -> Array:
    """The largest r_n with which a level alone is in time as often as `reached`."""
    level = jnp.arange(workers, dtype=float)

    def too_large(exponent: Array) -> Array:
        in_time = jnp.exp(-_lateness(law, 2**exponent))
        return ~(betainc(workers - level, level + 1, in_time) >= reached)

    return 2 ** bisect(too_large, 0 * level - 60, 0 * level + 60)[1]


def _closer(
    low: Array, high: Array, tilts: Array, bounds: Array, reached: float
) -> tuple[Array, Array]:
    """Limits where P ≥ `reached`, by λ r_n ≤ max (log P + λ r_n) - log reached."""
    limit = (bounds - np.log(reached)).reshape(tilts.shape) / tilts
    closer_low = jnp.nanmax(
        jnp.vstack([jnp.where(tilts < 0, limit, jnp.nan), low]), axis=0
    )
    closer_high = jnp.nanmin(
        jnp.vstack([jnp.where(tilts > 0, limit, jnp.nan), high]), axis=0
    )
    # All but for rounding, where there is hardly any room.
    good = closer_low < closer_high
    return jnp.where(good, closer_low, low), jnp.where(good, closer_high, high)


def _minorant(law: Distribution, low: Array, high: Array) -> _Minorant:
    """The greatest convex functions that are below u at the ends of the cells."""
    nodes = _nodes(low, high, _CELLS)
    r = np.asarray(nodes)
    u = np.asarray(_lateness(law, nodes))
    values = np.empty_like(u)
    straight = np.empty((len(u), _CELLS), bool)
    for level, (x, y) in enumerate(zip(r, u, strict=True)):
        # The convex hull rests on them: next is the one of the least slope.
        corners = [0]
        while corners[-1] < _CELLS:
            i = corners[-1]
            slopes = (y[i + 1 :] - y[i]) / (x[i + 1 :] - x[i])
            corners.append(i + 1 + int(np.argmin(slopes)))
        values[level] = np.interp(x, x[corners], y[corners])
        straight[level] = np.repeat(np.diff(corners) > 1, np.diff(corners))
    return _Minorant(low, high, jnp.asarray(values), jnp.asarray(straight))


def _nodes(low: Array, high: Array, cells: int) -> Array:
    return low[:, None] + (high - low)[:, None] * jnp.linspace(0, 1, cells + 1)


def _faster(law: Distribution, minorant: _Minorant, r: Array) -> Array:
    """The convex functions at r, `[N]`; straight beyond their limits, but never < 0."""
    low = minorant.low
    high = minorant.high
    cells = minorant.straight.shape[1]
    place = (r - low) / (high - low) * cells
    cell = jnp.clip(jnp.floor(jax.lax.stop_gradient(place)), 0, cells - 1).astype(int)
    level = np.arange(r.size)
    left, right = (minorant.values[level, cell + i] for i in (0, 1))
    line = jnp.maximum(left + (place - cell) * (right - left), 0)
    inside = (r > low) & (r < high) & ~minorant.straight[level, cell]
    return jnp.where(inside, _lateness(law, jnp.where(inside, r, high)), line)


@jax.jit
def _bounds(
    law: Distribution,
    minorant: _Minorant,
    total: Array,
    reached: float,
    share: Array,
    tilts: Array,
) -> tuple[Array, _Cut]:
    """Bounds of log P + Σ tilt_n r_n, `[K]`, and the cuts that give them."""
    size = share.size

    def touching(tilt: Array) -> _Cut:
        def log_p(r: Array) -> Array:
            return _log_in_time(_faster(law, minorant, r))

        def value(share: Array) -> Array:
            r = total * cumulative_load(share)
            return (log_p(r) + jnp.sum(tilt * r)) / jnp.log(reached)

        all_levels = jnp.ones(size, bool)
        touched = projected_descent(
            value, all_levels, share, tolerance=1e-7, max_steps=400
        ).point
        r = total * cumulative_load(touched)
        u = _faster(law, minorant, r)
        log_in_time, fall = jax.value_and_grad(_log_in_time)(u)
        # The cut holds for any numbers of these signs.
        fall = jnp.minimum(fall, 0)
        slopes = jnp.maximum(-jax.grad(log_p)(r), 0)
        return _Cut(
            constant=log_in_time - jnp.sum(fall * u),
            fall=fall,
            slopes=slopes,
            share=touched,
        )

    cut = jax.vmap(touching)(tilts)
    bound = cut.constant + _suprema(law, minorant.low, minorant.high, cut)
    # Σ_n a_n r_n(x) ≥ total · min_i (i+1) Σ_{n≥i} a_n for every a.
    tail_sums = jax.lax.cumsum(cut.slopes - tilts, axis=1, reverse=True)
    bound = bound - total * jnp.min(
        tail_sums * jnp.arange(1, tail_sums.shape[1] + 1), axis=1
    )
    # More than rounding does to a sum of logarithms of probabilities.
    return bound + 1e-11, cut


def _suprema(law: Distribution, low: Array, high: Array, cut: _Cut) -> Array:
    """Σ_n sup_r (fall_n u(r) + slopes_n r) between the limits, `[K]`."""
    nodes = _nodes(low, high, _FINE_CELLS)
    u = _lateness(law, nodes)

    def supremum(of: tuple[Array, Array]) -> Array:
        fall, slopes = of
        return jnp.sum(
            jnp.max(fall[:, None] * u[:, :-1] + slopes[:, None] * nodes[:, 1:], axis=1)
        )

    return jax.lax.map(supremum, (cut.fall, cut.slopes))

r"""The optimal partition: Newton's method with an interior point, on the exact expected runtime.

f(x) = E τ̂(x,T) is convex and homogeneous, so the simplex can be left behind: the minimum over x ≥ 0 of

    h(x) = f(x) / f₀ - log Σ x

is a multiple of the optimal partition. Its bounds are kept by a primal-dual barrier: slopes g, multipliers
z and x solve g = z, x z = μ, μ → 0. The Hessian of f has a closed form, O(N³) a node (`_second_order`), so
each step is Newton's, and five to fifteen of them do. The stopping rule is the certificate,
1 - Σx min_n g_n / f.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.distributions import Law
from bcgc_jax.expectation import load_nodes, threshold_hazard
from bcgc_jax.order_statistics import Crossing
from bcgc_jax.partitions import cumulative_load
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solvers.closed_form import time_partition

# Nodes for the steps; the certificate of the answer is taken with the finer rule of `certificate`.
_NUM_NODES = 96
# A step keeps this share of the way to the boundary; Armijo's slope; backtracking. Customary values.
_TO_BOUNDARY, _SUFFICIENT, _BACKTRACK = 0.995, 1e-4, 0.4


class OptimalResult(NamedTuple):
    """Partition, `[max_workers]`, its status, and the Newton steps taken."""

    partition: Array
    status: Array
    num_steps: Array


class _Expansion(NamedTuple):
    """Value, slope and Hessian of f / f₀ in x."""

    value: Array
    slope: Array
    hessian: Array


def optimal_partition(problem: Problem, *, tolerance: float = 1e-7, max_steps: int = 60) -> OptimalResult:
    r"""argmin E τ̂(x,T), to a relative gap of `tolerance` between f(x) and its lower bound.

    Starts from x^(t), moved inside. `max_steps` is static. For laws without atoms.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=4, num_coordinates=100)
    >>> result = optimal_partition(problem, tolerance=1e-3)
    >>> int(result.status), round(float(result.partition.sum()), 3)
    (0, 100.0)
    """
    workers, levels, law = problem.num_workers, problem.exists, problem.cycle_time
    dtype = problem.dtype
    count = jnp.asarray(workers, dtype)
    # Steps beyond the working precision only wander.
    tolerance = max(tolerance, float(64 * jnp.finfo(dtype).eps))
    level = jnp.arange(problem.max_workers)
    # load = loads @ x
    loads = jnp.where(level[None, :] <= level[:, None], level + 1, 0).astype(dtype)

    def inside(values: Array, padding: ArrayLike = 0) -> Array:
        return jnp.where(levels, values, padding)

    def expand(x: Array, unit: Array) -> _Expansion:
        value, slope, hessian = _second_order(law, cumulative_load(x), workers)
        return _Expansion(value / unit, loads.T @ slope / unit, loads.T @ hessian @ loads / unit)

    def gap(x: Array, f: _Expansion) -> Array:
        return 1 - jnp.min(inside(f.slope, jnp.inf)) * jnp.sum(x) / f.value

    def merit(x: Array, f: _Expansion, barrier: Array) -> Array:
        return f.value - jnp.log(jnp.sum(x)) - barrier * jnp.sum(jnp.log(inside(x, 1)))

    def step_length(u: Array, du: Array) -> Array:
        fastest = jnp.max(inside(-du / inside(u, 1)))
        return _TO_BOUNDARY / jnp.maximum(fastest, _TO_BOUNDARY)

    def step(carry):
        i, x, z, barrier, f, unit, _ = carry
        total, safe = jnp.sum(x), inside(x, 1)
        slope = inside(f.slope - 1 / total - barrier / safe)
        hessian = f.hessian + 1 / total**2 + jnp.diag(z / safe)
        both = levels[:, None] & levels[None, :]
        scaled = jnp.where(both, hessian * safe[:, None] * safe[None, :], jnp.eye(level.size))
        dx = inside(solve_positive(scaled, -slope * safe) * safe)
        dx = jnp.where(i == 0, 0, dx)  # round 0 only evaluates the start: `expand` is compiled once
        dz = inside(barrier / safe - z - z / safe * dx)
        start = merit(x, f, barrier)
        descent = _SUFFICIENT * jnp.sum(slope * dx)
        rounding = 64 * jnp.finfo(dtype).eps

        def too_long(trial):
            length, new, f_new, tries = trial
            good = merit(new, f_new, barrier) <= start + length * descent + rounding
            return (tries == 0) | ((tries < 12) & ~good & (i > 0))

        def shorten(trial):
            length, _, _, tries = trial
            length = jnp.where(tries == 0, length, _BACKTRACK * length)
            new = inside(x + length * dx)
            return length, new, expand(new, unit), tries + 1

        length = step_length(x, dx)
        _, x, f, tries = jax.lax.while_loop(too_long, shorten, (length, x, f, 0))
        z = inside(jnp.maximum(z + step_length(z, dz) * dz, 1e-4 * barrier / safe))
        # Superlinear once the products x z are small, linear before; none after a step that was cut.
        product = jnp.sum(x * z) / count
        smaller = jnp.maximum(jnp.minimum(0.1 * product, 5 * product**1.5), 0.05 * tolerance / count)
        barrier = jnp.where((tries <= 2) & (i > 0), jnp.minimum(barrier, smaller), barrier)
        # f₀ is the value at the start, known after round 0.
        found = jnp.where(i == 0, f.value, 1)
        f = jax.tree.map(lambda a: a / found, f)
        return i + 1, x, z, barrier, f, unit * found, gap(x, f)

    def go_on(carry):
        return (carry[0] <= max_steps) & ~(carry[-1] <= tolerance)

    start = time_partition(problem) / problem.total
    x = inside(0.9 * start + 0.1 / count)
    barrier = 1e-2 / count
    one = jnp.ones((), dtype)
    unknown = _Expansion(one, jnp.zeros_like(x), jnp.eye(level.size, dtype=dtype))
    carry = (jnp.asarray(0), x, inside(barrier / inside(x, 1)), barrier, unknown, one, one)
    rounds, x, _, _, _, _, reached = jax.lax.while_loop(go_on, step, carry)
    status = jnp.where(reached <= tolerance, int(Status.CONVERGED), int(Status.STEP_LIMIT))
    return OptimalResult(x / jnp.sum(x) * problem.total, status, rounds - 1)


def _second_order(law: Law, load: Array, num_workers: ArrayLike) -> tuple[Array, Array, Array]:
    r"""Value, slope and Hessian in the load y of F(y) = E max_n y_n T_(N-n).

    With c_n = -∂b_n/∂y_n and the Poisson process of `crossing_probability`, level j before k in time,

        ∂F/∂y_n = ∫ N V_n R_n c_n dt / Pois(N; N),
        ∂²F/∂y_j∂y_k = -∫ N² V_j G_jk R_k c_j c_k dt / Pois(N; N),

    where G_jk is the probability that the first failure after C(b_j) = j is at k. All terms are positive.
    F is homogeneous of degree 1, so Σ_k y_k ∂²F/∂y_j∂y_k = 0 gives the diagonal.
    """
    start, t, weight = load_nodes(law, load, num_workers, _NUM_NODES)
    hazard, rate = threshold_hazard(law, load, t)
    crossing = Crossing(hazard, num_workers)
    density = jnp.moveaxis(jnp.exp(-hazard) * rate, -1, 0)[::-1]  # c, on the axes of `Crossing`
    first, success = crossing.first_failures(), crossing.successes()
    value = start + jnp.sum(weight * crossing.probability(first))
    arrive = first * density * crossing.workers / crossing.total
    leave = success * density
    slope = jnp.sum(weight * arrive * success, axis=-1)

    def column(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        reach, hessian = carry  # G_jk, `[N, N, nodes]`
        at_k, just_before = crossing.transition(k)
        new = just_before - jnp.sum(reach * at_k[None], axis=1)
        entry = -crossing.workers * jnp.sum(weight * arrive * new * leave[k], axis=-1)
        return reach.at[:, k].set(new), hessian.at[:, k].set(entry)

    size = load.size
    zero = jnp.zeros((size, size), load.dtype)
    reach = jnp.zeros((size, size, t.size), load.dtype)
    _, upper = jax.lax.fori_loop(0, size, column, (reach, zero))
    hessian = jnp.minimum(upper + upper.T, 0)[::-1, ::-1]
    diagonal = -(hessian @ load) / jnp.where(load > 0, load, 1)
    return value, slope[::-1], hessian + jnp.diag(diagonal)


def solve_positive(matrix: Array, rhs: Array) -> Array:
    """matrix⁻¹ rhs for a symmetric positive definite matrix, by Gauss–Jordan elimination.

    In plain array code: LAPACK calls inside a loop may lock up the CPU's thread pool (see
    `crossing_probability`), and N is small.
    """

    def eliminate(i: Array, system: Array) -> Array:
        row = system[i] / system[i, i]
        return (system - system[:, i, None] * row).at[i].set(row)

    system = jnp.concatenate([matrix, rhs[:, None]], axis=1)
    return jax.lax.fori_loop(0, rhs.size, eliminate, system)[:, -1]

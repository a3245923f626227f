r"""The programs of the optimum for many workers: sums over nodes, and Newton's step.

Values and gradients are exact (`windows`), but the Hessian is a model. In
v_n = δy_n / y_n it is Σ_{j<k} K_jk (v_j - v_k)². K_jk contains G_jk, the probability
that a path on level j first fails at level k. The larger of two approximations is used:

- The path stays near the boundary. For a straight boundary, the ballot theorem gives
  G_jk = Pois(k-j-1; λ_jk) / (k-j). For a curved boundary c, by Girsanov's theorem, the
  factor exp(-½ ∫(c' - mean c')² dτ + ∫ c'' E e dτ + …) is added. Here the path is a
  Brownian motion in time τ = N b, and e is its excursion above the boundary.
- The path moves far away, and forgets where it left the boundary. Then
  G_jk = V_k R_j / P(no level fails). V_k is the probability that level k is the first
  to fail, and R_j that no level fails after level j. Nearly all paths on the highest
  level are of this kind.

Sums over levels use a sample of the levels. Close pairs of levels, which make the
Hessian stiff, are still exact.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.distributions import Distribution
from bcgc_jax.exact.linear_algebra import dot, solve_positive
from bcgc_jax.exact.order_statistics import typical_hazards
from bcgc_jax.exact.windows import windowed_paths
from bcgc_jax.plans.marks import Marks, search_rule, threshold_hazard
from bcgc_jax.solvers.expected_maximum import NUM_NODES, nested_rules
from bcgc_jax.solvers.optimal import first_shares

# Number of nodes that a core sums at a time, which bounds memory.
NODES_AT_A_TIME = 16
# Second cumulant of an excursion's area, divided by the square of the first. For a
# parabola it is 0.03. Of 0.01, 0.02 and 0.03, this value needs the fewest steps at
# N = 400. With 0, the search at N = 10,000 ends 8 % above the optimum.
_SECOND_CUMULANT = 0.02


@jax.jit
def first_partition(law: Distribution, unit_load: Array) -> Array:
    """Return shares with which all levels finish at about the same time.

    The times are typical times, 1.5 standard deviations above the mean.
    """
    (hazard,) = typical_hazards(unit_load, unit_load.size, (1.5,))
    return first_shares(unit_load > 0, law.inverse_cumulative_hazard(hazard), 0.001)


@jax.jit
def sums_of_piece(
    law: Distribution,
    marks: Marks,
    load: Array,
    samples: Array,
    refine: Array,
    piece: Array,
) -> tuple[Array, Array, Array, tuple[Array, ...]]:
    """Sum over one piece of the nodes of a rule.

    Returns:
      start: Start of the rule.
      value: Values by three rules, and of the omitted tails, `[4]`.
      slope: Gradients in the load by three rules, `[3, N]`.
      rows: Input of the model for each node and each of its levels: Λ, and the
        probabilities of arriving, leaving and both. They include the density in the
        logarithm of the load, and the last is divided by √P(no level fails).
    """
    size = load.size
    start, beyond, count, nodes = search_rule(law, marks, load, NUM_NODES)
    index = piece * NODES_AT_A_TIME + np.arange(NODES_AT_A_TIME)
    inside = index < count * refine
    t, weight = nodes(jnp.where(inside, index, 0), refine)
    weight = jnp.where(inside, weight, 0)
    hazard, rate = threshold_hazard(law, load, t, marks.largest)
    paths = windowed_paths(hazard, size)
    rules = nested_rules(index, count * refine) * weight
    left_out = jnp.where(piece == 0, beyond, 0) * np.array([0, 0, 0, 1], load.dtype)
    value = dot(rules, paths.probability) + left_out
    density = jnp.where(jnp.isfinite(hazard), jnp.exp(-hazard) * rate, 0)
    passing = paths.arrive * paths.leave
    safe = jnp.where(passing > 0, density, 0)
    slope = dot(rules[:3], jnp.where(passing > 0, size * passing * safe, 0))
    local = size * density[:, samples] * load[samples]
    arrive = paths.arrive[:, samples]
    arrive = jnp.where(arrive > 0, arrive * local, 0)
    leave = paths.leave[:, samples]
    leave = jnp.where(leave > 0, leave * local, 0)
    no_failure = 1 - paths.probability[:, None]
    may_hold = no_failure > jnp.finfo(load.dtype).eps ** 0.5
    sampled = passing[:, samples]
    apart = jnp.where(may_hold & (sampled > 0), sampled * local, 0)
    apart = apart * jnp.sqrt(weight[:, None] / jnp.where(may_hold, no_failure, 1))
    return (
        start,
        value,
        slope,
        (hazard[:, samples], arrive * weight[:, None], leave, apart),
    )


@jax.jit
def newton_direction(
    columns: Array,
    samples: Array,
    x: Array,
    slope: Array,
    z: Array,
    barrier: Array,
    unit: Array,
    rows: Any,
) -> tuple[Array, Array]:
    """Compute Newton's step ρ in the columns' logarithms, and the merit's slope."""
    size = x.size
    level = np.arange(1, size + 1)
    moved = columns * x[:, None]
    load = jnp.cumsum(level * x)[samples]
    response = jnp.cumsum(level[:, None] * moved, axis=0)[samples] / load[:, None]
    laplacian = laplacian_of_levels(samples, size, *rows) / unit
    mass = jnp.sum(moved, axis=0)
    total = jnp.sum(x)
    gradient = dot(moved.T, slope) - mass / total - barrier
    hessian = (
        dot(response.T, laplacian, response) + mass[:, None] * mass[None, :] / total**2
    )
    hessian = hessian + jnp.diag(z * mass)
    scale = jnp.sqrt(jnp.diag(hessian))
    step = (
        -solve_positive(hessian / (scale[:, None] * scale[None, :]), gradient / scale)
        / scale
    )
    return step, jnp.sum(gradient * step)


def laplacian_of_levels(
    samples: Array, size: int, hazard: Array, arrive: Array, leave: Array, apart: Array
) -> Array:
    """Compute the Laplacian of Σ K_jk (v_j - v_k)², with sampled levels for others."""
    middles = (samples[1:] + samples[:-1]) / 2
    cells = jnp.diff(
        jnp.concatenate([jnp.array([-0.5]), middles, jnp.array([size - 0.5])])
    )
    lag = samples[:, None] - samples[None, :]  # the earlier, higher level is first
    later = lag > 0
    lag = jnp.maximum(lag, 1)
    real_lag = lag.astype(hazard.dtype)
    log_lag = jax.scipy.special.gammaln(real_lag) + jnp.log(real_lag)

    def add(pairs: Array, node: tuple[Array, ...]) -> tuple[Array, None]:
        hazard, arrive, leave, apart = node
        below = -jnp.expm1(-hazard)
        above = jnp.exp(-hazard)
        by_above = above[:, None] - above[None]
        by_below = below[None] - below[:, None]
        share = jnp.where(below[None] > 0.5, by_above, by_below)
        rate = size * jnp.maximum(share, 1e-30)
        log_first = (lag - 1) * jnp.log(rate) - rate - log_lag
        first = jnp.exp(jnp.minimum(log_first + _curved(samples, size * below), 0))
        product = arrive[:, None] * leave[None]
        far = jnp.minimum(apart[:, None] * apart[None], product)
        return pairs + jnp.where(later, jnp.maximum(first * product, far), 0), None

    zero = jnp.zeros(lag.shape, hazard.dtype)
    pairs, _ = jax.lax.scan(add, zero, (hazard, arrive, leave, apart))
    pairs = cells[:, None] * (pairs + pairs.T) * cells[None]
    return jnp.diag(jnp.sum(pairs, axis=1)) - pairs


def _curved(samples: Array, time: Array) -> Array:
    """Compute log(G_jk / G_jk of a straight boundary) at the `samples`, `[j, k]`."""
    count = -samples[::-1].astype(time.dtype)
    time = time[::-1]
    step = jnp.maximum(jnp.diff(time), 1e-12)
    rise = jnp.diff(count)
    pace = rise / step
    energy = jnp.concatenate([jnp.zeros(1, time.dtype), jnp.cumsum(pace * rise)])
    span = time[None] - time[:, None]
    safe = jnp.where(span > 0, span, 1)
    bent = -0.5 * (
        energy[None] - energy[:, None] - (count[None] - count[:, None]) ** 2 / safe
    )
    turn = jnp.pad(jnp.diff(pace), 1)
    root = jnp.sqrt(jnp.maximum(span, 0))
    # An excursion of unit length has the mean E e = 4 / √(2π) √(u (1 - u)).
    area = 4 / np.sqrt(2 * np.pi) * dot(root * turn, root) / jnp.sqrt(safe)
    ratio = jnp.where(span > 0, bent + area + _SECOND_CUMULANT * area**2, 0)
    return jnp.clip(ratio[::-1, ::-1], -30, 30)

r"""The programs of the optimum for many workers: sums over nodes, and a model's step.

Values and slopes are exact (`windows`). The Hessian is a model. Of v_n = δy_n / y_n it
is Σ_{j<k} K_jk (v_j - v_k)², where K_jk has the probability G_jk that a path on level j
first fails at level k; the larger of two answers:

- a path that stays near the boundary. To a straight one G_jk is the ballot theorem's,
  Pois(k-j-1; λ_jk) / (k-j); for the curvature of the boundary c, of a Brownian motion
  in time τ = N b, the excursion e above it counts exp(-½ ∫(c' - mean c')² dτ + ∫ c'' E
  e dτ + …) times as much (Girsanov);
- one that got away, and has forgotten where it left: G_jk = V_k R_j / P(no level
  fails), with V_k that level k is the first to fail and R_j that none does after level
  j. Of the highest level nearly all paths are such.

Sums over levels are taken at some of them. Close pairs, which make the Hessian stiff,
come out exact.
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

# Nodes at a time, for each of the machine's cores, for memory.
NODES_AT_A_TIME = 16
# The second cumulant of an excursion's area over the first, squared. For a parabola it
# is 0.03; of 0.01, 0.02 and 0.03 this has the fewest steps at N = 400. Without it N =
# 10,000 ends 8 % above the optimum.
_SECOND_CUMULANT = 0.02


@jax.jit
def first_partition(law: Distribution, unit_load: Array) -> Array:
    """Shares that end all levels at about one time, 1.5 deviations above the mean."""
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
    """The start of the rule, the sums over one piece of its nodes, and the model's rows
    of them.

    The sums are values of three rules and of what is left out, `[4]`, and slopes,
    `[3, N]`. The rows are of each node Λ at the model's levels, what arrives at them
    and leaves, with the density in the logarithm of the load, and what does both, over
    the root of the probability that none fails.
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
    """Newton's step ρ in the columns' logarithms, and the merit's slope along it."""
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
    """The Laplacian of Σ K_jk (v_j - v_k)²; a level stands for those next to it."""
    middles = (samples[1:] + samples[:-1]) / 2
    cells = jnp.diff(
        jnp.concatenate([jnp.array([-0.5]), middles, jnp.array([size - 0.5])])
    )
    lag = samples[:, None] - samples[None, :]  # the earlier level, a higher one, first
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
    """log of G_jk at `samples`' levels over that of a straight boundary, `[j, k]`."""
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
    # E e = 4 / √(2π) √(u (1 - u)) of an excursion of unit length.
    area = 4 / np.sqrt(2 * np.pi) * dot(root * turn, root) / jnp.sqrt(safe)
    ratio = jnp.where(span > 0, bent + area + _SECOND_CUMULANT * area**2, 0)
    return jnp.clip(ratio[::-1, ::-1], -30, 30)

r"""Quadrature of F(y) = E max_n y_n T_(N-n), its gradient and its Hessian.

The Hessian takes O(N³) operations per node, value and gradient take O(N²).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.distributions import Distribution
from bcgc_jax.distributions.order import ascending_in_k, by_level
from bcgc_jax.exact.crossing import Crossing, shares
from bcgc_jax.exact.linear_algebra import LARGE, dot
from bcgc_jax.exact.quadrature import rule_error
from bcgc_jax.plans.marks import (
    Marks,
    homogeneous_slope,
    peaks_of,
    search_rule,
    threshold_hazard,
)

# Number of intervals of the first rule.
NUM_NODES = 32
# Strides of three nested rules, which have all, every second and every fourth node.
# Together they show how fast the rules converge (`rule_error`).
NESTED = (1, 2, 4)
# Number of entries of a matrix over levels and nodes, which bounds memory to 2 MiB.
_ENTRIES = 2**18
# Number of nodes that are summed at a time without a Hessian, which bounds memory.
_NODES_AT_A_TIME = 32
# From `LARGE` levels on, a node does not count in the Hessian if it adds less than this
# fraction of F to y · ∇F = F. At N = 1000, 15 of 64 nodes count. The Hessian affects
# only the direction of a step.
_NO_SHARE = 1e-5


class Workers(NamedTuple):
    """The parameters of F(y) = E max_n y_n T_(N-n), without the load y."""

    law: Distribution
    marks: Marks
    num_workers: ArrayLike


class Sums(NamedTuple):
    """Sums over nodes.

    Attributes:
      value: Values by the three nested rules, and of the omitted tails, `[4]`.
      slope: Gradient in the load by the first rule, `[1, N]`; with many levels, by all
        three rules, `[3, N]`.
      upper: Upper half of the Hessian in the load, `[N, N]`.
    """

    value: Array
    slope: Array
    upper: Array


def no_sums(load: Array) -> Sums:
    zero = jnp.zeros((load.size, load.size), load.dtype)
    rules = 1
    if load.size > LARGE:
        rules = 3
    return Sums(
        jnp.zeros(4, load.dtype), jnp.zeros((rules, load.size), load.dtype), zero
    )


def sums_over_nodes(
    workers: Workers, load: Array, refine: Array, *, with_hessian: bool = True
) -> tuple[Array, Sums]:
    """Compute the start of the rule `refine` times as fine, and its sums."""
    start, count, add = rule_in_pieces(workers, load, refine, with_hessian=with_hessian)
    return start, jax.lax.fori_loop(0, count, add, no_sums(load))


def first_fineness(size: int) -> int:
    """Return the refinement of the first rule.

    It increases with N, because the contribution of a level to the integral lies in a
    time range of relative width 1/√N.
    """
    if size <= LARGE:
        return 1
    return max(1, round((size / 256) ** 0.5))


def nested_rules(index: Array, count: Array) -> Array:
    """Return the weights of nodes in the three nested rules, and at both ends."""
    ends = (index == 0) | (index == count - 1)
    return jnp.stack([*(stride * (index % stride == 0) for stride in NESTED), ends])


def rule_in_pieces(
    workers: Workers,
    load: Array,
    refine: Array,
    *,
    batched: bool = False,
    with_hessian: bool = True,
) -> tuple[Array, Array, Callable[[Array, Sums], Sums]]:
    r"""Return the rule for F(y), `refine` times as fine, in pieces of its nodes.

    With c_n = -∂b_n/∂y_n, and level j before level k in time,

        ∂F/∂y_n = ∫ N V_n R_n c_n dt / Pois(N; N),
        ∂²F/∂y_j∂y_k = -∫ N² V_j G_jk R_k c_j c_k dt / Pois(N; N).

    The probabilities are for the Poisson process of `crossing_probability`. V_n: level
    n is the first to fail. R_n: no level fails after n. G_jk: the first failure after
    C(b_j) = j is at k. All terms are positive.

    Returns:
      The start of the rule, the number of pieces, and a function (piece, sums) that
      adds a piece to the `Sums`.
    """
    start, beyond, size, nodes = search_rule(
        workers.law, workers.marks, load, NUM_NODES
    )
    many_levels = load.size > LARGE
    length = min(size, _NODES_AT_A_TIME)
    if with_hessian:
        length = max(1, min(size, _ENTRIES // load.size**2))

    def add(piece: Array, sums: Sums) -> Sums:
        index = piece * length + jnp.arange(length)
        t, weight = nodes(index, refine)
        hazard, rate = threshold_hazard(workers.law, load, t, workers.marks.largest)
        crossing = Crossing(shares(hazard), workers.num_workers, batched)
        density = crossing.above * ascending_in_k(rate)
        following = None
        if with_hessian and not many_levels:
            first, success, following = crossing.renewals()
        else:
            first = crossing.first_failures()
            success = crossing.successes()
        rules = nested_rules(index, size * refine)
        value = jnp.sum(rules * weight * crossing.probability(first), axis=1)
        value = value + jnp.where(piece == 0, beyond, 0) * np.array(
            [0, 0, 0, 1], load.dtype
        )
        arrive = first / crossing.total * crossing.unit * density * weight
        leave = success * density
        leaving = arrive * success
        if many_levels:
            slope = dot(rules[:3], leaving.T)
        else:
            slope = jnp.sum(leaving, axis=-1)

        def upper() -> Array:
            between = crossing.renewals()[2] if following is None else following
            joint = jnp.sum(arrive[:, None] * between * leave[None], axis=-1)
            return sums.upper - crossing.unit * joint

        so_far = Sums(
            value=sums.value + value, slope=sums.slope + slope, upper=sums.upper
        )
        if not with_hessian:
            return so_far
        if not many_levels:
            return so_far._replace(upper=upper())
        part = (
            jnp.sum(dot(ascending_in_k(load), leaving))
            / peaks_of(workers.marks.times, load)[2]
        )
        counts = part > _NO_SHARE
        return so_far._replace(upper=jax.lax.cond(counts, upper, lambda: sums.upper))

    pieces = jax.lax.div(size * refine + length - 1, jnp.asarray(length, refine.dtype))
    return start, pieces, add


def first_derivatives(
    workers: Workers, loads: Array, load: Array, start: Array, sums: Sums
) -> tuple[Array, Array, Array]:
    """Compute value, error and gradient in x of F(y), y = loads @ x, from all sums.

    The gradient is `[1, N]`; with many levels, it is by three rules, `[3, N]`.
    """
    fine, coarse, coarsest, left_out = sums.value
    value = start + fine
    error = rule_error(fine, coarse, coarsest) + left_out
    if not workers.law.smooth:  # Gauss rules are not nested
        error = jnp.zeros_like(error)
    slopes = []
    for of_rule, slope in zip(start + sums.value, sums.slope, strict=False):
        slopes.append(
            homogeneous_slope(of_rule, by_level(slope), load, workers.num_workers)
        )
    return value, error, dot(jnp.stack(slopes), loads)


def second_derivatives(loads: Array, load: Array, upper: Array) -> Array:
    r"""Compute the Hessian in x of F(y), y = loads @ x, `[N, N]`.

    `upper` is the upper half of the Hessian in y. F is homogeneous of degree 1, so
    Σ_k y_k ∂²F/∂y_j∂y_k = 0 gives the diagonal.
    """
    hessian = jnp.minimum(upper + upper.T, 0)[::-1, ::-1]  # both axes are by level
    diagonal = -dot(hessian, load) / jnp.where(load > 0, load, 1)
    hessian = hessian + jnp.where(np.eye(load.size, dtype=bool), diagonal, 0)
    return dot(loads.T, hessian, loads)

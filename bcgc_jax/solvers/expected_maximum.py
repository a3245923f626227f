r"""F(y) = E max_n y_n T_(N-n), its slopes and its Hessian, as sums over the nodes of a
rule.

The Hessian takes O(N³) a node, value and slopes O(N²).
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

# Intervals of the first rule.
NUM_NODES = 32
# Each rule has all, every second and every fourth of the nodes: three say how quickly
# they converge (`rule_error`).
NESTED = (1, 2, 4)
# Entries of a matrix over levels and nodes at a time, for memory: 2 MiB.
_ENTRIES = 2**18
# Nodes at a time of the sums without a Hessian, from `LARGE` levels on, for memory.
_NODES_AT_A_TIME = 32
# There nodes at which hardly any level may be the last are left out of the Hessian:
# those that add less than such a share of the value to load · slope, which is the
# value. At N = 1000 15 of 64 count. The Hessian only says where to go.
_NO_SHARE = 1e-5


class Workers(NamedTuple):
    """What F(y) = E max_n y_n T_(N-n) goes by, beside the load y."""

    law: Distribution
    marks: Marks
    num_workers: ArrayLike


class Sums(NamedTuple):
    """Sums over nodes: values, slopes, the upper half of the Hessian in the load.

    The values are those of the rule, of its every second and fourth node, and of what
    is left out, `[4]`; the slopes are those of the first, `[1, N]`, of many levels of
    the first three.
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
    """The start of the rule `refine` times as fine, and the sums over its nodes."""
    start, count, add = rule_in_pieces(workers, load, refine, with_hessian=with_hessian)
    return start, jax.lax.fori_loop(0, count, add, no_sums(load))


def first_fineness(size: int) -> int:
    """The fineness of the first rule: a level's part lies in a range of 1/√N."""
    if size <= LARGE:
        return 1
    return max(1, round((size / 256) ** 0.5))


def nested_rules(index: Array, count: Array) -> Array:
    """Weights in the rules of all, half and a quarter of the nodes, and at the ends."""
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
    r"""The rule for F(y), `refine` times as fine: its start, its pieces, and how to add
    one.

    With c_n = -∂b_n/∂y_n and the Poisson process of `crossing_probability`, level j
    before k in time,

        ∂F/∂y_n = ∫ N V_n R_n c_n dt / Pois(N; N),
        ∂²F/∂y_j∂y_k = -∫ N² V_j G_jk R_k c_j c_k dt / Pois(N; N),

    where G_jk is the probability that the first failure after C(b_j) = j is at k. All
    terms are positive.
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
    """Value, error and slopes in x of F(y), y = loads @ x, from the sums over all
    nodes.

    Slopes are `[1, N]`, of many levels by three rules, `[3, N]`.
    """
    fine, coarse, coarsest, left_out = sums.value
    value = start + fine
    error = rule_error(fine, coarse, coarsest) + left_out
    if not workers.law.smooth:  # Gauss's rules do not nest
        error = jnp.zeros_like(error)
    slopes = []
    for of_rule, slope in zip(start + sums.value, sums.slope, strict=False):
        slopes.append(
            homogeneous_slope(of_rule, by_level(slope), load, workers.num_workers)
        )
    return value, error, dot(jnp.stack(slopes), loads)


def second_derivatives(loads: Array, load: Array, upper: Array) -> Array:
    r"""The Hessian in x of F(y), y = loads @ x, `[N, N]`, from the `upper` half of that
    in y.

    F is homogeneous of degree 1, so Σ_k y_k ∂²F/∂y_j∂y_k = 0 gives the diagonal.
    """
    hessian = jnp.minimum(upper + upper.T, 0)[::-1, ::-1]  # by level, on both axes
    diagonal = -dot(hessian, load) / jnp.where(load > 0, load, 1)
    hessian = hessian + jnp.where(np.eye(load.size, dtype=bool), diagonal, 0)
    return dot(loads.T, hessian, loads)

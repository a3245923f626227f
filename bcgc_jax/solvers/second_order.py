r"""Value, slope and Hessian of F(y) = E max_n y_n T_(N-n), from one rule, whose fineness may be traced."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.distributions import Law
from bcgc_jax.exact.crossing import Crossing, shares
from bcgc_jax.exact.quadrature import rule_error
from bcgc_jax.plans.marks import Marks, rule, slope_of_homogeneous, threshold_hazard

# Intervals of the first rule.
NUM_NODES = 32
# Entries of a matrix over levels and nodes at a time.
_CHUNK = 2**18
# From so many levels on the Hessian, O(N³) a node, is that of a coarse rule or of an earlier step, while
# value and slope, O(N²), are those of a fine one: it only says where to go. So many nodes at a time then.
LARGE, _NODES_AT_A_TIME = 150, 32
# A node with so little of the slope's sum is none of the Hessian's; all of them are below a thousandth.
_NO_SHARE = 1e-5


class Sums(NamedTuple):
    """Of values, slopes and the upper half of the Hessian in the load, over the nodes so far.

    The values are those of the rule, of its every second and fourth node, and of what is left out, `[4]`; the
    slopes are those of the first, `[1, N]`, of many levels of the first three.
    """

    value: Array
    slope: Array
    upper: Array


class Expansion(NamedTuple):
    """Value, its error, slope and Hessian in x, or in the load; of many levels slopes by coarser rules."""

    value: Array
    error: Array
    slope: Array
    hessian: Array
    coarser: Array


def no_sums(load: Array) -> Sums:
    zero = jnp.zeros((load.size, load.size), load.dtype)
    rules = 3 if load.size > LARGE else 1
    return Sums(jnp.zeros(4, load.dtype), jnp.zeros((rules, load.size), load.dtype), zero)


def sums_over_nodes(
    law: Law, known: Marks, load: Array, num_workers: ArrayLike, refine: Array
) -> tuple[Array, Sums]:
    """The start of the rule that is `refine` times as fine, and the sums over its nodes."""
    start, count, add = rule_in_pieces(law, known, load, num_workers, refine, False)
    return start, jax.lax.fori_loop(0, count, add, no_sums(load))


def sums_of_many(
    law: Law, known: Marks, load: Array, num_workers: ArrayLike, refine: Array, last: Sums, fresh: Array
) -> tuple[Array, Sums]:
    """The same for many levels: the Hessian is of a coarse rule, or of the `last` sums unless `fresh`."""
    coarse = first_fineness(load.size)
    start, count, add = rule_in_pieces(law, known, load, num_workers, refine, False, with_hessian=False)
    sums = jax.lax.fori_loop(0, count, add, no_sums(load))
    upper = jax.lax.cond(
        (refine == coarse) | fresh,
        lambda: _upper_of_many(law, known, load, num_workers, coarse),
        lambda: last.upper,
    )
    return start, sums._replace(upper=upper)


def _upper_of_many(law: Law, known: Marks, load: Array, num_workers: ArrayLike, refine: int) -> Array:
    """The Hessian's sum over the nodes at which levels may be the last: of 64 some 15, at N = 1000."""
    *_, nodes = rule(law, known, load, NUM_NODES)
    index = np.arange(NUM_NODES * refine)

    def share(index: Array) -> Array:
        t, weight = nodes(index, refine)
        crossing, density = _crossing(law, known, load, num_workers, t, False)
        paths = crossing.first_failures() * crossing.successes() * density
        return weight * jnp.sum(paths, axis=0) / crossing.total

    shares = jax.lax.map(share, index.reshape(-1, _NODES_AT_A_TIME)).ravel()
    chunk = _nodes_at_a_time(load.size, NUM_NODES)
    shares = jnp.pad(shares, (0, -index.size % chunk)).reshape(-1, chunk)
    counts = jnp.any(shares > _NO_SHARE * jnp.sum(shares), axis=1)
    _, _, add = rule_in_pieces(law, known, load, num_workers, jnp.asarray(refine), False)

    def add_piece(piece: Array, sums: Sums) -> Sums:
        return jax.lax.cond(counts[piece], add, lambda _, sums: sums, piece, sums)

    return jax.lax.fori_loop(0, counts.size, add_piece, no_sums(load)).upper


def _nodes_at_a_time(num_levels: int, size: int) -> int:
    """Of a Hessian: as many as fit a few MB."""
    return max(1, min(size, _CHUNK // num_levels**2))


def _crossing(
    law: Law, known: Marks, load: Array, num_workers: ArrayLike, t: Array, batched: bool
) -> tuple[Crossing, Array]:
    """The crossing at times t, and c on its axes."""
    hazard, rate = threshold_hazard(law, load, t, known.largest)
    crossing = Crossing(shares(hazard), num_workers, batched)
    return crossing, crossing.above * jnp.moveaxis(rate, -1, 0)[::-1]


def first_fineness(size: int) -> int:
    """Of the first rule: what a level adds to the runtime is in a range of times that goes with 1/√N."""
    return 1 if size <= LARGE else max(1, round((size / 256) ** 0.5))


def rule_in_pieces(
    law: Law,
    known: Marks,
    load: Array,
    num_workers: ArrayLike,
    refine: Array,
    batched: bool,
    *,
    with_hessian: bool = True,
) -> tuple[Array, Array, Callable[[Array, Sums], Sums]]:
    r"""The rule for F(y) = E max_n y_n T_(N-n), `refine` times as fine: its start, its pieces, their sums.

    With c_n = -∂b_n/∂y_n and the Poisson process of `crossing_probability`, level j before k in time,

        ∂F/∂y_n = ∫ N V_n R_n c_n dt / Pois(N; N),
        ∂²F/∂y_j∂y_k = -∫ N² V_j G_jk R_k c_j c_k dt / Pois(N; N),

    where G_jk is the probability that the first failure after C(b_j) = j is at k. All terms are positive.
    """
    start, beyond, size, nodes = rule(law, known, load, NUM_NODES)
    chunk = _nodes_at_a_time(load.size, size) if with_hessian else min(size, _NODES_AT_A_TIME)

    def add(piece: Array, sums: Sums) -> Sums:
        index = piece * chunk + jnp.arange(chunk)
        t, weight = nodes(index, refine)
        crossing, density = _crossing(law, known, load, num_workers, t, batched)
        if with_hessian:
            first, success, following = crossing.renewals()
        else:
            first, success = crossing.first_failures(), crossing.successes()
        ends = (index == 0) | (index == size * refine - 1)
        rules = jnp.stack([1 + 0 * index, 2 * (index % 2 == 0), 4 * (index % 4 == 0), ends])
        value = jnp.sum(rules * weight * crossing.probability(first), axis=1)
        value = value + jnp.where(piece == 0, beyond, 0) * np.array([0, 0, 0, 1], load.dtype)
        arrive = first / crossing.total * crossing.unit * density * weight
        leave = success * density
        leaving = arrive * success
        slope = rules[:3] @ leaving.T if load.size > LARGE else jnp.sum(leaving, axis=-1)
        found = Sums(sums.value + value, sums.slope + slope, sums.upper)
        if not with_hessian:
            return found
        upper = -crossing.unit * jnp.sum(arrive[:, None] * following * leave[None], axis=-1)
        return found._replace(upper=sums.upper + upper)

    return start, jax.lax.div(size * refine + chunk - 1, jnp.asarray(chunk, refine.dtype)), add


def derivatives(law: Law, start: Array, load: Array, num_workers: ArrayLike, sums: Sums) -> Expansion:
    r"""Value, error, slope and Hessian of F in y from the sums over all nodes.

    F is homogeneous of degree 1, so Σ_k y_k ∂²F/∂y_j∂y_k = 0 gives the diagonal.
    """
    fine, coarse, coarsest, left_out = sums.value
    value, error = start + fine, rule_error(fine, coarse, coarsest) + left_out
    if not law.smooth:  # Gauss's rules do not nest
        error = jnp.zeros_like(error)
    hessian = jnp.minimum(sums.upper + sums.upper.T, 0)[::-1, ::-1]
    diagonal = -(hessian @ load) / jnp.where(load > 0, load, 1)
    hessian = hessian + jnp.where(np.eye(load.size, dtype=bool), diagonal, 0)
    values = (start + sums.value)[: len(sums.slope)]
    slope, *coarser = (
        slope_of_homogeneous(value, sum_[::-1], load, num_workers)
        for value, sum_ in zip(values, sums.slope, strict=True)
    )
    return Expansion(value, error, slope, hessian, jnp.asarray(coarser, load.dtype).reshape(-1, load.size))

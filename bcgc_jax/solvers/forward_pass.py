r"""How large a forward pass may be until a plan that was made without one is worth nothing."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.partitions import cumulative_load, finish_load
from bcgc_jax.problem import Problem
from bcgc_jax.runtime import as_partition

# Of the best single block's runtime: near enough to it, after so many evaluations at most.
_CLOSE, _MOST = 1e-6, 40
# Two ends of an interval with their values, the last point with its value, and how many there were.
_Ends = tuple[Array, Array, Array, Array, Array, Array, Array]


@jax.jit
def largest_setup(problem: Problem, partition: ArrayLike) -> Array:
    r"""φ = f / (b L), setup as a share of a backward pass, at which x is as slow as the best single block.

    With more of it the single block is faster. 0 where it is so without any, inf for a single block itself,
    which pays as much setup as any other. `problem` is without setup; L is the sum of the units' costs.

    With setup a single block takes 1 + φ times as long. Of both runtimes over 1 + φ, with u = φ / (1 + φ),
    its own stays the same, and that of x is E max_n T_(N-n) ((1 - u) y_n + u (n+1) L) over the levels in
    use, convex in u: they meet once, where false position finds them (its Illinois variant).

    >>> from bcgc_jax import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=20, num_coordinates=20_000)
    >>> x = jnp.full(20, 100.0).at[0].set(5_100.0).at[19].set(13_100.0)
    >>> round(float(largest_setup(problem, x)), 2)
    0.14
    """
    x = as_partition(problem, partition)
    total, used = problem.total.astype(x.dtype), x > 0
    work = cumulative_load(x)
    setup = finish_load(jnp.zeros_like(x), used, total)
    times = problem.iteration.expected_order_statistics()
    blocks = jnp.where(problem.exists, jnp.arange(1, x.size + 1) * times, jnp.inf)
    single = total * jnp.min(blocks)

    def excess(u: Array) -> Array:
        return problem.iteration.expected_max((1 - u) * work + u * setup).value / single - 1

    def narrow(carry: _Ends) -> _Ends:
        low, below, high, above, _, _, count = carry
        # Both ends first: the program has one evaluation.
        u = jnp.where(count < 2, count, (low * above - high * below) / (above - below))
        found = excess(u)
        left = (found < 0) | (count == 0)
        # The end that stays counts half: it would stay for ever.
        low, below = jnp.where(left, u, low), jnp.where(left, found, below / 2)
        high, above = jnp.where(left, high, u), jnp.where(left, above / 2, found)
        return low, below, high, above, u, found, count + 1

    def apart(carry: _Ends) -> Array:
        _, below, _, _, _, found, count = carry
        return (below < 0) & (jnp.abs(found) > _CLOSE) & (count < _MOST)

    zero, one = jnp.zeros_like(total), jnp.ones_like(total)
    start = (zero, -one, one, one, zero, one, jnp.asarray(0))
    _, below, _, _, u, _, _ = jax.lax.while_loop(apart, narrow, start)
    share = jnp.where(below < 0, u / (1 - u), 0)
    return jnp.where(jnp.sum(used) > 1, share, jnp.inf)

"""How large a forward pass may be until a plan that was made without one is worth nothing."""

import jax.numpy as jnp
import numpy as np

from bcgc_jax._pytree import Numbers
from bcgc_jax.problem import Problem
from bcgc_jax.solution import assess
from bcgc_jax.solvers.solve import solve

# Near enough to the best single block's runtime, after so many evaluations at most.
_CLOSE, _MOST = 1e-6, 40


def largest_setup(problem: Problem, partition: Numbers) -> float:
    r"""φ = f / (b L), setup as a share of a backward pass, at which x is as slow as the best single block.

    With more of it the single block is faster. 0 where it is so without any, inf for a single block itself,
    which pays as much setup as any other. `problem` is without setup; L is the sum of the units' costs.

    With setup a single block takes 1 + φ times as long. Over 1 + φ, and with u = φ / (1 + φ), its runtime
    stays the same, and that of x is E max_n T_(N-n) ((1 - u) y_n + u (n+1) L) over the levels in use: convex
    in u, so they meet once. Such a load is that of another partition, which `solve` has a program for.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=3, num_coordinates=2_000)
    >>> round(largest_setup(problem, [900.0, 300.0, 800.0]), 2)
    0.05
    """
    x, total = np.asarray(partition, problem.dtype), float(problem.total)
    subsets, used = np.arange(1, x.size + 1), x > 0
    if used.sum() < 2:
        return np.inf
    work, setup = np.cumsum(subsets * x), total * np.maximum.accumulate(np.where(used, subsets, 0))
    block = float(solve(problem, "single_block").expected_runtime)

    def excess(u: float) -> float:
        blocks = np.diff((1 - u) * work + u * setup, prepend=0) / subsets
        size = float(blocks.sum()) / total
        found = assess(problem, jnp.asarray(blocks / size), whole_numbers=False)
        return float(found.expected_runtime) * size / block - 1

    low, high, side, u = 0.0, 1.0, 0, 0.0
    below, above = excess(low), excess(high)
    if not below < 0:
        return 0.0
    for _ in range(_MOST):  # false position, its Illinois variant
        u = (low * above - high * below) / (above - below)
        found = excess(u)
        if abs(found) < _CLOSE:
            break
        # An end that stays twice counts half: it would stay for ever.
        if found < 0:
            low, below, above, side = u, found, above / 2 if side < 0 else above, -1
        else:
            high, above, below, side = u, found, below / 2 if side > 0 else below, 1
    return u / (1 - u)

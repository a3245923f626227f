r"""Closed forms: the optimum for a deterministic t, at two t (Theorems 2 and 3), and two for deadlines.

Those for deadlines: level n is late if n+1 workers are, T > θ_n = t/(κ y_n), κ = M b/N, so

    P(τ̂ > t) ≤ Σ_n C(N, n+1) P(T > θ_n)^(n+1),

which is P(τ̂ > t) itself but for a factor that tends to 1 as t does to infinity.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import gammaln
from jax.typing import ArrayLike

from bcgc_jax.problem import Problem


def partition_for_times(problem: Problem, times: Array) -> Array:
    r"""argmin_x max_n t_(N-n) y_n for sorted `times`, slowest first, `[max_workers]` (Theorem 2).

    y_n ∝ 1/t_(N-n): every level finishes at the same moment. Where some t is 0, the limit t → 0: all
    coordinates at the highest level. Where some t is inf, its level stays empty.

    >>> from bcgc_jax.laws import Uniform
    >>> problem = Problem(Uniform(1.0, 2.0), num_workers=2, num_coordinates=3)
    >>> partition_for_times(problem, jnp.array([2.0, 1.0])).tolist()
    [2.0, 1.0]
    """
    level = np.arange(problem.max_workers)
    zero = jnp.any((level < problem.num_workers) & (times <= 0))
    inverse = 1 / jnp.where(times > 0, times, 1)
    share = jnp.diff(inverse, prepend=jnp.zeros(1, inverse.dtype)) / (level + 1).astype(inverse.dtype)
    share = jnp.where(zero, level == jnp.asarray(problem.num_workers) - 1, jnp.maximum(share, 0))
    share = jnp.where(problem.exists, share, 0)
    return (problem.total * share / jnp.sum(share)).astype(problem.dtype)


@jax.jit
def time_partition(problem: Problem) -> Array:
    r"""x^(t): Theorem 2 at t_n = E T_(n), `[max_workers]`.

    >>> from bcgc_jax.laws import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=20, num_coordinates=20_000)
    >>> time_partition(problem)[:3].round().tolist()  # Fig. 3 prints 5696, 1076, 609
    [5697.0, 1076.0, 609.0]
    """
    return partition_for_times(problem, problem.iteration.expected_order_statistics())


@jax.jit
def frequency_partition(problem: Problem) -> Array:
    r"""x^(f): Theorem 2 at t'_n = 1 / E[1/T_(n)], `[max_workers]`.

    >>> from bcgc_jax.laws import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=20, num_coordinates=20_000)
    >>> frequency_partition(problem)[:3].round().tolist()  # Fig. 3 prints 5521, 939, 549
    [5519.0, 939.0, 549.0]
    """
    rates = problem.iteration.expected_order_statistics(jnp.reciprocal)
    return partition_for_times(problem, jnp.where(jnp.isinf(rates), 0, 1 / rates))


@jax.jit
def large_deadline_partition(problem: Problem) -> Array:
    r"""x_n = L / ((n+1) H_N): the most probable to end by t, as t tends to infinity, `[max_workers]`.

    With P(T > θ) = exp(-μ (θ - t0)) the terms of the sum above are exp(-(n+1) μ t / (κ y_n) + O(1)), and the
    largest decides: P(τ̂ > t) = exp(-t μ/κ min_n (n+1)/y_n + O(1)). Whatever x is, Σ_n x_n = L makes
    min_n (n+1)/y_n ≤ H_N/L, for y_n ≤ c (n+1) for all n means Σ_n x_n ≤ c H_N (sum by parts); equality asks
    for y_n ∝ n+1, the same exponent at every level. Neither law nor deadline is in it: it is that of an
    exponential tail, and what O(1) hides, t0 and the binomial coefficients, decides at the deadlines that
    people have (`equal_risk_partition`).

    Source: closed form for large thresholds of Wang, Cui, Li, Zou & Xiong, IEEE Transactions on Signal
    Processing, 2023, derived anew; `python -m experiments.journal` has its published probabilities beside it.

    >>> from bcgc_jax.laws import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(0.1, 1.0), num_workers=3, num_coordinates=11)
    >>> large_deadline_partition(problem).round(4).tolist()
    [6.0, 3.0, 2.0]
    """
    share = jnp.where(problem.exists, 1 / jnp.arange(1, problem.max_workers + 1, dtype=problem.dtype), 0)
    return problem.total * share / jnp.sum(share)


@jax.jit
def equal_risk_partition(problem: Problem, deadline: ArrayLike) -> Array:
    r"""All terms C(N, n+1) P(T > θ_n)^(n+1) of the sum above equal, e^-a, `[max_workers]`.

    y_n = t/(κ θ_n), Λ(θ_n) = (a + log C(N, n+1)) / (n+1) with Λ = -log P(T > ·), and the one number a by
    bisection, so that Σ x_n = L. As the large deadline's, with t0, the binomial coefficients and any law; of
    a deadline that is too short for any a, the shares at a = 0.

    >>> from bcgc_jax.laws import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(0.1, 1.0), num_workers=3, num_coordinates=11)
    >>> equal_risk_partition(problem, 1e6).round().tolist()  # as good as none is late: the large deadline's
    [6.0, 3.0, 2.0]
    """
    law, workers = problem.iteration.pooled(), jnp.asarray(problem.num_workers, problem.dtype)
    n = jnp.arange(problem.max_workers, dtype=problem.dtype)
    choices = gammaln(workers + 1) - gammaln(n + 2) - gammaln(jnp.maximum(workers - n, 1))
    t = jnp.asarray(deadline, problem.dtype) / problem.scale

    def partition(a: Array) -> Array:
        times = law.inverse_cumulative_hazard(jnp.maximum(a + choices, 0) / (n + 1))
        load = jnp.where(times > 0, t / jnp.where(times > 0, times, 1), jnp.inf)
        x = jnp.diff(load, prepend=jnp.zeros(1, load.dtype)) / (n + 1)
        return jnp.where(problem.exists, jnp.maximum(x, 0), 0)

    def half(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (ends[0] + ends[1]) / 2
        enough = jnp.sum(partition(middle)) >= problem.total
        return jnp.where(enough, middle, ends[0]), jnp.where(enough, ends[1], middle)

    zero = jnp.zeros((), problem.dtype)
    _, a = jax.lax.fori_loop(0, 60, half, (zero, zero + 1e4))
    x = partition(a)
    return problem.total * x / jnp.sum(x)

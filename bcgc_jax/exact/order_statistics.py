"""Compute order statistics of N i.i.d. cycle times, slowest first.

Axis n holds T_(N-n), like redundancy level n. By Rényi's representation, T_(N-n) =
Λ⁻¹(A_(N-n)) with A_(N-n) = Σ_{j=n+1}^{N} E_j / j and independent E_j ~ Exp(1), so
samples need no sorting. N may be traced below a static `max_workers`, because the terms
with j > N are zero. Padded levels hold ess inf T.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy import special
from jax.typing import ArrayLike

from bcgc_jax._pytree import working_dtype
from bcgc_jax.distributions import Distribution
from bcgc_jax.distributions.atoms import mass_of
from bcgc_jax.distributions.hazards import average
from bcgc_jax.distributions.special_functions import log_early
from bcgc_jax.exact.linear_algebra import dot
from bcgc_jax.exact.windows import log_factorials


def threefry(key_data: Array, x0: Array, x1: Array) -> tuple[Array, Array]:
    """Compute Threefry-2x32-20 of the counters (x0, x1), uint32, elementwise.

    It is the cipher behind `jax.random`, with equal bits (Salmon et al., SC 2011). The
    bits of `jax.random` take six times as long here, because it discards half of each
    output and writes every few rounds to memory.
    """
    keys = (
        key_data[0],
        key_data[1],
        key_data[0] ^ key_data[1] ^ jnp.uint32(0x1BD11BDA),
    )
    x0 = x0 + keys[0]
    x1 = x1 + keys[1]
    for group in range(5):
        for r in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x0 = x0 + x1
            x1 = ((x1 << jnp.uint32(r)) | (x1 >> jnp.uint32(32 - r))) ^ x0
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x0, x1


def _exponential_pair(
    seed: Array, row: Array, draw: Array, dtype: Any
) -> tuple[Array, Array]:
    """Draw independent Exp(1) variables > 0 for levels 2 `row` and 2 `row` + 1."""
    if jnp.dtype(dtype) == jnp.float64:
        first = _uniform64(threefry(seed, draw, 2 * row), dtype)
        second = _uniform64(threefry(seed, draw, 2 * row + 1), dtype)
    else:
        # 23 random bits plus one half are exact in float32, and inside (0, 1).
        first, second = (
            ((word >> 9).astype(dtype) + 0.5) * 2.0**-23
            for word in threefry(seed, draw, row)
        )
    return -jnp.log(first), -jnp.log(second)


def _uniform64(words: tuple[Array, Array], dtype: Any) -> Array:
    """Make 52 random bits and a half, which are exact in float64 and inside (0, 1)."""
    high, low = ((word >> 6).astype(dtype) for word in words)
    return (high * 2.0**26 + low + 0.5) * 2.0**-52


def _over_levels(
    step: Callable[[Any, Array, Array], tuple[Any, Any]],
    carry: Any,
    key: Array,
    num_workers: ArrayLike,
    num_draws: int,
    loads: Array,
) -> tuple[Any, Any]:
    """Scan `step(carry, A_(N-n) - A_(N-n-1), load)` from the last level down to 0.

    The results of levels 2i and 2i + 1 are row i, `[rows, 2, …]`. The increments of the
    hazard are E_(n+1) / (n+1), and 0 for n ≥ N. They are drawn within the scan, because
    a cumulative sum over an array took six times as long.
    """
    rows = (loads.size + 1) // 2
    seed = jax.random.bits(key, (2,), jnp.uint32)
    draw = jnp.arange(num_draws, dtype=jnp.uint32)
    j = jnp.arange(1, 2 * rows + 1, dtype=loads.dtype)
    weight = jnp.where(j <= num_workers, 1 / j, 0).reshape(-1, 2)

    def step_pair(carry: Any, of_row: tuple[Array, Array, Array]) -> tuple[Any, Any]:
        row, weights, load = of_row
        row = jnp.broadcast_to(row, draw.shape)
        first, second = _exponential_pair(seed, row, draw, loads.dtype)
        carry, b = step(carry, second * weights[1], load[1])
        carry, a = step(carry, first * weights[0], load[0])
        return carry, jax.tree.map(lambda x, y: jnp.stack([x, y]), a, b)

    row = jnp.arange(rows, dtype=jnp.uint32)
    load = jnp.pad(loads, (0, loads.size % 2)).reshape(-1, 2)
    return jax.lax.scan(step_pair, carry, (row, weight, load), reverse=True)


def max_finish_time(load: Array, sorted_times: Array) -> Array:
    """Compute max_n load_n T_(N-n). A load of 0 takes no time."""
    return jnp.max(
        jnp.where(load > 0, load * jnp.where(load > 0, sorted_times, 0), 0), axis=-1
    )


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def sorted_draws(
    key: Array,
    law: Distribution,
    num_workers: ArrayLike,
    num_draws: int,
    max_workers: int,
    dtype: Any,
) -> Array:
    """Draw sorted cycle times, slowest first, `[num_draws, max_workers]`."""
    zero = jnp.zeros(num_draws, dtype)
    no_loads = jnp.zeros(max_workers, dtype)

    def add(a: Array, step: Array, _: Array) -> tuple[Array, Array]:
        return a + step, a + step

    _, hazard = _over_levels(add, zero, key, num_workers, num_draws, no_loads)
    hazard = hazard.reshape(-1, num_draws)[:max_workers].T
    return law.with_fast_inverse().inverse_cumulative_hazard(hazard).astype(dtype)


@functools.partial(jax.jit, static_argnames="num_draws")
def simulate_max(
    key: Array, law: Distribution, load: Array, num_workers: ArrayLike, num_draws: int
) -> Array:
    """Draw samples of max_n load_n T_(N-n), `[num_draws]`, and store no times."""
    law = law.with_fast_inverse()

    def finish(so_far: tuple[Array, Array], step: Array, y: Array) -> tuple[Any, None]:
        hazard, largest = so_far
        hazard = hazard + step
        # A level without a load does not count, even if T is infinite.
        time = jnp.where(y > 0, y * law.inverse_cumulative_hazard(hazard), 0)
        return (hazard, jnp.maximum(largest, time.astype(load.dtype))), None

    zero = jnp.zeros(num_draws, load.dtype)
    (_, largest), _ = _over_levels(
        finish, (zero, zero), key, num_workers, num_draws, load
    )
    return largest


@functools.partial(jax.jit, static_argnums=(2, 3))
def moments(
    law: Distribution,
    num_workers: ArrayLike,
    function: Callable[[Array], Array] | None,
    max_workers: int,
) -> Array:
    """Compute E g(T_(N-n)), `[max_workers]`; g defaults to the identity.

    The density of z = logit U_(k), with k = N - n, is ∝ u^k (1-u)^(N-k+1). It is
    smooth, and decreases exponentially at both ends. Therefore the trapezoid rule in v,
    with z = mode + width · sinh v, converges geometrically. If there are kinks, or the
    tail may be a power law, the integral is computed in panels. For atoms, it is a sum.
    Eq. (8) of the paper has the same quantity as an alternating sum, which has no
    correct digits from N ≈ 20 on.
    """
    n = jnp.arange(max_workers)
    exists = n < num_workers
    k = jnp.where(exists, num_workers - n, 1)
    if function is None:
        closed = law.expected_order_statistics(num_workers, max_workers)
        if closed is not None:
            return closed
    of = function or (lambda t: t)
    k = k.astype(working_dtype(law))
    above = jnp.asarray(num_workers, k.dtype) - k + 1
    if law.atomic:
        values = law.breaks()
        reached = special.betainc(
            k[:, None], above[:, None], jnp.minimum(law.cdf(values), 1)
        )
        term = _weighted(jnp.diff(reached, axis=1, prepend=0.0), of(values))
        return jnp.where(exists, jnp.sum(term, axis=1), of(law.infimum()))
    if law.breaks().size > law.has_end or (function is None and not law.light_tail):
        kinks = law.cumulative_hazard(law.breaks().astype(k.dtype))
        averages = average(
            lambda a: of(law.inverse_cumulative_hazard(a)), k, above, kinks
        )
        return jnp.where(exists, averages, of(law.infimum()))
    mode = jnp.log(k / above)[:, None]
    width = jnp.sqrt(1 / k + 1 / above)[:, None]
    reach = 70.0
    if k.dtype == jnp.float64:
        reach = 400.0
    end = jnp.arcsinh(reach / width)
    num_nodes = 224  # the error against mpmath is rounding up to N = 1000
    v = end * jnp.linspace(-1.0, 1.0, num_nodes, dtype=k.dtype)
    z = mode + width * jnp.sinh(v)
    log_density = -k[:, None] * jax.nn.softplus(-z) - above[:, None] * jax.nn.softplus(
        z
    )
    weight = jax.nn.softmax(log_density + jnp.log(jnp.cosh(v)), axis=1)
    term = _weighted(weight, of(law.inverse_cumulative_hazard(jax.nn.softplus(z))))
    total = jnp.sum(term, axis=1)
    # The terms at the last nodes with nonzero weight must be negligible. Otherwise the
    # integral diverges.
    seen = weight > 0
    first = jnp.argmax(seen, axis=1)
    last = num_nodes - 1 - jnp.argmax(seen[:, ::-1], axis=1)
    ends = jnp.stack([first, last], axis=1)
    left = jnp.max(jnp.abs(jnp.take_along_axis(term, ends, 1)), axis=1)
    total = jnp.where(left > 1e-3 * jnp.abs(total), jnp.inf, total)
    return jnp.where(exists, total, of(law.infimum()))


def _weighted(weight: Array, value: Array) -> Array:
    """Multiply, with 0 · inf = 0 also in derivatives."""
    return jnp.where(weight > 0, weight * jnp.where(weight > 0, value, 0), 0)


def typical_hazards(
    load: Array, num_workers: ArrayLike, deviations: Sequence[float] = (-1.0, 0.0, 1.0)
) -> Array:
    """Compute E A_(N-n) + σ std A_(N-n), `[len(deviations), max_workers]`.

    It is 0 for n ≥ N.
    """
    j = np.arange(1, load.size + 1)
    sums = np.pad(np.cumsum([1 / j, 1 / j**2], axis=1), [(0, 0), (1, 0)]).astype(
        load.dtype
    )
    # These are sums over j = n+1, …, N. Differences of the tables are at least 1/N.
    up_to_all = jnp.asarray(sums)[:, jnp.asarray(num_workers, int), None]
    mean, variance = jnp.maximum(up_to_all - sums[:, :-1], 0)
    sigma = np.array(deviations, load.dtype)[:, None]
    return jnp.maximum(mean + sigma * jnp.sqrt(variance), 0.1 * mean)


def log_choices(load: Array, num_workers: ArrayLike) -> Array:
    """Compute log C(N, n), n = 0, …, max_workers. It is -inf for n > N."""
    log_factorial = log_factorials(load.size + 1).astype(load.dtype)
    table = jnp.asarray(log_factorial)
    workers = jnp.asarray(num_workers, int)
    num_left = workers - np.arange(load.size + 1)
    choices = table[workers] - log_factorial - table[jnp.maximum(num_left, 0)]
    return jnp.where(num_left >= 0, choices, -jnp.inf)


def expected_shared_time(
    law: Distribution, num_workers: ArrayLike, dtype: Any
) -> Array:
    """Compute the time of a cycle shared by all workers.

    It is E[1 / Σ_n 1/T_n] = ∫₀^∞ (E e^{-u/T})^N du.
    """
    if law.atomic:
        times = law.breaks()
        mass = mass_of(law, law.breaks())
    else:
        if dtype == jnp.float64:
            ends = (-36.0, 36.0)
        else:
            ends = (-16.0, 60.0)
        z = jnp.linspace(*ends, 769, dtype=dtype)
        # Probability of each node, from the density of logit U.
        mass = jax.nn.softmax(-jax.nn.softplus(z) - jax.nn.softplus(-z))
        times = law.inverse_cumulative_hazard(jax.nn.softplus(z))
    speed = jnp.where(jnp.isinf(times), 0, 1 / times)
    median = law.inverse_cumulative_hazard(math.log(2.0))
    typical = jnp.where(jnp.isinf(median), law.infimum(), median)
    pace = jnp.sum(mass * jnp.minimum(speed, 1e3 / typical))
    panels = 520
    low = -40.0
    high = 12.0
    u = jnp.exp(jnp.linspace(low, high, panels + 1, dtype=dtype)) / (pace * num_workers)
    left = dot(jnp.exp(-u[:, None] * speed), mass)
    counts = left >= jnp.finfo(dtype).tiny  # log 0 has no derivative
    power = jnp.exp(num_workers * jnp.log(jnp.where(counts, left, 1)))
    term = jnp.where(counts, u * power, 0)
    # For a heavy tail, the rest beyond the last node is a power of u, which gives a
    # geometric series. If the series does not decay, the mean is infinite.
    ratio = term[-1] / jnp.where(term[-2] > 0, term[-2], 1)
    decays = ratio < 1 - 1e-4
    tail = jnp.where(
        decays, term[-1] * ratio / (1 - jnp.where(decays, ratio, 0)), jnp.inf
    )
    return (jnp.sum(term) + tail) * ((high - low) / panels)


def order_survival(law: Distribution, num_workers: ArrayLike, t: Array) -> Array:
    """Compute P(T_(N-n) > t_n) = P(more than n times are > t_n), `[max_workers]`."""
    n = np.arange(t.size)
    m = np.arange(t.size + 1)
    hazard = law.cumulative_hazard(t)[:, None]
    hazard_of_late = jnp.maximum(m, 1) * hazard  # m > n ≥ 0
    log_term = (
        log_choices(t, num_workers)
        - hazard_of_late
        + jnp.maximum(num_workers - m, 0) * log_early(hazard)
    )
    return jnp.sum(jnp.where(m > n[:, None], jnp.exp(log_term), 0), axis=1)

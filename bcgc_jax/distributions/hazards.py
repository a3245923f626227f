r"""What a distribution's hazard alone says: averages, and Λ⁻¹ where there is no
formula.

Of N = k + m - 1 times in order, A = Λ(T_(k)) has a density ∝ (1 - e^-a)^(k-1) e^(-m a).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.distributions.special_functions import double_exponential, log_early

Elementwise = Callable[[Array], Array]

# Edges of panels: in standard deviations of logit U_(k); in multiples of 1/m, the last
# of which leaves e^(-m a) a number. The multiples are of a longer unit where the last
# edge would be nearer than `_DEVIATIONS`. Between the last two the integrand is taken
# for e^-ca, as that of a power law is. Means of e^-a of ten thousand times are 2e-15
# off; edges twice as far apart do no worse, half or four times as far 1e-12 and 1e-10.
_NEAR = np.array([-8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0])
_FAR = {8: np.array([40.0, 80.0, 160.0, 320.0, 640.0]), 4: np.array([20.0, 40.0, 80.0])}
# With 32 nodes means of power laws are off by 1e-10, with 48 by 1e-14.
_NUM_NODES = 64
# Standard deviations of Λ(T_(k)) to the last edge, at least. Beyond it is less than
# 1e-22 of the mass: with 6 means of U_(50,000) are 1e-9 off.
_DEVIATIONS = 10.0


def average(values: Elementwise, rank: Array, above: Array, kinks: Array) -> Array:
    """E v(Λ(T_(k))), `[M]`, for ranks k and m = N - k + 1; inf where the integral
    diverges.

    `kinks` are the hazards at which `values` has kinks, `[K]`.
    """
    k = rank[:, None]
    m = above[:, None]
    dtype = rank.dtype

    def log_density(a: Array, k: Array, m: Array) -> Array:
        return (k - 1) * log_early(a) - m * a

    logit_deviation = jnp.sqrt(1 / k + 1 / m)
    near = jax.nn.softplus(jnp.log(k / m) + logit_deviation * _NEAR.astype(dtype))
    # Beyond the typical hazard, which that of the slowest of up to 131,072 workers, m =
    # 1, is below anyway.
    typical = jnp.where(m > 1, jax.nn.softplus(jnp.log(k / m)), 0)
    multiples = jnp.asarray(_FAR[dtype.itemsize], dtype)
    deviation = k / (k + m) * logit_deviation
    far = typical + multiples * jnp.maximum(
        1 / m, _DEVIATIONS * deviation / multiples[-1]
    )
    kinks = jnp.broadcast_to(kinks.astype(dtype), (rank.size, kinks.size))
    inner = jax.lax.stop_gradient(jnp.concatenate([near, kinks], axis=1))
    inner = jnp.clip(inner, 0, far[:, -1:])
    edges = jnp.sort(jnp.concatenate([jnp.zeros_like(k), inner, far], axis=1))
    share, (weight, *_) = double_exponential(_NUM_NODES, dtype)
    size = jnp.diff(edges)[..., None]
    a = jnp.asarray(edges[:, :-1, None] + size * share)
    log_mass = log_density(a, k[..., None], m[..., None])
    highest = jnp.max(log_mass, axis=(1, 2), keepdims=True)
    mass = size * weight * jnp.exp(log_mass - highest)
    terms = jnp.where(mass > 0, mass * jnp.where(mass > 0, values(a), 0), 0)
    body = jnp.sum(terms, axis=(1, 2))
    # As that of 1/T, if too much lies next to 0.
    body = jnp.where(jnp.abs(terms[:, 0, 0]) > 1e-3 * jnp.abs(body), jnp.inf, body)
    last = far[:, -2:]
    log_last = log_density(last, k, m) - highest[..., 0]
    tail = _power_law(last, values(last), log_last, above)
    return (body + tail) / jnp.sum(mass, axis=(1, 2))


def _power_law(a: Array, values: Array, log_density: Array, above: Array) -> Array:
    """∫ values · density beyond the last of two a, `[M, 2]`, as for e^-ca."""
    counts = values != 0
    log_term = log_density + jnp.log(jnp.abs(jnp.where(counts, values, 1)))
    fall = (log_term[:, 0] - log_term[:, 1]) / (a[:, 1] - a[:, 0])
    ends = fall > 32 * jnp.finfo(a.dtype).eps * above
    term = jnp.sign(values[:, 1]) * jnp.exp(jnp.where(ends, log_term[:, 1], 0))
    tail = jnp.where(ends, term / jnp.where(ends, fall, 1), jnp.inf)
    return jnp.where(counts[:, 1], tail, 0)


def inverse_of(hazard: Elementwise, a: Array) -> Array:
    """The least time with a hazard ≥ `a` > 0, elementwise, or inf."""
    # The difference of two infinite hazards would be NaN.
    finite = jnp.minimum(a, jnp.finfo(a.dtype).max)

    def solve(excess: Elementwise, start: Array) -> Array:
        _, t = _bracket(lambda t: excess(t) >= 0, start)
        return t

    def along(slope: Elementwise, y: Array) -> Array:
        return y / slope(jnp.ones_like(y))

    root = jax.lax.custom_root(
        lambda t: hazard(t) - finite, jnp.zeros_like(a), solve, along
    )
    reached = hazard(jnp.full_like(a, jnp.finfo(a.dtype).max)) >= a
    return jnp.where(reached, root, jnp.inf)


def begin_of(hazard: Elementwise, dtype: np.dtype) -> Array:
    """The last time until which the hazard is 0, negative or NaN."""
    t, _ = _bracket(lambda t: hazard(t) >= jnp.finfo(dtype).tiny, jnp.zeros((), dtype))
    return t


# Times at which a hazard that a person wrote is looked at, in each of so many rounds.
_LOOKS, _ROUNDS = 4096, 5
# The last rounds look between these hazards. Beyond them P(T > t) is hardly 0 or 1.
_BETWEEN = 1e-3, 20.0


def where_it_falls(
    hazard: Elementwise, start: float, dtype: np.dtype
) -> tuple[float, float] | None:
    """Two times, of which the later has the lower hazard; None if none was found.

    `hazard` takes one time and may return several hazards, `[...]`. Times before
    `start` and hazards that are NaN do not count. P(T > t) must rise by more than its
    rounding. The first round looks at all floating numbers, the others ever closer.
    """
    finfo = np.finfo(dtype)
    excess = np.geomspace(finfo.tiny, finfo.max / 2, _LOOKS)
    for _ in range(_ROUNDS):
        times = start + excess
        values = np.asarray(jax.vmap(hazard)(jnp.asarray(times, dtype)), float)
        values = values.reshape(times.size, -1)
        late = np.exp(-np.maximum(values, 0))
        least = np.fmin.accumulate(late, axis=0)
        rises = np.argwhere(late - least > np.sqrt(finfo.eps))
        if rises.size:
            after, which = map(int, rises[0])
            before = int(np.nanargmin(late[:after, which]))
            return float(times[before]), float(times[after])
        low, high = _BETWEEN
        first = int(np.argmax(np.any(values > low, axis=1)))
        is_last = np.all(values > high, axis=1)
        last = int(np.argmax(is_last)) if is_last.any() else times.size - 1
        nearest, furthest = excess[max(first - 1, 0)], excess[max(last, first)]
        looks = [
            space(nearest, furthest, _LOOKS // 2)
            for space in (np.linspace, np.geomspace)
        ]
        excess = np.sort(np.concatenate(looks))
    return None


def _bracket(reached: Elementwise, like: Array) -> tuple[Array, Array]:
    """The two neighbouring floating numbers, from 0 on, between which `reached` becomes
    true.

    By halves of their bits, which ascend as the numbers do.
    """
    dtype = like.dtype
    whole = np.dtype(f"int{8 * like.dtype.itemsize}")
    largest = int(np.asarray(jnp.finfo(dtype).max, dtype).view(whole))

    def number(bits: Array) -> Array:
        return jax.lax.bitcast_convert_type(bits, dtype)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) // 2
        high_enough = reached(number(middle))
        return jnp.where(high_enough, low, middle), jnp.where(high_enough, middle, high)

    low = jnp.zeros_like(like, whole)
    high = jnp.full_like(like, largest, whole)
    low, high = jax.lax.fori_loop(0, 8 * dtype.itemsize, halve, (low, high))
    return number(low), number(high)

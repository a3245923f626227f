r"""Order statistics of N independent cycle times, slowest first.

Axis n holds T_(N-n), so it lines up with redundancy level n. By Rényi's representation
T_(N-n) = Λ⁻¹(A_(N-n)) with A_(N-n) = Σ_{j=n+1}^{N} E_j / j and E_j independent Exp(1): no sort. The
terms j > N are zero, so N may be traced below a static `max_workers`; padded levels hold ess inf T.
For workers that are not alike the law itself gives the rows of an iteration (`joint_laws`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy import special
from jax.typing import ArrayLike

from bcgc_jax.laws import Law

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key_data: Array, x0: Array, x1: Array) -> tuple[Array, Array]:
    """Threefry-2x32-20 of the counters (x0, x1), uint32, as one fusible elementwise expression.

    Salmon et al. 2011; bit for bit the cipher behind `jax.random`, whose own bits take six times as long
    here: it discards half of each output and writes every few rounds to memory.
    """
    keys = (key_data[0], key_data[1], key_data[0] ^ key_data[1] ^ jnp.uint32(0x1BD11BDA))
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for group in range(5):
        for r in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = ((x1 << jnp.uint32(r)) | (x1 >> jnp.uint32(32 - r))) ^ x0
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x0, x1


def _exponential_pairs(key: Array, size: int, num_draws: int, dtype: Any) -> Array:
    """`[size, num_draws]` complex numbers whose parts are independent Exp(1) variables, never 0.

    Both words of a block go into one array: as two arrays, each fused loop would run the whole cipher
    for its own half.
    """
    seed = jax.random.bits(key, (2,), jnp.uint32)
    draw = jnp.arange(num_draws, dtype=jnp.uint32)[None, :]
    row = jnp.arange(size, dtype=jnp.uint32)[:, None]
    if jnp.dtype(dtype) == jnp.float64:
        words = (threefry(seed, draw, 2 * row), threefry(seed, draw, 2 * row + 1))
        # 52 bits and a half: exact in float64, inside (0, 1).
        u = [((a >> 6).astype(dtype) * 2.0**26 + (b >> 6).astype(dtype) + 0.5) * 2.0**-52 for a, b in words]
    else:
        # 23 bits and a half: exact in float32, inside (0, 1).
        u = [((a >> 9).astype(dtype) + 0.5) * 2.0**-23 for a in threefry(seed, draw, row)]
    return jax.lax.complex(-jnp.log(u[0]), -jnp.log(u[1]))


def _spacings(key: Array, num_workers: ArrayLike, max_workers: int, num_draws: int, dtype) -> Array:
    """A_(N-n) - A_(N-n-1) = E_(n+1)/(n+1), 0 for n ≥ N: `[⌈max_workers/2⌉, num_draws]`, two n to a row.

    The real part of row i is n = 2i, the imaginary part n = 2i + 1.
    """
    pairs = _exponential_pairs(key, (max_workers + 1) // 2, num_draws, dtype)
    j = jnp.arange(1, 2 * pairs.shape[0] + 1, dtype=dtype)
    weight = jnp.where(j <= num_workers, 1 / j, 0).reshape(-1, 2, 1)
    return jax.lax.complex(pairs.real * weight[:, 0], pairs.imag * weight[:, 1])


def static_workers(num_workers: ArrayLike, max_workers: int | None) -> int:
    """`max_workers`, or the value of a concrete `num_workers`."""
    if max_workers is None:
        if isinstance(num_workers, jax.core.Tracer):
            raise ValueError("num_workers is traced: give the static max_workers that bounds it")
        max_workers = int(np.max(np.asarray(num_workers)))
    return max_workers


def max_finish_time(load: Array, sorted_times: Array) -> Array:
    """max_n load_n T_(N-n) for times that are sorted already, slowest first; no load costs no time."""
    return jnp.max(jnp.where(load > 0, load * jnp.where(load > 0, sorted_times, 0), 0), axis=-1)


def all_rows(law: Law, num_workers: ArrayLike, max_workers: int) -> Array | None:
    """`law.rows()`, `[S, max_workers]`; NaN where a traced `num_workers` is not theirs."""
    rows = law.rows()
    return None if rows is None else _of_all_workers(rows, num_workers, max_workers)


def _of_all_workers(rows: Array, num_workers: ArrayLike, max_workers: int) -> Array:
    width = rows.shape[-1]
    if width != max_workers:
        raise ValueError(
            f"the law is that of {width} workers together, not of {max_workers}: workers that are not alike "
            "are neither left out nor padded"
        )
    return jnp.where(jnp.asarray(num_workers) == width, rows, jnp.nan)


def sorted_cycle_times(
    key: Array,
    law: Law,
    num_workers: ArrayLike,
    num_draws: int,
    *,
    max_workers: int | None = None,
    dtype=float,
) -> Array:
    """Draws of the sorted cycle times, slowest first, `[num_draws, max_workers]`.

    `num_workers` may be traced where the static `max_workers` is given; columns from num_workers on
    hold the law's infimum.

    >>> from bcgc_jax.laws import Uniform
    >>> t = sorted_cycle_times(jax.random.key(0), Uniform(1.0, 2.0), 3, 5)
    >>> t.shape, bool((t[:, :-1] >= t[:, 1:]).all())
    ((5, 3), True)
    """
    max_workers = static_workers(num_workers, max_workers)
    return _sorted_cycle_times(key, law, num_workers, num_draws, max_workers, jnp.result_type(dtype))


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _sorted_cycle_times(
    key: Array, law: Law, num_workers: ArrayLike, num_draws: int, max_workers: int, dtype: Any
) -> Array:
    rows = law.draw_rows(key, num_draws)
    if rows is not None:
        return _of_all_workers(rows, num_workers, max_workers).astype(dtype)
    pairs = _spacings(key, num_workers, max_workers, num_draws, dtype)
    steps = jnp.stack([pairs.real, pairs.imag], axis=1).reshape(-1, num_draws)[:max_workers]
    hazard = jnp.cumsum(steps[::-1], axis=0)[::-1].T
    return law.with_fast_inverse().inverse_cumulative_hazard(hazard).astype(dtype)


@functools.partial(jax.jit, static_argnames="num_draws")
def simulate_max(key: Array, law: Law, load: Array, num_workers: ArrayLike, num_draws: int) -> Array:
    """Draws, `[num_draws]`, of max_n load_n T_(N-n), with `load` of shape `[max_workers]`.

    The running sum and the running maximum are carried over n: no sorted `[S, N]` array is formed.
    """
    rows = law.draw_rows(key, num_draws)
    if rows is not None:
        return max_finish_time(load, _of_all_workers(rows, num_workers, load.size).astype(load.dtype))
    law = law.with_fast_inverse()
    pairs = _spacings(key, num_workers, load.size, num_draws, load.dtype)

    def body(carry, rows):
        hazard, largest = carry
        pair, loads = rows
        for step, y in ((pair.imag, loads[1]), (pair.real, loads[0])):
            hazard = hazard + step
            # A level without load never counts, also where T is infinite.
            time = jnp.where(y > 0, y * law.inverse_cumulative_hazard(hazard), 0)
            largest = jnp.maximum(largest, time.astype(largest.dtype))
        return (hazard, largest), None

    zero = jnp.zeros(num_draws, load.dtype)
    loads = jnp.pad(load, (0, load.size % 2)).reshape(-1, 2)
    (_, largest), _ = jax.lax.scan(body, (zero, zero), (pairs, loads), reverse=True)
    return largest


def expected_order_statistics(
    law: Law,
    num_workers: ArrayLike,
    function: Callable[[Array], Array] | None = None,
    *,
    max_workers: int | None = None,
    num_nodes: int = 224,
) -> Array:
    r"""E[g(T_(N-n))] for n = 0…N-1, slowest first, `[max_workers]`; E T_(N-n) without a `function`.

    With z = logit U_(k), k = N-n, the density of z is ∝ u^k (1-u)^(N-k+1) for every k, smooth and
    exponentially small at both ends; the trapezoid rule in v, z = mode + width·sinh v, then converges
    geometrically for bounded and heavy-tailed g alike, for N up to 1000 and beyond. An atomic law is
    summed over its atoms, one of rows over its rows. Where the expectation diverges the result is inf.
    Columns from num_workers on hold g(ess inf T). Eq. (8) of the paper is the same quantity as an
    alternating sum, which loses all digits from N ≈ 20.

    >>> from bcgc_jax.laws import ShiftedExponential
    >>> expected_order_statistics(ShiftedExponential(rate=1.0), 3).round(4)
    Array([1.8333, 0.8333, 0.3333], dtype=float32)
    """
    max_workers = static_workers(num_workers, max_workers)
    return _expected_order_statistics(law, num_workers, function, max_workers, num_nodes)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _expected_order_statistics(
    law: Law,
    num_workers: ArrayLike,
    function: Callable[[Array], Array] | None,
    max_workers: int,
    num_nodes: int,
) -> Array:
    rows = all_rows(law, num_workers, max_workers)
    if rows is not None:
        return jnp.mean(rows if function is None else function(rows), axis=0)
    n = jnp.arange(max_workers)
    exists = n < num_workers
    k = jnp.where(exists, num_workers - n, 1)
    if function is None:
        closed = law.expected_order_statistics(num_workers, max_workers)
        if closed is not None:
            return closed
        function = lambda t: t  # noqa: E731
    k = k.astype(float)
    above = jnp.asarray(num_workers, k.dtype) - k + 1
    if law.atomic():
        values = jnp.concatenate([law.infimum()[None], law.kinks()])
        reached = special.betainc(k[:, None], above[:, None], jnp.minimum(law.cdf(values), 1))
        mass = jnp.diff(reached, axis=1, prepend=0.0)
        term = jnp.where(mass > 0, mass * jnp.where(mass > 0, function(values), 0), 0)
        return jnp.where(exists, jnp.sum(term, axis=1), function(law.infimum()))
    mode = jnp.log(k / above)[:, None]
    width = jnp.sqrt(1 / k + 1 / above)[:, None]
    reach = 400.0 if k.dtype == jnp.float64 else 70.0
    end = jnp.arcsinh(reach / width)
    v = end * jnp.linspace(-1.0, 1.0, num_nodes)
    z = mode + width * jnp.sinh(v)
    log_weight = (
        -k[:, None] * jax.nn.softplus(-z) - above[:, None] * jax.nn.softplus(z) + jnp.log(jnp.cosh(v))
    )
    weight = jax.nn.softmax(log_weight, axis=1)
    value = function(law.inverse_cumulative_hazard(jax.nn.softplus(z)))
    term = jnp.where(weight > 0, weight * jnp.where(weight > 0, value, 0), 0)
    total = jnp.sum(term, axis=1)
    # Nothing may be left at the last nodes whose weight has not underflowed.
    seen = weight > 0
    first = jnp.take_along_axis(term, jnp.argmax(seen, axis=1)[:, None], 1)[:, 0]
    last_index = num_nodes - 1 - jnp.argmax(seen[:, ::-1], axis=1)
    last = jnp.take_along_axis(term, last_index[:, None], 1)[:, 0]
    diverges = jnp.maximum(jnp.abs(first), jnp.abs(last)) > 1e-3 * jnp.abs(total)
    total = jnp.where(diverges, jnp.inf, total)
    return jnp.where(exists, total, function(law.infimum()))

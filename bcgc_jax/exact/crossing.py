"""Compute the probability that an order statistic is late, T_(N-n) > θ_n."""

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.distributions.order import ascending_in_k, by_level
from bcgc_jax.exact.linear_algebra import LARGE, solve_unit_upper
from bcgc_jax.exact.windows import log_factorials, windowed_paths

# Above this number of workers, the forward recursion in windows replaces the triangular
# systems. Up to 425 workers, the weights of these systems need no exponentials in
# double precision (`Crossing.powers`).
MANY = 400


@jax.custom_jvp
def crossing_probability(hazard: Array, num_workers: ArrayLike) -> Array:
    """Compute P(T_(N-n) > θ_n for some n) from the hazards Λ(θ_n).

    With b_k = P(T ≤ θ_{N-k}), the probabilities V_k that condition k is the first to
    fail follow by forward substitution (docs/how-it-works.md):

        V_k = Pois(k-1; N b_k) - Σ_{j<k} V_j Pois(k-j; N(b_k-b_j)),
        P = Σ_k V_k Pois(N-k+1; N(1-b_k)) / Pois(N; N).

    Args:
      hazard: Λ(θ_n), `[..., N]`, not increasing in n. The slowest worker has n = 0.
      num_workers: Number of workers, N. It may be traced.

    Returns:
      The probability, `[...]`.

    It takes O(N²) time and O(N) memory per entry of the leading axes. It is exact for
    every distribution, also with atoms. Above 400 workers, it takes O(N^1.5) time with
    an error of 1e-10 (`windows`). `crossing_slopes` gives the derivatives.

    The substitution is a loop over k. A batched triangular solve can lock up the thread
    pool that it shares with the code around it (seen with jaxlib 0.10 on two cores).

    Earlier methods are a determinant (Steck, Ann. Math. Statist. 42, 1971) and a
    recursion (Noé, Ann. Math. Statist. 43, 1972). As here, Khmaladze & Shinjikashvili
    (Adv. Appl. Probab. 33, 2001) and Moscovich & Nadler (Stat. Probab. Lett. 123, 2017)
    condition a Poisson process on N arrivals.

    >>> from bcgc_jax.distributions import Uniform
    >>> p = crossing_probability(
    ...     Uniform(0.0, 1.0).cumulative_hazard(jnp.array([0.75, 0.5])), 2
    ... )
    >>> round(float(p), 5)  # 1 - P(T_(1) ≤ 1/2, T_(2) ≤ 3/4) = 1 - (9/16 - 1/16)
    0.5
    """
    return crossing_slopes(hazard, num_workers)[0]


@crossing_probability.defjvp
def _crossing_probability_jvp(primals, tangents):
    probability, slope = crossing_slopes(*primals)
    return probability, jnp.sum(slope * tangents[0], axis=-1)


@jax.custom_jvp
def crossing_slopes(hazard: Array, num_workers: ArrayLike) -> tuple[Array, Array]:
    """Compute `crossing_probability`, `[...]`, and its gradient, `[..., N]`.

    ∂P/∂b_k = -N V_k R_k / Pois(N; N), where R_k is the probability that no later
    condition fails. It sums the paths with k-1 arrivals at b_k, to which one more
    worker is added. Second derivatives differentiate the substitution.
    """
    return _by_substitution(hazard, num_workers)


@crossing_slopes.defjvp
def _crossing_slopes_jvp(primals, tangents):
    hazard, num_workers = primals
    probability, slope = crossing_slopes(hazard, num_workers)
    _, change = jax.jvp(
        lambda h: _by_substitution(h, num_workers)[1], (hazard,), tangents[:1]
    )
    return (probability, slope), (jnp.sum(slope * tangents[0], axis=-1), change)


@jax.jit
def _by_substitution(hazard: Array, num_workers: ArrayLike) -> tuple[Array, Array]:
    if hazard.shape[-1] > MANY:
        probability, arrive, leave = windowed_paths(jnp.asarray(hazard), num_workers)
        late = jnp.exp(-hazard)
        return probability, -jnp.asarray(num_workers) * arrive * leave * late
    crossing = Crossing(shares(hazard), num_workers)
    first = crossing.first_failures()
    paths = first * crossing.successes()
    # These are probabilities, so negative values are rounding errors.
    slope = (
        -crossing.unit
        * jnp.where(paths < 0, 0, paths)
        * crossing.above
        / crossing.total
    )
    return crossing.probability(first), by_level(slope)


def shares(hazard: Array) -> tuple[Array, Array]:
    """Compute P(T ≤ θ) and P(T > θ), `[N, ...]`, smallest θ first, from Λ."""
    ascending = ascending_in_k(jnp.asarray(hazard))
    # Without the barrier, XLA computes squares by further exponentials, six for each
    # power.
    return jax.lax.optimization_barrier((-jnp.expm1(-ascending), jnp.exp(-ascending)))


class Crossing:
    """Compute the sums behind `crossing_probability`, on axis 0, ascending in k.

    Index i is k = N - size + 1 + i. The rates N Δb along a path sum to N, and so
    do its arrivals. Hence e^{-rate} and N^m multiply to e^{-N} N^N for every path, and
    cancel with the same factors in Pois(N; N). If `size`^N / N! does not overflow,
    weights are (`size` Δb)^m / m!, without exp and log. V, R and G then are
    probabilities up to factors, which cancel in `unit` V R / `total` and `unit`² V G R
    / `total`.
    """

    def __init__(
        self, levels: tuple[Array, Array], num_workers: ArrayLike, batched: bool = False
    ) -> None:
        self.below, self.above = levels
        self.size = self.below.shape[0]
        dtype = self.below.dtype
        self.workers = jnp.asarray(num_workers, dtype)
        # A known number stays an integer, so that powers have known exponents.
        self.count = (
            num_workers
            if isinstance(num_workers, int)
            else jnp.asarray(num_workers, int)
        )
        self.index = np.arange(self.size)
        self.batched = batched
        log_factorial = log_factorials(self.size + 1)
        log_max = math.log(jnp.finfo(dtype).max)
        # This leaves room for factors that multiply V and R: a time and a density. It
        # is N < 53 in float32.
        self.powers = self.size < 0.6 * log_max
        m = np.maximum(np.arange(self.size + 1), 1)
        if self.powers:
            table = np.exp(m * math.log(self.size) - log_factorial)
        else:
            table = np.exp(-log_factorial / m)
        self.table = np.where(np.arange(self.size + 1), table, 1).astype(dtype)
        # Rate of arrivals.
        self.unit = jnp.asarray(self.size, dtype) if self.powers else self.workers
        # Number of squarings after e^{-rate / 2^late}, such that neither this
        # exponential nor its factor overflows.
        self.late = (
            0
            if self.powers
            else max(0, math.ceil(math.log2(self.size / (0.4 * log_max))))
        )
        self.levels: tuple[Array, ...] = levels
        if not self.powers:
            # For a pair of levels, e^{-rate / 2^late} is a product of these numbers. In
            # float32, this takes a third of the time.
            rate = self.workers * self.below / 2**self.late
            self.levels = (*levels, jnp.exp(-rate), jnp.exp(rate))
        self.total = self._weight(jnp.asarray(num_workers, int), jnp.ones((), dtype))

    def _weight(
        self, m: Array | np.ndarray, share: Array, decay: Array | None = None
    ) -> Array:
        """Compute Pois(m; N share), or (size share)^m / m!, for m = 0, …, `size`.

        The Poisson weight is (N share (m!)^{-1/m})^m e^{-N share}, with the exponential
        before the last squarings. `decay` is the factor in that place, if it is known.
        """
        if isinstance(m, np.ndarray):
            factor = self.table[m]
            largest_count = int(m.max(initial=0))
        else:
            factor = jnp.asarray(self.table)[m]
            largest_count = self.size
        bits = max(1, largest_count.bit_length())
        if self.powers:
            weight = factor
            power = share
            for bit in range(bits):
                weight = jnp.where((m >> bit) & 1 == 1, weight * power, weight)
                power = power * power
            return weight
        rate = self.workers * share
        if decay is None:
            decay = jnp.exp(-rate / 2**self.late)
        power = rate * factor
        weight = jnp.ones_like(rate * factor)
        for bit in reversed(range(max(bits, self.late + 1))):
            weight = weight * weight
            weight = jnp.where((m >> bit) & 1 == 1, weight * power, weight)
            if bit == self.late:
                weight = weight * decay
        return weight

    def _column(self, values: Array | np.ndarray) -> Any:
        return values.reshape((-1,) + (1,) * (self.below.ndim - 1))

    @functools.cached_property
    def last(self) -> Array:
        """Pois(N-k+1; N(1-b_k)): all later arrivals, after a failure at k."""
        return self._end * self.unit * self.above / self._column(self.size - self.index)

    @functools.cached_property
    def _start(self) -> Array:
        """Pois(k-1; N b_k): a failure at k, whatever happened before; 0 for k < 1."""
        before = self._column(self.index - self.size + self.count)  # k - 1
        m = before.clip(0)
        if self.batched or not self.powers:
            weight = self._weight(m, self.below)
        # A single power function compiles to a third of the kernels.
        else:
            weight = jnp.asarray(self.table)[m] * self.below**m
        return jnp.where(before >= 0, weight, 0)

    @functools.cached_property
    def _end(self) -> Array:
        """Pois(N-k; N(1-b_k)): all later arrivals after C(b_k) = k."""
        return self._weight(self._column(self.size - 1 - self.index), self.above)

    def _parts(self, parts: int = 4) -> list[tuple[int, int]]:
        """Divide the rows into parts. A loop for each skips half of the zeros."""
        if self.below.ndim == 1 or self.size <= (50 if self.batched else LARGE):
            parts = 1  # slower for few levels or a single problem
        return list(
            itertools.pairwise(self.size * part // parts for part in range(parts + 1))
        )

    def first_failures(self) -> Array:
        """Compute V_k. Padding keeps the lags equal."""
        padding = [(0, self.size - 1)] + [(0, 0)] * (self.below.ndim - 1)
        first, *levels = (jnp.pad(a, padding) for a in (self._start, *self.levels))
        for begin, end in self._parts(8 if self.batched else 4):
            lag = self._column(np.arange(1, self.size - begin))

            def take_out(i: Array, first: Array, lag: np.ndarray = lag) -> Array:
                share, decay = _between(
                    _rows(levels, i, 1), _rows(levels, i + 1, lag.size)
                )
                (left,) = _rows([first], i + 1, lag.size)
                left = left - self._weight(lag, share, decay) * first[i]
                return jax.lax.dynamic_update_slice_in_dim(first, left, i + 1, 0)

            first = jax.lax.fori_loop(begin, min(end, self.size - 1), take_out, first)
        return first[: self.size]

    def successes(self) -> Array:
        """Compute R_k = P(no later condition fails, all N arrive | C(b_k) = k)."""
        later_sum = (
            self.last
        )  # becomes the adjoint of V when its renewals are subtracted
        success = self._end
        for begin, end in reversed(self._parts()):

            def take_out(step: Array, rows: Any, end: int = end) -> tuple[Array, Array]:
                later_sum, success = rows
                i = end - 1 - step
                lag = i - self.index[:end]
                earlier = self._column(lag > 0)
                lag = self._column(jnp.maximum(lag, 1))
                share, decay = _between(
                    [a[:end] for a in self.levels], _rows(self.levels, i, 1)
                )
                below = (
                    jnp.where(earlier, self._weight(lag - 1, share, decay), 0)
                    * later_sum[i]
                )
                later_sum = _less(later_sum, below * self.unit * share / lag)
                return later_sum, _less(success, below)

            later_sum, success = jax.lax.fori_loop(
                0, end - begin, take_out, (later_sum, success)
            )
        return success

    def renewals(self) -> tuple[Array, Array, Array]:
        """Compute V_k, R_k and G_jk = P(first failure after C(b_j) = j is at k).

        Let A_jk = Pois(k-j; λ_jk) and B_jk = Pois(k-j-1; λ_jk) above the diagonal. Then
        G (I + A) = B, V (I + A) = Pois(k-1; N b_k) and R = Pois(N-k; N(1-b_k)) - G
        last. All follow from one triangular system, in O(N³) time.
        """
        i = self.index
        lag = i[None, :] - i[:, None]
        shape = lag.shape + (1,) * (self.below.ndim - 1)
        later = (lag > 0).reshape(shape)
        lag = np.maximum(lag, 1)
        share, decay = _between(
            [a[:, None] for a in self.levels], [a[None] for a in self.levels]
        )
        share = jnp.where(later, share, 0)
        lag = lag.reshape(shape)
        if decay is None:
            decay = None
        else:
            decay = jnp.where(later, decay, 1)
        before = jnp.where(later, self._weight(lag - 1, share, decay), 0)
        hit = before * self.unit * share / lag
        solved = solve_unit_upper(
            jnp.concatenate([before, self._start[None]]), hit, self.batched
        )
        following = solved[:-1]
        return (
            solved[-1],
            self._end - jnp.sum(following * self.last[None], axis=1),
            following,
        )

    def probability(self, first: Array | None = None) -> Array:
        if first is None:
            first = self.first_failures()
        return jnp.sum(first * self.last, axis=0) / self.total


def _rows(arrays: Iterable[Array], start: Array, size: int) -> tuple[Array, ...]:
    return tuple(jax.lax.dynamic_slice_in_dim(a, start, size, 0) for a in arrays)


def _less(rows: Array, decrease: Array) -> Array:
    """Subtract `decrease` from the first rows."""
    return jax.lax.dynamic_update_slice_in_dim(
        rows, rows[: len(decrease)] - decrease, 0, 0
    )


def _between(low: Sequence[Array], high: Sequence[Array]) -> tuple[Array, Array | None]:
    """Compute b_high - b_low without cancellation, and the decay of this pair."""
    gap = jnp.where(high[0] > 0.5, low[1] - high[1], high[0] - low[0])
    # `maximum` would halve the derivative at 0, where levels tie.
    return jnp.where(gap < 0, 0, gap), high[2] * low[3] if len(low) > 2 else None

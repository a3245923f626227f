"""Compute crossing probabilities of many workers by following a Poisson process.

Level n fails if fewer than N-n workers are below θ_n. Start at the slowest level. From
one threshold to the next, the distribution of the count C is convolved with a Poisson
distribution, and counts below N-n are removed. All terms are positive. At each
threshold, only about √N of the N possible counts have a noticeable probability. A
window follows their mean, which takes O(N^{3/2}) operations, where
`crossing_probability` takes O(N²). For all levels and paths together, the computation
omits:

- Counts more than `_DEVIATIONS` standard deviations and `_MARGIN` from the mean. They
  are below 1e-9 of the paths.
- Levels that fail with probability e^-30 or less by Chernoff's bound, if no earlier
  level fails.
- The terms of each convolution from `_TERMS` on, which are below 1e-11. A long interval
  is divided into several parts.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

# Half width of a window: standard deviations of the count, and additional counts. Wider
# windows omit less, but take longer.
_DEVIATIONS = 6.5
_MARGIN = 20
# Number of terms of a convolution.
_TERMS = 20
# Bound on the relative error of an expectation. For eight distributions, the largest
# difference from the system of all counts was 2.3e-10.
LEFT_OUT = 1e-9


class Paths(NamedTuple):
    """Hold the probability that some level fails, and by level the probabilities of
    paths.

    Attributes:
      probability: P(some level fails).
      arrive: P(all levels above hold and C = N-n-1 at θ_n), divided by P(N arrivals).
      leave: P(all later levels hold | C = N-n at θ_n).
    """

    probability: Array
    arrive: Array
    leave: Array


class _Way(NamedTuple):
    """Describe how the count is followed, from the highest relevant level to the
    lowest.

    A stretch leads from one relevant level to the next lower one, past irrelevant
    levels. Its arrivals are spread evenly over these levels, because the count does not
    depend on their distribution.

    Attributes:
      counts: Whether each level is relevant.
      window: First count in the window of each level.
      rate: Expected arrivals in a part of the interval from the level above, by level.
      parts: Number of parts of this interval. Each is short enough for `_TERMS`.
      passed: Number of levels of the stretch, by level.
      first: The highest relevant level.
      last: The lowest relevant level.
      hopeless: Whether some level surely fails.
    """

    counts: Array
    window: Array
    rate: Array
    parts: Array
    passed: Array
    first: Array
    last: Array
    hopeless: Array

    @property
    def length(self) -> Array:
        return jnp.where(self.hopeless, 0, self.first - self.last)

    def place(self) -> np.ndarray:
        """Return the positions in a window. All windows are as wide as the widest."""
        width = 2 * (_DEVIATIONS * math.sqrt(self.window.size / 4 + 1) + _MARGIN) + 8
        return np.arange(
            16 * math.ceil(width / 16)
        )  # complete vectors of the processor

    def counts_at(self, level: Array) -> Array:
        """Return the counts in a level's window."""
        return self.window[level] + self.place()


def windowed_paths(hazard: Array, num_workers: ArrayLike) -> Paths:
    """Compute paths from Λ, `[..., N]`, as in `crossing_probability`."""
    workers = jnp.asarray(num_workers, int)
    rows = hazard.reshape(-1, hazard.shape[-1])
    paths = jax.lax.map(lambda row: _paths(row, workers), rows)
    return jax.tree.map(lambda a: a.reshape(hazard.shape[:-1] + a.shape[1:]), paths)


def _paths(hazard: Array, workers: Array) -> Paths:
    below = -jnp.expm1(-hazard)
    above = jnp.exp(-hazard)
    way = _way(hazard, below, above, workers)
    m = np.arange(_TERMS)
    rate = way.rate[:, None]
    log_factorial = log_factorials(_TERMS).astype(rate.dtype)
    log_term = m * jnp.log(jnp.where(rate > 0, rate, 1)) - log_factorial - rate
    terms = jnp.where(rate > 0, jnp.exp(log_term), m == 0)
    arrive, failed = _forward(way, terms[:, ::-1], below, above, workers)
    leave = _backward(way, terms, above, workers)
    total = _poisson(workers, workers.astype(hazard.dtype), hazard.size)
    probability = jnp.where(way.hopeless, 1, jnp.minimum(failed / total, 1))
    arrive, leave = (jnp.where(way.hopeless, 0, a) for a in (arrive / total, leave))
    return Paths(probability, arrive, leave)


@functools.cache
def log_factorials(size: int) -> np.ndarray:
    """Compute log k! for k = 0 … size - 1."""
    return np.array([math.lgamma(k + 1) for k in range(size)])


def _poisson(count: Array, rate: Array, size: int) -> Array:
    """Compute Pois(count; rate) for counts up to 2 `size`; 0 for negative counts."""
    table = jnp.asarray(log_factorials(2 * size + 1), rate.dtype)
    m = jnp.clip(count, 0, 2 * size)
    positive = rate > 0
    log_weight = (
        m.astype(rate.dtype) * jnp.log(jnp.where(positive, rate, 1)) - rate - table[m]
    )
    weight = jnp.where(positive, jnp.exp(log_weight), m == 0)
    return jnp.where(count >= 0, weight, 0).astype(rate.dtype)


def _way(hazard: Array, below: Array, above: Array, workers: Array) -> _Way:
    """Find the way past levels that tie with a later one or hardly ever fail."""
    level = np.arange(hazard.size)
    total = workers.astype(hazard.dtype)
    counts, hopeless = _levels_that_count(hazard, below, above, workers)
    first = jnp.max(jnp.where(counts, level, 0))
    last = jnp.min(jnp.where(counts, level, first))
    # The nearest relevant level: at or below each level, at or above it, and above it.
    low = jax.lax.cummax(jnp.where(counts, level, last))
    high = jax.lax.cummin(jnp.where(counts, level, first), reverse=True)
    higher = jnp.append(high[1:], first)
    on_the_way = (level < first) & (level >= last)
    passed = jnp.where(on_the_way, jnp.maximum(higher - low, 1), 1)
    # P(θ_higher < T ≤ θ_low), computed without cancellation.
    stretch = jnp.where(
        below[low] > 0.5, above[higher] - above[low], below[low] - below[higher]
    )
    rate = jnp.where(on_the_way, total * jnp.maximum(stretch, 0) / passed, 0)
    part = (level - low) / jnp.maximum(high - low, 1)
    chance = jnp.clip(below[low] + (below[high] - below[low]) * part, 0, 1)
    # At a rate of 2.5, the omitted terms from `_TERMS` on are below 1e-11.
    parts = jnp.maximum(jnp.ceil(rate / 2.5), 1).astype(int)
    return _Way(
        counts=counts,
        window=_windows(chance, total, first),
        rate=rate / parts,
        parts=parts,
        passed=passed,
        first=first,
        last=last,
        hopeless=hopeless,
    )


def _levels_that_count(
    hazard: Array, below: Array, above: Array, workers: Array
) -> tuple[Array, Array]:
    """Find the levels that may fail first, and whether some level surely fails.

    Level n fails if more than a fraction q = (n+1) / N of the workers is above θ_n. Let
    p be the probability that a worker is. Chernoff's bound for a fraction q is

        exp(-N (q log(q/p) + (1-q) log((1-q)/(1-p)))).
    """
    dtype = hazard.dtype
    level = np.arange(hazard.size)
    total = workers.astype(dtype)
    # If a level ties with the level before, it requires fewer workers at the same time.
    later = jnp.concatenate([jnp.full(1, jnp.inf, dtype), hazard[:-1]])
    in_use = (hazard < later) & (level < workers)
    share = jnp.minimum((level + 1) / total, 1)
    safe_above = jnp.where(above > 0, above, 1)
    safe_below = jnp.where(below > 0, below, 1)
    safe_rest = jnp.where(share < 1, 1 - share, 1)
    late = share * jnp.log(share / safe_above)
    early = (1 - share) * jnp.log(safe_rest / safe_below)
    exponent = total * (late + early)
    negligible = 30.0  # in log P
    rare = ((share > above) & (exponent > negligible)) | (above <= 0)
    # The lowest levels always count, because their failures are not rare in comparison.
    counts = in_use & (~rare | (level < 8))
    # Fewer than N-n workers are early almost surely, so no path is left.
    hopeless = jnp.any(
        in_use & ((below <= 0) | ((share < above) & (exponent > 1.5 * negligible)))
    )
    return counts, hopeless


def _windows(chance: Array, total: Array, first: Array) -> Array:
    """Return the first count of each window, some deviations below the mean count.

    From the highest to the lowest level, windows only move up, as the count does.
    """
    mean = total * chance
    deviation = jnp.sqrt(total * chance * (1 - chance))
    lowest = jnp.maximum(mean - _DEVIATIONS * deviation - _MARGIN, 0)
    window = jnp.floor(lowest).astype(int)
    window = jnp.where(np.arange(chance.size) <= first, window, 0)
    return jax.lax.cummax(window, reverse=True)


def _shift(way: _Way, level: Array, part: Array) -> Array:
    """Return how far the window moves in this part of the interval before a level."""
    higher = way.window[jnp.minimum(level + 1, way.window.size - 1)]
    shift = way.window[level] - higher
    parts = way.parts[level]
    return jnp.clip((shift * (part + 1)) // parts - (shift * part) // parts, 0, _TERMS)


def _weighed(padded: Array, start: Array, terms: Array, width: int) -> Array:
    """Compute Σ_m terms_m padded[start + m + i] for i below the width."""
    entries = jax.lax.dynamic_slice(padded, (start,), (width + _TERMS - 1,))
    return sum(terms[m] * entries[m : m + width] for m in range(_TERMS))  # type: ignore[return-value]


def _entry(row: Array, index: Array, counts: Array) -> Array:
    """Return the row's entry at `index`; 0 outside the row or if the level does not
    count.
    """
    inside = counts & (index >= 0) & (index < row.size)
    return jnp.where(inside, row[jnp.clip(index, 0, row.size - 1)], 0)


def _forward(
    way: _Way, terms: Array, below: Array, above: Array, workers: Array
) -> tuple[Array, Array]:
    """Compute by level the paths one worker short of it, and the sum of all failing
    paths.

    A row contains the weights of the paths that have not failed before, by their count.
    At each level, paths with too small a count fail. The rest is convolved with the
    arrivals before the next lower level. Weights belong to the unconditioned Poisson
    process. `terms` are in reverse order.
    """
    size = below.size
    dtype = below.dtype
    total = workers.astype(dtype)

    def add_failures(
        level: Array, row: Array, arrive: Array, failed: Array
    ) -> tuple[Array, Array]:
        one_short = workers - level - 1
        arriving = _entry(row, one_short - way.window[level], way.counts[level])
        fails = _failures(way, level, row, arriving, above, workers)
        failed = failed + jnp.where(way.counts[level], fails, 0)
        return arrive.at[level].set(arriving), failed

    def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        row, *sums = carry
        level = way.first - 1 - i
        holds = ~way.counts[level + 1] | (
            way.counts_at(level + 1) >= workers - level - 1
        )

        def move(part: Array, row: Array) -> Array:
            padded = jnp.pad(row, (_TERMS - 1, _TERMS))
            return _weighed(padded, _shift(way, level, part), terms[level], row.size)

        row = jax.lax.fori_loop(0, way.parts[level], move, jnp.where(holds, row, 0))
        return row, *add_failures(level, row, *sums)

    row = _poisson(way.counts_at(way.first), total * below[way.first], size)
    sums = add_failures(way.first, row, jnp.zeros(size, dtype), jnp.zeros((), dtype))
    return jax.lax.fori_loop(0, way.length, step, (row, *sums))[1:]


def _failures(
    way: _Way, level: Array, row: Array, arriving: Array, above: Array, workers: Array
) -> Array:
    """Compute the paths of the row that fail at a level, with all their later arrivals.

    If the level above counts, a path that held there lacks at most one worker. These
    are the `arriving` paths. After levels that do not count, it may lack more.
    """
    total = workers.astype(row.dtype)

    def any_short() -> Array:
        count = way.counts_at(level)
        later = _poisson(workers - count, total * above[level], above.size)
        return jnp.sum(jnp.where(count <= workers - level - 1, row * later, 0))

    def one_short() -> Array:
        return arriving * _poisson(level + 1, total * above[level], above.size)

    many_short = (way.passed[level] > 1) | (level == way.first)
    return jax.lax.cond(many_short, any_short, one_short)


def _backward(way: _Way, terms: Array, above: Array, workers: Array) -> Array:
    """Compute by level the paths with C = N-n that hold from there on.

    A row contains the probability that a level and all later levels hold, by the count.
    The recursion starts at the lowest level.
    """
    size = above.size
    place = way.place()

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        row, leave = carry
        level = way.last + 1 + i
        last_part = way.parts[level - 1] - 1

        def move(part: Array, row: Array) -> Array:
            padded = jnp.pad(row, (_TERMS, _TERMS - 1))
            start = _TERMS - _shift(way, level - 1, last_part - part)
            return _weighed(padded, start, terms[level - 1], place.size)

        row = jax.lax.fori_loop(0, last_part + 1, move, row)
        on_level = workers - level - way.window[level]
        row = jnp.where(~way.counts[level] | (place >= on_level), row, 0)
        return row, leave.at[level].set(_entry(row, on_level, way.counts[level]))

    rate = workers * above[way.last]
    count = way.counts_at(way.last)
    row = jnp.where(
        count >= workers - way.last, _poisson(workers - count, rate, size), 0
    )
    leave = jnp.zeros_like(above).at[way.last].set(_poisson(way.last, rate, size))
    return jax.lax.fori_loop(0, way.length, step, (row, leave))[1]

r"""Crossing probabilities of many workers: the Poisson process between the thresholds, in positive terms.

Level n fails where fewer than N-n workers are below θ_n. From one threshold to the next, the slowest level
last, the distribution of the count C is convolved with a Poisson law and what is below N-n taken out of it.
At each threshold only about √N of the N possible counts have noticeable probability: a window follows their
mean, O(N^{3/2}) in all where `crossing_probability` takes O(N²). What is left out, for all levels and paths
together:

- counts more than `_DEVIATIONS` standard deviations and `_MARGIN` from the mean, below 1e-9 of the paths;
- levels that fail with probability e^-30 or less by Chernoff's bound, where no earlier one does;
- of each convolution the terms from `_TERMS` on, below 1e-11: a long way is made in several parts.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

_DEVIATIONS, _MARGIN = 6.5, 20
_NEGLIGIBLE = 30.0
_TERMS, _LONGEST = 20, 2.5
# Levels from the slowest on that are always looked at: there a failure is never rare beside the others.
_ALWAYS = 8
# Widths of windows, one program each; no piece of the levels has fewer than this share of them.
_WIDTHS = (64, 128, 192, 256, 384, 512, 640, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
_LEAST_SHARE = 1 / 25
# What is left out, relative to an expected value: of eight laws 2.3e-10 at most, against the system of all
# counts.
LEFT_OUT = 1e-9


# Highest and lowest level and width of the window, from the highest level on.
_Pieces = tuple[tuple[int, int, int], ...]


class Paths(NamedTuple):
    """Of thresholds: P(some level fails); and by level n, the probabilities that all levels above hold and
    C = N-n-1 at θ_n, over that of N in all, and that after C = N-n there all later ones hold."""

    probability: Array
    arrive: Array
    leave: Array


class _Way(NamedTuple):
    """By level: whether it counts, the first count of its window, and on the way from the level above it the
    rate of arrivals in a part, the parts, and the levels that are passed."""

    counts: Array
    window: Array
    rate: Array
    parts: Array
    passed: Array
    first: Array
    last: Array
    hopeless: Array


def windowed_paths(hazard: Array, num_workers: ArrayLike) -> Paths:
    """For Λ at the thresholds, `[..., N]`, slowest level first, as in `crossing_probability`."""
    size = hazard.shape[-1]
    rows = hazard.reshape(-1, size)
    workers = jnp.asarray(num_workers, int)
    found = jax.lax.map(lambda row: _paths(row, workers), rows)
    return jax.tree.map(lambda a: a.reshape(hazard.shape[:-1] + a.shape[1:]), found)


def _paths(hazard: Array, workers: Array) -> Paths:
    size = hazard.size
    below, above = -jnp.expm1(-hazard), jnp.exp(-hazard)
    way = _way(hazard, below, above, workers)
    m = np.arange(_TERMS)
    log_rate = jnp.log(jnp.where(way.rate > 0, way.rate, 1))[:, None]
    terms = jnp.exp(m * log_rate - log_factorials(_TERMS).astype(hazard.dtype) - way.rate[:, None])
    terms = jnp.where(way.rate[:, None] > 0, terms, m == 0)
    pieces = _pieces(size)
    arrive, failed = _forward(pieces, way, terms, below, above, workers)
    leave = _backward(pieces, way, terms, above, workers)
    total = _poisson(workers, workers.astype(hazard.dtype), size)
    probability = jnp.where(way.hopeless, 1, jnp.minimum(failed / total, 1))
    arrive, leave = (jnp.where(way.hopeless, 0, a) for a in (arrive / total, leave))
    return Paths(probability, arrive, leave)


@functools.cache
def _pieces(size: int) -> _Pieces:
    level = np.arange(size)
    deviation = np.sqrt(np.maximum(level, 1) * (1 - level / size) + 1)
    need = np.ceil(2 * _DEVIATIONS * deviation + 2 * _MARGIN + 8)
    widths = [*_WIDTHS, int(need.max())]
    width = np.array([next(w for w in widths if w >= one) for one in need])
    ends = [*np.flatnonzero(np.diff(width)).tolist()[::-1], -1]
    pieces: list[tuple[int, int, int]] = []
    high = size - 1
    for end in ends:
        piece = high, end + 1, int(width[high])
        if pieces and min(one[0] - one[1] + 1 for one in (piece, pieces[-1])) < _LEAST_SHARE * size:
            before = pieces.pop()
            piece = before[0], piece[1], max(before[2], piece[2])
        pieces.append(piece)
        high = end
    return tuple(pieces)


@functools.cache
def log_factorials(size: int) -> np.ndarray:
    """log k! for k = 0 … size - 1."""
    return np.array([math.lgamma(k + 1) for k in range(size)])


def _poisson(count: Array, rate: Array, size: int) -> Array:
    """Pois(count; rate); 0 for counts below 0, for which as for those above 2 `size` nothing is known."""
    table = jnp.asarray(log_factorials(2 * size + 1), rate.dtype)
    known, some = jnp.clip(count, 0, 2 * size), rate > 0
    log_weight = known.astype(rate.dtype) * jnp.log(jnp.where(some, rate, 1)) - rate - table[known]
    weight = jnp.where(some, jnp.exp(log_weight), known == 0)
    return jnp.where(count >= 0, weight, 0).astype(rate.dtype)


def _way(hazard: Array, below: Array, above: Array, workers: Array) -> _Way:
    """Levels that tie with a later one, or hardly ever fail, are passed, with arrivals in equal parts."""
    size, dtype = hazard.size, hazard.dtype
    level, total = np.arange(size), workers.astype(dtype)
    later = jnp.concatenate([jnp.full(1, jnp.inf, dtype), hazard[:-1]])
    in_use = (hazard < later) & (level < workers)
    # Chernoff's bound for more than n of N above a threshold.
    share = jnp.minimum((level + 1) / total, 1)
    safe = jnp.where(above > 0, above, 1), jnp.where(below > 0, below, 1)
    rest = jnp.where(share < 1, 1 - share, 1)
    exponent = total * (share * jnp.log(share / safe[0]) + (1 - share) * jnp.log(rest / safe[1]))
    rare = ((share > above) & (exponent > _NEGLIGIBLE)) | (above <= 0)
    counts = in_use & (~rare | (level < _ALWAYS))
    # So surely fewer than N-n are early that no path is left.
    hopeless = jnp.any(in_use & ((below <= 0) | ((share < above) & (exponent > 1.5 * _NEGLIGIBLE))))
    first = jnp.max(jnp.where(counts, level, 0))
    last = jnp.min(jnp.where(counts, level, first))
    low = jnp.maximum(jax.lax.cummax(jnp.where(counts, level, -1)), last)
    high = jnp.minimum(jax.lax.cummin(jnp.where(counts, level, size), reverse=True), first)
    above_it = jnp.append(high[1:], first)  # the next level that counts, above level n
    passed = jnp.where((level < first) & (level >= last), jnp.maximum(above_it - low, 1), 1)
    step = jnp.where(below[low] > 0.5, above[above_it] - above[low], below[low] - below[above_it])
    rate = jnp.where((level < first) & (level >= last), total * jnp.maximum(step, 0) / passed, 0)
    part = (level - low) / jnp.maximum(high - low, 1)
    chance = jnp.clip(below[low] + (below[high] - below[low]) * part, 0, 1)
    mean, deviation = total * chance, jnp.sqrt(total * chance * (1 - chance))
    window = jnp.floor(jnp.maximum(mean - _DEVIATIONS * deviation - _MARGIN, 0)).astype(int)
    window = jax.lax.cummax(jnp.where(level <= first, window, 0), reverse=True)
    parts = jnp.maximum(jnp.ceil(rate / _LONGEST), 1).astype(int)
    return _Way(counts, window, rate / parts, parts, passed, first, last, hopeless)


def _moved(way: _Way, level: Array, part: Array) -> Array:
    """How far the window moves in this part of the way to a level."""
    before = way.window[jnp.minimum(level + 1, way.window.size - 1)]
    shift, parts = way.window[level] - before, way.parts[level]
    return jnp.clip((shift * (part + 1)) // parts - (shift * part) // parts, 0, _TERMS)


def _resized(row: Array, width: int) -> Array:
    return row[:width] if width <= row.size else jnp.pad(row, (0, width - row.size))


def _forward(
    pieces: _Pieces, way: _Way, terms: Array, below: Array, above: Array, workers: Array
) -> tuple[Array, Array]:
    """By level the paths one short of it, and all that fail, as weights of the Poisson process."""
    size, dtype = below.size, below.dtype
    total = workers.astype(dtype)

    def note(level: Array, row: Array, arrive: Array, failed: Array) -> tuple[Array, Array]:
        """Failures at a level; past others more than one worker may be missing."""
        short = workers - level - 1
        at = short - way.window[level]
        inside = way.counts[level] & (at >= 0) & (at < row.size)
        one = jnp.where(inside, jax.lax.dynamic_index_in_dim(row, jnp.clip(at, 0, row.size - 1), 0, False), 0)

        def all_short() -> Array:
            count = way.window[level] + np.arange(row.size)
            weight = _poisson(workers - count, total * above[level], size)
            return jnp.sum(jnp.where(count <= short, row * weight, 0))

        def one_short() -> Array:
            return one * _poisson(level + 1, total * above[level], size)

        several = (way.passed[level] > 1) | (level == way.first)
        found = jnp.where(way.counts[level], jax.lax.cond(several, all_short, one_short), 0)
        return jax.lax.dynamic_update_index_in_dim(arrive, one, level, 0), failed + found

    row, carry = jnp.zeros(pieces[0][2], dtype), (jnp.zeros(size, dtype), jnp.zeros((), dtype))
    for high, low, width in pieces:
        place = np.arange(width)

        def step(i: Array, carry: tuple[Array, ...], high: int = high, place: np.ndarray = place) -> Any:
            row, *noted = carry
            level = high - i
            earlier, own = jnp.minimum(level + 1, size - 1), terms[level]
            kept = ~way.counts[earlier] | (way.window[earlier] + place >= workers - earlier)

            def move(part: Array, row: Array) -> Array:
                padded, first = jnp.pad(row, (_TERMS - 1, _TERMS)), _moved(way, level, part)
                padded = jax.lax.dynamic_slice(padded, (first,), (place.size + _TERMS - 1,))
                begins = range(_TERMS - 1, -1, -1)
                shifted = (own[m] * padded[at : at + place.size] for m, at in enumerate(begins))
                return sum(shifted)  # type: ignore[return-value]

            row = jax.lax.fori_loop(0, way.parts[level], move, jnp.where(kept, row, 0))
            return row, *note(level, row, *noted)

        here = (way.first <= high) & (way.first >= low)
        start = _poisson(way.window[way.first] + place, total * below[way.first], size)
        row = jnp.where(here, start, _resized(row, width))
        carry = jax.lax.cond(here, functools.partial(note, way.first, row), lambda *same: same, *carry)
        begin = jnp.where(way.first > high, 0, jnp.clip(high - way.first + 1, 0, high - low + 1))
        end = jnp.where(way.hopeless, 0, jnp.clip(high - way.last + 1, 0, high - low + 1))
        row, *carry = jax.lax.fori_loop(begin, end, step, (row, *carry))  # type: ignore[assignment]
    return carry


def _backward(pieces: _Pieces, way: _Way, terms: Array, above: Array, workers: Array) -> Array:
    """By level the paths that are on it and hold from there on."""
    size, dtype = above.size, above.dtype
    rate = workers * above[way.last]
    leave = jnp.zeros(size, dtype).at[way.last].set(_poisson(way.last, rate, size))
    row = jnp.zeros(1, dtype)
    for high, low, width in reversed(pieces):
        place = np.arange(width)

        def step(i: Array, carry: tuple[Array, Array], low: int = low, place: np.ndarray = place) -> Any:
            row, leave = carry
            level = low + i
            last_part, own = way.parts[level - 1] - 1, terms[level - 1]

            def move(part: Array, row: Array) -> Array:
                padded = jnp.pad(row, (_TERMS, _TERMS - 1))
                shift = _moved(way, level - 1, last_part - part)
                padded = jax.lax.dynamic_slice(padded, (_TERMS - shift,), (place.size + _TERMS - 1,))
                shifted = (own[m] * padded[m : m + place.size] for m in range(_TERMS))
                return sum(shifted)  # type: ignore[return-value]

            row = jax.lax.fori_loop(0, last_part + 1, move, row)
            at = workers - level - way.window[level]
            row = jnp.where(~way.counts[level] | (place >= at), row, 0)
            inside = way.counts[level] & (at >= 0) & (at < place.size)
            found = jax.lax.dynamic_index_in_dim(row, jnp.clip(at, 0, place.size - 1), 0, False)
            return row, jax.lax.dynamic_update_index_in_dim(leave, jnp.where(inside, found, 0), level, 0)

        count = way.window[way.last] + place
        end_weight = jnp.where(count >= workers - way.last, _poisson(workers - count, rate, size), 0)
        here = (way.last <= high) & (way.last >= low)
        row = jnp.where(here, end_weight, _resized(row, width))
        begin = jnp.clip(way.last + 1 - low, 0, high - low + 1)
        end = jnp.where(way.hopeless, 0, jnp.clip(way.first - low + 1, 0, high - low + 1))
        row, leave = jax.lax.fori_loop(begin, end, step, (row, leave))
    return leave

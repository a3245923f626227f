r"""E max_n y_n T_(N-n) for extreme laws, by NumPy and SciPy: a recursion over counts,
integrated.

A law is here its infimum and SciPy's law of the excess T - infimum, so that a shift of
a million scales takes no digit: with w = t - y_last infimum, the excess that level n
has room for is ((y_last - y_n) infimum + w) / y_n, a sum of positive terms. The
integral is adaptive, in log w.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

# Gauss–Legendre of 8 and of 16 points: what differs between them is bisected.
_COARSE = np.polynomial.legendre.leggauss(8)
_FINE = np.polynomial.legendre.leggauss(16)
# Panels are bisected until they differ by less than this share of the integral, and
# until the probability, where it counts, falls by less than half: a step near the end
# of a panel deceives every rule.
_TOLERANCE, _MAX_DEPTH = 1e-14, 60


def expected_max(
    excess: Any, infimum: float, partition: np.ndarray, kinks: tuple[float, ...] = ()
) -> float:
    """E max_n y_n T_(N-n) for x = `partition`; `kinks` are those of the excess."""
    x = np.asarray(partition, float)
    used = np.flatnonzero(x > 0)
    work = (used + 1) * x[used]
    load = np.cumsum(work)
    work_left = np.append(np.cumsum(work[:0:-1])[::-1], 0.0)  # y_last - y_n

    def late(v: np.ndarray) -> np.ndarray:
        room = (work_left[:, None] * infimum + np.exp(v)) / load[:, None]
        return crossing(x.size, used, excess.cdf(room), excess.sf(room))

    ends = load[:, None] * np.array(kinks)[None] - work_left[:, None] * infimum
    breaks = [math.log(w) for w in ends.ravel() if w > 0]
    # of rare times, under the largest load
    centre = math.log(load[-1]) + math.log(float(excess.isf(1e-3)))
    return float(load[-1] * infimum + _integral(late, centre, breaks))


def crossing(
    workers: int, used: np.ndarray, below: np.ndarray, above: np.ndarray
) -> np.ndarray:
    """P(for some level n fewer than N-n workers are below).

    P(below) and P(above) are `[levels, Q]`. From the highest level down, the state is
    how many workers are below; those above come below the next room independently. A
    state short of N-n has failed. All terms are positive.
    """
    count = np.arange(workers + 1)
    alive = np.zeros((below.shape[1], workers + 1))
    alive[:, 0] = 1
    failed = np.zeros(below.shape[1])
    before = np.zeros(below.shape[1]), np.ones(below.shape[1])
    for level, low, high in zip(used[::-1], below[::-1], above[::-1], strict=True):
        # The share of those above that comes below, from the side where it does not
        # cancel.
        moved = np.where(low < 0.5, low - before[0], before[1] - high)
        safe = np.where(before[1] > 0, before[1], 1)
        arrive, stay = (
            np.clip(share / safe, 0, 1)[:, None] ** count for share in (moved, high)
        )
        new = np.zeros_like(alive)
        for c in np.flatnonzero(alive.any(axis=0)):
            m = count[: workers - c + 1]
            new[:, c:] += alive[:, c, None] * (
                special.comb(workers - c, m) * arrive[:, m] * stay[:, m[::-1]]
            )
        short = count < workers - level
        failed += new[:, short].sum(axis=1)
        new[:, short] = 0
        alive = new
        before = (low, high)
    return failed


def _integral(
    late: Callable[[np.ndarray], np.ndarray], centre: float, breaks: list[float]
) -> float:
    """∫ P(w) dw in v = log w."""
    grid = np.arange(centre - 120, min(centre + 640, 700.0))
    size = np.exp(grid) * late(grid)
    kept = np.flatnonzero(size > 1e-19 * size.max())
    edges = np.union1d(grid[max(kept[0] - 1, 0) : kept[-1] + 2], breaks)
    left = edges[:-1]
    right = edges[1:]
    # Below the first edge the probability is 1.
    total, open_total = np.exp(left[0]), 0.0
    for _ in range(_MAX_DEPTH):
        coarse, fine = (_panels(late, left, right, *rule) for rule in (_COARSE, _FINE))
        open_total = fine.sum()
        rough = np.abs(fine - coarse) > _TOLERANCE * (total + open_total)
        high = late(left)
        low = late(right)
        counts = high * np.exp(right) * (right - left) > _TOLERANCE * (
            total + open_total
        )
        rough |= counts & (low < high / 2)
        total += fine[~rough].sum()
        left = left[rough]
        right = right[rough]
        if not left.size:
            return total
        middle = (left + right) / 2
        left = np.concatenate([left, middle])
        right = np.concatenate([middle, right])
    return total + open_total


def _panels(
    late: Callable,
    left: np.ndarray,
    right: np.ndarray,
    nodes: np.ndarray,
    weights: np.ndarray,
):
    half = (right - left)[:, None] / 2
    v = left[:, None] + half * (1 + nodes)
    value = late(v.ravel()).reshape(v.shape) * np.exp(v)
    return np.sum(value * half * weights, axis=1)

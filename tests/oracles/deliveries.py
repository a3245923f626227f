"""E of the last delivery, by NumPy and SciPy alone: workers that start up, compute and
send.

Level n is delivered by t where T ≤ (t - S - a) / y for each (a, y) that binds it. Times
are an edge and an excess over it, as the law is its infimum and SciPy's law of the
excess: laws with nearly all mass at the infimum keep their digits. Between edges the
integrals are Gauss's, in panels ever shorter to the left.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.oracles import extremes
from tests.oracles.laws import Atoms

# Nodes in a panel, one to a factor e; factors of e down to the start, to another edge,
# and up. Powers up to 27 are exact: of a uniform law with 12 workers P is one of degree
# 24.
_ORDER, _FIRST, _BELOW, _ABOVE = 14, 70.0, 40.0, 90.0
# Start-ups: double exponential nodes, and their range.
_INNER, _RANGE = 101, 4.4
# What rounding leaves of a difference that is none.
_ROUNDING = 1e-13

Steps = Atoms  # excesses with their shares, in place of SciPy's law of an excess


@dataclass(frozen=True)
class Delivery:
    """A worker's loads, cycle time and start-up, these an infimum and a law of excess.

    `work` is cycles at the end of each level times M b / N, `sent` the link's time up
    to there, `[N]`. `kinks` are those of the cycle time's excess.
    """

    work: np.ndarray
    sent: np.ndarray
    infimum: float
    excess: Any
    start: float
    start_excess: Any
    scale: float
    overlap: bool = False
    kinks: tuple[float, ...] = ()

    def binds(self, level: int) -> np.ndarray:
        """(a, y) of what a level waits for, `[K, 2]`."""
        if not self.overlap:
            return np.array([[self.sent[level], self.work[level]]])
        before = np.append(0.0, self.sent[:-1])
        used = self.levels[self.levels <= level]
        return np.stack([self.sent[level] - before[used], self.work[used]], axis=1)

    @property
    def levels(self) -> np.ndarray:
        """Those in use."""
        return np.flatnonzero(np.diff(self.work, prepend=0) > 0)


def loads(
    x: Any,
    scale: float,
    cycles: float = 1.0,
    setup: float = 0.0,
    chain: float = 0.0,
    send: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """`work` and `sent` of a partition.

    `scale` is M b / N; setup and chain are cycles of a sample.
    """
    work = []
    sent = []
    done = 0.0
    passed = 0.0
    subsets = 0
    for n, size in enumerate(np.asarray(x, float)):
        if size > 0:
            done = done + (n + 1) * size
            passed = passed + size
            subsets = n + 1
        work.append(scale * (done + subsets * (setup + chain * passed) / cycles))
        sent.append(send * passed)
    return np.array(work), np.array(sent)


def expected_last(d: Delivery) -> float:
    """E of the last delivery: of level n the (N-n)-th."""
    start, edges = _edges(d)
    total = start
    for left, right in zip(edges, [*edges[1:], np.inf], strict=True):
        excess, weight = _graded(
            right - left, d.scale, _FIRST if left == start else _BELOW
        )
        total += float(weight @ late(d, left, excess))
    return total


def late(d: Delivery, left: float, excess: np.ndarray) -> np.ndarray:
    """P(the last delivery is after left + excess)."""
    marginals = [_marginal(d, d.binds(n), left, excess) for n in d.levels]
    below, above = (np.stack(masses) for masses in zip(*marginals, strict=True))
    return extremes.crossing(d.work.size, d.levels, below, above)


def _edges(d: Delivery) -> tuple[float, list[float]]:
    """When all may be there at first, and from there on where P may have kinks."""
    inner = d.excess.values if isinstance(d.excess, Steps) else np.append(0.0, d.kinks)
    times = d.infimum + inner
    constant = isinstance(d.start_excess, Steps)
    starts = d.start + (d.start_excess.values if constant else np.zeros(1))
    kinks: list[float] = []
    for n in d.levels:
        binds = d.binds(n)
        kinks += [s + max(a + y * t for a, y in binds) for s in starts for t in times]
        if constant:  # where another one takes over
            turns = [
                a + y * (a - b) / (z - y)
                for a, y in binds
                for b, z in binds
                if z > y and a > b
            ]
            kinks += [s + turn for s in starts for turn in turns]
    start = d.start + max(
        max(a + y * d.infimum for a, y in d.binds(n)) for n in d.levels
    )
    return start, [start, *sorted({t for t in kinks if t > start * (1 + _ROUNDING)})]


def _graded(length: float, scale: float, below: float) -> tuple[np.ndarray, np.ndarray]:
    points, weights = np.polynomial.legendre.leggauss(_ORDER)
    high = np.log(length) if np.isfinite(length) else np.log(scale) + _ABOVE
    low = min(np.log(scale), high) - below
    v = np.linspace(low, high, int(high - low) + 2)
    half = np.diff(v)[:, None] / 2
    nodes = np.exp(v[:-1, None] + half * (1 + points))
    weights = nodes * half * weights
    weights[0, 0] += np.exp(low)  # below the first panel nothing falls
    return nodes.ravel(), weights.ravel()


def _marginal(
    d: Delivery, binds: np.ndarray, left: float, excess: np.ndarray
) -> tuple[Any, Any]:
    """P(F ≤ t) and P(F > t) of a level, `[Q]`."""
    if isinstance(d.start_excess, Steps):
        rooms = [
            _room(d, binds, d.start + s, left, excess) for s in d.start_excess.values
        ]
        return _mixed(d.start_excess.mass, np.stack(rooms), d.excess)
    if isinstance(d.excess, Steps):
        ready = [
            np.max(binds[:, 0] + (d.infimum + e) * binds[:, 1]) for e in d.excess.values
        ]
        rooms = [_difference(left, d.start + r) + excess for r in ready]
        return _mixed(d.excess.mass, np.stack(rooms), d.start_excess)
    return _over_starts(d, binds, left, excess)


def _mixed(shares: np.ndarray, rooms: np.ndarray, law: Any) -> tuple[Any, Any]:
    """Of atoms with these shares, which leave this room for the other law's excess."""
    possible = rooms >= 0
    below, above = (
        function(np.where(possible, rooms, 0)) for function in (law.cdf, law.sf)
    )
    return shares @ np.where(possible, below, 0), shares @ np.where(possible, above, 1)


def _room(
    d: Delivery, binds: np.ndarray, start: float, left: float, excess: np.ndarray
) -> np.ndarray:
    """The largest excess of a cycle time with which a level is there, or negative."""
    gaps = [_difference(left, start + a + y * d.infimum) for a, y in binds]
    return np.min(
        [(gap + excess) / y for gap, (_, y) in zip(gaps, binds, strict=True)], axis=0
    )


def _difference(left: float, image: float) -> float:
    gap = left - image
    return 0.0 if abs(gap) < _ROUNDING * abs(left) else gap


def _over_starts(
    d: Delivery, binds: np.ndarray, left: float, excess: np.ndarray
) -> tuple[Any, Any]:
    """The same with start-ups of a density that is a power at its infimum.

    Double exponential nodes in what is left of the time, between the points at which
    another (a, y) takes over.
    """
    a, y = binds.T
    latest = np.max(a + y * d.infimum)
    room = _difference(left, d.start + latest) + excess
    possible = room > 0
    room = np.where(possible, room, 1)
    slack = latest - a - y * d.infimum
    pairs = list(zip(slack, y, strict=True))
    turns = sorted(
        (z * s - w * r) / (w - z) for s, w in pairs for r, z in pairs if z > w
    )
    ends = [0.0 * room, *(np.minimum(turn, room) for turn in turns if turn > 0), room]
    v = np.linspace(-_RANGE, _RANGE, _INNER)
    share = 1 / (1 + np.exp(-np.pi * np.sinh(v)))
    share_left = 1 / (1 + np.exp(np.pi * np.sinh(v)))
    weight = np.pi * np.cosh(v) * share * share_left * (v[1] - v[0])
    early = np.zeros(room.size)
    late_ = d.start_excess.sf(room)
    for low, high in itertools.pairwise(ends):
        size = (high - low)[:, None]
        spare = np.min(
            [(low[:, None] + size * share + s) / w for s, w in pairs], axis=0
        )
        density = (
            size
            * d.start_excess.pdf((room - high)[:, None] + size * share_left)
            * weight
        )
        density = np.where(size > 0, density, 0)
        early += np.sum(density * d.excess.cdf(spare), axis=1)
        late_ += np.sum(density * d.excess.sf(spare), axis=1)
    return np.where(possible, early, 0), np.where(possible, late_, 1)

r"""Maximum likelihood of a start-up time S and a cycle time T from seconds S + T y, one load y at a time.

The sum's density is in `convolution`. Which pair of families it is follows from Akaike's criterion, searched
for one family after the other: the best T for a middling S, the best S for that T, and T again. All pairs
are compared on a part of the times, the best of them then on all.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax import laws
from bcgc_jax.laws import Law
from bcgc_jax.measured.convolution import (
    FAMILIES,
    LEVELS,
    Part,
    log_density_of_sum,
    log_survival_of_sum,
)

# Times that are evaluated together, and are enough to compare families by.
CHUNK = 512
_MAX_CLIMBS = 80
# Shares of the variance that may be that of S; how many of them are climbed from.
_SPLITS, _STARTS = (0.2, 0.5, 0.8), 2
# Where S is constant, all its values are looked through: so many times around the best of so many.
_ZOOMS, _IN_A_ZOOM = 5, 9
# Where an infimum may be, as logit of its share of what the smallest times leave.
_NEAREST = 14.0


class Kind(NamedTuple):
    """A family as a candidate: its place in `FAMILIES`, -1 for a constant; which of three numbers it uses.

    The numbers are two parameters, by their logarithm but for a lognormal's location, and the logit of the
    infimum's share of the room.
    """

    law: type[Law]
    family: int
    used: tuple[bool, bool, bool]

    def make(self, parameters: np.ndarray, infimum: float) -> Law | None:
        """None for what is always 0."""
        a, b, start = float(parameters[0]), float(parameters[1]), float(infimum)
        if self.law is laws.Deterministic:
            return laws.Deterministic(start) if self.used[2] else None
        if self.law is laws.Exponential:
            return laws.Exponential(a)
        if self.law is laws.ShiftedExponential:
            return laws.ShiftedExponential(a, start)
        return laws.Pareto(start, b) if self.law is laws.Pareto else self.law(a, b, start)  # type: ignore[call-arg]


def _kind(law: type[Law], family: str, *used: int) -> Kind:
    return Kind(law, list(FAMILIES).index(family) if family else -1, tuple(bool(u) for u in used))  # type: ignore[arg-type]


NONE = "none"
START_UPS = {
    NONE: _kind(laws.Deterministic, "", 0, 0, 0),
    "constant": _kind(laws.Deterministic, "", 0, 0, 1),
    "exponential": _kind(laws.Exponential, "exponential", 1, 0, 0),
    "shifted-exponential": _kind(laws.ShiftedExponential, "exponential", 1, 0, 1),
    "weibull": _kind(laws.Weibull, "weibull", 1, 1, 0),
    "gamma": _kind(laws.Gamma, "gamma", 1, 1, 0),
    "lognormal": _kind(laws.Lognormal, "lognormal", 1, 1, 0),
}
CYCLE_TIMES = {
    "constant": _kind(laws.Deterministic, "", 0, 0, 1),
    "exponential": _kind(laws.Exponential, "exponential", 1, 0, 0),
    "shifted-exponential": _kind(laws.ShiftedExponential, "exponential", 1, 0, 1),
    "weibull": _kind(laws.Weibull, "weibull", 1, 1, 1),
    "gamma": _kind(laws.Gamma, "gamma", 1, 1, 1),
    "lognormal": _kind(laws.Lognormal, "lognormal", 1, 1, 1),
    "pareto": _kind(laws.Pareto, "pareto", 0, 1, 1),
}


class Times(NamedTuple):
    """Seconds of loads, which are lower bounds, and those that bound the infima: none of them cut off."""

    seconds: np.ndarray
    load: np.ndarray
    censored: np.ndarray
    spacing: float  # a room that is smaller counts as this one: a density may be infinite where it begins

    def take(self, rows: np.ndarray) -> "Times":
        return Times(self.seconds[rows], self.load[rows], self.censored[rows], self.spacing)


class Moments(NamedTuple):
    """Means of S and T, and the standard deviation of S + T y at the mean load y: where a search begins."""

    means: np.ndarray
    deviation: float
    load: float


class Candidate(NamedTuple):
    """One pair of families and its largest likelihood.

    Attributes:
      start_up, cycle_time: the families, as on the command line, or "none" and "constant".
      log_likelihood, aic: Akaike's criterion, 2 · parameters - 2 · log likelihood; less is better.
      point: `[6]`, where: the numbers of S and those of T.
    """

    start_up: str
    cycle_time: str
    log_likelihood: float
    aic: float
    point: np.ndarray


class _Pair(NamedTuple):
    """What of a pair of kinds is traced: places in `FAMILIES`, and whether each has an infimum."""

    families: Array
    shifted: Array


# A program for each: both are random, S is a constant, T is one.
_SUM, _FIXED_START, _FIXED_CYCLE = "sum", "start", "cycle"


def _case(start_up: Kind, cycle: Kind) -> str:
    if start_up.family < 0:
        return _FIXED_START
    return _FIXED_CYCLE if cycle.family < 0 else _SUM


def _natural(point: Array, pair: _Pair, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    """Parameters `[2, 2]` and infima `[2]` at a point `[6]`: each of the times has room under any point."""
    seconds, load = bounds
    numbers = point.reshape(2, 3)
    raw = pair.families == list(FAMILIES).index("lognormal")
    first = jnp.where(raw, numbers[:, 0], jnp.exp(jnp.where(raw, 0, numbers[:, 0])))
    share = jnp.where(pair.shifted, jax.nn.sigmoid(jnp.clip(numbers[:, 2], -_NEAREST, _NEAREST)), 0)
    cycle = share[1] * jnp.min(seconds / load)
    start = share[0] * jnp.min(seconds - load * cycle)
    return jnp.stack([first, jnp.exp(numbers[:, 1])], axis=1), jnp.stack([start, cycle])


def _terms(
    point: Array,
    quantiles: Array,
    pair: _Pair,
    bounds: tuple[Array, Array],
    times: Times,
    case: str,
    cut: bool,
) -> Array:
    """What each time adds to the log likelihood, `[K]`."""
    parameters, infima = _natural(point, pair, bounds)
    start_up, cycle = (Part(pair.families[i], parameters[i], infima[i], quantiles[i]) for i in (0, 1))
    load = jnp.asarray(times.load)
    room = jnp.asarray(times.seconds) - infima[0] - load * infima[1]
    # The density of a sum is as good as never infinite; a floor would let the infimum go too far.
    floor = times.spacing * (1e-3 if case == _SUM else 1)
    room = jnp.where(times.censored, room, jnp.maximum(room, floor))
    if case == _SUM:
        whole = log_density_of_sum(start_up, cycle, load, room)
        later = log_survival_of_sum(start_up, cycle, load, room) if cut else whole
    else:  # one of them is all there is above the infima
        part, unit = (cycle, load) if case == _FIXED_START else (start_up, jnp.ones_like(load))
        there = room > 0
        x = jnp.where(there, room / unit, 1)
        whole = part.log_density(x, jnp.log(x)) - jnp.log(unit)
        later = jnp.where(there, -part.hazard(x), 0) if cut else whole
    return jnp.where(times.censored, later, whole)


@functools.partial(jax.jit, static_argnames=("case", "cut"))
def _scores(point, quantiles, pair, bounds, times, count, *, case, cut):
    """The sum of the first `count` terms, its slope, `[6]`, and the sum of the slopes' squares, `[6, 6]`."""

    def terms(point: Array) -> tuple[Array, Array]:
        found = _terms(point, quantiles, pair, bounds, times, case, cut)
        found = jnp.where(jnp.arange(CHUNK) < count, found, 0)
        return found, found

    slopes, found = jax.jacfwd(terms, has_aux=True)(point)
    return jnp.sum(found), jnp.sum(slopes, axis=0), slopes.T @ slopes


class Model:
    """The likelihood of one pair of families for some times, in chunks of one size: compiled once."""

    def __init__(self, start_up: str, cycle_time: str, times: Times) -> None:
        self.names, self.times = (start_up, cycle_time), times
        self.kinds = START_UPS[start_up], CYCLE_TIMES[cycle_time]
        if self.kinds[0].family < 0 and self.kinds[1].family < 0:
            raise ValueError("either S or T must be random")
        self.case = _case(*self.kinds)
        self.used = np.array([u for kind in self.kinds for u in kind.used])
        families = np.array([max(kind.family, 0) for kind in self.kinds])
        self.pair = _Pair(families, np.array([kind.used[2] for kind in self.kinds]))  # type: ignore[arg-type]
        whole = ~times.censored
        self.bounds = times.seconds[whole], times.load[whole]
        self.chunks = [_padded(times, k) for k in range(0, times.seconds.size, CHUNK)]

    def numbers(self, point: np.ndarray) -> np.ndarray:
        """`[2, 3]`, of S and of T: two parameters and the infimum."""
        parameters, infima = map(np.asarray, _parameters(point, self.pair, self.bounds))
        return np.concatenate([parameters, infima[:, None]], axis=1)

    def laws(self, point: np.ndarray) -> tuple[Law | None, Law]:
        return self.laws_of(self.numbers(point))

    def laws_of(self, numbers: np.ndarray) -> tuple[Law | None, Law]:
        first, second = (kind.make(n[:2], n[2]) for kind, n in zip(self.kinds, numbers, strict=True))
        assert second is not None
        return first, second

    def scores(self, point: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Log likelihood, its slope and the sum of the squares of its terms' slopes."""
        quantiles = self._quantiles(point)
        cut = bool(self.times.censored.any())
        found = [
            _scores(point, quantiles, self.pair, self.bounds, times, count, case=self.case, cut=cut)
            for times, count in self.chunks
        ]
        value, slope, squares = (np.sum([np.asarray(f[i]) for f in found], axis=0) for i in range(3))
        return float(value), slope, squares

    def _quantiles(self, point: np.ndarray) -> np.ndarray:
        found = np.ones((2, LEVELS.size))
        if self.case == _SUM:
            for i, law in enumerate(self.laws(point)):
                assert law is not None
                hazards = -np.log1p(-LEVELS)
                found[i] = np.asarray(law.inverse_cumulative_hazard(hazards)) - float(law.infimum())
        return np.nan_to_num(found, posinf=1e300)

    def top(self, moments: Moments) -> Candidate:
        """The highest of the tops above the likeliest points with these moments.

        Not how much of the variance is that of S: each split has its point, at the likeliest infima.
        """
        found = [self._start(moments, split) for split in _SPLITS]
        if self.case == _FIXED_START and self.used[2]:
            found.append(self._constant_start())
        starts = sorted(found, key=lambda start: start[0], reverse=True)
        tops = [self.climb(point) for value, point in starts[:_STARTS] if np.isfinite(value)]
        return min(tops, key=lambda found: found.aic)

    def _start(self, moments: Moments, split: float) -> tuple[float, np.ndarray]:
        least = np.min(self.bounds[0] / self.bounds[1])
        deviation = moments.deviation * np.sqrt([split, 1 - split]) / [1, moments.load]
        best, found = -np.inf, np.zeros(6)
        for share in (0.9, 0.5, 0.05) if self.used[5] else (0.0,):
            cycle = share * least
            rest = np.min(self.bounds[0] - self.bounds[1] * cycle)
            for other in (0.8, 0.2) if self.used[2] else (0.0,):
                point = np.r_[
                    _numbers(self.kinds[0], moments.means[0], deviation[0], other * rest, other),
                    _numbers(self.kinds[1], moments.means[1], deviation[1], cycle, share),
                ]
                value = self.scores(point)[0]
                if value > best:
                    best, found = value, point
        return best, found

    def _constant_start(self) -> tuple[float, np.ndarray]:
        """For a constant S, of which T follows: where infima touch the times the likelihood has corners."""
        seconds, load = self.bounds
        low, high = 0.0, float(np.min(seconds))
        best, found = -np.inf, np.zeros(6)
        for _ in range(_ZOOMS):
            tried = np.linspace(low, high, _IN_A_ZOOM + 2)[1:-1]
            for start in tried:
                cycle = (seconds - start) / load
                least = cycle.min() / np.min(seconds / load)
                point = np.r_[
                    [0.0, 0.0, _NEAREST],
                    _numbers(self.kinds[1], cycle.mean(), cycle.std(), cycle.min(), least),
                ]
                value = self.scores(point)[0]
                if value > best:
                    best, found, middle = value, point, start
            width = (high - low) / (_IN_A_ZOOM + 1)
            low, high = max(middle - width, 0.0), min(middle + width, float(np.min(seconds)))
        return best, found

    def climb(self, point: np.ndarray, tolerance: float = 1e-5) -> Candidate:
        """To the top near a point: Newton's method with the squares of the scores for the Hessian, damped.

        It ends where a step promises less than the `tolerance`.
        """
        every, damping = np.flatnonzero(self.used), 1e-3
        value, slope, squares = self.scores(point)
        # Where the infima are at an edge of the times, the others go on alone, and they along the edge.
        infima = np.isin(every, (2, 5))
        sets = [every, every[~infima], *every[infima, None]] if infima.any() else [every]
        for _ in range(_MAX_CLIMBS):
            better = False
            for free in sets:
                if not free.size:
                    continue
                move = _damped(slope[free], squares[np.ix_(free, free)], damping)
                if move @ slope[free] < tolerance:
                    continue
                trial = point.copy()
                trial[free] += np.clip(move, -1.5, 1.5)
                found = self.scores(trial)
                better = bool(np.isfinite(found[1]).all() and found[0] > value)
                if better:
                    point, (value, slope, squares) = trial, found
                    break
            damping = damping / 5 if better else max(6 * damping, 1e-3)
            if damping > 1e9:
                break
        return Candidate(*self.names, value, 2 * every.size - 2 * value, point)


def _damped(slope: np.ndarray, squares: np.ndarray, damping: float) -> np.ndarray:
    scale = np.diag(squares) + 1e-12 * (1 + np.max(np.diag(squares)))
    return np.linalg.solve(squares + damping * np.diag(scale), slope)


@jax.jit
def _parameters(point: Array, pair: _Pair, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    return _natural(point, pair, bounds)


def _padded(times: Times, first: int) -> tuple[Times, int]:
    rows = np.arange(first, first + CHUNK)
    count = int(np.sum(rows < times.seconds.size))
    return times.take(np.minimum(rows, times.seconds.size - 1)), count


def _numbers(kind: Kind, mean: float, deviation: float, infimum: float, share: float) -> np.ndarray:
    """Three numbers of a law with this mean, standard deviation and infimum, as nearly as it can."""
    logit = np.log(max(share, 1e-6) / (1 - min(share, 1 - 1e-6)))
    excess = max(mean - infimum, 0.3 * deviation)
    variation = min(max(deviation / excess, 0.02), 3.0)
    if kind.family < 0:
        return np.array([0.0, 0.0, logit])
    name = list(FAMILIES)[kind.family]
    spread = np.log1p(variation**2)
    a, b = {
        "exponential": (-np.log(excess), 0.0),
        "weibull": (np.log(excess), -1.05 * np.log(variation)),
        "gamma": (-2 * np.log(variation), -2 * np.log(variation) - np.log(excess)),
        "lognormal": (np.log(excess) - spread / 2, np.log(spread) / 2),
        "pareto": (0.0, np.log(1.2 + infimum / excess)),
    }[name]
    return np.array([a, b, logit])


def search(
    times: Times,
    part: np.ndarray,
    moments: Moments,
    start_ups: Sequence[str],
    cycle_times: Sequence[str],
    progress: Callable[[str], None],
) -> list[Candidate]:
    """The best pairs of families, the best first, among them the best without start-up, if it is asked."""
    few, known = times.take(part), dict[tuple[str, str], Candidate]()

    def fit(pair: tuple[str, str]) -> Candidate:
        if pair not in known:
            progress(f"{pair[0]} + {pair[1]}")
            model = Model(*pair, few)
            known[pair] = model.top(moments)
        return known[pair]

    def best(pairs: list[tuple[str, str]]) -> tuple[str, str]:
        possible = [p for p in pairs if START_UPS[p[0]].family >= 0 or CYCLE_TIMES[p[1]].family >= 0]
        if not possible:
            raise ValueError(f"either S or T must be random, got {pairs[0][0]} and {pairs[0][1]}")
        return min(possible, key=lambda pair: fit(pair).aic)

    middling = next(name for name in ("gamma", *start_ups) if name in start_ups)
    at = best([(middling, cycle) for cycle in cycle_times])
    while True:
        other = best([(start, at[1]) for start in start_ups])
        again = best([(other[0], cycle) for cycle in cycle_times])
        if again in (at, other):
            break
        at = again
    if NONE in start_ups:
        best([(NONE, cycle) for cycle in cycle_times])
    ranked = sorted(known.values(), key=lambda found: found.aic)
    finalists = ranked[:3]
    if not any(found.start_up == NONE for found in finalists):
        finalists += [found for found in ranked if found.start_up == NONE][:1]
    progress("the best on all times")
    final = [Model(c.start_up, c.cycle_time, times).climb(c.point) for c in finalists]
    return sorted(final, key=lambda found: found.aic)

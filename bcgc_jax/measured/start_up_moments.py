r"""What means, variances and regressions say of S and T in seconds S + T y, without any family.

With one load y in an iteration S and T are not both seen, but E = E S + y E T and
Var = Var S + 2 y Cov(S, T) + y² Var T are lines and parabolas in the load. With several loads in an iteration
each iteration of a worker has a line of its own, and with it S and T themselves, up to the noise around it.
"""

import math
from typing import NamedTuple

import numpy as np

# Groups of steps that are left out one after another, for standard errors.
_GROUPS = 40


class Estimate(NamedTuple):
    """A number and its standard error; NaN where it is not known."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.error:.2g}" if math.isfinite(self.error) else f"{self.value:.4g}"


class Lines(NamedTuple):
    """E S and E T, `[2]`, the `covariance` of these estimates, and Var S."""

    means: np.ndarray
    covariance: np.ndarray
    variance: Estimate


def lines(seconds: np.ndarray, load: np.ndarray, step: np.ndarray) -> Lines:
    """Of times of one load each, `[K]`, with a jackknife over steps: workers of one may be alike."""
    group, found = groups(step), _moments(seconds, load)
    parts = np.array([_moments(seconds[group != g], load[group != g]) for g in range(group.max() + 1)])
    covariance = np.cov(parts, rowvar=False, ddof=0) * (len(parts) - 1)
    return Lines(found[:2], covariance[:2, :2], Estimate(float(found[2]), math.sqrt(covariance[2, 2])))


def _moments(seconds: np.ndarray, load: np.ndarray) -> np.ndarray:
    """E S, E T, Var S, Cov(S, T), Var T; the covariance is 0, and unknown, below three loads.

    Weighted least squares of the seconds, and of their squared distances to the line, in turn.
    """
    unit = load.mean()
    y = load / unit
    line = np.stack([np.ones_like(y), y], axis=1)
    parabola = np.stack([np.ones_like(y), 2 * y, y**2], axis=1)
    used = [0, 1, 2] if np.unique(load).size > 2 else [0, 2]
    variance, variances = np.full(y.size, 1.0), np.zeros(3)
    for _ in range(4):
        means = _least_squares(line, seconds, variance)
        squares = (seconds - line @ means) ** 2
        variances[used] = _least_squares(parabola[:, used], squares, variance**2)
        variance = np.maximum(parabola @ variances, 0.05 * squares.mean() + 1e-300)
    return np.r_[means / [1, unit], variances / [1, unit, unit**2]]


def _least_squares(columns: np.ndarray, values: np.ndarray, variance: np.ndarray) -> np.ndarray:
    weight = 1 / np.sqrt(variance)
    return np.linalg.lstsq(columns * weight[:, None], values * weight, rcond=None)[0]


def groups(step: np.ndarray) -> np.ndarray:
    """`[K]`, from 0: neighbouring steps together; single times where there are too few steps."""
    _, place = np.unique(step, return_inverse=True)
    if place.max() < 4:
        place = np.arange(step.size)
    return place * min(_GROUPS, place.max() + 1) // (place.max() + 1)


class LoadCells(NamedTuple):
    """S and T of C iterations of workers: each a line through its loads, and what noise does to it.

    Attributes:
      start_up, cycle: `[C]`.
      step: `[C]`, int.
      noise: `[2, 2]`, mean covariance of their errors; 0 where no iteration has three loads to tell it from.
    """

    start_up: np.ndarray
    cycle: np.ndarray
    step: np.ndarray
    noise: np.ndarray

    @property
    def pairs(self) -> np.ndarray:
        return np.stack([self.start_up, self.cycle], axis=1)

    def covariance(self) -> np.ndarray:
        """Of S and T, `[2, 2]`, that of the errors taken out."""
        return np.cov(self.pairs, rowvar=False) - self.noise

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """E S and E T, and their covariance, `[2, 2]`; workers of a step may depend on each other."""
        pairs = self.pairs
        off = pairs - pairs.mean(axis=0)
        steps, place = np.unique(self.step, return_inverse=True)
        if steps.size < 2:
            return pairs.mean(axis=0), np.cov(pairs, rowvar=False) / len(pairs)
        sums = np.zeros((steps.size, 2))
        np.add.at(sums, place, off)
        return pairs.mean(axis=0), sums.T @ sums / len(pairs) ** 2 * steps.size / (steps.size - 1)

    def without_noise(self) -> np.ndarray:
        """The pairs, `[C, 2]`, drawn towards their mean until their covariance is that of S and T."""
        pairs = self.pairs
        scale = pairs.std(axis=0)
        if self.noise[1, 1] <= 1e-9 * scale[1] ** 2:  # rounding, which nothing has to be told from
            return pairs
        scale = np.where(scale > 0, scale, 1)
        seen = np.cov(pairs / scale, rowvar=False) + 1e-12 * np.eye(2)
        values, axes = np.linalg.eigh(self.covariance() / np.outer(scale, scale))
        wanted = axes * np.sqrt(np.maximum(values, 0)) @ axes.T
        values, axes = np.linalg.eigh(seen)
        whitened = (pairs - pairs.mean(axis=0)) / scale @ (axes / np.sqrt(values) @ axes.T)
        return pairs.mean(axis=0) + whitened @ wanted * scale


def lines_of_cells(seconds: np.ndarray, load: np.ndarray, cell: np.ndarray, step: np.ndarray) -> LoadCells:
    """Of each cell of two loads or more the line of least squares; `[R]` each, `cell` says whose they are."""
    _, place, count = np.unique(cell, return_inverse=True, return_counts=True)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, values)

    unit = load.mean()
    y = load / unit
    middle, level = total(y) / count, total(seconds) / count
    off = y - middle[place]
    square = total(off**2)
    several = (count > 1) & (square > 1e-12 * middle**2)
    slope = total(off * (seconds - level[place])) / np.where(several, square, 1)
    start = level - slope * middle
    rest = total((seconds - start[place] - slope[place] * y) ** 2)
    if not several.any():
        return LoadCells(np.zeros(0), np.zeros(0), np.zeros(0, int), np.zeros((2, 2)))
    spare = np.sum(count[several] - 2)
    noise = np.sum(rest[several]) / spare if spare else 0.0
    m, s = middle[several], square[several]
    errors = np.array(
        [[np.mean(m**2 / s + 1 / count[several]), -np.mean(m / s)], [-np.mean(m / s), np.mean(1 / s)]]
    )
    first = np.zeros(count.size, step.dtype)
    first[place] = step
    units = np.array([1, unit])
    return LoadCells(
        start[several], slope[several] / unit, first[several], noise * errors / np.outer(units, units)
    )

r"""Maximum likelihood of families of distributions from measured times, of which some
are cut off.

A cut-off (censored) time is a lower bound: it counts P(T > t) = e^{-Λ(t)}, a whole one
its density. Where the support begins at an unknown time, the density there may be
infinite and the likelihood with it; so the smallest time counts the probability of an
interval of the length of the lowest spacings (Cheng & Iles 1987). The rest is the
textbook's: closed forms where there are some, else Newton's method with Levenberg's
damping. Parameters come in the order of the distribution's fields.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy import special
from jax.typing import ArrayLike

from bcgc_jax import distributions
from bcgc_jax.distributions import Distribution
from bcgc_jax.exact.linear_algebra import dot

FEWEST = 10  # whole times that a fit needs: own choice
_MOST_STEPS = 60  # of a search: it runs away, or has long been at its end


class Sample(NamedTuple):
    """Times in ascending order, `[K]`, and which are lower bounds, `[K]` or None."""

    times: Array | np.ndarray
    censored: Array | np.ndarray | None = None

    def whole(self, values: ArrayLike, otherwise: ArrayLike) -> Array:
        """The values at whole times."""
        if self.censored is None:
            return jnp.asarray(values)
        return jnp.where(self.censored, otherwise, values)

    @property
    def first(self) -> Array:
        """The smallest whole time."""
        return jnp.min(self.whole(self.times, jnp.inf))

    @property
    def num_whole(self) -> Array:
        return jnp.sum(self.whole(jnp.ones_like(self.times), 0))

    @property
    def excess(self) -> Array:
        """The times less the smallest whole one."""
        return jnp.maximum(self.times - self.first, 0)

    @property
    def spacing(self) -> Array:
        """The mean distance of the smallest √K times."""
        num_smallest = int(len(self.times) ** 0.5) + 1
        lowest = self.times
        if self.censored is not None:
            lowest = jnp.sort(self.whole(self.times, jnp.inf))
        reach = jnp.where(
            jnp.isfinite(lowest[num_smallest]), lowest[num_smallest], self.times[-1]
        )
        return jnp.maximum((reach - lowest[0]) / num_smallest, 1e-9 * lowest[0])


def sorted_times(
    times: ArrayLike, censored: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """Measured times in ascending order, `[K]`, and which are lower bounds, `[K]`."""
    t = np.asarray(times, float).ravel()
    if censored is None:
        cut = np.zeros(t.size, bool)
    else:
        cut = np.asarray(censored, bool).ravel()
    if t.shape != cut.shape:
        raise ValueError(
            f"censored must have one entry for each time, got {cut.size} for {t.size}"
        )
    if not (np.isfinite(t).all() and (t > 0).all()):
        raise ValueError("times must be finite and positive")
    # At a tie the whole time comes first: the cut-off one is larger.
    order = np.lexsort((cut, t))
    return t[order], cut[order]


def check_enough(whole: int) -> None:
    """Raise ValueError for fewer `whole` times than a fit needs."""
    if whole < FEWEST:
        raise ValueError(
            f"a fit needs at least {FEWEST} times that are not cut off, got {whole}"
        )


def spread_ties(times: np.ndarray) -> np.ndarray:
    """Spread ties of ascending times, `[K]`, evenly over a tick: there a density is
    infinite.

    Where more than a tenth of the times are tied the clock is coarse, and its tick the
    median distance of different values; else it is the least one.
    """
    values, place, counts = np.unique(times, return_inverse=True, return_counts=True)
    if values.size in (1, times.size):
        return times
    gaps = np.diff(values)
    if values.size < 0.9 * times.size:
        tick = np.median(gaps)
    else:
        tick = gaps.min()
    tick = min(tick, values[0])  # stay positive
    first = np.cumsum(counts) - counts
    share = (np.arange(times.size) - first[place] + 0.5) / counts[place] - 0.5
    return times + tick * share


@dataclasses.dataclass(frozen=True)
class Family:
    """Distributions of one class, with free parameters in the order of its fields;
    static in `jit`.

    Attributes:
      law: the class.
      end: which parameter is the supremum of the times, if one is.
      closed: sample to the parameters of the largest likelihood, where there is a
        closed form.
      moments: mean and variance of log(T - shift) to guesses of the two parameters
        before a last one, the shift, where there is none.
    """

    law: type[Distribution]
    end: int | None = None
    closed: Callable[[Sample], tuple[Array, ...]] | None = None
    moments: Callable[[Array, Array], tuple[Array, Array]] | None = None

    @property
    def names(self) -> list[str]:
        return [f.name for f in dataclasses.fields(self.law)]  # type: ignore[arg-type]

    @functools.partial(jax.jit, static_argnums=0)
    def guesses(self, sample: Sample) -> Array:
        """Return starts, `[G, P]`: the likelihood may have several tops."""
        if self.closed is not None:
            return jnp.array(self.closed(sample))[None]
        assert self.moments is not None
        first = sample.first
        moments = self.moments

        def from_share(share: Array) -> Array:
            excess = jnp.log(
                jnp.maximum(sample.times - first * (1 - share), 1e-9 * first)
            )
            begin = moments(jnp.mean(excess), jnp.maximum(jnp.var(excess), 1e-12))
            return jnp.array([*begin, first * (1 - share)])

        near = jnp.log(sample.spacing / first)
        return jax.vmap(from_share)(
            jax.nn.sigmoid(jnp.array([4.0, (4 + near) / 2, near]))
        )

    @functools.partial(jax.jit, static_argnums=0)
    def estimate(self, sample: Sample, guess: Array) -> tuple[Array, Array]:
        """The parameters of the largest likelihood near `guess`, and its logarithm."""
        if self.closed is not None:
            parameters = jnp.array(self.closed(sample))
            return parameters, log_likelihood(self.law(*parameters), sample)
        first = sample.first
        positive = jnp.array(
            [condition == "> 0" for _, condition in self.law.conditions]
        )

        def natural(point: Array) -> Array:
            """Parameters by their logarithms, the shift by its distance's logit."""
            # a billionth to all of it
            away = first * jax.nn.sigmoid(jnp.clip(point[-1], -21.0, 12.0))
            values = jnp.where(positive, jnp.exp(jnp.where(positive, point, 0)), point)
            return values.at[-1].set(first - away)

        def objective(point: Array) -> Array:
            value = (
                -log_likelihood(self.law(*natural(point)), sample) / sample.times.size
            )
            return jnp.where(jnp.isfinite(value), value, jnp.inf)

        away = jnp.clip(1 - guess[-1] / first, 1e-9, 1 - 1e-6)
        point = jnp.where(positive, jnp.log(jnp.where(positive, guess, 1)), guess)
        start = point.at[-1].set(jnp.log(away) - jnp.log1p(-away))
        best, value = minimise(objective, start)
        return natural(best), -value * sample.times.size

    def shifted(self, parameters: Array, by: Array, sample: Sample) -> Array:
        """`parameters` with their ends, alone, moved by `by`; the sample stays
        possible.

        Extremes of a sample are off by about a spacing, so no end moves by more than
        two.
        """
        moved = parameters + jnp.clip(by, -2 * sample.spacing, 2 * sample.spacing)
        if self.law.begin in self.names:
            start = self.names.index(self.law.begin)
            latest = sample.first * (1 - 1e-9)
            parameters = parameters.at[start].set(jnp.clip(moved[start], 0, latest))
        if self.end is not None:
            earliest = sample.times[-1] * (1 + 1e-9)
            parameters = parameters.at[self.end].set(
                jnp.maximum(moved[self.end], earliest)
            )
        return parameters


def log_likelihood(law: Distribution, sample: Sample) -> Array:
    """Return the log likelihood, the smallest whole time an interval of `spacing`."""
    times = sample.times
    spacing = sample.spacing
    smallest = sample.first
    is_first = sample.whole(times, jnp.inf) <= smallest
    safe = jnp.where(is_first, smallest + spacing, times)
    terms = law.log_density(safe)
    if sample.censored is not None:
        terms = sample.whole(terms, -law.cumulative_hazard(safe))
    below, above = law.cdf(jnp.stack([smallest, smallest + spacing]))
    return jnp.sum(jnp.where(is_first, jnp.log((above - below) / spacing), terms))


class _Point(NamedTuple):
    """A point with its value, its slope and the Hessian there."""

    x: Array
    value: Array
    slope: Array
    hessian: Array


class _Search(NamedTuple):
    """The best point, the next one to try, the damping, the last decrement, steps."""

    best: _Point
    trial: Array
    damping: Array
    decrement: Array
    steps: Array


def minimise(function: Callable[[Array], Array], start: Array) -> tuple[Array, Array]:
    """A local minimum of a smooth function of a few variables, and its value; for
    `jax.vmap`.

    Newton's method with Levenberg's damping. The Hessian comes from differences of
    gradients: the incomplete gamma function has no second derivatives in its shape. The
    function is compiled once, for all that an iteration evaluates.
    """
    size = start.size
    dtype = start.dtype
    step = jnp.asarray(jnp.finfo(dtype).eps, dtype) ** (1 / 3)
    moves = step * jnp.concatenate(
        [jnp.zeros((1, size), dtype), jnp.eye(size), -jnp.eye(size)]
    )

    def goes_on(state: _Search) -> Array:
        return (state.decrement > 1e-13) & (state.steps < _MOST_STEPS)

    def iterate(state: _Search) -> _Search:
        """Evaluate the next point to try, keep the best, and choose another."""
        values, slopes = jax.vmap(jax.value_and_grad(function))(state.trial + moves)
        rows = (slopes[1 : size + 1] - slopes[size + 1 :]) / (2 * step)
        tried = _Point(state.trial, values[0], slopes[0], (rows + rows.T) / 2)
        better = tried.value <= state.best.value
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), tried, state.best)
        damping = jnp.where(
            better, state.damping / 10, jnp.maximum(10 * state.damping, 1e-3)
        )
        # Convex whatever the curvature, and no step longer than 2 in any direction.
        curvature, axes = jnp.linalg.eigh(best.hessian)
        along = dot(axes.T, best.slope)
        size_of = jnp.abs(curvature)
        move = -along / (size_of + damping * jnp.max(size_of) + 1e-300)
        move = jnp.clip(move, -2.0, 2.0)
        # Where no damping helps, rounding is all that is left.
        decrement = jnp.where(damping > 1e8, 0, jnp.abs(dot(along, move)))
        return _Search(
            best, best.x + dot(axes, move), damping, decrement, state.steps + 1
        )

    nowhere = _Point(
        x=start,
        value=jnp.asarray(jnp.inf, dtype),
        slope=jnp.zeros_like(start),
        hessian=jnp.eye(size, dtype=dtype),
    )
    begin = _Search(
        best=nowhere,
        trial=start,
        damping=jnp.asarray(1e-2, dtype),
        decrement=jnp.ones((), dtype),
        steps=jnp.asarray(0),
    )
    end = jax.lax.while_loop(goes_on, iterate, begin)
    return end.best.x, end.best.value


def _weibull_moments(mean: Array, variance: Array) -> tuple[Array, Array]:
    """The log of a Weibull variable has mean log scale - γ/c, variance π²/6c²."""
    inverse = jnp.sqrt(6 * variance) / jnp.pi
    return jnp.exp(mean + np.euler_gamma * inverse), 1 / inverse


def _gamma_moments(mean: Array, variance: Array) -> tuple[Array, Array]:
    """The log of a gamma variable has the mean ψ(k) - log rate and the variance ψ'(k).

    ψ'(k) ≈ 1/k + 1/2k².
    """
    shape = (1 + jnp.sqrt(1 + 2 * variance)) / (2 * variance)
    return shape, jnp.exp(special.digamma(shape) - mean)


FAMILIES = {
    "shifted-exponential": Family(
        distributions.ShiftedExponential,
        closed=lambda s: (s.num_whole / jnp.sum(s.excess), s.first),
    ),
    "exponential": Family(
        distributions.Exponential, closed=lambda s: (s.num_whole / jnp.sum(s.times),)
    ),
    "weibull": Family(distributions.Weibull, moments=_weibull_moments),
    "pareto": Family(
        distributions.Pareto,
        closed=lambda s: (
            s.first,
            s.num_whole / jnp.sum(jnp.log1p(s.excess / s.first)),
        ),
    ),
    "lognormal": Family(
        distributions.Lognormal,
        moments=lambda mean, variance: (mean, jnp.sqrt(variance)),
    ),
    "gamma": Family(distributions.Gamma, moments=_gamma_moments),
    "uniform": Family(
        distributions.Uniform, end=1, closed=lambda s: (s.first, s.times[-1])
    ),
}


@jax.jit
def fit_tail(tail: Sample) -> tuple[Array, Array, Array]:
    r"""Fit P(T > u + z | T > u) = (1 + ξ z/σ)^{-1/ξ}, z ≥ 0: scale σ, index ξ, standard
    error of ξ.

    `tail` holds the z. The generalised Pareto distribution of what lies above a high
    threshold u (Pickands 1975), by maximum likelihood with ξ ≥ 0: a tail that ends is
    taken for an exponential one, to be safe.
    """
    excess = tail.times
    count = jnp.maximum(tail.num_whole, 1)
    mean = jnp.sum(excess) / count

    def objective(point: Array) -> Array:
        scale = jnp.exp(point[0])
        index = jnp.exp(point[1])
        stretched = jnp.log1p(index * excess / scale)
        return (
            jnp.sum(stretched / index + tail.whole(jnp.log(scale) + stretched, 0))
            / count
        )

    def minimum(log_index: Array) -> tuple[Array, Array]:
        return minimise(objective, jnp.array([jnp.log(mean), log_index]))

    points, values = jax.vmap(minimum)(jnp.array([-4.0, -1.0]))
    scale, index = jnp.exp(points[jnp.nanargmin(values)])
    # An index below this cannot be told from none, in any sample.
    index = jnp.where(index < 1e-3, 0, index)
    # The asymptotic variance (1 + ξ)² / K.
    return jnp.where(index == 0, mean, scale), index, (1 + index) / jnp.sqrt(count)

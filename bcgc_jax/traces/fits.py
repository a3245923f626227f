r"""Fits: the distribution that measured times follow, its parameters, and how sure they
are.

Each family is fitted by maximum likelihood, by SciPy where there is no closed form. A
time that is cut off is a lower bound. Where the support begins at an unknown time, the
density there may be infinite and the likelihood with it, so the smallest time counts as
an interval of the length of the lowest spacings (Cheng & Iles 1987).

Samples of the fit are fitted again (a parametric bootstrap). Their spread is the
standard error. Their mean shows the bias, because a shift is estimated too late by
about one spacing. The distance of the data to their fit is compared with the distances
of the samples to theirs, because a distance to a fit is smaller than the tables say.
Where times are cut off, so are those of the samples, by the estimated distribution of
the cuts.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from scipy import optimize, stats

from bcgc_jax import distributions as laws
from bcgc_jax._pytree import check_key, check_whole
from bcgc_jax.distributions import Distribution
from bcgc_jax.traces.samples import Sample, check_enough, sorted_times, spread_ties

# More times than this say no more about which distribution to plan with: a random part
# of them is taken.
MAX_TIMES = 20_000
# A replicate is known to far more digits than its spread.
_PRECISE, _ROUGH = 1e-9, 1e-3


class Fit(NamedTuple):
    """One distribution and how well it fits.

    Attributes:
      name: as on the command line.
      distribution: with the parameters of largest likelihood, its ends corrected for
        their bias.
      standard_errors: of each parameter, by name.
      log_likelihood: at its maximum, before that correction.
      aic: Akaike's criterion, 2 · parameters - 2 · log likelihood; less is better.
      kolmogorov_smirnov: sup |F_K - F|; its `_pvalue`: how often a sample of `law` is
        farther from its fit.
      anderson_darling: K ∫ (F_K - F)² / (F (1 - F)) dF; where times are cut off, up to
        the largest one.
      num_times: K.
    """

    name: str
    distribution: Distribution
    standard_errors: dict[str, float]
    log_likelihood: float
    aic: float
    kolmogorov_smirnov: float
    kolmogorov_smirnov_pvalue: float
    anderson_darling: float
    anderson_darling_pvalue: float
    num_times: int

    @property
    def parameters(self) -> dict[str, float]:
        return {
            name: float(getattr(self.distribution, name))
            for name in self.standard_errors
        }


class Family(NamedTuple):
    """Distributions of one class, and the same ones in SciPy.

    Attributes:
      law: The class.
      peer: SciPy's distribution.
      fields: Maps SciPy's parameters (shapes, loc, scale) to the fields of `law`.
      ends: The places of SciPy's parameters that say where the support begins and ends.
      closed: Maps a sample to SciPy's parameters of the largest likelihood, where there
        is a closed form.
    """

    law: type[Distribution]
    peer: Any
    fields: Callable[..., tuple[float, ...]]
    ends: tuple[int, ...]
    closed: Callable[[Sample], tuple[float, ...]] | None = None

    @property
    def names(self) -> list[str]:
        return [f.name for f in dataclasses.fields(self.law)]  # type: ignore[arg-type]

    def log_likelihood(self, sample: Sample, parameters: Sequence[float]) -> float:
        """The logarithm of the likelihood that is maximised."""
        first, spacing = sample.first, sample.spacing
        below, above = self.peer.cdf([first, first + spacing], *parameters)
        if not below < above:
            return -math.inf
        terms = self.peer.logpdf(sample.whole[1:], *parameters).sum()
        if len(sample.cut):
            terms += self.peer.logsf(sample.cut, *parameters).sum()
        return float(terms) + math.log((above - below) / spacing)

    def search(
        self, sample: Sample, start: Sequence[float], tolerance: float
    ) -> tuple[float, ...]:
        """SciPy's parameters of the largest likelihood near `start`."""
        size = np.maximum(np.abs(start), 1e-9 * sample.first)
        latest = sample.first * (1 - 1e-9)
        lowest = [*[1e-9] * (len(start) - 2), 0.0, 1e-9 * sample.first]
        highest = [*[np.inf] * (len(start) - 2), latest, np.inf]
        best = optimize.minimize(
            lambda point: -self.log_likelihood(sample, point * size),
            np.clip(start, lowest, highest) / size,
            method="Nelder-Mead",
            bounds=np.column_stack([lowest / size, highest / size]),
            options={"xatol": tolerance, "fatol": tolerance},
        )
        return tuple((best.x * size).tolist())

    def estimate(self, sample: Sample) -> tuple[float, ...]:
        """SciPy's parameters of the largest likelihood, which may have several tops.

        Searches begin at fits to the whole times, with a shift near the smallest time,
        at zero, and between them.
        """
        if self.closed is not None:
            return self.closed(sample)
        first = sample.first
        near = sample.spacing / first
        ends = [
            self.search(
                sample,
                self.peer.fit(sample.whole, floc=first * (1 - share)),
                _PRECISE,
            )
            for share in (min(near, 0.5), min(near**0.5, 0.8), 0.98)
        ]
        return max(ends, key=lambda end: self.log_likelihood(sample, end))

    def estimate_again(
        self, sample: Sample, start: Sequence[float]
    ) -> tuple[float, ...]:
        """The same for a sample of the distribution that has the parameters `start`."""
        if self.closed is not None:
            return self.closed(sample)
        return self.search(sample, start, _ROUGH)

    def corrected(
        self, parameters: Sequence[float], bias: np.ndarray, sample: Sample
    ) -> tuple[float, ...]:
        """SciPy's parameters, whose ends are less biased; the sample stays possible.

        An extreme of a sample is off by about a spacing. An end whose bias is larger
        than two is not known from an extreme. It stays, because the other parameters
        would have to move with it.
        """
        ends = np.isin(np.arange(len(parameters)), self.ends)
        ends &= np.abs(bias) < 2 * sample.spacing
        moved = parameters - np.where(ends, bias, 0)
        latest = sample.first * (1 - 1e-9)
        begin = self.ends[0] if self.ends else 0
        moved[begin] = np.clip(moved[begin], 0, latest)
        if self.peer is stats.uniform:
            moved[1] = max(moved[1], sample.times[-1] * (1 + 1e-9) - moved[0])
        return tuple(moved.tolist())


def _mean_time(sample: Sample) -> float:
    """All time for each whole time."""
    return float(np.sum(sample.times) / len(sample.whole))


def _mean_excess(sample: Sample) -> float:
    excess = np.maximum(sample.times - sample.first, 0)
    return float(np.sum(excess) / len(sample.whole))


def _pareto_shape(sample: Sample) -> float:
    logs = np.log(np.maximum(sample.times / sample.first, 1))
    return float(len(sample.whole) / np.sum(logs))


FAMILIES = {
    "shifted-exponential": Family(
        laws.ShiftedExponential,
        stats.expon,
        lambda loc, scale: (1 / scale, loc),
        ends=(0,),
        closed=lambda sample: (sample.first, _mean_excess(sample)),
    ),
    "exponential": Family(
        laws.Exponential,
        stats.expon,
        lambda loc, scale: (1 / scale,),
        ends=(),
        closed=lambda sample: (0.0, _mean_time(sample)),
    ),
    "weibull": Family(
        laws.Weibull, stats.weibull_min, lambda c, loc, scale: (scale, c, loc), (1,)
    ),
    "pareto": Family(
        laws.Pareto,
        stats.pareto,
        lambda b, loc, scale: (scale, b),
        ends=(2,),
        closed=lambda sample: (_pareto_shape(sample), 0.0, sample.first),
    ),
    "lognormal": Family(
        laws.Lognormal,
        stats.lognorm,
        lambda s, loc, scale: (math.log(scale), s, loc),
        ends=(1,),
    ),
    "gamma": Family(
        laws.Gamma, stats.gamma, lambda a, loc, scale: (a, 1 / scale, loc), (1,)
    ),
    "uniform": Family(
        laws.Uniform,
        stats.uniform,
        lambda loc, scale: (loc, loc + scale),
        ends=(0, 1),
        closed=lambda sample: (sample.first, float(np.ptp(sample.times))),
    ),
}


def fit_distributions(
    key: Array,
    times: ArrayLike,
    censored: ArrayLike | None = None,
    *,
    distributions: Sequence[str] | None = None,
    num_replicates: int = 200,
    progress: Callable[[str], None] | None = None,
) -> list[Fit]:
    r"""Fits of each family of distributions to measured `times`, `[K]`, the best first.

    Args:
      key: randomness of the samples that the standard errors and p-values come from.
      times: positive, at least 10; of more than 20,000 a random part is taken.
      censored: bool `[K]`, True where a worker was cut off and the time is only a lower
        bound.
      distributions: names of families as on the command line, such as "weibull"; by
        default all, without "uniform" where times are cut off.
      num_replicates: samples; the smallest p-value is one over one more.
      progress: called with each name before it is fitted.

    Tied times are spread over a tick of the clock. The order is that of Akaike's
    criterion: fits within 2 of the best are as good. Raises ValueError for an unknown
    name, for times that are not positive, too few of them, too few that are whole, or
    two values.

    >>> times = np.random.default_rng(0).gamma(2.5, 0.6, 200) + 1.0
    >>> two = ["gamma", "pareto"]
    >>> fits = fit_distributions(
    ...     jax.random.key(0), times, distributions=two, num_replicates=60
    ... )
    >>> fits[0].name, round(fits[0].parameters["shape"], 1)
    ('gamma', 2.6)
    """
    check_key(key)
    t, cut = sorted_times(times, censored)
    _check_values(t[~cut])
    names = _known_names(distributions, cut)
    check_whole("num_replicates", num_replicates, 2)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    sample = _sample(rng, t, cut)
    fits = []
    for name in names:
        if progress is not None:
            progress(name)
        fits.append(_fit(rng, name, FAMILIES[name], sample, num_replicates))
    return sorted(fits, key=lambda fit: (not math.isfinite(fit.aic), fit.aic))


def _check_values(whole: np.ndarray) -> None:
    """Raise ValueError for too few times not cut off, or too few different ones."""
    check_enough(whole.size)
    values = np.unique(whole)
    if values.size < 3:
        of = " or ".join(f"{value:g}" for value in values)
        instead = "take Deterministic, TwoSpeed or Empirical, there is no fit"
        raise ValueError(f"all times are {of}: {instead}")


def _known_names(distributions: Sequence[str] | None, cut: np.ndarray) -> list[str]:
    possible_names = [name for name in FAMILIES if name != "uniform" or not cut.any()]
    names = possible_names
    if distributions is not None:
        names = list(distributions)
    if unknown := [name for name in names if name not in possible_names]:
        text = f"no distribution {unknown[0]!r} for these times"
        raise ValueError(f"{text}; known: {', '.join(possible_names)}")
    return names


def _sample(rng: np.random.Generator, times: np.ndarray, cut: np.ndarray) -> Sample:
    """What is fitted to: of many times a random part."""
    if times.size > MAX_TIMES:
        chosen = np.sort(rng.choice(times.size, MAX_TIMES, replace=False))
        times = times[chosen]
        cut = cut[chosen]
    return Sample(spread_ties(times), cut)


def _fit(
    rng: np.random.Generator,
    name: str,
    family: Family,
    sample: Sample,
    num_replicates: int,
) -> Fit:
    best = family.estimate(sample)
    replicates = list[tuple[Sample, tuple[float, ...]]]()
    while len(replicates) < num_replicates:
        drawn = _drawn(rng, family, best, sample)
        replicates.append((drawn, family.estimate_again(drawn, best)))
    drawn_fields = [family.fields(*parameters) for _, parameters in replicates]
    errors = np.std(drawn_fields, axis=0, ddof=1)
    bias = np.mean([parameters for _, parameters in replicates], axis=0) - best

    def distance(sample: Sample, parameters: Sequence[float]) -> tuple[float, float]:
        corrected = family.corrected(parameters, bias, sample)
        return distances(family.peer.logsf(sample.times, *corrected), sample)

    ks, ad = distance(sample, best)
    far = [distance(*replicate) for replicate in replicates]
    farther = np.sum(np.array(far) >= [ks, ad], axis=0)
    ks_pvalue, ad_pvalue = (1 + farther) / (1 + len(far))
    law = family.law(*family.fields(*family.corrected(best, bias, sample)))
    likelihood = family.log_likelihood(sample, best)
    return Fit(
        name=name,
        distribution=law,
        standard_errors=dict(zip(family.names, map(float, errors), strict=True)),
        log_likelihood=likelihood,
        aic=2 * len(family.names) - 2 * likelihood,
        kolmogorov_smirnov=ks,
        kolmogorov_smirnov_pvalue=float(ks_pvalue),
        anderson_darling=ad,
        anderson_darling_pvalue=float(ad_pvalue),
        num_times=len(sample.times),
    )


def _drawn(
    rng: np.random.Generator,
    family: Family,
    parameters: Sequence[float],
    sample: Sample,
) -> Sample:
    """As many times of a distribution, cut off as those of the sample are."""
    times = family.peer.rvs(*parameters, size=len(sample.times), random_state=rng)
    cuts = drawn_cuts(rng, sample)
    censored = cuts < times
    seen = np.minimum(cuts, times)
    order = np.argsort(seen)
    return Sample(seen[order], censored[order])


def drawn_cuts(rng: np.random.Generator, sample: Sample) -> np.ndarray:
    """Draw when times are cut off, `[K]`, by the estimate of Kaplan and Meier with the
    parts of cuts and whole times exchanged.
    """
    size = len(sample.times)
    at_risk = size - np.arange(size)
    still_open = np.cumprod(np.where(sample.censored, 1 - 1 / at_risk, 1.0))
    # The first time after which fewer are open than was drawn; none for infinity.
    place = size - np.searchsorted(still_open[::-1], rng.random(size), side="right")
    return np.append(sample.times, np.inf)[place]


def distances(log_survival: np.ndarray, sample: Sample) -> tuple[float, float]:
    """The Kolmogorov–Smirnov and the Anderson–Darling distance, from log P(T > t).

    The second goes up to the largest time.

    ∫ (p - u)² / (u (1-u)) du = p² log u - (1-p)² log(1-u) - u, p the share of times so
    far: for times that are cut off, Kaplan and Meier's.
    """
    size = len(sample.times)
    u = -np.expm1(log_survival)
    leaves = np.where(sample.censored, 0, 1 / (size - np.arange(size)))
    after = 1 - np.cumprod(1 - leaves)
    before = np.append(0.0, after[:-1])
    ks = np.max(np.maximum(np.abs(after - u), np.abs(u - before)))

    def integral(p: Any, u: Any, log_survival: Any) -> Any:
        below = p**2 * np.log(np.where(p > 0, u, 1))
        above = (1 - p) ** 2 * np.where(p < 1, log_survival, 0)
        return below - above - u

    with np.errstate(divide="ignore", invalid="ignore"):
        upper = integral(before, u, log_survival)
        lower = np.append(0.0, integral(after, u, log_survival)[:-1])
        ad = np.sum(upper - lower)
        if not sample.censored.any():
            ad += -1 - integral(1.0, u[-1], log_survival[-1])
    return float(ks), float(size * ad)

r"""Fits: the distribution that measured times follow, its parameters, and how sure they
are.

Each family is fitted by maximum likelihood. Samples of the fit are fitted again (a
parametric bootstrap). Their spread is the standard error; their mean shows the bias (a
shift is estimated too late by about one spacing); and the distance of the data is
compared with their distances to their own fits, for a distance to a fit is smaller than
the tables say. Where times are cut off, so are those of the samples, by the estimated
distribution of the cuts.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import check_key, check_whole
from bcgc_jax.distributions import Distribution
from bcgc_jax.measured.likelihood import (
    FAMILIES,
    Family,
    Sample,
    check_enough,
    sorted_times,
    spread_ties,
)

# More times than this say no more about which distribution to plan with: a random part
# of them is taken.
MAX_TIMES = 20_000


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
      num_replicates: samples, rounded up to whole batches; the smallest p-value is one
        over one more.
      progress: called with each name before it is fitted.

    Tied times are spread over a tick of the clock. Runs in 64 bit. The order is that of
    Akaike's criterion: fits within 2 of the best are as good. Raises ValueError for an
    unknown name, for times that are not positive, too few of them, too few that are
    whole, or two values.

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
    with jax.enable_x64(True):
        shuffle, *keys = jax.random.split(key, len(names) + 1)
        sample = _sample(shuffle, t, cut)
        fits = []
        for name, law_key in zip(names, keys, strict=True):
            if progress is not None:
                progress(name)
            fits.append(_fit(law_key, name, FAMILIES[name], sample, num_replicates))
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


def _sample(key: Array, times: np.ndarray, cut: np.ndarray) -> Sample:
    """Return what is fitted to: of many times a random part."""
    if times.size > MAX_TIMES:
        chosen = np.sort(
            jax.random.choice(key, times.size, (MAX_TIMES,), replace=False)
        )
        times = times[chosen]
        cut = cut[chosen]
    return Sample(spread_ties(times), cut if cut.any() else None)


def _fit(
    key: Array, name: str, family: Family, sample: Sample, num_replicates: int
) -> Fit:
    # All work is done in batches of one size, at most 2^17 times: each function is
    # compiled once.
    largest_batch = max(3, 2**17 // len(sample.times))
    batches = math.ceil(num_replicates / largest_batch)
    batch = max(3, math.ceil(num_replicates / batches))
    data = jax.tree.map(lambda a: np.broadcast_to(a, (batch, *a.shape)), sample)
    best, likelihood = _maximum(family, sample, data)
    keys = jax.random.split(key, batches)
    drawn = [_drawn(family, best[0], *_draw(batch_key, data)) for batch_key in keys]
    refits = [_search(family, samples, best)[0] for samples in drawn]
    replicates = np.concatenate(refits)
    good = np.isfinite(replicates).all(axis=1)  # a search that ran away says nothing
    bias = replicates[good].mean(axis=0) - best[0]
    law, ks, ad = (values[0] for values in _corrected(family, data, best, bias))
    far = [
        _corrected(family, samples, parameters, bias)[1:]
        for samples, parameters in zip(drawn, refits, strict=True)
    ]
    farther = np.concatenate(far, axis=1)[:, good] >= np.array([[ks], [ad]])
    ks_pvalue, ad_pvalue = (1 + farther.sum(axis=1)) / (1 + good.sum())
    errors = np.std(replicates[good], axis=0, ddof=1)
    return Fit(
        name=name,
        distribution=family.law(*map(float, law)),
        standard_errors=dict(zip(family.names, map(float, errors), strict=True)),
        log_likelihood=likelihood,
        aic=2 * len(family.names) - 2 * likelihood,
        kolmogorov_smirnov=float(ks),
        kolmogorov_smirnov_pvalue=float(ks_pvalue),
        anderson_darling=float(ad),
        anderson_darling_pvalue=float(ad_pvalue),
        num_times=len(sample.times),
    )


def _maximum(family: Family, sample: Sample, data: Sample) -> tuple[np.ndarray, float]:
    """Return the best parameters, repeated to `[B, P]`, and their log likelihood."""
    guesses = np.asarray(family.guesses(sample))
    copies = math.ceil(len(data.times) / len(guesses))
    starts = np.tile(guesses, (copies, 1))[: len(data.times)]
    ends, likelihoods = map(np.asarray, _search(family, data, starts))
    best = int(np.nanargmax(likelihoods))
    return np.broadcast_to(ends[best], ends.shape), float(likelihoods[best])


def _corrected(
    family: Family, samples: Sample, parameters: ArrayLike, bias: np.ndarray
) -> list[np.ndarray]:
    """Return parameters less their bias, and the two distances to that distribution."""
    less_biased, hazards = _hazards(family, samples, parameters, bias)
    return [
        np.asarray(values) for values in (less_biased, *_distances(hazards, samples))
    ]


@functools.partial(jax.jit, static_argnums=0)
def _search(family: Family, samples: Sample, guesses: Array) -> tuple[Array, Array]:
    """Parameters `[B, P]` and log likelihood of each of the samples, `[B, K]`."""
    return jax.vmap(family.estimate)(samples, guesses)


@jax.jit
def _draw(key: Array, data: Sample) -> tuple[Array, Array | None]:
    """Draw hazards of as many samples, ascending, and their cuts, if any.

    It is compiled once for all families.
    """

    def draw(key: Array, sample: Sample) -> tuple[Array, Array | None]:
        times_key, cut_key = jax.random.split(key)
        size = len(sample.times)
        rank = jnp.arange(size)
        # Sorted as they come (Rényi).
        hazard = jnp.cumsum(jax.random.exponential(times_key, (size,)) / (size - rank))
        if sample.censored is None:
            return hazard, None
        # Kaplan and Meier's estimate of when times are cut, with the parts of cuts and
        # whole times exchanged.
        open_ = jnp.cumprod(jnp.where(sample.censored, 1 - 1 / (size - rank), 1))
        drawn = jax.random.uniform(cut_key, (size,))
        place = size - jnp.searchsorted(open_[::-1], drawn, side="right", method="sort")
        return hazard, jnp.where(
            place < size, sample.times[jnp.minimum(place, size - 1)], jnp.inf
        )

    return jax.vmap(draw)(jax.random.split(key, len(data.times)), data)


@functools.partial(jax.jit, static_argnums=0)
def _drawn(
    family: Family, parameters: Array, hazards: Array, cuts: Array | None
) -> Sample:
    """The samples that have these hazards, cut off where the cuts come first."""
    times = (
        family.law(*parameters).with_fast_inverse().inverse_cumulative_hazard(hazards)
    )
    if cuts is None:
        return Sample(times)
    seen = jnp.minimum(times, cuts)
    order = jnp.argsort(seen)
    censored = jnp.take_along_axis(cuts < times, order, axis=1)
    return Sample(jnp.take_along_axis(seen, order, axis=1), censored)


@functools.partial(jax.jit, static_argnums=0)
def _hazards(
    family: Family, samples: Sample, parameters: Array, bias: Array
) -> tuple[Array, Array]:
    """Return each sample's parameters less their bias, and its times' hazards."""
    corrected = jax.vmap(family.shifted, in_axes=(0, None, 0))(
        parameters, -bias, samples
    )

    def hazards(parameters: Array, sample: Sample) -> Array:
        return family.law(*parameters).cumulative_hazard(sample.times)

    return corrected, jax.vmap(hazards)(corrected, samples)


def distances(hazard: Array, sample: Sample) -> tuple[Array, Array]:
    """Return the Kolmogorov–Smirnov and the Anderson–Darling distance, from hazards of
    times.

    The second goes up to the largest time.

    ∫ (p - u)² / (u (1-u)) du = p² log u - (1-p)² log(1-u) - u, p the share of times so
    far: for times that are cut off, Kaplan and Meier's.
    """
    size = len(sample.times)
    u = -jnp.expm1(-hazard)
    leaves = sample.whole(1 / (size - jnp.arange(size)), 0)
    after = 1 - jnp.cumprod(1 - leaves)
    before = jnp.concatenate([jnp.zeros(1), after[:-1]])
    ks = jnp.max(jnp.maximum(jnp.abs(after - u), jnp.abs(u - before)))

    def integral(p: Array, u: Array, hazard: Array) -> Array:
        below = p**2 * jnp.log(jnp.where(p > 0, u, 1))
        above = (1 - p) ** 2 * jnp.where(p < 1, hazard, 0)
        return below + above - u

    upper = integral(before, u, hazard)
    lower = jnp.concatenate([jnp.zeros(1), integral(after, u, hazard)[:-1]])
    ad = jnp.sum(upper - lower)
    if sample.censored is None:
        ad += -1 - integral(jnp.ones(()), u[-1], hazard[-1])
    return ks, size * ad


_distances = jax.jit(jax.vmap(distances))

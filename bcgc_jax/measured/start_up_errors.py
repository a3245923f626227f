r"""Standard errors of the laws of a start-up S and a cycle time T, and what their estimates are off by.

From samples of the fitted laws, as in `fits`: laws begin at an unknown time, where the observed information
says too little (at 600 times, intervals from it held E S in 79 to 90 % for 95 %).
"""

from typing import NamedTuple

import numpy as np

from bcgc_jax import laws
from bcgc_jax.laws import Law
from bcgc_jax.measured.start_up_likelihood import CHUNK, Candidate, Model, Times

# Times of a sample at most.
_SAMPLE = 2 * CHUNK


class Estimates(NamedTuple):
    """Laws of a candidate, standard errors of their parameters; both means, `[2]`, and their covariance."""

    start_up: Law | None
    cycle_time: Law
    start_up_errors: dict[str, float]
    cycle_time_errors: dict[str, float]
    means: np.ndarray
    covariance: np.ndarray


def estimates(rng: np.random.Generator, candidate: Candidate, times: Times, num_replicates: int) -> Estimates:
    """Laws of a pair of families at its top, corrected for their bias, and standard errors.

    Both from as many samples of the fitted law, with a search in each: an infimum is estimated too late, and
    what the two laws share between them too. A sample has at most so many times, and its errors are scaled.
    Means stay as they are but for a constant's, which is an infimum: their bias was a tenth of their error,
    and what was taken off for it made that error up to 8 % larger.
    """
    model = Model(candidate.start_up, candidate.cycle_time, times)
    best = model.numbers(candidate.point)
    size = min(times.seconds.size, _SAMPLE)
    replicates = []
    for _ in range(num_replicates):
        sample = Model(*model.names, _sample(rng, model.laws_of(best), times, size))
        found = sample.numbers(sample.climb(candidate.point, 1e-3).point)
        if np.isfinite(found).all():
            replicates.append(found)
    drawn, ratio = np.array(replicates), size / times.seconds.size
    corrected = _corrected(best, drawn, ratio)
    means = np.array([[_mean(law) for law in model.laws_of(numbers)] for numbers in drawn])
    errors = np.std(drawn, axis=0, ddof=1) * np.sqrt(ratio)
    start_up, cycle = model.laws_of(_with_means(model, corrected, best))
    first, second = (
        {name: float(errors[i, place]) for name, place in _places(law).items() if kind.used[place]}
        for i, (law, kind) in enumerate(zip((start_up, cycle), model.kinds, strict=True))
    )
    values = np.array([_mean(start_up), _mean(cycle)])
    return Estimates(start_up, cycle, first, second, values, np.cov(means, rowvar=False) * ratio)


def _sample(rng: np.random.Generator, pair: tuple[Law | None, Law], times: Times, size: int) -> Times:
    """Times of the fitted law at loads as they are, and cut off where they are."""
    some = times.take(rng.permutation(times.seconds.size)[:size])
    hazards = rng.exponential(size=(2, size))
    start, cycle = (
        0.0 if law is None else np.asarray(law.with_fast_inverse().inverse_cumulative_hazard(a))
        for law, a in zip(pair, hazards, strict=True)
    )
    return some._replace(seconds=np.where(some.censored, some.seconds, start + cycle * some.load))


def _corrected(best: np.ndarray, drawn: np.ndarray, ratio: float) -> np.ndarray:
    """Parameters by ratios and infima by differences moved as far as the median of the samples is off."""
    middle = np.median(drawn, axis=0)
    found = best.copy()
    positive = (best[:, :2] > 0) & (middle[:, :2] > 0)
    quotient = np.where(positive, best[:, :2] / np.where(positive, middle[:, :2], 1), 1)
    shifted = best[:, :2] + ratio * (best[:, :2] - middle[:, :2])
    found[:, :2] = np.where(positive, best[:, :2] * np.clip(quotient, 0.5, 2) ** ratio, shifted)
    # Never later than the times allow.
    found[:, 2] = np.clip(best[:, 2] + ratio * (best[:, 2] - middle[:, 2]), 0, best[:, 2])
    return found


def _with_means(model: Model, numbers: np.ndarray, best: np.ndarray) -> np.ndarray:
    """The same with the means of the `best` numbers: what exceeds the infima is stretched."""
    found = numbers.copy()
    for row, kind, law, wanted in zip(
        found, model.kinds, model.laws_of(numbers), model.laws_of(best), strict=True
    ):
        mean = _mean(wanted)
        longer = (mean - row[2]) / max(_mean(law) - row[2], 1e-300)
        if not (0.1 < longer < 10):  # also where a mean is infinite
            continue
        if kind.law in (laws.Exponential, laws.ShiftedExponential):
            row[0] /= longer
        elif kind.law is laws.Gamma:
            row[1] /= longer
        elif kind.law is laws.Weibull:
            row[0] *= longer
        elif kind.law is laws.Lognormal:
            row[0] += np.log(longer)
        elif kind.law is laws.Pareto:
            row[1] = mean / (mean - row[2])
    return found


def _mean(law: Law | None) -> float:
    return 0.0 if law is None else float(law.mean())


def _places(law: Law | None) -> dict[str, int]:
    """Where each parameter is among two parameters and the infimum."""
    if law is None:
        return {}
    return {
        laws.Deterministic: {"value": 2},
        laws.Exponential: {"rate": 0},
        laws.ShiftedExponential: {"rate": 0, "shift": 2},
        laws.Weibull: {"scale": 0, "concentration": 1, "shift": 2},
        laws.Gamma: {"shape": 0, "rate": 1, "shift": 2},
        laws.Lognormal: {"location": 0, "scale": 1, "shift": 2},
        laws.Pareto: {"scale": 2, "shape": 1},
    }[type(law)]

"""Which distribution stands for measured times: each time an atom where that is quick, else a smooth one."""

import contextlib

import numpy as np
from jax.typing import ArrayLike

from bcgc_jax.distributions import Distribution, Empirical
from bcgc_jax.measured.smooth import smooth_empirical

KINDS = ("auto", "atoms", "smooth", "pareto-tail")
# Operations of an optimum up to which atoms are taken: some ten seconds. Of one exact expectation, at most.
_QUICK, _MOST = 1e7, 5e9
_MANY = 20


def law_of(
    times: ArrayLike,
    num_workers: int,
    censored: ArrayLike | None = None,
    *,
    kind: str = "auto",
) -> Distribution:
    """The distribution of all measured `times` together, for a plan of N workers that are taken as alike.

    Args:
      times: K of them in any shape, positive.
      num_workers: N. An optimum under atoms takes K N (N² + K / 6) operations, else no more for a larger K.
      censored: in the shape of `times`, True where one is a lower bound, of which there is no atom.
      kind: "atoms", "smooth", or "pareto-tail" for a smooth distribution with a fitted tail. "auto" takes
        atoms where an optimum is quick or nothing smooth is near the times, else "smooth".

    Raises ValueError where there is no such distribution, or where atoms are too many for so many workers.

    >>> times = np.random.default_rng(0).gamma(3.0, 2.0, 400)
    >>> type(law_of(times, 4)).__name__, type(law_of(times, 100)).__name__
    ('Empirical', 'HazardSpline')
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    many = num_workers > _MANY
    size, cut = np.size(times), 0 if censored is None else int(np.sum(np.asarray(censored)))
    if kind in ("smooth", "pareto-tail") or (kind == "auto" and cut):
        return smooth_empirical(times, censored, pareto_tail=kind == "pareto-tail", large_n=many)
    if kind == "auto" and size * num_workers * (num_workers**2 + size / 6) > _QUICK:
        with contextlib.suppress(ValueError):
            return smooth_empirical(times, large_n=many)
    if cut:
        raise ValueError(
            f"{cut} of {size} times are censored, and an atom needs a whole time: take a smooth law"
        )
    if size * num_workers**3 > _MOST:
        raise ValueError(
            f"{size} measured times are too many atoms for {num_workers} workers: take a smooth law"
        )
    return Empirical(np.ravel(np.asarray(times)))


def smooth_or_atoms(times: ArrayLike, num_workers: int, censored: ArrayLike | None = None) -> Distribution:
    """The smooth one, however few the workers and the times; atoms where nothing smooth is near these."""
    try:
        return smooth_empirical(times, censored, large_n=num_workers > _MANY)
    except ValueError:
        if censored is not None and np.any(np.asarray(censored)):
            raise
        return Empirical(np.ravel(np.asarray(times)))

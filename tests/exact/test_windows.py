"""Crossing probabilities of many workers against the renewal systems, which subtract where these add."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcgc_jax.exact.crossing import Crossing, shares
from bcgc_jax.exact.windows import windowed_paths

WORKERS = 401
LEVEL = np.arange(WORKERS)


def _hazards(kind: str) -> np.ndarray:
    """Λ at eight times for a plan near the best one of a shifted exponential, `[8, N]`."""
    left = np.cumsum((1 / np.arange(1, WORKERS + 1))[::-1])[::-1]
    spread = np.sqrt(np.cumsum((1 / np.arange(1, WORKERS + 1) ** 2)[::-1])[::-1])
    load = 1 / (0.05 + left + 1.5 * spread)
    times = np.linspace(0.96, 1.1, 8)
    if kind == "late":
        times = np.array([1.3, 1.6, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0])
    if kind in ("gaps", "slack"):  # few levels in use, and some that hardly ever fail between them
        kept = np.unique(np.r_[0, 1, 2, 5, 9, np.geomspace(10, WORKERS - 1, 12).astype(int)])
        load = load[kept][np.searchsorted(kept, LEVEL, side="right") - 1]
    if kind == "slack":
        load = np.where((LEVEL >= 130) & (LEVEL < 200), 0.8, 1) * np.where(LEVEL >= 20, 0.97, 1) * load
        load = np.minimum.accumulate(load[::-1])[::-1]
    if kind == "single":
        load = np.where(LEVEL >= 200, load[200], 0)
    with np.errstate(divide="ignore"):
        return np.maximum(times[:, None] / load - 0.05, 0)


@jax.jit
def _by_renewals(hazard: jax.Array, workers: int) -> tuple[jax.Array, jax.Array]:
    crossing = Crossing(shares(hazard), workers)
    first = crossing.first_failures()
    paths = jnp.maximum(first * crossing.successes(), 0) * crossing.above / crossing.total
    return crossing.probability(first), crossing.unit * jnp.moveaxis(paths[::-1], 0, -1)


found_by_windows = jax.jit(windowed_paths)


# The last of fewer workers than levels.
@pytest.mark.parametrize(
    ("kind", "workers"),
    [*((kind, WORKERS) for kind in ("all", "gaps", "slack", "single", "late")), ("all", 301)],
)
def test_windows_give_what_the_renewals_give(precision, kind, workers):
    hazard = _hazards(kind)[:, np.minimum(LEVEL, workers - 1)]
    probability, slope = (np.asarray(a) for a in _by_renewals(hazard.astype(np.float64), workers))
    found = found_by_windows(hazard.astype(precision), workers)
    mine = workers * np.asarray(found.arrive * found.leave, float) * np.exp(-hazard)
    # Worst measured 1.2e-11 relative, 1e-10 of the largest slope, and in float32 1e-4 and 2e-4.
    rtol = {"float32": 1e-3, "float64": 5e-9}[precision.name]
    tiny = 1e-30 if precision.name == "float32" else 1e-75
    np.testing.assert_allclose(found.probability, probability, rtol=rtol, atol=tiny)
    used = slice(workers)
    np.testing.assert_allclose(mine[:, used], slope[:, used], rtol=0, atol=rtol * slope.max())


def test_a_level_that_nobody_can_reach_fails_surely(x64):
    hazard = _hazards("all")
    hazard[:, -1] = 0
    found = found_by_windows(hazard, WORKERS)
    np.testing.assert_array_equal(found.probability, 1)
    np.testing.assert_array_equal(found.arrive, 0)

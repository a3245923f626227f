"""Independent answers for the tests of runtimes and solvers: plain Python, NumPy and
SciPy.

Nothing here calls the package; what is known of a law comes from the table of `laws`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import integrate, optimize, special

from tests.oracles import extremes
from tests.oracles.laws import CASES, Case


def load_of(partition: Sequence[float] | np.ndarray) -> np.ndarray:
    """y_n = Σ_{i≤n} (i+1) x_i, one addition at a time."""
    total = 0.0
    loads = []
    for i, x in enumerate(partition):
        total += (i + 1) * float(x)
        loads.append(total)
    return np.array(loads)


def delivered_runtime(
    x: Any,
    starts: Any,
    times: Any,
    samples: float,
    cycles: float,
    *,
    setup_cycles: float = 0.0,
    chain_cycles: float = 0.0,
    send_time: float = 0.0,
    overlap: bool = False,
) -> float:
    """When the last block is there: workers do one block after the other and send each.

    Eq. (5), where they start at once and send in no time.
    """
    workers = len(times)
    arrivals: list[list[float]] = [[] for _ in x]
    for start, time in zip(starts, times, strict=True):
        cycle = time * samples / workers
        done = 0.0
        before = 0.0
        work, link = start, start  # when the processor is through, and the link
        for n, size in enumerate(x):
            if size > 0:
                before += size
                done += (n + 1) * size * cycles
                # all subsets of level n, up to here
                setup = (n + 1) * (setup_cycles + chain_cycles * before)
                work = start + cycle * (done + setup)
                # Without overlap the processor waits while the link sends, all that was
                # sent so far.
                link = (
                    max(work, link) + send_time * size
                    if overlap
                    else work + send_time * before
                )
                arrivals[n].append(link)
    return max(sorted(a)[workers - n - 1] for n, a in enumerate(arrivals) if a)


def coordinate_runtime(
    s: Sequence[int], times: Sequence[float], samples: float, cycles: float
) -> float:
    """Eq. (2)."""
    ordered = sorted(float(t) for t in times)
    workers = len(times)
    finish = [
        ordered[workers - n - 1] * sum(i + 1 for i in s[: place + 1])
        for place, n in enumerate(s)
    ]
    return samples * cycles / workers * max(finish)


def slowest_first(
    case: Case, rng: np.random.Generator, draws: int, workers: int
) -> np.ndarray:
    """Sorted draws by inversion, `[draws, workers]`, column n holds T_(N-n)."""
    return -np.sort(-case.frozen.ppf(rng.random((draws, workers))), axis=1)


def exceedance(case: Case, loads: np.ndarray, t: np.ndarray) -> np.ndarray:
    """P(max_n load_n T_(N-n) > t), row by row: `loads` `[Q, N]` or `[N]`, `t` `[Q]`."""
    t = np.asarray(t, float)
    loads = np.broadcast_to(loads, (t.size, np.shape(loads)[-1]))
    used = loads > 0
    threshold = np.where(used, t[:, None] / np.where(used, loads, 1), np.inf)
    below = np.where(used, case.frozen.cdf(threshold), 1.0)
    above = np.where(used, case.frozen.sf(threshold), 0.0)
    return extremes.crossing(
        loads.shape[1], np.arange(loads.shape[1]), below.T, above.T
    )


def most_in_time(case: Case, workers: int, t: float) -> float:
    """Most P(max_n y_n T_(N-n) ≤ t) of partitions of 1, by differential evolution."""

    def late(weights: np.ndarray) -> np.ndarray:
        # A small weight is one of 0: of heavy tails that is where optima are.
        shares = np.where(weights < 1e-3, 0, weights).T + 1e-300
        shares = shares / shares.sum(axis=1, keepdims=True)
        loads = np.cumsum(shares * np.arange(1, workers + 1), axis=1)
        return exceedance(case, loads, np.full(len(loads), t))

    options: dict[str, Any] = {
        "vectorized": True,
        "updating": "deferred",
        "seed": 0,
        "tol": 1e-10,
    }
    best = optimize.differential_evolution(
        late, [(0, 1)] * workers, popsize=12, **options
    )
    return float(1 - best.fun)


def expected_max(case: Case, load: np.ndarray) -> float:
    """E max_n load_n T_(N-n): Gauss–Legendre panels in log t; exact sums for atoms."""
    return float(expected_maxima(case, np.asarray(load, float)[None])[0])


def expected_maxima(case: Case, loads: np.ndarray) -> np.ndarray:
    """`expected_max` of each row of `loads`, in one sweep."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    values = np.zeros(len(loads))
    owner = []
    times = []
    mass = []
    for row, load in enumerate(loads):
        start = load[-1] * case.infimum
        values[row] = start
        used = load[load > 0]
        breaks = np.unique(np.outer(used, case.kinks).ravel())
        breaks = breaks[breaks > start]
        if case.atoms:
            edges = np.unique(np.concatenate([breaks, used * case.infimum]))
            edges = edges[edges >= start]
            t = (edges[1:] + edges[:-1]) / 2
            w = np.diff(edges)
        else:
            # 40 panels around the bulk, and ever longer ones towards 0 and infinity, in
            # log(t - start).
            early, late = case.frozen.ppf(np.array([1e-3, 1 - 1e-3 / load.size]))
            high = used.max() * late - start
            low = math.log(
                np.clip(used.min() * early - start, 1e-3 * high, 0.01 * high)
            )
            high = math.log(high)
            ends = low - np.geomspace(400, 1, 14), high + 1 + np.geomspace(0.5, 200, 18)
            v = np.concatenate([ends[0], np.linspace(low, high + 1, 41), ends[1]])
            if breaks.size:
                v = np.union1d(v, np.log(breaks - start))
                v = v[v <= math.log(breaks[-1] - start)]
            half = np.diff(v)[:, None] / 2
            points = (v[:-1, None] + half * (1 + nodes)).ravel()
            t = start + np.exp(points)
            w = np.exp(points) * (half * weights).ravel()
        owner.append(np.full(t.size, row))
        times.append(t)
        mass.append(w)
    rows = np.concatenate(owner)
    t = np.concatenate(times)
    w = np.concatenate(mass)
    tail = exceedance(case, loads[rows], t)
    term = np.where(tail > 0, tail * w, 0.0)
    return values + np.bincount(rows, term, len(loads))


def expected_order_statistic(
    case: Case, workers: int, rank: int, function: Callable[[Any], Any] = lambda t: t
) -> float:
    """E g(T_(rank)), rank 1 the fastest: SciPy's adaptive quadrature over the rank's
    Beta density.

    In w = logit u, so that neither end is singular.
    """
    log_beta = special.betaln(rank, workers - rank + 1)

    def integrand(w):
        log_u = -np.logaddexp(0, -w)
        log_rest = -np.logaddexp(0, w)
        density = math.exp(rank * log_u + (workers - rank + 1) * log_rest - log_beta)
        t = (
            case.frozen.ppf(math.exp(log_u))
            if w < 2
            else case.frozen.isf(math.exp(log_rest))
        )
        return density * function(float(t)) if density else 0.0

    points = [-200.0, -60, -25, -10, -5, -2, 0, 2, 5, 10, 25, 60, 200]
    return integrate.quad(
        integrand, -700, 700, points=points, epsabs=0, epsrel=1e-12, limit=3000
    )[0]


@functools.cache
def optimal_share(name: str, workers: int) -> tuple[np.ndarray, float]:
    """The best partition of 1 and its E max_n y_n T_(N-n), by SciPy's SLSQP."""
    case = CASES[name]
    rank = np.arange(1, workers + 1)
    start = np.full(workers, 1 / workers)
    unit = expected_max(case, load_of(start))

    def value_and_slope(share):
        rows = np.vstack([share, share + 1e-6 * np.eye(workers)])
        values = expected_maxima(case, np.cumsum(rows * rank, axis=1)) / unit
        return values[0], (values[1:] - values[0]) / 1e-6

    result = optimize.minimize(
        value_and_slope,
        start,
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * workers,
        constraints={
            "type": "eq",
            "fun": lambda x: x.sum() - 1,
            "jac": lambda x: np.ones(workers),
        },
        options={"maxiter": 200, "ftol": 1e-12},
    )
    share = np.maximum(result.x, 0) / np.maximum(result.x, 0).sum()
    return share, expected_max(case, load_of(share))

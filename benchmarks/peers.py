"""Implement the package's peers in NumPy and SciPy, as their users would write them.

Cycle times are shifted exponential with rate 1e-3 and shift 50. Runtimes have the unit
M b / N of the paper.
"""

import importlib.util
import math

import numpy as np

from bcgc_jax._extras import to_install


def require_scipy() -> None:
    """Raise ImportError, saying what to install, where SciPy is missing."""
    if importlib.util.find_spec("scipy") is None:
        raise ImportError(
            f"a peer of this measure needs SciPy: {to_install('benchmarks')}"
        )


def sorted_times(
    rng: np.random.Generator, num_draws: int, num_workers: int, dtype: type = np.float64
) -> np.ndarray:
    """Cycle times, slowest first, `[num_draws, num_workers]`."""
    times = 50 + 1e3 * rng.standard_exponential((num_draws, num_workers), dtype=dtype)
    times.sort(axis=1)
    return times[:, ::-1]


def mean_runtime(
    rng: np.random.Generator, load: np.ndarray, num_draws: int, dtype: type
) -> float:
    """Monte Carlo: draw, sort, multiply, max, mean."""
    return float(
        (sorted_times(rng, num_draws, load.size, dtype) * load).max(axis=1).mean()
    )


def estimate_runtime(
    rng: np.random.Generator, load: np.ndarray, num_draws: int
) -> tuple[float, float]:
    """Do the same in float64, with the mean's standard error."""
    runtime = (sorted_times(rng, num_draws, load.size) * load).max(axis=1)
    return float(runtime.mean()), float(runtime.std() / math.sqrt(num_draws - 1))


def completion_probability(load: np.ndarray, deadlines: np.ndarray) -> np.ndarray:
    """P(max_n load_n T_(N-n) ≤ deadline) of each deadline, by the FFT recursion."""
    thresholds = deadlines[:, None] / load[::-1]
    return boundary_probability(-np.expm1(-np.maximum(thresholds - 50, 0) / 1e3))


def boundary_probability(boundary: np.ndarray) -> np.ndarray:
    """Return P(at least k of N uniforms are ≤ boundary[:, k-1], every k), by an FFT
    recursion.

    Arrivals are a Poisson process of rate N, conditioned on N in all (Moscovich and
    Nadler 2017): from one boundary to the next the counts are convolved with Poisson
    weights, then those below k are dropped. O(N² log N) for each row of `boundary`,
    `[..., N]`, ascending.
    """
    require_scipy()
    from scipy import fft, special

    size = boundary.shape[-1]
    count = np.arange(size + 1.0)
    log_factorial = special.gammaln(count + 1)
    means = size * np.diff(boundary, axis=-1, prepend=0)[..., None]
    alive = np.zeros((*boundary.shape[:-1], size + 1))
    alive[..., 0] = 1
    for k in range(1, size + 1):
        width = size + 2 - k  # counts k-1…N
        step = special.xlogy(count[:width], means[..., k - 1, :]) - means[..., k - 1, :]
        step = np.exp(step - log_factorial[:width])
        length = fft.next_fast_len(2 * width - 1, real=True)
        moved = fft.irfft(fft.rfft(alive, length) * fft.rfft(step, length), length)
        alive = moved[..., 1:width]
    log_all = size * math.log(size) - size - log_factorial[-1]
    return np.clip(
        alive[..., 0] * np.exp(-size * (1 - boundary[..., -1]) - log_all), 0, 1
    )


def cyclic_runtime(num_workers: int, depth: int, num_nodes: int = 96) -> float:
    """E of when workers on a circle have each of N subsets done by somebody, each
    `depth` at most.

    P(τ ≤ t) = tr(A^N) with A[s, s'] = Σ_r P(r subsets done by t) 1{max(s, r) - 1 = s',
    max(s, r) ≥ 1}, and Gauss-Legendre nodes u of t = 50 + c u / (1 - u), c the mean of
    a cycle time.
    """
    u, weight = np.polynomial.legendre.leggauss(num_nodes)
    u = (1 + u) / 2
    weight = weight / 2
    t = 50 + 1050 * u / (1 - u)
    # P(r ≥ 1…D).
    by = -np.expm1(-np.maximum(t[:, None] / np.arange(1, depth + 1) - 50, 0) / 1e3)
    done = -np.diff(by, prepend=1, append=0)
    step = np.zeros((num_nodes, depth, depth))
    for cover in range(depth):
        for r in range(depth + 1):
            if max(cover, r) > 0:
                step[:, cover, max(cover, r) - 1] += done[:, r]
    late = 1 - np.trace(np.linalg.matrix_power(step, num_workers), axis1=1, axis2=2)
    return 50 + float(np.sum(weight * 1050 / (1 - u) ** 2 * late))


def sample_average_partition(times: np.ndarray, num_coordinates: float) -> np.ndarray:
    """Return the best partition for draws `[S, N]`, slowest first: a linear programme,
    by HiGHS.

    minimise (1/S) Σ_s θ_s subject to θ_s ≥ T_s,(N-n) y_n, y_n = y_(n-1) + (n+1) x_n, Σ
    x = L, x ≥ 0. With y as variables a constraint has two entries instead of n + 2:
    HiGHS then takes half the time.
    """
    require_scipy()
    from scipy import sparse
    from scipy.optimize import linprog

    num_draws, num_workers = times.shape
    rows = num_draws * num_workers
    level = np.tile(np.arange(num_workers), num_draws)
    unit = times / times.mean()  # x in units of L, y and θ of order 1
    finish = sparse.csr_array(
        (unit.ravel(), (np.arange(rows), level)), shape=(rows, num_workers)
    )
    end = sparse.kron(sparse.eye_array(num_draws), np.ones((num_workers, 1)))
    upper = sparse.hstack(
        [sparse.csr_array((rows, num_workers)), finish, -end], format="csr"
    )
    work = sparse.diags_array(np.arange(1.0, num_workers + 1))
    ahead = sparse.eye_array(num_workers) - sparse.eye_array(num_workers, k=-1)
    zeros = sparse.csr_array((num_workers, num_draws))
    total = np.concatenate([np.ones(num_workers), np.zeros(num_workers + num_draws)])
    equal = sparse.vstack(
        [sparse.hstack([-work, ahead, zeros]), sparse.csr_array(total[None])],
        format="csr",
    )
    optimum = linprog(
        np.concatenate([np.zeros(2 * num_workers), np.full(num_draws, 1 / num_draws)]),
        A_ub=upper,
        b_ub=np.zeros(rows),
        A_eq=equal,
        b_eq=np.concatenate([np.zeros(num_workers), [1.0]]),
        method="highs",
    )
    if optimum.status != 0:
        raise RuntimeError(f"HiGHS found no optimum: {optimum.message}")
    return num_coordinates * optimum.x[:num_workers]


def paper_subgradient(
    rng: np.random.Generator,
    num_workers: int,
    num_coordinates: float,
    num_iterations: int,
    num_draws: int,
) -> np.ndarray:
    """Plan as section V-A of the paper: projected subgradients, smaller steps."""
    level = np.arange(1, num_workers + 1)
    x = np.full(num_workers, num_coordinates / num_workers)
    for i in range(num_iterations):
        times = sorted_times(rng, num_draws, num_workers)
        load = np.cumsum(level * x)
        worst = (times * load).argmax(axis=1)
        hit = (
            np.bincount(worst, times[np.arange(num_draws), worst], num_workers)
            / num_draws
        )
        slope = level * np.cumsum(hit[::-1])[::-1]
        step = num_coordinates / (10 * np.linalg.norm(slope) * np.sqrt(i + 1))
        x = project(x - step * slope, num_coordinates)
    return x


def project(values: np.ndarray, total: float) -> np.ndarray:
    """Euclidean projection on {x ≥ 0, Σ x = total}."""
    ordered = np.sort(values)[::-1]
    excess = np.cumsum(ordered) - total
    count = np.flatnonzero(ordered > excess / np.arange(1, values.size + 1))[-1]
    return np.maximum(values - excess[count] / (count + 1), 0)

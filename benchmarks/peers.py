"""What the package is measured against, in NumPy, as its users would write it."""

import numpy as np


def mean_runtime(rng: np.random.Generator, load: np.ndarray, num_draws: int, dtype: type) -> float:
    """Draw, sort, multiply, max, mean: shifted exponential of rate 1e-3 and shift 50, unit scale."""
    times = 50 + 1e3 * rng.standard_exponential((num_draws, load.size), dtype=dtype)
    times.sort(axis=1)
    return float((times[:, ::-1] * load).max(axis=1).mean())


def paper_subgradient(
    rng: np.random.Generator, num_workers: int, num_coordinates: float, num_iterations: int, num_draws: int
) -> np.ndarray:
    """Section V-A of the paper: subgradients over fresh draws and a projection, diminishing steps."""
    level = np.arange(1, num_workers + 1)
    x = np.full(num_workers, num_coordinates / num_workers)
    for i in range(num_iterations):
        times = 50 + 1e3 * rng.standard_exponential((num_draws, num_workers))
        times.sort(axis=1)
        times = times[:, ::-1]
        load = np.cumsum(level * x)
        worst = (times * load).argmax(axis=1)
        hit = np.bincount(worst, times[np.arange(num_draws), worst], num_workers) / num_draws
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

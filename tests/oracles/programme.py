"""The least mean of the last finish time, linear in the shares, by HiGHS."""

import numpy as np
from scipy import optimize, stats


def level_times(times: np.ndarray) -> np.ndarray:
    """When levels of unit shares are there, `[S, N, N]`, for times `[S, N]`."""
    workers = times.shape[1]
    return -np.sort(-times, axis=1)[:, :, None] * (
        np.tri(workers) * np.arange(1, workers + 1)
    )


def best_shares(finish, mass=None, later=0.0) -> tuple[float, np.ndarray]:
    """min Σ_s mass_s max_k (finish_skn x_n + later_sk) over the unit simplex, and x.

    `mass` is 1/S each, unless given.
    """
    steps, lines, size = finish.shape
    above = np.hstack(
        [finish.reshape(-1, size), -np.repeat(np.eye(steps), lines, axis=0)]
    )
    right = -np.broadcast_to(later, (steps, lines)).ravel()
    solution = optimize.linprog(
        np.r_[np.zeros(size), np.full(steps, 1 / steps) if mass is None else mass],
        A_ub=above,
        b_ub=right,
        A_eq=np.r_[np.ones(size), np.zeros(steps)][None],
        b_eq=[1.0],
        bounds=[(0, None)] * (size + steps),
    )
    assert solution.status == 0
    return float(solution.fun), solution.x[:size]


def best_of_two_speeds(
    fast: float, slow: float, probability: float, workers: int
) -> float:
    """The optimum of unit work: one outcome for each number of slow workers."""
    slow_ones = np.arange(workers + 1)
    times = np.where(np.arange(workers) < slow_ones[:, None], slow, fast)
    return best_shares(
        level_times(times), stats.binom(workers, probability).pmf(slow_ones)
    )[0]

"""Runtimes, completion probabilities, optimal partitions and schemes, beside peers that do the same work."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax.solvers.closed_form import time_partition
from bcgc_jax.solvers.methods import BASELINES
from bcgc_jax.solvers.schemes import SchemeError
from benchmarks import peers
from benchmarks.timing import compare, result_row

LAW = bcgc.ShiftedExponential(rate=1e-3, shift=50.0)
# Numbers of workers of the exact evaluation and of the schemes.
SIZES = (20, 50)

Row = dict[str, Any]


def paper_problem(num_workers: int) -> bcgc.Problem:
    """The paper's L = 20,000 coordinates and 50 samples under its law."""
    return bcgc.Problem(LAW, num_workers, 20_000, num_samples=50)


def _unscaled_problem(num_workers: int) -> tuple[bcgc.Problem, jax.Array, np.ndarray]:
    """A problem with M b / N = 1, as the peers have it, the partition x^(t) and its cumulative load."""
    problem = bcgc.Problem(LAW, num_workers, num_workers * 100, num_samples=num_workers)
    x = time_partition(problem)
    return problem, x, np.asarray(bcgc.partitions.cumulative_load(x))


def simulation() -> list[Row]:
    """Mean runtime of 1e5 draws at N = 50 in float32, against NumPy's draw, sort and max."""
    num_draws, repeats = 100_000, 15
    problem, x, load = _unscaled_problem(50)
    run = functools.partial(bcgc.simulate_runtime, jax.random.key(0), problem, x, num_draws)
    rng = np.random.default_rng(0)
    result = compare(
        {
            "package": run,
            "float32": lambda: peers.mean_runtime(rng, load.astype(np.float32), num_draws, np.float32),
            "float64": lambda: peers.mean_runtime(rng, load, num_draws, np.float64),
        },
        repeats,
    )
    exact, found = float(bcgc.expected_runtime(problem, x)), result["package"].value
    error, spread = abs(float(found.mean) / exact - 1), float(found.standard_error) / exact
    accuracy = f"the mean is {error:.1e} from the exact one, its standard error {spread:.1e}"
    return [
        result_row(
            "simulation",
            "mean of 1e5 draws, N=50",
            result["package"],
            accuracy,
            peer=result[dtype],
            against=f"NumPy's draw, sort and max in {dtype}",
            dtype="float32",
            repeats=repeats,
            error=error,
        )
        for dtype in ("float32", "float64")
    ]


def evaluation() -> list[Row]:
    """Exact expected runtime at N = 20 and 50, against NumPy's Monte Carlo of 1e5 draws."""
    num_draws, repeats = 100_000, 15
    rng = np.random.default_rng(0)
    rows = []
    with jax.enable_x64(True):
        for num_workers in SIZES:
            problem, x, load = _unscaled_problem(num_workers)
            result = compare(
                {
                    "package": functools.partial(bcgc.expected_runtime, problem, x),
                    "peer": functools.partial(peers.estimate_runtime, rng, load, num_draws),
                },
                repeats,
            )
            value, error = (float(v) for v in bcgc.integrate_runtime(problem, x))
            mean, deviation = result["peer"].value
            accuracy = (
                f"quadrature error {error / value:.1e}; the peer's standard error {deviation / mean:.1e}, "
                f"its mean {abs(mean - value) / deviation:.2f} of them away"
            )
            rows.append(
                result_row(
                    "evaluation",
                    f"exact expected runtime, N={num_workers}",
                    result["package"],
                    accuracy,
                    peer=result["peer"],
                    against="NumPy's Monte Carlo, 1e5 draws",
                    repeats=repeats,
                    error=error / value,
                    peer_error=deviation / mean,
                )
            )
    return rows


def completion() -> list[Row]:
    """Completion probability at 64 deadlines, N = 20, 100, 400, against an FFT recursion."""
    peers.require_scipy()
    rows = []
    with jax.enable_x64(True):
        for num_workers in (20, 100, 400):
            repeats = 3 if num_workers == 400 else 7
            problem, x, load = _unscaled_problem(num_workers)
            deadlines = float(bcgc.expected_runtime(problem, x)) * np.linspace(0.5, 2.0, 64)
            result = compare(
                {
                    "package": functools.partial(bcgc.completion_probability, problem, x, deadlines),
                    "peer": functools.partial(peers.completion_probability, load, deadlines),
                },
                repeats,
            )
            probability = np.asarray(result["package"].value)
            error = float(np.abs(probability - result["peer"].value).max())
            accuracy = (
                f"probabilities from {probability.min():.2g} to {probability.max():.4f}, "
                f"largest absolute difference {error:.1e}"
            )
            rows.append(
                result_row(
                    "completion",
                    f"completion probability, 64 deadlines, N={num_workers}",
                    result["package"],
                    accuracy,
                    peer=result["peer"],
                    against="FFT recursion in SciPy",
                    repeats=repeats,
                    error=error,
                )
            )
    return rows


def solutions() -> list[Row]:
    """Optimum, closed form and subgradients, against the paper's procedure in NumPy."""
    repeats, rows = 3, []
    with jax.enable_x64(True):
        for num_workers in (20, 50):
            problem = paper_problem(num_workers)
            procedure = functools.partial(
                peers.paper_subgradient, np.random.default_rng(0), num_workers, 2e4, 150, 10_000
            )
            bound = 0.0  # the best that any of the methods proves; the optimum's comes first
            for method in ("optimal", "time", "subgradient"):
                solve = functools.partial(bcgc.solve, problem, method, key=jax.random.key(0))
                result = compare({"package": solve, "peer": procedure}, repeats)
                solution = result["package"].value
                peer_value = float(bcgc.expected_runtime(problem, result["peer"].value))
                value, gap = float(solution.expected_runtime), float(solution.relative_gap)
                bound = max(bound, float(solution.lower_bound))
                rows.append(
                    result_row(
                        "solutions",
                        f"{method}, certified, N={num_workers}",
                        result["package"],
                        f"gap {gap:.0e}, runtime {100 * (value / peer_value - 1):+.2f} % against the peer's",
                        peer=result["peer"],
                        against="the paper's procedure in NumPy, 150 times 1e4 draws",
                        repeats=repeats,
                        gap=gap,
                        peer_gap=peer_value / bound - 1,
                    )
                )
    return rows


def programme() -> list[Row]:
    """The optimum at N = 10 and 20, against the linear programme of a sample, by HiGHS."""
    peers.require_scipy()
    rng, repeats, rows = np.random.default_rng(0), 3, []
    with jax.enable_x64(True):
        for num_workers in (10, 20):
            problem = paper_problem(num_workers)
            for num_draws in (1000, 5000):

                def peer(num_workers: int = num_workers, num_draws: int = num_draws) -> np.ndarray:
                    times = peers.sorted_times(rng, num_draws, num_workers)
                    return peers.sample_average_partition(times, 2e4)

                solve = functools.partial(bcgc.solve, problem, "optimal")
                result = compare({"package": solve, "peer": peer}, repeats)
                solution = result["package"].value
                gap, bound = float(solution.relative_gap), float(solution.lower_bound)
                above = float(bcgc.expected_runtime(problem, result["peer"].value)) / bound - 1
                rows.append(
                    result_row(
                        "programme",
                        f"optimal, certified, N={num_workers}",
                        result["package"],
                        f"gap {gap:.0e}; the peer's partition is {100 * above:.2g} % above the bound",
                        peer=result["peer"],
                        against=f"linear programme of {num_draws} draws, HiGHS",
                        repeats=repeats,
                        gap=gap,
                        peer_gap=above,
                    )
                )
    return rows


def optima() -> list[Row]:
    """The certified optimum for other laws and many workers; no peer reaches such a gap."""
    times = np.random.default_rng(0).gamma(2.0, 1.0, 100) + 0.2
    with jax.enable_x64(True):
        measured = bcgc.Empirical(times)
    cases = [
        ("Weibull 0.7 from 0", bcgc.Weibull(1.0, 0.7), 20),
        ("Weibull 3 from 0", bcgc.Weibull(2.0, 3.0), 20),
        ("Pareto 1.2", bcgc.Pareto(1.3, 1.2), 20),
        ("log-normal 0.7", bcgc.Lognormal(0.2, 0.7, 0.1), 20),
        ("log-normal 0.01", bcgc.Lognormal(0.2, 0.01), 20),
        ("gamma 2.4", bcgc.Gamma(2.4, 1.5, 0.2), 20),
        ("uniform", bcgc.Uniform(0.4, 2.6), 20),
        ("two speeds", bcgc.TwoSpeed(0.7, 3.2, 0.15), 20),
        ("100 measured times", measured, 20),
        ("the paper's law", LAW, 100),
        ("the paper's law", LAW, 1000),
        ("the paper's law", LAW, 50),
    ]
    rows = []
    for name, law, num_workers in cases:
        dtype = "float32" if num_workers == 50 else "float64"
        repeats = 1 if num_workers == 1000 else 3
        # float32 stops at its own best gap.
        tolerance = 1e-4 if dtype == "float64" and num_workers == 1000 else 1e-7
        with jax.enable_x64(dtype == "float64"):
            problem = bcgc.Problem(law, num_workers, 20_000, num_samples=50)
            solve = functools.partial(bcgc.solve, problem, bcgc.Optimal(tolerance=tolerance))
            result = compare({"package": solve}, repeats)["package"]
            gap = float(result.value.relative_gap)
        what = f"optimal, certified, N={num_workers}, {name}"
        rows.append(
            result_row("optima", what, result, f"gap {gap:.0e}", dtype=dtype, repeats=repeats, gap=gap)
        )
    return rows


def schemes(own: Sequence[bcgc.Scheme] = ()) -> list[Row]:
    """Baselines and one's own schemes at N = 20 and 50: how far above the optimum they are."""
    repeats, rows = 3, []
    with jax.enable_x64(True):
        for num_workers in SIZES:
            problem = paper_problem(num_workers)
            bound = math.nan
            asked: tuple[str | bcgc.Scheme, ...] = (*BASELINES, *own)
            for method in asked:
                name = method if isinstance(method, str) else method.name
                solve = functools.partial(bcgc.solve, problem, method, key=jax.random.key(0))
                try:
                    result = compare({"package": solve}, repeats)["package"]
                except Exception as error:
                    if name in BASELINES:
                        raise
                    # Somebody else's function: what it raised is what its author wants to read.
                    why = str(error).partition("\n")[0]
                    raise SchemeError(f"{why} (N = {num_workers})") from error
                if math.isnan(bound):
                    bound = float(bcgc.solve(problem, "optimal").lower_bound)
                value, deviation = (
                    float(v) for v in (result.value.expected_runtime, result.value.runtime_error)
                )
                accuracy = "infeasible, or of infinite expected runtime"
                if math.isfinite(value):
                    accuracy = (
                        f"expected runtime {value:.4g} (error {deviation / value:.0e}), "
                        f"{100 * (value / bound - 1):.3g} % above the certified optimum"
                    )
                rows.append(
                    result_row(
                        "schemes",
                        f"{name}, N={num_workers}",
                        result,
                        accuracy,
                        repeats=repeats,
                        expected_runtime=value,
                        gap=value / bound - 1,
                        error=deviation / value,
                    )
                )
    return rows

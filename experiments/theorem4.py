"""Compare the bounds of Theorem 4 with the actual ratios for 2 to 1000 workers.

For a shifted exponential cycle time the paper proves, with H_N = Σ_{n≤N} 1/n,

    E τ̂(x^(t)) / optimum ≤ (H_N + 1)(H_N + μ t0) / (μ t0)²,
    E τ̂(x^(f)) / optimum ≤ H_N / (μ t0) + 1.

The optimum is computed with a certificate. Each ratio lies between E τ̂(x) divided by
the optimum's runtime and E τ̂(x) divided by its lower bound. These two values differ by
1e-5.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import bcgc_jax as bcgc
from experiments.report import grouped, print_table, run_command, save, with_progress

SCHEMES = ("time", "frequency")
SHIFT = 50.0
# μ t0: the paper's own value, and one where the shift is as long as the mean of the
# rest.
PRODUCTS = (0.05, 1.0)
WORKERS_GRID = (2, 3, 5, 7, 10, 14, 20, 30, 50, 100, 200, 1000)
# Problems are padded to one of these sizes, so that everything compiles once for each.
SIZES = (50, 100, 200, 1000)


class Row(NamedTuple):
    """A scheme at one N: Theorem 4's bound, and limits of its actual ratio."""

    rate_times_shift: float
    num_workers: int
    scheme: str
    bound: float
    ratio: float
    ratio_at_most: float
    expected_runtime: float
    optimum: float
    lower_bound: float


def bound(scheme: str, num_workers: int, rate_times_shift: float) -> float:
    """The bound of Theorem 4 on E τ̂(x) / optimum.

    >>> bound("time", 2, 1.0), bound("frequency", 2, 1.0)
    (6.25, 2.5)
    """
    harmonic = math.fsum(1 / n for n in range(1, num_workers + 1))
    if scheme == "time":
        return (harmonic + 1) * (harmonic + rate_times_shift) / rate_times_shift**2
    return harmonic / rate_times_shift + 1


def compute(workers_grid: Iterable[int], sizes: Sequence[int]) -> Iterable[Row]:
    """Bounds and ratios of both closed forms for every N and every μ t0."""
    points = [(product, n) for product in PRODUCTS for n in workers_grid]
    for product, workers in with_progress(points, "theorem 4"):
        law = bcgc.ShiftedExponential(product / SHIFT, SHIFT)
        size = min(size for size in sizes if size >= workers)
        problem = bcgc.Problem(law, workers, 20_000, num_samples=50.0, max_workers=size)
        best = bcgc.solve(problem, bcgc.Optimal(tolerance=1e-5))
        optimum = float(best.expected_runtime)
        lower = float(best.lower_bound)
        for scheme in SCHEMES:
            runtime = float(bcgc.solve(problem, scheme).expected_runtime)
            proven = bound(scheme, workers, product)
            ratios = (runtime / optimum, runtime / lower)
            yield Row(
                product, workers, scheme, proven, *ratios, runtime, optimum, lower
            )


def run(
    out: Path,
    *,
    workers_grid: Iterable[int] = WORKERS_GRID,
    sizes: Sequence[int] = SIZES,
) -> None:
    rows = list(compute(workers_grid, sizes))
    header = [
        "N",
        *(
            f"{scheme} {what}"
            for scheme in SCHEMES
            for what in ("bound", "ratio", "at most")
        ),
    ]
    for product, rows_of_product in grouped(
        rows, lambda row: row.rate_times_shift
    ).items():
        lines = [
            [
                workers,
                *(
                    x
                    for row in rows_of_workers
                    for x in (row.bound, row.ratio, row.ratio_at_most)
                ),
            ]
            for workers, rows_of_workers in grouped(
                rows_of_product, lambda row: row.num_workers
            ).items()
        ]
        print_table(f"Theorem 4, rate × shift = {product:g}", header, lines)
    print(
        "\nratio: expected runtime / that of the optimum; at most: / proven lower "
        "bound of the optimum."
    )
    save(out, {"theorem4": rows})


if __name__ == "__main__":
    sys.exit(run_command(run))

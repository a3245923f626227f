"""What each worker computes in one iteration: Fig. 1 of the paper, and one draw at N = 20.

Above: the paper's example, N = 4, L = 4, T = (0.1, 0.1, 0.25, 1): levels (1, 1, 2, 2) against one for all.
Below: the same for N = 20, L = 20000 and one draw of the paper's law (rate 1e-3, shift 50), workers by speed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax import plotting
from experiments.report import number, print_table, run_command, write_csv

FIGURE_1 = np.array([0.1, 0.1, 0.25, 1.0])


def run(out: Path, seed: int = 0) -> None:
    problem = bcgc.Problem(bcgc.ShiftedExponential(1e-3, 50.0), 20, 20_000, num_samples=50)
    drawn = np.sort(np.asarray(problem.cycle_time.sample(jax.random.key(seed), (20,))))
    cases: list[tuple[str, Any, np.ndarray, float]] = [
        ("proposed, levels (1, 1, 2, 2)", [0, 2, 2, 0], FIGURE_1, 4.0),
        ("one level, 1", [0, 4, 0, 0], FIGURE_1, 4.0),
        ("one level, 2", [0, 0, 4, 0], FIGURE_1, 4.0),
    ]
    for method in ("optimal", "single_block", "uncoded"):
        solution = bcgc.solve(problem, method)
        cases.append((plotting.style(method).label, np.asarray(solution.rounded), drawn, 50.0))
    rows: list[dict[str, Any]] = []
    found = []
    for name, partition, times, samples in cases:
        one = plotting.timeline(partition, times, num_samples=samples)
        found.append(one)
        cost = (one.levels + 1) * one.sizes
        done = (one.computed * cost).sum()
        rows.append(
            {
                "workers": len(times),
                "scheme": name,
                "runtime": one.runtime,
                "used": float((one.used * cost).sum() / done),
                "wasted": float(((one.computed * ~one.used) * cost).sum() / done),
            }
        )
    write_csv(out / "timeline.csv", rows)
    print_table(
        "one iteration: runtime, and the share of the computed work whose result was used",
        ["scheme", "workers", "runtime", "used", "not used"],
        [
            [r["scheme"], str(r["workers"]), number(r["runtime"])]
            + [f"{100 * r[k]:.0f} %" for k in ("used", "wasted")]
            for r in rows
        ],
    )
    figure, axes = plotting.new_figure(2, 3, size=(10.5, 6.4), height_ratios=[1, 2.2])
    for panel, (name, _, times, _), result in zip(axes, cases, found, strict=True):
        plotting.draw_timeline(panel, result, times, title=f"{name}: runtime {number(result.runtime, 3)}")
    plotting.legend_outside(figure, plotting.timeline_handles(), place="lower", columns=3)
    paths = plotting.save_figure(figure, out, "timeline")
    print(f"\nWritten to {out}: timeline.csv, {paths[0].name}, {paths[1].name}")


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("timeline", __doc__ or "", run, argv)


if __name__ == "__main__":
    sys.exit(main())

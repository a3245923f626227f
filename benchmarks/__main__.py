"""`python -m benchmarks`: measure what the README says about speed; a table, and JSON with --out."""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bcgc_jax as bcgc
from benchmarks import peers
from benchmarks.coding import traffic, training
from benchmarks.timing import compare, environment

_LAW = bcgc.ShiftedExponential(rate=1e-3, shift=50.0)


def simulation() -> list[dict[str, Any]]:
    """Sorted draws, τ̂ and mean, N = 50, 100,000 draws, float32, against NumPy's draw, sort and max."""
    num_workers, num_draws = 50, 100_000
    problem = bcgc.Problem(_LAW, num_workers, num_workers * 100, num_samples=num_workers)
    x = jnp.asarray(bcgc.solve(problem, "time").partition)
    load = np.asarray(bcgc.cumulative_load(x), np.float32)
    run = jax.jit(functools.partial(bcgc.simulate_runtime, num_draws=num_draws))
    key, rng = jax.random.key(0), np.random.default_rng(0)
    exact = float(bcgc.expected_runtime(problem, x))
    result = compare(
        {
            "package": lambda: run(key, problem, x),
            "peer": lambda: peers.mean_runtime(rng, load, num_draws, np.float32),
            "peer in float64": lambda: peers.mean_runtime(rng, load, num_draws, np.float64),
        }
    )
    accuracy = abs(float(run(key, problem, x).mean) / exact - 1)
    rows = []
    for peer, dtype in (("peer", "float32"), ("peer in float64", "float64")):
        rows.append(
            {
                "what": f"mean runtime, N=50, 1e5 draws, float32; NumPy {dtype}",
                "package": result["package"],
                "peer": result[peer],
                "ratio": result[peer]["best"] / result["package"]["best"],
                "accuracy": f"{accuracy:.0e} from the exact mean",
            }
        )
    return rows


def solutions() -> list[dict[str, Any]]:
    """Optimum, closed form and subgradients against the paper's procedure: 150 iterations, 10,000 draws."""
    rows = []
    with jax.enable_x64(True):
        for num_workers in (20, 50):
            problem = bcgc.Problem(_LAW, num_workers, 20_000, num_samples=50)
            rng = np.random.default_rng(0)
            yardstick = functools.partial(peers.paper_subgradient, rng, num_workers, 2e4, 150, 10_000)
            peer_value = float(bcgc.expected_runtime(problem, jnp.asarray(yardstick())))
            for method in ("optimal", "time", "subgradient"):
                solve = functools.partial(bcgc.solve, problem, method, key=jax.random.key(0))
                result = compare({"package": solve, "peer": yardstick}, repeats=3)
                solution = solve()
                value = float(solution.expected_runtime)
                rows.append(
                    {
                        "what": f"{method}, certified, N={num_workers}; the paper's procedure in NumPy",
                        "package": result["package"],
                        "peer": result["peer"],
                        "ratio": result["peer"]["best"] / result["package"]["best"],
                        "accuracy": f"runtime {100 * (value / peer_value - 1):+.2f} % against the peer's, "
                        f"gap {float(solution.relative_gap):.0e}",
                    }
                )
    return rows


def optima() -> list[dict[str, Any]]:
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
        ("the paper's law", _LAW, 100),
        ("the paper's law", _LAW, 1000),
    ]
    rows = []
    with jax.enable_x64(True):
        for name, law, num_workers in cases:
            problem = bcgc.Problem(law, num_workers, 20_000, num_samples=50)
            tolerance = 1e-4 if num_workers == 1000 else 1e-7
            solve = functools.partial(bcgc.solve, problem, "optimal", tolerance=tolerance)
            result = compare({"package": solve}, repeats=1 if num_workers == 1000 else 3)
            rows.append(
                {
                    "what": f"optimal, certified, N={num_workers}; {name}",
                    "package": result["package"],
                    "accuracy": f"gap {float(solve().relative_gap):.0e}",
                }
            )
    single = bcgc.Problem(_LAW, 50, 20_000, num_samples=50)
    solve = functools.partial(bcgc.solve, single, "optimal")
    result = compare({"package": solve}, repeats=3)
    gap = float(solve().relative_gap)
    what = "optimal, certified, N=50, float32; the paper's law"
    rows.append({"what": what, "package": result["package"], "accuracy": f"gap {gap:.0e}"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--out", type=Path, help="also write JSON to this file")
    out = parser.parse_args().out
    if out is not None and not out.parent.is_dir():
        parser.error(f"--out: there is no folder {out.parent}")
    rows = []
    for measure in (simulation, solutions, optima, traffic, training):
        print(f"measuring: {(measure.__doc__ or '').splitlines()[0]}", file=sys.stderr)
        rows += measure()
    print(f"{'what; peer':66}{'package':>9}{'peer':>9}{'ratio':>7}")
    for row in rows:
        line = f"{row['what']:66}{row['package']['best'] * 1e3:6.1f} ms"
        if "peer" in row:
            line += f"{row['peer']['best'] * 1e3:6.0f} ms{row['ratio']:6.1f}x"
        print(line)
        print(f"    {row['accuracy']}; first call {row['package']['first_call']:.2f} s")
    facts = environment()
    print(", ".join(f"{k} {v}" for k, v in facts.items()))
    if out is not None:
        out.write_text(json.dumps({"environment": facts, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

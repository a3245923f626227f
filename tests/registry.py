"""The one table of laws and public functions, as calls of a number: Python's, an array,
or traced.

A result follows from it alone. What is checked of every entry stands in
test_registry.py.
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax.exact.order_statistics import simulate_max
from bcgc_jax.plans import partitions
from bcgc_jax.plans.plan import cyclic_plan
from bcgc_jax.plans.runtime import draw_runtimes
from bcgc_jax.traces.resampling import bootstrap_interval
from tests.cli.steps import trace_of

Number = Any
KEY: Any = np.array([0, 1], np.uint32)


def row(v: Number, *factors: float) -> jax.Array:
    """`v` times each of them."""
    return jnp.asarray([factor * v for factor in factors])


def _whole(v: Number) -> int:
    """A whole number for what has to be known before tracing."""
    return int(v) if isinstance(v, float) else 1


def _power_hazard(p, t):
    return (t / p) ** 2


def _power_inverse(p, a):
    return p * a**0.5


LAWS: dict[str, Callable[[Number], Any]] = {
    "ShiftedExponential": lambda v: bcgc.ShiftedExponential(v, 0.1 * v),
    "Exponential": lambda v: bcgc.Exponential(v),
    "Deterministic": lambda v: bcgc.distributions.Deterministic(v),
    "Weibull": lambda v: bcgc.Weibull(v, 1.0 + v, 0.3 * v),
    "Pareto": lambda v: bcgc.Pareto(v, 1.5 + v),
    "Uniform": lambda v: bcgc.Uniform(v, 1.0 + 2 * v),
    "TwoSpeed": lambda v: bcgc.TwoSpeed(v, 2.0 + 2 * v, 0.1 * v),
    "Lognormal": lambda v: bcgc.Lognormal(v, 0.5 * v, 0.2 * v),
    "Gamma": lambda v: bcgc.Gamma(1.0 + v, v, 0.4 * v),
    "FromHazard": lambda v: bcgc.FromHazard(_power_hazard, _power_inverse, v),
    "Mixture": lambda v: bcgc.Mixture(
        [bcgc.Exponential(v), bcgc.Uniform(0.5 * v, 2.0 * v)], row(v, 2.0, 1.0)
    ),
    "HazardSpline": lambda v: bcgc.distributions.HazardSpline(
        row(v, 0.0, 0.5, 1.0) / v, row(v, 1, 2, 3), row(v, 2, 2, 2), 0.1 * v
    ),
    "Empirical": lambda v: bcgc.Empirical(row(v, 1.0, 2.0, 5.0)),
    "EmpiricalRows": lambda v: bcgc.EmpiricalRows(
        jnp.stack([row(v, 1.0, 2.0, 4.0), row(v, 3.0, 4.0, 2.0)])
    ),
    "Heterogeneous": lambda v: bcgc.Heterogeneous(
        [bcgc.Uniform(v, 4.0 * v)] * 2 + [bcgc.Pareto(v, 3.0 * v)]
    ),
}
# One of each kind, for what does not depend on the family.
KINDS = (
    "ShiftedExponential",
    "Gamma",
    "TwoSpeed",
    "Empirical",
    "EmpiricalRows",
    "Heterogeneous",
)
JOINT = ("EmpiricalRows", "Heterogeneous")
ATOMIC = ("Deterministic", "TwoSpeed", "Empirical")
DENSE = tuple(name for name in LAWS if name not in JOINT + ATOMIC)


def of_time(name: str, law: Any, t: Any) -> dict[str, Any]:
    """What a law says of one time, or of several."""
    values = {
        "cumulative_hazard": law.cumulative_hazard(t),
        "inverse_cumulative_hazard": law.inverse_cumulative_hazard(t),
        "cdf": law.cdf(t),
        "survival": law.survival(t),
    }
    return values | ({"log_density": law.log_density(t)} if name in DENSE else {})


def of_law(name: str, v: Number) -> dict[str, Any]:
    """What a law says by itself."""
    law = LAWS[name](v)
    values = {
        "mean": law.mean(),
        "infimum": law.infimum(),
        "sample": law.sample(KEY, (4, 3)),
        "sorted_cycle_times": bcgc.sorted_cycle_times(KEY, law, 3, 4),
    }
    if name in JOINT:
        return values | {"rows": law.draw_rows(KEY, 4)}
    fast = law.with_fast_inverse()
    return values | of_time(name, law, row(v, 0.5, 1.0, 2.0)) | {
        "fast inverse": fast.inverse_cumulative_hazard(row(v, 0.5, 1.0, 2.0)),
        "cdf of a number": law.cdf(1.5),
        "inverse of a number": law.inverse_cumulative_hazard(1.5),
        "expected_order_statistics": bcgc.plans.expected_order_statistics(law, 3),
        "simulated maxima": simulate_max(KEY, law, row(v, 1.0, 2.0, 2.5), 3, 4)[0],
    }  # fmt: skip


def runtimes_of_law(name: str, v: Number) -> dict[str, Any]:
    """What follows from a law for three workers; of unlike ones by draws alone."""
    law = LAWS[name](v)
    problem = bcgc.Problem(law, 3, 10, 2.0 * v, v)
    values = {
        "simulate_runtime": bcgc.simulate_runtime(KEY, problem, [1, 2, 7], 8, unit=None)
    }
    if name == "Heterogeneous":
        return values
    return values | {
        "expected_runtime": bcgc.expected_runtime(problem, [1, 2, 7]),
        "integrate_runtime": bcgc.plans.integrate_runtime(problem, [1, 2, 7]),
        "completion_probability": bcgc.completion_probability(
            problem, [1, 2, 7], row(v, 9.0, 10.0)
        ),
        "certificate": bcgc.certificate(problem, [1, 2, 7]),
        "straggler_ratio": bcgc.solvers.straggler_ratio(law),
        "runtime_limit": bcgc.solvers.runtime_limit(problem),
    }


def problem_of(v: Number, **options: Any) -> bcgc.Problem:
    return bcgc.Problem(
        bcgc.ShiftedExponential(v, 0.5 * v), 3, 2000 + _whole(v), 2.0 * v, v, **options
    )


def late_problem(v: Number) -> bcgc.Problem:
    """Make a problem of workers that start up and send."""
    return problem_of(v, start_up=v, send_time=0.5 * v, chain_cycles=0.2 * v)


def _partition(v: Number) -> jax.Array:
    return row(v, 0.2, 0.3, 0.5) / v * (2000 + _whole(v))


# With times that are likely for the problems here and for those of test_bad_numbers.py.
OF_A_PARTITION: dict[str, Callable[[bcgc.Problem, Any], Any]] = {
    "expected_runtime": bcgc.expected_runtime,
    "integrate_runtime": bcgc.plans.integrate_runtime,
    "certificate": bcgc.certificate,
    "completion_probability": lambda problem, x: bcgc.completion_probability(
        problem, x, 900.0
    ),
    "simulate_runtime": lambda problem, x: bcgc.simulate_runtime(
        KEY, problem, x, 8, unit=None
    ),
}
_NAMED = (
    *(
        "time",
        "frequency",
        "uncoded",
        "single_block",
        "tandon_partial",
        "ferdinand_full",
        "ferdinand_half",
    ),
    *("limit", "limit:2", "cyclic:2", "backup:1"),
)
# Names, and methods of a number.
METHODS: dict[str, Any] = {name: name for name in _NAMED} | {
    "Optimal": lambda v: bcgc.Optimal(tolerance=1e-5 * v),
    "Optimal of some levels": lambda v: bcgc.Optimal(levels=[0, _whole(v)]),
    "Subgradient": lambda v: bcgc.Subgradient(
        max_steps=100, batch_size=64, tolerance=1e-3 * v
    ),
    "Deadline": lambda v: bcgc.Deadline(8e3 * v),
    "TandonPartial": lambda v: bcgc.TandonPartial(alpha=1.0 + v),
    "Drop": lambda v: bcgc.solvers.Drop(2),
    "Tandon": lambda v: bcgc.Tandon(_whole(v)),
    "Ferdinand": lambda v: bcgc.Ferdinand(700 + _whole(v)),
    "Nested": lambda v: bcgc.Nested(),
    "Sharing": lambda v: bcgc.Sharing(2),
    "Scheme": bcgc.Scheme("all_of_it", lambda problem: problem.total * jnp.eye(3)[0]),
}


def _solved(method: Any, v: Number) -> bcgc.Solution:
    method = method(v) if callable(method) else method
    return bcgc.solve(problem_of(v), method, key=KEY)


def _of_partition(
    call: Callable[[bcgc.Problem, Any], Any], of: Callable[[Number], Any], v: Number
) -> Any:
    return call(of(v), _partition(v))


_FEW: Any = {"key": KEY, "num_draws": 8}
# As many as those of a trace below: their tails share a program.
_TIMES = (np.random.default_rng(0).gamma(2.0, 1.0, 300) + 1).astype(np.float32)

# May be traced.
CALLS: dict[str, Callable[[Number], Any]] = {
    **{
        f"{name}{words}": functools.partial(_of_partition, call, of)
        for words, of in (("", problem_of), (" of late workers", late_problem))
        for name, call in OF_A_PARTITION.items()
    },
    "expected_runtime with setup": lambda v: bcgc.expected_runtime(
        problem_of(v, setup_cycles=1.0), _partition(v)
    ),
    "expected_runtime of units": lambda v: bcgc.expected_runtime(
        bcgc.Problem(LAWS["ShiftedExponential"](v), 3, 3, unit_costs=[2.0, 1.0, 0.5]),
        [2.0, 1.0, 0.5],
    ),
    "block_runtime": lambda v: bcgc.block_runtime(
        row(v, 3, 2, 5), row(v, 1, 4, 2), num_samples=2 * v, setup_cycles=0.5 * v
    ),
    "block_runtime of whole numbers": lambda v: bcgc.block_runtime(
        [3, 2, 5], row(v, 1, 4, 2), cycles=2.0
    ),
    "block_runtime of late workers": lambda v: bcgc.block_runtime(
        [3, 2, 5], [1, 4, 2], start_ups=row(v, 2, 0, 3), send_time=0.5, overlap=True
    ),
    "coordinate_runtime": lambda v: bcgc.coordinate_runtime(
        np.array([0, _whole(v), 2]),
        row(v, 1, 4, 2),
        num_samples=v,
        unit_costs=row(v, 1, 2, 0.5),
    ),
    "cumulative_load": lambda v: partitions.cumulative_load(row(v, 3, 2, 5)),
    "finish_load": lambda v: partitions.finish_load(
        row(v, 3, 2, 5), row(v, 3, 2, 5) > 4, 0.5 * v
    ),
    "project_partition": lambda v: partitions.project_partition(
        row(v, 3, 2, 5), 4.0 * v, np.arange(3) < 2
    ),
    "cost_of_units": lambda v: partitions.cost_of_units(
        np.array([_whole(v), 2, 0]), row(v, 3, 2, 5)
    ),
    # Whole numbers, whatever they come from.
    "levels_from_partition": lambda v: bcgc.levels_from_partition(
        row(v, 4, 4, 8).astype(int), 100
    ),
    "partition_from_levels": lambda v: bcgc.partition_from_levels(
        row(v, 0, 1, 1).astype(int), 4
    ),
    "round_partition": lambda v: partitions.round_partition(row(v, 3, 2, 5), 10),
    "round_to_units": lambda v: partitions.round_to_units(
        row(v, 3, 2, 5), row(v, 3, 2, 5)
    ),
    "draw_runtimes": lambda v: draw_runtimes(
        KEY, late_problem(v), cyclic_plan(jnp.sum(_partition(v)), 2), 64
    ),
    "solve time for workers of one start-up": lambda v: bcgc.solve(
        problem_of(v, start_up=5 * v, send_time=0.5 * v, chain_cycles=0.2 * v), "time"
    ),
    "solve of late workers": lambda v: bcgc.solve(late_problem(v)),
    "solve for rows": lambda v: bcgc.solve(
        bcgc.Problem(LAWS["EmpiricalRows"](v), 3, 10, 2.0 * v, v)
    ),
    "solve for atoms": lambda v: bcgc.solve(
        bcgc.Problem(LAWS["Empirical"](v), 3, 2000, v, v)
    ),
    "solve for workers that send": lambda v: bcgc.solve(
        problem_of(v, send_time=0.5 * v)
    ),
    "solve for unlike workers": lambda v: bcgc.solve(
        bcgc.Problem(LAWS["Heterogeneous"](v), 3, 2000, v, v), "tandon_partial", **_FEW
    ),
    **{
        f"solve {name}": functools.partial(_solved, method)
        for name, method in METHODS.items()
    },
}

# The same functions for other laws, or as dear in their first call: these are traced
# only.
ONLY_TRACED = {
    *(f"{name} of late workers" for name in (*OF_A_PARTITION, "solve")),
    *(
        "expected_runtime with setup",
        "draw_runtimes",
        "solve for rows",
        "solve for atoms",
    ),
    *("solve for workers that send", "solve limit:2", "solve backup:1"),
    *("solve Sharing", "solve Drop"),
}
_COMPOSED = (
    "Sweep",
    "compare",
    "solve for unlike workers",
    "solve time for workers of one start-up",
)
_MEASURED = (
    "fit_distributions",
    "Empirical",
    "FromHazard",
)
_LARGE = "sweep", "write_sweep", "solve cyclic:2"
SLOW_AT_FIRST = ("Gamma", *_MEASURED, *_COMPOSED, *_LARGE)
WHOLE_NUMBERS = (
    "levels_from_partition",
    "partition_from_levels",
    "round_partition",
    "round_to_units",
)


def _trace(v: float, **changed: Any) -> bcgc.traces.Trace:
    return trace_of(
        v * np.random.default_rng(0).gamma(2.0, 1.0, (60, 5)) + 1, **changed
    )


def _cell(num_workers: Any, rate: Any, max_workers: int) -> bcgc.Problem:
    return bcgc.Problem(
        bcgc.ShiftedExponential(rate), num_workers, 2000, max_workers=max_workers
    )


def _swept(v: float) -> tuple[Any, ...]:
    return (
        _cell,
        bcgc.sweeps.grid(num_workers=[2, 3], rate=[v, 2.0]),
        bcgc.TandonPartial(1 + v),
    )


def _written_sweep(v: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bcgc.sweeps.write_sweep(
            bcgc.sweeps.Sweep(*_swept(v)), Path(folder) / "sweep.csv"
        )


# Of numbers that are known: these measure on the host, or write.
ON_THE_HOST: dict[str, Callable[[float], Any]] = {
    "smooth_empirical": lambda v: bcgc.traces.smooth_empirical(
        v * _TIMES, pareto_tail=True
    ),
    "distribution_of": lambda v: bcgc.traces.distribution_of(v * _TIMES, 200),
    "bootstrap_interval": lambda v: bootstrap_interval(
        KEY,
        bcgc.Problem(LAWS["EmpiricalRows"](v), 3, 10, 2 * v),
        [1, 2, 7],
    ),
    "fit_distributions": lambda v: bcgc.traces.fit_distributions(
        KEY,
        v * _TIMES,
        distributions=["shifted-exponential", "pareto", "uniform"],
        num_replicates=4,
    ),
    "advise": lambda v: bcgc.advise(trace_of(v * _TIMES.reshape(-1, 3))),
    "describe": lambda v: bcgc.diagnosis.describe(_trace(v)).remarks(),
    "compare": lambda v: repr(bcgc.compare(problem_of(v), ["time", "uncoded"])),
    "Sweep": lambda v: next(
        map((plan := bcgc.sweeps.Sweep(*_swept(v))).solve, plan.chunks)
    ),
    "sweep": lambda v: bcgc.sweeps.sweep(*_swept(v)),
    "write_sweep": _written_sweep,
}
# What the calls take and return.
TAKEN_OR_RETURNED = {
    *("Distribution", "JointDistribution", "Atomic", "Kinked", "Smooth"),
    *(
        "Problem",
        "Solution",
        "Status",
        "Certificate",
        "Expectation",
        "RuntimeEstimate",
        "Plan",
    ),
    *("Requirements", "Comparison", "Cyclic", "Backup", "Limit"),
    *(
        "Trace",
        "load_trace",
        "Advice",
        "Slowness",
        "Description",
        "Fit",
        "grid",
    ),
}
# Their second calls are those of tests/coding.
OF_CODES = set(vars(bcgc.coding))

"""Optimization-based block coordinate gradient coding in JAX.

Here: laws of the workers' times, problems and their solutions, methods, runtimes, sweeps. By subject:
`bcgc_jax.partitions`; `bcgc_jax.coding`, gradient codes and training with them; `bcgc_jax.measured`, from a
file of measured times to a law; `bcgc_jax.cluster`, worker processes, imported on demand.
"""

from importlib.metadata import PackageNotFoundError, version

from bcgc_jax import _command as _command  # before JAX
from bcgc_jax import coding, measured, partitions, schedules
from bcgc_jax.expectation import Expectation
from bcgc_jax.iterations import expected_order_statistics, sorted_cycle_times
from bcgc_jax.laws import (
    Deterministic,
    Empirical,
    Exponential,
    FromHazard,
    Gamma,
    HazardSpline,
    Law,
    Lognormal,
    Pairs,
    Pareto,
    Rows,
    ShiftedExponential,
    TwoSpeed,
    Uniform,
    Unlike,
    Weibull,
)
from bcgc_jax.partitions import levels_from_partition, partition_from_levels
from bcgc_jax.problem import Problem, Status
from bcgc_jax.runtime import (
    Certificate,
    RuntimeEstimate,
    block_runtime,
    certificate,
    completion_probability,
    coordinate_runtime,
    expected_runtime,
    integrate_runtime,
    simulate_runtime,
)
from bcgc_jax.schedules import Schedule
from bcgc_jax.solution import Needs, Parts, Solution
from bcgc_jax.solvers import (
    Alternating,
    Backup,
    Comparison,
    Credit,
    Cyclic,
    Deadline,
    Ferdinand,
    Groups,
    Optimal,
    Scheme,
    Sharing,
    Subgradient,
    Tandon,
    TandonPartial,
    compare,
    runtime_limit,
    solve,
    straggler_ratio,
)
from bcgc_jax.solvers.completion_bound import CompletionBound, completion_bound
from bcgc_jax.sweep_files import write_sweep
from bcgc_jax.sweeps import Sweep, grid, sweep

try:
    __version__ = version("bcgc-jax")
except PackageNotFoundError:  # a source tree on the path
    __version__ = "unknown"

__all__ = [
    "Alternating",
    "Backup",
    "Certificate",
    "Comparison",
    "CompletionBound",
    "Credit",
    "Cyclic",
    "Deadline",
    "Deterministic",
    "Empirical",
    "Expectation",
    "Exponential",
    "Ferdinand",
    "FromHazard",
    "Gamma",
    "Groups",
    "HazardSpline",
    "Law",
    "Lognormal",
    "Needs",
    "Optimal",
    "Pairs",
    "Pareto",
    "Parts",
    "Problem",
    "Rows",
    "RuntimeEstimate",
    "Schedule",
    "Scheme",
    "Sharing",
    "ShiftedExponential",
    "Solution",
    "Status",
    "Subgradient",
    "Sweep",
    "Tandon",
    "TandonPartial",
    "TwoSpeed",
    "Uniform",
    "Unlike",
    "Weibull",
    "block_runtime",
    "certificate",
    "coding",
    "compare",
    "completion_bound",
    "completion_probability",
    "coordinate_runtime",
    "expected_order_statistics",
    "expected_runtime",
    "grid",
    "integrate_runtime",
    "levels_from_partition",
    "measured",
    "partition_from_levels",
    "partitions",
    "runtime_limit",
    "schedules",
    "simulate_runtime",
    "solve",
    "sorted_cycle_times",
    "straggler_ratio",
    "sweep",
    "write_sweep",
]
